"""What a number was measured on: one line for people, one mapping for files."""

import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import sslfast

MEASURED = (
    *("csrc", "kernels", "CMakeLists.txt", "sslfast/ops", "sslfast/_reference", "sslfast/_load.py"),
    *(f"bench/{name}" for name in ("cases", "contenders.py", "limits.py", "memory.py", "timing.py")),
    *("bench/turns.py", "bench/head_bank.py", "sslfast/search/bank.py", "bench/views.py"),
    *(f"sslfast/data/{name}.py" for name in ("loader", "views", "drawing", "native", "buffers", "dali", "dali_stream")),
)
"""What a benchmark's numbers depend on; a commit that touches none of these measures the same thing."""
PACKAGES = (
    "torch",
    "triton",
    "sslfast",
    "lightly",
    "solo-learn",
    "pytorch-metric-learning",
    "pytorch-lightning",
    "optuna",
    "torchvision",
    "kornia",
    "nvidia-dali-cuda130",
)


def machine(*paths: str) -> dict[str, Any]:
    """Describe processor, devices, versions and the commit of this checkout.

    Args:
        paths: with these, the commit is the last one that changed one of them.
    """
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "vector_bits": torch.ops.sslfast.cpu_vector_bits(0),
        "load": [round(one, 2) for one in os.getloadavg()],
        "cuda": devices,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "commit": _commit(paths),
    }


def build() -> str:
    """Return a hash of the libraries and Python files that a benchmark's numbers depend on, as they are installed."""
    package = Path(sslfast.__file__).parent
    paths = [path.removeprefix("sslfast/") for path in MEASURED]
    files = [package / "_C.so", package / "_C_cuda.so"]
    for path in (package / path for path in paths):
        files += sorted(path.glob("*.py")) if path.is_dir() else [path]
    found = hashlib.sha256()
    for file in files:
        if file.exists():
            found.update(file.name.encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:10]


def line(found: dict[str, Any]) -> str:
    """Put a machine on one line."""
    what = found["cuda"][0] if found["cuda"] else f"{found['processor']}, {found['threads']} threads"
    versions = ", ".join(f"{name} {one}" for name, one in found["versions"].items())
    return f"{what}, load {found['load'][0]} | {versions}, commit {found['commit']}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for entry in info.read_text().splitlines():
            if entry.startswith("model name"):
                return entry.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit(paths: tuple[str, ...]) -> str:
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / ".git").exists():  # installed: a repository further up is somebody else's
        return "unknown"
    git = ["git", "-C", str(checkout)]
    try:
        if not paths:
            return _output([*git, "describe", "--always", "--dirty", "--abbrev=10"])
        changed = _output([*git, "status", "--porcelain", "--", *paths])
        last = _output([*git, "log", "-1", "--format=%h", "--abbrev=10", "--", *paths])
        return (last or "unknown") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
