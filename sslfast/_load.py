"""Load the compiled libraries and the Triton kernels, once. The only file that names one of them.

``SSLFAST_CPU_VECTOR_BITS`` (128, 256 or 512) limits the vectors that the CPU kernels use.
"""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch

from sslfast._reference import barlow_twins as _barlow_twins
from sslfast._reference import head_bank as _head_bank
from sslfast._reference import mixed_edge as _mixed_edge
from sslfast._reference import nt_xent as _nt_xent
from sslfast._reference import score_lse as _score_lse
from sslfast._reference import self_classifier as _self_classifier
from sslfast._reference import sinkhorn as _sinkhorn
from sslfast._reference import swav_loss as _swav_loss
from sslfast._reference import unit_rows as _unit_rows

FOLDER = Path(__file__).parent
CPU_LIBRARY = FOLDER / "_C.so"
CUDA_LIBRARY = FOLDER / "_C_cuda.so"
FALLBACKS: dict[str, Callable[..., object]] = {
    "unit_rows_fwd": _unit_rows.unit_rows_fwd,
    "unit_rows_bwd": _unit_rows.unit_rows_bwd,
    "nt_xent_fwd": _nt_xent.nt_xent_fwd,
    "nt_xent_bwd": _nt_xent.nt_xent_bwd,
    "score_lse_fwd": _score_lse.score_lse_fwd,
    "score_lse_bwd": _score_lse.score_lse_bwd,
    "score_lse_bank_bwd": _score_lse.score_lse_bank_bwd,
    "barlow_twins_direct_fwd": _barlow_twins.barlow_twins_direct_fwd,
    "barlow_twins_direct_bwd": _barlow_twins.barlow_twins_direct_bwd,
    "barlow_twins_correlation": _barlow_twins.barlow_twins_correlation,
    "barlow_twins_dual_fwd": _barlow_twins.barlow_twins_dual_fwd,
    "barlow_twins_dual_bwd": _barlow_twins.barlow_twins_dual_bwd,
    "self_classifier_columns": _self_classifier.self_classifier_columns,
    "self_classifier_terms": _self_classifier.self_classifier_terms,
    "self_classifier_fwd": _self_classifier.self_classifier_fwd,
    "self_classifier_bwd": _self_classifier.self_classifier_bwd,
    "sinkhorn_fwd": _sinkhorn.sinkhorn_fwd,
    "sinkhorn_log_sums": _sinkhorn.sinkhorn_log_sums,
    "sinkhorn_probability_sums": _sinkhorn.sinkhorn_probability_sums,
    "sinkhorn_assign": _sinkhorn.sinkhorn_assign,
    "swav_potentials": _swav_loss.swav_potentials,
    "swav_loss_fwd": _swav_loss.swav_loss_fwd,
    "swav_loss_bwd": _swav_loss.swav_loss_bwd,
    "mixed_edge_fwd": _mixed_edge.mixed_edge_fwd,
    "mixed_edge_bwd": _mixed_edge.mixed_edge_bwd,
    "mixed_edge_track": _mixed_edge.mixed_edge_track,
    "head_bank_train": _head_bank.head_bank_train,
    "head_bank_evaluate": _head_bank.head_bank_evaluate,
}
"""Plain PyTorch for devices that no kernel of ours serves."""
TRITON_OPS = {
    "nt_xent_fwd": "nt_xent",
    "nt_xent_bwd": "nt_xent",
    "score_lse_fwd": "score_lse",
    "score_lse_bwd": "score_lse",
    "score_lse_bank_bwd": "score_lse",
    "barlow_twins_direct_fwd": "barlow_twins",
    "barlow_twins_direct_bwd": "barlow_twins",
    "barlow_twins_correlation": "barlow_twins",
    "barlow_twins_dual_fwd": "barlow_twins_dual",
    "barlow_twins_dual_bwd": "barlow_twins_dual",
    "self_classifier_columns": "self_classifier",
    "self_classifier_terms": "self_classifier",
    "self_classifier_fwd": "self_classifier",
    "self_classifier_bwd": "self_classifier",
    "sinkhorn_fwd": "sinkhorn",
    "sinkhorn_log_sums": "sinkhorn",
    "sinkhorn_probability_sums": "sinkhorn",
    "sinkhorn_assign": "sinkhorn",
    "swav_potentials": "swav_loss",
    "swav_loss_fwd": "swav_loss",
    "swav_loss_bwd": "swav_loss",
}
"""Operators whose CUDA kernel is written in Triton, and the module of ``sslfast.kernels`` that holds it."""

GRAPH_OPS = {"head_bank_train": "_head_bank.graph"}
"""Operators that run on CUDA as captured graphs of PyTorch's kernels, and the module that captures them."""

loaded: dict[str, str] = {}
"""What was loaded, or why not: ``cpu``, ``cuda``, ``triton`` and ``graphs``."""


def _load_cpu() -> None:
    if not CPU_LIBRARY.exists():
        raise ImportError(
            f"sslfast is not built: {CPU_LIBRARY} is missing; run `make native` in a checkout, "
            "or install the package with `pip install .`"
        )
    try:
        torch.ops.load_library(CPU_LIBRARY)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ImportError(
            f"sslfast cannot load {CPU_LIBRARY} with torch {torch.__version__} ({error}); build it again"
        ) from error
    limit = os.environ.get("SSLFAST_CPU_VECTOR_BITS") or "0"  # empty means unset
    if limit not in ("0", "128", "256", "512"):
        raise ImportError(f"SSLFAST_CPU_VECTOR_BITS must be 128, 256 or 512, got {limit!r}")
    loaded["cpu"] = f"{torch.ops.sslfast.cpu_vector_bits(int(limit))}-bit vectors"


def _load_fallbacks() -> None:
    for name, function in FALLBACKS.items():
        torch.library.impl(f"sslfast::{name}", "CompositeExplicitAutograd")(function)


def _load_cuda() -> None:
    if not torch.cuda.is_available():
        loaded["cuda"] = "not loaded: torch finds no CUDA device"
    elif not CUDA_LIBRARY.exists():
        loaded["cuda"] = f"not loaded: {CUDA_LIBRARY.name} was not built (CMake found no nvcc)"
    else:
        torch.ops.load_library(CUDA_LIBRARY)  # type: ignore[no-untyped-call]
        loaded["cuda"] = "loaded"


def _load_triton() -> None:
    if not torch.cuda.is_available():
        loaded["triton"] = "not loaded: torch finds no CUDA device"
    elif find_spec("triton") is None:
        loaded["triton"] = "not loaded: triton is not installed"
    else:
        from importlib import import_module

        for name, module in TRITON_OPS.items():
            kernel = getattr(import_module(f"sslfast.kernels.{module}"), name)
            torch.library.impl(f"sslfast::{name}", "CUDA")(kernel)
        loaded["triton"] = "loaded"


def _load_graphs() -> None:
    if not torch.cuda.is_available():
        loaded["graphs"] = "not loaded: torch finds no CUDA device"
        return
    from importlib import import_module

    for name, module in GRAPH_OPS.items():
        torch.library.impl(f"sslfast::{name}", "CUDA")(getattr(import_module(f"sslfast.{module}"), name))
    loaded["graphs"] = "loaded"


_load_cpu()
_load_fallbacks()
_load_cuda()
_load_triton()
_load_graphs()
