"""Error bounds of the vectorised functions of csrc/include/sslfast/vector.h, measured over whole ranges of float32."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import sslfast  # noqa: F401  the package must load: it says which vectors this machine has

FLAGS = {128: [], 256: ["-mavx2", "-mfma"], 512: ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"]}
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("bits", FLAGS)
def test_logarithm_and_power_of_two(bits, tmp_path):
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler on this machine")
    before = torch.ops.sslfast.cpu_vector_bits(0)
    widest = torch.ops.sslfast.cpu_vector_bits(512)
    torch.ops.sslfast.cpu_vector_bits(before)
    if widest < bits:
        pytest.skip(f"this processor has {widest}-bit vectors")
    program = tmp_path / "logarithm"
    words = ["-std=gnu++20", "-O2", f"-DSSLFAST_VECTOR_BITS={bits}", *FLAGS[bits], f"-I{ROOT / 'csrc/include'}"]
    subprocess.run([compiler, *words, str(Path(__file__).with_name("logarithm.cpp")), "-o", str(program)], check=True)
    lines = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout.splitlines()
    log_error, exp2_error = map(float, lines[0].split())
    assert 2**-26 < log_error < 2**-23  # a bound that nothing comes near would prove nothing
    assert 2**-26 < exp2_error < 2**-22
    assert set(" ".join(lines[1:]).split()) == {"1"}
