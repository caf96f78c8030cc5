"""Every rank holds some rows of one batch: value and gradient are those of the whole batch."""

import functools

import gloo
import pytest
import torch

import sslfast
from sslfast.bench.cases.sinkhorn import cosines

ROWS = (7, 2, 30)
CASES = [(False, 3), (True, 3), (True, 0)]


def of_all_ranks(world, queue):
    count = sum(ROWS[:world])
    all_views = [cosines(count, 45, seed=v) for v in range(5)]
    queues = [cosines(2 * count, 45, seed=40 + i) for i in range(2)] if queue else None
    return all_views, queues


def gradients(all_views, queues, **options):
    loss = sslfast.swav_loss(all_views[:2], all_views[2:], queues, **options)
    return loss, torch.autograd.grad(loss, all_views)


def lose_shares(rank, world):
    """What one rank gets, and how many numbers it exchanged; every case in one start of the processes."""
    from sslfast.ops import _distributed as module
    from sslfast.ops import sinkhorn as passes

    exchanged = []

    def counted(primitive):
        def call(tensor, group):
            exchanged.append(tensor.numel())
            return primitive(tensor, group)

        return call

    passes.largest_over_ranks = counted(passes.largest_over_ranks)
    passes.sum_over_ranks = module.sum_over_ranks = counted(passes.sum_over_ranks)
    results = {}
    for case in CASES:
        exchanged.clear()
        results[case] = *lose_a_share(rank, world, *case), list(exchanged)
    return results


def lose_a_share(rank, world, queue, iterations):
    all_views, queues = of_all_ranks(world, queue)
    first = sum(ROWS[:rank])
    own = slice(first, first + ROWS[rank])
    all_views = [view[own].clone().requires_grad_() for view in all_views]
    if queues:
        queues = [one[2 * own.start : 2 * own.stop] for one in queues]
    group = torch.distributed.group.WORLD
    loss, grads = gradients(all_views, queues, iterations=iterations, group=group)
    return loss.detach(), grads


@functools.cache
def of_ranks(world):
    return gloo.run(__file__, "lose_shares", world)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(("queue", "iterations"), CASES)
def test_several_ranks_share_one_batch(world, queue, iterations):
    results = [one[queue, iterations] for one in of_ranks(world)]
    all_views, queues = of_all_ranks(world, queue)
    all_views = [view.requires_grad_() for view in all_views]
    want, want_grads = gradients(all_views, queues, iterations=iterations)
    for loss, _, exchanged in results:
        torch.testing.assert_close(loss, want)
        # One maximum and one sum per iteration, K numbers per code; the number of rows where nothing is iterated; the
        # loss and its number of rows.
        once = [90] * (1 + max(iterations, 1)) + [1] * (iterations == 0) + [2]
        assert exchanged == ([] if world == 1 else once)
    for v, grad in enumerate(want_grads):
        together = torch.cat([grads[v] for _, grads, _ in results])
        torch.testing.assert_close(together, grad * world)
