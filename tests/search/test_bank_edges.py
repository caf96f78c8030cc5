"""HeadBank at the edges: no heads, more batch than rows, one feature, numbers that float32 can hardly hold, NaN."""

import math

import pytest
import torch

from sslfast._reference import head_bank as reference
from sslfast.models.head import HeadSpec
from sslfast.search.bank import HeadBank, Optimizer, can_use_half, first_weights, stream

HALVES = [False, pytest.param(True, marks=pytest.mark.skipif(not can_use_half(), reason="no bfloat16 products"))]
SPECS = [HeadSpec((), 0.0, 0.02), HeadSpec((17,), 0.3, 0.01), HeadSpec((40, 130), 0.5, 0.02)]


def rows(count, width, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, width, generator=generator)
    return features, torch.randint(classes, (count,), generator=generator), torch.arange(count)


def rates(specs, steps):
    return torch.tensor([[spec.learning_rate] * steps for spec in specs], dtype=torch.float64)


def by_definition(specs, features, labels, order, schedule, batch, classes, half=False, dtype=torch.float64):
    """Every head's weights after training by the reference's own gradients and update."""
    found = []
    for number, spec in enumerate(specs):
        widths = [features.shape[1], *spec.units, classes]
        weights = first_weights(widths, torch.Generator().manual_seed(stream(0, 2, number)))
        weights = [weight.to(dtype) for weight in weights]
        first = [torch.zeros_like(weight) for weight in weights]
        for step, part in enumerate(order.split(batch)):
            dropped, key = round(spec.dropout * 65536), stream(0, 3, number)
            x = features[part].to(dtype)
            grads, _ = reference.gradients(weights, x, labels[part], dropped, key, step, half)
            rate = float(schedule[number, step])
            reference.update("sgd", Optimizer().numbers(), rate, step, weights, first, first, grads)
        found.append(weights)
    return found


def check(bank, expected, tolerance=1e-5):
    for index, weights in enumerate(expected):
        for ours, theirs in zip(bank.weights(index), weights, strict=True):
            assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_a_bank_without_heads():
    features, labels, order = rows(10, 5, 3)
    bank = HeadBank([], 5, 3)
    assert bank.train(features, labels, order, torch.empty(0, 2), 5).shape == (0, 2)
    assert [found.shape for found in bank.evaluate(features, labels)] == [(0,), (0,)]


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(("count", "batch"), [(10, 64), (1, 1), (1, 1 << 40), (3000, 3000), (777, 700)])
def test_a_batch_is_as_large_as_the_rows_allow(count, batch, half):
    features, labels, order = rows(count, 20, 4)
    steps = -(-count // batch)
    bank = HeadBank(SPECS, 20, 4, half=half)
    bank.train(features, labels, order, rates(SPECS, steps), batch)
    expected = by_definition(SPECS, features, labels, order, rates(SPECS, steps), batch, 4, half)
    check(bank, expected, 1e-4 if half else 1e-5)


def test_a_huge_batch_takes_memory_for_its_own_rows_only():
    features, labels, order = rows(1 << 16, 64, 4)
    bank = HeadBank([HeadSpec((16,), 0.0, 0.1)], 64, 4)
    with torch.profiler.profile(profile_memory=True) as profile:
        bank.train(features, labels, order, torch.full((1, 1), 0.1, dtype=torch.float64), 1 << 30)
    largest = max(event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")
    assert largest <= 2 * 4 * features.numel() + 4096  # its rows and their columns


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(("width", "classes", "units"), [(1, 2, (1,)), (1, 2, ()), (3, 17, (1, 1)), (1, 100, (16, 1))])
def test_one_feature_and_one_unit(width, classes, units, half):
    specs = [HeadSpec(units, 0.25, 0.05)]
    features, labels, order = rows(50, width, classes)
    bank = HeadBank(specs, width, classes, half=half)
    bank.train(features, labels, order, rates(specs, 4), 16)
    expected = by_definition(specs, features, labels, order, rates(specs, 4), 16, classes, half)
    check(bank, expected, 2e-3 if half else 1e-5)


def test_one_column_of_classes_has_nothing_to_learn():
    """The operator takes a single class; HeadBank asks for two."""
    bank = HeadBank([HeadSpec((16,), 0.0, 0.1)], 5, 2)
    place = bank._places[0]
    widths = [5, 16, 1]
    state = torch.zeros(reference.state_size(widths, "sgd"))
    reference.pack(first_weights(widths, torch.Generator().manual_seed(0)), state[: reference.parameter_count(widths)])
    table = bank._table([place])
    table[0, reference.FIRST_WIDTH + 1] = 1
    numbers = torch.tensor([[0.9, 0.999, 1e-8, 0.0, 1e-3]], dtype=torch.float64)
    before = state.clone()
    losses = torch.ops.sslfast.head_bank_train(
        torch.randn(8, 5), torch.zeros(8, dtype=torch.int64), torch.arange(8), table, numbers,
        torch.ones(1, 1, dtype=torch.float64), [state], 8, False,
    )  # fmt: skip
    assert losses.tolist() == [[0.0]] and torch.equal(state, before)


def test_subnormal_numbers_are_not_flushed_to_zero():
    """Features of 1e-40 times weights of 1e38: hidden units of ordinary size, or none at all."""
    features, labels, order = rows(64, 20, 4)
    features = features * 1e-40
    assert features.abs().max() < torch.finfo(torch.float32).tiny
    bank = HeadBank([HeadSpec((17,), 0.0, 0.1)], 20, 4)
    weights = bank.weights(0)
    weights[0] = weights[0] / weights[0].abs().max() * 1e38
    weights[2] *= 100  # so that the first loss says what the hidden units are
    bank.load(0, weights)
    losses = bank.train(features, labels, order, torch.zeros(1, 4, dtype=torch.float64), 16)[0]
    exact = [weight.double() for weight in weights]
    for step, part in enumerate(order.split(16)):
        _, loss = reference.gradients(exact, features[part].double(), labels[part], 0, 0, step, False)
        _, flushed = reference.gradients(exact, 0 * features[part].double(), labels[part], 0, 0, step, False)
        assert abs(losses[step] - loss) <= 1e-5 * loss < abs(loss - flushed)


def test_large_features_do_not_overflow_the_softmax():
    features, labels, order = rows(64, 20, 4)
    large = features * 1e4
    schedule = torch.full((3, 4), 1e-9, dtype=torch.float64)
    bank = HeadBank(SPECS, 20, 4)
    losses = bank.train(large, labels, order, schedule, 16)
    assert losses.isfinite().all() and losses.max() > 100
    check(bank, by_definition(SPECS, large, labels, order, schedule, 16, 4))


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_shows_in_every_head_from_its_step_on(value, half):
    features, labels, order = rows(64, 20, 4)
    features[40, 3] = value
    bank = HeadBank(SPECS, 20, 4, half=half)
    losses = bank.train(features, labels, order, rates(SPECS, 4), 16)
    assert losses[:, :2].isfinite().all()
    assert not losses[:, 3].isfinite().any()
    accuracies, _ = bank.evaluate(features, labels)
    assert accuracies.isnan().all()


def test_rows_that_are_not_named_do_not_matter():
    features, labels, order = rows(64, 20, 4)
    clean, spoilt = HeadBank(SPECS, 20, 4), HeadBank(SPECS, 20, 4)
    clean.train(features, labels, order[:48], rates(SPECS, 3), 16)
    features[48:] = math.nan
    spoilt.train(features, labels, order[:48], rates(SPECS, 3), 16)
    for index in range(3):
        assert all(map(torch.equal, clean.weights(index), spoilt.weights(index)))


@pytest.mark.parametrize("steps", [1, 1 << 31, (1 << 62) + 12345])
def test_noise_of_late_steps_is_the_definitions(steps):
    """A head that has done so many steps draws what the reference draws: no counter runs over."""
    spec = HeadSpec((48,), 0.4, 0.1)
    features, labels, order = rows(32, 20, 4)
    bank = HeadBank([spec], 20, 4)
    bank._places[0].steps = steps
    start = bank.weights(0)
    bank.train(features, labels, order, rates([spec], 1), 32)
    grads, _ = reference.gradients(
        [weight.double() for weight in start],
        features.double(),
        labels,
        round(0.4 * 65536),
        stream(0, 3, 0),
        steps,
        False,
    )
    for before, after, grad in zip(start, bank.weights(0), grads, strict=True):
        want = before - 0.1 * 1.9 * (grad + 1e-4 * before.double())
        assert (after - want).abs().max() <= 1e-5 * want.abs().max()


def test_heads_of_one_number_and_other_seeds_draw_other_noise():
    seen = {stream(seed, 3, number) for seed in range(50) for number in range(50)}
    assert len(seen) == 2500


def test_a_dropout_of_nearly_all_keeps_its_scale():
    """One activation of 65,536 is kept, 65,536 times as large."""
    spec = HeadSpec((1024,), 1 - 1e-9, 1e-7)
    features, labels, order = rows(512, 20, 4)
    bank = HeadBank([spec], 20, 4)
    start = [weight.double() for weight in bank.weights(0)]
    losses = bank.train(features, labels, order, rates([spec], 1), 512)
    kept = reference.noise(stream(0, 3, 0), 0, 0, 512, 1024) >= 65535
    assert 1 <= kept.sum() <= 40
    _, loss = reference.gradients(start, features.double(), labels, 65535, stream(0, 3, 0), 0, False)
    assert loss > 2 and abs(losses[0, 0] - loss) <= 1e-5 * loss


@pytest.mark.parametrize("name", reference.OPTIMIZERS)
def test_other_weights_begin_an_optimiser_anew(name):
    specs, optimizer = [HeadSpec((17,), 0.0, 0.01)], Optimizer(name)
    features, labels, order = rows(64, 20, 4)
    old, fresh = (HeadBank(specs, 20, 4, optimizers=optimizer) for _ in range(2))
    start = old.weights(0)
    old.train(features, labels, order.repeat(10), rates(specs, 40), 16)
    old.load(0, start)
    for bank in (old, fresh):
        bank.train(features, labels, order, rates(specs, 4), 16)
    assert all(map(torch.equal, old.weights(0), fresh.weights(0)))


def test_dropout_goes_on_where_other_weights_begin():
    spec, widths = HeadSpec((40, 30), 0.5, 0.01), [20, 40, 30, 4]
    features, labels, order = rows(64, 20, 4)
    features = features.double()
    bank = HeadBank([spec], 20, 4, optimizers=Optimizer("adam"), dtype=torch.float64)
    weights = [weight.double() for weight in first_weights(widths, torch.Generator().manual_seed(7))]
    for _ in range(2):  # 3 steps, and then 3 more
        bank.train(features, labels, order[:48], rates([spec], 3), 16)
        bank.load(0, weights)
    whole = HeadBank([spec], 20, 4, optimizers=Optimizer("adam"), dtype=torch.float64)
    whole.train(features, labels, order.repeat(2)[:96], rates([spec], 6), 16)
    whole.load(0, weights)
    bank.train(features, labels, order[:32], rates([spec], 2), 16)
    bank.train(features, labels, order[32:], rates([spec], 2), 16)
    whole.train(features, labels, order, rates([spec], 4), 16)
    assert all(map(torch.equal, bank.weights(0), whole.weights(0)))
    first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    for step, part in enumerate(order.split(16)):
        grads, _ = reference.gradients(
            weights, features[part], labels[part], 32768, stream(0, 3, 0), 6 + step, half=False
        )
        reference.update("adam", Optimizer("adam").numbers(), 0.01, step, weights, first, second, grads)
    check(bank, [weights], 1e-9)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adams_decays_are_not_taken_from_one_in_float32(name):
    """1 - 0.999 in float32 is off by 1e-5, and so would be every step."""
    specs, optimizer = [HeadSpec((), 0.0, 0.01)], Optimizer(name, weight_decay=0.1)
    features, labels, order = rows(64, 20, 4)
    bank = HeadBank(specs, 20, 4, optimizers=optimizer)
    weights = [weight.double() for weight in bank.weights(0)]
    start = [weight.clone() for weight in weights]
    first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    for step in range(20):
        grads, _ = reference.gradients(weights, features.double(), labels, 0, 0, step, half=False)
        reference.update(name, optimizer.numbers(), 0.01, step, weights, first, second, grads)
    bank.train(features, labels, order.repeat(20), rates(specs, 20), 64)
    for ours, exact, before in zip(bank.weights(0), weights, start, strict=True):
        assert (ours - exact).norm() <= 2e-6 * (exact - before).norm()
