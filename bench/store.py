"""Reading random rows of a feature store, and filling one: ours, memcpy and the backbone alone, and what people write.

Every contender makes its own synthetic data in its own process, in a folder that goes with it.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sslfast import features
from sslfast.bench.contenders import OURS
from sslfast.bench.turns import Contender, Part, Scenario, Turn
from sslfast.data import Dataset
from sslfast.data.memory import ArrayPixels
from sslfast.models import ARCHITECTURES, Backbone, Preprocess

Size = tuple[int, ...]
MEMCPY, ONE_MEMCPY = "memcpy", "memcpy, one thread"
SELECT, NUMPY = "torch.index_select", "NumPy memory map"
ALONE, SCRIPT = "backbone alone", "DataLoader + numpy.save"
HERE = "sslfast.bench.store"
GATHER_SIZES: tuple[Size, ...] = ((2048, 4096, 65536), (2048, 64, 65536), (512, 4096, 65536), (128, 4096, 65536))
"""Features, rows of a gather, rows of the store."""
EXTRACTION_SIZES: tuple[Size, ...] = ((32768, 28, 0), (8192, 32, 1), (1024, 64, 2))
"""Images, their side, and which of ``NETWORKS``."""
NETWORKS = (("resnet-small", 256), ("resnet20", 256), ("resnet50", 32))
"""Architecture and images per forward pass."""
_folders = []
"""Temporary folders; they are removed when the process ends."""


def _folder() -> Path:
    _folders.append(tempfile.TemporaryDirectory(prefix="sslfast-bench-"))
    return Path(_folders[-1].name)


def _images(rows: int, side: int) -> Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (rows, side, side, 3), dtype=np.uint8)
    return Dataset("noise", "train", ArrayPixels(pixels), ids=[str(row) for row in range(rows)])


def gather(size: Sequence[int], how: str, dtype: str = "float32") -> Turn:
    """Read the rows of eight minibatches, drawn at random, into one buffer each time."""
    width, batch, rows = size
    projection = nn.Sequential(nn.Flatten(), nn.Linear(192, width))
    backbone = Backbone("projection", projection, width, Preprocess(8))
    store = features.extract(backbone, _images(rows, 8), _folder() / "store", dtype=dtype, batch_size=4096)
    order = [np.random.default_rng(seed).integers(0, rows, batch) for seed in range(1, 9)]
    read = reader(store, how, torch.empty(batch, width))

    def turn() -> None:
        for _ in range(_repeats(size)):
            for part in order:
                read(part)

    return turn


def reader(store: features.FeatureStore, how: str, out: Tensor) -> Callable[[np.ndarray], Tensor]:
    """Give what reads rows of a store in one of the ways; memcpy copies as many that stand together."""
    everything = store.load()  # compares all checksums, and brings the files into memory
    target = out.numpy()

    def ours(rows: np.ndarray) -> Tensor:
        store.gather(rows, out)
        return out

    def copied(rows: np.ndarray) -> Tensor:
        first = int(rows[0]) % (len(everything) - len(rows) + 1)
        return out.copy_(everything[first : first + len(rows)])

    def selected(rows: np.ndarray) -> Tensor:
        return torch.index_select(everything, 0, torch.from_numpy(rows), out=out)

    if how == NUMPY:
        maps = [
            np.memmap(
                store.path / shard["name"], np.float32, "r", shard["data"]["identity"], (shard["rows"], len(out.T))
            )
            for shard in store.manifest["shards"]
        ]
        ends = np.cumsum([len(one) for one in maps])

    def mapped(rows: np.ndarray) -> Tensor:
        owners = np.searchsorted(ends, rows, side="right")
        for number in np.unique(owners).tolist():
            places = np.flatnonzero(owners == number)
            target[places] = maps[number][rows[places] - (ends[number] - len(maps[number]))]
        return out

    ways = {OURS: ours, "batch": store.batch, MEMCPY: copied, ONE_MEMCPY: copied, SELECT: selected, NUMPY: mapped}
    return ways[how]


def _repeats(size: Sequence[int]) -> int:
    return max(1, (1 << 23) // (size[0] * size[1]))


def extraction(size: Sequence[int], how: str, compute_dtype: str = "float32") -> Turn:
    """Run a backbone over images in memory: into a store, into nothing, or as a script does."""
    rows, side, number = size
    name, batch = NETWORKS[number]
    torch.manual_seed(0)
    network = ARCHITECTURES[name][0]()
    backbone = Backbone(name, network, network.features, Preprocess(side)).eval()
    images = _images(rows, side)
    images.fingerprint()
    folder, numbers = _folder(), count()
    half = torch.autocast("cpu", torch.bfloat16, enabled=compute_dtype == "bfloat16")

    def stored() -> None:
        out = folder / str(next(numbers))
        features.extract(backbone, images, out, batch_size=batch, compute_dtype=compute_dtype)

    resting = backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def alone() -> None:
        with half:
            for first in range(0, rows, batch):
                pixels = torch.from_numpy(images.images(np.arange(first, min(first + batch, rows))))
                resting(backbone.preprocess(pixels))

    @torch.inference_mode()
    def script() -> None:
        found: list[Tensor] = []
        read = torch.utils.data.DataLoader(_Prepared(images, backbone.preprocess), batch)  # type: ignore[arg-type]
        with half:
            found = [backbone(part) for part in read]
        np.save(folder / f"{next(numbers)}.npy", torch.cat(found).float().numpy())

    work = {OURS: stored, ALONE: alone, SCRIPT: script}
    return lambda: work[how]()


class _Prepared:
    """A data set as scripts have it: one preprocessed image at a time."""

    def __init__(self, images: Dataset, preprocess: Preprocess) -> None:
        self.images, self.preprocess = images, preprocess

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Tensor:
        return self.preprocess(torch.from_numpy(self.images[row][0])[None])[0]


def _gatherers(size: Size) -> list[Contender]:
    def one(name: str, how: str, dtype: str = "float32", threads: int = 0) -> Contender:
        job = {"size": size, "how": how, "dtype": dtype}
        return Contender(name, dtype, (Part(f"{HERE}:gather", job, threads),))

    return [
        one(OURS, OURS),
        one(OURS, OURS, "bfloat16"),
        one(f"{OURS}, float16 store", OURS, "float16"),
        one(f"{OURS}, one thread", OURS, threads=1),
        one(f"{OURS}, batch()", "batch"),
        *(one(name, name) for name in (MEMCPY, SELECT, NUMPY)),
        one(ONE_MEMCPY, ONE_MEMCPY, threads=1),
    ]


def _extractors(size: Size) -> Iterator[Contender]:
    for name, dtypes in ((OURS, ("float32", "bfloat16")), (ALONE, ("float32", "bfloat16")), (SCRIPT, ("float32",))):
        for dtype in dtypes:
            job = {"size": size, "how": name, "compute_dtype": dtype}
            yield Contender(name, dtype, (Part(f"{HERE}:extraction", job),))


def _operations(size: Size) -> float:
    """Count a network's multiplications and additions for one image."""
    from torch.utils.flop_counter import FlopCounterMode

    network = ARCHITECTURES[NETWORKS[size[2]][0]][0]().eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counted:
        network(torch.zeros(1, 3, size[1], size[1]))
    return float(counted.get_total_flops())


GATHER = Scenario(
    name="gather",
    title="random rows of a feature store that is in memory, as float32",
    axes=("features", "rows of a gather", "rows of the store"),
    sizes=GATHER_SIZES,
    contenders=_gatherers,
    unit="gather",
    units=lambda size: 8 * _repeats(size),
    operations=lambda size: 0,
    traffic=lambda size: 2 * size[0] * size[1],
    typed="rows",
)
EXTRACTION = Scenario(
    name="extraction",
    title="features of images in memory, one image",
    axes=("images", "side", f"network ({', '.join(f'{at}: {name}' for at, (name, _) in enumerate(NETWORKS))})"),
    sizes=EXTRACTION_SIZES,
    contenders=lambda size: list(_extractors(size)),
    unit="image",
    units=lambda size: size[0],
    operations=_operations,
    traffic=lambda size: 3 * size[1] ** 2 / 4,
    typed="network",
)
