"""Training on images in files: decoded as they are needed, the damaged named, resumed in the middle of an epoch."""

import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from pictures import photographs
from PIL import Image

from sslfast.cli.main import main
from sslfast.data import load
from sslfast.data.image_files import FilePixels
from sslfast.errors import DataError, UsageError
from sslfast.pretrain import pretrain, training
from sslfast.pretrain.config import BarlowTwinsConfig, SimCLRConfig, SupervisedConfig
from sslfast.pretrain.feed import Feed
from sslfast.pretrain.parallel import Ranks
from sslfast.run import Run

CONFIG = SimCLRConfig(epochs=2, batch_size=8, dtype="float32")
COUNT = 41
DAMAGED = ("cat/004.jpg", "dog/012.jpg", "dog/030.jpg")
"""Cut off behind their headers: nobody knows before they are decoded."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    top = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for i, (height, width) in enumerate(random.integers(20, 120, (COUNT, 2)).tolist()):
        path = top / "train" / ("dog" if i % 3 == 0 else "cat") / f"{i:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        encoded = io.BytesIO()
        Image.fromarray(photographs(1, height, width, seed=i)[0]).save(encoded, "JPEG")
        content = encoded.getvalue()
        whole = f"{path.parent.name}/{path.name}" not in DAMAGED
        path.write_bytes(content if whole else content[: len(content) * 9 // 10])
    (top / "train" / "dog" / "nothing.jpg").write_bytes(b"")
    with zipfile.ZipFile(top / "photos.zip", "w") as archive:
        for path in sorted((top / "train").rglob("*.jpg")):
            archive.write(path, path.relative_to(top))
    return top


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(path, dataset, config, **more):
    with Run(path, {}, resume=True) as run:
        backbone = pretrain(dataset, config, run, image_size=16, device="cpu", **more)
        lines = [{**line, "images_per_second": None} for line in run.metrics()]
    return backbone.fingerprint(), lines, json.loads((path / "result.json").read_text())


@pytest.mark.parametrize("place", ["", "/photos.zip"])
def test_photographs_from_the_command_line(folder, place, tmp_path, capsys):
    run = tmp_path / "run"
    words = f"pretrain supervised --data imagefolder:{folder}{place} --out {run} --epochs 2 --batch-size 9"
    assert main([*words.split(), "--image-size", "16", "--probe-every", "1", "--probe-fraction", "0.2"]) == 0
    result = json.loads((run / "result.json").read_text())
    log = (run / "log.txt").read_text()
    named = {line.split("left out: ")[1].split(": ")[0] for line in log.splitlines() if "left out" in line}
    top = f"{folder}{place}/train/"
    assert named == {top + name for name in (*DAMAGED, "dog/nothing.jpg")} and result["skipped"] == 4
    assert "4 unreadable images or class folders were left out" in " ".join(capsys.readouterr().err.split())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["images"] for line in lines if "loss" in line) == 2 * result["images"]
    # Of the damaged ones some are held out for the probes: neither they nor those of the training count.
    assert COUNT - 8 - 3 <= result["images"] <= COUNT - 8 and 0 <= result["held_out_knn"] <= 1


def test_no_size_is_needed_and_nothing_is_held(folder, tmp_path, monkeypatch):
    decoded, read = [], []
    whole, one = FilePixels.decoded, FilePixels._decode
    monkeypatch.setattr(
        FilePixels, "decoded", lambda self, rows, size: decoded.append(len(rows)) or whole(self, rows, size)
    )
    monkeypatch.setattr(FilePixels, "_decode", lambda self, row: read.append(row) or one(self, row))
    monkeypatch.setattr(training, "FILES_FOR_STATISTICS", 5)
    ahead = []
    step = training.Training.step

    def watched(self, number, parts):
        ahead.append(len(read) - 5 - sum(self.feed.images(done) for done in range(number + 1)))
        return step(self, number, parts)

    monkeypatch.setattr(training.Training, "step", watched)
    dataset = load(f"imagefolder:{folder}", "train")
    with Run(tmp_path / "run", {}) as run:
        backbone = pretrain(dataset, replace(CONFIG, epochs=1, batch_size=4), run, device="cpu")
    assert backbone.preprocess.size == 64 and decoded == [5]
    assert max(ahead) <= 3 * 4 + len(DAMAGED)  # batches, and the damaged, which are no image of theirs


def test_small_images_of_one_size_are_decoded_once(tmp_path, monkeypatch):
    for i in range(12):
        Image.fromarray(photographs(1, 10, 12, seed=i)[0]).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:60])
    read = []
    one = FilePixels._decode
    monkeypatch.setattr(FilePixels, "_decode", lambda self, row: read.append(row) or one(self, row))
    _, _, result = trained(tmp_path / "run", load(f"folder:{tmp_path}", "train"), CONFIG)
    assert sorted(read) == list(range(12)) and (result["images"], result["skipped"]) == (11, 1)


@pytest.mark.parametrize("renderer", ["native", "dali"])
def test_resumed_in_the_middle_of_an_epoch_to_the_bit(folder, renderer, tmp_path, monkeypatch):
    if renderer == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    config = replace(CONFIG, accumulate=2, renderer=renderer)
    want = trained(tmp_path / "unbroken", load(f"imagefolder:{folder}", "train"), config)
    step = training.Training.step

    def broken(self, number, parts):
        if number == 9:  # the second of the second epoch: what was damaged has been met
            raise KeyboardInterrupt
        return step(self, number, parts)

    monkeypatch.setattr(training.Training, "step", broken)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", load(f"imagefolder:{folder}", "train"), config, save_seconds=0.0)
    monkeypatch.undo()
    fingerprint, lines, result = trained(tmp_path / "run", load(f"imagefolder:{folder}", "train"), config)
    assert (fingerprint, lines) == want[:2]
    assert (result["images"], result["skipped"]) == (want[2]["images"], want[2]["skipped"]) == (COUNT - 3, 4)


def test_processes_share_out_what_can_be_read(folder):
    given = {"size": 16, "batch_size": 20, "seed": 0, "device": torch.device("cpu"), "parts": 2}
    dataset = load(f"imagefolder:{folder}", "train")
    alone = Feed(dataset, "simclr", **given)
    shared = [Feed(dataset, "simclr", **given, ranks=Ranks(rank, 2, object()), labelled=True) for rank in range(2)]
    seen = 0
    for whole, *ranks in zip(alone.steps(0, 3), *(feed.steps(0, 3) for feed in shared), strict=True):
        for part, *shares in zip(whole, *ranks, strict=True):
            assert [one.share for one in shares] == [part.share] * 2
            assert np.array_equal(np.concatenate([one.indices for one in shares]), part.indices)
            rows = [one.views[0].unflatten(0, (2, -1)) for one in shares]
            assert torch.equal(torch.cat(rows, dim=1).flatten(0, 1), part.views[0])
            assert all(np.array_equal(one.labels, dataset.labels[one.indices]) for one in shares)
            seen += len(part.indices)
    assert seen == COUNT - len(DAMAGED)


def test_a_step_without_images_says_which_are_damaged(folder, tmp_path):
    dataset = load(f"imagefolder:{folder}", "train")
    bad = [row for row, path in enumerate(dataset.ids) if path.endswith(DAMAGED)]
    few = dataset.subset([*bad, 0])
    config = BarlowTwinsConfig(epochs=1, batch_size=4, projection=8, dtype="float32")
    with Run(tmp_path / "run", {}) as run, pytest.raises(DataError, match=r"fewer than 2 images of step 0 .*004\.jpg"):
        pretrain(few, config, run, image_size=16)
    with Run(tmp_path / "all", {}) as run, pytest.raises(DataError, match=r"no image can be read; .*004\.jpg"):
        pretrain(dataset.subset(bad), config, run, image_size=16)


def test_an_image_alone_in_its_batch(folder, tmp_path):
    dataset = load(f"imagefolder:{folder}", "train").subset([0, 1, 2])
    with Run(tmp_path / "run", {}) as run, pytest.raises(UsageError, match="larger --batch-size"):
        pretrain(dataset, SupervisedConfig(batch_size=2), run, image_size=16)
