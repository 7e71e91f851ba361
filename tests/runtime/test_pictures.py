import os
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

from escnet_runtime.errors import ImageError, InputError
from escnet_runtime.legend import legend_entries
from escnet_runtime.palette import oklab, palette
from escnet_runtime.pictures import (
    Labels,
    draw_overlay,
    is_own_picture,
    label_counts,
    label_image,
    label_png_origin,
    read_label_png,
    save_label_png,
    save_picture,
)
from escnet_runtime.result import Segmentation

RNG = np.random.default_rng(0)


def small(labels: NDArray[np.int64], classes: int) -> Labels:
    """Labels in the type that a segmentation of so many classes has."""
    return labels.astype(np.uint8) if classes <= 256 else labels.astype(np.uint16)


def segmentation(
    height: int, width: int, names: tuple[str, ...], note: str | None = None
) -> Segmentation:
    blocks = small(RNG.integers(0, len(names), (3, 4)), len(names))
    rows, columns = np.arange(height) * 3 // height, np.arange(width) * 4 // width
    labels = blocks[rows[:, None], columns]
    return Segmentation(
        labels=labels,
        confidence=np.ones((height, width), np.float16),
        names=names,
        image=RNG.integers(0, 256, (height, width, 3), dtype=np.uint8),
        note=note,
    )


def distances(colours: np.ndarray) -> np.ndarray:
    lab = oklab(colours)
    pairs: NDArray[np.float64] = np.sqrt(((lab[:, None] - lab[None]) ** 2).sum(-1))
    return np.asarray(pairs[np.triu_indices(len(lab), 1)])


def test_palette_keeps_colours_apart() -> None:
    # Measured: 0.153, 0.064 and 0.051 in OKLab, where about 0.02 is just seen side by side.
    assert distances(palette(20)).min() > 0.14
    assert distances(palette(150)).min() > 0.06
    assert distances(palette(256)).min() > 0.045


def test_palette_is_stable_and_repeats() -> None:
    whole = palette(600)
    assert whole.dtype == np.uint8
    assert whole.shape == (600, 3)
    np.testing.assert_array_equal(whole[:7], palette(7))
    np.testing.assert_array_equal(whole[256:512], whole[:256])
    assert palette(0).shape == (0, 3)
    palette(5)[:] = 0  # a copy
    assert palette(5).any()


def test_palette_avoids_black_and_white() -> None:
    lightness = oklab(palette(256))[:, 0]
    assert lightness.min() > 0.3
    assert lightness.max() < 0.9


def test_palette_is_quick() -> None:
    from escnet_runtime.palette import _colours

    _colours.cache_clear()
    start = time.perf_counter()
    palette(256)
    assert time.perf_counter() - start < 1  # about 0.04 s on an idle machine


def test_area_is_of_present_categories_in_descending_order() -> None:
    labels = np.array([[0, 2, 2, 2], [4, 4, 2, 0]], np.uint8)
    result = Segmentation(
        labels=labels,
        confidence=np.ones((2, 4), np.float16),
        names=("a", "b", "c", "d", "e"),
        image=np.zeros((2, 4, 3), np.uint8),
    )
    assert list(result.area().items()) == [("c", 0.5), ("a", 0.25), ("e", 0.25)]
    assert repr(result.area()) == "{'c': 0.5, 'a': 0.25, 'e': 0.25}"  # no numbers of NumPy's
    assert repr(result) == "Segmentation(4×2 pixels, 5 categories)"


@pytest.mark.parametrize(
    "change",
    [
        {"labels": np.full((2, 2), 3, np.uint8)},
        {"labels": np.zeros((2, 3), np.uint8)},
        {"labels": np.zeros((2, 2), np.int64)},
        {"labels": np.zeros((0, 2), np.uint8)},
        {"confidence": np.ones((2, 3), np.float16)},
        {"image": np.zeros((2, 2), np.uint8)},
    ],
)
def test_segmentation_refuses_what_does_not_fit(change: dict[str, np.ndarray]) -> None:
    whole = {
        "labels": np.zeros((2, 2), np.uint8),
        "confidence": np.ones((2, 2), np.float16),
        "names": ("a", "b", "c"),
        "image": np.zeros((2, 2, 3), np.uint8),
    }
    with pytest.raises(InputError, match="got"):
        Segmentation(**(whole | change))  # type: ignore[arg-type]


def test_overlay_blends_colours_and_draws_outlines() -> None:
    labels = np.zeros((20, 20), np.uint8)
    labels[:, 10:] = 1
    image = np.full((20, 20, 3), 100, np.uint8)
    names = ("a", "b")
    whole = np.asarray(draw_overlay(image, labels, names, alpha=1, legend=False))
    np.testing.assert_array_equal(whole[5, 5], palette(2)[0])
    np.testing.assert_array_equal(whole[5, 15], palette(2)[1])
    assert whole[5, 10].sum() < 0.5 * whole[5, 15].sum()
    half = np.asarray(draw_overlay(image, labels, names, alpha=0.5, legend=False))
    np.testing.assert_allclose(half[5, 5], (palette(2)[0].astype(int) + 100) / 2, atol=1)
    none = np.asarray(draw_overlay(image, labels, names, alpha=0, legend=False))
    assert (none[5, 5] == 100).all()


@pytest.mark.parametrize("size", [(1500, 700), (1, 300_000), (300_000, 1), (3, 2)])
@pytest.mark.parametrize("alpha", [0, 0.3, 1])
def test_a_large_overlay_is_made_in_strips_that_do_not_show(
    size: tuple[int, int], alpha: float
) -> None:
    image = RNG.integers(0, 256, (*size, 3), np.uint8)
    cells = RNG.integers(0, 300, [-(-side // 50) for side in size])
    labels = np.kron(cells, np.ones((50, 50), int))[: size[0], : size[1]].astype(np.uint16)
    share = round(256 * alpha)
    mixed = palette(300)[labels].astype(int) * share + image.astype(int) * (256 - share)
    expected = ((mixed + 128) >> 8).astype(np.uint8)
    edges = np.zeros(size, bool)
    for d in range(1, max(1, round(np.sqrt(labels.size) / 800)) + 1):
        edges[:, d:] |= labels[:, d:] != labels[:, :-d]
        edges[d:] |= labels[d:] != labels[:-d]
    if edges.mean() <= 0.25:
        expected[edges] = (expected[edges] * 0.3).astype(np.uint8)
    found = draw_overlay(image, labels, ["thing"] * 300, alpha=alpha, legend=False)
    assert np.array_equal(np.asarray(found), expected)
    assert np.array_equal(label_counts(labels, 300), np.bincount(labels.ravel(), minlength=300))


def test_a_large_photo_takes_little_memory_for_its_overlay_and_areas() -> None:
    size = 2000, 1500
    image, labels = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
    result = Segmentation(
        labels=labels, confidence=np.ones(size, np.float16), names=("sky", "sea"), image=image
    )
    for most, made in ((0.5, result.area), (10.0, lambda: result.overlay(legend=False))):
        tracemalloc.start()
        try:
            made()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak / labels.size < most  # bytes a pixel; the pixels of the overlay itself are 3


def test_regions_too_small_for_outlines_are_not_blackened() -> None:
    labels = np.indices((20, 20)).sum(0).astype(np.uint8) % 2
    image = np.full((20, 20, 3), 100, np.uint8)
    drawn = np.asarray(draw_overlay(image, labels, ("a", "b"), alpha=1, legend=False))
    np.testing.assert_array_equal(drawn, palette(2)[labels])


@pytest.mark.parametrize(
    ("height", "width", "picture", "below"),
    [
        (1, 1, (320, 320), False),
        (64, 64, (320, 320), False),
        (400, 600, (600, 400), False),
        (100, 900, (900, 100), True),
        (10, 20000, (20000, 10), True),
        (20000, 10, (10, 20000), False),
    ],
)
@pytest.mark.parametrize("classes", [1, 5, 300])
def test_legend_stands_beside_the_picture(
    height: int, width: int, picture: tuple[int, int], below: bool, classes: int
) -> None:
    names = tuple(f"category {i}" for i in range(classes))
    result = segmentation(height, width, names, note="untrained weights: masks are noise")
    sheet = result.overlay(largest=5)
    assert sheet.mode == "RGB"
    if below:
        assert sheet.width == picture[0]
        assert 40 < sheet.height - picture[1] < 300
        panel = sheet.crop((0, picture[1], sheet.width, sheet.height))
    else:
        assert sheet.height == picture[1]
        assert 100 < sheet.width - picture[0] < 900
        panel = sheet.crop((picture[0], 0, sheet.width, sheet.height))
    colours = {colour for _, colour in panel.getcolors(1 << 24) or []}
    most = np.bincount(result.labels.ravel()).argmax()
    assert tuple(palette(classes)[most].tolist()) in colours
    assert (176, 0, 32) in colours  # the note
    margin = np.asarray(panel)[:, -6:]
    assert (margin == 255).all()  # nothing runs over the edge
    assert result.overlay(legend=False).size == (width, height)


def test_rest_of_the_categories_is_summed_up() -> None:
    entries = legend_entries(np.full(100, 0.01), [str(i) for i in range(100)], 30)
    assert len(entries) == 31
    assert (entries[-1].name, entries[-1].share, entries[-1].colour) == ("70 more", "70.0 %", None)
    assert (entries[0].name, entries[0].share) == ("0", "1.0 %")


def test_the_legend_lists_other_fractions_than_the_picture_s_own() -> None:
    """Those of a whole video, of which this is a frame."""
    labels = np.zeros((240, 320), np.uint8)
    image = np.full((240, 320, 3), 90, np.uint8)
    sheet = draw_overlay(image, labels, ("a", "b"), fractions=np.array([0.25, 0.75]))
    panel = sheet.crop((320, 0, sheet.width, sheet.height))
    colours = [colour for _, colour in panel.getcolors(1 << 24) or []]
    assert all(tuple(colour.tolist()) in colours for colour in palette(2))


@pytest.mark.parametrize("options", [{"alpha": -0.1}, {"alpha": 1.1}, {"largest": 0}])
def test_overlay_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="got"):
        segmentation(4, 4, ("a",)).overlay(**options)  # type: ignore[arg-type]


def test_overlay_refuses_another_image() -> None:
    labels = np.zeros((4, 4), np.uint8)
    with pytest.raises(InputError, match=r"\[4, 5, 3\]"):
        draw_overlay(np.zeros((4, 5, 3), np.uint8), labels, ("a",))


@pytest.mark.parametrize(
    ("classes", "mode"), [(1, "P"), (3, "P"), (256, "P"), (257, "I;16"), (40000, "I;16")]
)
def test_label_png_is_read_back(tmp_path: Path, classes: int, mode: str) -> None:
    names = [f"ñ 猫 {i}" for i in range(classes)]
    labels = small(RNG.integers(0, classes, (13, 9)), classes)
    path = tmp_path / "labels.png"
    save_label_png(path, labels, names)
    back, back_names = read_label_png(path)
    assert back.dtype == labels.dtype
    np.testing.assert_array_equal(back, labels)
    assert back_names == names
    with Image.open(path) as image:
        assert image.mode == mode
        if mode == "P":
            assert path.read_bytes()[24] == 8  # bits a sample
            np.testing.assert_array_equal(np.array(image.convert("RGB")), palette(256)[labels])
    assert os.listdir(tmp_path) == ["labels.png"]


def test_result_saves_its_labels(tmp_path: Path) -> None:
    result = segmentation(6, 8, ("cat", "dog"))
    result.save_labels(tmp_path / "a.png")
    labels, names = read_label_png(tmp_path / "a.png")
    np.testing.assert_array_equal(labels, result.labels)
    assert names == ["cat", "dog"]
    assert result.label_image().mode == "P"


def test_label_maps_of_others_are_read(tmp_path: Path) -> None:
    labels = np.array([[0, 255], [7, 1]], np.uint8)
    path = tmp_path / "labels.png"
    Image.fromarray(labels).save(path)
    back, names = read_label_png(path)
    np.testing.assert_array_equal(back, labels)
    assert names is None


def _png(values: NDArray[np.integer], bits: int, colour: int) -> bytes:
    """A PNG file of values [H,W], so many bits each; colour 0 is grey, 3 a palette."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    weights = 1 << np.arange(bits)[::-1]
    sampled = (values[:, :, None] & weights > 0).reshape(len(values), -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(sampled, axis=1))
    head = struct.pack(">IIBBBBB", *values.shape[::-1], bits, colour, 0, 0, 0)
    colours = chunk(b"PLTE", bytes(3 * 2**bits)) if colour == 3 else b""
    body = colours + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body


_KINDS = [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (3, 1), (3, 2), (3, 4), (3, 8)]


@given(
    kind=st.sampled_from(_KINDS),
    shape=hnp.array_shapes(min_dims=2, max_dims=2, max_side=20),
    data=st.data(),
)
def test_label_maps_of_every_depth_have_the_values_of_the_file(
    kind: tuple[int, int],
    shape: tuple[int, ...],
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    colour, bits = kind
    values = data.draw(hnp.arrays(np.uint16, shape, elements=st.integers(0, 2**bits - 1)))
    path = tmp_path_factory.getbasetemp() / "depths.png"
    path.write_bytes(_png(values, bits, colour))
    labels, names = read_label_png(path)
    assert labels.dtype == (np.uint16 if bits == 16 else np.uint8)
    np.testing.assert_array_equal(labels, values)
    assert names is None


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_that_pillow_writes_keep_their_values(tmp_path: Path, bits: int) -> None:
    labels = np.arange(2**bits, dtype=np.uint8)[None]
    image = Image.fromarray(labels)
    image.putpalette(bytes(3 * 2**bits))
    image.save(tmp_path / "a.png", bits=bits)
    assert (tmp_path / "a.png").read_bytes()[24] == bits
    np.testing.assert_array_equal(read_label_png(tmp_path / "a.png")[0], labels)


def test_black_and_white_is_a_label_map_of_two_classes(tmp_path: Path) -> None:
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "a.png")
    labels, _ = read_label_png(tmp_path / "a.png")
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[0, 1]]


def test_large_pictures_are_no_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow warns of one at half of what it refuses; a warning is an error in these tests."""
    labels = np.zeros((5, 6), np.uint8)
    save_label_png(tmp_path / "labels.png", labels, ["cat"], origin="here")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    np.testing.assert_array_equal(read_label_png(tmp_path / "labels.png")[0], labels)
    assert label_png_origin(tmp_path / "labels.png") == "here"
    assert is_own_picture(tmp_path / "labels.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ImageError, match="exceeds limit of 20 pixels"):
        read_label_png(tmp_path / "labels.png")


def test_what_is_no_label_map_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.png"
    with pytest.raises(ImageError, match=r"labels\.png"):
        read_label_png(path)
    path.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"labels\.png"):
        read_label_png(path)
    Image.new("RGB", (3, 3)).save(path)
    with pytest.raises(ImageError, match="mode RGB"):
        read_label_png(path)
    image = label_image(np.zeros((2, 2), np.uint8), 2)
    image.save(tmp_path / "labels.jpg.png", "BMP")
    with pytest.raises(ImageError, match=r"labels\.jpg\.png is a picture in BMP, whatever"):
        read_label_png(tmp_path / "labels.jpg.png")
    path.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"labels\.png is no image .*; a label map is a PNG"):
        read_label_png(path)


@pytest.mark.parametrize("text", ["not json", '{"a": 1}', "[1, 2]"])
def test_damaged_names_are_refused(tmp_path: Path, text: str) -> None:
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_itxt("escnet:classes", text)
    label_image(np.zeros((2, 2), np.uint8), 2).save(tmp_path / "a.png", pnginfo=chunks)
    with pytest.raises(ImageError, match=r"a\.png"):
        read_label_png(tmp_path / "a.png")


def test_labels_without_a_name_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got label 2, but 2 names"):
        save_label_png(tmp_path / "a.png", np.full((2, 2), 2, np.uint8), ["a", "b"])
    assert not os.listdir(tmp_path)


def test_pictures_are_saved_whole_or_not_at_all(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 4), "red")
    for name in ("a.png", "b.JPG", "c.webp"):
        save_picture(picture, tmp_path / name)
        with Image.open(tmp_path / name) as back:
            assert back.size == (4, 4)
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(InputError, match=r"use \.png or \.jpg"):
        save_picture(picture, tmp_path / "d.docx")
    (tmp_path / "a.webp").write_bytes(before)
    with pytest.raises(InputError, match=r"a\.webp"):
        save_picture(Image.new("RGB", (20000, 10)), tmp_path / "a.webp")  # WebP ends at 16383
    assert (tmp_path / "a.webp").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["a.png", "a.webp", "b.JPG", "c.webp"]


def test_an_overlay_is_packed_quickly(tmp_path: Path) -> None:
    """With Pillow's own level, writing a large overlay took longer than segmenting the photo."""
    pixels = RNG.integers(0, 256, (60, 80, 3), np.uint8)
    save_picture(Image.fromarray(pixels), tmp_path / "overlay.png")
    content = (tmp_path / "overlay.png").read_bytes()
    flags = content[content.index(b"IDAT") + 5]
    assert flags >> 6 < 2  # of RFC 1950: packed fast, or fastest
    with Image.open(tmp_path / "overlay.png") as read:
        assert np.array_equal(np.asarray(read), pixels)
