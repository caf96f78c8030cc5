import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from sslfast.errors import IntegrityError
from sslfast.models.head import Head, HeadSpec, load_head, save_head
from sslfast.search.train import (
    Recipe,
    dropout_mask,
    epoch_rows,
    first_weights,
    standardised,
    stream,
    train_head,
)


def plain_loop(spec, rows, recipe, number):
    """The same training, written as anybody would with modules, autograd and torch.optim; masks are ours."""
    noise = torch.Generator().manual_seed(stream(recipe.seed, 3, number))

    class Dropout(nn.Module):
        def forward(self, x):
            return x * dropout_mask(x.shape, spec.dropout, x.dtype, noise) if self.training and spec.dropout else x

    views, count, inputs = rows.features.shape
    widths = [inputs, *spec.units]
    layers = []
    for a, b in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(a, b), nn.ReLU(), Dropout()]
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
    rows = standardised((many, labels[:500]), val, 10, "float32")
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


@pytest.mark.parametrize("dropout", [0.0, 0.3, 0.5])
def test_dropout_keeps_the_expectation(dropout):
    mask = dropout_mask(torch.Size((1000, 301)), dropout, torch.float32, torch.Generator().manual_seed(0))
    assert (mask == 0).float().mean() == pytest.approx(dropout, abs=0.003)
    assert mask.mean() == pytest.approx(1, abs=0.005)
    assert len(mask.unique()) == (2 if dropout else 1)


def test_bfloat16_products_do_not_change_the_accuracy(digits):
    recipe = Recipe(epochs=5)
    spec = HeadSpec((256, 128), 0.3, 0.02)
    values = [train_head(spec, standardised(*digits, 10, dtype), recipe).value for dtype in ("float32", "bfloat16")]
    assert values[0] == pytest.approx(values[1], abs=0.01)


def test_training_that_diverges_has_no_value(digits):
    trained = train_head(HeadSpec((128, 128, 128), 0.3, 1e9), standardised(*digits, 10, "float32"), Recipe(epochs=2))
    assert math.isnan(trained.value)


def test_the_head_in_the_file_scores_what_training_said(digits, tmp_path):
    spec = HeadSpec((128,), 0.5, 0.02)
    rows = standardised(*digits, 10, "float32")
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
    rows = standardised((features, labels), val, 10, "float32")
    assert rows.std[0] == 1
    assert float(rows.features[0, :, 0].abs().max()) < 0.1
    assert isinstance(
        train_head(HeadSpec((), 0.0, 0.01), rows, Recipe(epochs=1)).head(rows, HeadSpec((), 0, 0.01)), Head
    )
