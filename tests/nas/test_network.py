import pytest
import torch

from sslfast.errors import UsageError
from sslfast.nas import PUBLISHED, Network, NetworkImageNet
from sslfast.nas.genotype import Genotype
from sslfast.nas.network import drop_path, parameter_count

COUNTS = {
    "DARTS_V1": (3_169_414, 3_645_840),
    "DARTS_V2": (3_349_342, 3_825_768),
    "PC_DARTS_cifar": (3_634_678, 4_111_104),
    "PDARTS": (3_433_798, 3_910_224),
}
"""Of the published code, with 36 channels, 20 cells and 10 classes; without and with the auxiliary classifier."""


@pytest.mark.parametrize("name", COUNTS)
def test_the_published_counts(name):
    with torch.device("meta"):
        found = [parameter_count(Network(36, 10, 20, auxiliary, PUBLISHED[name])) for auxiliary in (False, True)]
    assert tuple(found) == COUNTS[name]


def test_the_published_count_of_the_imagenet_form():
    with torch.device("meta"):
        network = NetworkImageNet(48, 1000, 14, False, PUBLISHED["PC_DARTS_image"])
    assert parameter_count(network) == 5_342_464


def small(kind=Network, auxiliary=True, genotype=PUBLISHED["PDARTS"]):
    torch.manual_seed(0)
    return kind(4, 5, 3, auxiliary, genotype)


@pytest.mark.parametrize("side", [4, 7, 28, 32, 40])
def test_any_side_goes_through_both_classifiers(side):
    network = small()
    logits, auxiliary = network(torch.randn(2, 3, side, side))
    assert logits.shape == auxiliary.shape == (2, 5)
    assert (logits + auxiliary).isfinite().all()


def test_the_second_classifier_is_for_training():
    network = small().eval()
    assert network(torch.randn(2, 3, 8, 8))[1] is None
    assert small(auxiliary=False)(torch.randn(2, 3, 8, 8))[1] is None
    assert not [name for name in small(auxiliary=False).state_dict() if "auxiliary" in name]


def test_the_imagenet_form_divides_by_thirty_two():
    network = small(NetworkImageNet)
    seen = []
    network.global_pooling.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[2:]))
    logits, auxiliary = network(torch.randn(2, 3, 96, 96))
    assert seen == [(3, 3)] and logits.shape == auxiliary.shape == (2, 5)


def test_a_cell_is_its_genotype():
    genes = [("skip_connect", 0), ("none", 1), ("max_pool_3x3", 2), ("skip_connect", 1)]
    network = small(auxiliary=False, genotype=Genotype(genes, [3, 2], genes, [2, 3])).eval()
    cell = network.cells[0]
    x, y = torch.randn(1, 12, 6, 6), torch.randn(1, 12, 6, 6)
    s0, s1 = cell.preprocess0(x), cell.preprocess1(y)
    pooled = torch.nn.functional.max_pool2d(s0, 3, 1, 1)
    assert torch.equal(cell(x, y, 0.0), torch.cat([pooled + s1, s0 + 0 * s1], 1))


def test_paths_are_dropped_by_image():
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 3, 3)
    y = drop_path(x, 0.25)
    assert torch.equal(y.amax((1, 2, 3)), y.amin((1, 2, 3)))
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert abs(y.mean() - 1) < 0.03 and torch.equal(x, torch.ones_like(x))


def test_identities_are_not_dropped():
    genes = [("skip_connect", 0), ("skip_connect", 1)]
    network = small(auxiliary=False, genotype=Genotype(genes, [2], genes, [2]))
    cell = network.cells[0]
    x = torch.randn(8, 12, 4, 4)
    assert torch.equal(cell(x, x, 0.9), cell(x, x, 0.0))
    reduction = network.cells[1]  # its skips are convolutions
    assert not torch.equal(reduction(x, torch.randn(8, 4, 4, 4), 0.5), reduction(x, torch.randn(8, 4, 4, 4), 0.0))


def test_dropping_is_for_training():
    network = small()
    network.drop_path_prob = 0.5
    x = torch.randn(4, 3, 8, 8)
    assert not torch.equal(network(x)[0], network(x)[0])
    network.eval()
    assert torch.equal(network(x)[0], network(x)[0])


def test_what_makes_no_network_is_refused():
    with pytest.raises(UsageError, match="unknown operation 'capsule'"):
        Network(4, 5, 3, False, Genotype([("capsule", 0)] * 2, [2], [("none", 0)] * 2, [2]))
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        Network(4, 5, 0, False, PUBLISHED["PDARTS"])
