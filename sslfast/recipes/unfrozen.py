"""The row of the table whose backbone has learnt, too: what it needs, looked at early, and its score."""

from dataclasses import dataclass
from pathlib import Path

import torch

from sslfast.data import Dataset, holdout, load
from sslfast.errors import DataError, UsageError
from sslfast.evaluate import predict_probabilities
from sslfast.features import FeatureStore, extract
from sslfast.models import Backbone, architecture_of, load_backbone
from sslfast.models.head import load_head
from sslfast.recipes.rows import Row
from sslfast.recipes.unfreeze import Images, Unfreezing, check_images, matching_images, unfreeze
from sslfast.search import HeadSpace, SearchResult
from sslfast.search.train import Recipe

UNFROZEN = "tuned head, backbone unfrozen"


@dataclass(frozen=True)
class Ready:
    """What unfreezing needs besides a winner, looked at before anything is searched.

    Args:
        backbone: that made the features.
        dataset: whose features the store holds.
        test: whose features the test store holds, or None.
    """

    backbone: Backbone
    dataset: Dataset
    test: Dataset | None


def prepare(
    backbone_file: Path,
    store: FeatureStore,
    test_store: FeatureStore | None,
    space: HeadSpace,
    *,
    data: str | None,
    data_dir: Path | None,
) -> Ready:
    """Load the backbone, find the images, and see that the stores are of these.

    Args:
        backbone_file: the checkpoint that the features were extracted with.
        store: training features.
        test_store: test features, or None.
        space: that is going to be searched.
        data: the data set's name, as ``sslfast.data.load`` takes it; by default what the store recorded.
        data_dir: where it lies.

    Raises:
        UsageError: the space has other optimisers than SGD.
        DataError: the images or the backbone are not those of the features.
        SslfastError: one of them cannot be read.
    """
    if space.optimizers != ("sgd",):
        raise UsageError(f"unfreezing trains with SGD only; --optimizers are {' '.join(space.optimizers)}")
    backbone = load_backbone(architecture_of(backbone_file), backbone_file).eval()
    if backbone.fingerprint() != store.manifest["backbone"]["fingerprint"]:
        raise DataError(f"{backbone_file} is not the backbone that {store.path} was extracted with")

    def images_of(one: FeatureStore) -> Dataset:
        found = one.manifest["dataset"]
        dataset = load(data or found["name"], found["split"], root=data_dir)
        check_images(dataset, one)
        return dataset

    return Ready(backbone, images_of(store), None if test_store is None else images_of(test_store))


def unfrozen_row(
    ready: Ready,
    store: FeatureStore,
    test_store: FeatureStore | None,
    winner: SearchResult,
    space: HeadSpace,
    unfreezing: Unfreezing,
    *,
    val_fraction: float,
    classes: tuple[str, ...],
    device: str,
    seeds: int = 1,
    resume: bool,
) -> Row:
    """Unfreeze the backbone under the winner of a search, in the folder ``unfrozen`` of its run, and score it.

    Args:
        ready: what ``prepare`` gave for these stores.
        store: training features.
        test_store: test features, or None.
        winner: the search's result.
        space: that it searched.
        unfreezing: when.
        val_fraction: as in the search.
        classes: class names.
        device: where to train.
        seeds: of how many searches this is the best one; the row says so.
        resume: read what is finished.

    Raises:
        DataError: others of the images can be read now.
        UsageError: see ``unfreeze``.
    """
    recipe = Recipe(**{key: value for key, value in winner.recipe.items() if key != "pruner"})
    unfreezing.last(recipe.epochs)
    size = ready.backbone.preprocess.size
    labels = store.labels
    assert labels is not None and winner.best.epoch is not None
    rest, held_out = (torch.as_tensor(part) for part in holdout(labels.numpy(), val_fraction, recipe.seed))
    dataset = matching_images(ready.dataset, store, size)
    images = Images(dataset, labels, rest, held_out, "flip" in store.views)
    out = winner.folder / "unfrozen"
    content = unfreeze(
        ready.backbone,
        images,
        store,
        space.spec(winner.best.params),
        recipe,
        unfreezing,
        out=out,
        classes=classes,
        number=winner.best.number,
        device=device,
        resume=resume,
    )
    score = None
    if test_store is not None and ready.test is not None:
        tested = matching_images(ready.test, test_store, size)
        changed = load_backbone(architecture_of(out / "backbone.safetensors"), out / "backbone.safetensors").eval()
        # Another test set has features of its own.
        folder = out / f"features-test-{test_store.manifest['dataset']['fingerprint'][:12]}"
        features = extract(changed, tested, folder, device=device).load("identity")
        head, _, _ = load_head(out / "head.safetensors")
        assert test_store.labels is not None
        predicted = predict_probabilities(head, features).argmax(1)
        score = float((predicted == test_store.labels).double().mean())
    first, last = content["learning"]
    detail = f"backbone learns in epochs {first + 1} to {last}; best epoch {content['epoch'] + 1}"
    name = UNFROZEN
    if seeds > 1:
        name, detail = f"{name}, best of {seeds} seeds", f"seed {recipe.seed} alone, no mean; {detail}"
    return Row(name, score, content["value"], detail, content["seconds"])
