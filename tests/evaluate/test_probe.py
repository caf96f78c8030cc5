"""Linear probes: the solution, the choice, the epoch rules, stores and tensors, and what is refused."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from sslfast.data import holdout
from sslfast.errors import DataError, UsageError
from sslfast.evaluate import ProbeConfig, fit_probe, linear_probe, predict_probabilities, score_probe

SHORT = ProbeConfig(epochs=8, batch_size=64, learning_rates=(0.001, 0.03))


def test_lbfgs_is_scikit_learns_on_all_training_rows(rows):
    (features, labels), test = rows
    strength = 0.3
    found = linear_probe((features[0], labels), test, solver="lbfgs", strengths=(strength,), max_iterations=500)
    mean, std = features[0].mean(0), features[0].std(0, unbiased=False)
    plain = LogisticRegression(C=strength, tol=1e-8, max_iter=2000)
    plain.fit(((features[0] - mean) / std).double().numpy(), labels.numpy())
    wanted = plain.predict_proba(((test[0] - mean) / std).double().numpy())
    ours = predict_probabilities(found.probe.head, test[0])
    assert torch.allclose(ours.double(), torch.from_numpy(wanted), atol=2e-3)
    assert found.accuracy == pytest.approx((wanted.argmax(1) == test[1].numpy()).mean(), abs=1 / 500)
    assert "fitted on 1,200; converged" in found.probe.detail


def test_c_is_the_best_on_rows_that_were_held_out(rows):
    (features, labels), test = rows
    train = features[0], labels
    rest, held = holdout(labels.numpy(), 0.1, 0)
    scores = {}
    for strength in (1e-6, 0.1):
        alone = fit_probe(
            (train[0][rest], labels[rest]),
            ProbeConfig("lbfgs", strengths=(strength,)),
            val=(train[0][held], labels[held]),
        )
        scores[strength] = alone.validation_accuracy
    chosen = linear_probe(train, test, solver="lbfgs", strengths=(1e-6, 0.1)).probe
    assert chosen.validation_accuracy == max(scores.values()) > min(scores.values())
    assert f"C {max(scores, key=scores.get):.3g} chosen from 2" in chosen.detail


def test_sgd_comes_to_the_solution_of_the_convex_problem(rows):
    """Without a penalty it goes where L-BFGS with a weak one goes."""
    train, test = rows
    sgd = linear_probe(train, test, ProbeConfig(epochs=40, batch_size=64, learning_rates=(0.01, 0.03)))
    convex = linear_probe(train, test, solver="lbfgs", strengths=(1e3,))
    assert abs(sgd.accuracy - convex.accuracy) < 0.02
    assert sgd.accuracy > 0.7


def test_the_last_epoch_is_trained_on_all_rows_and_the_best_one_is_kept_as_it_was(rows):
    train, test = rows
    last = linear_probe(train, test, SHORT).probe
    best = linear_probe(train, test, SHORT, epoch_rule="best").probe
    assert last.epoch_rule == "last epoch of 8" and last.detail.startswith("lr 0.03 chosen from 2, the largest,")
    assert best.epoch_rule.startswith("best epoch on held-out rows")
    assert best.validation_accuracy == max(line["validation_accuracy"] for line in best.curve)
    assert last.validation_accuracy == last.curve[-1]["validation_accuracy"]
    # The mean of the features it standardises by is that of 1,200 rows, or of 1,080.
    assert torch.allclose(last.head.mean, train[0].mean((0, 1)), atol=1e-5)
    rest, _ = holdout(train[1].numpy(), 0.1, 0)
    assert torch.allclose(best.head.mean, train[0][:, rest].mean((0, 1)), atol=1e-5)


def test_the_curve_falls_and_its_first_loss_is_that_of_an_untrained_head(rows):
    train, test = rows
    curve = linear_probe(train, test, SHORT, learning_rates=(1e-9,)).probe.curve
    assert curve[0]["train_loss"] == pytest.approx(math.log(5), abs=0.3)
    falling = [line["train_loss"] for line in linear_probe(train, test, SHORT).probe.curve]
    assert falling[-1] < 0.7 * falling[0] and len(falling) == 8


def test_the_loss_of_an_epoch_is_the_mean_over_rows_not_over_steps(rows):
    """72 rows in steps of 71 and 1, by a head that does not move."""
    (features, labels), _ = rows
    train = features[0, :80], labels[:80]
    probe = fit_probe(train, ProbeConfig(epochs=1, batch_size=71, learning_rates=(1e-12,), epoch_rule="best"))
    rest, _ = holdout(train[1].numpy(), 0.1, 0)
    assert len(rest) == 72
    with torch.inference_mode():
        wanted = torch.nn.functional.cross_entropy(probe.head(train[0][rest]), train[1][rest])
    assert probe.curve[0]["train_loss"] == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("solver", ["sgd", "lbfgs"])
def test_stores_loaded_or_streamed_give_what_tensors_give(rows, stores, solver):
    train, test = rows
    config = ProbeConfig(solver, 3, 64, (0.03,), strengths=(0.1,))
    wanted = linear_probe(train, test, config)
    loaded, streamed = (linear_probe(*stores, config, memory=memory) for memory in ("load", "stream"))
    for found in (loaded, streamed):
        assert found.probe.detail == wanted.probe.detail
        for one, other in zip(found.probe.head.parameters(), wanted.probe.head.parameters(), strict=True):
            assert torch.allclose(one, other, atol=1e-4)
    assert torch.equal(loaded.probe.head.layers[0].weight, streamed.probe.head.layers[0].weight)
    assert torch.equal(loaded.predicted, streamed.predicted)


def test_a_seed_repeats_itself_and_another_one_does_not(rows):
    train, test = rows
    one, again, other = (linear_probe(train, test, SHORT, seed=seed).probe for seed in (1, 1, 2))
    assert torch.equal(one.head.layers[0].weight, again.head.layers[0].weight)
    assert not torch.equal(one.head.layers[0].weight, other.head.layers[0].weight)


def test_test_rows_decide_nothing(rows):
    """Other test labels, another score; the same classifier."""
    train, test = rows
    one = linear_probe(train, test, SHORT)
    other = linear_probe(train, (test[0], (test[1] + 1) % 5), SHORT)
    assert torch.equal(one.probe.head.layers[0].weight, other.probe.head.layers[0].weight)
    assert one.accuracy != other.accuracy


def test_a_type_of_numbers_that_is_none_is_not_float32(rows):
    with pytest.raises(UsageError, match="dtype must be auto, float32 or bfloat16, got 'float8'"):
        linear_probe(*rows, SHORT, dtype="float8")


def test_choosing_by_the_test_rows_is_refused(rows, stores, tmp_path):
    train, test = rows
    for val in (test, (test[0].clone(), test[1])):
        with pytest.raises(DataError, match="the test rows themselves"):
            linear_probe(train, test, SHORT, val=val)
    with pytest.raises(DataError, match="the split test was given to choose by"):
        linear_probe(stores[0], stores[1], SHORT, val=stores[1])
    with pytest.raises(DataError, match="the split test was given to choose by"):
        linear_probe(stores[1], stores[0], SHORT)
    with pytest.raises(DataError, match="the test rows themselves"):
        linear_probe(test, test, SHORT)
    own = linear_probe((train[0][:, :900], train[1][:900]), test, SHORT, val=(train[0][0, 900:], train[1][900:]))
    assert own.accuracy > 0.6


def test_a_rate_that_diverges_is_left_out_and_all_of_them_are_an_error(rows):
    train, test = rows
    found = linear_probe(train, test, SHORT, learning_rates=(1e38, 0.03))
    assert found.probe.detail.startswith("lr 0.03")
    with pytest.raises(DataError, match="diverged at every learning rate"):
        linear_probe(train, test, SHORT, learning_rates=(1e38, 2e38))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"solver": "adam"}, "solver must be"),
        ({"epoch_rule": "first"}, "epoch_rule must be"),
        ({"epochs": 0}, "epochs must be"),
        ({"learning_rates": ()}, "learning_rates are missing"),
        ({"learning_rates": (0.0,)}, "a learning rate"),
        ({"solver": "lbfgs", "strengths": (-1.0,)}, "C must be"),
        ({"val_fraction": 1.0}, "fraction"),
        ({"seed": -1}, "seed"),
    ],
)
def test_options_that_make_no_sense(rows, changes, said):
    with pytest.raises(UsageError, match=said):
        linear_probe(*rows, SHORT, **changes)


@pytest.mark.parametrize("solver", ["sgd", "lbfgs"])
def test_rows_that_nobody_can_learn(rows, spoiled, solver):
    (features, labels), test = rows
    with pytest.raises(DataError, match="NaN or infinity, first in row 7"):
        linear_probe(spoiled, test, SHORT, solver=solver)
    with pytest.raises(DataError, match="one class only"):
        linear_probe((features[0], labels * 0), (test[0], test[1] * 0), SHORT, solver=solver)
    with pytest.raises(DataError, match="labels of shape"):
        linear_probe((features[0], labels[1:]), test, SHORT, solver=solver)


def test_nan_test_features_have_no_score(rows):
    train, test = rows
    probe = fit_probe(train, SHORT)
    with pytest.raises(DataError, match="test features hold NaN"):
        score_probe(probe, (torch.full_like(test[0], torch.nan), test[1]))
