"""What barlow_twins and its operators refuse, and in which words."""

import pytest
import torch

import sslfast

EPS = 1e-5


def test_one_row_is_refused():
    with pytest.raises(ValueError, match="barlow_twins: .* at least two rows, got 1"):
        sslfast.barlow_twins(torch.rand(1, 5), torch.rand(1, 5))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda a, b: ([1.0], b), TypeError, "z0 must be a tensor, got list"),
        (lambda a, b: (a.int(), b.int()), TypeError, "z0 must be float32, .* got torch.int32"),
        (lambda a, b: (a.to(torch.complex64), b), TypeError, "got torch.complex64"),
        (lambda a, b: (a.to_sparse(), b), TypeError, "dense"),
        (lambda a, b: (a, b.double()), TypeError, "z1 must have z0's dtype torch.float32, got torch.float64"),
        (lambda a, b: (a, b.to("meta")), ValueError, "z0 is on cpu, z1 is on meta"),
        (lambda a, b: (a[:2], b), ValueError, r"must both be \(N, D\), got \(2, 3\) and \(4, 3\)"),
        (lambda a, b: (a[0], b[0]), ValueError, r"got \(3,\)"),
        (lambda a, b: (a[None], b[None]), ValueError, r"got \(1, 4, 3\)"),
        (lambda a, b: (a[:0], b[:0]), ValueError, "must not be empty"),
        (lambda a, b: (a[:, :0], b[:, :0]), ValueError, "must not be empty"),
    ],
)
def test_bad_tensors_are_named(change, error, words):
    with pytest.raises(error, match=f"barlow_twins: .*{words}"):
        sslfast.barlow_twins(*change(torch.rand(4, 3), torch.rand(4, 3)))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"lambda_param": float("nan")}, ValueError, "lambda_param must be finite"),
        ({"lambda_param": "much"}, TypeError, "lambda_param must be a number"),
        ({"lambda_param": True}, TypeError, "lambda_param must be a number"),
        ({"eps": 0.0}, ValueError, "eps must be positive"),
        ({"eps": -1.0}, ValueError, "eps must be positive"),
        ({"eps": float("inf")}, ValueError, "eps must be positive and finite"),
        ({"eps": None}, TypeError, "eps must be a number"),
        ({"group": "all"}, TypeError, "group must be None or a torch.distributed process group, got str"),
    ],
)
def test_bad_options_are_named(options, error, words):
    with pytest.raises(error, match=f"barlow_twins: {words}"):
        sslfast.barlow_twins(torch.rand(4, 3), torch.rand(4, 3), **options)


Z = torch.zeros(4, 2)
STATISTICS = torch.zeros(2, 3, 2)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("direct_fwd", (Z[0], Z[0], 0.1, EPS)),
        ("direct_fwd", (Z, Z[:3], 0.1, EPS)),
        ("direct_fwd", (Z, Z.double(), 0.1, EPS)),
        ("direct_fwd", (Z[:0], Z[:0], 0.1, EPS)),
        ("direct_fwd", (Z.int(), Z.int(), 0.1, EPS)),
        ("direct_bwd", (torch.zeros(1), Z, Z, STATISTICS, torch.zeros(2, 2), 4, 0.1, EPS)),
        ("direct_bwd", (torch.zeros(()), Z, Z, STATISTICS[:, :2], torch.zeros(2, 2), 4, 0.1, EPS)),
        ("direct_bwd", (torch.zeros(()), Z, Z, STATISTICS, torch.zeros(2, 3), 4, 0.1, EPS)),
        ("direct_bwd", (torch.zeros(()), Z, Z, STATISTICS, torch.zeros(2, 2), 0, 0.1, EPS)),
        ("correlation", (Z, Z, STATISTICS.double(), 4)),
        ("correlation", (Z, Z, STATISTICS, 0)),
        ("dual_fwd", (Z, Z[:, :1], 0, 4, 0.1, EPS)),
        ("dual_fwd", (Z, Z, 1, 4, 0.1, EPS)),
        ("dual_fwd", (Z, Z, -1, 2, 0.1, EPS)),
        ("dual_fwd", (Z, Z, 0, 0, 0.1, EPS)),
        ("dual_bwd", (torch.zeros(()), Z, Z, STATISTICS, torch.zeros(3), torch.zeros(2, 4, 4), 0, 0.1, EPS)),
        ("dual_bwd", (torch.zeros(()), Z, Z, STATISTICS, torch.zeros(2), torch.zeros(2, 4, 3), 0, 0.1, EPS)),
        ("dual_bwd", (torch.zeros(()), Z, Z, STATISTICS, torch.zeros(2), torch.zeros(2, 4, 4), 1, 0.1, EPS)),
        ("dual_bwd", (torch.zeros(()), Z, Z.double(), STATISTICS, torch.zeros(2), torch.zeros(2, 4, 4), 0, 0.1, EPS)),
    ],
)
def test_the_raw_operators_refuse_too(name, arguments):
    with pytest.raises(RuntimeError, match=f"barlow_twins_{name}: "):
        getattr(torch.ops.sslfast, f"barlow_twins_{name}")(*arguments)


def test_a_part_of_the_rows_has_no_derivative():
    z0, z1 = (torch.rand(4, 6).requires_grad_() for _ in range(2))
    with pytest.raises(RuntimeError, match="barlow_twins_dual_fwd: a part of the rows"):
        torch.ops.sslfast.barlow_twins_dual_fwd(z0, z1, 0, 2, 0.1, EPS)
