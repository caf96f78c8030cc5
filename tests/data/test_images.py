import io
import struct
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sslfast.data import image as image_module
from sslfast.data.image import PIXEL_LIMIT, UnreadableImage, decode, read_header

RANDOM = np.random.default_rng(3)
COLOUR = RANDOM.integers(0, 256, (11, 17, 3), dtype=np.uint8)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(width: int, height: int, colour_type: int, depth: int, rows: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_colour_is_bit_true(kind: str) -> None:
    content = saved(Image.fromarray(COLOUR), kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(decode(io.BytesIO(content)), COLOUR)
    assert read_header(io.BytesIO(content)) == (11, 17)


def test_jpeg_is_what_pillow_and_torchvision_decode(tmp_path: Path) -> None:
    from torchvision.datasets.folder import pil_loader

    path = tmp_path / "image.jpg"
    Image.fromarray(COLOUR).resize((170, 110)).save(path, quality=90)
    with path.open("rb") as stream:
        assert np.array_equal(decode(stream), np.asarray(pil_loader(str(path))))


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr", "LAB"])
def test_other_modes_are_what_pillow_converts_them_to(mode: str) -> None:
    content = saved(Image.fromarray(COLOUR).convert("RGB").convert(mode) if mode != "LAB" else _lab(), "TIFF")
    with Image.open(io.BytesIO(content)) as image:
        wanted = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode(io.BytesIO(content)), wanted)


def _lab() -> Image.Image:
    return Image.frombytes("LAB", (17, 11), COLOUR.tobytes())


def test_a_cmyk_jpeg_is_rgb_within_a_few_levels() -> None:
    flat = Image.new("RGB", (32, 24), (200, 100, 50))
    ours = decode(io.BytesIO(saved(flat.convert("CMYK"), "JPEG", quality=95)))
    assert ours.shape == (24, 32, 3)
    assert np.abs(ours.astype(int) - (200, 100, 50)).max() <= 4


@pytest.mark.parametrize("order", [">", "<"])
def test_sixteen_bit_grey_is_scaled_not_clipped(order: str) -> None:
    values = np.linspace(0, 65535, 17 * 11).astype(np.uint16).reshape(11, 17)
    if order == ">":
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        content = png(17, 11, 0, 16, rows)
    else:
        content = saved(Image.fromarray(values), "TIFF")
    ours = decode(io.BytesIO(content))
    assert np.array_equal(ours[..., 0], ((values.astype(np.int64) + 128) // 257).astype(np.uint8))
    assert ours.min() == 0 and ours.max() == 255
    assert (ours[..., 0] == ours[..., 2]).all()


def test_sixteen_bit_colour_is_within_one_level() -> None:
    values = RANDOM.integers(0, 65536, (11, 17, 3)).astype(np.uint16)
    content = png(17, 11, 2, 16, b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))
    assert np.abs(decode(io.BytesIO(content)).astype(int) - values / 257).max() <= 1


def test_transparency_lies_on_white() -> None:
    alpha = np.dstack([COLOUR, np.full((11, 17), 0, np.uint8)])
    alpha[0, 0, 3] = 255
    ours = decode(io.BytesIO(saved(Image.fromarray(alpha), "PNG")))
    assert np.array_equal(ours[0, 0], COLOUR[0, 0]) and (ours[1:] == 255).all()
    palette = Image.fromarray(COLOUR).quantize(8)
    ours = decode(io.BytesIO(saved(palette, "PNG", transparency=int(palette.getpixel((0, 0))))))
    assert (ours[0, 0] == 255).all()
    grey = Image.fromarray(np.array([[7, 9]], dtype=np.uint8))
    assert decode(io.BytesIO(saved(grey, "PNG", transparency=7)))[..., 0].tolist() == [[255, 9]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_applied_and_the_header_says_so(orientation: int, kind: str) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(Image.fromarray(COLOUR), kind, exif=exif)
    with Image.open(io.BytesIO(content)) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(decode(io.BytesIO(content)), wanted)
    assert read_header(io.BytesIO(content)) == wanted.shape[:2]


def test_one_pixel_is_an_image() -> None:
    assert decode(io.BytesIO(saved(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"))).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize(
    ("width", "height"), [(30_000, 30_000), (2**31 - 1, 2**31 - 1), (PIXEL_LIMIT + 1, 1), (10_000, 9_500)]
)
def test_too_many_pixels_are_refused_from_the_header(width: int, height: int) -> None:
    content = png(width, height, 2, 8)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in (read_header, decode):
            with pytest.raises(UnreadableImage, match="claims|exceed|too large"):
                read(io.BytesIO(content))
    assert time.perf_counter() - start < 1


def test_the_largest_allowed_header_passes() -> None:
    assert read_header(io.BytesIO(png(10_000, 9_000, 2, 8))) == (9_000, 10_000)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_file_is_unreadable(kind: str) -> None:
    content = saved(Image.fromarray(np.repeat(np.repeat(COLOUR, 8, 0), 8, 1)), kind)
    for part in (0.2, 0.5, 0.9):
        with pytest.raises(UnreadableImage):
            decode(io.BytesIO(content[: int(len(content) * part)]))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"hello, I am a text", "no image in a known format"),
        (bytes(1000), "no image in a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "no image in a known format"),
    ],
)
def test_what_is_no_image_says_why(content: bytes, reason: str) -> None:
    for read in (read_header, decode):
        with pytest.raises(UnreadableImage, match=reason):
            read(io.BytesIO(content))


def test_pixels_of_no_known_range_are_refused() -> None:
    with pytest.raises(UnreadableImage, match="floating-point"):
        decode(io.BytesIO(saved(Image.fromarray(np.ones((3, 3), np.float32)), "TIFF")))
    with pytest.raises(UnreadableImage, match="32-bit"):
        decode(io.BytesIO(saved(Image.fromarray(np.full((3, 3), 70_000, np.int32)), "TIFF")))


@given(data=st.data())
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_a_damaged_file_gives_an_image_or_a_reason(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"]))
    content = bytearray(saved(Image.fromarray(COLOUR), kind))
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=6)):
        content[position] = data.draw(st.integers(0, 255))
    for read in (read_header, decode):
        try:
            read(io.BytesIO(bytes(content)))
        except UnreadableImage as error:
            assert "\n" not in str(error) and str(error)


def test_warnings_of_others_come_back_after_we_silenced_pillow() -> None:
    before = list(warnings.filters)
    with image_module.quiet(), image_module.quiet():
        warnings.warn("of Pillow", stacklevel=1)
    assert list(warnings.filters) == before
