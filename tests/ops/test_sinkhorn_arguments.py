"""What sinkhorn and its operators refuse, and in which words."""

import pytest
import torch

import sslfast


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda x: [1.0], TypeError, "scores must be a tensor, got list"),
        (lambda x: x.int(), TypeError, "scores must be float32, .* got torch.int32"),
        (lambda x: x.to(torch.complex64), TypeError, "got torch.complex64"),
        (lambda x: x.to_sparse(), TypeError, "dense"),
        (lambda x: x[0], ValueError, r"must be \(B, K\), got \(3,\)"),
        (lambda x: x[None], ValueError, r"got \(1, 4, 3\)"),
        (lambda x: x[:0], ValueError, "must not be empty"),
        (lambda x: x[:, :0], ValueError, "must not be empty"),
    ],
)
def test_bad_scores_are_named(change, error, words):
    with pytest.raises(error, match=f"sinkhorn: .*{words}"):
        sslfast.sinkhorn(change(torch.rand(4, 3)))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"iterations": -1}, ValueError, "iterations must be at least 0, got -1"),
        ({"iterations": 1.5}, TypeError, "iterations must be a whole number, got float"),
        ({"iterations": True}, TypeError, "iterations"),
        ({"epsilon": 0.0}, ValueError, "epsilon must be positive and finite, got 0.0"),
        ({"epsilon": float("nan")}, ValueError, "epsilon"),
        ({"epsilon": "small"}, TypeError, "epsilon must be a number, got str"),
        ({"valid_rows": 5}, ValueError, "valid_rows must be at most the 4 rows, got 5"),
        ({"valid_rows": -1}, ValueError, "valid_rows must be at least 0, got -1"),
        ({"valid_rows": 1.0}, TypeError, "valid_rows must be a whole number, got float"),
        ({"valid_rows": True}, TypeError, "valid_rows"),
        ({"valid_rows": torch.tensor(1.0)}, TypeError, "valid_rows must be a whole number or hold one"),
        ({"valid_rows": torch.tensor([1, 2])}, ValueError, r"valid_rows must hold one number, got shape \(2,\)"),
        ({"valid_rows": torch.tensor(1, device="meta")}, ValueError, "scores are on cpu, valid_rows is on meta"),
        ({"group": "world"}, TypeError, "group must be None or a torch.distributed process group, got str"),
    ],
)
def test_bad_options_are_named(options, error, words):
    with pytest.raises(error, match=f"sinkhorn: {words}"):
        sslfast.sinkhorn(torch.rand(4, 3), **options)


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        ("sinkhorn_fwd", (torch.zeros(4), None, 3, 0.05)),
        ("sinkhorn_fwd", (torch.zeros(4, 0), None, 3, 0.05)),
        ("sinkhorn_fwd", (torch.zeros(4, 2, dtype=torch.float16), None, 3, 0.05)),
        ("sinkhorn_fwd", (torch.zeros(4, 2), None, -1, 0.05)),
        ("sinkhorn_fwd", (torch.zeros(4, 2), None, 3, 0.0)),
        ("sinkhorn_fwd", (torch.zeros(4, 2), torch.tensor(1.0), 3, 0.05)),
        ("sinkhorn_fwd", (torch.zeros(4, 2), torch.tensor([1]), 3, 0.05)),
        ("sinkhorn_log_sums", (torch.zeros(4), None, 0.05)),
        ("sinkhorn_probability_sums", (torch.zeros(4, 2), torch.zeros(3), None, 0.05)),
        ("sinkhorn_assign", (torch.zeros(4, 2), torch.zeros(2, dtype=torch.float64), None, 0.05, True)),
    ],
)
def test_the_raw_operators_refuse_too(operator, arguments):
    with pytest.raises(RuntimeError, match=f"{operator}: "):
        getattr(torch.ops.sslfast, operator)(*arguments)


def test_other_devices_get_shapes_from_the_fake():
    result = sslfast.sinkhorn(torch.rand(4, 3).to("meta"), valid_rows=2)
    assert result.shape == (4, 3) and result.device.type == "meta"
