"""Branches of the bank's step may overlap in any way: none touches a number that another one writes."""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sslfast._head_bank.layout import HeadPlan
from sslfast._head_bank.step import BankStep

PLANS = [
    HeadPlan("sgd", 20000, 5, (20, 17, 4), (0.9, 0.999, 1e-8, 1e-3, 1e-3)),
    HeadPlan("adam", 0, 6, (20, 4), (0.9, 0.999, 1e-8, 1e-3, 1e-3)),
    HeadPlan("lars", 30000, 7, (20, 64, 130, 4), (0.9, 0.999, 1e-8, 1e-3, 1e-3)),
    HeadPlan("adamw", 30000, 8, (20, 33, 20, 65, 4), (0.9, 0.999, 1e-8, 1e-3, 1e-3)),
]


class Watched(TorchDispatchMode):
    """Branches that are told apart: what each of them, and the trunk, reads and writes between joins."""

    def __init__(self, count):
        super().__init__()
        self.count, self.here, self.segment, self.seen = count, None, 0, 0
        self.forked, self.marks = {}, {}

    @contextmanager
    def branch(self, number):
        place = number % self.count if number >= 0 else self.count
        if place not in self.forked:
            self.forked[place] = self.segment
            self.segment += 1  # what the trunk does from here on is not ordered before the branch
        self.here = place
        yield
        self.here = None

    def join(self):
        self.forked.clear()
        self.marks.clear()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        schema = func._schema
        if not any(one.alias_info and not one.alias_info.is_write for one in schema.arguments):
            given = dict(zip([one.name for one in schema.arguments], args, strict=False)) | (kwargs or {})
            for one in schema.arguments:
                writes = bool(one.alias_info and one.alias_info.is_write)
                for tensor in tree_leaves(given.get(one.name)):
                    if isinstance(tensor, torch.Tensor):
                        self.touch(tensor, writes, func)
        return func(*args, **(kwargs or {}))

    def touch(self, tensor, writes, func):
        self.seen += 1
        storage = tensor.untyped_storage()
        if storage._cdata not in self.marks:
            elements = storage.nbytes() // tensor.itemsize
            # The storage too, so that no other one takes its place while these marks are kept.
            empty = [torch.zeros(elements, dtype=torch.int64) for _ in range(2)] + [
                torch.full((elements,), -1) for _ in range(2)
            ]
            self.marks[storage._cdata] = (storage, *empty)
        _, *marks = self.marks[storage._cdata]
        shape = [size if stride else min(size, 1) for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
        read, written, trunk_read, trunk_written = (
            mark.as_strided(shape, tensor.stride(), tensor.storage_offset()) for mark in marks
        )
        mine = 0 if self.here is None else 1 << self.here
        others = written | read if writes else written
        assert not (others & ~mine).any(), f"{func} meets another branch"
        if self.here is None:
            trunk_read.fill_(self.segment)
            if writes:
                trunk_written.fill_(self.segment)
            return
        trunk = torch.maximum(trunk_written, trunk_read) if writes else trunk_written
        assert (trunk <= self.forked[self.here]).all(), f"{func} meets the trunk"
        (written if writes else read).bitwise_or_(mine)


def bank(branches, half=False, dtype=torch.float32):
    step = BankStep(PLANS, 8, dtype, half, branches=branches)
    generator = torch.Generator().manual_seed(0)
    for tensor in (step.values.weight, step.values.bias, step.values.upper):
        tensor.uniform_(-0.3, 0.3, generator=generator)
    return step


@pytest.mark.parametrize("count", [16, 2])
@pytest.mark.parametrize(
    ("dtype", "half"), [(torch.float32, False), (torch.float32, True), (torch.float64, False)], ids=str
)
def test_no_branch_touches_what_another_writes(dtype, half, count):
    watched = Watched(count)
    step = bank(watched, half, dtype)
    with watched:
        step(8)
        step(5)
    assert watched.seen > 300 and not watched.forked


@pytest.mark.parametrize(
    "wrong",
    [
        lambda one, other: [(0, lambda: one.add_(1)), (1, lambda: one.add_(1))],
        lambda one, other: [(0, lambda: one.add_(1)), (1, lambda: other.add_(one))],
        lambda one, other: [(0, lambda: other.add_(one)), (1, lambda: one.add_(1))],
        lambda one, other: [(0, lambda: one.add_(1)), (None, lambda: other.add_(one))],
        lambda one, other: [(0, lambda: other.add_(1)), (None, lambda: one.add_(1)), (0, lambda: other.add_(one))],
    ],
)
def test_the_watch_sees_what_may_not_be(wrong):
    watched, one, other = Watched(2), torch.zeros(3), torch.zeros(3)

    def run(steps):
        with watched:
            for branch, work in steps:
                if branch is None:
                    work()
                else:
                    with watched.branch(branch):
                        work()

    with pytest.raises(AssertionError, match="meets"):
        run(wrong(one, other))


def test_the_watch_lets_pass_what_may_be():
    watched, one = Watched(2), torch.zeros(2, 6)
    with watched:
        one.add_(1)
        for branch in range(2):
            with watched.branch(branch):
                one[:, branch::2].mul_(2)  # columns in turn
        watched.join()
        one.sub_(2)
    assert not one.any()
