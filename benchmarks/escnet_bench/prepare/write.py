"""Writes a dataset folder, which appears when it is complete."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from escnet_runtime import __version__
from escnet_runtime.atomic import atomic_directory
from escnet_runtime.confusion import ignore_index
from escnet_runtime.dataset import (
    CLASSES,
    IMAGES,
    LABELS,
    LabelledImages,
    Sample,
    listed,
    require_distinct,
)
from escnet_runtime.errors import InputError
from escnet_runtime.images import load_image, opened_image
from escnet_runtime.labelled import PREPARED
from escnet_runtime.replaceable import require_replaceable

from .plan import UNLABELLED, LabelMap, Pair, Plan
from .shrink import put_shrunk, shrunk_labels

__all__ = ["MARKER", "Written", "require_free", "write_dataset", "write_samples"]

#: File that marks a prepared dataset; a folder without it is never replaced.
MARKER: Final = PREPARED
_KIND: Final = "prepared dataset"
_CONTENT: Final = frozenset({IMAGES, LABELS, CLASSES, MARKER})


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A summary of what was written: bits of a label, classes that occur, share of labelled pixels.

    ``warnings`` are sentences on what may be wrong with it.
    """

    images: int
    classes: int
    classes_present: int
    bits: int
    labelled: float
    warnings: tuple[str, ...]


def require_free(output: Path) -> None:
    """Raise InputError if ``output`` is something that :func:`write_dataset` will not replace.

    A prepared dataset is replaced as a whole, so its folder may contain nothing else.
    """
    require_replaceable(output, kind=_KIND, marker=MARKER)
    if not (output / MARKER).is_file():
        return
    names = (entry.name for entry in output.iterdir())
    strange = sorted(name for name in names if name not in _CONTENT and not name.startswith("."))
    if strange:
        raise InputError(
            f"Will not replace {output}: beside a {_KIND} it holds {listed(strange)}. Move that "
            "away, or name another folder."
        )


def write_dataset(
    plan: Plan, output: Path, *, copy: bool, progress: Callable[[str], None] = lambda _: None
) -> Written:
    """Write the dataset folder of a plan; ``output`` appears when it is complete.

    Args:
        plan: what to write.
        output: a folder that does not exist, is empty, or was written by this module and holds
            nothing else.
        copy: copy the images instead of making hard links to them.
        progress: called after each image with its name.

    Raises:
        InputError: ``output`` cannot be written, images cannot be linked, a label is wrong, an
            image and its labels differ in size, or two classes have one name.
        ImageError: a file of labels, an image's header, or an image that is shrunk cannot be read.
    """
    side, larger = plan.shorter_side, 0

    def put(pair: Pair, images: Path) -> LabelMap:
        nonlocal larger
        labels = plan.read(pair.labels)
        _require_fitting(pair, labels)
        if side is not None:
            labels = shrunk_labels(labels, side)
        if plan.published_side is not None:
            larger += min(labels.shape) > plan.published_side
        if side is None or not put_shrunk(pair, images, side):
            target = images / f"{pair.stem}{pair.image.suffix}"
            _place(pair.image.resolve(), target, copy=copy)
        return labels

    about = {
        "dataset": plan.dataset,
        "split": plan.split,
        "origin": plan.origin,
        **plan.details,
        **({} if side is None else {"shorter_side": side}),
    }
    items = ((pair.stem, partial(put, pair)) for pair in plan.pairs)

    def warnings() -> tuple[str, ...]:
        said = (*plan.warnings, *plan.noticed())
        if not larger:
            return said
        return (
            *said,
            f"{larger:,} images are larger than in published figures, where shorter sides have at "
            f"most {plan.published_side} px: to compare with these, use --shorter-side "
            f"{plan.published_side}",
        )

    return _write(items, output, plan.names, about, progress, warnings)


def write_samples(
    samples: LabelledImages,
    output: Path,
    about: Mapping[str, object],
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> Written:
    """Write labelled images as a dataset folder, the images as PNG, without loss.

    Args:
        samples: images with labels, which are indices into the names or "not labelled".
        output: as in :func:`write_dataset`.
        about: "dataset", "split" and "origin", for the marker file.
        progress: called after each image with its name.

    Raises:
        InputError: ``output`` cannot be written.
    """

    def put(sample: Sample, images: Path) -> LabelMap:
        Image.fromarray(sample.image).save(images / f"{sample.name}.png", "PNG")
        wide = sample.labels.astype(np.uint16)
        wide[sample.labels == ignore_index(sample.labels)] = UNLABELLED
        return wide

    items = ((sample.name, partial(put, sample)) for sample in samples)
    return _write(items, output, samples.names, about, progress)


def _write(
    items: Iterable[tuple[str, Callable[[Path], LabelMap]]],
    output: Path,
    names: Sequence[str],
    about: Mapping[str, object],
    progress: Callable[[str], None],
    warnings: Callable[[], tuple[str, ...]] = tuple,
) -> Written:
    """Write a folder; an item is a name and a function that puts its image and returns labels.

    ``warnings`` is called when all labels have been read.
    """
    require_free(output)
    require_distinct(names, f"the list of classes of {about['dataset']}")
    bits = 8 if len(names) <= 255 else 16
    seen = np.zeros(UNLABELLED + 1, np.int64)
    images = 0
    with atomic_directory(output, kind=_KIND, marker=MARKER) as folder:
        (folder / IMAGES).mkdir()
        (folder / LABELS).mkdir()
        for stem, put in items:
            labels = put(folder / IMAGES)
            seen += np.bincount(labels.ravel(), minlength=len(seen))
            _save(labels, folder / LABELS / f"{stem}.png", bits)
            images += 1
            progress(stem)
        known = seen[: len(names)]
        if not known.any():
            raise InputError(
                f"none of the {images} label maps has a labelled pixel: are these the labels of "
                f"{about['dataset']}, and are the class names its own?"
            )
        written = Written(
            images=images,
            classes=len(names),
            classes_present=int(np.count_nonzero(known)),
            bits=bits,
            labelled=float(known.sum() / seen.sum()),
            warnings=warnings(),
        )
        _write_json(folder / CLASSES, list(names))
        figures = {"images": images, "classes": len(names), "bits": bits}
        producer = f"escnet-bench {__version__}"
        said = {"warnings": list(written.warnings)}
        _write_json(folder / MARKER, {**about, **said, **figures, "producer": producer})
    return written


def _require_fitting(pair: Pair, labels: LabelMap) -> None:
    """Look at an image's header, without its pixels; what is wrong would end an evaluation later.

    An EXIF orientation may turn it: the reader sees to that.
    """
    try:
        with opened_image(pair.image) as image:
            width, height = image.size
    except Exception:  # whatever a decoder makes of a damaged header
        load_image(pair.image)  # says what it is
        return
    if sorted((height, width)) != sorted(labels.shape):
        raise InputError(
            f"{pair.labels} has {labels.shape[1]}×{labels.shape[0]} pixels and its image "
            f"{pair.image} {width}×{height}; expected the same size: are both of one release, and "
            "is the download complete?"
        )


def _save(labels: LabelMap, path: Path, bits: int) -> None:
    if bits == 8:
        # The low byte of 65535 is 255, "not labelled" in 8 bits.
        Image.fromarray(labels.astype(np.uint8)).save(path, "PNG")
    else:
        Image.fromarray(labels).save(path, "PNG")


def _place(image: Path, target: Path, *, copy: bool) -> None:
    if copy:
        shutil.copyfile(image, target)
        return
    try:
        os.link(image, target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise InputError(
            f"{image} cannot be linked into the dataset ({error.strerror}): both must be on one "
            "file system that has hard links; use --copy"
        ) from error


def _write_json(path: Path, value: object) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
