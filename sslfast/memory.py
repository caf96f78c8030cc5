"""How much memory a process may still take, and whether it keeps what it frees."""

import ctypes
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_CGROUPS = Path("/sys/fs/cgroup")


def available_memory(device: torch.device | str = "cpu") -> int:
    """Give the bytes that are free on a device: for the CPU, under every limit that is set on this process.

    These are the machine's available memory, the memory limits of the control groups (version 1 or 2) that it is in,
    and the limits on its address space and data (``ulimit -v`` and ``-d``).
    """
    where = torch.device(device)
    if where.type == "cuda":
        return torch.cuda.mem_get_info(where)[0]
    free = [_number(_fields(Path("/proc/meminfo")), "MemAvailable:") * 1024, *_groups()]
    used = _fields(Path("/proc/self/status"))
    for limit, field in ((resource.RLIMIT_AS, "VmSize:"), (resource.RLIMIT_DATA, "VmData:")):
        soft = resource.getrlimit(limit)[0]
        if soft != resource.RLIM_INFINITY:
            free.append(soft - _number(used, field) * 1024)
    return max(0, min(free))


def _groups() -> list[int]:
    """What each control group above this process leaves; pages of files that it could drop count as free."""
    found = []
    for line in _lines(Path("/proc/self/cgroup")):
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, limit, used, pages = _CGROUPS, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root = _CGROUPS / "memory"
            limit, used, pages = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        # In a container the path may be the host's, which is not there: then the root is the container's own group.
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            if not group.is_relative_to(root):
                break
            most, now = _lines(group / limit), _lines(group / used)
            if most and now and most[0].isdecimal():
                found.append(int(most[0]) - int(now[0]) + _number(_fields(group / "memory.stat"), pages))
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, ValueError):
        return []


def _fields(path: Path) -> dict[str, str]:
    return {words[0]: words[1] for line in _lines(path) if len(words := line.split()) >= 2}


def _number(fields: dict[str, str], name: str) -> int:
    value = fields.get(name, "")
    return int(value) if value.isdecimal() else 0


@contextmanager
def freed_memory_kept() -> Iterator[bool]:
    """Have this process keep the large blocks that it frees, while the body runs; give whether its C library can.

    glibc gives blocks of 32 MB and more back to the system at once and asks for them again: the activations of every
    training step then begin with page faults. It can only be asked for a whole process.
    """
    try:
        library = ctypes.CDLL(None)
        set_option, trim = library.mallopt, library.malloc_trim
    except (AttributeError, OSError):
        yield False
        return
    # No block comes from the system on its own, and the heap does not shrink.
    done = bool(set_option(_M_MMAP_MAX, 0)) and bool(set_option(_M_TRIM_THRESHOLD, 2**31 - 1))
    try:
        yield done
    finally:
        # What glibc itself would have adjusted to by now; having been told, it no longer adjusts.
        set_option(_M_MMAP_MAX, 65536)
        set_option(_M_MMAP_THRESHOLD, 32 << 20)
        set_option(_M_TRIM_THRESHOLD, 64 << 20)
        trim(0)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
"""Of glibc's malloc.h."""
