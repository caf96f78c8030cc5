import pytest
import torch

import sslfast
from sslfast._reference.mixed_edge import norm_count, weight_shapes
from sslfast._reference.primitives import PRIMITIVES


def arguments(shape=(3, 8, 4, 4), stride=1, k=2, primitives=PRIMITIVES, **others):
    codes = [PRIMITIVES.index(name) for name in primitives if name in PRIMITIVES]
    c = shape[1] // k if isinstance(k, int) and k > 0 else 4
    known = stride if stride in (1, 2) else 1
    given = {
        "x": torch.randn(shape),
        "alpha": torch.ones(len(primitives)),
        "weights": [torch.randn(one) for one in weight_shapes(codes, c, known)],
        "running": [torch.ones(c) for _ in range(2 * norm_count(codes, known))],
        "stride": stride,
        "k": k,
        "primitives": primitives,
        "training": True,
    }
    return given | others


def test_what_is_right_runs():
    sslfast.mixed_edge(**arguments())
    sslfast.mixed_edge(**arguments(stride=2))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (arguments(shape=(3, 6, 4, 4), k=4), ValueError, "divisible by k = 4, got 6"),
        (arguments(primitives=()), ValueError, "at least one operation, got none"),
        (arguments(primitives=("none", "conv_7x1_1x7")), ValueError, "got 'conv_7x1_1x7'"),
        (arguments(primitives=("none", "none")), ValueError, "must differ, got none, none"),
        (arguments(primitives="none"), TypeError, "list of names, got str"),
        (arguments(alpha=torch.ones(7)), ValueError, r"one number per primitive, \(8,\), got \(7,\)"),
        (arguments(alpha=torch.ones(8, 1)), ValueError, r"one number per primitive, \(8,\), got \(8, 1\)"),
        (arguments(alpha=[1.0] * 8), TypeError, "alpha must be a tensor, got list"),
        (arguments(alpha=torch.ones(8).double()), TypeError, "alpha must have x's dtype"),
        (arguments(stride=3), ValueError, "stride must be 1 or 2, got 3"),
        (arguments(k=0), ValueError, "k must be at least 1, got 0"),
        (arguments(k=2.0), TypeError, "k must be a whole number, got float"),
        (arguments(shape=(3, 8, 5, 4), stride=2), ValueError, "even height and width, got 5 x 4"),
        (arguments(shape=(3, 8, 4, 1), stride=2), ValueError, "even height and width, got 4 x 1"),
        (arguments(shape=(3, 6, 4, 4), stride=2), ValueError, "even number of channels, got C / k = 3"),
        (arguments(shape=(0, 8, 4, 4)), ValueError, r"not empty, got \(0, 8, 4, 4\)"),
        (arguments(shape=(3, 8, 4, 4), x=torch.randn(3, 8, 4)), ValueError, r"must be \(B, C, H, W\)"),
        (arguments(x=torch.randn(3, 8, 4, 4).half()), TypeError, "dtype"),
        (arguments(weights=torch.randn(3)), TypeError, "weights must be a list of tensors, got Tensor"),
        (arguments(weights=[]), ValueError, "12 weights, got 0"),
        (arguments(weights=[torch.randn(1)] * 12), ValueError, r"weights\[0\] must be \(4, 1, 3, 3\), got \(1,\)"),
        (arguments(running=[torch.ones(4)]), ValueError, "a mean and a variance for 8 norms, got 1"),
        (arguments(running=[torch.ones(3)] * 16), ValueError, r"running\[0\] must be \(4,\), got \(3,\)"),
        (arguments(running=torch.ones(4)), TypeError, "running must be a list of tensors"),
        (arguments(shape=(1, 8, 1, 1)), ValueError, "more than one number per channel in training, got 1"),
        (arguments(shape=(1, 8, 2, 2), stride=2), ValueError, "more than one number per channel in training, got 1"),
        (arguments(skip_dropout=1.0), ValueError, "skip_dropout must be from 0 to below 1, got 1.0"),
        (arguments(skip_dropout=-0.1), ValueError, "skip_dropout must be from 0 to below 1, got -0.1"),
        (arguments(skip_mask=torch.ones(3, 8, 4, 4)), ValueError, r"skip_mask must be \(3, 4, 4, 4\)"),
        (arguments(eps=0.0), ValueError, "eps must be positive"),
        (arguments(momentum=1.5), ValueError, "momentum must be from 0 to 1, got 1.5"),
        (arguments(momentum=None), TypeError, "momentum must be a number, got NoneType"),
    ],
)
def test_bad_arguments_say_what_came(given, error, message):
    with pytest.raises(error, match=message) as caught:
        sslfast.mixed_edge(**given)
    assert str(caught.value).startswith("mixed_edge: ") and "\n" not in str(caught.value)


def test_one_number_per_channel_is_enough_in_evaluation():
    out = sslfast.mixed_edge(**arguments(shape=(1, 8, 1, 1), training=False))
    assert out.shape == (1, 8, 1, 1) and out.isfinite().all()


@pytest.mark.parametrize(
    "change",
    [
        {"x": torch.zeros(3, 8, 4)},
        {"x": torch.zeros(3, 8, 4, 4, dtype=torch.int64)},
        {"alpha": torch.ones(3)},
        {"weights": []},
        {"running": [torch.ones(4)]},
        {"skip_mask": torch.ones(1)},
        {"k": 3},
        {"stride": 4},
        {"primitives": [9] * 8},
        {"primitives": [1] * 8},
    ],
)
def test_the_raw_operators_refuse_what_does_not_fit(change):
    given = arguments() | {"primitives": list(range(8)), "skip_mask": None} | change
    names = ("x", "alpha", "weights", "running", "skip_mask", "stride", "k", "primitives")
    with pytest.raises(RuntimeError, match="mixed_edge_fwd: "):
        torch.ops.sslfast.mixed_edge_fwd(*(given[name] for name in names), 1e-5)
