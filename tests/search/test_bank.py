"""HeadBank against plain PyTorch: every optimiser, vector width and shape; and heads that know nothing of others."""

import math

import pytest
import torch
from banks import OPTIMIZERS
from torch import nn

from sslfast._reference import head_bank as reference
from sslfast.models.head import HeadSpec
from sslfast.search.bank import HeadBank, Optimizer, can_use_half, first_weights, stream

SPECS = [
    HeadSpec((), 0.0, 0.02),
    HeadSpec((17,), 0.3, 0.01),
    HeadSpec((64, 130), 0.5, 0.02),
    HeadSpec((100, 33, 65), 0.4, 0.005),
]


def rows(count, width, classes, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, width, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(classes, (count,), generator=generator)
    order = torch.randperm(count, generator=generator)
    return features, labels, order


class Dropped(nn.Module):
    """The bank's noise in a module of PyTorch's."""

    def __init__(self, layer, dropout, key):
        super().__init__()
        self.layer, self.dropped, self.key, self.step = layer, round(dropout * 65536), key, 0

    def forward(self, x):
        bits = reference.noise(self.key, self.step, self.layer, *x.shape)
        return x * (bits >= self.dropped) * (65536 / (65536 - self.dropped))


class Lars(torch.optim.SGD):
    """Nesterov's SGD along gradients that were made longer or shorter first; weights decay here, biases do not."""

    def __init__(self, parameters, decay, trust, **options):
        super().__init__(parameters, nesterov=True, **options)
        self.decay, self.trust = decay, trust

    @torch.no_grad()
    def step(self):
        for weight in self.param_groups[0]["params"]:
            if weight.dim() == 2:
                size, slope = weight.norm(), weight.grad.norm()
                weight.grad = (weight.grad + self.decay * weight) * (
                    self.trust * size / (slope + self.decay * size + 1e-8)
                )
        super().step()


def plain(spec, number, optimizer, width, classes, dtype, seed=0):
    widths = [width, *spec.units, classes]
    weights = first_weights(widths, torch.Generator().manual_seed(stream(seed, 2, number)))
    layers = []
    for index, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
        linear = nn.Linear(inputs, outputs, dtype=dtype)
        linear.weight.data.copy_(weights[2 * index])
        linear.bias.data.copy_(weights[2 * index + 1])
        layers += [linear]
        if index < len(spec.units):
            layers += [nn.ReLU(), Dropped(index, spec.dropout, stream(seed, 3, number))]
    network = nn.Sequential(*layers)
    decay, parameters = optimizer.weight_decay, network.parameters()
    if optimizer.name == "sgd":
        return network, torch.optim.SGD(parameters, momentum=0.9, nesterov=True, weight_decay=decay)
    if optimizer.name == "adam":
        return network, torch.optim.Adam(parameters, weight_decay=decay)
    if optimizer.name == "adamw":
        return network, torch.optim.AdamW(parameters, weight_decay=decay)
    return network, Lars(parameters, decay, optimizer.trust, momentum=0.9)


def train_plainly(spec, number, optimizer, features, labels, order, rates, classes, batch):
    network, steps = plain(spec, number, optimizer, features.shape[1], classes, features.dtype)
    losses = []
    for step, part in enumerate(order.split(batch)):
        for module in network:
            if isinstance(module, Dropped):
                module.step = step
        steps.param_groups[0]["lr"] = float(rates[step])
        steps.zero_grad()
        loss = nn.functional.cross_entropy(network(features[part]), labels[part])
        loss.backward()
        steps.step()
        losses.append(loss.item())
    return network, losses


def cosine(specs, steps):
    at = torch.arange(steps, dtype=torch.float64)
    rates = torch.tensor([spec.learning_rate for spec in specs], dtype=torch.float64)
    return rates[:, None] * 0.5 * (1 + torch.cos(math.pi * at / steps))


@pytest.fixture(params=[128, 256, 512])
def bits(request):
    before = torch.ops.sslfast.cpu_vector_bits(0)
    if torch.ops.sslfast.cpu_vector_bits(request.param) != request.param:
        torch.ops.sslfast.cpu_vector_bits(512)
        pytest.skip(f"this processor has no {request.param}-bit vectors")
    yield request.param
    torch.ops.sslfast.cpu_vector_bits(512)
    assert torch.ops.sslfast.cpu_vector_bits(0) >= before


@pytest.mark.parametrize(("width", "classes", "batch"), [(37, 10, 16), (64, 100, 64), (5, 2, 7), (130, 3, 100)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer.name)
def test_every_head_ends_as_plain_pytorch_ends_it_alone(bits, optimizer, width, classes, batch):
    features, labels, order = rows(150, width, classes)
    rates = cosine(SPECS, -(-150 // batch))
    bank = HeadBank(SPECS, width, classes, optimizers=optimizer, dtype=torch.float64)
    losses = bank.train(features, labels, order, rates, batch)
    for index, spec in enumerate(SPECS):
        network, expected = train_plainly(spec, index, optimizer, features, labels, order, rates[index], classes, batch)
        torch.testing.assert_close(losses[index], torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-11)
        for ours, theirs in zip(bank.weights(index), network.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_float32_follows_plain_pytorch(bits):
    specs = [HeadSpec((832, 768), 0.3, 0.006), HeadSpec((128,), 0.5, 0.02), HeadSpec((256, 576, 128), 0.4, 0.01)]
    features, labels, order = rows(640, 128, 10, torch.float32)
    rates = cosine(specs, 10)
    bank = HeadBank(specs, 128, 10)
    bank.train(features, labels, order, rates, 64)
    for index, spec in enumerate(specs):
        network, _ = train_plainly(spec, index, Optimizer(), features, labels, order, rates[index], 10, 64)
        for ours, theirs in zip(bank.weights(index), network.parameters(), strict=True):
            assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.skipif(not can_use_half(), reason="this processor does not multiply bfloat16")
def test_half_products_are_those_of_rounded_numbers():
    # One step: after several, a ReLU that flips makes any comparison of rounded sums loose.
    features, labels, order = rows(64, 70, 10, torch.float32)
    rates = cosine(SPECS, 1)
    bank = HeadBank(SPECS, 70, 10, half=True)
    start = [bank.weights(index) for index in range(4)]
    bank.train(features, labels, order, rates, 64)
    for index, spec in enumerate(SPECS):
        grads, _ = reference.gradients(
            [weight.double() for weight in start[index]],
            features[order].double(), labels[order], round(spec.dropout * 65536), stream(0, 3, index), 0, True,
        )  # fmt: skip
        full, _ = reference.gradients(
            [weight.double() for weight in start[index]],
            features[order].double(), labels[order], round(spec.dropout * 65536), stream(0, 3, index), 0, False,
        )  # fmt: skip
        for before, after, grad, exact in zip(start[index], bank.weights(index), grads, full, strict=True):
            moved = (before - after).double() / (spec.learning_rate * 1.9) - 1e-4 * before.double()
            assert (moved - grad).norm() <= 2e-3 * grad.norm() + 1e-5 * before.norm()
            assert (grad - exact).norm() <= 5e-2 * exact.norm()  # 2^-9 of each operand, and flips of ReLUs


def test_a_head_does_not_know_of_its_neighbours_nor_of_threads():
    features, labels, order = rows(200, 40, 10, torch.float32)
    rates = cosine(SPECS, 4)
    optimizers = OPTIMIZERS
    bank = HeadBank(SPECS, 40, 10, seed=5, optimizers=optimizers)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        losses = bank.train(features, labels, order, rates, 64)
        torch.set_num_threads(1)
        for index, spec in enumerate(SPECS):
            alone = HeadBank([spec], 40, 10, seed=5, optimizers=optimizers[index], numbers=[index])
            assert torch.equal(alone.train(features, labels, order, rates[index : index + 1], 64)[0], losses[index])
            assert all(map(torch.equal, alone.weights(0), bank.weights(index)))
    finally:
        torch.set_num_threads(before)


def test_a_head_stops_and_another_takes_its_place():
    features, labels, order = rows(200, 40, 10, torch.float32)
    rates = cosine(SPECS, 4)
    bank = HeadBank(SPECS, 40, 10)
    untouched = HeadBank(SPECS, 40, 10)
    bank.train(features, labels, order, rates, 64)
    untouched.train(features, labels, order, rates, 64)
    bank.stop(1)
    assert bank.running == [0, 2, 3]
    with pytest.raises(ValueError, match="place 1 was stopped"):
        bank.weights(1)
    bank.train(features, labels, order, rates[[0, 2, 3]], 64)
    untouched.train(features, labels, order, rates, 64)
    bank.replace(1, HeadSpec((48,), 0.2, 0.01), 9)
    bank.train(features, labels, order, rates, 64)
    untouched.train(features, labels, order, rates, 64)
    fresh = HeadBank([HeadSpec((48,), 0.2, 0.01)], 40, 10, numbers=[9])
    fresh.train(features, labels, order, rates[1:2], 64)
    assert all(map(torch.equal, bank.weights(1), fresh.weights(0)))
    for index in (0, 2, 3):
        assert all(map(torch.equal, bank.weights(index), untouched.weights(index)))


def test_steps_in_two_calls_are_those_of_one():
    features, labels, order = rows(192, 40, 10, torch.float32)
    rates = cosine(SPECS, 6)
    once, twice = (HeadBank(SPECS, 40, 10, optimizers=OPTIMIZERS) for _ in range(2))
    once.train(features, labels, order, rates, 32)
    twice.train(features, labels, order[:96], rates[:, :3], 32)
    twice.train(features, labels, order[96:], rates[:, 3:], 32)
    for index in range(4):
        assert all(map(torch.equal, once.weights(index), twice.weights(index)))


def test_more_rows_than_are_laid_out_at_a_time(bits):
    features, labels, order = rows(9000, 16, 3, torch.float32)
    rates = cosine(SPECS, 9000)
    one = HeadBank(SPECS[:2], 16, 3)
    one.train(features, labels, order, rates[:2, :9000], 1)
    two = HeadBank(SPECS[:2], 16, 3)
    for step in range(0, 9000, 300):
        two.train(features, labels, order[step : step + 300], rates[:2, step : step + 300], 1)
    for index in range(2):
        assert all(map(torch.equal, one.weights(index), two.weights(index)))


def test_views_are_rows_of_their_own_with_the_labels_of_the_first():
    features, labels, _ = rows(60, 20, 4, torch.float32)
    views = torch.stack([features, features.flip(1)])
    order = torch.randperm(120, generator=torch.Generator().manual_seed(3))
    rates = cosine(SPECS, 4)
    one, two = HeadBank(SPECS, 20, 4), HeadBank(SPECS, 20, 4)
    one.train(views, labels, order, rates, 30)
    two.train(views.flatten(0, 1), labels.repeat(2), order, rates, 30)
    for index in range(4):
        assert all(map(torch.equal, one.weights(index), two.weights(index)))


def test_evaluation_is_plain_pytorch_without_dropout(bits):
    features, labels, order = rows(200, 40, 10, torch.float32)
    bank = HeadBank(SPECS, 40, 10)
    bank.train(features, labels, order, cosine(SPECS, 4), 64)
    accuracies, losses = bank.evaluate(features, labels)
    for index, _ in enumerate(SPECS):
        weights = [weight.double() for weight in bank.weights(index)]
        x = features.double()
        for layer in range(0, len(weights), 2):
            x = x @ weights[layer].t() + weights[layer + 1]
            if layer < len(weights) - 2:
                x = x.relu()
        assert accuracies[index] == (x.argmax(1) == labels).double().mean()
        torch.testing.assert_close(losses[index], nn.functional.cross_entropy(x, labels), rtol=1e-5, atol=0)


def test_a_head_that_diverged_has_no_accuracy_and_its_neighbours_have():
    features, labels, order = rows(200, 40, 10, torch.float32)
    bank = HeadBank(SPECS, 40, 10)
    rates = cosine(SPECS, 4)
    rates[2] = 1e30
    losses = bank.train(features, labels, order, rates, 64)
    accuracies, _ = bank.evaluate(features, labels)
    assert accuracies.isnan().tolist() == [False, False, True, False]
    assert losses[[0, 1, 3]].isfinite().all()


def test_dropout_drops_the_share_it_says_anew_in_every_place_and_step():
    drops = reference.noise(123, 0, 0, 400, 300) < round(0.3 * 65536)
    assert abs(drops.double().mean() - 0.3) < 4 * math.sqrt(0.21 / drops.numel())
    for other in (
        reference.noise(123, 1, 0, 400, 300),
        reference.noise(123, 0, 1, 400, 300),
        reference.noise(124, 0, 0, 400, 300),
    ):
        both = (drops & (other < round(0.3 * 65536))).double().mean()
        assert abs(both - 0.09) < 4 * math.sqrt(0.09 * 0.91 / drops.numel())
    for shift in (drops.roll(1, 0), drops.roll(1, 1), drops.roll(16, 1), drops.roll(2, 0)):
        assert abs((drops & shift).double().mean() - 0.09) < 4 * math.sqrt(0.09 * 0.91 / drops.numel())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, y, o, r: (x[:, :5], y, o, r), r"features must be \(rows, 20\)"),
        (lambda x, y, o, r: (x.double(), y, o, r), "features must be torch.float32"),
        (lambda x, y, o, r: (x[:0], y[:0], o[:0], r), "not empty"),
        (lambda x, y, o, r: (x, y[:-1], o, r), "labels must be int64, one for each of 60 rows"),
        (lambda x, y, o, r: (x, y.int(), o, r), "labels must be int64"),
        (lambda x, y, o, r: (x, y + 1, o, r), "labels must lie from 0 to 3, got 1 to 4"),
        (lambda x, y, o, r: (x, y - 1, o, r), "got -1 to 2"),
        (lambda x, y, o, r: (x, y, o + 1, r), "order must name rows from 0 to 59, got 1 to 60"),
        (lambda x, y, o, r: (x, y, o[:0], r), "there must be a row"),
        (lambda x, y, o, r: (x, y, o, r[:3]), r"rates must be \(4, 2\)"),
        (lambda x, y, o, r: (x, y, o.int(), r), r"order must be int64 of one dimension, got torch.int32"),
        (lambda x, y, o, r: (x, y, o.view(2, -1), r), "order must be int64 of one dimension"),
        (lambda x, y, o, r: (x, y, o, torch.full((4, 2), -0.1)), "rates must be at least 0 and finite"),
        (lambda x, y, o, r: (x, y, o, torch.full((4, 2), torch.nan)), "rates must be at least 0 and finite"),
    ],
)
def test_bad_rows(change, words):
    features, labels, order = rows(60, 20, 4, torch.float32)
    labels[0], labels[1] = 0, 3
    bank = HeadBank(SPECS, 20, 4)
    with pytest.raises(ValueError, match=words):
        bank.train(*change(features, labels, order, cosine(SPECS, 2)), 30)


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: [weight.mT if weight.dim() == 2 else weight for weight in weights],
        lambda weights: weights[:2],
        lambda weights: [*weights, weights[-1]],
        lambda weights: [weights[0][:, 1:], *weights[1:]],
    ],
    ids=["transposed", "half", "one more", "narrower"],
)
def test_weights_that_do_not_fit_a_head_are_not_loaded(change):
    bank = HeadBank(SPECS, 20, 4)
    before = bank.weights(1)
    with pytest.raises(ValueError, match=r"the weights of the head at place 1 have the shapes \["):
        bank.load(1, change(before))
    assert all(map(torch.equal, bank.weights(1), before))


def test_a_head_has_the_optimiser_that_its_spec_names():
    features, labels, order = rows(60, 20, 4, torch.float32)
    spec = HeadSpec((16,), 0.0, 0.01, "adam")
    named, given = HeadBank([spec], 20, 4), HeadBank([spec], 20, 4, optimizers=Optimizer("adam"))
    other = HeadBank([spec], 20, 4, optimizers=Optimizer("sgd"))
    for bank in (named, given, other):
        bank.train(features, labels, order, cosine([spec], 2), 30)
    assert all(map(torch.equal, named.weights(0), given.weights(0)))
    assert not torch.equal(named.weights(0)[0], other.weights(0)[0])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (HeadSpec((8,), 1.0, 0.1), r"dropout must lie in \[0, 1\), got 1.0"),
        (HeadSpec((8,), -0.1, 0.1), "dropout must lie"),
        (HeadSpec((8,), math.nan, 0.1), "dropout must lie"),
        (HeadSpec((8, 0), 0.1, 0.1), "at least 1 unit"),
    ],
)
def test_heads_that_cannot_be(spec, words):
    with pytest.raises(ValueError, match=words):
        HeadBank([spec], 20, 4)
    with pytest.raises(ValueError, match=words):
        HeadBank(SPECS, 20, 4).replace(1, spec, 7)


def test_bad_banks():
    with pytest.raises(ValueError, match="optimizer must be one of sgd, adam, adamw, lars, got 'rmsprop'"):
        Optimizer("rmsprop")
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\), got 1.0"):
        Optimizer(momentum=1.0)
    with pytest.raises(ValueError, match="two classes"):
        HeadBank(SPECS, 20, 1)
    with pytest.raises(ValueError, match="half needs dtype float32"):
        HeadBank(SPECS, 20, 4, dtype=torch.float64, half=True)
    with pytest.raises(ValueError, match="4 heads need as many optimizers and numbers, got 4 and 1"):
        HeadBank(SPECS, 20, 4, numbers=[1])


def test_the_operators_hold_their_schemas_and_compile():
    bank = HeadBank(SPECS[:2], 20, 4)
    features, labels, order = rows(60, 20, 4, torch.float32)
    places = [bank._places[0], bank._places[1]]
    numbers = torch.tensor([place.optimizer.numbers() for place in places], dtype=torch.float64)
    states = [place.state for place in places]
    table = bank._table(places)
    train = (features, labels, order, table, numbers, cosine(SPECS[:2], 2), states, 30, False)
    torch.library.opcheck(torch.ops.sslfast.head_bank_train.default, train)
    torch.library.opcheck(torch.ops.sslfast.head_bank_evaluate.default, (features, labels, table, states, False))
    expected = [state.clone() for state in states]
    want = torch.ops.sslfast.head_bank_train(*train[:6], expected, 30, False)
    got = torch.compile(torch.ops.sslfast.head_bank_train, fullgraph=True)(*train)
    assert torch.equal(got, want)
    assert all(map(torch.equal, states, expected))
