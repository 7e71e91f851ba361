"""Reading images: everything becomes uint8 [H,W,3] RGB, or an ImageError that says why not.

Decisions: transparent pixels are laid over white; 16 bits per channel are scaled by 255/65535 and
rounded in grey files and arrays, while of files in colour or with an alpha channel Pillow gives the
high byte alone; a float picture must lie in [0, 1]; EXIF rotation is applied, unless EXIF is too
damaged to be read; of an animation the current frame is taken (the first one of a file); colour
profiles are not applied.
"""

import glob
import logging
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageFile, UnidentifiedImageError

from escnet_runtime.errors import ImageError

__all__ = [
    "IMAGE_SUFFIXES",
    "ImageArray",
    "find_images",
    "load_image",
    "load_oriented",
    "opened_image",
    "require_pixels",
]

ImageArray = NDArray[np.uint8]

# What find_images takes from a folder or a pattern. A file named outright may have any suffix.
IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)

# Of phones; Pillow reads it only where somebody has registered a plugin.
_HEIF_SUFFIXES: Final = frozenset({".heic", ".heif"})
_HEIF_BRANDS: Final = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1"})
# What Pillow has another program draw: PostScript, which is a language to write programs in, needs
# Ghostscript; WMF and EMF need Windows itself.
_DRAWN: Final = frozenset({"EPS", "WMF"})
_LOG: Final = logging.getLogger("escnet_runtime")

# What turns the stored pixels of an EXIF orientation into what is to be seen.
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Of these, those that make rows of columns, and those by which the first row comes last.
_TURNED: Final = frozenset(_TURNS[each] for each in (5, 6, 7, 8))
_FROM_THE_END: Final = frozenset(_TURNS[each] for each in (3, 4, 6, 7))
_STRIP_PIXELS: Final = 1 << 18

# warnings.catch_warnings changes the filters of the whole process.
_WARNING_FILTERS = threading.Lock()


def load_image(
    source: object,
) -> ImageArray:
    """Read an image as uint8 [H,W,3], C-contiguous, RGB.

    ``source`` is a file that Pillow reads, a Pillow image, or an array: uint8 or uint16, [H,W] or
    [H,W,1] grey, [H,W,3] RGB or [H,W,4] RGBA. An array that already has the result's form is
    returned as it is, not copied.

    Raises ImageError, naming the file, if it is missing, empty, cut off, damaged, PostScript or a
    Windows metafile, or larger than Pillow's limit against decompression bombs (179 million
    pixels), and for arrays of another type or shape.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _from_pillow(source, "the Pillow image")[0]
    if isinstance(source, str | os.PathLike):
        return _from_file(Path(source))[0]
    raise ImageError(
        f"got {type(source).__name__}; expected a path, a Pillow image or a NumPy array"
    )


def load_oriented(path: Path) -> tuple[ImageArray, int]:
    """Read an image file as :func:`load_image` does, with the EXIF orientation that was applied.

    1: the pixels are as they are stored; 2 to 4: mirrored, turned by 180 degrees; 5 to 8: height
    and width have changed places.
    """
    return _from_file(path)


def find_images(inputs: Sequence[str]) -> list[Path]:
    """The image files that files, folders and glob patterns (``**`` included) stand for.

    Folders are not searched recursively, nor for hidden files; folders and patterns give files with
    a suffix of IMAGE_SUFFIXES, sorted; a warning tells of HEIF pictures among them. A file found
    twice is returned once. Raises ImageError for an input which gives nothing.
    """
    found: dict[Path, None] = {}
    for name in inputs:
        found.update(dict.fromkeys(_find(name)))
    return list(found)


def _find(name: str) -> list[Path]:
    path = Path(name)
    if path.is_file():
        return [path]
    if path.is_dir():
        # Hidden files are no data: some systems leave "._NAME.jpg" beside every file. A pattern's
        # "*" does not match them either.
        visible = (entry for entry in path.iterdir() if not entry.name.startswith("."))
        candidates = [entry for entry in visible if entry.is_file()]
        where = f"no image directly in the folder {name!r}"
    elif glob.has_magic(name):
        candidates = [Path(match) for match in glob.glob(name, recursive=True)]
        candidates = [entry for entry in candidates if entry.is_file()]
        where = f"no image matches the pattern {name!r}"
    else:
        raise ImageError(f"{name!r} is neither a file, a folder nor a pattern that matches images")
    images = sorted(entry for entry in candidates if entry.suffix.lower() in IMAGE_SUFFIXES)
    left = sorted(entry.name for entry in candidates if entry.suffix.lower() in _HEIF_SUFFIXES)
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        _LOG.warning(
            "%r: HEIF pictures are not read, %s%s left out; convert to JPEG", name, left[0], more
        )
    if not images:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise ImageError(
            f"{where}; looked for the suffixes {suffixes} (name a file to read it whatever it is)"
        )
    return images


def _from_file(path: Path) -> tuple[ImageArray, int]:
    try:
        if path.is_dir():
            raise ImageError(f"{path} is a folder; expected an image file")
        if path.stat().st_size == 0:
            raise ImageError(f"{path} is empty; expected an image file")
        opened = opened_image(path)
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist; expected an image file") from None
    except UnidentifiedImageError:
        if _is_heif(path):
            raise ImageError(
                f"{path} is a HEIF picture, which Pillow does not read: convert it to JPEG"
            ) from None
        raise ImageError(
            f"{path} is not an image that Pillow can read, or its start is damaged"
        ) from None
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"cannot read {path}: {_reason(error).rstrip('.')}. Cut it into tiles, or pass its "
            "pixels as an array (docs/deploy.md)"
        ) from error
    except Exception as error:  # whatever a decoder makes of a damaged header
        raise ImageError(f"cannot read {path}: {_reason(error)}") from error
    with opened:
        return _from_pillow(opened, str(path))


def opened_image(
    source: str | os.PathLike[str] | IO[bytes], formats: list[str] | None = None
) -> ImageFile.ImageFile:
    """``Image.open`` without its warning of large images; it raises what that raises."""
    # Pillow warns at half the size that it refuses; between the two the image is just large.
    with _WARNING_FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(source, formats=formats)


def require_pixels(image: Image.Image, name: str) -> None:
    """Refuse a drawing that would be handed to another program when its pixels are asked for.

    Args:
        image: opened, and not loaded.
        name: what messages call it.

    Raises:
        ImageError: it is PostScript or a Windows metafile, whatever its suffix says.
    """
    undrawn = isinstance(image, ImageFile.StubImageFile) or getattr(image, "tile", None)
    if image.format in _DRAWN and undrawn:
        raise ImageError(
            f"{name} is a drawing ({image.format}), for which Pillow would start another program: "
            "convert it to PNG where you trust it"
        )


def _is_heif(path: Path) -> bool:
    """Whether a file begins as HEIF does (ISO/IEC 23008-12): a box "ftyp" and its brand."""
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head[4:8] == b"ftyp" and head[8:] in _HEIF_BRANDS


def _from_pillow(image: Image.Image, name: str) -> tuple[ImageArray, int]:
    """The pixels, and the EXIF orientation that was applied to them."""
    require_pixels(image, name)
    try:
        first = _orientation(image)
        with _read_not_mapped(image, first):
            image.load()
        # Of TIFF, loading applies it and forgets it; of PNG, it may be known only then.
        left = _orientation(image)
        # Not by ImageOps.exif_transpose: it writes all of EXIF anew, and fails at a foreign entry.
        return _in_strips(image, _TURNS.get(left)), first if first != 1 else left
    except ImageError as error:
        raise ImageError(f"cannot use {name}: {error}") from None
    except Exception as error:  # decoders raise nearly anything for damaged pixel data
        raise ImageError(f"cannot read {name}: {_reason(error)}") from error


@contextmanager
def _read_not_mapped(image: Image.Image, orientation: int) -> Iterator[None]:
    """Within, a TIFF whose height and width change places is read, not mapped into memory.

    Pillow 13 maps an uncompressed one that it has opened by name with the size after the turn,
    which shears the picture. It maps nothing whose name it does not know.
    """
    if not isinstance(image, ImageFile.ImageFile) or image.format != "TIFF" or orientation < 5:
        yield
        return
    name, image.filename = image.filename, ""
    try:
        yield
    finally:
        image.filename = name


def _orientation(image: Image.Image) -> int:
    """1 to 8; 1 where there is none, or nonsense, or EXIF is too damaged to find it."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # whatever Pillow makes of a damaged entry
        return 1
    return value if value in range(1, 9) else 1


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _in_strips(image: Image.Image, turn: Image.Transpose | None) -> ImageArray:
    """A loaded image of any mode, turned, as uint8 [H,W,3].

    Pillow copies an image at each step, four bytes a pixel: of a large one, a strip at a time.
    """
    step = max(1, _STRIP_PIXELS // max(1, image.width))
    # Whole numbers of 32 bits and floats have to lie in a range, all of them.
    if image.height <= step or image.mode.startswith(("I", "F")):
        return np.ascontiguousarray(_to_rgb(image.transpose(turn) if turn is not None else image))
    turned_size = image.size[::-1] if turn in _TURNED else image.size
    pixels = np.empty((turned_size[1], turned_size[0], 3), np.uint8)
    lines = pixels.swapaxes(0, 1) if turn in _TURNED else pixels  # what the file's rows become
    for top in range(0, image.height, step):
        strip = image.crop((0, top, image.width, min(top + step, image.height)))
        part = _to_rgb(strip.transpose(turn) if turn is not None else strip)
        first = image.height - top - strip.height if turn in _FROM_THE_END else top
        lines[first : first + strip.height] = part.swapaxes(0, 1) if turn in _TURNED else part
    return pixels


def _to_rgb(image: Image.Image) -> ImageArray:
    """Any mode of Pillow to uint8 [H,W,3]."""
    if 0 in image.size:
        raise ImageError(f"it has {image.width}×{image.height} pixels")
    if image.mode.startswith("I"):
        return _grey_to_rgb(_from_integers(np.asarray(image), image.info.get("transparency")))
    if image.mode == "F":
        return _grey_to_rgb(_from_floats(np.asarray(image)))
    if image.mode == "La":  # premultiplied; Pillow goes to RGBA only by way of LA
        image = image.convert("LA")
    if image.has_transparency_data:
        return _over_white(np.asarray(image.convert("RGBA")))
    if image.mode == "LAB":  # the one mode that Pillow converts through a colour profile alone
        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
        return np.array(converted)
    return np.array(image.convert("RGB"))


def _from_integers(grey: NDArray[np.generic], transparent: object) -> ImageArray:
    """16-bit grey [H,W], perhaps held in 32 bits, to uint8; one value may mean "transparent"."""
    if grey.min() < 0 or grey.max() > 65535:
        raise ImageError(
            f"got 32-bit integers from {grey.min()} to {grey.max()}; expected 0 to 65535, scale "
            "the picture to that range first"
        )
    scaled = _from_16_bits(grey.astype(np.uint16))
    if isinstance(transparent, int):
        scaled[grey == transparent] = 255
    return scaled


def _from_16_bits(values: NDArray[np.uint16]) -> ImageArray:
    # round(v * 255 / 65535) is round(v / 257); 257 is odd, so no value falls on a half.
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _from_floats(grey: NDArray[np.generic]) -> ImageArray:
    low, high = float(grey.min()), float(grey.max())
    if not (low >= 0 and high <= 1):  # NaN fails too
        raise ImageError(
            f"got 32-bit floats from {low:g} to {high:g}; expected 0 to 1, scale the picture to "
            "that range first"
        )
    return np.rint(grey.astype(np.float32) * 255).astype(np.uint8)


def _grey_to_rgb(grey: ImageArray) -> ImageArray:
    return np.repeat(grey[:, :, None], 3, axis=2)


def _over_white(rgba: ImageArray) -> ImageArray:
    """Lay uint8 [H,W,4] over white, the page most cut-out pictures are meant for."""
    alpha = rgba[:, :, 3:].astype(np.uint16)
    mixed = rgba[:, :, :3] * alpha + 255 * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def _from_array(array: NDArray[np.generic]) -> ImageArray:
    expected = "expected uint8 [H,W,3] RGB (or grey [H,W], [H,W,1], RGBA [H,W,4], or uint16)"
    got = f"got an array {array.dtype} {list(array.shape)}"
    if array.dtype.kind == "f":
        raise ImageError(f"{got}; {expected}: if it is in [0, 1], pass (255 * a).astype('uint8')")
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise ImageError(f"{got}; {expected}: convert it to uint8 first")
    pixels = array[:, :, None] if array.ndim == 2 else array
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise ImageError(f"{got}; {expected}{_shape_hint(array.shape)}")
    if pixels.size == 0:
        raise ImageError(f"{got}, without a pixel; {expected}")
    if pixels.dtype.itemsize == 2:
        values = _from_16_bits(pixels.astype(np.uint16))
    else:
        values = pixels.astype(np.uint8, copy=False)
    if values.shape[2] == 4:
        values = _over_white(values)
    if values.shape[2] == 1:
        values = _grey_to_rgb(values[:, :, 0])
    return np.ascontiguousarray(values)


def _shape_hint(shape: tuple[int, ...]) -> str:
    if len(shape) == 4:
        return ": pass the images of a batch one by one"
    if len(shape) == 3 and shape[0] in (1, 3, 4):
        return ": channels come last, pass numpy.moveaxis(a, 0, -1)"
    return ""
