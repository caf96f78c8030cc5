import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from sslfast._reference.head_bank import noise
from sslfast.errors import IntegrityError
from sslfast.models.head import Head, HeadSpec, load_head, save_head
from sslfast.search.bank import can_use_half, first_weights, stream
from sslfast.search.sources import standardised
from sslfast.search.train import Recipe, epoch_rows, train_head, train_heads


def plain_loop(spec, rows, recipe, number):
    """The same training, written as anybody would with modules, autograd and torch.optim; masks are ours."""
    dropped, steps_done = round(spec.dropout * 65536), 0

    class Dropout(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            if not self.training:
                return x
            bits = noise(stream(recipe.seed, 3, number), steps_done, self.layer, *x.shape)
            return x * (bits >= dropped) * (65536 / (65536 - dropped))

    views, count, inputs = rows.features.shape
    widths = [inputs, *spec.units]
    layers = []
    for index, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        layers += [nn.Linear(a, b), nn.ReLU(), Dropout(index)]
    net = nn.Sequential(*layers, nn.Linear(widths[-1], rows.classes))
    start = torch.Generator().manual_seed(stream(recipe.seed, 2, number))
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), first_weights([*widths, rows.classes], start), strict=True):
            parameter.copy_(value)
    optimiser = torch.optim.SGD(
        net.parameters(), spec.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True
    )
    steps = recipe.epochs * math.ceil(count / recipe.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    accuracies = []
    for epoch in range(recipe.epochs):
        order, view = epoch_rows(recipe.seed, epoch, views, count)
        net.train()
        for index, chosen in zip(order.split(recipe.batch_size), view.split(recipe.batch_size), strict=True):
            loss = nn.functional.cross_entropy(net(rows.features[chosen, index]), rows.labels[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            steps_done += 1
        net.eval()
        with torch.no_grad():
            right = net(rows.validation_features).argmax(1) == rows.validation_labels
        accuracies.append(int(right.sum()) / len(right))
    return net, accuracies


@pytest.mark.parametrize(
    "spec", [HeadSpec((), 0.0, 0.02), HeadSpec((128,), 0.4, 0.02), HeadSpec((192, 130, 64), 0.3, 0.01)]
)
@pytest.mark.parametrize("views", [1, 2])
def test_training_equals_a_plain_torch_loop(digits, spec, views):
    (features, labels), val = digits
    many = features[:500] if views == 1 else torch.stack([features[:500], features[:500].flip(1)])
    rows = standardised((many, labels[:500]), val, 10)
    recipe = Recipe(epochs=2, batch_size=48, seed=3)  # 500 = 10 x 48 + 20: the last batch is a small one
    ours = train_head(spec, rows, recipe, 5)
    net, accuracies = plain_loop(spec, rows, recipe, 5)
    assert ours.accuracies == pytest.approx(accuracies, abs=1 / len(val[1]) + 1e-9)
    if ours.epoch == 1:  # the weights of the last epoch are the best ones
        for mine, theirs in zip(ours.weights, net.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs.detach(), rtol=1e-4, atol=1e-5)


def test_every_row_is_seen_once_per_epoch():
    order, view = epoch_rows(0, 1, 2, 1001)
    assert sorted(order.tolist()) == list(range(1001))
    assert 400 < int(view.sum()) < 600
    assert not torch.equal(order, epoch_rows(0, 2, 2, 1001)[0])


def test_heads_that_train_together_end_as_each_alone_and_one_may_be_stopped(digits):
    rows, recipe = standardised(*digits, 10), Recipe(epochs=3)
    jobs = [(4, HeadSpec((128,), 0.3, 0.02)), (7, HeadSpec((64, 64), 0.5, 0.01)), (9, HeadSpec((), 0.0, 1e9))]
    seen = []

    def on_epoch(number, epoch, accuracy):
        seen.append((number, epoch, accuracy))
        return not (number == 7 and epoch == 1)

    together = train_heads(jobs, rows, recipe, on_epoch)
    alone = train_head(jobs[0][1], rows, recipe, 4)
    assert together[4].accuracies == alone.accuracies
    assert all(map(torch.equal, together[4].weights, alone.weights))
    assert together[7].accuracies == train_head(jobs[1][1], rows, recipe, 7).accuracies[:2]
    assert math.isnan(together[9].value)
    assert [(number, epoch) for number, epoch, _ in seen if number != 9] == [(4, 0), (7, 0), (4, 1), (7, 1), (4, 2)]


@pytest.mark.skipif(not can_use_half(), reason="this processor does not multiply bfloat16")
def test_bfloat16_products_do_not_change_the_accuracy(digits):
    spec = HeadSpec((256, 128), 0.3, 0.02)
    rows = standardised(*digits, 10)
    values = [train_head(spec, rows, Recipe(epochs=5, dtype=dtype)).value for dtype in ("float32", "bfloat16")]
    assert values[0] == pytest.approx(values[1], abs=0.01)


def test_training_that_diverges_has_no_value(digits):
    trained = train_head(HeadSpec((128, 128, 128), 0.3, 1e9), standardised(*digits, 10), Recipe(epochs=2))
    assert math.isnan(trained.value)


def test_the_head_in_the_file_scores_what_training_said(digits, tmp_path):
    spec = HeadSpec((128,), 0.5, 0.02)
    rows = standardised(*digits, 10)
    trained = train_head(spec, rows, Recipe(epochs=3))
    save_head(trained.head(rows, spec), tmp_path / "head.safetensors", tuple("0123456789"), "abc", {"trial": "4"})
    head, classes, fingerprint = load_head(tmp_path / "head.safetensors")
    right = head(digits[1][0]).argmax(1) == digits[1][1]
    assert int(right.sum()) / len(right) == trained.value
    assert (head.spec, classes, fingerprint) == (spec, tuple("0123456789"), "abc")
    assert not head.training


@pytest.mark.parametrize(
    "change", [{"spec": None}, {"spec": "[]"}, {"classes": '["a"]'}, {"backbone_fingerprint": None}]
)
def test_a_head_that_lies_is_one_line(tmp_path, change):
    path = tmp_path / "head.safetensors"
    save_head(Head(4, 3, HeadSpec((2,), 0.5, 0.1)), path, ("a", "b", "c"), "abc")
    with safe_open(path, framework="pt") as handle:
        metadata, state = handle.metadata(), {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
    save_file(state, path, metadata={k: v for k, v in {**metadata, **change}.items() if v is not None})
    with pytest.raises(IntegrityError, match="is damaged"):
        load_head(path)


def test_a_constant_feature_does_no_harm(digits):
    (features, labels), val = digits
    features = features.clone()
    features[:, 0] = 1e6 / 3
    rows = standardised((features, labels), val, 10)
    assert rows.std[0] == 1
    assert float(rows.features[0, :, 0].abs().max()) < 0.1
    assert isinstance(
        train_head(HeadSpec((), 0.0, 0.01), rows, Recipe(epochs=1)).head(rows, HeadSpec((), 0, 0.01)), Head
    )
