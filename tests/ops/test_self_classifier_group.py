"""Every rank holds some rows of one batch: value and gradient are those of the whole batch."""

import gloo
import pytest
import torch
import torch.distributed as distributed

import sslfast
from sslfast._reference import self_classifier as reference
from sslfast.ops import self_classifier as op

ROWS = {1: [7], 2: [5, 3], 3: [1, 6, 4]}


def heads(dtype=torch.float64, rows=11):
    generator = torch.Generator().manual_seed(0)
    drawn = [[torch.randn(rows, classes, generator=generator).to(dtype) for _ in range(3)] for classes in (5, 9)]
    drawn[0][1][2:] -= 3.0  # the ranks' maxima differ
    return drawn


def own_rows(rank, world):
    start = sum(ROWS[world][:rank])
    cut = [[x[start : start + ROWS[world][rank]].clone().requires_grad_() for x in head] for head in heads()]
    return cut, [x for head in cut for x in head]


def loss_and_gradient(rank, world):
    cut, leaves = own_rows(rank, world)
    sent = []
    for name in ("all_reduce", "all_gather"):
        plain = getattr(distributed, name)

        def counted(*arguments, plain=plain, **options):
            sent.append([one for one in arguments if isinstance(one, torch.Tensor)][-1].numel())
            return plain(*arguments, **options)

        setattr(distributed, name, counted)
    loss = sslfast.self_classifier(cut, group=distributed.group.WORLD)
    forward = list(sent)
    grads = torch.autograd.grad(loss, leaves)
    return {"loss": loss.detach(), "grads": grads, "forward": forward, "backward": sent[len(forward) :]}


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_agree_with_one_process(world):
    total = sum(ROWS[world])
    whole = [[x[:total].clone().requires_grad_() for x in head] for head in heads()]
    leaves = [x for head in whole for x in head]
    want = reference.self_classifier(whole)
    want_grads = torch.autograd.grad(want, leaves)
    results = gloo.run(__file__, "loss_and_gradient", world)
    for result in results:
        torch.testing.assert_close(result["loss"], want.detach(), rtol=1e-12, atol=1e-12)
    for position, grad in enumerate(want_grads):
        got = torch.cat([result["grads"][position] for result in results])
        torch.testing.assert_close(got, grad * world, rtol=1e-10, atol=1e-12)
    for result in results if world > 1 else []:
        # The number of rows; per head the maxima, two sums, the loss. Backward: two sums per head, the last one first.
        assert result["forward"] == [1, 3 * 5, 2 * 3 * 5, 1, 3 * 9, 2 * 3 * 9, 1]
        assert result["backward"] == [2 * 3 * 9, 2 * 3 * 5]


def masked_columns(rank, world):
    """-infinity on a whole rank, but not in the whole column; then in the whole column."""
    cut, _ = own_rows(rank, world)
    with torch.no_grad():
        if rank == 0:
            cut[0][0][:, 2] = -torch.inf
    some = sslfast.self_classifier(cut[0], group=distributed.group.WORLD).detach()
    with torch.no_grad():
        cut[0][0][:, 2] = -torch.inf
    return {"some": some, "all": sslfast.self_classifier(cut[0], group=distributed.group.WORLD).detach()}


def test_ranks_may_mask_a_column():
    whole = [x[: sum(ROWS[2])].clone() for x in heads()[0]]
    whole[0][: ROWS[2][0], 2] = -torch.inf
    want = reference.self_classifier(whole)
    assert want.isfinite()
    for result in gloo.run(__file__, "masked_columns", 2):
        torch.testing.assert_close(result["some"], want, rtol=1e-12, atol=1e-12)
        assert result["all"].isnan()


def refused(rank, world):
    cut, leaves = own_rows(rank, world)
    loss = sslfast.self_classifier(cut, group=distributed.group.WORLD)
    grads = torch.autograd.grad(loss, leaves, create_graph=True)
    errors = []
    try:
        torch.autograd.grad(grads[0].square().sum(), leaves)
    except NotImplementedError as error:
        errors.append(str(error))
    try:
        torch.func.vmap(lambda x: sslfast.self_classifier([x, x], group=distributed.group.WORLD))(torch.randn(2, 4, 3))
    except NotImplementedError as error:
        errors.append(str(error))
    return errors


def test_ranks_are_told_what_is_not_supported():
    for errors in gloo.run(__file__, "refused", 2):
        assert errors == [
            "self_classifier: second derivatives are not supported with group",
            "self_classifier: vmap is not supported with group",
        ]


def test_the_options_are_the_raw_operators():
    schema = torch.ops.sslfast.self_classifier_terms.default._schema
    assert [argument.name for argument in schema.arguments][-5:] == list(op.Options._fields)
