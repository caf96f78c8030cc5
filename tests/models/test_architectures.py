"""Networks by name: what is built, how many features, which maps; names that are none."""

import sys

import pytest
import torch
import torchvision
from networks import known
from torch import nn

from sslfast.errors import UsageError
from sslfast.models import ARCHITECTURES, architecture_names, check_architecture, load_backbone, save_backbone
from sslfast.models.architectures import build, outline, resnet_parts


def test_fingerprints_are_what_they_were():
    """Stores and heads that people have name their backbone by its fingerprint."""
    want = {
        "resnet-small": "2fdea943dd1eab23c95c6c6708b8239d2253cd4fe30d1c379099e58a191075dd",
        "resnet20": "f7a5cfca5d42966099318fa77d819618319d518b205f48fec570131547fb9bff",
        "resnet18": "00be35d62956aa467135c5bf68ca5e61b20e1e3a07823cde55a43662c236a8a5",
    }
    for name, fingerprint in want.items():
        backbone = load_backbone(name)
        with torch.no_grad():
            for value in backbone.network.state_dict().values():
                value.fill_(1)
        assert backbone.fingerprint() == fingerprint, name


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("resnet18", 512),
        ("resnet18x2", 1024),
        ("resnet34-cifar", 512),
        ("alexnet", 4096),
        ("mobilenet_v2", 1280),
        ("squeezenet1_1", 512),
        ("densenet121", 1024),
        ("efficientnet_b0", 1280),
        ("vit_b_32", 768),
        ("swin_t", 768),
        ("inception_v3", 2048),
    ],
)
def test_torchvisions_networks_lose_their_last_layer_only(name, features):
    with torch.device("meta"):
        built = build(name)
    assert built.features == features
    if name in torchvision.models.list_models():
        options = {"aux_logits": False, "init_weights": False} if name == "inception_v3" else {}
        with torch.device("meta"):
            whole = torchvision.models.get_model(name, weights=None, **options)
        gone = set(whole.state_dict()) - set(built.network.state_dict())
        assert {key.rpartition(".")[2] for key in gone} == {"weight", "bias"} and len(gone) == 2
        out = built.network(torch.empty(2, 3, built.preprocess.size, built.preprocess.size, device="meta"))
        assert out.shape == (2, features)


def test_preprocessing_of_torchvisions_networks_is_their_weights():
    assert outline("efficientnet_b0").preprocess.size == 224
    inception = outline("inception_v3").preprocess
    assert inception.size == 299 and inception.mean == (0.5, 0.5, 0.5)  # transform_input, done outside


def test_variants_have_the_same_weights_and_other_features():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 64, 64)
    small = ["cifar", "cifar-pad2", "cifar-norelu", "stl", "cifar-pool", "cifar-pad2-pool"]
    for family, variants in (("", ["", "nopool", "same"]), ("cifar", small)):
        networks = [build("resnet18" + (f"-{variant}" if variant else "")).network.eval() for variant in variants]
        known(networks[0])
        seen = []
        for network in networks:
            network.load_state_dict(networks[0].state_dict())
            with torch.inference_mode():
                seen.append(network(x))
        for i, one in enumerate(seen):
            assert not any(torch.equal(one, other) for other in seen[i + 1 :]), (family, i)


def test_names():
    assert {"resnet34-cifar", "alexnet", "resnet50-same", "resnet18-stl", "vgg16"} <= set(architecture_names())
    assert "resnet18-keras" not in architecture_names()
    assert set(ARCHITECTURES) >= {f"resnet{d}{s}" for d in (18, 34, 50) for s in ("", "-cifar")} | {"alexnet"}
    assert resnet_parts("resnet50x2-same").name == "resnet50x2-same"
    for name in ("resnet21", "resnet50-x", "resnet50x1", "fcn_resnet50", "raft_small", "", "resnet18-keras"):
        with pytest.raises(UsageError, match="unknown backbone") as caught:
            check_architecture(name)
        assert "\n" not in str(caught.value)


def test_a_wide_network_is_as_wide_as_swavs(tmp_path):
    """src/resnet50.py of facebookresearch/swav: every width times the factor, the block's inner ones too."""
    shapes = outline("resnet50x2").shapes
    assert shapes["conv1.weight"] == (128, 3, 7, 7) and shapes["layer1.0.conv2.weight"] == (128, 128, 3, 3)
    assert shapes["layer4.2.conv3.weight"] == (4096, 1024, 1, 1) and build_meta("resnet50x2").features == 4096


def build_meta(name):
    with torch.device("meta"):
        return build(name)


MAPS = {
    "resnet18": [("layer1", 64, 16), ("layer2", 128, 8), ("layer3", 256, 4), ("layer4", 512, 2)],
    "resnet20": [("layer1", 16, 64), ("layer2", 32, 32), ("layer3", 64, 16)],
    "mobilenet_v2": [
        ("features.1", 16, 32),
        ("features.3", 24, 16),
        ("features.6", 32, 8),
        ("features.13", 96, 4),
        ("features.18", 1280, 2),
    ],
    "swin_t": [("features.1", 96, 16), ("features.3", 192, 8), ("features.5", 384, 4), ("features.7", 768, 2)],
}


@pytest.mark.parametrize("name", MAPS)
def test_feature_maps_feed_a_pyramid(name):
    torch.manual_seed(0)
    backbone = load_backbone(name).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        maps = backbone.feature_maps(x)
        features = backbone(x)
    assert [(key, one.shape[1], one.shape[2]) for key, one in maps.items()] == MAPS[name]
    pyramid = torchvision.ops.FeaturePyramidNetwork([one.shape[1] for one in maps.values()], 8)
    with torch.inference_mode():
        assert [one.shape[1] for one in pyramid(maps).values()] == [8] * len(maps)
    if name.startswith("resnet"):
        torch.testing.assert_close(list(maps.values())[-1].mean(dim=(2, 3)), features)
    assert not any(module._forward_hooks for module in backbone.modules())


def test_alexnets_maps():
    backbone = load_backbone("alexnet").eval()
    with torch.inference_mode():
        maps = backbone.feature_maps(torch.zeros(1, 3, 224, 224))
    assert [(one.shape[1], one.shape[2]) for one in maps.values()] == [(64, 55), (192, 27), (256, 13), (256, 6)]


def test_a_network_without_maps_is_one_line():
    class Flat(nn.Module):
        def forward(self, x):
            return x.flatten(1)

    from sslfast.models import Backbone, Preprocess

    with pytest.raises(UsageError, match="a Flat makes no feature maps"):
        Backbone("flat", Flat(), 12, Preprocess(2)).feature_maps(torch.zeros(1, 3, 2, 2))


def test_timm_where_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match="needs the package timm; pip install"):
        load_backbone("timm:resnet18")


def test_timms_models_and_checkpoints(tmp_path):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    source = known(timm.create_model("resnet10t", pretrained=False, num_classes=7))
    torch.save({"state_dict": source.state_dict(), "arch": "resnet10t"}, tmp_path / "c.pth.tar")
    backbone = load_backbone("timm:resnet10t", tmp_path / "c.pth.tar").eval()
    assert backbone.layout == "timm" and backbone.unexpected == ["fc.weight", "fc.bias"]
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(backbone(x), source.forward_head(source.forward_features(x), pre_logits=True))
        maps = backbone.feature_maps(x)
    assert [one.shape[1] for one in maps.values()] == [info["num_chs"] for info in source.feature_info]
    save_backbone(backbone, tmp_path / "b.safetensors")
    assert load_backbone("timm:resnet10t", tmp_path / "b.safetensors").fingerprint() == backbone.fingerprint()
    with pytest.raises(UsageError, match="timm has no model 'resnet-none'"):
        load_backbone("timm:resnet-none")
    # DINO's vision transformers have timm's names and other inputs.
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0)
    torch.save(vit.state_dict(), tmp_path / "v.pth")
    with pytest.raises(UsageError, match="timm: .*dino-backbone: "):
        load_backbone("timm:vit_tiny_patch16_224", tmp_path / "v.pth")
    assert (
        load_backbone("timm:vit_tiny_patch16_224", tmp_path / "v.pth", layout="dino-backbone").preprocess.mean[0]
        == 0.485
    )
