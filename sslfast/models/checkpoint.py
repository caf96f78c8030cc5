"""Reading other people's checkpoints without running anything that is in them."""

import io
import mmap
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslfast.errors import SslfastError, first_line
from sslfast.models.rebuilt import Refused, Storage, resolve
from sslfast.models.unpickle import Machine
from sslfast.tensors import read_tensors

CONTAINERS = ("state_dict", "model")
PREFIXES = ("module.", "backbone.", "encoder.")

MAX_RECORDS = 1_000_000
MAX_PICKLE = 256 << 20
"""Bytes of the pickle inside an archive: names, shapes and hyper-parameters, no weights."""

EXPANSION = 4
"""PyTorch stores its records as they are; an archive that unpacks to more than this many times its size is a bomb."""

MAGIC = 0x1950A86A20F9469CFC6C
"""The number that begins a PyTorch file of the time before archives (torch.serialization.MAGIC_NUMBER)."""


@dataclass(frozen=True)
class Foreign:
    """What a checkpoint holds.

    Args:
        content: tensors in plain dictionaries, lists and tuples.
        dropped: classes and functions that the file names and that were not rebuilt.
        metadata: of a safetensors file.
    """

    content: Any
    dropped: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)


def read_foreign(path: Path) -> Foreign:
    """Read a PyTorch file or a safetensors file that somebody else wrote.

    PyTorch files are read with ``torch.load(weights_only=True)``; where that refuses because the file holds objects
    besides its weights, by `sslfast.models.unpickle`, which rebuilds tensors and plain containers only. Before either,
    the pickle's instructions are walked through once, so that a file that would not end is refused.

    Raises:
        SslfastError: the file is missing, is something else, is damaged, or unpacks to absurd sizes.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(512)
    except FileNotFoundError as error:
        raise SslfastError(f"there is no checkpoint {path}") from error
    except IsADirectoryError as error:
        raise SslfastError(f"{path} is a folder, not a checkpoint; give the file in it") from error
    except OSError as error:
        raise SslfastError(f"cannot read {path}: {error.strerror}") from error
    if path.suffix == ".safetensors" or _begins_safetensors(head):
        state, metadata = read_tensors(path)
        return Foreign(state, metadata=metadata)
    reason = _what_else(head)
    if reason is not None:
        raise SslfastError(f"{path} is not a readable checkpoint: {reason}")
    try:
        return _read_archive(path) if head.startswith(b"PK") else _read_legacy(path)
    except Refused as error:
        raise SslfastError(f"{path} is not a readable PyTorch checkpoint: {error}") from error
    except zipfile.BadZipFile as error:
        raise SslfastError(f"{path} is damaged or cut off ({first_line(error)}); download or copy it again") from error
    except Exception as error:  # damaged archives raise whatever their reader met
        raise SslfastError(f"{path} is not a readable PyTorch checkpoint: {first_line(error)[:200]}") from error


def read_foreign_state(path: Path) -> dict[str, Tensor]:
    """Read the weights in a PyTorch file, by names without the wrappers' prefixes.

    Raises:
        SslfastError: the file cannot be read, or holds no weights.
    """
    content = read_foreign(path).content
    for key in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise SslfastError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    state = weights_in(content)
    if not state:
        raise SslfastError(f"{path} holds no weights; its keys are {', '.join(map(str, list(content)[:5]))}")
    for prefix in PREFIXES:
        if any(key.startswith(prefix) for key in state):
            # A projector beside the backbone keeps its own name and is reported as unexpected.
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def weights_in(content: Any) -> dict[str, Tensor]:
    """List the tensors that stand directly in a dictionary, by name."""
    if not isinstance(content, dict):
        return {}
    return {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _begins_safetensors(head: bytes) -> bool:
    return len(head) > 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < 1 << 27


def _what_else(head: bytes) -> str | None:
    """Say what a file is by its first bytes, where it is no PyTorch file."""
    text = head.lstrip().lower()
    if not head:
        return "it is empty (0 bytes); download or copy it again"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page; the download needs another address, or a login"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; fetch the file itself (git lfs pull)"
    if head.startswith(b"\x1f\x8b"):
        return "it is compressed with gzip; unpack it first"
    if head[257:262] == b"ustar":
        return "it is a tar archive; unpack it, or write its weights anew with torch.save"
    if head.startswith(b"\x89HDF"):
        return "it is an HDF5 file (Keras); convert it to safetensors in torchvision's names first"
    if not head.startswith((b"PK", b"\x80")) and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return "it is a text file"
    return None


def _read_archive(path: Path) -> Foreign:
    """Read a file as torch.save writes it since 1.6: a zip archive of a pickle and one record per storage."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if len(records) > MAX_RECORDS:
            raise Refused(f"an archive of {len(records):,} records")
        size, unpacked = path.stat().st_size, sum(record.file_size for record in records)
        if unpacked > EXPANSION * size + (1 << 20):
            raise Refused(f"its {size:,} bytes unpack to {unpacked:,}, which no checkpoint does")
        if any(record.filename.endswith("/constants.pkl") for record in records):
            raise Refused("TorchScript, which is a program; write its state_dict() with torch.save")
        pickles = [record for record in records if record.filename.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise Refused("a zip archive without one data.pkl")
        if pickles[0].file_size > MAX_PICKLE:
            raise Refused(f"a pickle of {pickles[0].file_size:,} bytes")
        folder = pickles[0].filename.removesuffix("data.pkl")
        machine = Machine()
        with archive.open(pickles[0]) as stream:
            value = machine.run(io.BytesIO(stream.read()))
        names = set(archive.namelist())
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise Refused("its numbers are big-endian")
        for storage in machine.storages.values():
            name = f"{folder}data/{storage.key}"
            if name not in names:
                raise Refused(f"the record {name[:80]} is missing")
            if archive.getinfo(name).file_size < storage.count * storage.dtype.itemsize:
                raise Refused(f"the record {name[:80]} is shorter than its tensors")

        def read(storage: Storage) -> Tensor:
            return _bytes(archive.read(f"{folder}data/{storage.key}"))

        return _with_torch(path, value, machine, read)


def _read_legacy(path: Path) -> Foreign:
    """Read a file as torch.save wrote it before 1.6: five pickles, then every storage's length and bytes."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        machine = Machine()
        value = machine.run(content)  # type: ignore[arg-type]
        if value != MAGIC:
            raise Refused(
                "a pickle that torch.save did not write"
                + (f"; it names {', '.join(list(machine.dropped)[:3])}, which was not run" if machine.dropped else "")
            )
        machine.run(content)  # type: ignore[arg-type]  # the version of the protocol
        system = machine.run(content)  # type: ignore[arg-type]
        if isinstance(system, dict) and system.get("little_endian") is False:
            raise Refused("its numbers are big-endian")
        value = machine.run(content)  # type: ignore[arg-type]
        keys = machine.run(content)  # type: ignore[arg-type]
        if not isinstance(keys, list):
            raise Refused("no list of storages")
        places: dict[str, tuple[int, int]] = {}
        for key in map(str, keys):
            header = content.read(8)
            if len(header) < 8 or key not in machine.storages:
                raise Refused("it ends before its last storage")
            length = struct.unpack("<q", header)[0] * machine.storages[key].dtype.itemsize
            begin = content.tell()
            if not 0 <= length <= len(content) - begin:
                raise Refused("it ends before its last storage")
            places[key] = (begin, length)
            content.seek(begin + length)
        if machine.storages.keys() - places.keys():
            raise Refused("a storage is missing")

        def read(storage: Storage) -> Tensor:
            begin, length = places[storage.key]
            return _bytes(content[begin : begin + length])

        return _with_torch(path, value, machine, read)


def _with_torch(path: Path, value: Any, machine: Machine, read: Callable[[Storage], Tensor]) -> Foreign:
    """Let PyTorch read the file; where it refuses, rebuild what the machine has seen."""
    try:
        # By stream: torch takes no path that is not UTF-8.
        with path.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch wonders about pickle protocols; what matters is whether it loads
            return Foreign(torch.load(stream, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError:
        cache: dict[str, Tensor] = {}

        def once(storage: Storage) -> Tensor:
            if storage.key not in cache:
                cache[storage.key] = read(storage)
            return cache[storage.key]

        return Foreign(resolve(value, once), dropped=tuple(machine.dropped))


def _bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
