"""``sslfast evaluate``: how good a backbone's features are, by the protocols of the literature."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sslfast.evaluate.config import ClusterConfig, DenseConfig, NearestConfig, ProbeConfig
from sslfast.progress import console

if TYPE_CHECKING:
    from rich.console import Console

    from sslfast.data import Dataset
    from sslfast.data.masks import MaskedImages
    from sslfast.features import FeatureStore
    from sslfast.models import Backbone
    from sslfast.run import Run


@dataclass(frozen=True)
class Options:
    """What to measure, and on what.

    Args:
        train: feature store of the training split, as extract writes it.
        test: feature store of the test split; it is scored once, when everything is fitted.
        backbone: in place of the stores: a checkpoint that pretrain wrote, or, with --checkpoint or --random-weights,
            an architecture's name; its features are extracted into the run's folder.
        checkpoint: weights that somebody else trained.
        layout: whose layout the checkpoint has, where more than one fits.
        random_weights: take the architecture as it is before training, of seed --seed: what a backbone must beat.
        data: the data set to extract; with stores: the one that they were extracted from, for example images and
            to look for test images among the training images.
        train_split: of the data set.
        test_split: of the data set.
        data_dir: where data sets lie, before the usual places.
        views: of the training images, extracted and trained on by SGD.
        protocols: knn; sgd and lbfgs: linear probes; kmeans; dense: a 1x1 head on frozen maps, on --masks.
        seeds: of the probes, of k-means and of the dense probe, from --seed on; the table gives mean and deviation.
        seed: the first one.
        k: neighbours; every value is a row.
        temperatures: of the votes exp(cos / T); every value is a row.
        majority: let every neighbour have one vote, too.
        epochs: of SGD.
        batch_size: of SGD.
        learning_rates: of SGD, chosen from on held-out training rows.
        weight_decay: of SGD.
        epoch_rule: of SGD: the last epoch, or the best one on held-out rows.
        strengths: C of L-BFGS, chosen from on held-out training rows; by default 45 values from 1e-6 to 1e5.
        val_fraction: share of the training rows that is held out to choose by.
        clusters: of k-means; 0: as many as classes.
        masks: data set of the dense probe: oxford-pets, or the generated shapes-on-texture.
        mask_images: use so many of its images, a tenth of them for testing; by default all.
        maps: of the backbone that the dense probe sees; by default all.
        pyramid: put torchvision's feature pyramid before the dense probe's head.
        dense_epochs: of the dense probe.
        dense_batch_size: of the dense probe.
        examples: test images per predicted class in the example grids; 0: none.
        shared: what to do where more than 1 % of the test images are training images as well, compared by their decoded
            pixels: refuse; tell: go on; skip: do not compare (it decodes both splits).
        extract_batch_size: images per forward pass of the extraction.
        device: auto, cpu or cuda.
        dtype: of the products of SGD.
        memory: load reads the features into memory, stream reads them chunk by chunk; auto: what fits.
        out: folder of the run; by default runs/<time>-evaluate.
        resume: go on with the run in --out that was broken off: extraction continues, probes are fitted anew.
        json: print the result as JSON.
    """

    train: Path | None = None
    test: Path | None = None
    backbone: str | None = None
    checkpoint: Path | None = None
    layout: str | None = None
    random_weights: bool = False
    data: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    data_dir: Path | None = None
    views: tuple[Literal["identity", "flip"], ...] = ("identity",)
    protocols: tuple[Literal["knn", "sgd", "lbfgs", "kmeans", "dense"], ...] = ("knn", "sgd", "lbfgs")
    seeds: int = 1
    seed: int = 0
    k: tuple[int, ...] = NearestConfig.numbers
    temperatures: tuple[float, ...] = NearestConfig.temperatures
    majority: bool = NearestConfig.majority
    epochs: int = ProbeConfig.epochs
    batch_size: int = ProbeConfig.batch_size
    learning_rates: tuple[float, ...] = ProbeConfig.learning_rates
    weight_decay: float = ProbeConfig.weight_decay
    epoch_rule: Literal["last", "best"] = ProbeConfig.epoch_rule
    strengths: tuple[float, ...] = ProbeConfig.strengths
    val_fraction: float = ProbeConfig.val_fraction
    clusters: int = ClusterConfig.clusters
    masks: Literal["oxford-pets", "shapes-on-texture"] = "oxford-pets"
    mask_images: int | None = None
    maps: tuple[str, ...] = DenseConfig.maps
    pyramid: bool = DenseConfig.pyramid
    dense_epochs: int = DenseConfig.epochs
    dense_batch_size: int = DenseConfig.batch_size
    examples: int = 25
    shared: Literal["refuse", "tell", "skip"] = "refuse"
    extract_batch_size: int = 256
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = ProbeConfig.dtype
    memory: Literal["auto", "load", "stream"] = "auto"
    out: Path | None = None
    resume: bool = False
    json: bool = False


HOW = ("out", "resume", "json", "data_dir", "device", "memory", "extract_batch_size")
"""Options that change where and how, not what comes out."""


def run(options: Options) -> None:
    """Measure, print the table, and say what was written.

    Raises:
        UsageError: options that do not go together, or a number that makes no sense.
        SslfastError: features, images or weights cannot be read or do not belong together.
    """
    from sslfast.device import resolve_device
    from sslfast.report import write_report
    from sslfast.run import Run, new_run_folder

    _check(options)
    device = str(resolve_device(options.device))
    backbone = _backbone(options)
    folder = options.out or new_run_folder("evaluate")
    decided = {key: value for key, value in asdict(options).items() if key not in HOW}
    decided = {key: str(value) if isinstance(value, Path) else value for key, value in decided.items()}
    if backbone is not None:
        decided["fingerprint"] = backbone.fingerprint()
    with Run(folder, {"command": "evaluate", **decided}, resume=options.resume) as held:
        result: dict[str, Any] = {"folder": str(folder)}
        masks = _masks(options, backbone) if backbone is not None and "dense" in options.protocols else None
        protocols = tuple(name for name in options.protocols if name != "dense")
        if protocols:
            result |= _on_features(options, protocols, backbone, held, device)
        if masks is not None and backbone is not None:
            result["dense"] = _dense(options, backbone, masks, held, device)
        page = write_report(folder)
    if options.json:
        print(json.dumps(result))
        return
    if "rows" in result:
        _print_rows(result)
    if "dense" in result:
        _print_dense(result["dense"])
    print(folder / "result.json" if "rows" in result else folder / "dense.json")
    console.print(f"next: open {page} in a browser; it needs no network", markup=False, soft_wrap=True)


def _check(options: Options) -> None:
    from sslfast.errors import UsageError
    from sslfast.options import check_number, check_seed

    if options.resume and options.out is None:
        raise UsageError("--resume needs --out: the folder of the run to go on with")
    if not options.protocols:
        raise UsageError("--protocols is empty; give some of knn, sgd, lbfgs, kmeans, dense")
    stores, network = (options.train, options.test), options.backbone
    if network is None and (options.checkpoint is not None or options.random_weights):
        raise UsageError("--backbone is missing: the name of the architecture")
    if options.checkpoint is not None and options.random_weights:
        raise UsageError("weights are those of --checkpoint or --random-weights, not both")
    if options.layout is not None and options.checkpoint is None:
        raise UsageError("--layout is for a foreign --checkpoint")
    on_features = any(name != "dense" for name in options.protocols)
    if on_features and network is None and None in stores:
        raise UsageError("give --train and --test (feature stores), or --backbone and --data")
    if on_features and network is not None and stores == (None, None) and options.data is None:
        raise UsageError("--data is missing: the data set whose features are to be extracted")
    if network is not None and stores != (None, None):
        raise UsageError("--train and --test already hold features; leave out --backbone")
    if "dense" in options.protocols and network is None:
        raise UsageError("the dense probe needs --backbone: feature stores hold no maps")
    check_seed(options.seed)
    check_number("--seeds", options.seeds, 1)
    check_number("--examples", options.examples, 0)
    if not 0 < options.val_fraction < 1:
        raise UsageError(f"--val-fraction must lie between 0 and 1, got {options.val_fraction:g}")


def _backbone(options: Options) -> "Backbone | None":
    if options.backbone is None:
        return None
    import torch

    from sslfast.cli import checkpoints
    from sslfast.evaluate.guards import check_no_random_layer, check_normalisation
    from sslfast.models import load_backbone
    from sslfast.search.bank import stream

    if options.random_weights:
        console.print(f"{options.backbone}: random weights, of seed {options.seed}", markup=False)
        with torch.random.fork_rng():
            torch.manual_seed(stream(options.seed, 4))
            return load_backbone(options.backbone).eval()
    backbone = checkpoints.load(options.backbone, options.checkpoint, options.layout, ())
    check_normalisation(backbone)
    check_no_random_layer(backbone, [backbone])
    return backbone.eval()


def _on_features(
    options: Options, protocols: tuple[str, ...], backbone: "Backbone | None", held: "Run", device: str
) -> dict[str, Any]:
    from sslfast.evaluate.guards import MOST_SHARED, check_shared_images
    from sslfast.features import FeatureStore
    from sslfast.recipes.evaluation import Plan, evaluate_features

    plan = Plan(
        protocols,
        tuple(range(options.seed, options.seed + options.seeds)),
        NearestConfig(options.k, options.temperatures, options.majority),
        ProbeConfig(
            epochs=options.epochs, batch_size=options.batch_size, learning_rates=options.learning_rates,
            weight_decay=options.weight_decay, epoch_rule=options.epoch_rule, strengths=options.strengths,
            val_fraction=options.val_fraction, dtype=options.dtype,
        ),
        ClusterConfig(options.clusters),
        options.examples,
    )  # fmt: skip
    images, given = None, None
    notes = ["training and test images were not compared"]
    if backbone is None:
        assert options.train is not None and options.test is not None
        given = FeatureStore.open(options.train), FeatureStore.open(options.test)
    if options.data is not None:
        train_images, images = _images(options)
        if given is not None:
            _check_images(train_images, given[0])
            _check_images(images, given[1])
        if options.shared != "skip":
            found = check_shared_images(train_images, images, 1.0 if options.shared == "tell" else MOST_SHARED)
            notes = [str(found) if found.count else f"no test image is a training image ({found.tested:,} compared)"]
    console.print(notes[0], markup=False, soft_wrap=True)
    if given is not None:
        stores = given
    else:
        assert backbone is not None and images is not None
        stores = _extracted(options, backbone, train_images, images, held, device)
    if images is not None and len(images) != stores[1].rows:  # an image that could not be read is no row
        kept = set(stores[1].ids)
        images = images.subset([row for row, name in enumerate(images.ids) if name in kept])
    return evaluate_features(*stores, plan, held, images=images, notes=notes, device=device, memory=options.memory)


def _images(options: Options) -> "tuple[Dataset, Dataset]":
    from sslfast.data import check_same_classes, load

    assert options.data is not None
    train, test = (
        load(options.data, split, root=options.data_dir) for split in (options.train_split, options.test_split)
    )
    check_same_classes(train, test)
    return train, test


def _check_images(images: "Dataset", store: "FeatureStore") -> None:
    from sslfast.errors import DataError

    if images.fingerprint() != store.manifest["dataset"]["fingerprint"]:
        raise DataError(
            f"the features of {store.path} are not those of {images.name} ({images.split}) as it is now; give the data "
            "set that they were extracted from, or leave --data out"
        )


def _extracted(
    options: Options, backbone: "Backbone", train: "Dataset", test: "Dataset", held: "Run", device: str
) -> "tuple[FeatureStore, FeatureStore]":
    from sslfast.evaluate.guards import check_selection
    from sslfast.features import extract

    check_selection(train, test)
    folder = held.folder / "features"
    shared = {"batch_size": options.extract_batch_size, "device": device}
    return (
        extract(backbone, train, folder / "train", options.views, **shared),  # type: ignore[arg-type]
        extract(backbone, test, folder / "test", **shared),  # type: ignore[arg-type]
    )


def _masks(options: Options, backbone: "Backbone") -> "tuple[MaskedImages, MaskedImages]":
    from sslfast.data.masks import load_masks

    size, root, count = backbone.preprocess.size, options.data_dir, options.mask_images
    train = load_masks(options.masks, "train", size, root=root, count=count, seed=options.seed)
    tested = None if count is None else max(1, count // 10)
    return train, load_masks(options.masks, "test", size, root=root, count=tested, seed=options.seed)


def _dense(
    options: Options, backbone: "Backbone", masks: "tuple[MaskedImages, MaskedImages]", held: "Run", device: str
) -> dict[str, Any]:
    from sslfast.evaluate.dense import dense_probe
    from sslfast.files import write_json

    train, test = masks
    rows = []
    for seed in range(options.seed, options.seed + options.seeds):
        config = DenseConfig(options.maps, options.pyramid, options.dense_epochs, options.dense_batch_size, seed=seed)
        for scores in dense_probe(backbone, train, test, config, device=device):
            rows.append({**asdict(scores), "confusion": scores.confusion.tolist(), "seed": seed})
    for row in rows:  # JSON has no NaN: a class that is nowhere has no number
        row["iou"] = [None if value != value else value for value in row["iou"]]
    content = {
        "masks": options.masks, "classes": list(train.classes), "train_images": len(train), "test_images": len(test),
        "size": test.size, "epoch_rule": f"last epoch of {options.dense_epochs}", "pyramid": options.pyramid,
        "rows": rows,
    }  # fmt: skip
    write_json(held.folder / "dense.json", content)
    return content


def _print_rows(result: dict[str, Any]) -> None:
    from rich.table import Table

    seeds = len(result["seeds"])
    table = Table(title=f"{result['split']}; chosen on {result['chosen_on']}")
    for column in ("protocol", "test", "validation", "seeds", "epoch", "detail", "seconds"):
        left = column in ("protocol", "epoch", "detail")
        table.add_column(column, justify="left" if left else "right", no_wrap=column in ("protocol", "test"))
    for row in result["rows"]:
        table.add_row(
            row["name"], _percent(row["test_accuracy"], row["test_deviation"]),
            _percent(row["validation_accuracy"], None),
            str(row["seeds"]), row["epoch_rule"], row["detail"], f"{row['seconds']:.1f}",
        )  # fmt: skip
    out = _wide()
    out.print(table)
    if seeds > 1:
        out.print(f"mean ± standard deviation of {seeds} seeds, where a protocol has any chance in it")


def _print_dense(content: dict[str, Any]) -> None:
    from rich.table import Table

    seeds = len({row["seed"] for row in content["rows"]})
    title = f"dense probe, {content['masks']}, {content['test_images']:,} test images; {content['epoch_rule']}"
    table = Table(title=f"{title}; {seeds} seed{'' if seeds == 1 else 's'}")
    for column in ("backbone", "mIoU", *content["classes"], "pixels"):
        table.add_column(column, justify="left" if column == "backbone" else "right")
    for name in dict.fromkeys(row["name"] for row in content["rows"]):
        rows = [row for row in content["rows"] if row["name"] == name]
        columns = zip(*([row["miou"], *row["iou"], row["pixel_accuracy"]] for row in rows), strict=True)
        table.add_row(name, *(_mean(values) for values in columns))
    _wide().print(table)


def _wide() -> "Console":
    """Give a console that is as wide as the terminal; what goes to a file or a pipe is not broken into 80 columns."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 200)


def _mean(values: tuple[float | None, ...]) -> str:
    from statistics import fmean, stdev

    known = [value for value in values if value is not None]
    return "–" if not known else _percent(fmean(known), stdev(known) if len(known) > 1 else None)


def _percent(value: float | None, deviation: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.2f} %" + ("" if deviation is None else f" ± {100 * deviation:.2f}")
