import copy
import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from sslfast.errors import SslfastError, UsageError
from sslfast.export import Parity, Predictor, to_onnx
from sslfast.models.classifier import Classifier
from sslfast.models.head import Head, HeadSpec

MakeClassifier = Callable[..., Classifier]
Images = NDArray[np.uint8]


def torch_answer(classifier: Classifier, images: Images) -> tuple[Images, Images]:
    with torch.no_grad():
        probabilities, features = classifier(torch.from_numpy(images))
    return probabilities.numpy(), features.numpy()


def test_parity_on_real_images_is_measured_and_recorded(exported: tuple[Classifier, Path, Parity]) -> None:
    _, path, parity = exported
    assert parity.images == 300 + 6
    assert parity.probability_error < 1e-5 and parity.feature_error < 1e-5 and parity.top1_agreement == 1.0
    assert json.loads(Predictor(path).metadata["parity"])["images"] == 306


@pytest.mark.parametrize(
    "shape",
    [(32, 32), (28, 28), (8, 8), (97, 31), (31, 97), (1, 1), (1, 500), (500, 1), (33, 32), (64, 64), (300, 451)],
)
@pytest.mark.parametrize("count", [1, 2])
def test_any_shape_agrees_with_torch(
    exported: tuple[Classifier, Path, Parity], shape: tuple[int, int], count: int
) -> None:
    classifier, path, _ = exported
    images = np.random.default_rng(0).integers(0, 256, (count, *shape, 3), dtype=np.uint8)
    got, got_features = Predictor(path)(images)
    expected, features = torch_answer(classifier, images)
    assert np.abs(got - expected).max() < 1e-5
    assert np.abs(got_features - features).max() < 1e-5 * np.abs(features).max()
    assert np.allclose(got.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 2, 257])
def test_any_batch(exported: tuple[Classifier, Path, Parity], digits: Images, count: int) -> None:
    classifier, path, _ = exported
    images = digits[:count]
    got, got_features = Predictor(path)(images)
    assert got.shape == (count, 10) and got_features.shape == (count, 128)
    if count:
        assert np.abs(got - torch_answer(classifier, images)[0]).max() < 1e-5


def test_resize_alone_agrees_with_torch_to_a_thousandth_of_a_grey_level(tmp_path: Path) -> None:
    # The bound that docs/export.md states; identity backbone: its features are the preprocessed pixels.
    from sslfast.models import Backbone, Preprocess

    size = 16
    preprocess = Preprocess(size, (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))  # features in grey levels
    backbone = Backbone("flatten", torch.nn.Flatten(), 3 * size * size, preprocess)
    classifier = Classifier(backbone, Head(3 * size * size, 2, HeadSpec((), 0.0, 0.1)), ["a", "b"])
    path = tmp_path / "pixels.onnx"
    to_onnx(classifier, path)
    predictor = Predictor(path)
    rng = np.random.default_rng(1)
    for height, width in [(16, 16), (8, 8), (5, 40), (40, 5), (17, 16), (31, 33), (160, 400), (1, 1), (3, 1000)]:
        images = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        _, features = predictor(images)
        difference = np.abs(features - torch_answer(classifier, images)[1]).max()
        assert difference < 1e-3, (height, width, difference)
        if (height, width) == (size, size):
            exact = images.transpose(0, 3, 1, 2).reshape(2, -1).astype(np.float32)
            assert np.abs(features - exact).max() < 1e-4  # no resampling: only the rounding of /255 and *255


@pytest.mark.parametrize(
    "architecture",
    ["resnet20", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "resnet18-same", "alexnet"))],
)
def test_other_backbones(make_classifier: MakeClassifier, tmp_path: Path, digits: Images, architecture: str) -> None:
    parity = to_onnx(
        make_classifier(architecture, size=64 if architecture == "alexnet" else 40),
        tmp_path / "m.onnx",
        check_images=digits[:20],
    )
    assert parity.agrees()


def test_file_is_valid_whole_and_clean(exported: tuple[Classifier, Path, Parity]) -> None:
    _, path, _ = exported
    assert [entry.name for entry in path.parent.iterdir()] == ["model.onnx"]
    graph = onnx.load(path)
    onnx.checker.check_model(graph, full_check=True)
    assert [value.name for value in graph.graph.input] == ["images"]
    assert [value.name for value in graph.graph.output] == ["probabilities", "features"]
    assert graph.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    dims = [dim.dim_param or dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["N", "H", "W", 3]
    operators = {node.op_type for node in graph.graph.node}
    assert "BatchNormalization" not in operators and "Dropout" not in operators and "Gather" not in operators
    assert not any(
        initializer.HasField("data_location") and initializer.data_location for initializer in graph.graph.initializer
    )
    content = path.read_bytes()
    assert b"site-packages" not in content and os.fsencode(Path(__file__).parents[2]) not in content


def test_metadata(exported: tuple[Classifier, Path, Parity]) -> None:
    classifier, path, _ = exported
    predictor = Predictor(path)
    assert predictor.classes == classifier.classes
    assert predictor.size == 32
    assert predictor.metadata["backbone_fingerprint"] == classifier.backbone.fingerprint()
    assert predictor.metadata["torch_version"] == torch.__version__
    assert predictor.metadata["sslfast_version"]


def test_file_works_alone_in_another_folder(
    exported: tuple[Classifier, Path, Parity], digits: Images, tmp_path: Path
) -> None:
    classifier, path, _ = exported
    moved = tmp_path / os.fsdecode(b"elsewhere-\xff") / "other name.bin"
    moved.parent.mkdir()
    shutil.copy(path, moved)
    assert np.abs(Predictor(moved)(digits[:5])[0] - torch_answer(classifier, digits[:5])[0]).max() < 1e-5


def test_export_leaves_the_classifier_and_the_terminal_alone(
    make_classifier: MakeClassifier, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    classifier = make_classifier()
    before = copy.deepcopy(classifier.state_dict())
    to_onnx(classifier, tmp_path / "m.onnx")
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


def test_class_names_of_any_kind(tiny: Classifier, tmp_path: Path) -> None:
    names = ['<script>alert("x")</script>', "Ü/ß,\n\t", "", "日本", "a\ud800b", "'", "\\", "x" * 1000, "{}", "null"]
    tiny.classes = tuple(names)
    to_onnx(tiny, tmp_path / "m.onnx")
    assert Predictor(tmp_path / "m.onnx").classes == tuple(names)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_network_that_gives_nan_is_not_written(tiny: Classifier, tmp_path: Path, poison: float) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"the old file")
    with torch.no_grad():
        next(tiny.head.parameters()).view(-1)[0] = poison
    with pytest.raises(SslfastError, match="disagrees with torch"):
        to_onnx(tiny, path)
    assert path.read_bytes() == b"the old file" and len(list(tmp_path.iterdir())) == 1


def test_a_file_that_disagrees_is_not_written(
    tiny: Classifier, tmp_path: Path, digits: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sslfast.export import onnx as module

    trace = module._trace

    def wrong(model: Classifier, opset: int) -> onnx.ModelProto:
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.head.mean += 0.1
        return trace(other, opset)

    monkeypatch.setattr(module, "_trace", wrong)
    with pytest.raises(SslfastError, match="disagrees with torch .* was not written"):
        to_onnx(tiny, tmp_path / "m.onnx", check_images=digits)
    assert not list(tmp_path.iterdir())


def test_network_that_cannot_be_exported_is_one_line(make_classifier: MakeClassifier, tmp_path: Path) -> None:
    class Branching(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)).repeat(1, 43)[:, :128] if x.sum() > 0 else x.sum((2, 3)).repeat(1, 43)[:, :128]

    classifier = make_classifier()
    classifier.backbone.network = Branching()
    with pytest.raises(SslfastError, match="torch cannot export"):
        to_onnx(classifier, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_wrong_images_are_refused(exported: tuple[Classifier, Path, Parity], digits: Images, tmp_path: Path) -> None:
    classifier, path, _ = exported
    with pytest.raises(UsageError, match="uint8"):
        to_onnx(classifier, tmp_path / "m.onnx", check_images=digits[..., :1])
    predictor = Predictor(path)
    with pytest.raises(TypeError, match="uint8, got float32"):
        predictor(digits.astype(np.float32))  # type: ignore[arg-type]
    for wrong in (digits[0], digits[..., 0], digits[..., :2]):
        with pytest.raises(ValueError, match="must be"):
            predictor(wrong)
    with pytest.raises(Exception, match="INVALID_ARGUMENT|Unexpected input data type"):
        predictor._session.run(None, {"images": digits.astype(np.float32)})  # the file itself refuses too
    with pytest.raises(Exception, match="INVALID_ARGUMENT|Invalid"):
        predictor._session.run(None, {"images": digits[0]})


def test_head_that_does_not_fit(make_classifier: MakeClassifier) -> None:
    classifier = make_classifier()
    with pytest.raises(UsageError, match="takes 64 features"):
        Classifier(classifier.backbone, Head(64, 3, HeadSpec((), 0.0, 0.1)), ["a", "b", "c"])
    with pytest.raises(UsageError, match="3 outputs, 2 class names"):
        Classifier(classifier.backbone, Head(128, 3, HeadSpec((), 0.0, 0.1)), ["a", "b"])


def test_files_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(SslfastError, match="cannot read the model"):
        Predictor(tmp_path / "missing.onnx")
    (tmp_path / "noise.onnx").write_bytes(b"no model at all")
    with pytest.raises(SslfastError, match="not a readable ONNX file.*; sslfast export writes one"):
        Predictor(tmp_path / "noise.onnx")
    value = onnx.helper.make_tensor_value_info("x", 1, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [
        onnx.helper.make_tensor_value_info("y", 1, [1])
    ])  # fmt: skip
    foreign = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(SslfastError, match="not a classifier that sslfast exported"):
        Predictor(tmp_path / "foreign.onnx")


def test_full_disk_keeps_the_old_file(
    tiny: Classifier, tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"the old file")
    with full_disk(1000), pytest.raises(SslfastError, match="cannot write .* untouched"):
        to_onnx(tiny, path)
    assert path.read_bytes() == b"the old file" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(os.getuid() != 0, reason="only root can drop to another user")
def test_read_only_folder_is_one_line(tiny: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"the old file")
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o711)  # pytest's own folders are closed to others
    os.seteuid(65534)  # as nobody: root may write anywhere
    try:
        with pytest.raises(SslfastError, match="cannot write .*Permission denied"):
            to_onnx(tiny, path)
    finally:
        os.seteuid(0)
    assert path.read_bytes() == b"the old file"
