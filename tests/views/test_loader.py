"""Batches: every image once an epoch, the same views whenever a step is asked for, files decoded as they are needed."""

import os
import threading
import zipfile

import numpy as np
import pytest
import torch
from pictures import in_memory, photographs
from PIL import Image

from sslfast.data import load
from sslfast.data.drawing import draw_plan
from sslfast.data.loader import RENDERERS, ViewLoader
from sslfast.data.render import TorchRenderer
from sslfast.data.views import PLANS, ViewPlan, plan
from sslfast.errors import DataError, UsageError

SIMCLR = plan("simclr")


def equal(first, second):
    return np.array_equal(first.indices, second.indices) and all(map(torch.equal, first.views, second.views))


@pytest.fixture(scope="module")
def pictures():
    return in_memory(photographs(101, 32, 32))


def available(renderer):
    if renderer == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    return renderer


@pytest.mark.parametrize("batch_size", [1, 64, 100, 5000])
def test_every_image_comes_exactly_once_an_epoch(pictures, batch_size):
    loader = ViewLoader(pictures, SIMCLR, 8, batch_size, seed=0)
    seen = [loader.indices(1, step) for step in range(loader.steps_per_epoch)]
    assert sorted(np.concatenate(seen).tolist()) == list(range(101))
    sizes = [len(rows) for rows in seen]
    assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1
    other = [loader.indices(2, step) for step in range(loader.steps_per_epoch)]
    assert not np.array_equal(np.concatenate(seen), np.concatenate(other))


@pytest.mark.parametrize("name", list(PLANS))
def test_a_batch_has_a_tensor_for_each_group(pictures, name):
    loader = ViewLoader(pictures, plan(name), 32, 40, seed=0)
    (batch,) = loader.batches(1, 2)
    assert np.array_equal(batch.indices, loader.indices(0, 1)) and batch.indices.dtype == np.int64
    for views, group in zip(batch.views, plan(name).groups, strict=True):
        side = group.pixels(32)
        assert views.shape == (len(group.policies) * len(batch.indices), 3, side, side)
        assert views.dtype == torch.float32 and views.isfinite().all() and views.min() >= 0 and views.max() <= 1


def test_view_v_of_image_b_is_in_row_v_b(pictures):
    loader = ViewLoader(pictures, plan("swav"), 32, 10, seed=0)
    (batch,) = loader.batches(0, 1)
    assert len(batch.indices) == 10
    drawn = draw_plan(plan("swav"), 0, 0, np.full(10, 32), np.full(10, 32), 32)
    for views, parameters, size in zip(batch.views, drawn, (32, 14), strict=True):
        for row in (0, 7, 10, 13):
            image = pictures.images(batch.indices[row % 10 : row % 10 + 1])
            want = TorchRenderer(size)(image, parameters.rows([row]))[0]
            torch.testing.assert_close(views[row], want, rtol=0, atol=5e-5)


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("name", ["simclr", "self-classifier", "autoencoder"])
def test_any_step_may_be_asked_for_first(pictures, renderer, name):
    loader = ViewLoader(pictures, plan(name), 32, 30, seed=0, renderer=available(renderer))
    whole = list(loader.batches(0, 7))
    fresh = ViewLoader(pictures, plan(name), 32, 30, seed=0, renderer=renderer)
    for begin in (6, 3):
        for got, want in zip(fresh.batches(begin, 7), whole[begin:], strict=True):
            assert equal(got, want)
    assert not equal(whole[1], next(iter(ViewLoader(pictures, plan(name), 32, 30, seed=1).batches(1, 2))))


@pytest.mark.parametrize("renderer", RENDERERS[1:])
def test_renderers_agree(pictures, renderer):
    for name in ("simclr", "barlow-twins-cifar", "autoencoder", "supervised"):
        ours, theirs = (
            next(iter(ViewLoader(pictures, plan(name), 32, 30, 0, renderer=one).batches(2, 3)))
            for one in ("native", available(renderer))
        )
        assert np.array_equal(ours.indices, theirs.indices)
        for got, want in zip(theirs.views, ours.views, strict=True):
            assert (got - want).abs().max() < 2 / 255


def test_the_autoencoders_target_is_its_input_without_noise(pictures):
    (batch,) = ViewLoader(pictures, plan("autoencoder"), 32, 50, seed=0).batches(0, 1)
    noisy, clean = batch.views[0].chunk(2)
    difference = noisy - clean
    assert abs(float(difference.std()) - 0.1) < 0.01 and abs(float(difference.mean())) < 5e-3
    levels = clean * 255
    assert (levels - levels.round()).abs().max() < 1e-3  # an image of the set, flipped


def test_a_batch_that_nobody_waits_for_ends_its_threads(tmp_path):
    save(tmp_path, 12)
    before = threading.active_count()
    batches = ViewLoader(load(f"folder:{tmp_path}", "train"), SIMCLR, 16, 4, seed=0).batches(0, 30)
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_batches_that_are_kept_stay_what_they_were(pictures):
    loader = ViewLoader(pictures, plan("swav"), 32, 20, seed=0)
    kept, copies, places = [], [], set()
    for step, batch in enumerate(loader.batches(0, 24)):
        places.add(batch.views[0].data_ptr())
        if step % 5 == 0:
            kept.append(batch.views[0].unflatten(0, (2, -1))[1, 3:, ..., 4:])  # a part keeps the whole
            copies.append(kept[-1].clone())
    assert all(map(torch.equal, kept, copies))
    assert len(places) <= len(kept) + 2  # and what nobody keeps is used again


def test_two_streams_of_a_loader_do_not_disturb_each_other(pictures):
    loader = ViewLoader(pictures, SIMCLR, 32, 20, seed=0)
    want = [batch.views[0].clone() for batch in loader.batches(0, 6)]
    for one, other, first, second in zip(loader.batches(0, 3), loader.batches(3, 6), want[:3], want[3:], strict=True):
        assert torch.equal(one.views[0], first) and torch.equal(other.views[0], second)


def test_an_unknown_renderer(pictures):
    with pytest.raises(UsageError, match="native, dali, torch"):
        ViewLoader(pictures, SIMCLR, 8, 4, seed=0, renderer="cuda")


def save(folder, count, kind="jpg", seed=0):
    folder.mkdir(exist_ok=True, parents=True)
    sides = np.random.default_rng(seed).integers(20, 90, (count, 2))
    for i, (height, width) in enumerate(sides.tolist()):
        Image.fromarray(photographs(1, height, width, seed=i)[0]).save(folder / f"{i:03}.{kind}", quality=95)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_files_have_the_views_of_the_decoded_set(tmp_path, renderer):
    save(tmp_path / "set", 23)
    Image.fromarray(photographs(1, 40, 30)[0]).save(tmp_path / "set" / "a.png")
    Image.fromarray(photographs(1, 40, 30)[0][..., 0]).save(tmp_path / "set" / "grey.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(photographs(1, 40, 30)[0]).save(tmp_path / "set" / "turned.jpg", exif=turned)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted((tmp_path / "set").iterdir()):
            archive.write(path, path.name)
    tolerance = 4 / 255 if available(renderer) == "dali" else 1e-6  # DALI decodes a little differently
    for place in ("set", "set.zip"):
        dataset = load(f"folder:{tmp_path / place}", "train")
        on_the_fly = ViewLoader(dataset, plan("swav"), 32, 9, seed=0, renderer=renderer)
        held = ViewLoader(dataset.decoded(), plan("swav"), 32, 9, seed=0)
        for got, want in zip(on_the_fly.batches(1, 5), held.batches(1, 5), strict=True):
            assert np.array_equal(got.indices, want.indices)
            for one, other in zip(got.views, want.views, strict=True):
                error = (one - other).abs()
                assert error.max() < 5 * tolerance and error.mean() < tolerance / 4
    assert not on_the_fly.skipped


def test_no_decoded_set_is_held(tmp_path, monkeypatch):
    save(tmp_path, 10)
    dataset = load(f"folder:{tmp_path}", "train")
    monkeypatch.setattr(type(dataset), "decoded", lambda *_: pytest.fail("the whole set was decoded"))
    read = []
    pixels = dataset._pixels
    decode = pixels._decode
    monkeypatch.setattr(pixels, "_decode", lambda row: read.append(row) or decode(row))
    list(ViewLoader(dataset, plan("swav"), 32, 5, seed=0).batches(0, 2))
    assert sorted(read) == list(range(10))  # once each, whatever the number of views


def spoil(folder):
    """Damage files in ways that their headers do not show; return their names."""
    damaged = []
    for path in sorted(folder.iterdir())[::4]:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 2 // 3])
        damaged.append(str(path))
    return damaged


@pytest.mark.parametrize("renderer", RENDERERS)
def test_damaged_files_are_named_and_left_out(tmp_path, renderer):
    save(tmp_path / "set", 30)
    sound = load(f"folder:{tmp_path / 'set'}", "train")
    whole = list(ViewLoader(sound, SIMCLR, 16, 8, seed=0, renderer=available(renderer)).batches(0, 8))
    damaged = spoil(tmp_path / "set")
    loader = ViewLoader(load(f"folder:{tmp_path / 'set'}", "train"), SIMCLR, 16, 8, seed=0, renderer=renderer)
    for got, want in zip(loader.batches(0, 8), whole, strict=True):
        kept = [place for place, row in enumerate(want.indices) if sound.ids[row] not in damaged]
        assert np.array_equal(got.indices, want.indices[kept]) and 0 < len(kept) <= 8
        views = want.views[0].unflatten(0, (2, -1))[:, kept].flatten(0, 1)
        torch.testing.assert_close(got.views[0], views, rtol=0, atol=2e-3)
    assert [skipped.path for skipped in loader.skipped] == damaged
    assert all("truncated" in skipped.reason for skipped in loader.skipped)


@pytest.mark.parametrize("renderer", ["native", "dali"])
def test_files_that_change_after_the_set_was_loaded(tmp_path, renderer):
    save(tmp_path, 12)
    dataset = load(f"folder:{tmp_path}", "train")
    names = sorted(os.listdir(tmp_path))
    (tmp_path / names[0]).unlink()
    (tmp_path / names[1]).write_bytes(b"")
    (tmp_path / names[2]).write_bytes(b"\xff\xd8\xff" + os.urandom(3000) + b"\xff\xd9")
    (tmp_path / names[3]).write_text("hello")
    Image.fromarray(photographs(1, 10, 10)[0]).save(tmp_path / names[4])
    loader = ViewLoader(dataset, SIMCLR, 16, 6, seed=0, renderer=available(renderer))
    batches = list(loader.batches(0, 4))
    assert sorted(np.concatenate([batch.indices for batch in batches[:2]]).tolist()) == list(range(5, 12))
    assert sorted(np.concatenate([batch.indices for batch in batches[2:]]).tolist()) == list(range(5, 12))
    assert [skipped.path for skipped in loader.skipped] == [str(tmp_path / name) for name in names[:5]]
    assert "No such file" in loader.skipped[0].reason and "size" in loader.skipped[4].reason


def test_a_file_that_only_dali_cannot_decode_costs_a_pipeline_and_nothing_else(tmp_path, monkeypatch):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    from sslfast.data import dali_stream

    save(tmp_path, 20)
    # Nothing is looked at before: what DALI is given is what lies there, and it dies of it.
    monkeypatch.setattr(dali_stream, "_plain_jpeg", lambda content, size: True)
    dataset = load(f"folder:{tmp_path}", "train")
    want = list(ViewLoader(dataset, SIMCLR, 16, 5, seed=0, renderer="dali").batches(0, 8))
    names = sorted(os.listdir(tmp_path))
    (tmp_path / names[7]).write_bytes(b"no image at all")
    (tmp_path / names[11]).write_bytes(b"\xff\xd8\xff\xd9")
    loader = ViewLoader(dataset, SIMCLR, 16, 5, seed=0, renderer="dali")
    for got, other in zip(loader.batches(0, 8), want, strict=True):
        kept = ~np.isin(other.indices, [7, 11])
        assert np.array_equal(got.indices, other.indices[kept])
        torch.testing.assert_close(got.views[0].unflatten(0, (2, -1)), other.views[0].unflatten(0, (2, -1))[:, kept])
    assert len(loader.skipped) == 2


@pytest.mark.parametrize("renderer", ["native", "dali"])
def test_a_batch_without_any_readable_image(tmp_path, renderer):
    save(tmp_path, 4)
    dataset = load(f"folder:{tmp_path}", "train")
    for path in tmp_path.iterdir():
        path.write_text("hello")
    loader = ViewLoader(dataset, SIMCLR, 16, 2, seed=0, renderer=available(renderer))
    with pytest.raises(DataError, match=r"none of the 2 images .*\.jpg"):
        list(loader.batches(0, 2))


def test_a_plan_of_several_groups_counts_its_views(pictures):
    swav = plan("swav")
    both = ViewPlan((*swav.groups, *plan("supervised").groups))
    (batch,) = ViewLoader(pictures, both, 32, 7, seed=0).batches(0, 1)
    assert [len(views) for views in batch.views] == [14, 42, 7] and both.views == 9
