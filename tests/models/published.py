"""Checkpoints as public projects write them: real names of weights around known networks (`networks`).

Each case names the public file in which the names and the network's own forward pass were read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from networks import (
    Function,
    SmallImages,
    keras_first_strides,
    known,
    layers,
    padded_first,
    pooled,
    resnet,
    resnet18_cifar,
    resnet18_like,
    same_padding,
    simclr_v2_names,
    stages,
    under,
    untrained_counters,
    with_bias,
)
from strays import Queue
from torch import nn

from sslfast.models import Preprocess

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
UNIT = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class Case:
    """One file.

    Args:
        asked: the architecture that a person asks for.
        layout: what it is to be recognised as.
        make: gives the file's content, the network that wrote it, and names that are no weights of the backbone.
        built: the architecture that is to be built, where it is another one.
        inputs: size, mean and standard deviation.
        given: the layout that a person has to give, where names alone do not tell.
        size: of the images of the test.
    """

    asked: str
    layout: str
    make: Callable[[], tuple[Any, nn.Module, set[str]]]
    inputs: tuple[int, tuple[float, ...], tuple[float, ...]]
    built: str | None = None
    given: str | None = None
    size: int = 64

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess(*self.inputs)  # type: ignore[arg-type]


def _bolts_simclr() -> Any:
    # lightning-bolts, simclr_module.py: encoder (with a dead fc), Projection.model; older files carry an evaluator.
    network = resnet("resnet18")
    heads = with_bias(layers("projection.model", (512, 512), (512,), (), (128, 512)))
    heads |= {
        "encoder.fc.weight": torch.ones(1000, 512),
        "non_linear_evaluator.block_forward.2.weight": torch.ones(2, 2),
    }
    content = {"state_dict": under("encoder.", network.state_dict()) | heads, "epoch": 3}
    return content | {"hyper_parameters": {"dataset": "imagenet2012", "maxpool1": True}}, network, set(heads)


def _bolts_simclr_cifar() -> Any:
    network = resnet18_cifar(1)
    heads = with_bias(layers("projection.model", (512, 512), (512,), (), (128, 512)))
    options = {"dataset": "cifar10", "first_conv": False, "maxpool1": False}
    content = {"state_dict": under("encoder.", network.state_dict()) | heads, "hyper_parameters": options}
    return content, network, set(heads)


def _bolts_pool(padding: int, swav: bool) -> Any:
    # resnets.py, swav_resnet.py: first_conv False with maxpool1 True; the data set says which images.
    network = resnet18_cifar(padding)
    prefix = "model." if swav else "encoder."
    heads = {"projection.model.0.weight": torch.ones(8, 512)}
    if swav:
        heads = {"model.prototypes.weight": torch.ones(30, 128), "model.projection_head.0.weight": torch.ones(8, 512)}
    options = {"dataset": "stl10", "first_conv": False, "maxpool1": True}
    content = {"state_dict": under(prefix, network.state_dict()) | heads, "hyper_parameters": options}
    return content, Function(network, pooled), set(heads)


def _bolts_simclr_first() -> Any:
    # lightning-bolts 0.2.5, simclr_module.py: init_encoder replaces conv1 only; the head begins with a pooling.
    network = resnet18_cifar(1)
    heads = with_bias(layers("projection.model", (), (), (512, 512), (512,), (), (128, 512)))
    options = {"batch_size": 512, "dataset": "cifar10"}
    content = {"state_dict": under("encoder.", network.state_dict()) | heads, "hyper_parameters": options}
    return content, Function(network, pooled), set(heads)


def _bolts_simclr_stl() -> Any:
    # simclr_module.py: first_conv True, maxpool1 False for stl10; its max-pool is then one of kernel 1 and stride 1.
    network = resnet("resnet18")
    heads = with_bias(layers("projection.model", (512, 512), (512,), (), (128, 512)))
    options = {"dataset": "stl10", "first_conv": True, "maxpool1": False}
    content = {"state_dict": under("encoder.", network.state_dict()) | heads, "hyper_parameters": options}
    return content, Function(network, lambda n, x: stages(n, n.relu(n.bn1(n.conv1(x))))), set(heads)


def _bolts_swav() -> Any:
    # lightning-bolts, swav_module.py: model = resnet with projection_head and prototypes (swav_resnet.py).
    network = resnet("resnet18")
    heads = under("model.", with_bias(layers("projection_head", (512, 512), (512,), (), (128, 512))))
    heads["model.prototypes.weight"] = torch.ones(30, 128)
    content = {"state_dict": under("model.", network.state_dict()) | heads, "hyper_parameters": {"maxpool1": True}}
    return content, Function(network, padded_first), set(heads)


def _bolts_swav_cifar() -> Any:
    # swav_resnet.py: forward_backbone pads by one pixel before the 3x3 convolution, which pads by one itself.
    network = resnet18_cifar(2)
    heads = {"model.prototypes.weight": torch.ones(30, 128), "model.projection_head.0.weight": torch.ones(8, 512)}
    content = {"state_dict": under("model.", network.state_dict()) | heads, "hyper_parameters": {"maxpool1": False}}
    return content, network, set(heads)


def _swav() -> Any:
    # facebookresearch/swav, hubconf.py: a flat dictionary, "module." before every name.
    network = resnet("resnet18")
    heads = with_bias(layers("projection_head", (512, 512), (512,), (), (128, 512))) | {
        "prototypes.weight": torch.ones(30, 128)
    }
    return under("module.", network.state_dict() | heads), Function(network, padded_first), set(heads)


def _swav_training() -> Any:
    # facebookresearch/swav, main_swav.py: checkpoint.pth.tar with optimizer and apex's amp.
    network = resnet("resnet18")
    heads = {"projection_head.0.weight": torch.ones(8, 512), "prototypes.prototypes0.weight": torch.ones(30, 128)}
    state = under("module.", network.state_dict() | heads)
    return {"epoch": 1, "state_dict": state, "optimizer": {"state": {}}, "amp": {}}, network, set(heads)


def _barlow_full() -> Any:
    # facebookresearch/barlowtwins, main.py: dict(epoch, model=DDP(BarlowTwins).state_dict(), optimizer).
    network = resnet("resnet18")
    heads = layers("projector", (64, 512), (64,), (), (64, 64), (64,), (), (64, 64))
    heads |= {"bn.running_mean": torch.zeros(64), "bn.running_var": torch.ones(64)}
    state = under("module.", under("backbone.", network.state_dict()) | heads)
    return {"epoch": 1000, "model": state, "optimizer": {"state": {0: {"mu": torch.zeros(2)}}}}, network, set(heads)


def _barlow_backbone() -> Any:
    # facebookresearch/barlowtwins, main.py: model.module.backbone.state_dict(), fc being an identity.
    network = resnet("resnet50")
    return dict(network.state_dict()), network, set()


def _moco(version: int) -> Any:
    # facebookresearch/moco, moco/builder.py and main_moco.py.
    network = resnet("resnet18")
    heads = with_bias(
        {"encoder_q.fc.weight": torch.ones(128, 512)}
        if version == 1
        else layers("encoder_q.fc", (512, 512), (), (128, 512))
    )
    heads |= under("encoder_k.", dict(resnet18_like(network))) | {
        "queue": torch.ones(128, 8),
        "queue_ptr": torch.zeros(1).long(),
    }
    state = under("module.", under("encoder_q.", network.state_dict()) | heads)
    return {"epoch": 200, "arch": "resnet18", "state_dict": state, "optimizer": {}}, network, set(heads)


def _moco_v3() -> Any:
    # facebookresearch/moco-v3, moco/builder.py: base_encoder, momentum_encoder, predictor; fc = _build_mlp(2, ...).
    network = resnet("resnet18")
    heads = layers("base_encoder.fc", (64, 512), (64,), (), (16, 64), (16,))
    heads |= under("momentum_encoder.", resnet18_like(network)) | layers(
        "predictor", (64, 16), (64,), (), (16, 64), (16,)
    )
    return {"state_dict": under("module.", under("base_encoder.", network.state_dict()) | heads)}, network, set(heads)


def _dino() -> Any:
    # facebookresearch/dino, main_dino.py: student and teacher (DDP around MultiCropWrapper), args a Namespace.
    network = resnet("resnet18")
    heads = layers("head.mlp", (64, 512), (), (16, 64)) | {
        "head.last_layer.weight_g": torch.ones(30, 1),
        "head.last_layer.weight_v": torch.ones(30, 16),
    }
    student = under("module.", under("backbone.", resnet18_like(network)) | heads)
    teacher = under("module.", under("backbone.", network.state_dict()) | heads)
    content = {
        "student": student,
        "teacher": teacher,
        "optimizer": {},
        "epoch": 1,
        "dino_loss": {"center": torch.zeros(1, 30)},
    }
    return content, network, set(heads)


def _sthalles() -> Any:
    # sthalles/SimCLR, models/resnet_simclr.py and simclr.py: backbone with its fc in two layers; ToTensor alone.
    network = resnet("resnet18")
    heads = with_bias(layers("backbone.fc", (512, 512), (), (128, 512)))
    state = under("backbone.", network.state_dict()) | heads
    return {"epoch": 100, "arch": "resnet18", "state_dict": state, "optimizer": {}}, network, set(heads)


def _spijkervet() -> Any:
    # Spijkervet/SimCLR, simclr/simclr.py: encoder and projector without biases, a flat dictionary.
    network = resnet("resnet18")
    heads = layers("projector", (512, 512), (), (64, 512))
    return under("encoder.", network.state_dict()) | heads, network, set(heads)


def _simclr_v1() -> Any:
    # tonylins/simclr-converter, convert.py: {"state_dict": model.state_dict()} never trained here.
    network = resnet("resnet50")
    heads = with_bias({"fc.weight": torch.ones(1000, 2048)})
    return (
        {"state_dict": untrained_counters(network.state_dict()) | heads},
        Function(network, same_padding),
        set(heads),
    )


def _simclr_v2() -> Any:
    # Separius/SimCLRv2-Pytorch, convert.py and resnet.py: {"resnet": ..., "head": ...}.
    network = resnet("resnet50")
    heads = with_bias({"fc.weight": torch.ones(1000, 2048)})
    content = {
        "resnet": simclr_v2_names(untrained_counters(network.state_dict())) | heads,
        "head": layers("layers", (8, 8), (8,)),
    }
    return content, Function(network, same_padding), set(heads)


def _self_classifier() -> Any:
    # elad-amrani/self-classifier, src/model.py and train.py: mlp_head, cls_k with weight_norm, a pickled nn_queue.
    network = resnet("resnet18")
    heads = {"mlp_head.mlp.0.weight": torch.ones(64, 512), "mlp_head.mlp.3.weight": torch.ones(8, 64)}
    heads |= {f"cls_{k}.weight_{part}": torch.ones(10, 8 if part == "v" else 1) for k in range(4) for part in "gv"}
    state = under("module.", under("backbone.", network.state_dict()) | heads)
    return {"epoch": 800, "state_dict": state, "optimizer": {}, "nn_queue": Queue()}, network, set(heads)


def _self_classifier_first() -> Any:
    # The same project's first version: the projection in backbone.fc, cls_k plain parameters.
    network = resnet("resnet18")
    heads = with_bias(layers("backbone.fc", (64, 512), (64,), (), (8, 64)))
    heads |= {f"cls_{k}": torch.ones(10, 8) for k in range(10)}
    return {"state_dict": under("module.", under("backbone.", network.state_dict()) | heads)}, network, set(heads)


def _scan(pool: bool) -> Any:
    # wvangansbeke/Unsupervised-Classification, models.py, resnet_cifar.py, resnet_stl.py; scan.py.
    network = known(SmallImages(pool))
    heads = with_bias({"cluster_head.0.weight": torch.ones(10, 512)})
    return {"model": under("backbone.", network.state_dict()) | heads, "head": 0}, network, set(heads)


def _scan_pretext() -> Any:
    # simclr.py of the same project: torch.save(model.state_dict()).
    network = known(SmallImages())
    heads = with_bias(layers("contrastive_head", (512, 512), (), (128, 512)))
    return under("backbone.", network.state_dict()) | heads, network, set(heads)


def _solo(prefix: str, stem: str) -> Any:
    # vturrisi/solo-learn, solo/methods/base.py: backbone (older: encoder), classifier; stem with padding 2.
    network = resnet18_cifar(2) if stem == "cifar" else resnet("resnet18")
    heads = with_bias({"classifier.weight": torch.ones(10, 512)} | layers("projector", (64, 512), (64,), (), (8, 64)))
    heads |= under("momentum_" + prefix, resnet18_like(network))
    content = {"state_dict": under(prefix, network.state_dict()) | heads, "pytorch-lightning_version": "1.7"}
    return content, network, set(heads)


def _vissl() -> Any:
    # facebookresearch/vissl, base_ssl_model.py, trunks/resnext.py; classy_state_dict.base_model.model.{trunk, heads}.
    network = resnet("resnet18")
    model = {
        "trunk": under("_feature_blocks.", network.state_dict()),
        "heads": {"0.clf.0.weight": torch.ones(128, 512)},
    }
    content = {"phase_idx": 199, "classy_state_dict": {"base_model": {"model": model, "meters": {}}, "train": True}}
    return content, network, set()


def _lightly() -> Any:
    # lightly-ai/lightly, benchmarks/imagenet/resnet50/simclr.py: backbone with fc an identity, projection_head.layers.
    network = resnet("resnet18")
    heads = layers("projection_head.layers", (512, 512), (512,), (), (128, 512), (128,)) | {
        "online_classifier.linear.weight": torch.ones(9, 512)
    }
    return {"state_dict": under("backbone.", network.state_dict()) | heads}, network, set(heads)


def _lightly_children() -> Any:
    # lightly-ai/lightly, examples/pytorch_lightning/simclr.py: nn.Sequential(*list(resnet.children())[:-1]).
    network = resnet("resnet18")
    state = nn.Sequential(*list(network.children())[:-1]).state_dict()
    heads = with_bias(layers("projection_head.layers", (512, 512), (), (128, 512)))
    return {"state_dict": under("backbone.", state) | heads}, network, set(heads)


def _lightly_generator() -> Any:
    # lightly's CIFAR benchmark: the children of ResNetGenerator (models/resnet.py); no ReLU after bn1.
    whole = known(SmallImages())
    network = nn.Sequential(*whole.children(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    heads = with_bias(layers("projection_head.layers", (512, 512), (), (128, 512)))
    return {"state_dict": under("backbone.", network.state_dict()) | heads}, network, set(heads)


def _torchvision(name: str) -> Any:
    # pytorch/vision: a flat state dict with its classifier.
    if name == "resnet18":
        network = resnet(name)
        heads = with_bias({"fc.weight": torch.ones(1000, 512)})
        return dict(network.state_dict()) | heads, network, set(heads)
    network = known(torchvision.models.get_model(name, weights=None))
    state = dict(network.state_dict())
    heads = {key for key in state if key.startswith("classifier.1.")}
    network.classifier[1] = nn.Identity()
    return state, network, heads


def _keras() -> Any:
    # keras-team/keras, applications/resnet.py and imagenet_utils.py, put into torchvision's names; images are BGR.
    network = resnet("resnet50")
    heads = with_bias({"fc.weight": torch.ones(1000, 2048)})
    flipped = Function(network, lambda n, x: keras_first_strides(n, x.flip(1)))
    return untrained_counters(network.state_dict()) | heads, flipped, set(heads)


CIFAR_BOLTS = (32, tuple(v / 255 for v in (125.3, 123.0, 113.9)), tuple(v / 255 for v in (63.0, 62.1, 66.7)))
STL_BOLTS = (96, (0.43, 0.42, 0.39), (0.27, 0.26, 0.27))
CIFAR_SOLO = (32, (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))
CIFAR_SCAN = (32, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
KERAS = tuple(tuple(v / 255 for v in values) for values in ((123.68, 116.779, 103.939), (1, 1, 1)))

CASES = {
    "bolts-simclr": Case("resnet18", "bolts-simclr", _bolts_simclr, (224, *IMAGENET)),
    "bolts-simclr-cifar": Case("resnet18-cifar", "bolts-simclr", _bolts_simclr_cifar, CIFAR_BOLTS, size=32),
    "bolts-simclr-pool": Case(
        "resnet18-cifar",
        "bolts-simclr",
        lambda: _bolts_pool(1, False),
        STL_BOLTS,
        "resnet18-cifar-pool",
        size=32,
    ),
    "bolts-simclr-first": Case(
        "resnet18-cifar", "bolts-simclr-0.2", _bolts_simclr_first, (32, *UNIT), "resnet18-cifar-pool", size=32
    ),
    "bolts-swav-pool": Case(
        "resnet18-cifar",
        "bolts-swav",
        lambda: _bolts_pool(2, True),
        STL_BOLTS,
        "resnet18-cifar-pad2-pool",
        size=32,
    ),
    "bolts-simclr-stl": Case("resnet18", "bolts-simclr", _bolts_simclr_stl, STL_BOLTS, "resnet18-nopool"),
    "bolts-swav": Case("resnet18", "bolts-swav", _bolts_swav, (224, *IMAGENET)),
    "bolts-swav-cifar": Case(
        "resnet18-cifar", "bolts-swav", _bolts_swav_cifar, CIFAR_BOLTS, "resnet18-cifar-pad2", size=32
    ),
    "swav": Case("resnet18", "swav", _swav, (224, *IMAGENET)),
    "swav-training": Case("resnet18", "swav", _swav_training, (224, *IMAGENET)),
    "barlow-twins": Case("resnet18", "barlow-twins", _barlow_full, (224, *IMAGENET)),
    "barlow-twins-backbone": Case(
        "resnet50", "barlow-twins-backbone", _barlow_backbone, (224, *IMAGENET), given="barlow-twins-backbone"
    ),
    "moco-v1": Case("resnet18", "moco-v1", lambda: _moco(1), (224, *IMAGENET)),
    "moco-v2": Case("resnet18", "moco-v2", lambda: _moco(2), (224, *IMAGENET)),
    "moco-v3": Case("resnet18", "moco-v3", _moco_v3, (224, *IMAGENET)),
    "dino": Case("resnet18", "dino", _dino, (224, *IMAGENET)),
    "dino-backbone": Case("resnet50", "dino-backbone", _barlow_backbone, (224, *IMAGENET), given="dino-backbone"),
    "sthalles": Case("resnet18", "sthalles-simclr", _sthalles, (96, *UNIT)),
    "spijkervet": Case("resnet18", "spijkervet-simclr", _spijkervet, (224, *UNIT)),
    "simclr-v1": Case("resnet50", "simclr-v1", _simclr_v1, (224, *UNIT), "resnet50-same", given="simclr-v1"),
    "simclr-v2": Case("resnet50", "simclr-v2", _simclr_v2, (224, *UNIT), "resnet50-same"),
    "self-classifier": Case("resnet18", "self-classifier", _self_classifier, (224, *IMAGENET)),
    "self-classifier-first": Case("resnet18", "self-classifier", _self_classifier_first, (224, *IMAGENET)),
    "scan": Case("resnet18-cifar", "scan", lambda: _scan(False), CIFAR_SCAN, given="scan", size=32),
    "scan-stl": Case("resnet18-stl", "scan", lambda: _scan(True), (96, *IMAGENET), size=96),
    "scan-pretext": Case("resnet18-cifar", "scan", _scan_pretext, CIFAR_SCAN, given="scan", size=32),
    "solo": Case(
        "resnet18-cifar", "solo-learn", lambda: _solo("backbone.", "cifar"), CIFAR_SOLO, "resnet18-cifar-pad2", size=32
    ),
    "solo-encoder": Case("resnet18", "solo-learn", lambda: _solo("encoder.", "imagenet"), (224, *IMAGENET)),
    "vissl": Case("resnet18", "vissl", _vissl, (224, *IMAGENET)),
    "lightly": Case("resnet18", "lightly", _lightly, (224, *IMAGENET)),
    "lightly-children": Case("resnet18", "lightly-children", _lightly_children, (224, *IMAGENET)),
    "lightly-generator": Case(
        "resnet18-cifar", "lightly-children", _lightly_generator, (32, *IMAGENET), "resnet18-cifar-norelu", size=32
    ),
    "torchvision": Case("resnet18", "torchvision", lambda: _torchvision("resnet18"), (224, *IMAGENET)),
    "torchvision-mobilenet": Case(
        "mobilenet_v2", "torchvision", lambda: _torchvision("mobilenet_v2"), (224, *IMAGENET)
    ),
    "keras": Case("resnet50", "keras", _keras, (224, *KERAS), "resnet50-keras", given="keras"),
}
