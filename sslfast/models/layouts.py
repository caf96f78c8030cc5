"""How public projects write their checkpoints: names of weights, and the inputs that go with them.

Every layout names the public source that its names were read in. What is the same under two layouts is never decided
by their order: `sslfast.models.recognition` compares what each of them would build.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from sslfast.models.preprocess import IMAGENET_MEAN, IMAGENET_STD

State = dict[str, Tensor]

Inputs = tuple[int | None, tuple[float, float, float], tuple[float, float, float]]
"""Size (None: the architecture's own), mean and standard deviation."""

OTHERWISE = "*"
"""Any variant that is not named."""

IMAGENET: Inputs = (None, IMAGENET_MEAN, IMAGENET_STD)
PLAIN: Inputs = (None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
CIFAR_BOLTS: Inputs = (32, (125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255))
CIFAR_SOLO: Inputs = (32, (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))
CIFAR_SCAN: Inputs = (32, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
STL_BOLTS: Inputs = (96, (0.43, 0.42, 0.39), (0.27, 0.26, 0.27))
BOLTS: dict[str, Inputs] = {
    "cifar10": CIFAR_BOLTS, "stl10": STL_BOLTS, "imagenet": IMAGENET, "nopool": STL_BOLTS, OTHERWISE: IMAGENET,
}  # fmt: skip
KERAS: Inputs = (None, (123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255, 1 / 255, 1 / 255))


def _same(state: State) -> State:
    return state


def _renamed(*rules: tuple[str, str]) -> Callable[[State], State]:
    compiled = [(re.compile(pattern), to) for pattern, to in rules]

    def rename(state: State) -> State:
        renamed = {}
        for key, value in state.items():
            for pattern, to in compiled:
                key = pattern.sub(to, key)
            renamed[key] = value
        return renamed

    return rename


shortcut_to_downsample = _renamed((r"^(layer\d+\.\d+)\.shortcut\.", r"\1.downsample."))
"""The CIFAR ResNets that descend from kuangliu's call a block's projection "shortcut"."""

_sequential = _renamed((r"^0\.", "conv1."), (r"^1\.", "bn1."))


def _children(state: State) -> State:
    """Rename ``Sequential(*children)`` of torchvision's network (layers 4 to 7) or of lightly's own (2 to 5)."""
    first = 2 if any(key.startswith("2.") for key in state) else 4
    stages = [(rf"^{first + stage}\.(?=\d)", f"layer{stage + 1}.") for stage in range(4)]
    return shortcut_to_downsample(_sequential(_renamed(*stages)(state)))


_simclr_v2 = _renamed(
    (r"^net\.0\.0\.", "conv1."),
    (r"^net\.0\.1\.0\.", "bn1."),
    (r"^net\.([1-4])\.blocks\.(\d+)\.projection\.shortcut\.", r"layer\1.\2.downsample.0."),
    (r"^net\.([1-4])\.blocks\.(\d+)\.projection\.bn\.0\.", r"layer\1.\2.downsample.1."),
    *((rf"^net\.([1-4])\.blocks\.(\d+)\.net\.{2 * i}\.(?=weight)", rf"layer\1.\2.conv{i + 1}.") for i in range(3)),
    *((rf"^net\.([1-4])\.blocks\.(\d+)\.net\.{2 * i + 1}\.0\.", rf"layer\1.\2.bn{i + 1}.") for i in range(3)),
)


def _keras(state: State) -> State:
    """Reverse the first convolution's channels (Keras's images are BGR), and put biases into the running means."""
    state = dict(state)
    if "conv1.weight" in state and state["conv1.weight"].ndim == 4:
        state["conv1.weight"] = state["conv1.weight"].flip(1).contiguous()
    for key in [key for key in state if re.search(r"(conv\d|downsample\.0)\.bias$", key)]:
        normalisation = key.removesuffix(".bias").replace("downsample.0", "downsample.1").replace("conv", "bn")
        mean = state.get(f"{normalisation}.running_mean")
        if mean is not None and mean.shape == state[key].shape:
            state[f"{normalisation}.running_mean"] = mean - state.pop(key)
    return state


@dataclass(frozen=True)
class Layout:
    """One project's way of writing a checkpoint.

    Args:
        name: what it is called on the command line.
        what: what it is, in words.
        source: the public file that the names were read in.
        containers: where the dictionary of weights lies, keys joined by dots; "" is the file's top level.
        prefixes: what precedes the network's own names, after wrappers' ("module."); the first that fits is taken.
        marks: patterns, each of which must match a key: what tells this layout from others.
        absent: patterns that no key may match.
        inputs: data set that the file's options name, or variant of the architecture (`architectures.VARIANTS`) -> the
            images it was trained on.
        variants: variant that a person asks for -> the one that this project trained.
        stems: groups of variants whose weights have the same names and shapes and that this project trained, all of
            them. Of a pair of Lightning-Bolts' the first has its max-pool, which its option maxpool1 says.
        rename: from its names to torchvision's.
        note: what cannot be known from the file.
    """

    name: str
    what: str
    source: str
    containers: tuple[str, ...]
    prefixes: tuple[str, ...]
    marks: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    inputs: Mapping[str, Inputs] = field(default_factory=lambda: {OTHERWISE: IMAGENET})
    variants: Mapping[str, str] = field(default_factory=dict)
    stems: tuple[tuple[str, str], ...] = ()
    rename: Callable[[State], State] = _same
    note: str = ""

    def prefix_in(self, state: State) -> str | None:
        """Give the prefix that the keys have, or None."""
        for prefix in self.prefixes:
            if any(key.startswith(prefix) for key in state):
                return prefix
        return None

    def trained(self, variant: str) -> bool:
        """Say whether this project is known to have trained networks of a variant."""
        return variant in {"", *self.inputs, *self.variants.values(), *(one for pair in self.stems for one in pair)}

    def marked(self, state: State) -> bool:
        """Say whether the keys have what tells this layout from others."""
        return all(any(re.search(mark, key) for key in state) for mark in self.marks) and not any(
            re.search(mark, key) for mark in self.absent for key in state
        )


_HEADS = (r"^cluster_head\.", r"^contrastive_head\.", r"^cls_\d+\b", r"^projection_head\.layers\.", r"^fc\.")

LAYOUTS = (
    Layout(
        "bolts-simclr",
        "SimCLR of Lightning-Bolts",
        "Lightning-Universe/lightning-bolts: models/self_supervised/simclr/simclr_module.py, resnets.py",
        ("state_dict",),
        ("encoder.",),
        (r"^projection\.model\.0\.weight$",),
        inputs=BOLTS | {"cifar": CIFAR_BOLTS, "cifar-pool": CIFAR_BOLTS},
        stems=(("", "nopool"), ("cifar-pool", "cifar")),
    ),
    Layout(
        "bolts-simclr-0.2",
        "SimCLR of Lightning-Bolts before 0.3, which replaces the first convolution only",
        "Lightning-Universe/lightning-bolts 0.2.5: models/self_supervised/simclr/simclr_module.py, transforms.py",
        ("state_dict",),
        ("encoder.",),
        (r"^projection\.model\.2\.weight$", r"^projection\.model\.5\.weight$"),
        inputs={"stl10": (96, *PLAIN[1:]), "imagenet2012": (196, *PLAIN[1:]), OTHERWISE: (32, *PLAIN[1:])},
        variants={"cifar": "cifar-pool"},
        note="trained on 32 x 32 (CIFAR-10) unless the file's options name STL-10 or ImageNet",
    ),
    Layout(
        "bolts-swav",
        "SwAV of Lightning-Bolts",
        "Lightning-Universe/lightning-bolts: models/self_supervised/swav/swav_module.py, swav_resnet.py",
        ("state_dict",),
        ("model.",),
        (r"^model\.projection_head\.", r"^model\.prototypes\."),
        inputs=BOLTS | {"cifar-pad2": CIFAR_BOLTS, "cifar-pad2-pool": CIFAR_BOLTS},
        # The network pads its input by one pixel before any stem.
        variants={"cifar": "cifar-pad2", "cifar-pool": "cifar-pad2-pool"},
        stems=(("", "nopool"), ("cifar-pad2-pool", "cifar-pad2")),
    ),
    Layout(
        "swav",
        "SwAV (DeepCluster-v2, SeLa-v2) of Facebook AI Research",
        "facebookresearch/swav: hubconf.py, main_swav.py, src/resnet50.py",
        ("", "state_dict"),
        ("",),
        (r"^projection_head\.", r"^prototypes\."),
    ),
    Layout(
        "barlow-twins",
        "Barlow Twins of Facebook AI Research, the whole checkpoint",
        "facebookresearch/barlowtwins: main.py",
        ("model",),
        ("backbone.",),
        (r"^projector\.0\.weight$", r"^bn\.running_mean$"),
    ),
    Layout(
        "moco-v1",
        "MoCo v1",
        "facebookresearch/moco: moco/builder.py, main_lincls.py",
        ("state_dict",),
        ("encoder_q.",),
        (r"^encoder_q\.fc\.weight$",),
    ),
    Layout(
        "moco-v2",
        "MoCo v2",
        "facebookresearch/moco: moco/builder.py, main_lincls.py",
        ("state_dict",),
        ("encoder_q.",),
        (r"^encoder_q\.fc\.0\.weight$", r"^encoder_q\.fc\.2\.weight$"),
    ),
    Layout(
        "moco-v3",
        "MoCo v3",
        "facebookresearch/moco-v3: moco/builder.py, main_lincls.py",
        ("state_dict",),
        ("base_encoder.",),
        (r"^base_encoder\.(fc|head)\.0\.weight$",),
    ),
    Layout(
        "dino",
        "DINO, the whole checkpoint: the teacher, which is the one that DINO evaluates",
        "facebookresearch/dino: main_dino.py, utils.py (MultiCropWrapper), eval_linear.py",
        ("teacher",),
        ("backbone.",),
        (r"^head\.last_layer\.",),
    ),
    Layout(
        "sthalles-simclr",
        "SimCLR of sthalles",
        "sthalles/SimCLR: models/resnet_simclr.py, simclr.py",
        ("state_dict",),
        ("backbone.",),
        (r"^backbone\.fc\.0\.weight$", r"^backbone\.fc\.2\.weight$"),
        absent=_HEADS[:4],
        inputs={OTHERWISE: (96, *PLAIN[1:])},
        note="trained on STL-10's 96 x 96 or CIFAR's 32 x 32 pixels, which the file does not tell",
    ),
    Layout(
        "spijkervet-simclr",
        "SimCLR of Spijkervet",
        "Spijkervet/SimCLR: simclr/simclr.py, modules/transformations/simclr.py",
        ("",),
        ("encoder.",),
        (r"^projector\.0\.weight$", r"^projector\.2\.weight$"),
        absent=(r"^projector\.\d\.bias$",),
        inputs={OTHERWISE: PLAIN},
        note="trained on any of STL-10, CIFAR-10 and ImageNet, enlarged to 224 pixels unless told otherwise",
    ),
    Layout(
        "simclr-v1",
        "SimCLR of Google (TensorFlow), as tonylins/simclr-converter writes it",
        "tonylins/simclr-converter: convert.py, resnet_wider.py; google-research/simclr: resnet.py",
        ("state_dict",),
        ("",),
        (r"^fc\.weight$",),
        inputs={OTHERWISE: PLAIN},
        variants={"": "same"},
        note="the converter leaves the classifier's bias random (it assigns it to another name)",
    ),
    Layout(
        "simclr-v2",
        "SimCLR v2 of Google (TensorFlow), as Separius/SimCLRv2-Pytorch writes it",
        "Separius/SimCLRv2-Pytorch: convert.py, resnet.py; google-research/simclr: resnet.py",
        ("resnet",),
        ("",),
        (r"^net\.0\.0\.weight$", r"^net\.1\.blocks\.0\."),
        inputs={OTHERWISE: PLAIN},
        variants={"": "same"},
        rename=_simclr_v2,
    ),
    Layout(
        "self-classifier",
        "Self-Classifier",
        "elad-amrani/self-classifier: src/model.py, src/train.py",
        ("state_dict",),
        ("backbone.",),
        (r"^cls_0\b",),
    ),
    Layout(
        "scan",
        "SCAN: its SimCLR, clustering and self-labelling stages",
        "wvangansbeke/Unsupervised-Classification: models/models.py, resnet_cifar.py, resnet_stl.py, configs/scan",
        ("", "model"),
        ("backbone.",),
        (r"^(cluster_head|contrastive_head)\.",),
        inputs={"cifar": CIFAR_SCAN, "stl": (96, *IMAGENET[1:]), OTHERWISE: IMAGENET},
        stems=(("cifar", "stl"),),
        rename=shortcut_to_downsample,
        note="of CIFAR-20 its mean is (0.5071, 0.4867, 0.4408), its deviation (0.2675, 0.2565, 0.2761)",
    ),
    Layout(
        "solo-learn",
        "solo-learn",
        "vturrisi/solo-learn: solo/methods/base.py, main_linear.py",
        ("state_dict",),
        ("backbone.", "encoder."),
        (r"^(classifier\.weight|projector\.0\.weight|momentum_(backbone|encoder)\.)",),
        absent=(*_HEADS[:4], r"^backbone\.fc\.", r"^projection\.model\."),
        inputs={"cifar-pad2": CIFAR_SOLO, OTHERWISE: IMAGENET},
        variants={"cifar": "cifar-pad2"},
        note="the file does not name its images; CIFAR-10's or ImageNet's are taken by the stem",
    ),
    Layout(
        "vissl",
        "VISSL",
        "facebookresearch/vissl: models/base_ssl_model.py, models/trunks/resnext.py",
        ("classy_state_dict.base_model.model.trunk", "trunk", "model", ""),
        (
            "_feature_blocks.",
            "base_model._feature_blocks.",
            "trunk._feature_blocks.",
            "trunk.base_model._feature_blocks.",
        ),
    ),
    Layout(
        "lightly",
        "lightly",
        "lightly-ai/lightly: examples/pytorch_lightning, benchmarks/imagenet, models/modules/heads.py",
        ("state_dict", ""),
        ("backbone.",),
        (r"^(projection_head|prediction_head)\.layers\.", r"^backbone\.conv1\.weight$"),
        inputs={"cifar": (32, *IMAGENET[1:]), OTHERWISE: IMAGENET},
        rename=shortcut_to_downsample,
    ),
    Layout(
        "lightly-children",
        "lightly, a network cut into its children (nn.Sequential) as its examples do",
        "lightly-ai/lightly: examples/pytorch_lightning, models/resnet.py (ResNetGenerator)",
        ("state_dict", ""),
        ("backbone.",),
        (
            r"^(projection_head|prediction_head)\.layers\.",
            r"^backbone\.0\.weight$",
            r"^backbone\.[45]\.0\.conv1\.weight$",
        ),
        inputs={"cifar": (32, *IMAGENET[1:]), "cifar-norelu": (32, *IMAGENET[1:]), OTHERWISE: IMAGENET},
        rename=_children,
    ),
    Layout(
        "torchvision",
        "torchvision",
        "pytorch/vision: references/classification/train.py, torchvision/models",
        ("", "model", "model_ema", "state_dict"),
        ("",),
    ),
    Layout(
        "timm",
        "timm",
        "huggingface/pytorch-image-models: timm/models/_helpers.py",
        ("", "state_dict", "model", "state_dict_ema"),
        ("",),
    ),
    Layout(
        "keras",
        "Keras's ResNet version 1 in torchvision's names",
        "keras-team/keras: applications/resnet.py, applications/imagenet_utils.py (mode caffe)",
        ("",),
        ("",),
        (r"^fc\.weight$",),
        inputs={OTHERWISE: KERAS},
        variants={"": "keras"},
        rename=_keras,
    ),
    Layout(
        "barlow-twins-backbone",
        "Barlow Twins of Facebook AI Research, resnet50.pth",
        "facebookresearch/barlowtwins: main.py, hubconf.py",
        ("",),
        ("",),
        absent=(r"^fc\.",),
    ),
    Layout(
        "dino-backbone",
        "DINO, the backbone alone",
        "facebookresearch/dino: hubconf.py",
        ("",),
        ("",),
        absent=(r"^(fc|head)\.",),
    ),
)

BY_NAME = {layout.name: layout for layout in LAYOUTS}
