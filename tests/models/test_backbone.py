"""Backbones and their files: round trips, foreign checkpoints, and files that must not be believed."""

import os
import pickle
import zipfile

import pytest
import torch
from torch import nn

from sslfast.errors import IntegrityError, SslfastError, UsageError
from sslfast.models import ARCHITECTURES, Preprocess, architecture_of, load_backbone, save_backbone
from sslfast.models.checkpoint import read_foreign_state


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_gives_its_features(name):
    backbone = load_backbone(name).eval()
    with torch.inference_mode():
        size = min(backbone.preprocess.size, 64)
        assert backbone(torch.zeros(2, 3, size, size)).shape == (2, backbone.features)


def test_a_saved_backbone_is_the_same(tmp_path):
    torch.manual_seed(0)
    backbone = load_backbone("resnet-small", preprocess=Preprocess(28, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    save_backbone(backbone, tmp_path / "b.safetensors")
    read = load_backbone("resnet-small", tmp_path / "b.safetensors")
    assert read.fingerprint() == backbone.fingerprint()
    assert read.preprocess == backbone.preprocess and architecture_of(tmp_path / "b.safetensors") == "resnet-small"
    strange = tmp_path / os.fsdecode(b"\xff.safetensors")  # a path that is no UTF-8
    save_backbone(backbone, strange)
    assert load_backbone(architecture_of(strange), strange).fingerprint() == backbone.fingerprint()
    with torch.no_grad():
        next(iter(read.network.parameters()))[0, 0, 0, 0] += 1e-6
    assert read.fingerprint() != backbone.fingerprint()


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "encoder.", "module.backbone."])
@pytest.mark.parametrize("container", [None, "state_dict", "model"])
def test_foreign_names_are_understood(tmp_path, prefix, container):
    torch.manual_seed(1)
    source = load_backbone("resnet20")
    state = {prefix + key: value for key, value in source.network.state_dict().items()}
    state[prefix + "linear.weight"] = torch.zeros(10, 64)
    torch.save({container: state, "epoch": 3} if container else state, tmp_path / "c.pth")
    read = load_backbone("resnet20", tmp_path / "c.pth", preprocess=source.preprocess)
    assert read.fingerprint() == source.fingerprint()
    assert read.missing == [] and read.unexpected == ["linear.weight"]


def test_preprocess_is_exact_at_the_right_size_and_resizes_else():
    preprocess = Preprocess(8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    images = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    want = (images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(preprocess(images), want)
    assert preprocess(torch.full((1, 31, 5, 3), 255, dtype=torch.uint8)).allclose(torch.tensor(2.0))


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch exploded",))


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_malicious_checkpoint_does_not_run(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    content = {"state_dict": {"conv1.weight": torch.zeros(1)}, "extra": Bomb()}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(SslfastError, match="posix.system" if kind == "pickle" else "has 1 of|does not fit a resnet20"):
        load_backbone("resnet20", path)
    assert not (tmp_path / "exploded").exists()


def test_the_bomb_would_explode_where_it_is_believed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Bomb()))
    assert (tmp_path / "exploded").exists()


def test_files_that_are_no_checkpoints(tmp_path):
    path = tmp_path / "c.pth"
    with pytest.raises(SslfastError, match="there is no checkpoint"):
        read_foreign_state(path)
    path.write_bytes(b"")
    with pytest.raises(SslfastError, match="not a readable"):
        read_foreign_state(path)
    torch.save({"a": torch.zeros(3)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SslfastError):
        read_foreign_state(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello", "world")
    with pytest.raises(SslfastError):
        read_foreign_state(path)
    torch.save([1, 2], path)
    with pytest.raises(SslfastError, match="holds a list"):
        read_foreign_state(path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(SslfastError, match="no weights"):
        read_foreign_state(path)
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(SslfastError, match="no weight of a resnet20"):
        load_backbone("resnet20", path)


def test_safetensors_that_are_not_ours(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "b.safetensors"
    with pytest.raises(SslfastError, match="there is no checkpoint"):
        load_backbone("resnet20", path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(SslfastError, match="not a backbone that sslfast wrote"):
        architecture_of(path)
    with pytest.raises(SslfastError, match="holds no weight of a resnet20"):
        load_backbone("resnet20", path)
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(SslfastError, match="not a readable safetensors.*; give one that sslfast wrote"):
        load_backbone("resnet20", path)
    save_backbone(load_backbone("resnet-small"), path)
    with pytest.raises(UsageError, match="holds a resnet-small"):
        load_backbone("resnet20", path)
    with pytest.raises(UsageError, match="unknown backbone"):
        load_backbone("resnet21")


def test_a_flipped_bit_in_a_weight_is_found(tmp_path):
    path = tmp_path / "b.safetensors"
    save_backbone(load_backbone("resnet-small"), path)
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="weights are not those that were written"):
        load_backbone("resnet-small", path)


@pytest.mark.parametrize(
    "change", [{"preprocess": "{}"}, {"preprocess": "["}, {"fingerprint": None}, {"weights": None}]
)
def test_a_checkpoint_of_ours_that_lies_is_one_line(tmp_path, change):
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = tmp_path / "b.safetensors"
    save_backbone(load_backbone("resnet-small"), path)
    with safe_open(path, framework="pt") as handle:
        metadata, state = handle.metadata(), {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
    if "weights" in change:
        del state["conv1.weight"]
    else:
        metadata = {key: value for key, value in {**metadata, **change}.items() if value is not None}
    save_file(state, path, metadata=metadata)
    with pytest.raises(IntegrityError, match="is damaged"):
        load_backbone("resnet-small", path)


def test_weights_of_another_shape_are_one_line(tmp_path):
    path = tmp_path / "c.pth"
    torch.save({"conv1.weight": torch.zeros(3, 3)}, path)
    with pytest.raises(SslfastError, match="does not fit a resnet20: conv1.weight is 3x3, not 16x3x3x3") as caught:
        load_backbone("resnet20", path)
    assert "\n" not in str(caught.value)
