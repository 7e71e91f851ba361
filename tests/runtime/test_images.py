import contextlib
import io
import os
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from packaging.version import Version
from PIL import ExifTags, Image

from escnet_runtime import images
from escnet_runtime.errors import ImageError
from escnet_runtime.images import find_images, load_image, load_oriented

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
WHITE, RED = [255, 255, 255], [255, 0, 0]


def saved(tmp_path: Path, image: Image.Image, name: str = "image.png", **options: object) -> Path:
    path = tmp_path / name
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def test_no_file_makes_another_program_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostScript is a program, whatever the file is called, and Pillow has Ghostscript run it."""
    Image.fromarray(RGB).save(tmp_path / "drawing.eps")
    path = (tmp_path / "drawing.eps").rename(tmp_path / "photo.jpg")
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch '{tmp_path}/started'\n", encoding="utf-8")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(ghostscript.parent), prepend=os.pathsep)
    with Image.open(io.BytesIO(path.read_bytes())) as opened:
        for source in (path, opened):
            with pytest.raises(ImageError, match=r"is a drawing \(EPS\).*convert it to PNG"):
                load_image(source)
    assert not (tmp_path / "started").exists()


def test_rgb_file_is_read_exactly_and_contiguously(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(RGB))
    for source in (path, str(path)):
        image = load_image(source)
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
        np.testing.assert_array_equal(image, RGB)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *(("1", s) for s in ("png", "tif", "gif", "bmp")),
        *(("L", s) for s in ("png", "jpg", "webp", "pgm")),
        *(("LA", s) for s in ("png", "tif")),
        *(("P", s) for s in ("png", "gif", "tif")),
        *(("RGBA", s) for s in ("png", "webp", "tif")),
        *(("CMYK", s) for s in ("jpg", "tif")),
        *(("YCbCr", s) for s in ("jpg", "tif")),
        ("LAB", "tif"),
        ("HSV", None),
        ("RGBa", None),
        ("La", None),
        ("PA", None),
        ("RGBX", None),
    ],
)
def test_every_mode_gives_the_same_picture(tmp_path: Path, mode: str, suffix: str | None) -> None:
    if (mode, suffix) == ("YCbCr", "tif") and Version(PIL.__version__) < Version("12.3"):
        pytest.skip("this Pillow cannot read the YCbCr TIFF that it writes")
    smooth = np.zeros((24, 32, 3), np.uint8)
    smooth[:, 16:] = 255  # black and white survive every mode
    image = Image.fromarray(smooth)
    if mode == "LAB":
        converted = Image.merge(
            "LAB", [image.getchannel(0), *[Image.new("L", image.size, 128)] * 2]
        )
    else:
        steps = {"RGBa": ["RGBA"], "La": ["L", "LA"], "PA": ["P"], "HSV": []}.get(mode, [])
        for step in steps:
            image = image.convert(step)
        converted = image.convert(mode)
    source = saved(tmp_path, converted, f"image.{suffix}") if suffix else converted
    result = load_image(source)
    assert result.shape == (24, 32, 3)
    np.testing.assert_allclose(result.astype(int), smooth, atol=4)


def test_transparent_pixels_become_white() -> None:
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [255, 0, 0, 51]]], np.uint8)
    expected = [[RED, WHITE, [255, 204, 204]]]
    np.testing.assert_array_equal(load_image(rgba), expected)
    np.testing.assert_array_equal(load_image(Image.fromarray(rgba)), expected)


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_becomes_white(tmp_path: Path, mode: str) -> None:
    if mode == "P":
        image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("L")
        image.putpalette([*RED, 0, 0, 255])
        transparency: object = bytes([255, 0])  # an alpha of each entry; Pillow warns of these
    else:
        image = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)).convert(mode)
        transparency = image.getpixel((1, 0))
    first = RED if mode != "L" else [76, 76, 76]
    path = saved(tmp_path, image, transparency=transparency)
    np.testing.assert_array_equal(load_image(path), [[first, WHITE]])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    path = saved(tmp_path, Image.fromarray(values), f"image.{suffix}")
    expected = [0, 0, 1, 1, 128, 255]
    np.testing.assert_array_equal(load_image(path)[0, :, 1], expected)
    np.testing.assert_array_equal(load_image(values)[0, :, 2], expected)
    as_32_bits = Image.fromarray(values.astype(np.int32))
    np.testing.assert_array_equal(load_image(as_32_bits)[0, :, 0], expected)


def test_transparent_value_of_16_bit_grey() -> None:
    image = Image.fromarray(np.array([[0, 500]], np.uint16))
    image.info["transparency"] = 0
    np.testing.assert_array_equal(load_image(image)[0, :, 0], [255, 2])


@pytest.mark.parametrize("values", [[-1, 5], [0, 65536]])
def test_32_bit_integers_out_of_range_are_refused(values: list[int]) -> None:
    with pytest.raises(ImageError, match="expected 0 to 65535"):
        load_image(Image.fromarray(np.array([values], np.int32)))


def test_float_picture_is_scaled_or_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(np.array([[0, 0.5, 1]], np.float32)), "image.tif")
    np.testing.assert_array_equal(load_image(path)[0, :, 0], [0, 128, 255])
    for bad in (1.5, -0.1, np.nan, np.inf):
        with pytest.raises(ImageError, match="expected 0 to 1"):
            load_image(Image.fromarray(np.array([[0, bad]], np.float32)))


def test_16_bit_rgb_png(tmp_path: Path) -> None:
    # Pillow does not write these: a PNG by hand, 2×1 pixels, big-endian.
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    pixels = np.array([65535, 0, 32768, 257, 514, 771], ">u2").tobytes()
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    data += chunk(b"IDAT", zlib.compress(b"\0" + pixels)) + chunk(b"IEND", b"")
    path = tmp_path / "deep.png"
    path.write_bytes(data)
    np.testing.assert_allclose(load_image(path), [[[255, 0, 128], [1, 2, 3]]], atol=1)


# The pixels as they are stored, of [H,W] or [H,W,C] as they are to be seen.
STORED: dict[int, Callable[[Any], Any]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](RGB))
    path = saved(tmp_path, Image.fromarray(stored), exif=exif)
    np.testing.assert_array_equal(load_image(path), RGB)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "I;16", "P", "RGB", "RGBA", "CMYK"])
def test_exif_rotation_of_a_tiff_that_could_be_mapped(
    tmp_path: Path, mode: str, orientation: int
) -> None:
    """In all modes but RGB, Pillow maps an uncompressed TIFF into memory."""
    channels = {"L": 1, "I;16": 1, "P": 1, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    values = RNG.integers(0, 256, (5, 7, channels), dtype=np.uint8)
    stored = np.ascontiguousarray(STORED[orientation](values))
    if mode == "I;16":
        image, upright = (
            Image.fromarray(a[:, :, 0].astype(np.uint16) * 257) for a in (stored, values)
        )
    else:
        size = stored.shape[1], stored.shape[0]
        image = Image.frombytes(mode, size, stored.tobytes())
        upright = Image.frombytes(mode, (7, 5), values.tobytes())
    if mode == "P":
        palette = RNG.integers(0, 256, 768, dtype=np.uint8).tobytes()
        image.putpalette(palette)
        upright.putpalette(palette)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, image, "image.tif", exif=exif)
    np.testing.assert_array_equal(load_image(path), load_image(upright))
    with Image.open(path) as opened:
        np.testing.assert_array_equal(load_image(opened), load_image(upright))
        assert opened.filename == str(path)


def exif_entries(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF of entries (tag, type, count, 4 bytes), little-endian."""
    data = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries))
    for tag, kind, count, value in sorted(entries):
        data += struct.pack("<HHI", tag, kind, count) + value
    return data + bytes(4)


TURNED = 0x0112, 3, 1, struct.pack("<HH", 6, 0)


@pytest.mark.parametrize(
    "foreign",
    [
        pytest.param((0x011A, 2, 4, b"72\0\0"), id="XResolution as text"),
        pytest.param((0x010F, 11, 1, struct.pack("<f", 1.5)), id="Make as a float"),
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_foreign_exif_entry_does_not_hide_the_orientation(
    tmp_path: Path, suffix: str, foreign: tuple[int, int, int, bytes]
) -> None:
    exif = exif_entries(TURNED, foreign)
    path = saved(tmp_path, Image.new("RGB", (6, 4), "red"), f"image.{suffix}", exif=exif)
    image, orientation = load_oriented(path)
    assert (image.shape, orientation) == ((6, 4, 3), 6)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize(
    "exif", [b"garbage!!!!!!!!", exif_entries((0x0112, 2, 4, b"abc\0"))], ids=["all", "entry"]
)
def test_damaged_exif_is_no_rotation(tmp_path: Path, suffix: str, exif: bytes) -> None:
    path = saved(tmp_path, Image.new("RGB", (6, 4), "red"), f"image.{suffix}", exif=exif)
    image, orientation = load_oriented(path)
    assert (image.shape, orientation) == ((4, 6, 3), 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "LA", "La", "CMYK", "LAB", "I", "F"]
)
def test_strips_of_a_large_image_do_not_show(
    mode: str, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (61, 47, 4), np.uint8)
    if mode in ("I", "F"):
        drawn_as = np.int32 if mode == "I" else np.float32
        image = Image.fromarray((drawn[:, :, 0] / 255).astype(drawn_as))
    elif mode == "LAB":
        image = Image.merge("LAB", Image.fromarray(drawn[:, :, :3].copy()).split())
    else:
        between = Image.fromarray(drawn).convert({"La": "LA", "CMYK": "RGB"}.get(mode, mode))
        image = between.convert(mode)
    if mode in ("1", "L", "P"):
        image.info["transparency"] = 0
    image.getexif()[ExifTags.Base.Orientation] = orientation
    whole = load_image(image)
    monkeypatch.setattr(images, "_STRIP_PIXELS", 700)
    np.testing.assert_array_equal(load_image(image), whole)
    assert load_image(image).flags.c_contiguous


def test_a_large_file_takes_little_more_memory_than_its_pixels(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (2400, 1800), (9, 90, 200)).save(path, exif=exif)
    tracemalloc.start()
    try:
        pixels = load_image(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert pixels.shape == (2400, 1800, 3)
    assert peak < 1.6 * pixels.nbytes  # without Pillow's own, which holds the file's


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    path = saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert (load_image(path) == RED).all()


@pytest.mark.parametrize("size", [(1, 1), (20000, 10), (10, 20000)])
def test_extreme_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    image = load_image(saved(tmp_path, Image.new("RGB", size, "red")))
    assert image.shape == (size[1], size[0], 3)


def test_pillow_image_of_the_caller_is_left_alone() -> None:
    image = Image.fromarray(RGB)
    image.getexif()[0x0112] = 3
    np.testing.assert_array_equal(load_image(image), RGB[::-1, ::-1])
    assert image.getexif()[0x0112] == 3
    np.testing.assert_array_equal(np.asarray(image), RGB)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_arrays(dtype: Any) -> None:
    scale = 257 if dtype == np.uint16 else 1
    rgb = np.asarray((RGB.astype(np.int64) * scale).astype(dtype), dtype)
    grey = np.repeat(RGB[:, :, :1], 3, 2)
    np.testing.assert_array_equal(load_image(rgb), RGB)
    np.testing.assert_array_equal(load_image(rgb[:, :, 0]), grey)
    np.testing.assert_array_equal(load_image(rgb[:, :, :1]), grey)
    opaque = np.full((5, 7, 1), 255 * scale, dtype)
    np.testing.assert_array_equal(load_image(np.concatenate([rgb, opaque], 2)), RGB)
    flipped = load_image(rgb[:, ::-1])
    assert flipped.flags.c_contiguous
    np.testing.assert_array_equal(flipped, RGB[:, ::-1])
    np.testing.assert_array_equal(load_image(rgb.astype(rgb.dtype.newbyteorder(">"))), RGB)


def test_ready_array_is_not_copied() -> None:
    assert np.shares_memory(load_image(RGB), RGB)


@pytest.mark.parametrize(
    ("array", "advice"),
    [
        (np.zeros((4, 4, 3), np.float32), r"255 \* a"),
        (np.zeros((4, 4, 3), np.int64), "convert it to uint8"),
        (np.zeros((4, 4, 3), bool), "convert it to uint8"),
        (np.zeros((3, 40, 50), np.uint8), "moveaxis"),
        (np.zeros((1, 4, 4, 3), np.uint8), "one by one"),
        (np.zeros((4, 4, 2), np.uint8), r"\[4, 4, 2\]"),
        (np.zeros(4, np.uint8), r"\[4\]"),
        (np.zeros((0, 4, 3), np.uint8), "without a pixel"),
    ],
)
def test_unusable_arrays_are_refused_with_advice(array: np.ndarray, advice: str) -> None:
    with pytest.raises(ImageError, match=advice):
        load_image(array)


def test_other_things_are_refused() -> None:
    with pytest.raises(ImageError, match="got list"):
        load_image([[1]])


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "gif", "bmp"])
def test_cut_off_and_damaged_files_are_refused(tmp_path: Path, suffix: str) -> None:
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole = saved(tmp_path, noise, f"whole.{suffix}").read_bytes()
    path = tmp_path / f"bad.{suffix}"
    for size in (1, 10, 30, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(ImageError, match=r"bad\."):
            load_image(path)


def test_random_damage_gives_an_image_or_an_image_error(tmp_path: Path) -> None:
    path = tmp_path / "bad"
    for suffix in ("png", "jpg", "gif", "tif"):
        buffer = io.BytesIO()
        Image.fromarray(RGB).save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix))
        whole = np.frombuffer(buffer.getvalue(), np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            damaged[RNG.integers(0, len(whole), 5)] = RNG.integers(0, 256, 5)
            path.write_bytes(damaged.tobytes())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a damaged file Pillow may warn
                with contextlib.suppress(ImageError):
                    assert load_image(path).ndim == 3


def test_missing_empty_folder_and_foreign_files(tmp_path: Path) -> None:
    empty, text = tmp_path / "empty.png", tmp_path / "text.png"
    empty.touch()
    text.write_text("no image")
    for path, reason in [
        (tmp_path / "no.png", "does not exist"),
        (tmp_path, "is a folder"),
        (empty, "is empty"),
        (text, "not an image"),
    ]:
        with pytest.raises(ImageError, match=reason) as caught:
            load_image(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_a_phones_picture_is_called_what_it_is(tmp_path: Path, brand: bytes) -> None:
    path = tmp_path / "photo.heic"
    path.write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(100))
    with pytest.raises(ImageError, match=r"photo\.heic is a HEIF picture.*convert it to JPEG"):
        load_image(path)


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, Image.new("1", (100, 100)), "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)
    assert load_image(path).shape == (100, 100, 3)  # Pillow would only warn
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(ImageError, match=r"bomb\.png.*exceeds limit.*attack\. Cut it into tiles"):
        load_image(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.PNG", "a.jpg", "notes.txt", "deep/c.png", "deep/d/e.webp", "odd[1].png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def test_find_images(folder: Path) -> None:
    def found(*inputs: str) -> list[str]:
        return [p.relative_to(folder).as_posix() for p in find_images(inputs)]

    assert found(str(folder)) == ["a.jpg", "b.PNG", "odd[1].png"]
    assert found(str(folder / "notes.txt")) == ["notes.txt"]
    assert found(str(folder / "odd[1].png")) == ["odd[1].png"]
    assert found(str(folder / "*")) == ["a.jpg", "b.PNG", "odd[1].png"]
    assert found(str(folder / "**/*.png")) == ["deep/c.png", "odd[1].png"]
    assert found(str(folder / "deep/**")) == ["deep/c.png", "deep/d/e.webp"]
    assert found(str(folder / "b.PNG"), str(folder)) == ["b.PNG", "a.jpg", "odd[1].png"]


def test_a_phones_pictures_are_not_left_out_in_silence(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(find_images([str(folder)])) == 3
    assert not caplog.records
    for name in ("1.HEIC", "2.heif"):
        (folder / name).touch()
    assert len(find_images([str(folder)])) == 3
    (record,) = caplog.records
    assert "1.HEIC and 1 more left out" in record.getMessage()


def test_hidden_files_of_a_folder_are_no_images(tmp_path: Path) -> None:
    """A Mac leaves "._NAME.jpg" beside every file of a stick or an archive."""
    for name in ("._photo.jpg", ".hidden.png"):
        (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(ImageError, match="no image directly in the folder"):
        find_images([str(tmp_path)])
    Image.new("RGB", (2, 2)).save(tmp_path / "photo.jpg")
    assert find_images([str(tmp_path)]) == [tmp_path / "photo.jpg"]
    assert find_images([str(tmp_path / "*.jpg")]) == [tmp_path / "photo.jpg"]
    named = tmp_path / ".hidden.png"
    assert find_images([str(named)]) == [named]


@pytest.mark.parametrize("name", ["none.png", "*.bmp", "deep/d/../x", "folder.png", ""])
def test_find_images_names_an_input_without_images(folder: Path, name: str) -> None:
    wanted = str(folder / name) if name else ""
    if not name:
        with pytest.raises(ImageError, match="''"):
            find_images([wanted])
        return
    with pytest.raises(ImageError) as caught:
        find_images([str(folder), wanted])
    assert wanted in str(caught.value)
