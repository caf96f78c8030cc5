"""Files that must not be believed: nothing in them is run, and whatever they are they give one line or weights."""

import contextlib
import io
import os
import pickle
import random
import struct
import time
import zipfile
import zlib
from collections import OrderedDict, defaultdict

import pytest
import torch
from strays import Bomb, Queue

from sslfast.errors import SslfastError
from sslfast.models.checkpoint import read_foreign
from sslfast.models.rebuilt import Dropped, Refused
from sslfast.models.unpickle import Machine


def content() -> dict:
    base = torch.arange(24.0).reshape(4, 6)
    return {
        "state_dict": OrderedDict(
            weight=base,
            part=base[1:3, ::2],
            transposed=base.t(),
            half=torch.ones(3, dtype=torch.bfloat16),
            number=torch.tensor(7),
            empty=torch.zeros(0, 3),
            parameter=torch.nn.Parameter(torch.ones(2)),
        ),
        "epoch": 3,
        "history": [1.5, (2, "x"), {"a", "b"}],
        "groups": defaultdict(list, a=[1]),
        "size": torch.Size([2, 3]),
        "dtype": torch.float16,
        "queue": Queue(),
    }


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tensors_and_plain_containers_are_rebuilt(tmp_path, legacy, protocol):
    torch.save(content(), tmp_path / "c.pth", _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    Queue.rebuilt = 0
    read = read_foreign(tmp_path / "c.pth")
    assert Queue.rebuilt == 0 and read.dropped == ("strays.Queue",)
    want = content()["state_dict"]
    got = read.content["state_dict"]
    assert list(got) == list(want)
    for key, value in want.items():
        assert torch.equal(got[key], value) and got[key].dtype == value.dtype, key
    assert read.content["epoch"] == 3 and read.content["history"] == [1.5, (2, "x"), {"a", "b"}]
    assert read.content["groups"] == {"a": [1]} and read.content["size"] == (2, 3)
    assert isinstance(read.content["queue"], Dropped)


class State:
    """An object that would run code when its state is set, when it is made, and when it is filled."""

    touched = 0

    def __init__(self):
        State.touched += 1
        self.a = 1

    def __setstate__(self, state):
        State.touched += 1

    def __reduce__(self):
        return (State, (), {"a": 1}, iter([1, 2]), iter([("k", 3)]))

    def append(self, item):
        State.touched += 1

    def __setitem__(self, key, value):
        State.touched += 1


class Many:
    """Functions that a file could ask for."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_run_under_any_protocol(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    evil = [
        State(),
        Bomb(),
        Many(eval, "open('exploded', 'w')"),
        Many(exec, "open('exploded', 'w')"),
        Many(open, "exploded", "w"),
    ]
    evil.append(Many(getattr, "", "join"))
    State.touched = 0
    written = pickle.dumps({"a": evil, "b": 5}, protocol)
    machine = Machine()
    got = machine.run(io.BytesIO(written))
    assert State.touched == 0 and not os.path.exists("exploded")
    assert got["b"] == 5 and all(isinstance(one, Dropped) for one in got["a"])
    assert "posix.system" in machine.dropped and any(name.endswith("test_unpickle.State") for name in machine.dropped)
    assert any(name.endswith(".eval") for name in machine.dropped) and any(
        name.endswith("open") for name in machine.dropped
    )


def test_instructions_that_build_objects_without_reduce(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for written in (
        b"(S'touch exploded'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch exploded'\no.",  # OBJ
        b"cos\nsystem\n(S'touch exploded'\ntR.",  # REDUCE
        b"\x80\x02cos\nsystem\nX\x0e\x00\x00\x00touch exploded\x85\x81.",  # NEWOBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0etouch exploded\x85}\x92.",  # STACK_GLOBAL, NEWOBJ_EX
        b"\x80\x02\x82\x01.",  # EXT1
        b"ccollections\nOrderedDict\n(tRcos\nsystem\nb.",  # BUILD with a callable as state
    ):
        machine = Machine()
        machine.run(io.BytesIO(written))
        assert machine.dropped and not os.path.exists("exploded")


def pickled(value) -> bytes:
    return pickle.dumps(value, 2)


def nested_tuples() -> bytes:
    """A key whose hash takes 2 ** 60 steps."""
    return b"\x80\x02}" + b"K\x01\x85" + b"2\x86" * 60 + b"K\x01s."


def test_a_key_that_takes_for_ever_is_refused():
    started = time.perf_counter()
    with pytest.raises(Refused, match="a tuple as a key"):
        Machine().run(io.BytesIO(nested_tuples()))
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("legacy", [False, True])
def test_an_unending_key_in_a_checkpoint_is_refused(tmp_path, legacy):
    path = tmp_path / "c.pth"
    if legacy:
        head = b"".join(pickled(one) for one in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        path.write_bytes(head + nested_tuples() + pickled([]))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("c/data.pkl", nested_tuples())
    with pytest.raises(SslfastError, match="a tuple as a key"):
        read_foreign(path)


def test_containers_in_containers_for_ever(tmp_path):
    deep: list = []
    for _ in range(400):
        deep = [deep]
    torch.save({"w": torch.ones(1), "deep": deep, "x": Queue()}, tmp_path / "c.pth")
    with pytest.raises(SslfastError, match="nested"):
        read_foreign(tmp_path / "c.pth")
    loop: dict = {"w": torch.ones(1), "x": Queue()}
    loop["self"] = loop
    torch.save(loop, tmp_path / "c.pth")
    read = read_foreign(tmp_path / "c.pth").content
    assert read["self"] is read and read["w"].tolist() == [1]


def archive_of(path, records, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(f"c/{name}", data)
    return path


def tensor_pickle(key="0", count=4, size=(4,), stride=(1,), offset=0, kind="FloatStorage") -> bytes:
    """The pickle of {"w": tensor, "x": object}: with an object, so that our own reader takes it."""

    class Persistent(pickle._Pickler):  # type: ignore[name-defined,misc]
        def persistent_id(self, one):
            return ("storage", getattr(torch, kind), key, "cpu", count) if one == "the storage" else None

    class Tensor:
        def __reduce__(self):
            return (torch._utils._rebuild_tensor_v2, ("the storage", offset, size, stride, False, OrderedDict()))

    stream = io.BytesIO()
    Persistent(stream, 2).dump({"w": Tensor(), "x": Queue()})
    return stream.getvalue()


def test_the_archive_that_is_forged_here_is_read(tmp_path):
    records = {"data.pkl": tensor_pickle(), "data/0": struct.pack("<4f", 1, 2, 3, 4), "version": b"3"}
    assert read_foreign(archive_of(tmp_path / "c.pth", records)).content["w"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "forged",
    [
        {"count": 1 << 40},
        {"size": (1 << 40,)},
        {"size": (4, 4), "stride": (4, 1)},
        {"offset": 3},
        {"offset": -1},
        {"stride": (-1,)},
        {"size": (2,), "stride": (1 << 61,)},
        {"size": (1, 2)},
        {"key": "1"},
        {"key": "../data.pkl"},
    ],
)
def test_tensors_of_impossible_shapes_are_one_line(tmp_path, forged):
    records = {"data.pkl": tensor_pickle(**forged), "data/0": struct.pack("<4f", 1, 2, 3, 4)}
    with pytest.raises(SslfastError) as caught:
        read_foreign(archive_of(tmp_path / "c.pth", records))
    assert "\n" not in str(caught.value)


def test_torchscript_is_a_program(tmp_path):
    path = archive_of(tmp_path / "c.pt", {"data.pkl": pickled({}), "constants.pkl": pickled(()), "code/a.py": b""})
    with pytest.raises(SslfastError, match="TorchScript, which is a program"):
        read_foreign(path)


def test_bombs_are_refused_before_they_unpack(tmp_path):
    zeros = bytes(200 << 20)
    path = archive_of(tmp_path / "c.pth", {"data.pkl": tensor_pickle(), "data/0": zeros}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    del zeros
    started = time.perf_counter()
    with pytest.raises(SslfastError, match="unpack to 209,7"):
        read_foreign(path)
    assert time.perf_counter() - started < 1
    # A header that lies about the size is found when the record is read.
    path = archive_of(tmp_path / "c.pth", {"data.pkl": zlib.compress(b"x")})
    with pytest.raises(SslfastError):
        read_foreign(path)


def test_numbers_that_ask_for_memory_are_refused(tmp_path):
    """A memo index, a byte string, a storage of a legacy file that would not fit any machine."""
    for written in (b"\x80\x02Nr\xff\xff\xff\x7f.", b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"abc."):
        started = time.perf_counter()
        with contextlib.suppress(Refused):
            Machine().run(io.BytesIO(written))
        assert time.perf_counter() - started < 1
    head = b"".join(pickled(one) for one in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    tail = pickled(["0"]) + struct.pack("<q", 1 << 50) + b"\0" * 16
    (tmp_path / "c.pth").write_bytes(head + tensor_pickle(count=1 << 50) + tail)
    with pytest.raises(SslfastError, match="ends before its last storage"):
        read_foreign(tmp_path / "c.pth")


@pytest.mark.parametrize(
    ("written", "match"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
        (b"\n <html lang='en'>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "pointer of Git LFS"),
        (b"these are not the weights you are looking for\n", "a text file"),
        (b"\x1f\x8b\x08\x00rest", "gzip"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"PK\x03\x04rest of nothing", "damaged or cut off"),
        (b"name".ljust(257, b"\0") + b"ustar\0".ljust(255, b"\0"), "a tar archive"),
        (b"\x80\x02}q\x00.", "torch.save did not write"),
        (b"\x80\x02", "not a readable PyTorch checkpoint"),
        (bytes(range(128, 256)) * 4, "not a readable PyTorch checkpoint"),
        (b"\x00" * 600, "not a readable PyTorch checkpoint"),
    ],
)
def test_files_that_are_something_else(tmp_path, written, match):
    (tmp_path / "c.pth").write_bytes(written)
    with pytest.raises(SslfastError, match=match) as caught:
        read_foreign(tmp_path / "c.pth")
    assert "\n" not in str(caught.value)


def test_no_file_a_folder_and_a_truncated_safetensors_file(tmp_path):
    from safetensors.torch import save_file

    for path, match in ((tmp_path / "none.pth", "there is no checkpoint"), (tmp_path, "is a folder")):
        with pytest.raises(SslfastError, match=match):
            read_foreign(path)
    save_file({"w": torch.ones(100)}, tmp_path / "c.safetensors")
    whole = (tmp_path / "c.safetensors").read_bytes()
    for name in ("t.safetensors", "t.pth"):
        (tmp_path / name).write_bytes(whole[:-100])
        with pytest.raises(SslfastError, match="not a readable safetensors file") as caught:
            read_foreign(tmp_path / name)
        assert "\n" not in str(caught.value)
    (tmp_path / "renamed.pth").write_bytes(whole)
    assert read_foreign(tmp_path / "renamed.pth").content["w"].sum() == 100


@pytest.mark.parametrize("kind", ["archive", "legacy", "pickle"])
def test_mutated_files_give_weights_or_one_line(tmp_path, monkeypatch, kind):
    """Bytes changed, cut, repeated and removed; the names of the pickle exchanged; each is read in no time."""
    monkeypatch.chdir(tmp_path)
    whole = io.BytesIO()
    torch.save(
        {"state_dict": content()["state_dict"], "bomb": Bomb(), "x": Queue()},
        whole,
        _use_new_zipfile_serialization=kind == "archive",
    )
    original = tensor_pickle() if kind == "pickle" else whole.getvalue()
    draw = random.Random(0)
    good = bad = 0
    longest = 0.0
    path = tmp_path / "c.pth"
    for _ in range(200):
        data = bytearray(original)
        for _ in range(draw.choice((1, 1, 2, 8))):
            place = draw.randrange(len(data))
            action = draw.randrange(5)
            if action == 0:
                data[place] ^= 1 << draw.randrange(8)
            elif action == 1:
                data[place] = draw.choice(b"cios(tR.b\x81\x92\x93\x94r2}]u\xff\x00")
            elif action == 2:
                del data[place : place + draw.randrange(1, 40)]
            elif action == 3:
                data[place:place] = data[draw.randrange(len(data)) :][: draw.randrange(1, 40)]
            else:
                data = data[: max(1, place)]
        path.unlink(missing_ok=True)
        if kind == "pickle":
            archive_of(path, {"data.pkl": bytes(data), "data/0": struct.pack("<4f", 1, 2, 3, 4), "version": b"3\n"})
        else:
            path.write_bytes(data)
        started = time.perf_counter()
        try:
            read_foreign(path)
            good += 1
        except SslfastError as error:
            bad += 1
            assert "\n" not in str(error), data
        longest = max(longest, time.perf_counter() - started)
        assert not os.path.exists("exploded")
    assert good > 5 and bad > 50 and longest < 2
