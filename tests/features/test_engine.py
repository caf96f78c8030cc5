"""The compiled engine: checksums, conversion, gathering on threads, means."""

import os
import pickle
import threading
import zlib

import numpy as np
import pytest
import torch

from sslfast import _store
from sslfast.errors import DataError, IntegrityError
from sslfast.features import FeatureStore, extract
from sslfast.features.format import BLOCK_BYTES, DTYPES, write_tensors
from sslfast.features.manifest import read_manifest, shard_specs, write_manifest

ALL_HALVES = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)


@pytest.fixture(params=[64, 128, 256, 512])
def vectors(request):
    if _store.vector_bits(request.param) != request.param:
        _store.vector_bits(512)
        pytest.skip(f"this processor has no {request.param}-bit vectors")
    yield request.param
    _store.vector_bits(512)


def opened(path, tensors):
    """Rows of the tensors of one file, a view after the other."""
    plan, digits = write_tensors(path, tensors)
    expected = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
    with path.open("rb") as handle:
        file = _store.File(handle.fileno(), plan.bytes, expected, BLOCK_BYTES)
    first = next(iter(tensors.values()))
    name = str(first.dtype).removeprefix("torch.")
    return _store.Rows([(file, len(t), plan.offsets[n]) for n, t in tensors.items()], first.shape[1], name)


def gather(
    engine, rows, width, *, dtype=torch.float32, mean=None, deviation=None, finite=False, ahead=False, threads=2
):
    out = torch.full((len(rows), width), 7.0, dtype=dtype)
    stored = dtype != torch.float32
    found = engine.gather(
        np.asarray(rows, np.int64), out.view(torch.uint8).numpy(), stored, mean, deviation, finite, ahead, threads
    )
    return found, out


def test_checksums_are_zlibs(vectors):
    content = np.random.default_rng(0).bytes(70_000)
    for size in [*range(700), 4096, 65_537]:
        for start in (0, 1, 7):
            part = content[start : start + size]
            assert _store.crc32(part) == zlib.crc32(part)
            assert _store.crc32(part, 0x1234ABCD) == zlib.crc32(part, 0x1234ABCD)


def test_no_bit_of_a_block_escapes_the_checksum(vectors):
    content = bytearray(np.random.default_rng(1).bytes(1500))
    right = _store.crc32(content)
    for bit in range(8 * len(content)):
        content[bit // 8] ^= 1 << bit % 8
        assert _store.crc32(content) != right
        content[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_is_converted_as_pytorch_does(vectors, tmp_path, dtype):
    exponents = torch.arange(-(2**15), 2**15) / 1000
    values = torch.randn(2**16) * 10.0**exponents if dtype == "float32" else ALL_HALVES.view(DTYPES[dtype])
    for width in (1, 5, 31, 64, 100):
        table = values[: len(values) // width * width].view(-1, width)
        (outcome, _, _), out = gather(opened(tmp_path / f"{width}", {"identity": table}), range(len(table)), width)
        assert outcome == 0
        assert torch.equal(out.nan_to_num(nan=3e38), table.float().nan_to_num(nan=3e38))
        assert torch.equal(out.isnan(), table.isnan())


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_several_parts_in_any_order(vectors, tmp_path, dtype, threads):
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(900, 300, generator=generator).to(DTYPES[dtype]) for name in ("identity", "flip")}
    engine = opened(tmp_path / "file", tensors)
    everything = torch.cat(list(tensors.values()))
    rows = np.random.default_rng(0).integers(0, 1800, 5000)
    for ahead in (False, True):
        (outcome, _, _), out = gather(engine, rows, 300, ahead=ahead, threads=threads)
        assert outcome == 0 and torch.equal(out, everything[rows].float())
    if dtype != "float32":
        (outcome, _, _), out = gather(engine, rows, 300, dtype=DTYPES[dtype], threads=threads)
        assert outcome == 0 and torch.equal(out, everything[rows])
    assert gather(engine, [], 300)[0] == (0, 0, 0)
    for row in (-1, 1800, 2**62):
        assert gather(engine, [3, 5, row], 300)[0] == (1, 2, 0)


def test_standardised_rows_are_those_of_pytorch_bit_by_bit(vectors, tmp_path):
    table = torch.randn(500, 77)
    mean, deviation = torch.randn(77), torch.rand(77) + 0.5
    engine = opened(tmp_path / "file", {"identity": table})
    rows = np.random.default_rng(0).permutation(500)
    (outcome, _, _), out = gather(engine, rows, 77, mean=mean.numpy(), deviation=deviation.numpy())
    assert outcome == 0 and torch.equal(out, ((table - mean) / deviation)[rows])


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_the_first_row_that_is_not_finite_is_found(vectors, tmp_path, wrong):
    table = torch.randn(400, 33)
    table[[7, 200, 399], [32, 0, 5]] = wrong
    engine = opened(tmp_path / "file", {"identity": table})
    for threads in (1, 3):
        assert gather(engine, range(399, 100, -1), 33, finite=True, threads=threads)[0] == (3, 0, 0)
        assert gather(engine, range(8, 400), 33, finite=True, threads=threads)[0] == (3, 192, 0)
        assert gather(engine, range(8, 199), 33, finite=True, threads=threads)[0] == (0, 0, 0)
    assert gather(engine, range(400), 33)[0] == (0, 0, 0)


def test_means_and_deviations(vectors):
    generator = np.random.default_rng(0)
    values = generator.normal(1000, generator.uniform(0.01, 3, 150), (3000, 150)).astype(np.float32)
    found = []
    for threads in (1, 3):
        mean, squares, count = np.zeros(150), np.zeros(150), 0
        for start in range(0, 3000, 700):
            part = values[start : start + 700]
            _store.moments(part, float(count), mean, squares, threads)
            count += len(part)
        found.append((mean, squares))
        np.testing.assert_allclose(mean, values.astype(np.float64).mean(0), rtol=1e-14)
        np.testing.assert_allclose(squares / 3000, values.astype(np.float64).var(0), rtol=1e-11)
    assert all(np.array_equal(*pair) for pair in zip(*found, strict=True))


def test_many_threads_may_gather_at_once(tmp_path):
    table = torch.randn(4000, 200)
    engine = opened(tmp_path / "file", {"identity": table})
    wrong = []

    def work(seed):
        rows = np.random.default_rng(seed)
        for _ in range(30):
            part = rows.integers(0, 4000, 500)
            (outcome, _, _), out = gather(engine, part, 200)
            if outcome or not torch.equal(out, table[part]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_child_gathers(tmp_path):
    table = torch.randn(4000, 200)
    engine = opened(tmp_path / "file", {"identity": table})
    expected, rows, out = table.numpy(), np.arange(4000), np.zeros((4000, 200), np.float32)
    gather(engine, rows, 200)
    process = os.fork()
    if process == 0:  # without torch, whose OpenMP threads did not come along
        done = engine.gather(rows, out.view(np.uint8), False, None, None, False, False, 3) == (0, 0, 0)
        os._exit(0 if done and np.array_equal(out, expected) else 1)
    assert os.waitpid(process, 0)[1] == 0


def test_wrong_arguments_are_refused(tmp_path):
    engine = opened(tmp_path / "file", {"identity": torch.randn(10, 20)})
    rows, out, numbers = np.arange(3), np.zeros((3, 80), np.uint8), np.zeros(20, np.float32)
    for change in (
        {"out": np.zeros((3, 79), np.uint8)},
        {"mean": numbers},
        {"mean": numbers[:19], "deviation": numbers[:19]},
        {"as_stored": True, "finite": True},
        {"rows": np.arange(4).reshape(2, 2)},
    ):
        given = {"rows": rows, "out": out, "as_stored": False, "mean": None, "deviation": None, "finite": False}
        with pytest.raises(ValueError):
            engine.gather(**{**given, **change}, read_ahead=False, threads=1)
    for wrong in ({"rows": rows.astype(np.int32)}, {"out": out.view(np.int8)}, {"out": np.zeros((80, 3), np.uint8).T}):
        with pytest.raises(TypeError):
            engine.gather(**{**given, **wrong}, read_ahead=False, threads=1)
    with (tmp_path / "file").open("rb") as handle:
        with pytest.raises(ValueError, match="checksum"):
            _store.File(handle.fileno(), 100, [], BLOCK_BYTES)
        file = _store.File(handle.fileno(), 100, [0], BLOCK_BYTES)
    for parts in ([(file, 2, 0)], [(file, 1, 101)], [(file, 2**60, 0)]):
        with pytest.raises(ValueError, match="part"):
            _store.Rows(parts, 20, "float32")
    with pytest.raises(ValueError):
        file.check(0, 2, 1)


def test_several_views_and_a_tensor_that_is_there(cases, tmp_path):
    dataset, backbone = cases.make_dataset(70), cases.make_backbone()
    store = extract(backbone, dataset, tmp_path, ("identity", "flip"), dtype="bfloat16", shard_rows=32)
    both = torch.cat([store.load("identity"), store.load("flip")])
    rows = np.array([139, 0, 70, 69, 3])
    out = torch.empty(5, 5)
    store.gather(rows, out, ("identity", "flip"))
    assert torch.equal(out, both[rows])
    half = torch.empty(5, 5, dtype=torch.bfloat16)
    store.gather(rows, half, ("identity", "flip"))
    assert torch.equal(half.float(), both[rows])
    assert torch.equal(pickle.loads(pickle.dumps(store)).load("flip"), store.load("flip"))
    with pytest.raises(IndexError, match="from 0 to 139"):
        store.gather(np.array([140]), out[:1], ("identity", "flip"))
    with pytest.raises(TypeError, match="float32 or"):
        store.gather(rows, out.double())


def with_shard(folder, number, change):
    """Write a shard anew with other numbers and right checksums, as a foreign writer might."""
    manifest = read_manifest(folder)
    shard = manifest["shards"][number]
    tensors = {}
    store = FeatureStore.open(folder)
    for spec in shard_specs(manifest["views"], manifest["dtype"], shard["rows"], manifest["features"]):
        first = shard["first_row"]
        tensors[spec.name] = store.load(spec.name)[first : first + shard["rows"]].to(spec.dtype)
    change(tensors)
    _, shard["crc32"] = write_tensors(folder / shard["name"], tensors)
    del manifest["sha256"]
    write_manifest(folder, manifest)


def test_a_row_that_is_not_finite_is_named(cases, tmp_path):
    extract(cases.make_backbone(), cases.make_dataset(70), tmp_path, ("identity", "flip"), shard_rows=32)
    with_shard(tmp_path, 1, lambda tensors: tensors["flip"][5].fill_(torch.nan))
    store = FeatureStore.open(tmp_path)
    store.verify()
    assert store.batch([37], "flip").isnan().all()
    message = r"shard-00001\.safetensors holds .* not finite: row 5 of the shard, row 37 of the store, view flip"
    with pytest.raises(DataError, match=message):
        store.gather(np.arange(70), torch.empty(70, 5), "flip", finite=True)
    with pytest.raises(DataError, match=message):
        store.gather(np.arange(140), torch.empty(140, 5), ("identity", "flip"), finite=True)


def test_no_byte_of_a_damaged_block_is_given(cases, tmp_path):
    store = extract(cases.make_backbone(600), cases.make_dataset(700), tmp_path, shard_rows=300)
    expected = store.load()
    path = tmp_path / "shard-00000.safetensors"
    with path.open("r+b") as handle:
        handle.seek(BLOCK_BYTES // 2)
        byte = handle.read(1)[0]
        handle.seek(BLOCK_BYTES // 2)
        handle.write(bytes([byte ^ 16]))
    for threads in (1, 4):
        store = FeatureStore.open(tmp_path)
        out = torch.full((700, 600), 7.0)
        with pytest.raises(IntegrityError, match=r"shard-00000\.safetensors is damaged in block 0"):
            store.gather(np.arange(700), out, threads=threads)
        assert (out == 7).all()
        assert torch.equal(store.batch(np.arange(300, 700)), expected[300:])
        with pytest.raises(IntegrityError):  # and again: a block that was found damaged is never taken for whole
            store.batch([0])
