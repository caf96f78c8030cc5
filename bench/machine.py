"""What a number was measured on: one line for people, one mapping for files."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """Describe processor, devices, versions and the commit of this checkout."""
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
        "versions": {name: found for name in ("torch", "triton", "sslfast", "lightly") if (found := _version(name))},
        "commit": _commit(),
    }


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


def _commit() -> str:
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / ".git").exists():  # installed: a repository further up is somebody else's
        return "unknown"
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
