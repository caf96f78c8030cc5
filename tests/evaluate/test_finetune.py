"""Fine-tuning and frozen transfer: what learns, what stands still, what each fault does, what a kill changes."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from sslfast.data import holdout, load
from sslfast.errors import DataError, DivergedError, SslfastError, UsageError
from sslfast.evaluate.faults import Faults
from sslfast.evaluate.finetune import FinetuneConfig, finetune, macro_f1, noise_and_flips
from sslfast.evaluate.finetuned import FinetunedModel, batches, predict_logits
from sslfast.models import Preprocess, load_backbone
from sslfast.run import Run

QUICK = FinetuneConfig(mode="transfer", epochs=3, batch_size=64, learning_rate=1e-2, dtype="float32")


@pytest.fixture(scope="module")
def images():
    digits = load("digits", "train")
    rest, held_out = holdout(digits.labels, 0.3, 0)
    return digits.subset(rest[:160]), digits.subset(held_out[:100])


@pytest.fixture(scope="module")
def test_images():
    return load("digits", "test").subset(np.arange(80))


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return load_backbone("resnet-small", preprocess=Preprocess(8, (0.3, 0.3, 0.3), (0.4, 0.4, 0.4))).eval()


def trained(folder, backbone, images, config=QUICK, **more):
    with Run(folder, {}, resume=True) as run:
        return finetune(backbone, *images, config, run, device="cpu", **more)


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_transfer_is_adam_on_a_linear_layer_after_a_relu(tmp_path, backbone, images):
    result = trained(tmp_path / "run", backbone, images)
    train, val = images
    with torch.no_grad():
        torch.manual_seed(QUICK.seed)
        head = nn.Linear(backbone.features, 10)
        x, y = (backbone(backbone.preprocess(torch.from_numpy(part.images(np.arange(len(part)))))) for part in images)
    optimizer = torch.optim.Adam(head.parameters(), QUICK.learning_rate)
    labels = torch.from_numpy(train.labels)
    accuracies = []
    for epoch in range(QUICK.epochs):
        order = np.random.default_rng([QUICK.seed, epoch])
        order.integers(2**62)
        for rows in np.array_split(order.permutation(len(train)), 3):
            optimizer.zero_grad()
            F.cross_entropy(head(F.relu(x[rows])), labels[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            right = head(F.relu(y)).argmax(1) == torch.from_numpy(val.labels)
        accuracies.append(float(right.double().mean()))
    assert [line["val_accuracy"] for line in result.history] == pytest.approx(accuracies, abs=0.011)
    assert result.history[-1]["val_accuracy"] > 0.2  # chance is 0.1
    torch.testing.assert_close(result.last.head[1].weight, head.weight, rtol=1e-3, atol=1e-4)


def test_what_is_frozen_stands_still_to_the_bit(tmp_path, backbone, images):
    before = state(backbone)
    frozen = trained(tmp_path / "frozen", backbone, images)
    assert same(state(frozen.last.backbone), before)
    tuned = trained(tmp_path / "tuned", backbone, images, FinetuneConfig(epochs=1, learning_rate=1e-3, dtype="float32"))
    changed = state(tuned.last.backbone)
    assert not torch.equal(changed["network.conv1.weight"], before["network.conv1.weight"])
    assert not torch.equal(changed["network.bn1.running_mean"], before["network.bn1.running_mean"])
    assert same(state(backbone), before)  # the caller's is a copy


def test_a_score_depends_on_no_other_image(tmp_path, backbone, images, test_images):
    result = trained(tmp_path / "run", backbone, images)
    before = state(result.model)
    whole = result.predict(test_images, device="cpu")
    assert same(state(result.model), before)
    alone = [int(result.predict(test_images.subset([row]), device="cpu")) for row in range(10)]
    assert alone == whole[:10].tolist()


def test_the_best_epoch_is_kept(tmp_path, backbone, images):
    result = trained(tmp_path / "run", backbone, images, FinetuneConfig(epochs=4, learning_rate=3e-2, dtype="float32"))
    values = [line["val_accuracy"] for line in result.history]
    assert result.epoch == values.index(max(values)) and result.val_accuracy == max(values)
    labels = torch.from_numpy(images[1].labels)
    for which, expected in (("best", max(values)), ("last", values[-1])):
        predicted = result.predict(images[1], which, device="cpu")
        assert float((predicted == labels).double().mean()) == expected


def test_the_learning_rate_falls_where_the_validation_loss_does_not(tmp_path, backbone, images):
    config = FinetuneConfig("transfer", epochs=30, learning_rate=3.0, factor=0.5, patience=1, dtype="float32")
    history = trained(tmp_path / "run", backbone, images, config).history
    rate, best, waited = config.learning_rate, np.inf, 0
    for line in history:
        assert line["learning_rate"] == pytest.approx(rate)
        if line["val_loss"] < best * (1 - 1e-4):
            best, waited = line["val_loss"], 0
        else:
            waited += 1
        if waited > config.patience:
            rate, waited = rate * config.factor, 0
    assert rate < config.learning_rate  # or nothing was tested


@pytest.mark.parametrize("mode", ["finetune", "transfer"])
def test_a_broken_training_ends_like_an_unbroken_one(tmp_path, backbone, images, mode):
    config = FinetuneConfig(mode, epochs=4, learning_rate=1e-2, patience=0, dtype="float32")
    whole = trained(tmp_path / "whole", backbone, images, config)

    def stop(epoch, model):
        if epoch == 2:
            raise KeyboardInterrupt
        return {"mark": epoch}

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "broken", backbone, images, config, save_seconds=0.0, after_epoch=stop)
    resumed = trained(tmp_path / "broken", backbone, images, config)
    assert [line.get("mark") for line in resumed.history] == [0, 1, None, None]
    for one, other in ((whole.model, resumed.model), (whole.last, resumed.last)):
        assert same(state(one), state(other))
    for line in (*whole.history, *resumed.history):
        line.pop("seconds")
        line.pop("mark", None)
    assert whole.history == resumed.history
    finished = trained(tmp_path / "broken", backbone, images, config)  # nothing is left to do
    assert same(state(finished.model), state(resumed.model)) and len(finished.history) == 4


def test_a_random_layer_is_frozen_with_the_backbone(tmp_path, backbone, images):
    faults = Faults(random_layer=50)
    result = trained(tmp_path / "run", backbone, images, faults=faults)
    torch.manual_seed(QUICK.seed)
    first = FinetunedModel(backbone, 10, faults=faults)
    assert result.last.between.weight.shape == (50, backbone.features)
    assert torch.equal(result.last.between.weight, first.between.weight)
    tuned = trained(
        tmp_path / "tuned",
        backbone,
        images,
        FinetuneConfig(epochs=1, learning_rate=1e-2, dtype="float32"),
        faults=faults,
    )
    assert not torch.equal(tuned.last.between.weight, first.between.weight)


def test_the_wrong_input_is_torchvisions():
    from torchvision.transforms import v2

    images = torch.randint(0, 256, (2, 96, 120, 3), dtype=torch.uint8)
    got = Faults(wrong_input=224).preprocess(Preprocess(96, (0, 0, 0), (1, 1, 1)))(images)
    steps = v2.Compose(
        [v2.Resize(232, antialias=True), v2.CenterCrop(224), v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    )
    want = steps(images.permute(0, 3, 1, 2).float() / 255)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    right = Preprocess(96, (0, 0, 0), (1, 1, 1))
    assert Faults().preprocess(right) is right


def test_training_mode_at_test_moves_statistics_and_lets_images_meet(tmp_path, backbone, images, test_images):
    faults = Faults(training_mode_at_test=True)
    result = trained(tmp_path / "run", backbone, images, faults=faults)
    before = state(result.model)
    logits = predict_logits(result.model, test_images, faults=faults)
    assert not torch.equal(
        state(result.model)["backbone.network.bn1.running_mean"], before["backbone.network.bn1.running_mean"]
    )
    fewer = predict_logits(result.model, test_images.subset(np.arange(30)), faults=faults)
    assert not torch.allclose(logits[:30], fewer, atol=1e-3)


def test_frozen_statistics_move_only_under_that_fault(tmp_path, backbone, images):
    result = trained(tmp_path / "run", backbone, images, faults=Faults(frozen_batch_norm_learns=True))
    before, after = state(backbone), state(result.last.backbone)
    assert torch.equal(after["network.conv1.weight"], before["network.conv1.weight"])
    assert not torch.equal(after["network.bn1.running_var"], before["network.bn1.running_var"])


def test_a_test_split_is_not_chosen_on(tmp_path, backbone, images, test_images):
    with pytest.raises(DataError, match="split test"):
        trained(tmp_path / "run", backbone, (images[0], test_images))
    trained(tmp_path / "fault", backbone, (images[0], test_images), faults=Faults(swapped_splits=True))


def test_training_images_do_not_validate(tmp_path, backbone, images):
    with pytest.raises(DataError, match="in training and in validation"):
        trained(tmp_path / "run", backbone, (images[0], images[0].subset(np.arange(20))))


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_state(tmp_path, backbone, images):
    config = FinetuneConfig(epochs=3, learning_rate=1e30, dtype="float32")
    with pytest.raises(DivergedError, match="epoch 1, step 2.*lower learning rate"):
        trained(tmp_path / "run", backbone, images, config)
    assert issubclass(DivergedError, SslfastError)


@pytest.mark.parametrize(
    "bad", [{"mode": "both"}, {"epochs": 0}, {"batch_size": 1}, {"learning_rate": 0.0}, {"factor": 2.0}, {"head": "x"}]
)
def test_options_that_make_no_sense(bad):
    with pytest.raises(UsageError):
        FinetuneConfig(**bad)


def test_no_batch_is_a_single_image(tmp_path, backbone, images):
    for count in range(1, 30):
        for batch_size in range(2, 9):
            sizes = [len(part) for part in batches(np.arange(count), batch_size)]
            assert sum(sizes) == count and max(sizes) - min(sizes) <= 1
            assert min(sizes) >= min(2, count) and max(sizes) <= max(batch_size, 3 if count % 2 else 2)
    train, val = images
    odd = train.subset(np.arange(5)), val  # maps of one pixel: a single image would have no variance
    result = trained(tmp_path / "run", backbone, odd, FinetuneConfig(epochs=1, batch_size=2, dtype="float32"))
    assert result.history[0]["steps"] == 2


def test_nothing_to_classify_is_an_error(tmp_path, backbone, images, test_images):
    result = trained(tmp_path / "run", backbone, images)
    with pytest.raises(DataError, match="no images"):
        result.predict(test_images.subset([]), device="cpu")


def test_labels_that_stand_for_no_class_are_refused(tmp_path, backbone, images):
    for bad in (-1, 10):
        train = copy.copy(images[0])
        train.labels = np.where(np.arange(len(train)) == 7, bad, train.labels)
        with pytest.raises(DataError, match="0 to 9"):
            trained(tmp_path / "run", backbone, (train, images[1]))


def test_images_that_cannot_be_read_are_told_and_never_skipped_in_a_test(tmp_path, backbone, capsys):
    for number in range(8):
        place = tmp_path / "set" / "train" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (30 * number, 0, 0)).save(place / f"{number}.png")
    files = load(f"imagefolder:{tmp_path / 'set'}", "train")
    torn = tmp_path / "set" / "train" / "a" / "2.png"
    torn.write_bytes(torn.read_bytes()[:45])
    left = [row for row, name in enumerate(files.ids) if "2.png" not in name]
    both = files.subset([*left[:3], files.ids.index(str(torn))]), files.subset(left[3:])
    result = trained(tmp_path / "run", backbone, both, QUICK)
    said = capsys.readouterr().err
    assert "1 unreadable images of train were left out" in said and "2.png" in said
    with pytest.raises(DataError, match="2.png"):
        result.predict(files, device="cpu")


def test_noise_and_flips():
    torch.manual_seed(0)
    image = torch.zeros(4, 4, 3, dtype=torch.uint8)
    image[0, 0] = 255
    made = noise_and_flips(image.expand(4000, 4, 4, 3).contiguous())
    corners = torch.stack([made[:, y, x, 0] > 128 for y, x in ((0, 0), (0, 3), (3, 0), (3, 3))], 1)
    assert bool((corners.sum(1) == 1).all())
    assert corners.float().mean(0).tolist() == pytest.approx([0.25] * 4, abs=0.03)
    assert float(made[:, 1:3, 1:3].float().square().mean().sqrt()) == pytest.approx(255 * 0.05 / 2**0.5, rel=0.05)


def test_macro_f1_is_the_plain_mean_over_classes():
    labels, predicted = torch.tensor([0, 0, 0, 1, 2]), torch.tensor([0, 0, 1, 1, 1])
    expected = (2 * 2 / (3 + 2) + 2 * 1 / (1 + 3) + 0.0) / 3  # a fourth class neither occurs nor is predicted
    assert macro_f1(labels, predicted, 4) == pytest.approx(expected)


def test_a_head_of_convolutions_sees_maps(tmp_path, backbone, images):
    config = FinetuneConfig(
        "transfer", epochs=3, learning_rate=1e-2, head="convolutions", augmentation="noise-and-flips", dtype="float32"
    )
    result = trained(tmp_path / "run", backbone, images, config)
    assert same(state(result.last.backbone), state(backbone))
    assert result.history[-1]["loss"] < result.history[0]["loss"] - 0.3
