import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sslfast

PACKAGE = Path(sslfast.__file__).parent


def test_public_names():
    assert sslfast.__all__ == [
        "__version__",
        "accelerate",
        "barlow_twins",
        "losses",
        "mixed_edge",
        "nt_xent",
        "nt_xent_indexed",
        "self_classifier",
        "sinkhorn",
        "swav_loss",
    ]
    assert all(hasattr(sslfast, name) for name in sslfast.__all__)


def test_names_and_defaults():
    assert str(inspect.signature(sslfast.nt_xent)) == (
        "(z0: torch.Tensor, z1: torch.Tensor, temperature: float = 0.5, *, negatives: torch.Tensor | None = None, "
        "group: torch.distributed.distributed_c10d.ProcessGroup | None = None) -> torch.Tensor"
    )
    assert str(inspect.signature(sslfast.nt_xent_indexed)) == (
        "(z: torch.Tensor, indexes: torch.Tensor, temperature: float = 0.1, *, "
        "group: torch.distributed.distributed_c10d.ProcessGroup | None = None) -> torch.Tensor"
    )
    assert str(inspect.signature(sslfast.self_classifier)) == (
        "(logits: collections.abc.Sequence[torch.Tensor] | "
        "collections.abc.Sequence[collections.abc.Sequence[torch.Tensor]],"
        " row_temperature: float = 0.1, column_temperature: float = 0.05, *, global_views: int = 2, eps: float = 1e-08,"
        " group: Any = None) -> torch.Tensor"
    )
    assert str(inspect.signature(sslfast.barlow_twins)) == (
        "(z0: torch.Tensor, z1: torch.Tensor, lambda_param: float = 0.005, *, eps: float = 1e-05, "
        "group: torch.distributed.distributed_c10d.ProcessGroup | None = None) -> torch.Tensor"
    )
    assert str(inspect.signature(sslfast.mixed_edge)) == (
        "(x: torch.Tensor, alpha: torch.Tensor, weights: collections.abc.Sequence[torch.Tensor], "
        "running: collections.abc.Sequence[torch.Tensor] | None, *, stride: int, k: int = 4, "
        "primitives: collections.abc.Sequence[str] = ('none', 'max_pool_3x3', 'avg_pool_3x3', 'skip_connect', "
        "'sep_conv_3x3', 'sep_conv_5x5', 'dil_conv_3x3', 'dil_conv_5x5'), training: bool, skip_dropout: float = 0.0, "
        "eps: float = 1e-05, momentum: float = 0.1, skip_mask: torch.Tensor | None = None) -> torch.Tensor"
    )
    assert str(inspect.signature(sslfast.accelerate)) == "(library: str) -> sslfast.accelerate.Acceleration"
    losses = {
        "NTXentLoss": "temperature: float = 0.5, memory_bank_size: int | collections.abc.Sequence[int] = 0, "
        "gather_distributed: bool = False",
        "BarlowTwinsLoss": "lambda_param: float = 0.005, gather_distributed: bool = False",
        "SwaVLoss": "temperature: float = 0.1, sinkhorn_iterations: int = 3, sinkhorn_epsilon: float = 0.05, "
        "sinkhorn_gather_distributed: bool = False",
        "SelfClassifierLoss": "row_temperature: float = 0.1, column_temperature: float = 0.05, eps: float = 1e-08, "
        "gather_distributed: bool = False",
    }
    for name, arguments in losses.items():
        assert str(inspect.signature(getattr(sslfast.losses, name))) == f"({arguments}) -> None"
    assert str(inspect.signature(sslfast.losses.NTXentLoss.forward)).startswith(
        "(self, out0: torch.Tensor, out1: torch"
    )


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def copy_of_the_package(folder):
    """The package without its compiled libraries."""
    shutil.copytree(PACKAGE, folder / "sslfast", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return str(folder)


def test_without_the_library_there_is_one_helpful_line(tmp_path):
    run = python("-c", "import sslfast", PYTHONPATH=copy_of_the_package(tmp_path))
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: sslfast is not built: ") and "make native" in last


def test_a_library_that_does_not_load_is_named(tmp_path):
    path = copy_of_the_package(tmp_path)
    (tmp_path / "sslfast" / "_C.so").write_bytes(b"not a library")
    run = python("-c", "import sslfast", PYTHONPATH=path)
    assert run.stderr.strip().splitlines()[-1].startswith("ImportError: sslfast cannot load ")


@pytest.mark.parametrize(("bits", "found"), [("128", "128"), ("256", "128 256"), ("512", "128 256 512")])
def test_the_vector_width_can_be_limited(bits, found):
    run = python(
        "-c", "import sslfast, torch; print(torch.ops.sslfast.cpu_vector_bits(0))", SSLFAST_CPU_VECTOR_BITS=bits
    )
    assert run.stdout.strip() in found.split(), run.stderr


def test_a_wrong_vector_width_is_named():
    run = python("-c", "import sslfast", SSLFAST_CPU_VECTOR_BITS="1024")
    assert run.stderr.strip().endswith("ImportError: SSLFAST_CPU_VECTOR_BITS must be 128, 256 or 512, got '1024'")


def test_importing_stays_light():
    # Triton, Optuna, plotly and friends are for those who use them.
    heavy = "triton optuna plotly sklearn onnxruntime numba torchvision nvidia.dali"
    code = f"import sys, sslfast; print([name for name in {heavy.split()!r} if name in sys.modules])"
    import torch

    if torch.cuda.is_available():
        pytest.skip("with a CUDA device, the Triton kernels are loaded")
    assert python("-c", code).stdout.strip() == "[]"


def test_an_empty_vector_width_means_none_was_asked_for():
    run = python("-c", "import sslfast, torch; print(torch.ops.sslfast.cpu_vector_bits(0))", SSLFAST_CPU_VECTOR_BITS="")
    assert run.stdout.strip() in ("128", "256", "512"), run.stderr


PARTS = "data evaluate export features models nas pretrain report search"


def test_the_parts_are_there_when_they_are_named():
    code = f"""
import sys, sslfast
for name in "{PARTS}".split():
    assert name in dir(sslfast) and getattr(sslfast, name) is sys.modules[f"sslfast.{{name}}"], name
print(sslfast.data.load.__name__, hasattr(sslfast, "nothing"))
"""
    run = python("-c", code)
    assert run.stdout.strip() == "load False", run.stderr


def test_the_parts_are_imported_by_nobody_else():
    code = f"import sys, sslfast; print([name for name in '{PARTS}'.split() if f'sslfast.{{name}}' in sys.modules])"
    assert python("-c", code).stdout.strip() == "[]"
