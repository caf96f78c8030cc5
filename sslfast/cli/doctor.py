"""``sslfast doctor``: versions, devices, native libraries, and which backend every operator uses and why."""

import json
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import tyro

PACKAGES = (
    *("sslfast", "torch", "torchvision", "triton", "numpy", "pillow", "safetensors", "optuna", "numba"),
    *("scikit-learn", "onnx", "onnxscript", "onnxruntime", "plotly", "rich", "tyro", "nvidia-dali-cuda130", "lightly"),
)


@dataclass(frozen=True)
class Options:
    """How to print it."""

    json: Annotated[bool, tyro.conf.arg(help="print JSON instead of tables")] = False


def run(options: Options) -> int:
    """Print what is installed and what would be used; always 0."""
    found = examine()
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        _print(found)
    return 0


def examine() -> dict[str, Any]:
    """Collect versions, devices, libraries and backends as JSON-able values."""
    return {
        "system": {"python": platform.python_version(), "platform": platform.platform()},
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": _devices(),
        "libraries": _libraries(),
        "operators": _operators(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    import os

    import torch

    devices: list[dict[str, Any]] = [
        {
            "device": "cpu",
            "what": f"{len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads",
            "vector_bits": torch.ops.sslfast.cpu_vector_bits(0),
        }
    ]
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"torch was built for CUDA {built}, but finds no driver or device" if built else "torch is a CPU build"
        return [*devices, {"device": "cuda", "what": f"none: {why}"}]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        what = (
            f"{properties.name}, sm_{properties.major}{properties.minor}, {memory:.0f} GiB, CUDA {torch.version.cuda}"
        )
        devices.append({"device": f"cuda:{index}", "what": what})
    return devices


def _libraries() -> dict[str, str]:
    from sslfast import _load

    return {
        f"{_load.CPU_LIBRARY.name} (C++)": f"loaded: {_load.loaded['cpu']}",
        f"{_load.CUDA_LIBRARY.name} (CUDA C++)": _load.loaded["cuda"],
        "sslfast.kernels (Triton)": _load.loaded["triton"],
        "captured PyTorch (CUDA graphs)": _load.loaded["graphs"],
    }


def _operators() -> list[dict[str, str]]:
    """Say for every operator what the dispatcher would call; asked of the dispatcher itself."""
    import torch

    from sslfast import _load
    from sslfast.testing import operators

    rows = []
    for name in sorted(operators()):
        row = {"operator": name}
        for device, key in (("cpu", "CPU"), ("cuda", "CUDA")):
            own = torch._C._dispatch_has_kernel_for_dispatch_key(f"sslfast::{name}", key)
            form = "triton" if name in _load.TRITON_OPS else "graphs" if name in _load.GRAPH_OPS else "cuda"
            if device == "cpu":
                row[device] = f"C++ ({_load.loaded['cpu']})" if own else "plain PyTorch"
            elif own:
                row[device] = {"triton": "Triton", "graphs": "CUDA graph", "cuda": "CUDA C++"}[form]
            else:
                row[device] = f"plain PyTorch ({_load.loaded[form]})"
        rows.append(row)
    return rows


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"Python {found['system']['python']} on {found['system']['platform']}")
    packages = Table("package", "version", title="Packages", title_justify="left")
    for name, number in found["packages"].items():
        packages.add_row(name, number or "[yellow]not installed")
    devices = Table("device", "what", title="Devices", title_justify="left")
    for device in found["devices"]:
        bits = f", {device['vector_bits']}-bit vectors" if "vector_bits" in device else ""
        devices.add_row(device["device"], device["what"] + bits)
    libraries = Table("library", "state", title="Native libraries", title_justify="left")
    for name, state in found["libraries"].items():
        libraries.add_row(name, state)
    operators = Table("operator", "cpu", "cuda", title="What each operator uses", title_justify="left")
    for row in found["operators"]:
        operators.add_row(row["operator"], row["cpu"], row["cuda"])
    for table in (packages, devices, libraries, operators):
        console.print(table)
