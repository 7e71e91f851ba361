"""A look at every file of the data before a run's first step: its header, without its pixels.

What is in order by the headers is taken for it. A pair that is not, or whose header does not tell,
is read as training will read it, and the reader has the last word: nothing is refused here that
could be trained on. What headers cannot show (pixels that are cut off, a label that is no class) is
found when a pair is read.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import ExifTags, Image

from escnet_runtime.confusion import ignore_index
from escnet_runtime.console import Advance, Console
from escnet_runtime.dataset import CLASSES
from escnet_runtime.errors import EscNetError, InputError

from .data import LabelledSource, file_pairs

__all__ = ["check_files", "require_classes", "require_labelled"]

_LISTED: Final = 10
#: Headers are small: what takes time is waiting for the disk, or the network.
_THREADS: Final = 8
_BLOCK: Final = 256  # pairs of a thread's piece of work
_LABEL_MODES: Final = frozenset({"P", "L", "I;16"})
#: Where Pillow finds an orientation.
_EXIF: Final = frozenset({"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"})


@dataclass(frozen=True, slots=True)
class _Pair:
    """Files of an image and its labels, and where they are read."""

    image: Path
    labels: Path
    source: LabelledSource
    index: int


def check_files(sources: Iterable[LabelledSource], *, console: Console) -> None:
    """Look at the files of all folders among ``sources``; shows progress.

    Raises:
        InputError: there are some that cannot be used; the first ten are named.
    """
    pairs = list(_pairs(sources))
    with (
        console.progress("look at the data", len(pairs)) as advance,
        _threads() as pool,
        # Filters are of the whole process: set once for all threads. Large is no mistake.
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        doubtful = _doubtful(pairs, pool, advance)
    if not doubtful:
        return
    with console.progress("read doubtful files", len(doubtful)) as advance:
        wrong, unread = _wrong(doubtful, advance)
    if wrong:
        more = f"\n  and up to {unread:,} more" if unread else ""
        raise InputError(
            f"of {len(pairs):,} pairs of an image and its labels, these cannot be used; mend them, "
            "or remove both files of each:" + "".join(f"\n  {one}" for one in wrong) + more
        )


def require_classes(source: LabelledSource, name: str) -> None:
    """Raise InputError if there is one class: whatever a model says of it is right, nothing learns.

    ``name`` is for the message.
    """
    if len(source.names) == 1:
        raise InputError(
            f"{name} has one class, {source.names[0]!r}; expected two or more, or there is nothing "
            f"to tell it from: add one to {CLASSES}, such as background, and label all other "
            "pixels 1"
        )


def require_labelled(source: LabelledSource, name: str, hint: str) -> None:
    """Raise InputError if no pixel of a folder is labelled: nothing could be learned or measured.

    Reads images up to the first with a label, mostly one. ``name`` and what to do, ``hint``, are
    for the message.
    """
    if file_pairs(source) is None:
        return  # all pixels of built-in scenes are
    for sample in source:
        if (sample.labels != ignore_index(sample.labels)).any():
            return
    raise InputError(
        f"no pixel of {name} is labelled ({len(source):,} images), 255 (in 16 bits 65535) means "
        f'"not labelled": {hint}'
    )


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Who is interrupted does not wait for work that has not begun."""
    pool = ThreadPoolExecutor(_THREADS)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _pairs(sources: Iterable[LabelledSource]) -> Iterator[_Pair]:
    """Each pair of files once."""
    seen: set[tuple[Path, Path]] = set()
    for source in sources:
        for index, files in enumerate(file_pairs(source) or ()):
            if files not in seen:
                seen.add(files)
                yield _Pair(*files, source, index)


def _doubtful(pairs: Sequence[_Pair], pool: ThreadPoolExecutor, advance: Advance) -> list[_Pair]:
    found: list[_Pair] = []
    blocks = [pairs[start : start + _BLOCK] for start in range(0, len(pairs), _BLOCK)]
    for block, some in zip(blocks, pool.map(_doubtful_of, blocks), strict=True):
        found += some
        advance(count=len(block))
    return found


def _doubtful_of(pairs: Sequence[_Pair]) -> list[_Pair]:
    return [pair for pair in pairs if not _fits(pair)]


def _fits(pair: _Pair) -> bool:
    """Whether the headers say that a pair is in order."""
    try:
        with Image.open(pair.labels, formats=["PNG"]) as labels:
            size, mode = labels.size, labels.mode
        with Image.open(pair.image) as image:
            return mode in _LABEL_MODES and size == _upright(image) and not _ambiguous(image)
    except Exception:  # whatever a decoder makes of a damaged header
        return False


def _upright(image: Image.Image) -> tuple[int, int]:
    """Width and height as the picture is meant to be seen."""
    # Pillow turns the size of a TIFF itself.
    turned = image.format != "TIFF" and _orientation(image) >= 5
    return (image.height, image.width) if turned else image.size


def _ambiguous(image: Image.Image) -> bool:
    """Whether labels of the stored and of the turned pixels would have one size."""
    orientation = _orientation(image)
    return orientation > 1 and (orientation < 5 or image.width == image.height)


def _orientation(image: Image.Image) -> int:
    # Asking a PNG that has none would read all of it.
    if image.format != "TIFF" and not _EXIF & image.info.keys():
        return 1
    found = image.getexif().get(ExifTags.Base.Orientation, 1)
    return found if found in range(1, 9) else 1


def _wrong(pairs: Sequence[_Pair], advance: Advance) -> tuple[list[str], int]:
    """What the reader says of the first ten that it refuses, and how many it was not asked for."""
    found: list[str] = []
    for place, pair in enumerate(pairs):
        if len(found) == _LISTED:
            return found, len(pairs) - place
        try:
            pair.source[pair.index]
        except EscNetError as error:
            found.append(str(error))
        advance()
    return found, 0
