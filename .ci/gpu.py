"""Everything that needs a GPU, with the Python, torch and nvcc that are there and no network; results as JSON files.

Builds in place, then runs the tests marked ``gpu``, compute-sanitizer's four tools, the head search and the
benchmarks. What needs a missing package or tool is skipped and listed. Exit code 0 only where everything that ran
passed on a CUDA device.

``STEPS`` chooses from ``tests,sanitizers,search,benchmarks``; the benchmarks end within ``MINUTES`` and go on another
time.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from inplace import ROOT, build, environment

FOLDER = ROOT / "build" / "inplace"
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
PACKAGES = ("torch", "triton", "pytest", "numpy", "tyro", "rich", "torchvision", "optuna", "lightly")

MACHINE = """
import json
import sslfast
from sslfast.bench.machine import machine
print(json.dumps(machine()))
"""

BENCHMARKS = """
import sys
from pathlib import Path
from sslfast.bench.results import Results
from sslfast.bench.runner import Plan, Runner, units
types = ("float32", "bfloat16")
wanted = units(dtypes=types)
wanted += tuple(one for one in units(dtypes=types, sweep=True) if one not in wanted)
plan = Plan(wanted, device=sys.argv[2], minutes=float(sys.argv[3]))
runner = Runner(plan, Results(Path(sys.argv[1])))
for unit in runner.run(runner.open()):
    print(unit.case.name, unit.size, unit.dtype, flush=True)
wrong = {**runner.refused, **runner.failed}
print(*(f"{name}: {reason}" for name, reason in wrong.items()), sep="\\n", file=sys.stderr)
sys.exit(1 if wrong else 0)
"""


def main(out: Path) -> int:
    """Run every step and write ``out/gpu.json`` and ``out/gpu.jsonl``, the benchmarks' rows; return the exit code."""
    result: dict[str, Any] = {
        "missing": [name for name in PACKAGES if find_spec(name) is None],
        "skipped": {},
        "steps": {},
    }
    out.mkdir(parents=True, exist_ok=True)
    build(FOLDER, f"-DSSLFAST_CUDA={'ON' if shutil.which('nvcc') else 'OFF'}")
    if shutil.which("nvcc") is None:
        result["skipped"]["_C_cuda"] = "no nvcc on this machine"
    described = _python("-c", MACHINE, capture=True)
    result["machine"] = json.loads(described.stdout) if described.returncode == 0 else described.stderr.strip()
    if described.returncode != 0:
        result["steps"]["import"] = "failed"
    elif not result["machine"]["cuda"]:
        result["steps"]["device"] = "no CUDA device"
    else:
        chosen = (os.environ.get("STEPS") or "tests,sanitizers,search,benchmarks").split(",")
        if "tests" in chosen:
            _tests(result)
        if "sanitizers" in chosen:
            _sanitizers(result)
        if "search" in chosen:
            _search(result, out)
        if "benchmarks" in chosen:
            _benchmarks(result, out)
    path = out / "gpu.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    for name, state in {
        **result["steps"],
        **{name: f"skipped: {why}" for name, why in result["skipped"].items()},
    }.items():
        print(f"{name}: {state}")
    print(f"missing packages: {', '.join(result['missing']) or 'none'}\nwritten: {path}")
    return 0 if result["steps"] and all(state == "passed" for state in result["steps"].values()) else 1


def gpu_tests() -> list[Path]:
    """Return the test modules that hold a test for a GPU: others may import packages that are not here."""
    texts = {path: path.read_text() for path in sorted((ROOT / "tests").rglob("test_*.py"))}
    return [path for path, text in texts.items() if "mark.gpu" in text or "@kernel_test" in text]


def _tests(result: dict[str, Any]) -> None:
    if "pytest" in result["missing"]:
        result["skipped"]["tests"] = "pytest is not installed"
        return
    code = _python("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *map(str, gpu_tests())).returncode
    result["steps"]["tests"] = "passed" if code == 0 else f"pytest ended with {code}"


def _sanitizers(result: dict[str, Any]) -> None:
    nvcc = shutil.which("nvcc")
    beside = Path(nvcc).resolve().parent / "compute-sanitizer" if nvcc else None
    tool = shutil.which("compute-sanitizer") or (str(beside) if beside and beside.exists() else None)
    if tool is None:
        result["skipped"]["compute-sanitizer"] = "not found on this machine"
        return
    script = str(ROOT / "tests" / "native" / "every_kernel.py")
    for check in TOOLS:
        command = [tool, "--tool", check, "--error-exitcode", "1", sys.executable, script]
        # Without PyTorch's cache, every overrun meets the end of an allocation.
        variables = {**environment(FOLDER), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        run = subprocess.run(command, env=variables, capture_output=True, text=True)
        tail = [line for line in (run.stdout + run.stderr).splitlines() if "SUMMARY" in line][-1:]
        result["steps"][check] = "passed" if run.returncode == 0 else f"exit code {run.returncode}: {' '.join(tail)}"


def _search(result: dict[str, Any], out: Path) -> None:
    path = out / "head_bank_gpu.json"
    code = _python("-m", "sslfast.bench.head_bank_gpu", str(path)).returncode
    result["steps"]["search"] = "passed" if code == 0 else f"exit code {code}"
    result["search"] = str(path)


def _benchmarks(result: dict[str, Any], out: Path) -> None:
    path = out / "gpu.jsonl"
    code = _python("-c", BENCHMARKS, str(path), "cuda", os.environ.get("MINUTES") or "0").returncode
    result["steps"]["benchmarks"] = "passed" if code == 0 else f"exit code {code}"
    result["benchmarks"] = str(path)


def _python(*words: str, capture: bool = False) -> subprocess.CompletedProcess[str]:
    # -P: the repository's own folders must not come before the tree that was built.
    return subprocess.run(
        [sys.executable, "-P", *words], cwd=ROOT, env=environment(FOLDER), capture_output=capture, text=True
    )


if __name__ == "__main__":
    sys.exit(main(Path(os.environ.get("OUT") or ROOT / "bench" / "results")))
