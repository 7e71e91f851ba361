"""Pictures of a segmentation: the overlay with its legend, and label maps as PNG files."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from escnet_runtime.atomic import atomic_file
from escnet_runtime.errors import ImageError, InputError
from escnet_runtime.images import ImageArray, opened_image
from escnet_runtime.legend import legend_entries, with_legend
from escnet_runtime.palette import PERIOD, palette

__all__ = [
    "Labels",
    "areas",
    "check_labels",
    "draw_overlay",
    "enlarged",
    "is_own_picture",
    "label_counts",
    "label_image",
    "label_png_origin",
    "read_label_png",
    "save_label_png",
    "save_picture",
]

Labels = NDArray[np.uint8] | NDArray[np.uint16]

CLASSES_KEY = "escnet:classes"
PICTURE_KEY = "escnet:picture"
ORIGIN_KEY = "escnet:origin"

_PNG_HEAD = 25  # bytes up to the bits of a sample: signature, chunk IHDR, width, height, bits
_SMALLEST_SIDE = 320  # a picture whose longer side is shorter is enlarged for the legend's sake
_OUTLINE = 0.3  # what is left of the light of a pixel on an outline
_MOST_EDGES = 0.25  # where more of a picture would be outline, regions are too small for it
# Pixels worked on at a time: what is made of them in between stays in a core's cache, and takes no
# memory that grows with the picture.
_STRIP = 1 << 17
# Of PNG, for overlays. Pillow's own 6 takes two and a half times as long for 6 % less: more than
# all else that is done for a large photo on a CPU.
_COMPRESSION = 3


def check_labels(labels: Labels, names: Sequence[str]) -> None:
    """Raise InputError unless labels are uint8 or uint16 [H,W], each with a name."""
    if labels.dtype not in (np.uint8, np.uint16) or labels.ndim != 2 or labels.size == 0:
        raise InputError(
            f"got labels {labels.dtype} {list(labels.shape)}; expected uint8 or uint16 [H,W]"
        )
    if labels.max() >= len(names):
        raise InputError(f"got label {labels.max()}, but {len(names)} names; labels start at 0")


def label_counts(labels: Labels, categories: int) -> NDArray[np.intp]:
    """How many pixels each category has, [categories]."""
    flat = labels.reshape(-1)
    counts = np.zeros(categories, np.intp)
    # NumPy counts numbers of eight bytes, into which it turns all that it is given.
    for start in range(0, flat.size, _STRIP):
        counts += np.bincount(flat[start : start + _STRIP], minlength=categories)
    return counts


def areas(labels: Labels, names: Sequence[str]) -> dict[str, float]:
    """The fraction of pixels of each category that is present, largest first."""
    counts = label_counts(labels, len(names))
    result: dict[str, float] = {}
    for index in np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)].tolist():
        result[names[index]] = result.get(names[index], 0.0) + int(counts[index]) / labels.size
    return dict(sorted(result.items(), key=lambda item: -item[1]))


# --- The overlay ---------------------------------------------------------------------------------


def draw_overlay(
    image: ImageArray,
    labels: Labels,
    names: Sequence[str],
    *,
    alpha: float = 0.5,
    legend: bool = True,
    largest: int = 30,
    note: str | None = None,
    fractions: NDArray[np.float64] | None = None,
) -> Image.Image:
    """Lay the colours of ``palette(len(names))`` over an image, with dark lines between regions
    (unless these are so small that the lines would hide them).

    ``alpha`` is the share of the colour, 0 to 1. The legend names the ``largest`` categories and
    sums up the rest; it stands to the right of the picture, or below a picture more than twice as
    wide as high. With a legend, pictures smaller than 320 px are enlarged by a whole number.
    Without one the size is the image's and ``note`` is not shown. ``fractions``, one of each
    category, are listed in place of those of ``labels``, say of a whole video.

    Raises InputError for labels without a name, other shapes, and options out of range.
    """
    check_labels(labels, names)
    if image.dtype != np.uint8 or image.shape != (*labels.shape, 3):
        raise InputError(
            f"got an image {image.dtype} {list(image.shape)} with labels {list(labels.shape)}; "
            "expected uint8 [H,W,3] of the labels' height and width"
        )
    if not 0 <= alpha <= 1 or largest < 1:
        raise InputError(f"got alpha {alpha}, largest {largest}; expected 0 to 1, and at least 1")
    if not legend:
        return Image.fromarray(_blend(image, labels, len(names), alpha))
    if fractions is None:
        fractions = label_counts(labels, len(names)) / labels.size
    image, labels = enlarged(image, labels)
    picture = Image.fromarray(_blend(image, labels, len(names), alpha))
    return with_legend(picture, legend_entries(fractions, names, largest), note)


def enlarged(image: ImageArray, labels: Labels) -> tuple[ImageArray, Labels]:
    """Both by a whole number, if they are too small to stand beside a legend; else as they are."""
    factor = math.ceil(_SMALLEST_SIDE / max(labels.shape))
    if factor <= 1:
        return image, labels
    height, width = (side * factor for side in labels.shape)
    larger = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(larger), labels.repeat(factor, 0).repeat(factor, 1)


def _blend(image: ImageArray, labels: Labels, classes: int, alpha: float) -> ImageArray:
    share = round(alpha * 256)
    tints = palette(classes).astype(np.uint16) * np.uint16(share) + np.uint16(128)
    thickness = max(1, round(math.sqrt(labels.size) / 800))
    result, edges = np.empty_like(image), np.empty(labels.shape, bool)
    height, width = labels.shape
    step = max(1, _STRIP // width)
    strips = [slice(top, min(top + step, height)) for top in range(0, height, step)]
    for rows in strips:
        # NumPy 1 would stay in eight bits
        mixed = np.multiply(image[rows], 256 - share, dtype=np.uint16)
        mixed += tints.take(labels[rows], axis=0)
        mixed >>= 8
        result[rows] = mixed
        above = max(0, rows.start - thickness)
        edges[rows] = _edges(labels[above : rows.stop], thickness=thickness)[rows.start - above :]
    if edges.mean() <= _MOST_EDGES:
        for rows in strips:
            part, outline = result[rows], edges[rows]
            part[outline] = (part[outline] * _OUTLINE).astype(np.uint8)
    return result


def _edges(labels: Labels, *, thickness: int) -> NDArray[np.bool_]:
    """The pixels less than ``thickness`` right of or below a pixel of another label."""
    edges = np.zeros(labels.shape, bool)
    for d in range(1, thickness + 1):
        edges[:, d:] |= labels[:, d:] != labels[:, :-d]
        edges[d:] |= labels[d:] != labels[:-d]
    return edges


# --- Label maps and files ------------------------------------------------------------------------


def label_image(labels: Labels, classes: int) -> Image.Image:
    """Labels [H,W] as a palette image (mode P) for up to 256 classes, else 16-bit grey (I;16)."""
    if classes > PERIOD:
        return Image.fromarray(labels.astype(np.uint16))
    image = Image.fromarray(labels.astype(np.uint8)).convert("L")
    image.putpalette(palette(PERIOD).tobytes())  # all 256, or Pillow writes fewer bits a pixel
    return image


def save_label_png(
    path: str | os.PathLike[str],
    labels: Labels,
    names: Sequence[str],
    *,
    origin: str | None = None,
) -> None:
    """Write a label map: label_image() as PNG, with the names as JSON in an iTXt chunk.

    The chunk's keyword is "escnet:classes". ``origin``, a text that tells what the map was made of,
    stands in one called "escnet:origin". Raises InputError if a label has no name or the file
    cannot be written.
    """
    check_labels(labels, names)
    # Uncompressed: Pillow reads at most a megabyte of compressed text.
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(CLASSES_KEY, json.dumps(list(names)))
    if origin is not None:
        chunks.add_itxt(ORIGIN_KEY, origin)
    image = label_image(labels, len(names))
    with atomic_file(Path(path)) as temporary:
        image.save(temporary, "PNG", pnginfo=chunks)


def read_label_png(path: str | os.PathLike[str]) -> tuple[Labels, list[str] | None]:
    """Read a label map, uint8 or uint16 [H,W], and its names, None where the file has none.

    Any PNG of indices into a palette (1 to 8 bits) or of grey (1 to 16 bits) is a label map; its
    values are those that stand in the file. Raises ImageError otherwise.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(_PNG_HEAD)
            file.seek(0)
            with opened_image(file, ["PNG"]) as image:
                image.load()
                mode, labels = image.mode, np.array(image)
                text = getattr(image, "text", {}).get(CLASSES_KEY)
        names = None if text is None else json.loads(text)
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{path} is {_format(path)}; a label map is a PNG, which keeps every value as it is"
        ) from error
    except Exception as error:  # decoders raise nearly anything for damaged files
        raise ImageError(f"cannot read the label map {path}: {error}") from error
    if mode not in ("P", "L", "1", "I;16") or head[12:16] != b"IHDR":
        raise ImageError(
            f"{path} has mode {mode}; a label map is a palette or grey PNG of up to 8 bits, or "
            "16-bit grey, with the index of each pixel's class (docs/datasets.md makes it of "
            "colours)"
        )
    if mode == "1":
        labels = labels.astype(np.uint8)
    elif mode == "L":
        # Pillow scales fewer bits to 0 to 255, evenly: the top value 2**bits - 1 becomes 255.
        labels //= 255 // (2 ** head[_PNG_HEAD - 1] - 1)
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    ):
        raise ImageError(f"{path}: its chunk {CLASSES_KEY!r} is not a JSON list of names")
    return labels, names


def _format(path: str | os.PathLike[str]) -> str:
    """What a file is that is no PNG, for a message."""
    try:
        with opened_image(path) as image:
            return f"a picture in {image.format}, whatever its suffix"
    except Exception:  # decoders raise nearly anything for damaged files
        return "no image that Pillow can read, or its start is damaged"


def label_png_origin(path: str | os.PathLike[str]) -> str | None:
    """The ``origin`` of save_label_png(), from a file's head; None where there is none."""
    try:
        with opened_image(path, ["PNG"]) as image:
            found = image.info.get(ORIGIN_KEY)
    except Exception:  # decoders raise nearly anything for damaged files
        return None
    return None if found is None else str(found)


def save_picture(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a picture in the format of the path's suffix.

    Raises InputError if Pillow knows no such format or the file cannot be written.
    """
    target = Path(path)
    form = Image.registered_extensions().get(target.suffix.lower())
    if form not in Image.SAVE:
        raise InputError(f"cannot write {target}: the suffix is no image format, use .png or .jpg")
    try:
        with atomic_file(target) as temporary:
            if form == "PNG":
                mark = PngImagePlugin.PngInfo()
                mark.add_itxt(PICTURE_KEY, "overlay")
                image.save(temporary, form, pnginfo=mark, compress_level=_COMPRESSION)
            else:
                image.save(temporary, form)
    except (OSError, ValueError) as error:  # a full disk, or a size the format does not have
        raise InputError(f"cannot write {target}: {error}") from error


def is_own_picture(path: Path) -> bool:
    """Whether a file is a PNG of `save_label_png` or `save_picture`; reads its head only."""
    if path.suffix.lower() != ".png":
        return False
    try:
        with opened_image(path, ["PNG"]) as image:
            return CLASSES_KEY in image.info or PICTURE_KEY in image.info
    except Exception:  # a damaged file is not ours to judge: reading it reports it
        return False
