"""What a comparison rests on: every peer computes what the reference computes."""

from itertools import pairwise
from math import prod

import pytest
import torch

from sslfast.bench.registry import CASES
from sslfast.bench.timing import draw, modes, variables

PEERS = [(name, peer) for name, case in CASES.items() for peer in case.peers]


def close(one, other):
    """Hold two results against each other in single precision, relative to the largest entry."""
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.detach().abs().max()))


@pytest.mark.parametrize(("name", "peer"), PEERS, ids=lambda word: word)
def test_a_peer_computes_the_same(name, peer):
    case = CASES[name]
    try:
        function = case.peers[peer]()
    except ImportError as error:
        pytest.skip(f"not installed ({error})")
    options = dict(case.options[0])
    tried = []
    # Not the smallest: a peer need not know the corner cases. Some make float32 of whatever comes.
    for size in sorted((size for size in (*case.sizes, *case.bench_sizes) if min(size[:2]) > 1), key=prod)[1:]:
        inputs = draw(case, size, "cpu", "float32")
        try:
            theirs = function(*inputs, **options)
        except NotImplementedError as error:
            tried.append(str(error))
            continue
        true = case.reference(*inputs, **options)
        close(theirs, true)
        if case.differentiable:
            one, other = (torch.autograd.grad(value.sum(), variables(inputs)) for value in (theirs, true))
            for mine, yours in zip(one, other, strict=True):
                close(mine, yours)
        return
    pytest.fail(f"no size that {peer} takes: {tried}")


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_a_case_says_what_has_to_be_done(case):
    assert case.operations is not None and case.traffic is not None and case.bench_sizes
    for size in case.bench_sizes:
        assert len(size) == len(case.sizes[0])
        for count in (case.operations(size), case.traffic(size)):
            assert len(count) == 2 and count[0] > 0 and (count[1] > 0) == (modes(case)[-1] == "both")


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_a_sweep_grows_in_one_number(case):
    for one, other in pairwise(case.sweep_sizes):
        assert sum(a != b for a, b in zip(one, other, strict=True)) == 1 and prod(other) > prod(one)
