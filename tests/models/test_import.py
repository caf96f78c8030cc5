"""Every layout of a public project: recognised, checked, and the same features as in its own network."""

import argparse
import hashlib
import time

import pytest
import torch
import torchvision
from networks import (
    keras_first_strides,
    known,
    layers,
    resnet,
    resnet18_cifar,
    resnet18_like,
    under,
    untrained_counters,
    with_bias,
)
from published import CASES, Case
from safetensors.torch import save_file
from strays import Queue, strays
from torch import nn

from sslfast.errors import SslfastError, UsageError
from sslfast.models import Preprocess, architecture_of, load_backbone, save_backbone
from sslfast.models.layouts import BY_NAME

LEGACY = ("swav", "moco-v2", "self-classifier", "dino")
"""Cases that are also written as PyTorch did before 1.6."""


def images(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", [*CASES, *(f"{name}@legacy" for name in LEGACY)])
def test_a_layout_gives_the_features_of_its_own_network(name, tmp_path, monkeypatch):
    """With an object of a foreign class and a malicious one in the file, of which nothing is built or run."""
    name, _, legacy = name.partition("@")
    case: Case = CASES[name]
    monkeypatch.chdir(tmp_path)
    content, source, heads = case.make()
    torch.save({**content, **strays()}, "c.pth", _use_new_zipfile_serialization=not legacy)
    Queue.rebuilt = 0
    backbone = load_backbone(case.asked, "c.pth", layout=case.given).eval()
    assert not (tmp_path / "exploded").exists() and Queue.rebuilt == 0
    assert backbone.report is not None
    assert {"argparse.Namespace", "strays.Queue", "posix.system"} <= set(backbone.report.dropped)
    assert backbone.layout == case.layout and backbone.convention == "known layout"
    assert backbone.architecture == (case.built or case.asked)
    assert backbone.preprocess == case.preprocess
    assert backbone.trained == backbone.preprocess
    assert backbone.missing == [] and set(backbone.unexpected) == heads
    x = images(case.size)
    with torch.inference_mode():
        ours, theirs = backbone(x), source(x)
    assert float(theirs.std()) > 0.01
    if name in EQUAL_UP_TO_ROUNDING:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
    else:
        assert torch.equal(ours, theirs)
    told = "\n".join(backbone.report.lines())
    assert backbone.architecture in told and case.preprocess.describe() in told and "posix.system" in told


EQUAL_UP_TO_ROUNDING = ("keras",)
"""The first convolution adds its channels in another order there: images are RGB, Keras's are BGR."""


def test_every_layout_has_a_case():
    assert {case.layout for case in CASES.values()} | {"timm"} == set(BY_NAME)


def test_tensorflows_padding_on_odd_and_even_maps():
    """A 7 x 7 convolution of stride 2 makes 33 of 65 and 32 of 64; SAME pads them differently."""
    same = load_backbone("resnet18-same").eval()
    plain = load_backbone("resnet18").eval()
    plain.network.load_state_dict(same.network.state_dict())
    with torch.inference_mode():
        assert torch.equal(same(images(65)), plain(images(65)))
        assert not torch.equal(same(images(64)), plain(images(64)))
    pool = same.network.maxpool
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert pool(x).tolist() == [[[[10, 11], [14, 15]]]]  # windows begin at 0 and 2: nothing is padded before them
    assert pool(-torch.ones(1, 1, 4, 4)).tolist() == [[[[-1, -1], [-1, -1]]]]  # the padding is no zero


def test_kerass_metadata_says_whose_weights_they_are(tmp_path):
    network = resnet("resnet50")
    state = untrained_counters(network.state_dict()) | {"fc.weight": torch.ones(10, 2048)}
    save_file(
        {key: value.contiguous() for key, value in state.items()},
        tmp_path / "k.safetensors",
        metadata={"source": "keras-resnet50-v1"},
    )
    backbone = load_backbone("resnet50", tmp_path / "k.safetensors").eval()
    assert backbone.architecture == "resnet50-keras" and backbone.layout == "keras"
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    bgr = pixels.flip(3).permute(0, 3, 1, 2).float() - torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)
    backbone.preprocess = Preprocess(64, backbone.preprocess.mean, backbone.preprocess.std)
    with torch.inference_mode():
        ours, theirs = backbone(backbone.preprocess(pixels)), keras_first_strides(network, bgr)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


def test_an_imported_backbone_is_saved_and_read_as_ours(tmp_path):
    content, source, _ = CASES["solo"].make()
    torch.save(content, tmp_path / "c.ckpt")
    imported = load_backbone("resnet18-cifar", tmp_path / "c.ckpt").eval()
    save_backbone(imported, tmp_path / "b.safetensors")
    assert architecture_of(tmp_path / "b.safetensors") == "resnet18-cifar-pad2"
    read = load_backbone("resnet18-cifar-pad2", tmp_path / "b.safetensors").eval()
    assert read.fingerprint() == imported.fingerprint() and read.convention == "recorded" and read.layout == "sslfast"
    assert read.trained == imported.preprocess and read.report is None
    with torch.inference_mode():
        assert torch.equal(read(images(32)), source(images(32)))
    with pytest.raises(UsageError, match="holds a resnet18-cifar-pad2, not a resnet18-cifar"):
        load_backbone("resnet18-cifar", tmp_path / "b.safetensors")


def test_what_is_not_known_stays_unknown_when_it_is_saved(tmp_path):
    network = resnet18_cifar(1)
    torch.save(network.state_dict(), tmp_path / "c.pth")
    imported = load_backbone("resnet18-cifar", tmp_path / "c.pth")
    assert imported.layout is None and imported.convention == "default" and imported.trained is None
    assert any("not known" in line for line in imported.report.lines())
    save_backbone(imported, tmp_path / "b.safetensors")
    read = load_backbone("resnet18-cifar", tmp_path / "b.safetensors")
    assert read.convention == "default" and read.trained is None


def test_an_overridden_preprocess_does_not_hide_the_right_one(tmp_path):
    content, _, _ = CASES["spijkervet"].make()
    torch.save(content, tmp_path / "c.tar")
    wrong = Preprocess(64)
    imported = load_backbone("resnet18", tmp_path / "c.tar", wrong)
    assert imported.preprocess == wrong and imported.trained == Preprocess(224, (0.0,) * 3, (1.0,) * 3)
    save_backbone(imported, tmp_path / "b.safetensors")
    assert load_backbone("resnet18", tmp_path / "b.safetensors").trained == imported.trained


def write(path, state):
    torch.save(state, path)
    return path


def hollow(state):
    """Give a state dict of the same names and shapes that is nothing on the disk."""
    return {key: value.flatten()[:1].reshape(()).expand(value.shape) for key, value in state.items()}


def test_what_could_be_two_layouts_is_named_and_not_guessed(tmp_path):
    trained = hollow(resnet("resnet50").state_dict())
    converted = untrained_counters(trained)
    head = hollow(with_bias({"fc.weight": torch.ones(1000, 2048)}))
    path = write(tmp_path / "c.pth", {"state_dict": converted | head})
    with pytest.raises(
        UsageError, match="simclr-v1: resnet50-same.*torchvision: resnet50.*say which with layout"
    ) as caught:
        load_backbone("resnet50", path)
    assert "\n" not in str(caught.value)
    assert load_backbone("resnet50", path, layout="torchvision").architecture == "resnet50"
    assert load_backbone("resnet50-same", path).layout == "simclr-v1"
    # A network that PyTorch trained was not converted from TensorFlow or Keras.
    assert load_backbone("resnet50", write(path, {"state_dict": trained | head})).layout == "torchvision"
    with pytest.raises(UsageError, match="torchvision: resnet50, .*keras: resnet50-keras, "):
        load_backbone("resnet50", write(path, converted | head))
    # A file that bears its own hash is what torchvision published; one that bears another is not.
    beginning = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    assert load_backbone("resnet50", path.rename(tmp_path / f"resnet50-{beginning}.pth")).layout == "torchvision"
    with pytest.raises(UsageError, match="more than one way"):
        load_backbone("resnet50", (tmp_path / f"resnet50-{beginning}.pth").rename(tmp_path / "resnet50-00000000.pth"))
    # Plain names without a head: three projects write them, and mean the same.
    backbone = load_backbone("resnet50", write(path, trained))
    assert backbone.layout == "torchvision | barlow-twins-backbone | dino-backbone"
    assert backbone.convention == "known layout"


def test_a_bare_backbone_with_a_small_stem_may_be_solo_learns(tmp_path):
    path = write(tmp_path / "c.ckpt", {"state_dict": under("backbone.", resnet18_cifar(2).state_dict())})
    with pytest.raises(UsageError, match="solo-learn: resnet18-cifar-pad2; plain: resnet18-cifar"):
        load_backbone("resnet18-cifar", path)
    assert load_backbone("resnet18-cifar", path, layout="solo-learn").architecture == "resnet18-cifar-pad2"
    assert load_backbone("resnet18-cifar", path, layout="plain").architecture == "resnet18-cifar"


def test_two_networks_of_one_kind_in_a_file(tmp_path):
    network = resnet("resnet18")
    state = under("online.", network.state_dict()) | under(
        "target.", {k: v + 1 for k, v in network.state_dict().items()}
    )
    path = write(tmp_path / "c.pth", state)
    with pytest.raises(UsageError, match="more than one resnet18.*online.*target.*plain:PREFIX@CONTAINER"):
        load_backbone("resnet18", path)
    taken = load_backbone("resnet18", path, layout="plain:online.")
    assert torch.equal(taken.network.conv1.weight, network.conv1.weight)


def test_a_moving_average_beside_the_weights(tmp_path):
    """pytorch/vision, references/classification/train.py: checkpoint["model"], checkpoint["model_ema"]."""
    network = resnet("resnet18")
    average = {"module." + key: value for key, value in resnet18_like(network).items()} | {
        "n_averaged": torch.tensor(3)
    }
    path = write(tmp_path / "c.pth", {"model": dict(network.state_dict()), "model_ema": average})
    with pytest.raises(UsageError, match="more than once.*layout=torchvision@model or layout=torchvision@model_ema"):
        load_backbone("resnet18", path)
    with pytest.raises(UsageError, match="more than once"):
        load_backbone("resnet18", path, layout="torchvision")
    assert torch.equal(
        load_backbone("resnet18", path, layout="torchvision@model").network.conv1.weight, network.conv1.weight
    )
    assert bool((load_backbone("resnet18", path, layout="torchvision@model_ema").network.conv1.weight == 7).all())
    with pytest.raises(UsageError, match="no dictionary of weights 'ema'"):
        load_backbone("resnet18", path, layout="torchvision@ema")


def test_layouts_that_a_person_names_wrongly(tmp_path):
    path = write(tmp_path / "c.pth", dict(resnet("resnet18").state_dict()))
    with pytest.raises(UsageError, match="unknown layout 'swaf'"):
        load_backbone("resnet18", path, layout="swaf")
    with pytest.raises(UsageError, match="does not have the layout moco-v2"):
        load_backbone("resnet18", path, layout="moco-v2")


def refused(path, name, match, **options):
    with pytest.raises(SslfastError, match=match) as caught:
        load_backbone(name, path, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_another_architecture_and_another_width(tmp_path):
    path = write(tmp_path / "c.pth", dict(resnet("resnet50").state_dict()))
    refused(
        path,
        "resnet18",
        "does not fit a resnet18: layer1.0.conv1.weight is 64x64x1x1, not 64x64x3x3.*looks like a resnet50",
    )
    deeper = dict(resnet("resnet18").state_dict())
    deeper |= {
        key.replace("layer3.1", "layer3.2"): value for key, value in deeper.items() if key.startswith("layer3.1")
    }
    refused(write(path, deeper), "resnet18", "holds more than a resnet18: layer3.2.conv1.weight")
    refused(
        write(path, dict(resnet("resnet18").state_dict())),
        "resnet34",
        "has 100 of the 180 weights.*missing: layer1.2.conv1.weight.*looks like a resnet18",
    )
    refused(path, "resnet18-cifar", "conv1.weight is 64x3x7x7, not 64x3x3x3; it looks like a resnet18")
    narrow = {
        key: value[: max(1, len(value) // 2)] if value.ndim else value
        for key, value in resnet("resnet18").state_dict().items()
    }
    refused(write(path, narrow), "resnet18", "does not fit a resnet18: conv1.weight is 32x3x7x7, not 64x3x7x7")
    refused(write(path, {"transformer.weight": torch.ones(2)}), "resnet18", "holds no weight of a resnet18")
    # Of two readings (torchvision's, Keras's) neither fits, which is what a person has to know.
    wide = untrained_counters(hollow(torchvision.models.wide_resnet50_2().state_dict()))
    refused(
        write(path, wide), "resnet50", "does not fit a resnet50: layer1.0.conv1.weight is 128x64x1x1, not 64x64x1x1"
    )
    selective = {
        "resnet": {"net.0.0.weight": torch.ones(32, 3, 3, 3), "net.1.blocks.0.net.2.main_conv.0.weight": torch.ones(2)}
    }
    refused(write(path, selective), "resnet50", "selective kernels")


def test_weights_that_are_not_there_are_an_error_unless_they_are_named(tmp_path):
    state = dict(resnet("resnet18").state_dict())
    del state["layer4.1.conv2.weight"], state["layer4.1.bn2.bias"]
    path = write(tmp_path / "c.pth", state)
    refused(path, "resnet18", "98 of the 100 weights.*missing: layer4.1.conv2.weight, layer4.1.bn2.bias")
    refused(path, "resnet18", "missing: layer4.1.bn2.bias", allow_missing=["layer4.1.conv2.weight"])
    backbone = load_backbone("resnet18", path, allow_missing=["layer4.1"])
    assert backbone.missing == ["layer4.1.conv2.weight", "layer4.1.bn2.bias"]
    assert backbone.random_layers == ["layer4.1.conv2", "layer4.1.bn2"]
    save_backbone(backbone, tmp_path / "b.safetensors")
    assert load_backbone("resnet18", tmp_path / "b.safetensors").random_layers == backbone.random_layers


def test_weights_that_are_no_numbers(tmp_path):
    state = {key: value.clone() for key, value in resnet("resnet18").state_dict().items()}
    state["layer2.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    refused(write(tmp_path / "c.pth", state), "resnet18", "layer2.0.conv1.weight holds values that are not finite")
    state["layer2.0.conv1.weight"] = torch.zeros_like(state["layer2.0.conv1.weight"], dtype=torch.int32)
    refused(write(tmp_path / "c.pth", state), "resnet18", "layer2.0.conv1.weight holds int32")


def test_half_precision_weights_are_taken(tmp_path):
    source = resnet("resnet18")
    state = {
        key: value.bfloat16() if value.is_floating_point() else value for key, value in source.state_dict().items()
    }
    backbone = load_backbone("resnet18", write(tmp_path / "c.pth", state))
    assert backbone.network.conv1.weight.dtype == torch.float32
    assert torch.equal(backbone.network.conv1.weight, source.conv1.weight.bfloat16().float())


def test_a_whole_pickled_module_is_not_built(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "c.pth")
    refused(tmp_path / "c.pth", "resnet18", "holds an object of torch.nn.modules.linear.Linear, not a dictionary")


@pytest.mark.parametrize(
    ("name", "asked", "layout", "built"),
    [
        ("bolts-simclr", "resnet18", "bolts-simclr", ("resnet18", "resnet18-nopool")),
        ("bolts-simclr-cifar", "resnet18-cifar", "bolts-simclr", ("resnet18-cifar", "resnet18-cifar-pool")),
        ("bolts-swav-cifar", "resnet18-cifar", "bolts-swav", ("resnet18-cifar-pad2", "resnet18-cifar-pad2-pool")),
        ("scan", "resnet18-cifar", "scan", ("resnet18-cifar", "resnet18-stl")),
    ],
)
def test_a_max_pool_that_the_file_does_not_tell_is_not_guessed(name, asked, layout, built, tmp_path):
    """Lightning may keep its options in an object, which is not rebuilt; SCAN's files have none."""
    content, _, _ = CASES[name].make()
    content["hyper_parameters"] = argparse.Namespace(maxpool1=True)
    path = write(tmp_path / "c.ckpt", content)
    with pytest.raises(UsageError, match=f"{layout}: {built[0]}, .*{layout}: {built[1]}, |{built[1]}, .*{built[0]}, "):
        load_backbone(asked, path)
    assert load_backbone(asked, path, layout=layout).architecture == built[0]
    other = load_backbone(built[1], path)
    assert other.architecture == built[1] and other.layout == layout and other.convention == "known layout"


def test_the_files_own_word_on_its_max_pool_is_taken(tmp_path):
    path = write(tmp_path / "c.ckpt", CASES["bolts-simclr-stl"].make()[0])
    assert load_backbone("resnet18", path, layout="bolts-simclr").architecture == "resnet18-nopool"
    path = write(tmp_path / "c.ckpt", CASES["bolts-simclr"].make()[0])
    assert load_backbone("resnet18-nopool", path).architecture == "resnet18"


def test_a_network_that_a_project_never_trained_has_no_known_images(tmp_path):
    path = write(tmp_path / "c.pth", CASES["moco-v2"].make()[0])
    backbone = load_backbone("resnet18-nopool", path)
    assert backbone.architecture == "resnet18-nopool" and backbone.layout == "moco-v2"
    assert backbone.convention == "default" and backbone.trained is None
    assert any("moco-v2 is not known to have a resnet18-nopool" in line for line in backbone.report.lines())


def test_a_counter_of_a_million_millions_is_not_counted(tmp_path):
    """A tensor may be any size where all its numbers are one that is stored."""
    state = dict(resnet("resnet18").state_dict())
    state["bn1.num_batches_tracked"] = torch.zeros(1, dtype=torch.int64).expand(1 << 40)
    started = time.perf_counter()
    refused(write(tmp_path / "c.pth", state), "resnet18", "bn1.num_batches_tracked is 1099511627776, not a number")
    assert time.perf_counter() - started < 5


def test_files_without_counters_are_whole(tmp_path):
    """PyTorch before 0.4.1 did not count batches."""
    state = {
        key: value for key, value in resnet("resnet18").state_dict().items() if not key.endswith("num_batches_tracked")
    }
    assert load_backbone("resnet18", write(tmp_path / "c.pth", state)).missing == []
    assert known(nn.BatchNorm1d(2)).num_batches_tracked == 1000
    assert layers("a", (2, 2), (), (2,)).keys() == {"a.0.weight", "a.2.weight", "a.2.running_mean"}
