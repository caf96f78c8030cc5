"""What a GPU would run is compiled here, without a GPU; and the libraries link against what they promise."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sslfast

ROOT = Path(__file__).parent.parent
LIBRARIES = [Path(sslfast.__file__).parent / name for name in ("_C.so", "_C_cuda.so")]
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


@pytest.mark.slow
@pytest.mark.parametrize("target", [80, 90, 100])
@pytest.mark.parametrize("module", [path.stem for path in KERNEL_FILES])
def test_triton_kernels_compile_without_a_device(module, target, tmp_path):
    pytest.importorskip("triton")
    # In a process of its own: the interpreter may be on in this one, and a cached cubin would prove nothing.
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    run = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", COMPILE, module, str(target)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == len(importlib.import_module(f"sslfast.kernels.{module}").ahead())


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
