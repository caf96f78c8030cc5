"""``sslfast study``: the grids of trainings behind three papers, one command each."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, Union

import tyro

from sslfast.errors import UsageError
from sslfast.progress import console
from sslfast.study.config import (
    STUDIES,
    LabelFractionsConfig,
    SelfClassifierStudyConfig,
    StudyConfig,
    TransferConfig,
)

Config = TypeVar("Config", bound=StudyConfig)
Preset = Literal["small", "paper"]

WHAT = {
    "label-fractions": "how much is a label worth: labelled x unlabelled fractions of the images",
    "transfer": "which backbone transfers, fine-tuned or frozen; with --replay paper003: what six faults cost",
    "self-classifier": "classes without labels: clustering scores, example grids, linear probe",
}


@dataclass(frozen=True)
class Options(Generic[Config]):
    """Where a study goes, besides what it is.

    Args:
        study: what to train.
        preset: where the defaults come from: small takes minutes on two cores, paper is what the paper did.
        data_dir: where data sets and published weights lie, before the usual places.
        out: folder of the study; by default runs/<time>-study-<name>.
        resume: go on with the study in --out that was broken off; --seeds may have grown.
        device: auto, cpu or cuda.
        json: print the table as JSON.
    """

    study: Annotated[Config, tyro.conf.arg(name="")]
    preset: Preset = "small"
    data_dir: Path | None = None
    out: Path | None = None
    resume: bool = False
    device: str = "auto"
    json: bool = False


def options(words: Sequence[str]) -> Any:
    """Give the type of the options: one subcommand a study, whose defaults are those of the preset in ``words``."""
    preset = _preset(words)
    kinds = []
    for name, kind in STUDIES.items():
        default: Any = Options(kind.paper() if preset == "paper" else kind(), preset)
        how: Any = tyro.conf.subcommand(name=name, description=WHAT[name], default=default)
        kinds.append(Annotated[Options[kind], how])  # type: ignore[valid-type]
    return Union[tuple(kinds)]  # noqa: UP007 (made at run time)


def _preset(words: Sequence[str]) -> Preset:
    asked = ""
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word == "--preset":
            asked = following
        elif word.startswith("--preset="):
            asked = word.partition("=")[2]
    return "paper" if asked == "paper" else "small"  # what is neither, tyro refuses


def run(options: Options[Any]) -> None:
    """Train what is missing, draw, and print the table and the next command.

    Raises:
        UsageError: an option that makes no sense, or a folder of another study.
        DataError: the images are missing.
    """
    from sslfast.device import resolve_device, resolve_dtype
    from sslfast.run import new_run_folder
    from sslfast.study.images import load_images
    from sslfast.study.tables import printed

    if options.resume and options.out is None:
        raise UsageError("--resume needs --out: the folder of the study to go on with")
    resolve_dtype(options.study.dtype, resolve_device(options.device))
    images = load_images(options.study, options.data_dir)
    folder = options.out or new_run_folder(f"study-{options.study.NAME}")
    console.print(f"in {folder}", markup=False, soft_wrap=True)  # what --resume --out needs after a kill
    table, pictures = _run(options, images, folder)
    if options.json:
        print(json.dumps({"folder": str(folder), "pictures": [str(path) for path in pictures], "table": table}))
        return
    printed(table)
    print(folder / "table.json", *pictures, sep="\n")
    console.print(f"next: {_next(options, folder)}", markup=False, soft_wrap=True)


def _run(options: Options[Any], images: Any, folder: Path) -> tuple[dict[str, Any], list[Path]]:
    study, rest = options.study, {"resume": options.resume, "device": options.device}
    if isinstance(study, LabelFractionsConfig):
        from sslfast.study import label_figures
        from sslfast.study.label_fractions import run_label_fractions

        table = run_label_fractions(study, images, folder, **rest)  # type: ignore[arg-type]
        return table, label_figures.draw(table, folder)
    if isinstance(study, SelfClassifierStudyConfig):
        from sslfast.study import self_figures
        from sslfast.study.self_classifier import run_self_classifier

        table = run_self_classifier(study, images, folder, **rest)  # type: ignore[arg-type]
        return table, self_figures.draw(table, folder)
    assert isinstance(study, TransferConfig)
    from sslfast.study import transfer_figures

    if study.replay == "paper003":
        from sslfast.study.replay import run_replay

        table = run_replay(study, images, folder, data_dir=options.data_dir, **rest)  # type: ignore[arg-type]
        return table, transfer_figures.draw_replay(table, folder)
    from sslfast.study.transfer import run_transfer

    table = run_transfer(study, images, folder, data_dir=options.data_dir, **rest)  # type: ignore[arg-type]
    return table, transfer_figures.draw(table, folder)


def _next(options: Options[Any], folder: Path) -> str:
    """Give the command that says more: more seeds where there are few, else the paper's settings."""
    study: StudyConfig = options.study
    words = ["sslfast", "study", study.NAME]
    if study.seeds < 3 and options.preset == "small":
        return (
            shlex.join([*words, "--preset", "paper"])
            + f"    (or the same command with --seeds 3 --resume --out {folder})"
        )
    return shlex.join([*words, "--help"])
