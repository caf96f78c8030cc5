"""What swav_loss and its operators refuse, and in which words."""

import pytest
import torch

import sslfast


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda a, b: (a[0], b, None), TypeError, "high_resolution must be a list of tensors, got Tensor"),
        (lambda a, b: (a, b[0], None), TypeError, "low_resolution must be a list of tensors, got Tensor"),
        (lambda a, b: (a, b, a[0]), TypeError, "queue must be a list of tensors, got Tensor"),
        (lambda a, b: (a, None, None), TypeError, "low_resolution must be a list of tensors, got NoneType"),
        (lambda a, b: ([], b, None), ValueError, "got 0 high-resolution and 1 low-resolution views"),
        (lambda a, b: (a[:1], [], None), ValueError, "got 1 high-resolution and 0 low-resolution views"),
        (lambda a, b: ([a[0], 1.0], b, None), TypeError, r"high_resolution\[1\] must be a tensor, got float"),
        (lambda a, b: (a, [b[0].int()], None), TypeError, r"low_resolution\[0\] must be float32, .* got torch.int32"),
        (lambda a, b: (a, [b[0].to_sparse()], None), TypeError, "dense"),
        (lambda a, b: (a, [b[0].double()], None), TypeError, r"must have high_resolution\[0\]'s dtype torch.float32"),
        (lambda a, b: (a, [b[0].to("meta")], None), ValueError, r"low_resolution\[0\] is on meta"),
        (lambda a, b: (a, [b[0][:2]], None), ValueError, r"low_resolution\[0\] has \(2, 3\)"),
        (lambda a, b: ([a[0][0], a[1]], b, None), ValueError, r"\(B, K\) and not empty, got \(3,\)"),
        (lambda a, b: ([a[0][:0], a[1]], b, None), ValueError, r"\(B, K\) and not empty, got \(0, 3\)"),
        (lambda a, b: (a, b, a[:1]), ValueError, "one tensor per high-resolution view, got 1 for 2"),
        (lambda a, b: (a, b, []), ValueError, "one tensor per high-resolution view, got 0 for 2"),
        (lambda a, b: (a, b, [a[0], a[1][:, :2]]), ValueError, r"queue\[1\] must be \(rows, 3\), got \(4, 2\)"),
        (lambda a, b: (a, b, [a[0], a[1].double()]), TypeError, r"queue\[1\] must have"),
    ],
)
def test_bad_tensors_are_named(change, error, words):
    high, low = [torch.rand(4, 3), torch.rand(4, 3)], [torch.rand(4, 3)]
    with pytest.raises(error, match=f"swav_loss: .*{words}"):
        sslfast.swav_loss(*change(high, low))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"temperature": 0.0}, ValueError, "temperature must be positive and finite, got 0.0"),
        ({"temperature": "warm"}, TypeError, "temperature must be a number, got str"),
        ({"iterations": -1}, ValueError, "iterations must be at least 0, got -1"),
        ({"iterations": 2.0}, TypeError, "iterations must be a whole number, got float"),
        ({"epsilon": float("inf")}, ValueError, "epsilon must be positive and finite, got inf"),
        ({"group": 3}, TypeError, "group must be None or a torch.distributed process group, got int"),
    ],
)
def test_bad_options_are_named(options, error, words):
    with pytest.raises(error, match=f"swav_loss: {words}"):
        sslfast.swav_loss([torch.rand(4, 3), torch.rand(4, 3)], [], **options)


def _raw_arguments():
    a, potential = torch.zeros(4, 2), torch.zeros(2, 2)
    return a, potential, torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        ("swav_potentials", lambda a, p, s: ([a, a[:2]], [], 3, 0.05)),
        ("swav_potentials", lambda a, p, s: ([a, a], [a], 3, 0.05)),
        ("swav_potentials", lambda a, p, s: ([a], [a[:, :1]], 3, 0.05)),
        ("swav_potentials", lambda a, p, s: ([a], [], -1, 0.05)),
        ("swav_potentials", lambda a, p, s: ([a], [], 3, 0.0)),
        ("swav_potentials", lambda a, p, s: ([a[:0]], [], 3, 0.05)),
        ("swav_loss_fwd", lambda a, p, s: ([a], [], p[:1], True, 0.1, 0.05)),
        ("swav_loss_fwd", lambda a, p, s: ([a, a], [a[:, :1]], p, True, 0.1, 0.05)),
        ("swav_loss_fwd", lambda a, p, s: ([a, a], [a.double()], p, True, 0.1, 0.05)),
        ("swav_loss_fwd", lambda a, p, s: ([a, a], [a], p[:1], True, 0.1, 0.05)),
        ("swav_loss_fwd", lambda a, p, s: ([a, a], [a], p, True, 0.0, 0.05)),
        ("swav_loss_bwd", lambda a, p, s: (a, [a, a], [], p, s, s, True, 0.1, 0.05)),
        ("swav_loss_bwd", lambda a, p, s: (a.sum(), [a, a], [], p, s[:1], s, True, 0.1, 0.05)),
        ("swav_loss_bwd", lambda a, p, s: (a.sum(), [a, a], [], p, s, s[:, :1], True, 0.1, 0.05)),
    ],
)
def test_the_raw_operators_refuse_too(operator, arguments):
    with pytest.raises(RuntimeError, match=f"{operator}: "):
        getattr(torch.ops.sslfast, operator)(*arguments(*_raw_arguments()))


def test_other_devices_get_shapes_from_the_fake():
    first, second = (torch.rand(4, 3, device="meta").requires_grad_() for _ in range(2))
    loss = sslfast.swav_loss([first, second], [], [first.detach(), second.detach()])
    assert loss.shape == () and loss.device.type == "meta"
    assert torch.autograd.grad(loss, first)[0].shape == (4, 3)
