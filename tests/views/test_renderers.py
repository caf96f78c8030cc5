"""Renderers agree: the compiled one and DALI with the definition in plain PyTorch, and that with torchvision."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pictures import in_memory, photographs
from torchvision.transforms.v2 import functional as TF

from sslfast.data.dataset import Located
from sslfast.data.drawing import ViewParameters, draw_views, generator
from sslfast.data.memory import RaggedPixels
from sslfast.data.native import NativeRenderer, PixelTable, real_numbers, whole_numbers
from sslfast.data.render import TorchRenderer, add_noise, blur_radius, change_colours
from sslfast.data.views import ViewGroup, ViewPolicy, plan

EVERYTHING = ViewPolicy(
    scale=(0.05, 1.0), vertical_flip=0.3, jitter=0.9, hue=0.3, distort=0.4, blur=0.5, solarise=0.4, erase=0.5, fill=0.3
)
PADDED = replace(EVERYTHING, pad=0.4, erase=1.0, cutout=0.5)
plain = ViewParameters.plain


def native(*arguments, size):
    """The compiled renderer into memory full of NaN."""
    images, drawn = arguments
    out = torch.full((len(drawn), 3, size, size), float("nan"))
    table = PixelTable.packed(images)
    return NativeRenderer(size).render(table, np.arange(len(images), dtype=np.int64), drawn, out)


@pytest.fixture(params=[128, 256, 512])
def bits(request):
    """Kernels of each capability that this machine has."""
    widest = torch.ops.sslfast.cpu_vector_bits(0)
    if torch.ops.sslfast.cpu_vector_bits(request.param) != request.param:
        pytest.skip(f"this processor has no vectors of {request.param} bits")
    yield request.param
    torch.ops.sslfast.cpu_vector_bits(widest)


# Image, view: crops of up to 32 columns and more, enlarged, of the same size, shrunk by little and by much.
SIZES = [((32, 32), 32), ((28, 28), 17), ((40, 36), 64), ((90, 61), 33), ((70, 130), 14), ((5, 3), 8), ((31, 47), 1)]


@pytest.mark.parametrize("policy", [EVERYTHING, PADDED], ids=["cropped", "padded"])
@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_the_compiled_renderer_makes_what_the_definition_makes(shape, size, policy, bits):
    images = photographs(20, *shape)
    drawn = draw_views(policy, generator(5), 40, *shape, view=size)
    want = TorchRenderer(size)(images, drawn)
    torch.testing.assert_close(native(images, drawn, size=size), want, rtol=0, atol=5e-5)


def test_a_view_of_a_whole_image_is_the_image(bits):
    images = photographs(3, 20, 20)
    want = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(native(images, plain(3, 20, 20), size=20), want, rtol=0, atol=1e-7)


def test_extreme_boxes_and_perspectives():
    images = photographs(4, 30, 30)
    box = np.array([[0, 0, 1, 1], [29, 29, 1, 1], [-40, 3, 30, 30], [-20, -20, 70, 70]], np.int32)
    turned = plain(4, 30, 30).perspective
    turned[1] = [0, 1, 0, 1, 0, 0, 0.3, -0.3]
    turned[3] = [1e30, 0, 0, 0, 1e30, 0, -1e30, 1]
    drawn = plain(4, 30, 30, box=box, perspective=turned)
    views = native(images, drawn, size=16)
    assert views.isfinite().all() and (views >= 0).all() and (views <= 1).all()
    torch.testing.assert_close(views[[0, 2]], TorchRenderer(16)(images, drawn)[[0, 2]], rtol=0, atol=5e-5)
    assert not views[2].any()


@pytest.mark.parametrize("layout", ["interleaved", "planar", "records", "grey", "every other"])
def test_images_are_read_where_they_lie(layout):
    images = photographs(9, 24, 30)
    held = {
        "interleaved": images,
        "planar": np.ascontiguousarray(images.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1),
        "records": np.pad(images.transpose(0, 3, 1, 2).reshape(9, -1), ((0, 0), (1, 0)))[:, 1:]
        .reshape(9, 3, 24, 30)
        .transpose(0, 2, 3, 1),
        "grey": np.ascontiguousarray(images[..., 0]),
        "every other": np.repeat(images, 2, axis=0)[::2],
    }[layout]
    dataset = in_memory(held).subset([8, 0, 3, 3])
    located = dataset.located()
    assert np.shares_memory(located.buffer, held)
    drawn = draw_views(EVERYTHING, generator(1), 8, 24, 30, view=32)
    table = PixelTable.of(located, dataset.sizes())
    got = NativeRenderer(32).render(table, np.arange(4), drawn)
    torch.testing.assert_close(got, TorchRenderer(32)(dataset.images(np.arange(4)), drawn), rtol=0, atol=5e-5)


def test_images_of_different_sizes_in_one_buffer():
    images = [photographs(1, *shape, seed=seed)[0] for seed, shape in enumerate([(20, 31), (64, 8), (33, 33)])]
    sizes = np.array([image.shape[:2] for image in images])
    offsets = np.cumsum([0, *(image.size for image in images[:-1])])
    pixels = RaggedPixels(np.concatenate([image.reshape(-1) for image in images]), offsets, sizes)
    drawn = draw_views(EVERYTHING, generator(1), 6, *np.tile(sizes, (2, 1)).T, view=24)
    rows = np.array([2, 0, 1])
    got = NativeRenderer(24).render(PixelTable.of(pixels.located(np.arange(3)), sizes), np.arange(3), drawn)
    torch.testing.assert_close(got, TorchRenderer(24)(images, drawn), rtol=0, atol=5e-5)
    swapped = PixelTable.of(pixels.located(rows), sizes[rows])
    again = NativeRenderer(24).render(swapped, np.array([1, 2, 0]), drawn)
    assert torch.equal(again, got)


def test_layouts_that_the_kernel_does_not_read():
    images = photographs(4, 10, 12)
    assert in_memory(images[..., ::-1]).located() is None
    assert in_memory(images[:, :, ::2]).located() is None
    assert in_memory(images[::-1]).located() is None


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_nothing(threads):
    images = photographs(64, 32, 32)
    drawn = draw_views(EVERYTHING, generator(5), 128, 32, 32)
    want = NativeRenderer(32, parallel=False)(images, drawn)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(NativeRenderer(32)(images, drawn), want)
    finally:
        torch.set_num_threads(before)


def test_what_lies_outside_the_pixels_is_refused():
    images = photographs(2, 8, 8)
    drawn = plain(2, 8, 8)

    def call(offsets=(0, 192), sizes=((8, 8, 24),) * 2, column=3, channel=1, whole=None, out=None):
        torch.ops.sslfast.render_views(
            torch.empty(2, 3, 8, 8) if out is None else out,
            torch.from_numpy(images).reshape(-1),
            torch.tensor(offsets),
            torch.tensor(sizes, dtype=torch.int32),
            column,
            channel,
            torch.from_numpy(whole_numbers(drawn) if whole is None else whole),
            torch.from_numpy(real_numbers(drawn)),
            1,
            True,
        )

    call()
    empty = whole_numbers(drawn)
    empty[1, 3] = 0
    for wrong in (
        {"offsets": (0, 193)},
        {"offsets": (-1, 192)},
        {"offsets": (0,)},
        {"sizes": ((8, 8, 24), (9, 8, 24))},
        {"sizes": ((8, 8, 24), (0, 8, 24))},
        {"column": 2},
        {"channel": -1},
        {"whole": empty},
        {"out": torch.empty(2, 3, 8, 9)},
        {"out": torch.empty(2, 3, 8, 8, dtype=torch.float64)},
    ):
        with pytest.raises(RuntimeError, match="render_views"):
            call(**wrong)


def test_the_operators_schema_is_true():
    images = photographs(2, 8, 8)
    drawn = draw_views(EVERYTHING, generator(0), 2, 8, 8)
    tables = torch.tensor([0, 192]), torch.tensor([[8, 8, 24]] * 2, dtype=torch.int32)
    numbers = torch.from_numpy(whole_numbers(drawn)), torch.from_numpy(real_numbers(drawn))
    arguments = (torch.empty(2, 3, 8, 8), torch.from_numpy(images).reshape(-1), *tables, 3, 1, *numbers, 1, True)
    torch.library.opcheck(torch.ops.sslfast.render_views.default, arguments, test_utils="test_schema")


def test_crop_and_flip_are_torchvisions():
    images = photographs(3, 40, 36)
    box = np.array([[3, 5, 20, 30], [0, 0, 40, 36], [10, 2, 11, 9]], np.int32)
    got = TorchRenderer(28)(images, plain(3, 40, 36, box=box, flip=np.array([0, 1, 1], np.int32)))
    for i, (top, left, height, width) in enumerate(box.tolist()):
        image = torch.from_numpy(images[i]).permute(2, 0, 1).float()
        want = TF.resized_crop(image, top, left, height, width, [28, 28], antialias=True) / 255
        torch.testing.assert_close(got[i], want.flip(-1) if i else want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [32, 48, 224])
def test_blur_and_perspective_are_torchvisions(size):
    images = photographs(2, size, size)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    sigma = np.array([0.7, 1.9], np.float32)
    got = TorchRenderer(size)(images, plain(2, size, size, blur=sigma))
    window = 2 * blur_radius(size) + 1
    for row in range(2):
        want = TF.gaussian_blur(x[row], [window, window], [float(sigma[row])] * 2)
        torch.testing.assert_close(got[row], want, rtol=0, atol=1e-5)
    drawn = draw_views(ViewPolicy(distort=1.0), generator(0), 2, size, size)
    turned = plain(2, size, size, perspective=drawn.perspective)
    got = TorchRenderer(size)(images, turned)
    for row in range(2):
        want = TF.perspective(x[row], None, None, fill=None, coefficients=drawn.perspective[row].tolist())
        torch.testing.assert_close(got[row], want, rtol=0, atol=1e-4)


def test_solarise_and_erase_are_torchvisions():
    images = photographs(1, 30, 30)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    got = TorchRenderer(30)(images, plain(1, 30, 30, solarise=np.ones(1, np.int32)))
    torch.testing.assert_close(got, TF.solarize(x, 0.5), rtol=0, atol=1e-6)
    box, fill = np.array([[4, 5, 6, 20]], np.int32), np.array([0.25], np.float32)
    got = TorchRenderer(30)(images, plain(1, 30, 30, erase=box, fill=fill))
    torch.testing.assert_close(got, TF.erase(x, 4, 5, 6, 20, torch.tensor(0.25)), rtol=0, atol=1e-6)


def test_a_full_turn_of_hue_changes_nothing():
    x = torch.from_numpy(photographs(2, 8, 8)).permute(0, 3, 1, 2).float()
    same = change_colours(x, plain(2, 8, 8, hue=np.array([360, -360], np.float32)))
    torch.testing.assert_close(same, x, rtol=0, atol=1e-2)


def test_noise_is_that_of_its_generator_and_stays_in_range():
    views = torch.full((3, 3, 16, 16), 0.98)
    drawn = plain(3, 16, 16, noise=np.array([0.1, 0, 0.1], np.float32))
    got = add_noise(views.clone(), drawn, generator(1, 2))
    assert torch.equal(got, add_noise(views.clone(), drawn, generator(1, 2)))
    assert torch.equal(got[1], views[1]) and got.max() == 1 and not torch.equal(got[0], got[2])
    low = (0.98 - got[0][got[0] < 0.98]).square().mean().sqrt()
    assert abs(float(low) - 0.1) < 0.02


@pytest.mark.parametrize("size", [16, 28, 64])
def test_dali_renders_what_the_definition_renders(size):
    dali = pytest.importorskip("sslfast.data.dali", reason="DALI is not installed")
    images = photographs(48, 40, 36)
    policy = plan("simclr").groups[0].policies[0]
    drawn = draw_views(policy, generator(5), 48, 40, 36)
    want = TorchRenderer(size)(images, drawn)
    (got,) = dali.DaliRenderer([ViewGroup((policy,))], [size], 64, 2, torch.device("cpu"))(images, [drawn])
    assert got.shape == want.shape and got.dtype == want.dtype
    error = (got - want).abs()
    # The antialiasing filters differ a little at edges where a crop is much larger than the view.
    assert error.max() < (1 if size >= 28 else 5) / 255
    assert error.mean() < 0.25 / 255


@pytest.mark.parametrize("policy", [EVERYTHING, PADDED], ids=["cropped", "padded"])
def test_dali_has_every_step(policy):
    dali = pytest.importorskip("sslfast.data.dali", reason="DALI is not installed")
    images = photographs(30, 32, 32)
    drawn = draw_views(policy, generator(5), 60, 32, 32)
    renderer = dali.DaliRenderer([ViewGroup((policy, policy))], [32], 30, 2, torch.device("cpu"))
    (got,) = renderer(images, [drawn])
    error = (got - TorchRenderer(32)(images, drawn)).abs()
    assert error.max() < 2 / 255 and error.mean() < 0.1 / 255


def test_a_table_is_read_only_memory_too():
    images = photographs(2, 8, 8)
    images.flags.writeable = False
    located = Located(images.reshape(-1), np.array([0, 192]), np.array([24, 24]), 3, 1)
    table = PixelTable.of(located, np.array([[8, 8]] * 2))
    want = torch.from_numpy(images.copy()).permute(0, 3, 1, 2) / 255
    got = NativeRenderer(8).render(table, np.arange(2), plain(2, 8, 8))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-7)
