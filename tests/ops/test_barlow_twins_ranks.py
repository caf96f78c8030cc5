"""The loss of one batch over several processes: the value, the gradients, and what is exchanged."""

import gloo
import pytest
import torch

import sslfast
from sslfast._reference import barlow_twins as reference

# Rows of each rank by world size: never the same number.
ROWS = {1: (9,), 2: (4, 7), 3: (5, 1, 8)}
# Fewer and more columns than rows: C is added up, or the rows are gathered.
COLUMNS = (5, 40)
# And the error that is allowed, relative to the largest entry.
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}


def views(total, columns, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(total, columns, generator=generator).to(dtype) for _ in range(2))
    return first + 3, first + 0.5 * second


def own_rows(rank, world, columns, dtype=torch.float64):
    start = sum(ROWS[world][:rank])
    rows = slice(start, start + ROWS[world][rank])
    return [z[rows].clone().requires_grad_() for z in views(sum(ROWS[world]), columns, dtype)]


def over_ranks(rank, world):
    """Every case in one start of the processes."""
    import torch.distributed as distributed

    sent = []
    for name in ("all_gather", "all_reduce"):
        kept = getattr(distributed, name)

        def counted(*arguments, kept=kept, name=name, **named):
            sent.append((name, arguments[0].numel() if name == "all_reduce" else arguments[1].numel()))
            return kept(*arguments, **named)

        setattr(distributed, name, counted)
    results = {}
    for columns in COLUMNS:
        for dtype in DTYPES:
            sent.clear()
            inputs = own_rows(rank, world, columns, dtype)
            loss = sslfast.barlow_twins(*inputs, 0.2, eps=1e-3, group=distributed.group.WORLD)
            forward = list(sent)
            loss.backward()
            backward = sent[len(forward) :]
            results[columns, dtype] = loss.detach(), [z.grad for z in inputs], forward, backward
    try:
        torch.autograd.grad(sslfast.barlow_twins(*inputs, group=distributed.group.WORLD), inputs, create_graph=True)
    except RuntimeError as error:
        results["twice"] = str(error)
    return results


def one_row_in_all(rank, world):
    import torch.distributed as distributed

    z = torch.zeros(1, 3)
    alone = distributed.new_group([0])
    other = distributed.new_group([1])
    try:
        sslfast.barlow_twins(z, z, group=alone if rank == 0 else other)
    except ValueError as error:
        return str(error)
    return ""


def not_a_member(rank, world):
    import torch.distributed as distributed

    group = distributed.new_group([0])
    try:
        sslfast.barlow_twins(torch.randn(4, 3), torch.randn(4, 3), group=group)
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def run(function, world, *arguments):
    return gloo.run(__file__, function, world, *arguments)


@pytest.mark.parametrize("world", ROWS)
def test_equals_the_whole_batch(world):
    start = 0
    for rank, results in enumerate(run("over_ranks", world)):
        rows = slice(start, start + ROWS[world][rank])
        start = rows.stop
        if world > 1:
            assert results.pop("twice") == "barlow_twins: there are no second derivatives over a group"
        assert len(results) == len(COLUMNS) * len(DTYPES)
        for (columns, dtype), (loss, gradients, sent, sent_backward) in results.items():
            wide = [z.double().requires_grad_() for z in views(sum(ROWS[world]), columns, dtype)]
            want = reference.barlow_twins(*wide, 0.2, eps=1e-3)
            want_gradients = torch.autograd.grad(want, wide)
            assert loss.dtype == dtype
            assert abs(loss.double() - want) <= DTYPES[dtype] * want
            for got, full in zip(gradients, want_gradients, strict=True):
                assert (got.double() - world * full[rows]).abs().max() <= DTYPES[dtype] * world * full.abs().max()
            assert (sent, sent_backward) == exchanged(world, columns)


def exchanged(world, columns):
    """Collectives and the numbers that a rank gives to each: the rows and their count, or sums over them."""
    if world == 1:
        return [], []
    rows = max(ROWS[world]) * columns
    if sum(ROWS[world]) < columns:
        gathered = [("all_gather", 1), ("all_gather", rows), ("all_gather", rows), ("all_reduce", 1)]
        return gathered, [("all_reduce", 2 * columns)]
    moments = [("all_reduce", 2 * columns)] * 2
    return [("all_gather", 1), *moments, ("all_reduce", columns * columns)], []


def test_a_group_of_one_is_the_batch_alone():
    words = run("one_row_in_all", 2)
    assert all("at least two rows, got 1" in one for one in words)


def test_who_is_not_in_the_group_is_told():
    words = run("not_a_member", 2)
    assert words[0] == ""
    assert "barlow_twins: " in words[1] and "group" in words[1]
