"""Which device to compute on, as a person names it."""

from pathlib import Path

import torch

from sslfast.errors import UsageError


def resolve_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` into a device that is there.

    Args:
        name: ``auto`` takes the first GPU where there is one, and the CPU otherwise.

    Raises:
        UsageError: the name is no device, or that device is not in this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device {name!r}; there are: auto, cpu, cuda, cuda:0, cuda:1, ...") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            found = f"this machine has {count}" if count else "torch sees no GPU on this machine"
            raise UsageError(f"--device {name} was asked for, but {found}; use --device cpu (or auto)")
    elif device.type != "cpu":
        raise UsageError(f"sslfast computes on cpu and cuda, not on {device.type}; use --device cpu (or auto)")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Turn ``auto``, ``float32`` or ``bfloat16`` into the type that products are computed in.

    Args:
        name: ``auto`` takes bfloat16 where the processor multiplies it in hardware, and float32 elsewhere.
        device: that computes.

    Raises:
        UsageError: the name is no such type.
    """
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
        flags = _processor_flags()
        return torch.bfloat16 if flags & {"avx512_bf16", "amx_bf16"} else torch.float32
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in types:
        raise UsageError(f"unknown dtype {name!r}; there are: auto, {', '.join(types)}")
    return types[name]


def _processor_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith("flags") for flag in line.split()}
