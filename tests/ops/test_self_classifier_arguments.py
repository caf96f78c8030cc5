"""What self_classifier and its operators refuse, and in which words."""

import pytest
import torch

import sslfast
from sslfast._reference import self_classifier as reference


def two_views():
    return [torch.rand(4, 3), torch.rand(4, 3)]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda a, b: torch.stack([a, b]), TypeError, "logits must be a list of views or of heads, got Tensor"),
        (lambda a, b: None, TypeError, "got NoneType"),
        (lambda a, b: [], ValueError, "at least two views, got 0"),
        (lambda a, b: [a], ValueError, "at least two views, got 1"),
        (lambda a, b: [[a, b], a], TypeError, "every head must be a list of views, got Tensor"),
        (lambda a, b: [[a, b], [a, b, a]], ValueError, "equally many views, got 2 and 3"),
        (lambda a, b: [[a, b], [a[:3], b[:3]]], ValueError, "as many rows, got 4 and 3"),
        (lambda a, b: [a, [1.0]], TypeError, r"logits\[1\] must be a tensor, got list"),
        (lambda a, b: [a, 1.0], TypeError, r"logits\[1\] must be a tensor, got float"),
        (lambda a, b: [[a, b], [a, 1.0]], TypeError, r"logits\[1\]\[1\] must be a tensor, got float"),
        (lambda a, b: [a.int(), b.int()], TypeError, r"logits\[0\] must be float32, .* got torch.int32"),
        (lambda a, b: [a.to(torch.complex64), b], TypeError, "got torch.complex64"),
        (lambda a, b: [a.to_sparse(), b], TypeError, "dense"),
        (lambda a, b: [a, b.double()], TypeError, r"must have logits\[0\]'s dtype torch.float32, got torch.float64"),
        (lambda a, b: [a, b.to("meta")], ValueError, "is on cpu, .* is on meta"),
        (lambda a, b: [a, b[:2]], ValueError, r"must have one shape, got \(4, 3\) and \(2, 3\)"),
        (lambda a, b: [a[0], b[0]], ValueError, r"must be \(B, K\), got \(3,\)"),
        (lambda a, b: [a[:0], b[:0]], ValueError, r"must not be empty, got \(0, 3\)"),
        (lambda a, b: [a[:, :0], b[:, :0]], ValueError, r"must not be empty, got \(4, 0\)"),
    ],
)
def test_bad_logits_are_named(change, error, words):
    with pytest.raises(error, match=f"self_classifier: .*{words}"):
        sslfast.self_classifier(change(*two_views()))


@pytest.mark.parametrize("name", ["row_temperature", "column_temperature", "eps"])
@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-1.0, ValueError), (float("nan"), ValueError), ("x", TypeError)]
)
def test_bad_numbers_are_named(name, value, error):
    with pytest.raises(error, match=f"self_classifier: {name} must be"):
        sslfast.self_classifier(two_views(), **{name: value})


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"eps": 1e-31}, ValueError, r"eps must be from 1e-30 to 1e\+30, got 1e-31"),
        ({"global_views": 0}, ValueError, "global_views must be at least 1, got 0"),
        ({"global_views": 1.0}, TypeError, "global_views must be a whole number, got float"),
        ({"group": "all"}, TypeError, "group must be None or a torch.distributed process group, got str"),
    ],
)
def test_bad_options_are_named(options, error, words):
    with pytest.raises(error, match=f"self_classifier: {words}"):
        sslfast.self_classifier(two_views(), **options)


def raw(**changes):
    """Arguments of the raw operators, some of them replaced."""
    x = two_views()
    _, columns, rows = reference.self_classifier_fwd(x, 0.1, 0.05, 2, 1e-8)
    values = {"grad": torch.ones(()), "views": x, "columns": columns, "rows": rows}
    values |= {"first_columns": columns[:3], "first_rows": rows[:2]}
    values |= {"row": 0.1, "column": 0.05, "globals": 2, "eps": 1e-8, "batch": 4} | changes
    options = [values[name] for name in ("row", "column", "globals", "eps", "batch")]
    return {
        "fwd": (values["views"], *options[:4]),
        "columns": (values["views"], *options[:2]),
        "terms": (values["views"], values["first_columns"], values["first_rows"], *options),
        "bwd": (*(values[name] for name in ("grad", "views", "columns", "rows")), *options),
    }


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("columns", {"views": [torch.zeros(4, 3)]}),
        ("columns", {"views": [torch.zeros(4, 3), torch.zeros(4, 2)]}),
        ("columns", {"views": [torch.zeros(4, 3), torch.zeros(4, 3).double()]}),
        ("columns", {"views": [torch.zeros(4, 3).int()] * 2}),
        ("columns", {"views": [torch.zeros(0, 3)] * 2}),
        ("columns", {"row": 0.0}),
        ("columns", {"column": float("nan")}),
        ("fwd", {"globals": 0}),
        ("fwd", {"eps": 0.0}),
        ("fwd", {"views": [torch.zeros(4, 3), torch.zeros(3, 3)]}),
        ("terms", {"first_columns": torch.zeros(3, 2, 4)}),
        ("terms", {"first_columns": torch.zeros(3, 2, 3).double()}),
        ("terms", {"first_rows": torch.zeros(2, 2, 3)}),
        ("terms", {"batch": 0}),
        ("bwd", {"grad": torch.ones(1)}),
        ("bwd", {"grad": torch.ones(()).double()}),
        ("bwd", {"columns": torch.zeros(3, 2, 3)}),
        ("bwd", {"rows": torch.zeros(5, 1, 4)}),
    ],
)
def test_the_raw_operators_refuse_too(name, changes):
    with pytest.raises(RuntimeError, match=f"self_classifier_{name}: "):
        getattr(torch.ops.sslfast, f"self_classifier_{name}")(*raw(**changes)[name])


def test_other_devices_get_shapes_from_the_fake():
    x = [view.to("meta").requires_grad_() for view in two_views()]
    loss = sslfast.self_classifier(x)
    assert loss.shape == () and loss.device.type == "meta"
    assert torch.autograd.grad(loss, x)[0].shape == (4, 3)
