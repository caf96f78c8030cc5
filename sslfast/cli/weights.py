"""``sslfast data fetch-weights`` and ``sslfast data inspect-checkpoint``: published weights, and what a file holds."""

from __future__ import annotations

import json
from pathlib import Path

from sslfast.progress import console


def fetch(name: str, root: str | None, as_json: bool) -> int:
    """Download published weights and print where they are; without a name, list what there is."""
    from sslfast.data.dataset import printable
    from sslfast.data.weights import PUBLISHED, fetch_weights, find_weights, published

    if not name:
        rows = [
            {
                "name": entry.name,
                "what": entry.what,
                "architecture": entry.architecture,
                "url": entry.url,
                "checksum": entry.checksum or "recorded at the first download",
                "licence": entry.licence,
                "path": None if (there := find_weights(entry, root)) is None else printable(str(there)),
            }
            for entry in PUBLISHED.values()
        ]
        if as_json:
            print(json.dumps(rows, indent=2))
            return 0
        width = max(len(entry.name) for entry in PUBLISHED.values())
        for row in rows:
            print(f"{row['name']:{width}}  {row['what']}{'; ' + row['licence'] if row['licence'] else ''}")
            print(f"{'':{width}}  {row['path'] or 'not here: ' + str(row['url'])}; checksum: {row['checksum']}")
        print(
            f"{'torchvision:NAME':{width}}  any classifier of torchvision; torchvision:NAME@WEIGHTS for later versions"
        )
        return 0
    path = fetch_weights(name, root)
    entry = published(name)
    print(
        json.dumps({"path": str(path), "architecture": entry.architecture, "layout": entry.layout}) if as_json else path
    )
    layout = f" --layout {entry.layout}" if entry.layout else ""
    console.print(
        f"next: sslfast data inspect-checkpoint {path} --backbone {entry.architecture}{layout} --out b.safetensors",
        markup=False,
        soft_wrap=True,
    )
    return 0


def inspect(
    file: str, backbone: str | None, layout: str | None, allow_missing: tuple[str, ...], out: Path | None, as_json: bool
) -> int:
    """Say what a checkpoint is, and write it as one of ours where ``out`` is given."""
    from sslfast import models
    from sslfast.cli.checkpoints import tell
    from sslfast.errors import UsageError
    from sslfast.models.checkpoint import read_foreign
    from sslfast.models.recognition import guess

    if not file:
        raise UsageError("which file? sslfast data inspect-checkpoint FILE --backbone NAME")
    path = Path(file)
    name = backbone or models.recorded_architecture(path) or guess(read_foreign(path))
    if name is None:
        raise UsageError(f"{path} does not tell its architecture; give it with --backbone NAME")
    found = models.load_backbone(name, path, layout=layout, allow_missing=allow_missing)
    if as_json:
        print(
            json.dumps(
                {
                    "architecture": found.architecture,
                    "layout": found.layout,
                    "convention": found.convention,
                    "size": found.preprocess.size,
                    "mean": found.preprocess.mean,
                    "std": found.preprocess.std,
                    "features": found.features,
                    "missing": found.missing,
                    "unexpected": found.unexpected,
                    "dropped": list(found.report.dropped) if found.report else [],
                }
            )
        )
    elif found.report is not None:
        tell(found)
    else:
        print(f"a {found.architecture} that sslfast wrote; input: {found.preprocess.describe()}")
    if out is not None:
        models.save_backbone(found, out)
        console.print(
            f"next: sslfast extract --backbone {out} --data NAME --out features", markup=False, soft_wrap=True
        )
    return 0
