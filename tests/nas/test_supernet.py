import pytest
import torch
from torch import nn

from sslfast.nas import PRIMITIVES, Cell, MixedOp, SearchNetwork, register_operation
from sslfast.nas.cell import edge_ends
from sslfast.nas.operations import OPERATIONS

CRITERION = nn.CrossEntropyLoss()


def small(**changes):
    torch.manual_seed(0)
    return SearchNetwork(**{"C": 8, "num_classes": 5, "layers": 3, "criterion": CRITERION, **changes})


def test_the_published_counts():
    network = SearchNetwork(16, 10, 8, CRITERION)
    state = network.state_dict()
    assert sum(weight.numel() for weight in network.parameters()) == 299_578
    assert len(state) == 4_186
    convolutions = [name for name, value in state.items() if name.startswith("cells.0._ops") and value.dim() == 4]
    assert convolutions[0] == "cells.0._ops.0._ops.4.op.1.weight"
    assert [tuple(one.shape) for one in network.arch_parameters()] == [(14, 8), (14, 8), (14,), (14,)]


def test_the_published_keys_of_a_cell():
    found = [name for name in small().state_dict() if name.startswith("cells.1._ops.0.")]
    statistics = ["running_mean", "running_var", "num_batches_tracked"]
    # A reduction cell's first edge: pools, the factorised reduction of skip_connect, and the first convolution.
    assert found[:17] == [
        *(f"cells.1._ops.0._ops.1.1.{name}" for name in statistics),
        *(f"cells.1._ops.0._ops.2.1.{name}" for name in statistics),
        "cells.1._ops.0._ops.3.conv_1.weight",
        "cells.1._ops.0._ops.3.conv_2.weight",
        *(f"cells.1._ops.0._ops.3.bn.{name}" for name in statistics),
        "cells.1._ops.0._ops.4.op.1.weight",
        "cells.1._ops.0._ops.4.op.2.weight",
        *(f"cells.1._ops.0._ops.4.op.3.{name}" for name in statistics),
        "cells.1._ops.0._ops.4.op.5.weight",
    ]


def test_the_architecture_is_no_weight_and_no_entry():
    network = small()
    weights = {id(weight) for weight in (*network.parameters(), *network.buffers())}
    assert not weights & {id(one) for one in network.arch_parameters()}
    assert not [name for name in network.state_dict() if "alpha" in name or "beta" in name]
    assert all(one.is_leaf and one.requires_grad for one in network.arch_parameters())


def test_the_architecture_follows_to_another_type():
    network = small().double()
    assert {one.dtype for one in network.arch_parameters()} == {torch.float64}
    assert network(torch.randn(2, 3, 8, 8, dtype=torch.float64)).dtype == torch.float64
    assert all(one.is_leaf and one.requires_grad for one in network.arch_parameters())


def mixed_by_hand(edge, x, weights):
    """The definition, channel by channel."""
    part = x.shape[1] // edge.k
    total = 0
    for weight, name, op in zip(weights, edge.primitives, edge._ops, strict=True):
        total = total + weight * (
            op(x[:, :part]) if name != "none" else 0 * x[:, :part, :: edge.stride, :: edge.stride]
        )
    if edge.k == 1:
        return total
    rest = x[:, part:] if edge.stride == 1 else nn.functional.max_pool2d(x[:, part:], 2)
    joined = torch.cat([total, rest], 1)
    shuffled = torch.empty_like(joined)
    for channel in range(joined.shape[1]):
        group, place = divmod(channel, part)
        shuffled[:, place * edge.k + group] = joined[:, channel]
    return shuffled


@pytest.mark.parametrize("k", [1, 2, 4, 8])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_an_edge_is_its_definition(k, stride, training):
    torch.manual_seed(1)
    edge = MixedOp(16, stride, k=k).double().train(training)
    for buffer in edge.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    x = torch.randn(3, 16, 6, 8, dtype=torch.float64)
    weights = torch.rand(8, dtype=torch.float64)
    torch.testing.assert_close(edge(x, weights), mixed_by_hand(edge, x, weights), rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", [4, 5, 7])
def test_odd_sides_are_rounded_up(side):
    edge = MixedOp(8, 2).double()
    x = torch.randn(2, 8, side, side + 1, dtype=torch.float64)
    assert edge(x, torch.ones(8, dtype=torch.float64)).shape == (2, 8, -(-side // 2), -(-(side + 1) // 2))
    # Where both codes are defined, a border of zeros changes nothing.
    reduce = OPERATIONS["skip_connect"](4, 2, False).double()
    even = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    halves = [reduce.conv_1(even.relu()), reduce.conv_2(even.relu()[:, :, 1:, 1:])]
    assert torch.equal(reduce(even), reduce.bn(torch.cat(halves, 1)))


def test_nothing_adds_nothing_and_has_no_gradient():
    edge = MixedOp(4, 1, k=1, primitives=("none", "max_pool_3x3"))
    weights = torch.tensor([0.7, 1.0], requires_grad=True)
    x = torch.randn(4, 4, 5, 5)
    y = edge(x, weights)
    torch.testing.assert_close(y, edge._ops[1](x))
    y.square().sum().backward()
    assert weights.grad[0] == 0 and weights.grad[1] != 0
    assert not MixedOp(4, 2, k=1, primitives=("none",))(x, torch.ones(1)).any()


def test_skips_are_dropped_in_training_only():
    edge = MixedOp(4, 1, k=1, primitives=("skip_connect",), skip_dropout=0.5)
    x, one = torch.ones(8, 4, 16, 16), torch.ones(1)
    found = edge(x, one)
    assert set(found.unique().tolist()) == {0.0, 2.0}  # entries, not channels or images
    assert 0.45 < (found > 0).float().mean() < 0.55
    assert torch.equal(edge.eval()(x, one), x)
    reduce = MixedOp(4, 2, k=1, primitives=("skip_connect",), skip_dropout=1.0)
    assert reduce(torch.randn(8, 4, 16, 16), one).any()  # as published, only the identity has dropout


def test_skip_dropout_is_set_in_every_edge():
    network = small(skip_dropout=0.25)
    assert network.skip_dropout == 0.25
    network.skip_dropout = 0.125
    assert {edge.skip_dropout for cell in network.cells for edge in cell._ops} == {0.125}


def test_edges_are_weighed_by_node():
    network = small()
    with torch.no_grad():
        network.betas_normal.copy_(torch.arange(14.0))
        (_, edges), _ = network.mixtures()
    starts = [0, 2, 5, 9, 14]
    for first, last in zip(starts, starts[1:], strict=False):
        torch.testing.assert_close(edges[first:last], torch.arange(float(first), last).softmax(0))


def test_darts_has_no_edge_weights():
    network = small(k=1, edge_normalisation=False)
    assert len(network.arch_parameters()) == 2
    cell = network.cells[0]
    x = torch.randn(2, 24, 8, 8)
    weights = torch.rand(14, 8)
    torch.testing.assert_close(cell(x, x, weights), cell(x, x, weights, torch.ones(14)))


def test_a_new_network_has_the_architecture_alone():
    network = small(k=2, skip_dropout=0.25)
    made = network.new()
    assert [torch.equal(a, b) for a, b in zip(network.arch_parameters(), made.arch_parameters(), strict=True)] == [
        True
    ] * 4
    assert list(made.state_dict()) == list(network.state_dict()) and made.cells[0]._ops[0].k == 2
    assert not torch.equal(made.stem[0].weight, network.stem[0].weight) and made.skip_dropout == 0.25


def test_the_loss_reaches_weights_and_architecture():
    network = small()
    network._loss(torch.randn(4, 3, 16, 16), torch.arange(4)).backward()
    assert all(weight.grad is not None for weight in network.parameters())
    assert all(one.grad.abs().max() > 0 for one in network.arch_parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "form",
    [
        {},
        {"k": 1, "edge_normalisation": False},
        {"k": 2, "primitives_normal": ("max_pool_3x3", "skip_connect"), "primitives_reduce": ("none", "skip_connect")},
    ],
    ids=["pc-darts", "darts", "subsets"],
)
def test_the_fused_edges_are_the_modules(form, dtype):
    fused, plain = (small(**form).to(dtype) for _ in range(2))
    for cell in plain.cells:
        for edge in cell._ops:
            assert edge.fused
            edge.fused = False
    x, target = torch.randn(4, 3, 8, 8, dtype=dtype), torch.arange(4)
    # Over a whole network a change of one ulp moves float32 gradients by far more (ReLU and max flip).
    exact = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-4}
    for training in (True, False):
        found = []
        for network in (fused.train(training), plain.train(training)):
            loss = network._loss(x, target)
            leaves = [*network.parameters(), *network.arch_parameters()]
            found.append([loss, *torch.autograd.grad(loss, leaves), *network.buffers()])
        torch.testing.assert_close(*found, **exact)
    assert int(fused.cells[0]._ops[0]._ops[1][1].num_batches_tracked if not form else 1) == 1


def test_odd_sides_take_the_modules():
    edge = MixedOp(8, 2)
    assert not edge._applies(torch.zeros(1, 8, 5, 6)) and edge._applies(torch.zeros(1, 8, 4, 6))
    assert edge(torch.randn(2, 8, 5, 6), torch.ones(8)).shape == (2, 8, 3, 3)


def set_alphas(network, cell, chosen):
    """Give the named operation of some edges the largest alpha, by (state, node)."""
    alphas = getattr(network, f"alphas_{cell}")
    names = getattr(network, f"primitives_{cell}")
    with torch.no_grad():
        alphas.zero_()
        for edge, ends in enumerate(edge_ends(4)):
            if ends in chosen:
                name, value = chosen[ends]
                alphas[edge, names[edge].index(name)] = value


CHOSEN = {
    (0, 2): ("skip_connect", 2.0),
    (1, 2): ("sep_conv_3x3", 3.0),
    (1, 3): ("skip_connect", 1.5),
    (2, 3): ("dil_conv_5x5", 2.5),
    (0, 4): ("skip_connect", 1.0),
    (3, 4): ("max_pool_3x3", 2.0),
    (2, 5): ("sep_conv_5x5", 1.0),
    (4, 5): ("avg_pool_3x3", 3.0),
    (0, 5): ("none", 9.0),
}


def test_the_strongest_edges_make_the_genotype():
    network = small(edge_normalisation=False)
    set_alphas(network, "normal", CHOSEN)
    assert network.genotype().normal == [
        *[("sep_conv_3x3", 1), ("skip_connect", 0)],
        *[("dil_conv_5x5", 2), ("skip_connect", 1)],
        *[("max_pool_3x3", 3), ("skip_connect", 0)],
        *[("avg_pool_3x3", 4), ("sep_conv_5x5", 2)],
    ]
    assert network.genotype().normal_concat == range(2, 6)


def test_edge_weights_decide_between_edges():
    network = small()
    set_alphas(network, "reduce", CHOSEN)
    with torch.no_grad():
        network.betas_reduce.zero_()
        network.betas_reduce[edge_ends(4).index((0, 3))] = 10.0
        network.betas_reduce[edge_ends(4).index((1, 3))] = 5.0
    assert network.genotype().reduce[2:4] == [("max_pool_3x3", 0), ("skip_connect", 1)]


def test_the_weakest_skips_are_struck_out():
    network = small(edge_normalisation=False)
    set_alphas(network, "normal", CHOSEN)
    kept = network.genotype(most_skips=1).normal
    # 0 -> 4 and 1 -> 3 were weaker than 0 -> 2; what comes in their place is the best of what is left at these nodes.
    assert kept[:2] == [("sep_conv_3x3", 1), ("skip_connect", 0)]
    assert [name for name, _ in kept].count("skip_connect") == 1
    assert kept[2] == ("dil_conv_5x5", 2) and kept[4] == ("max_pool_3x3", 3)
    assert network.genotype(most_skips=3).normal == network.genotype().normal
    only = SearchNetwork(4, 2, 1, k=1, primitives_normal=("none", "skip_connect"))
    assert {name for name, _ in only.genotype(most_skips=0).normal} == {"skip_connect"}


def test_edges_may_hold_different_primitives():
    generator = torch.Generator().manual_seed(0)
    names = [
        tuple(PRIMITIVES[i] for i in sorted(torch.randperm(8, generator=generator)[:3].tolist())) for _ in range(14)
    ]
    network = small(primitives_normal=names, primitives_reduce=("skip_connect", "sep_conv_3x3"))
    assert network.alphas_normal.shape == (14, 3) and network.alphas_reduce.shape == (14, 2)
    edges = edge_ends(4)
    for position, (name, state) in enumerate(network.genotype().normal):
        assert name in names[edges.index((state, 2 + position // 2))] and name != "none"
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 5)


class Halved(nn.Module):
    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        return x[:, :, :: self.stride, :: self.stride] / 2


def test_an_operation_of_ones_own(monkeypatch):
    monkeypatch.setattr("sslfast.nas.operations.OPERATIONS", dict(OPERATIONS))
    register_operation("halved", lambda C, stride, affine: Halved(stride))
    network = small(primitives_normal=("halved", "none"), primitives_reduce=("halved", "none"))
    assert network(torch.randn(2, 3, 9, 9)).isfinite().all()
    assert {name for name, _ in network.genotype().normal} == {"halved"}
    with pytest.raises(ValueError, match="there is an operation 'halved' already"):
        register_operation("halved", lambda C, stride, affine: Halved(stride))
    with pytest.raises(ValueError, match="must be an identifier"):
        register_operation("a b", lambda C, stride, affine: Halved(stride))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MixedOp(10, 1), "MixedOp: C must be a multiple of k, got C=10 and k=4"),
        (lambda: MixedOp(2, 1), "C must be a multiple of k, got C=2 and k=4"),
        (lambda: MixedOp(8, 1, k=0), "C must be a multiple of k, got C=8 and k=0"),
        (lambda: MixedOp(8, 3), "stride must be 1 or 2, got 3"),
        (lambda: MixedOp(8, 1, primitives=()), "primitives must be different operations, at least one, got ()"),
        (lambda: MixedOp(8, 1, primitives=("none", "none")), "must be different operations"),
        (lambda: MixedOp(8, 1, primitives=("capsule",)), "unknown operation 'capsule'; there are: none, "),
        (lambda: MixedOp(4, 2), "C_out must be even, for two convolutions share it, got 1"),
        (lambda: Cell(2, 2, 8, 8, 8, False, False, primitives=["skip_connect"] * 0), "equally many primitives"),
        (lambda: Cell(2, 2, 8, 8, 8, False, False, primitives=[("skip_connect",)] * 4), "each of 5 edges"),
        (lambda: Cell(2, 2, 8, 8, 8, False, False, primitives=("none",)), "edge 0 -> 2 needs a primitive besides"),
        (lambda: small(layers=0), "layers and steps must be at least 1"),
        (lambda: small(multiplier=5), "multiplier between 1 and steps"),
        (lambda: small()(torch.randn(2, 3, 3, 8)), "images must have sides of at least 4 pixels"),
    ],
)
def test_what_makes_no_supernet_is_refused(make, said):
    with pytest.raises(ValueError) as caught:
        make()
    assert said in str(caught.value) and "\n" not in str(caught.value)
