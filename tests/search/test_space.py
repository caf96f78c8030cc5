import optuna
import pytest

from sslfast.errors import UsageError
from sslfast.search import HeadSpace


def draws(space, count=300):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask() for _ in range(count)]
    return [(space.suggest(trial), trial.params) for trial in trials]


def test_draws_are_table_one():
    specs = [spec for spec, _ in draws(HeadSpace.paper())]
    assert {len(spec.units) for spec in specs} == {1, 2, 3}
    assert {width for spec in specs for width in spec.units} == set(range(128, 1025, 64))
    assert {round(spec.dropout, 6) for spec in specs} == {0.3, 0.4, 0.5}
    rates = sorted(spec.learning_rate for spec in specs)
    assert 1e-4 <= rates[0] < 2e-4 and 5e-2 < rates[-1] <= 1e-1
    assert 1e-3 < rates[len(rates) // 2] < 1e-2  # log-uniform: the median is about 3e-3


def test_a_width_is_a_parameter_only_of_heads_that_have_the_layer():
    for spec, params in draws(HeadSpace.paper(), 50):
        names = {name for name in params if name.startswith("units_")}
        assert names == {f"units_{index}" for index in range(params["layers"])}
        assert HeadSpace.paper().spec(params) == spec


def test_the_other_reading_of_the_learning_rate_can_be_asked_for():
    rates = [spec.learning_rate for spec, _ in draws(HeadSpace(learning_rate=(1e-5, 1e-1)))]
    assert min(rates) < 1e-4


@pytest.mark.parametrize(
    "wrong",
    [
        {"layers": (3, 1)},
        {"layers": (0, 1)},
        {"units": (1024, 128)},
        {"learning_rate": (0.0, 0.1)},
        {"learning_rate": (0.1, 1e-4)},
        {"dropout": (0.3, 1.0)},
        {"units_step": 0},
        {"dropout": (0.5, 0.3)},
        {"dropout": (0.3, float("nan"))},
        {"dropout_step": float("nan")},
        {"learning_rate": (1e-4, float("inf"))},
        {"layers": (1.0, 2.5)},
    ],
)
def test_a_space_without_a_head_is_refused(wrong):
    with pytest.raises(UsageError):
        HeadSpace(**wrong)
