"""What a GPU would run is compiled here, without a GPU; and the libraries link against what they promise."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import sslfast

ROOT = Path(__file__).parent.parent
LIBRARIES = [Path(sslfast.__file__).parent / name for name in ("_C.so", "_C_cuda.so")]
TARGETS = (80, 90, 100)
KERNEL_FILES = sorted(path for path in (ROOT / "kernels").glob("*.py") if not path.stem.startswith("_"))

COMPILE = """
import importlib, sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
module = importlib.import_module("sslfast.kernels." + sys.argv[1])
for kernel, signature, constants in module.ahead():
    names = {**signature, **{name: "constexpr" for name in constants}}
    for target in map(int, sys.argv[2:]):
        source = ASTSource(kernel, signature=names, constexprs=constants)
        built = triton.compile(source, target=GPUTarget("cuda", target, 32), options=module.OPTIONS)
        assert built.asm["cubin"][:4] == b"\\x7fELF"
        print(kernel.__name__, target, len(built.asm["cubin"]))
"""


def compile_ahead(module, cache):
    # In a process of its own: the interpreter may be on in this one, and a cached cubin would prove nothing.
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    return subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", COMPILE, module, *map(str, TARGETS)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.fixture(scope="module")
def compilations(request, tmp_path_factory):
    """Every module that a test asks for, as many at a time as there are processors: one takes up to a minute."""
    called = [item.callspec.params for item in request.session.items if "compilations" in item.fixturenames]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield {
            one["module"]: pool.submit(compile_ahead, one["module"], tmp_path_factory.mktemp("cache")) for one in called
        }
        pool.shutdown(cancel_futures=True)


@pytest.mark.slow
@pytest.mark.parametrize("module", [path.stem for path in KERNEL_FILES])
def test_triton_kernels_compile_without_a_device(module, compilations):
    run = compilations[module].result()
    assert run.returncode == 0, run.stderr
    expected = len(importlib.import_module(f"sslfast.kernels.{module}").ahead()) * len(TARGETS)
    assert len(run.stdout.splitlines()) == expected


@pytest.mark.parametrize("path", KERNEL_FILES, ids=lambda path: path.stem)
def test_every_triton_kernel_is_among_them(path):
    pytest.importorskip("triton")
    kernels = {
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
    }
    ahead = {kernel.fn.__name__ for kernel, _, _ in importlib.import_module(f"sslfast.kernels.{path.stem}").ahead()}
    assert kernels == ahead


@pytest.mark.parametrize("path", KERNEL_FILES, ids=lambda path: path.stem)
def test_every_dtype_and_every_branch_is_among_them(path):
    pytest.importorskip("triton")
    module = importlib.import_module(f"sslfast.kernels.{path.stem}")
    dtypes, branches, present = defaultdict(set), defaultdict(set), set()
    for kernel, signature, constants in module.ahead():
        name = kernel.fn.__name__
        for value in signature.values():
            pointers = set(value) if isinstance(value, tuple) else {value}
            dtypes[name] |= pointers & {"*fp32", "*fp64", "*bf16", "*fp16"}
        present |= dtypes[name]
        for key, value in constants.items():
            if isinstance(value, bool):
                branches[name, key].add(value)
    # score_lse's callers convert half precision; sinkhorn's sums are never in it.
    without_half = {"_score_lse_fwd_kernel", "_score_lse_bwd_kernel", "_log_sums_kernel", "_add_sums_kernel"}
    for name, found in dtypes.items():
        assert found >= ({"*fp32", "*fp64"} if name in without_half else {"*fp32", "*fp64", "*bf16"}), name
    assert "*fp16" in present or path.stem == "score_lse"
    assert all(values == {False, True} for values in branches.values()), branches


def cuda_library():
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on this machine: _C_cuda was not built")
    assert LIBRARIES[1].exists(), "nvcc is here, but _C_cuda.so was not built"
    return LIBRARIES[1]


def cuobjdump():
    triton = pytest.importorskip("triton")
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    found = str(tool) if tool.exists() else shutil.which("cuobjdump")
    if found is None:
        pytest.skip("no cuobjdump on this machine")
    return found


def test_cuda_code_is_there_for_every_target():
    library = cuda_library()
    listed = subprocess.run([cuobjdump(), "--list-elf", library], capture_output=True, text=True, check=True).stdout
    assert {"sm_80", "sm_90a", "sm_100"} <= set(re.findall(r"\.(sm_\w+)\.cubin", listed))
    listed = subprocess.run([cuobjdump(), "--list-ptx", library], capture_output=True, text=True, check=True).stdout
    assert "sm_100" in listed, "PTX for devices newer than every cubin"


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.stem)
def test_libraries_hold_stable_symbols_only(library):
    if library == LIBRARIES[1]:
        cuda_library()
    if shutil.which("nm") is None:
        pytest.skip("no nm on this machine")
    names = subprocess.run(["nm", "-D", "-C", library], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(names) > 10
    unstable = [name for name in names if re.search(r"\b(_?Py[A-Z]\w*|c10::|at::|torch::jit|torch::autograd)", name)]
    assert unstable == []


def test_the_cpu_library_needs_no_cuda():
    if shutil.which("readelf") is None:
        pytest.skip("no readelf on this machine")
    needed = subprocess.run(["readelf", "-d", LIBRARIES[0]], capture_output=True, text=True, check=True).stdout
    assert "libtorch_cpu.so" in needed
    assert "cuda" not in needed.lower()
