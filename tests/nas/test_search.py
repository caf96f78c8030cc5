import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sslfast.data import load
from sslfast.errors import DataError, SslfastError, UsageError
from sslfast.nas import SearchNetwork
from sslfast.nas.architect import Architect
from sslfast.nas.config import SearchConfig
from sslfast.nas.genotype import check, parse, skips
from sslfast.nas.loop import search, search_seeds, spread
from sslfast.nas.objective import Objective, quarter_turned
from sslfast.nas.recipes import RECIPES
from sslfast.nas.stage import divide
from sslfast.run import Run

TINY = SearchConfig(
    cells=(3, 3),
    operations=(8, 2),
    skip_dropout=(0.2, 0.5),
    channels=4,
    epochs=2,
    alpha_from=1,
    batch_size=8,
    projection=16,
    alpha_rate=0.05,
)
"""Two stages of two epochs of two steps, with everything that draws."""


def digits(count=32):
    return load("digits", "train").subset(range(count))


def found(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((folder / "result.json").read_text())
    result.pop("seconds")
    return lines, result


class Killed(Exception):
    pass


def run_to_the_end(folder, config, kill_before=(), data=None, monkeypatch=None):
    """Search, and break off before some steps of the run; give what it left."""
    from sslfast.nas.stage import Stage

    own, count, waiting = Stage.step, 0, list(kill_before)

    def step(self, *arguments):
        nonlocal count
        if waiting and count == waiting[0]:
            waiting.pop(0)
            raise Killed
        count += 1
        return own(self, *arguments)

    if monkeypatch is not None:
        monkeypatch.setattr(Stage, "step", step)
    while True:
        try:
            with Run(folder, {}, resume=True) as run:
                search(data or digits(), config, run, device="cpu", save_seconds=0.0)
            break
        except Killed:
            assert (folder / "search.safetensors").exists() or count == 0
    assert not waiting
    return found(folder)


@pytest.mark.slow
def test_a_broken_search_ends_like_an_unbroken_one(tmp_path, monkeypatch):
    want = run_to_the_end(tmp_path / "unbroken", TINY)
    # Within the first stage, at the border of the stages, and in the last step; then twice at the same place.
    got = run_to_the_end(tmp_path / "broken", TINY, (1, 4, 7, 7), monkeypatch=monkeypatch)
    assert got == want
    lines, result = want
    assert [(line["stage"], line["step"]) for line in lines if "loss" in line] == [
        (i, j) for i in (0, 1) for j in range(4)
    ]
    moved = [line for line in lines if "genotype" in line]
    assert [line["epoch"] for line in moved] == [1, 2, 1, 2]
    assert moved[0]["alphas_normal"] != moved[1]["alphas_normal"]
    assert [len(line["alphas_normal"][0]) for line in moved] == [8, 8, 2, 2]
    assert ["valid_loss" in line for line in lines if "loss" in line] == [False, False, True, True] * 2
    assert [line["skip_dropout"] for line in moved] == pytest.approx([0.1, 0.2, 0.25, 0.5])
    check(parse(result["genotype"]))
    assert result["alphas_normal"] == moved[-1]["alphas_normal"]
    assert not (tmp_path / "broken" / "search.safetensors").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"s": 0.0},
        {"s": 0.5, "balance": "gradient"},
        {"s": 0.0, "task": "rotation"},
        {"s": 0.5, "task": "random-labels"},
        {"s": 0.0, "unrolled": True, "partial": 1, "edge_normalisation": False},
    ],
    ids=lambda change: "-".join(map(str, change.values())),
)
def test_every_loss_is_searched_and_resumed(change, tmp_path, monkeypatch):
    config = replace(TINY, cells=(3,), operations=(8,), skip_dropout=(0.0,), alpha_from=0, epochs=1, **change)
    want = run_to_the_end(tmp_path / "unbroken", config, data=digits(32))
    got = run_to_the_end(tmp_path / "broken", config, (1,), digits(32), monkeypatch)
    assert got == want
    assert len([line for line in want[0] if "loss" in line]) == 2


def test_seeds_have_folders_and_a_spread(tmp_path):
    config = replace(TINY, cells=(3,), operations=(8,), skip_dropout=(0.0,), epochs=1, alpha_from=0)
    results = search_seeds(digits(16), config, tmp_path, (3, 5), decided={"data": "digits"}, device="cpu")
    assert [result.seed for result in results] == [3, 5] and results[0].genotype != results[1].genotype
    told = json.loads((tmp_path / "spread.json").read_text())
    assert told == spread(results)
    assert told["skips_normal"] == [skips(result.genotype.normal) for result in results]
    assert search_seeds(digits(16), config, tmp_path, (3, 5), decided={"data": "digits"}, resume=True) == results
    for seeds in ((), (1, 1)):
        with pytest.raises(UsageError, match="different seeds"):
            search_seeds(digits(16), config, tmp_path, seeds, decided={})


def test_agreement_counts_common_genes():
    from sslfast.nas.loop import SearchResult

    genes = [("skip_connect", 0), ("sep_conv_3x3", 1), ("skip_connect", 0), ("skip_connect", 2)]
    other = [("sep_conv_3x3", 1), ("skip_connect", 0), ("skip_connect", 1), ("none", 2)]
    cells = parse(f"Genotype({genes}, [2], {genes}, [2])"), parse(f"Genotype({other}, [2], {genes}, [2])")
    told = spread([SearchResult(genotype, seed, 1.0, 0.5) for seed, genotype in enumerate(cells)])
    assert told["agreement_normal"] == 0.5 and told["agreement_reduce"] == 1.0


def test_a_failed_alpha_names_its_edge_and_keeps_the_state(tmp_path, monkeypatch):
    from sslfast.nas.stage import Stage

    own = Stage.step

    def step(self, step, *batches):
        losses = own(self, step, *batches)
        if step == 3:
            with torch.no_grad():
                self.network.alphas_reduce[3, 4] = torch.nan
        return losses

    monkeypatch.setattr(Stage, "step", step)
    said = "the alpha of edge 1 -> 3 of the reduce cell became infinite or NaN at step 3 of stage 1"
    with pytest.raises(SslfastError, match=said), Run(tmp_path / "run", {}) as run:
        search(digits(), TINY, run, device="cpu", save_seconds=0.0)
    monkeypatch.setattr(Stage, "step", own)
    assert run_to_the_end(tmp_path / "run", TINY) == run_to_the_end(tmp_path / "other", TINY)


def test_a_failed_loss_stops(tmp_path):
    with pytest.raises(SslfastError, match="became (nan|infinite|inf)"), Run(tmp_path / "run", {}) as run:
        search(digits(), replace(TINY, s=0.0, learning_rate=1e30, clip=0.0), run, device="cpu", save_seconds=0.0)


def test_a_state_of_another_stage_is_refused(tmp_path):
    from sslfast.models import Preprocess
    from sslfast.nas.stage import Stage, first_primitives
    from sslfast.nas.state import load_search_state, save_search_state

    data = digits()
    halves = divide(data, TINY)
    preprocess = Preprocess(8, (0.5,) * 3, (0.5,) * 3)

    def built(number, primitives, config=TINY):
        return Stage(data, halves, config, number, primitives, primitives, 8, preprocess, torch.device("cpu"))

    first = built(0, first_primitives())
    path = tmp_path / "state.safetensors"
    save_search_state(path, first, 3, 1.5)
    assert load_search_state(path, built(0, first_primitives())).step == 3
    with pytest.raises(SslfastError, match="is of stage 1 with 8 operations an edge, not of stage 2 with 2"):
        load_search_state(path, built(1, first.kept()[0]))
    with pytest.raises(SslfastError, match="does not fit this supernet"):
        load_search_state(path, built(0, first_primitives(), replace(TINY, channels=8)))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SslfastError, match="cannot be read"):
        load_search_state(path, first)


def test_the_division_is_by_halves_and_classes():
    data = load("digits", "train").subset(range(200))
    halves = divide(data, replace(TINY, s=0.0))
    assert len(halves.train) == len(halves.valid) == 100
    assert sorted([*halves.train, *halves.valid]) == list(range(200))
    counts = [np.bincount(data.labels[rows], minlength=10) for rows in (halves.train, halves.valid)]
    assert abs(counts[0] - counts[1]).max() <= 1 and halves.classes == 10
    other = divide(data, replace(TINY, s=0.0, seed=1))
    assert set(other.train) != set(halves.train)
    drawn = divide(data, replace(TINY, s=0.0, task="random-labels")).targets
    assert set(drawn) == set(range(10)) and (drawn == data.labels).mean() < 0.3
    assert divide(data, replace(TINY, s=0.0, task="rotation")).classes == 4


def test_what_cannot_be_searched_is_refused():
    data = load("digits", "train")
    zeros = data.subset(np.flatnonzero(data.labels == 0)[:20])
    with pytest.raises(DataError, match="at least 2 classes, digits has 1"):
        divide(zeros, replace(TINY, s=0.5))
    assert divide(zeros, replace(TINY, s=1.0)).targets is None
    assert divide(zeros, replace(TINY, s=0.0, task="rotation")).classes == 4
    with pytest.raises(DataError, match="at least 4 images"):
        divide(data.subset(range(3)), TINY)
    with pytest.raises(
        DataError, match="images of at least 4 x 4 pixels, for cells halve them twice; digits has 3 x 3"
    ):
        divide(data.subset(range(20)).decoded(3), TINY)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"s": 1.5}, "s must be a finite number at least 0 and at most 1, got 1.5"),
        ({"s": -0.1}, "s must be a finite number"),
        ({"s": float("nan")}, "s must be a finite number"),
        ({"task": "jigsaw"}, "unknown task 'jigsaw'; there are: labels, rotation, random-labels"),
        ({"balance": "even"}, "unknown balance"),
        ({"cells": (5, 11)}, "one number for each stage"),
        ({"cells": (2, 3, 4)}, "every stage needs 3 cells"),
        ({"operations": (7, 5, 3)}, "operations must fall from 8"),
        ({"operations": (8, 8, 3)}, "operations must fall from 8"),
        ({"operations": (8, 5, 1)}, "to at least 2"),
        ({"skip_dropout": (0.0, 0.4, 1.7)}, "skip_dropout must be"),
        ({"channels": 10}, "channels must be a multiple of partial (K), got 10 channels and K = 4"),
        ({"alpha_from": 25}, "alphas must move for an epoch at least"),
        ({"alpha_until": 26}, "alphas must move for an epoch at least"),
        ({"train_fraction": 1.0}, "train_fraction must lie between 0 and 1"),
        ({"most_skips": -2}, "most_skips must be"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"seed": -1}, "the seed must lie"),
    ],
)
def test_options_that_make_no_sense_are_refused(change, said):
    with pytest.raises(UsageError) as caught:
        SearchConfig(**change)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_views_that_do_not_fit_are_refused(tmp_path):
    for policy, said in (("supervised", "two views"), ("swav", "one size"), ("nothing", "unknown view plan")):
        with pytest.raises(UsageError, match=said), Run(tmp_path / "run", {}) as run:
            search(digits(), replace(TINY, policy=policy), run, device="cpu")


def test_schedules_are_the_papers():
    config = RECIPES["paper002"].config
    assert [epoch for epoch in range(40) if config.moves_alphas(epoch)] == list(range(10, 25))
    assert config.learning_rate_at(0) == 0.025 and config.learning_rate_at(20) == pytest.approx(0.0125)
    p_darts = RECIPES["p-darts"].config
    assert [p_darts.skip_dropout_at(2, epoch) for epoch in (0, 9, 10, 15)] == pytest.approx(
        [0.7 * 24 / 25, 0.7 * 15 / 25, 0.7, 0.7 * np.exp(-1)]
    )
    assert [RECIPES[name].config.s for name in RECIPES] == [0, 0, 0, 0, 1, 1]
    assert RECIPES["darts"].config.learning_rate_at(50) == pytest.approx(1e-3)


class Bent(nn.Module):
    """A model whose loss has second derivatives in everything: weights w, architecture a."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.3, -0.7, 0.5], dtype=torch.float64))
        self.a = torch.tensor([0.2, 0.4, -0.1], dtype=torch.float64, requires_grad=True)

    def forward(self, x):
        return ((self.w * self.a.softmax(0)).sum() * x.sin() + (self.w.tanh() @ self.a) - x).square().mean()


def test_the_second_order_is_the_derivative_through_a_step():
    torch.manual_seed(0)
    train, valid = (torch.randn(6, dtype=torch.float64) for _ in range(2))
    model = Bent()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    model(valid).backward()
    optimizer.step()  # gives a momentum
    architect = Architect(model, [model.a], learning_rate=0.1, weight_decay=0.0)
    before = model.w.detach().clone()
    velocity = optimizer.state[model.w]["momentum_buffer"]
    slope = torch.autograd.grad(model(train), model.w, create_graph=True)[0]
    stepped = model.w - 0.1 * (0.9 * velocity + slope + 0.01 * model.w)
    want = torch.autograd.grad(torch.func.functional_call(model, {"w": stepped}, (valid,)), model.a)[0]
    architect.step((valid,), (train,), optimizer)
    first_order = torch.autograd.grad(model(valid), model.a)[0]
    torch.testing.assert_close(model.a.grad, want, rtol=1e-4, atol=1e-6)
    assert (first_order - want).abs().max() > 1e-3
    assert torch.equal(model.w, before)


def test_the_first_order_is_the_gradient_and_is_clipped():
    model = Bent()
    x = torch.linspace(-1, 3, 5, dtype=torch.float64)
    want = torch.autograd.grad(model(x), model.a)[0]
    architect = Architect(model, [model.a], learning_rate=0.1, weight_decay=0.0, clip=1e-3)
    before = model.a.detach().clone()
    architect.step((x,))
    torch.testing.assert_close(model.a.grad, want * 1e-3 / want.norm(), rtol=1e-4, atol=0)
    # Adam's first step is the rate long in every direction.
    torch.testing.assert_close(before - model.a.detach(), 0.1 * want.sign(), rtol=1e-3, atol=0)
    assert model.w.grad is None


def objective(**changes):
    torch.manual_seed(0)
    config = replace(TINY, **changes)
    return Objective(SearchNetwork(4, 10, 3), config, 2), config


def parts(model, images, targets):
    """The loss's parts by their definitions."""
    h = model.network.embed(images)
    z0, z1 = (nn.functional.batch_norm(z, None, None, training=True, eps=1e-5) for z in model.projector(h).chunk(2))
    correlation = z0.T @ z1 / len(z0)
    diagonal = correlation.diagonal()
    rest = correlation.square().sum() - diagonal.square().sum()
    contrast = (diagonal - 1).square().sum() + model.redundancy * rest
    entropy = nn.functional.cross_entropy(model.network.classifier(h), targets.repeat(2))
    return h, contrast, entropy


def test_the_mixture_is_weighed_plainly_and_by_gradients():
    images, targets = torch.rand(12, 3, 8, 8), torch.arange(6)
    plain, config = objective(s=0.25)
    _, contrast, entropy = parts(plain, images, targets)
    torch.testing.assert_close(plain(images, targets), 0.25 * contrast / config.projection + 0.75 * entropy)
    balanced, _ = objective(s=0.25, balance="gradient")
    h, contrast, entropy = parts(balanced, images, targets)
    lengths = [torch.autograd.grad(one, h, retain_graph=True)[0].norm() for one in (contrast, entropy)]
    torch.testing.assert_close(
        balanced(images, targets), 0.25 * lengths[1] / lengths[0] * contrast + 0.75 * entropy, rtol=1e-4, atol=1e-5
    )
    alone, _ = objective(s=1.0)
    torch.testing.assert_close(alone(images, targets), parts(alone, images, targets)[1] / config.projection)


def test_images_are_turned_by_quarters():
    images = torch.randn(5, 3, 4, 4)
    turned = quarter_turned(images, torch.tensor([0, 1, 2, 3, 1]))
    assert torch.equal(turned[0], images[0])
    assert torch.equal(turned[1], images[1].transpose(1, 2).flip(1))
    assert torch.equal(turned[2], images[2].flip(1, 2))
    assert torch.equal(turned[3], images[3].transpose(1, 2).flip(2))
    assert torch.equal(quarter_turned(turned, torch.tensor([0, 3, 2, 1, 3])), images)
