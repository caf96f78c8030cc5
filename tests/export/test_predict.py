import json
import os
import re
import struct
import subprocess
import sys
import venv
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from sslfast.cli.main import main
from sslfast.export import Parity, Predictor
from sslfast.export.predict import find_images, predict_files
from sslfast.models import save_backbone
from sslfast.models.classifier import Classifier
from sslfast.models.head import save_head

Images = NDArray[np.uint8]
Capture = pytest.CaptureFixture[str]
EXAMPLE = Path(__file__).parents[2] / "examples" / "predict_onnx.py"


@pytest.fixture
def classifier(exported: tuple[Classifier, Path, Parity]) -> Classifier:
    return exported[0]


@pytest.fixture
def model(exported: tuple[Classifier, Path, Parity]) -> Path:
    return exported[1]


def torch_probabilities(classifier: Classifier, image: Images) -> Images:
    with torch.no_grad():
        return classifier(torch.from_numpy(image[None]))[0][0].numpy()


def save_images(folder: Path, images: Images) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{index:03d}.png" for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_folder_agrees_with_torch_in_order(
    classifier: Classifier, model: Path, digits: Images, tmp_path: Path, capsys: Capture
) -> None:
    paths = save_images(tmp_path / "digits", digits[:150])  # more than two batches
    assert main(["predict", "--model", str(model), "--json", "--top", "3", str(tmp_path / "digits")]) == 0
    found = rows(capsys.readouterr().out)
    assert [row["file"] for row in found] == [str(path) for path in paths]
    with torch.no_grad():
        answers = classifier(torch.from_numpy(digits[:150]))[0].numpy()
    for row, expected in zip(found, answers, strict=True):
        assert row["class"] == classifier.classes[expected.argmax()]
        assert row["probability"] == pytest.approx(expected.max(), abs=1e-5)
        assert [entry["probability"] for entry in row["top"]] == pytest.approx(np.sort(expected)[:-4:-1], abs=1e-5)


def test_shapes_that_change_from_file_to_file(classifier: Classifier, model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = [(20, 20), (20, 20), (30, 10), (20, 20), (10, 30), (10, 30), (1, 1), (300, 200)]
    images = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    paths = []
    for index, image in enumerate(images):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(image).save(paths[-1])
    results = list(predict_files(Predictor(model), paths, 1))
    assert [len(result) for result in results] == [2, 1, 1, 2, 1, 1]
    flat = [prediction for result in results if isinstance(result, list) for prediction in result]
    assert [prediction.path for prediction in flat] == paths
    for prediction, image in zip(flat, images, strict=True):
        assert prediction.top[0][1] == pytest.approx(torch_probabilities(classifier, image).max(), abs=1e-5)


def test_table_has_aligned_columns(model: Path, digits: Images, tmp_path: Path, capsys: Capture) -> None:
    paths = save_images(tmp_path / "d", digits[:3])
    assert main(["predict", "--model", str(model), *map(str, paths), "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["file", "class", "probability", "2."]
    assert len(lines) == 4 and len({line.index("class") for line in lines}) == 1


def huge_png(path: Path) -> None:
    """Write the header of an image of 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def test_bad_images_are_skipped_and_counted(model: Path, digits: Images, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "mixed"
    good = save_images(folder, digits[:4])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no image")
    content = good[0].read_bytes()
    (folder / "torn.png").write_bytes(content[: len(content) // 2])
    huge_png(folder / "huge.png")
    (folder / "notes.txt").write_text("not looked at")
    assert main(["predict", "--model", str(model), "--json", str(folder)]) == 0
    captured = capsys.readouterr()
    assert len(rows(captured.out)) == 4
    assert "4 of 8 images could not be read" in captured.err
    assert re.search("huge.png: claims .*pixels", captured.err) and "empty.png" in captured.err


def test_no_readable_image_is_an_error(model: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "broken.png").write_bytes(b"broken")
    assert main(["predict", "--model", str(model), str(tmp_path / "broken.png")]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "none of the 1 images could be read" in captured.err
    (tmp_path / "void").mkdir()
    assert main(["predict", "--model", str(model), str(tmp_path / "void")]) == 1
    assert "no image below" in capsys.readouterr().err


def test_usage_errors_are_one_line(model: Path, tmp_path: Path, capsys: Capture) -> None:
    for arguments, word in (
        (["--model", str(model)], "name at least one"),
        (["--model", str(model), "--top", "0", "x.png"], "--top is at least 1"),
        (["--model", str(model), str(tmp_path / "missing.png")], "there is no file"),
    ):
        assert main(["predict", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1 and word in captured.err
    assert main(["predict", "--model", str(tmp_path / "no.onnx"), "x.png"]) == 1
    assert "cannot read the model" in capsys.readouterr().err


def test_modes_of_images(classifier: Classifier, model: Path, tmp_path: Path) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    colour = np.stack([grey, grey.T, 255 - grey], axis=2)
    picture = Image.fromarray(colour)
    alpha = picture.copy()
    alpha.putalpha(Image.fromarray(np.full((8, 8), 255, dtype=np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned: the viewer sees it rotated by 270 degrees
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "a16.png")
    Image.fromarray(grey).save(tmp_path / "b8.png")
    picture.quantize(256).save(tmp_path / "palette.png")
    alpha.save(tmp_path / "alpha.png")
    picture.save(tmp_path / "turned.png", exif=exif)
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    found = {}
    for result in predict_files(Predictor(model), find_images([tmp_path])[0], 1):
        assert isinstance(result, list), result
        found |= {prediction.path.name: prediction.top[0] for prediction in result}
    grey_answer = torch_probabilities(classifier, np.repeat(grey[..., None], 3, axis=2)).max()
    assert found["a16.png"][1] == pytest.approx(grey_answer, abs=1e-5) == found["b8.png"][1]
    assert found["alpha.png"][1] == pytest.approx(torch_probabilities(classifier, colour).max(), abs=1e-5)
    seen = np.ascontiguousarray(np.rot90(colour, k=3))
    assert found["turned.png"][1] == pytest.approx(torch_probabilities(classifier, seen).max(), abs=1e-5)
    assert len(found) == 6


def test_names_that_are_no_utf8(model: Path, digits: Images, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    name = os.fsdecode(b"na\xffme\n\x1b[31m.png")
    folder.mkdir()
    Image.fromarray(digits[0]).save(folder / "plain.png")
    os.rename(folder / "plain.png", folder / name)
    for more, encoding in ((("--json",), "utf-8"), ((), "ascii")):
        done = subprocess.run(
            [sys.executable, "-m", "sslfast.cli.main", "predict", "--model", str(model), *more, os.fsencode(folder)],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )
        assert done.returncode == 0, done.stderr
        assert b"\x1b[31m" not in done.stdout
        if more:
            assert json.loads(done.stdout)["file"] == str(folder / name)
        else:
            assert len(done.stdout.splitlines()) == 2 and b"na\\xffme\\n" in done.stdout


def test_export_command_and_its_refusal(classifier: Classifier, tmp_path: Path, capsys: Capture) -> None:
    save_backbone(classifier.backbone, tmp_path / "backbone.safetensors")
    save_head(classifier.head, tmp_path / "head.safetensors", classifier.classes, classifier.backbone.fingerprint())
    save_head(classifier.head, tmp_path / "foreign.safetensors", classifier.classes, "0" * 64)
    out = tmp_path / "made" / "model.onnx"
    base = ["export", "--backbone", str(tmp_path / "backbone.safetensors"), "--out", str(out)]
    assert main([*base, "--head", str(tmp_path / "head.safetensors"), "--data", "digits", "--images", "50"]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(out)
    assert "checked against torch on 56 images" in captured.err.replace("\n", " ")
    assert Predictor(out).metadata["backbone_fingerprint"] == classifier.backbone.fingerprint()
    before = out.read_bytes()
    assert main([*base, "--head", str(tmp_path / "foreign.safetensors")]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "another backbone" in captured.err
    assert out.read_bytes() == before
    assert main([*base, "--head", str(tmp_path / "nothing.safetensors")]) == 1
    assert "there is no head" in capsys.readouterr().err


def check_example(
    python: str, blocked: bool, classifier: Classifier, model: Path, digits: Images, folder: Path
) -> None:
    """Run the ten-line example in another interpreter, and compare what it prints with torch."""
    paths = save_images(folder / "d", digits[:10])
    rng = np.random.default_rng(0)
    photograph = rng.integers(0, 256, (90, 61, 3), dtype=np.uint8)
    Image.fromarray(photograph).save(folder / "photograph.png")
    guard = (
        "import runpy, sys\n"
        "class Guard:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] in ('torch', 'sslfast', 'onnx', 'torchvision'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Guard())\n"
        "script = sys.argv.pop(1)\n"
        "runpy.run_path(script, run_name='__main__')\n"
    )
    command = [python, "-c", guard] if blocked else [python]
    images = [*paths, folder / "photograph.png"]
    done = subprocess.run([*command, str(EXAMPLE), str(model), *map(str, images)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [str(path) for path in images]
    for line, image in zip(lines, [*digits[:10], photograph], strict=True):
        expected = torch_probabilities(classifier, image)
        assert line[1] == classifier.classes[expected.argmax()]
        assert float(line[2]) == pytest.approx(expected.max(), abs=1e-5)


def test_example_without_torch_and_sslfast(classifier: Classifier, model: Path, digits: Images, tmp_path: Path) -> None:
    check_example(sys.executable, True, classifier, model, digits, tmp_path)
    lines = [line for line in EXAMPLE.read_text().split('"""')[2].splitlines() if line.strip()]
    assert len(lines) <= 15


@pytest.mark.slow
def test_example_in_an_environment_of_three_packages(
    classifier: Classifier, model: Path, digits: Images, tmp_path: Path
) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    made = subprocess.run(
        [python, "-m", "pip", "install", "-q", "onnxruntime", "numpy", "pillow"], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no package index: {made.stderr.splitlines()[-1]}")
    check_example(python, False, classifier, model, digits, tmp_path)
