"""A store whose files are not what was written is never read."""

import hashlib
import json
import os
import shutil
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sslfast.errors import IntegrityError, SslfastError, UsageError
from sslfast.features import FeatureStore, extract
from sslfast.features.format import BLOCK_BYTES
from sslfast.models import Preprocess

SHARDS = [f"shard-{number:05d}.safetensors" for number in range(3)]


def read_everything(folder):
    store = FeatureStore.open(folder)
    return [store.labels, store.ids, *map(store.load, store.views)]


def sign(content):
    """Render a manifest with the right checksum of itself, as docs/features.md describes it."""
    text = json.dumps({**content, "sha256": "0" * 64}, indent=2).encode() + b"\n"
    digest = hashlib.sha256(text).hexdigest().encode()
    return text[:-68] + digest + text[-4:]


@pytest.fixture
def copied(store_folder, tmp_path):
    shutil.copytree(store_folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_the_store_has_several_blocks(store_folder):
    store = FeatureStore.open(store_folder)
    assert store.verify() == store.verify()
    assert all(len(shard["crc32"]) // 8 == -(-shard["bytes"] // BLOCK_BYTES) >= 1 for shard in store.manifest["shards"])
    assert len(store.manifest["shards"][0]["crc32"]) // 8 == 2
    manifest = store.manifest.copy()
    del manifest["sha256"]
    assert sign(manifest) == (store_folder / "manifest.json").read_bytes()


def check_flips(folder, count, seed):
    generator = np.random.default_rng(seed)
    files = [*SHARDS, "index.safetensors", "manifest.json"]
    for number in range(count):
        path = folder / files[number % len(files)]
        bit = int(generator.integers(8 * path.stat().st_size))
        with path.open("r+b") as handle:
            handle.seek(bit // 8)
            original = handle.read(1)
            handle.seek(bit // 8)
            handle.write(bytes([original[0] ^ 1 << bit % 8]))
        try:
            with pytest.raises(SslfastError, match=path.name):
                FeatureStore.open(folder).verify()
            if path.name != "manifest.json" and number % 4 == 0:
                with pytest.raises(IntegrityError, match=f"{path.name} is damaged in block {bit // 8 // BLOCK_BYTES}"):
                    read_every_block(folder)
        finally:
            with path.open("r+b") as handle:
                handle.seek(bit // 8)
                handle.write(original)
    FeatureStore.open(folder).verify()


def read_every_block(folder):
    """Touch every block through single rows, labels and ids: what training does."""
    store = FeatureStore.open(folder)
    for view in store.views:
        for row in range(store.rows):
            store.batch([row], view)
    return store.labels, store.ids


def test_single_bit_flips_are_found(copied):
    check_flips(copied, 60, seed=0)


@pytest.mark.soak
def test_a_thousand_bit_flips_are_found(copied, record_property):
    check_flips(copied, 1000, seed=1)
    record_property("flips", 1000)


def test_every_bit_of_the_manifest_counts(cases, tmp_path):
    extract(cases.make_backbone(), cases.make_dataset(3), tmp_path)
    path = tmp_path / "manifest.json"
    original = path.read_bytes()
    for bit in range(0, 8 * len(original), 7):
        changed = bytearray(original)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(SslfastError, match=r"manifest\.json"):
            FeatureStore.open(tmp_path)


@pytest.mark.parametrize("name", [*SHARDS, "index.safetensors", "manifest.json"])
def test_truncations_and_additions_are_refused(copied, name):
    path = copied / name
    content = path.read_bytes()
    lengths = np.random.default_rng(0).integers(0, len(content), 20).tolist()
    for changed in [*(content[:length] for length in lengths), content + bytes(64), content + content[-1:]]:
        path.write_bytes(changed)
        with pytest.raises(IntegrityError, match=name):
            FeatureStore.open(copied)
    path.write_bytes(content)
    FeatureStore.open(copied).verify()


def test_swapped_shards_are_found(copied):
    os.rename(copied / SHARDS[0], copied / "aside")
    os.rename(copied / SHARDS[1], copied / SHARDS[0])
    os.rename(copied / "aside", copied / SHARDS[1])
    store = FeatureStore.open(copied)
    for call in (store.verify, store.load, lambda: store.batch([0]), lambda: store.batch([599], "flip")):
        with pytest.raises(IntegrityError, match="damaged in block"):
            call()


def test_a_damaged_block_hides_only_its_own_rows(copied):
    store = FeatureStore.open(copied)
    expected = store.load()
    with (copied / SHARDS[1]).open("r+b") as handle:
        handle.seek(-1, os.SEEK_END)
        handle.write(b"\x55")
    store = FeatureStore.open(copied)
    assert torch.equal(store.batch([0, 299, 300, 699]), expected[[0, 299, 300, 699]])
    with pytest.raises(IntegrityError, match=r"shard-00001\.safetensors is damaged in block 1"):
        store.batch([599], "flip")


def test_files_that_are_no_plain_files(copied, tmp_path):
    os.rename(copied / SHARDS[1], tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match=f"{SHARDS[1]} is missing"):
        FeatureStore.open(copied)
    os.symlink(tmp_path / "elsewhere", copied / SHARDS[1])
    with pytest.raises(IntegrityError, match="not a regular file"):
        FeatureStore.open(copied)
    os.unlink(copied / SHARDS[1])
    os.mkfifo(copied / SHARDS[1])
    with pytest.raises(IntegrityError, match="not a regular file"):
        FeatureStore.open(copied)
    os.unlink(copied / SHARDS[1])
    os.rename(tmp_path / "elsewhere", copied / SHARDS[1])
    store = FeatureStore.open(copied)
    os.rename(copied / SHARDS[1], tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", copied / SHARDS[1])
    with pytest.raises(IntegrityError, match="not a regular file"):
        store.load()
    os.rename(copied / "manifest.json", tmp_path / "manifest")
    os.symlink(tmp_path / "manifest", copied / "manifest.json")
    with pytest.raises(SslfastError, match="cannot read"):
        FeatureStore.open(copied)


def test_no_store_and_unfinished_store(copied, tmp_path):
    with pytest.raises(SslfastError, match="no feature store"):
        FeatureStore.open(tmp_path / "nowhere")
    (copied / "manifest.json").unlink()
    with pytest.raises(SslfastError, match="no feature store"):
        FeatureStore.open(copied)
    (copied / "progress.jsonl").write_text("")
    with pytest.raises(SslfastError, match="not finished; run the same extract command again"):
        FeatureStore.open(copied)


def test_another_backbone_or_preprocessing_is_refused(store_folder):
    with pytest.raises(UsageError, match="another backbone"):
        FeatureStore.open(store_folder, backbone_fingerprint="0" * 64)
    with pytest.raises(UsageError, match="preprocessed with"):
        FeatureStore.open(store_folder, preprocess=Preprocess(9))


def test_rows_and_views_that_are_not_there(store_folder):
    store = FeatureStore.open(store_folder)
    for rows in ([700], [-1], [0, 10**9]):
        with pytest.raises(IndexError, match="from 0 to 699"):
            store.batch(rows)
    for rows in ([0.5], [[0]], ["a"]):
        with pytest.raises(TypeError, match="row numbers"):
            store.batch(rows)
    with pytest.raises(UsageError, match="no view 'mirror'"):
        store.load("mirror")


MALICIOUS = {
    "traversal": lambda content: content["shards"][0].update(name="../shard-00000.safetensors"),
    "absolute": lambda content: content["shards"][0].update(name="/etc/passwd"),
    "the same shard twice": lambda content: content["shards"][1].update(name="shard-00000.safetensors"),
    "index elsewhere": lambda content: content["index"].update(name="../index.safetensors"),
    "huge rows": lambda content: content.update(rows=10**30),
    "huge features": lambda content: content.update(features=2**53),
    "negative rows": lambda content: content["shards"][0].update(rows=-300),
    "float length": lambda content: content["shards"][0].update(bytes=float(content["shards"][0]["bytes"])),
    "offset into the header": lambda content: content["shards"][0]["data"].update(identity=0),
    "true as a number": lambda content: content.update(version=True),
    "missing field": lambda content: content.pop("views"),
    "additional field": lambda content: content.update(execute="rm"),
    "no checksums": lambda content: content["shards"][0].update(crc32=""),
    "unknown dtype": lambda content: content.update(dtype="object"),
    "foreign format": lambda content: content.update(format="zarr"),
    "later version": lambda content: content.update(version=2),
    "shards is text": lambda content: content.update(shards="all"),
    "no shards": lambda content: content.update(shards=[]),
}


@pytest.mark.parametrize("change", MALICIOUS)
def test_manifests_that_lie(copied, change):
    content = json.loads((copied / "manifest.json").read_bytes())
    del content["sha256"]
    MALICIOUS[change](content)
    (copied / "manifest.json").write_bytes(sign(content))
    with pytest.raises(SslfastError, match=r"manifest\.json"):
        FeatureStore.open(copied)


def test_a_header_that_lies(copied):
    """A file with a foreign header and right checksums: reading goes by the manifest, verify names it."""
    path = copied / SHARDS[0]
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"identity"', b'"identitY"'))
    manifest = json.loads((copied / "manifest.json").read_bytes())
    del manifest["sha256"]
    first = zlib.crc32(path.read_bytes()[:BLOCK_BYTES])
    shard = manifest["shards"][0]
    shard["crc32"] = f"{first:08x}" + shard["crc32"][8:]
    (copied / "manifest.json").write_bytes(sign(manifest))
    with pytest.raises(IntegrityError, match="header"):
        FeatureStore.open(copied).verify()


FOREIGN = [b"", b"{}", b"[]", b"\x80\x04cos\nsystem\n", b"[" * 100_000, b"\xff" * 200, b'{"sha256": "' + b"0" * 64]


@pytest.mark.parametrize("content", FOREIGN, ids=range(len(FOREIGN)))
def test_foreign_manifests(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(IntegrityError):
        FeatureStore.open(tmp_path)


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"9" * 10_000, b"null", b"[1]"], ids=["deep", "long", "null", "list"]
)
def test_foreign_manifests_with_a_right_checksum(tmp_path, content):
    text = content + b'\n  "sha256": "' + b"0" * 64 + b'"\n}\n'
    digest = hashlib.sha256(text).hexdigest().encode()
    (tmp_path / "manifest.json").write_bytes(text[:-68] + digest + text[-4:])
    with pytest.raises(IntegrityError):
        FeatureStore.open(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


def places(content, path=()):
    """Every place in a JSON value."""
    yield path
    children = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in children:
        yield from places(value, (*path, key))


def check_mutated_manifests(folder, examples):
    original = json.loads((folder / "manifest.json").read_bytes())
    del original["sha256"]
    expected = read_everything(folder)
    describing = {"classes", "views", "shard_rows", "backbone", "preprocess", "dataset", "compute_dtype", "skipped"}
    describing.add("versions")
    everywhere = [path for path in places(original) if path]

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(everywhere), JSON | st.sampled_from([0, 1, -1, 2**31, 2**63, "", "../x", []]), st.booleans())
    def check(path, value, remove):
        content = json.loads(json.dumps(original))
        parent = content
        for key in path[:-1]:
            parent = parent[key]
        if parent[path[-1]] == value and type(parent[path[-1]]) is type(value) and not remove:
            return
        if remove:
            del parent[path[-1]]
        else:
            parent[path[-1]] = value
        (folder / "manifest.json").write_bytes(sign(content))
        try:
            found = read_everything(folder)
            FeatureStore.open(folder).verify()
        except SslfastError:
            return
        # What was accepted describes; it changes no value.
        assert torch.equal(found[0], expected[0]) and found[1] == expected[1]
        assert path[0] in describing

    check()


def test_mutated_manifests(cases, tmp_path):
    extract(cases.make_backbone(), cases.make_dataset(30), tmp_path, ("identity", "flip"), shard_rows=20)
    check_mutated_manifests(tmp_path, 1000)


@pytest.mark.soak
def test_twenty_thousand_mutated_manifests(cases, tmp_path, record_property):
    extract(cases.make_backbone(), cases.make_dataset(30), tmp_path, ("identity", "flip"), shard_rows=20)
    check_mutated_manifests(tmp_path, 20_000)
    record_property("mutations", 20_000)
