"""Recognising a foreign checkpoint: which project wrote it, and which network and images that means."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sslfast.errors import SslfastError, UsageError
from sslfast.models.architectures import DEPTHS, TIMM, Parts, is_torchvision, outline, resnet_parts
from sslfast.models.checkpoint import Foreign, weights_in
from sslfast.models.layouts import BY_NAME, LAYOUTS, OTHERWISE, Layout, State, shortcut_to_downsample
from sslfast.models.preprocess import Preprocess
from sslfast.models.rebuilt import Dropped

WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""

COUNTER = "num_batches_tracked"
"""Ends the name of a counter of batch normalisation, which old files do not have."""

SHOWN = 3
"""Names that an error or a report lists."""

PLAIN = "plain"
"""The layout that takes names as they are; ``plain:PREFIX`` where a dictionary of the file has several networks."""


@dataclass(frozen=True)
class Match:
    """A layout that fits, and what it would build."""

    layout: Layout | None
    container: str
    prefix: str
    state: State
    heads: tuple[str, ...]
    architecture: str
    preprocess: Preprocess
    known: bool = False
    """Whether the layout's project is known to have trained this network on such images."""

    @property
    def name(self) -> str:
        """The layout's name."""
        return self.layout.name if self.layout is not None else PLAIN


def recognise(
    foreign: Foreign, path: Path, name: str, layout: str | None = None
) -> tuple[Match, str | None, str, tuple[str, ...]]:
    """Find the layout of a checkpoint.

    Args:
        foreign: what the file holds.
        path: the file.
        name: the architecture that a person asks for.
        layout: the layout that a person says it has: a name of `BY_NAME`, "plain" or "plain:PREFIX", each with
            "@CONTAINER" behind it where several dictionaries of the file have it; None: any.

    Returns:
        The match, the layouts' names (None: none fits), what that is in words, and notes.

    Raises:
        UsageError: there is no such layout, the file does not have it, or several fit that mean different networks or
            images.
        SslfastError: the file holds no weights.
    """
    found = [(container, _unwrapped(weights)) for container, weights in _dictionaries(foreign.content)]
    if not found:
        content = foreign.content
        what = f"an object of {content.name}" if isinstance(content, Dropped) else f"a {type(content).__name__}"
        kind = "no weights" if isinstance(content, dict) else f"{what}, not a dictionary of weights (a state_dict())"
        keys = f"; its keys are {', '.join(map(str, list(content)[:5]))}" if isinstance(content, dict) else ""
        dropped = f"; not rebuilt: {', '.join(foreign.dropped[:SHOWN])}" if foreign.dropped else ""
        raise SslfastError(f"{path} holds {kind}{keys}{dropped}")
    wanted = outline(name).shapes
    if layout is not None:
        chosen = _asked(found, foreign, path, name, layout, wanted)
        if chosen.layout is None:
            return chosen, None, "names as they are", ()
        return chosen, chosen.name, chosen.layout.what, _notes(chosen)
    matches = [
        match
        for one in LAYOUTS
        for container, state in found
        if container in one.containers and one.marked(state)
        for match in _matches(one, container, state, foreign, name, wanted)
        if _possible(match, foreign, path, name, wanted, state)
    ]
    # A mark is better evidence than names that any plain network has.
    if any(match.prefix or match.name in _CERTAIN for match in matches):
        matches = [match for match in matches if match.prefix or match.name in _CERTAIN]
    if not matches:
        return (
            _without_layout(found, path, name, wanted),
            None,
            "no layout that is known",
            (
                "the images that these weights want are not known; check size, mean and standard deviation",
                "padding and max-pool of the first layers show in no weight: they are as the network's name says",
            ),
        )
    # A reading with weights of other shapes is none; where all are so, the first is refused for them.
    matches = [match for match in matches if _shapes_fit(match, wanted)] or matches[:1]
    first = matches[0]
    if any((other.architecture, other.preprocess) != (first.architecture, first.preprocess) for other in matches[1:]):
        readings = "; ".join(f"{one.name}: {one.architecture}, {one.preprocess.describe()}" for one in matches)
        raise UsageError(
            f"{path} can be read in more than one way ({readings}); say which with layout=NAME (--layout), and ask for "
            "its network by that name"
        )
    _one_place(matches, path)
    names = list(dict.fromkeys(match.name for match in matches))
    words = list(dict.fromkeys(match.layout.what for match in matches if match.layout is not None))
    return first, " | ".join(names), " or ".join(words), _notes(first)


def _shapes_fit(match: Match, wanted: dict[str, torch.Size]) -> bool:
    return all(value.shape == wanted[key] for key, value in match.state.items() if key in wanted)


_CERTAIN = ("swav", "simclr-v2")
"""Layouts without a prefix whose marks belong to no other."""


def _notes(match: Match) -> tuple[str, ...]:
    assert match.layout is not None
    notes: tuple[str, ...] = (match.layout.note,) if match.layout.note else ()
    if not match.known:
        notes += (f"{match.name} is not known to have a {match.architecture}; check its images and first layers",)
    return notes


def _dictionaries(content: Any) -> Iterator[tuple[str, State]]:
    """List the dictionaries of weights in a file, each once, with where they lie."""
    waiting = [("", content)]
    seen: set[int] = set()
    while waiting:
        path, one = waiting.pop(0)
        if not isinstance(one, dict) or id(one) in seen:
            continue
        seen.add(id(one))  # a malicious file may hold a dictionary in itself
        weights = weights_in(one)
        if weights:
            yield path, weights
        inner = [(key, value) for key, value in one.items() if isinstance(key, str) and isinstance(value, dict)]
        waiting += [(f"{path}.{key}" if path else key, value) for key, value in inner]


def _unwrapped(state: State) -> State:
    while any(key.startswith(WRAPPERS) for key in state):
        for wrapper in WRAPPERS:
            state = {key.removeprefix(wrapper): value for key, value in state.items()}
    return state


def _matches(
    layout: Layout, container: str, state: State, foreign: Foreign, name: str, wanted: dict[str, torch.Size],
    asked: bool = False,
) -> list[Match]:  # fmt: skip
    """Read a dictionary as a layout has it: once for every network that it may be, not at all without a name of it."""
    prefix = layout.prefix_in(state)
    if prefix is None:
        return []
    own = layout.rename({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
    heads = [key for key in state if not key.startswith(prefix)] + [prefix + key for key in own if key not in wanted]
    if not any(key in wanted for key in own):
        return []
    options = foreign.content.get("hyper_parameters")
    options = options if isinstance(options, dict) else {}
    default = outline(name).preprocess
    matches = []
    for architecture in _architectures(layout, name, state, options.get("maxpool1"), asked):
        variant = parts.variant if (parts := resnet_parts(architecture)) is not None else OTHERWISE
        known = layout.trained(variant)
        keys = (options.get("dataset"), variant, OTHERWISE)
        size, mean, std = layout.inputs[next(key for key in keys if isinstance(key, str) and key in layout.inputs)]
        if layout.name in ("torchvision", "timm") or not known:
            size, mean, std = None, default.mean, default.std
        preprocess = Preprocess(size or default.size, mean, std)
        matches.append(Match(layout, container, prefix, own, tuple(heads), architecture, preprocess, known))
    return matches


def _architectures(layout: Layout, name: str, state: State, pooled: Any, asked: bool) -> tuple[str, ...]:
    """Name the networks that a layout may have trained where ``name`` was asked for.

    Padding and max-pool of the first layers show in no weight. What decides are the file's own option ``pooled``
    (maxpool1), else the person, who names the variant or the layout; else there are several.
    """
    parts = resnet_parts(name)
    if parts is None:
        return (name,)
    variant = layout.variants.get(parts.variant, parts.variant)
    if layout.name == "lightly-children" and any(key.startswith("backbone.2.") for key in state):
        variant = {"cifar": "cifar-norelu"}.get(variant, variant)
    variants: tuple[str, ...] = next((pair for pair in layout.stems if variant in pair), (variant,))
    if layout.name.startswith("bolts-") and isinstance(pooled, bool) and len(variants) > 1:
        variants = variants[:1] if pooled else variants[1:]
    elif asked or parts.variant not in ("", "cifar"):
        variants = (variant,)
    return tuple(parts._replace(variant=one).name for one in variants)


def _possible(
    match: Match, foreign: Foreign, path: Path, name: str, wanted: dict[str, torch.Size], state: State
) -> bool:
    """Say whether a layout without a mark of its own can have written these weights.

    Plain names tell no project. What tells more: the file's name and hash where torchvision published it, the metadata
    of a safetensors file, a classifier, and the counters of batch normalisation, which are zero in every network that
    PyTorch did not train.
    """
    assert match.layout is not None
    parts = resnet_parts(name)
    plain = parts is not None and parts.variant == ""
    untrained = _counters_are_zero(state)
    if match.name == "keras":
        fits = parts is not None and parts.depth >= 50 and parts.variant in ("", "keras")
        return fits and (_says_keras(foreign) or (untrained and not foreign.metadata and not _published(path)))
    if match.name == "simclr-v1":
        converted = untrained and "state_dict" in foreign.content and not _published(path)
        return parts is not None and parts.depth == 50 and parts.variant in ("", "same") and converted
    if match.name == "simclr-v2":
        return parts is not None and parts.variant in ("", "same")
    if match.name == "timm":
        return name.startswith(TIMM) and set(match.state) & set(wanted) != set()
    if match.name == "torchvision":
        return (plain if parts is not None else is_torchvision(name)) and not _says_keras(foreign)
    if match.name == "barlow-twins-backbone":
        return name == "resnet50" and not match.heads and not untrained
    if match.name == "dino-backbone":
        return (name == "resnet50" or name.startswith(f"{TIMM}vit_")) and not match.heads and not untrained
    return True


def _counters_are_zero(state: State) -> bool:
    # One number each: a tensor of any size may be made of one that is stored.
    counters = [value for key, value in state.items() if key.endswith(COUNTER) and value.numel() == 1]
    return bool(counters) and not any(bool(value.any()) for value in counters)


def _says_keras(foreign: Foreign) -> bool:
    return foreign.metadata.get("source", "").startswith("keras")


def _published(path: Path) -> bool:
    """Say whether a file is named by its own hash, as torchvision and PyTorch's hub name theirs."""
    found = re.search(r"-([0-9a-f]{8,64})\.", path.name)
    if found is None:
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest().startswith(found[1])


def _asked(
    found: list[tuple[str, State]], foreign: Foreign, path: Path, name: str, layout: str, wanted: dict[str, torch.Size]
) -> Match:
    """Read a file as a person says it is to be read."""
    layout, _, place = layout.partition("@")
    kind, _, prefix = layout.partition(":")
    if kind != PLAIN and layout not in BY_NAME:
        raise UsageError(f"unknown layout {layout!r}; there are: {', '.join(BY_NAME)}, plain, plain:PREFIX")
    if place:
        found = [(container, state) for container, state in found if container == place]
        if not found:
            raise UsageError(f"{path} has no dictionary of weights {place!r}")
    if kind == PLAIN:
        return _without_layout(found, path, name, wanted, prefix if ":" in layout else None, asked=True)
    one = BY_NAME[layout]
    matches = [
        match
        for container, state in found
        for match in _matches(one, container, state, foreign, name, wanted, asked=True)
    ]
    if not matches:
        raise UsageError(f"{path} does not have the layout {layout}: no name of a {name} after {_or(one.prefixes)}")
    matches = [match for match in matches if match.container in one.containers] or matches
    _one_place(matches, path)
    return matches[0]


def _one_place(matches: list[Match], path: Path) -> None:
    """Check that a reading has one dictionary of weights: a moving average beside the weights is another network."""
    places = sorted({match.container for match in matches})
    if len(places) > 1:
        layout = matches[0].name
        choices = " or ".join(f"layout={layout}@{place}" for place in places)
        raise UsageError(
            f"{path} holds its weights more than once ({', '.join(places)}); say which: {choices} (--layout)"
        )


def _or(prefixes: tuple[str, ...]) -> str:
    return " or ".join(repr(prefix) for prefix in prefixes)


def _without_layout(
    found: list[tuple[str, State]],
    path: Path,
    name: str,
    wanted: dict[str, torch.Size],
    prefix: str | None = None,
    asked: bool = False,
) -> Match:
    """Find the network's own names after any prefix, in any dictionary of the file."""
    anchor = next(iter(wanted))
    readings: list[tuple[int, Match]] = []
    for container, state in found:
        named = shortcut_to_downsample(state) if resnet_parts(name) is not None else state
        beginnings = {key.removesuffix(anchor) for key in named if key.endswith(anchor)} if prefix is None else {prefix}
        for beginning in sorted(beginnings):
            if beginning and not beginning.endswith("."):
                continue
            own = {key.removeprefix(beginning): value for key, value in named.items() if key.startswith(beginning)}
            hits = sum(key in wanted for key in own)
            heads = [key for key in named if not key.startswith(beginning)] + [key for key in own if key not in wanted]
            match = Match(None, container, beginning, own, tuple(heads), name, outline(name).preprocess)
            readings.append((hits, match))
    most = max((hits for hits, _ in readings), default=0)
    best = [match for hits, match in readings if hits == most]
    if not most:
        keys = ", ".join(list(found[0][1])[:SHOWN])
        raise SslfastError(f"{path} holds no weight of a {name}: its keys look like {keys}")
    if len(best) > 1 and most > len(wanted) // 2:
        places = ", ".join(f"{one.container}:{one.prefix}" for one in best)
        raise UsageError(f"{path} holds more than one {name} ({places}); say which with layout=plain:PREFIX@CONTAINER")
    parts = resnet_parts(name)
    bare = best[0].container == "state_dict" and best[0].prefix == "backbone." and not best[0].heads
    if not asked and bare and parts is not None and parts.variant == "cifar" and len(found) == 1:
        padded = parts._replace(variant="cifar-pad2").name
        raise UsageError(
            f"{path} can be read in more than one way (solo-learn: {padded}; plain: {name}); "
            "say which with layout=NAME (--layout)"
        )
    return best[0]


def guess(foreign: Foreign) -> str | None:
    """Name the residual network that the file's weights look like under any layout; None where they look like none."""
    for _, weights in _dictionaries(foreign.content):
        state = _unwrapped(weights)
        for layout in LAYOUTS:
            prefix = layout.prefix_in(state)
            if prefix is not None and layout.marked(state):
                own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
                name = looks_like(layout.rename(own))
                if name:
                    return name
    return None


def looks_like(state: State) -> str:
    """Name the residual network that names and shapes belong to, as far as they tell; "" where they do not."""
    counts = tuple(
        len({found[1] for key in state if (found := re.match(rf"layer{stage}\.(\d+)\.conv1\.weight", key))})
        for stage in range(1, 5)
    )
    bottleneck = "layer1.0.conv3.weight" in state
    stem = state.get("conv1.weight")
    if stem is None or stem.ndim != 4 or stem.shape[0] % 64 or not len(stem):
        return ""
    for depth, blocks in DEPTHS.items():
        if counts == blocks and bottleneck == (depth >= 50):
            return Parts(depth, stem.shape[0] // 64, "cifar" if stem.shape[-1] == 3 else "").name
    return ""
