"""Who trains a trial, and until when: it tells a trial that runs from one whose process is gone."""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LEASE_SECONDS = 600.0
"""How long a trial may go without a sign of life where nobody can look at its process."""

JOIN_SECONDS = 10.0
"""How long the end of a search waits for a renewal that is on its way to a storage that does not answer."""

_ALIVE: set[str] = set()
"""The holders that live in this process."""


@dataclass(frozen=True)
class Lease:
    """The right to train a trial: until its process ends, or, where nobody can look at that, until a moment.

    Args:
        holder: a name that no other search has.
        host: the machine's name.
        boot: what the machine was started as; another one after a restart.
        space: the process namespace (a container's): numbers of processes mean something within it.
        pid: the process.
        born: when the process began, in the kernel's ticks; numbers of processes are used again.
        until: seconds since 1970.
    """

    holder: str
    host: str
    boot: str
    space: str
    pid: int
    born: str
    until: float

    def expired(self) -> str | None:
        """Say why the trial is nobody's any more; None while it is somebody's."""
        here = _place()
        if here["boot"] and (self.boot, self.space) == (here["boot"], here["space"]):
            gone = self.holder not in _ALIVE if self.pid == os.getpid() else _born(self.pid) != self.born
            # One that lives may be slow, or its machine asleep: the clock says nothing about it.
            return f"process {self.pid} of {self.host} is gone" if gone else None
        if here["boot"] and self.boot and self.host == here["host"] and self.boot != here["boot"]:
            return f"{self.host} was started anew"
        late = time.time() - self.until
        return f"no sign of life from process {self.pid} of {self.host} in time" if late > 0 else None

    @classmethod
    def read(cls, entry: Any) -> "Lease | None":
        """Read a lease from a trial's attribute; None where there is none."""
        if not isinstance(entry, Mapping):
            return None
        try:
            return cls(**entry)
        except TypeError:
            return None


class Holder:
    """One search's name on its leases, while it lasts."""

    def __init__(self) -> None:
        self.name = uuid.uuid4().hex
        self.seconds = LEASE_SECONDS
        self._ended = threading.Event()
        self._keeper: threading.Thread | None = None
        _ALIVE.add(self.name)

    def lease(self) -> dict[str, Any]:
        """Give a lease from now on, as a trial's attribute."""
        place = _place()
        lease = Lease(
            self.name, place["host"], place["boot"], place["space"], os.getpid(), _born(os.getpid()),
            time.time() + self.seconds,
        )  # fmt: skip
        return asdict(lease)

    def keep(self, renew: Callable[[], None]) -> None:
        """Call ``renew`` four times in a lease's length, until the end, from a thread that no process waits for."""

        def work() -> None:
            while not self._ended.wait(self.seconds / 4):
                renew()

        if self._keeper is None:
            self._keeper = threading.Thread(target=work, name="leases", daemon=True)
            self._keeper.start()

    @property
    def ended(self) -> bool:
        """Whether nothing is held any more."""
        return self._ended.is_set()

    def end(self) -> None:
        """Hold nothing any more."""
        self._ended.set()
        if self._keeper is not None:
            self._keeper.join(JOIN_SECONDS)
        _ALIVE.discard(self.name)


def _place() -> dict[str, str]:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # no Linux: leases then end by the clock alone
        boot = space = ""
    return {"host": socket.gethostname(), "boot": boot, "space": space}


def _born(pid: int) -> str:
    """Give a living process's start time; empty where there is none, or it is dead and not yet buried."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
