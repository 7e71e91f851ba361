"""Writing a dataset folder, which appears when it is complete."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from escnet_runtime import __version__
from escnet_runtime.atomic import atomic_directory, require_replaceable
from escnet_runtime.dataset import CLASSES, IMAGES, LABELS
from escnet_runtime.errors import InputError

from .plan import UNLABELLED, LabelMap, Plan

__all__ = ["MARKER", "Written", "require_free", "write_dataset"]

#: Says that escnet-prepare made the folder; one without it is never replaced.
MARKER: Final = "prepared.json"
_KIND: Final = "prepared dataset"


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What was written: bits of a label, classes that occur, fraction of pixels with a label."""

    images: int
    classes: int
    classes_present: int
    bits: int
    labelled: float


def require_free(output: Path) -> None:
    """Raise InputError if ``output`` is something that :func:`write_dataset` will not replace."""
    require_replaceable(output, kind=_KIND, marker=MARKER)


def write_dataset(
    plan: Plan, output: Path, *, copy: bool, progress: Callable[[str], None] = lambda _: None
) -> Written:
    """Write the dataset folder of a plan; nothing is at ``output`` before all of it is right.

    Args:
        plan: what to write.
        output: a folder that does not exist, is empty, or was written by this function.
        copy: copy the images, instead of giving the same files a second name (hard links).
        progress: called after each image with its name.

    Raises:
        InputError: ``output`` cannot be written, images cannot be linked, or a label is wrong.
        ImageError: a file of labels cannot be read.
    """
    bits = 8 if len(plan.names) <= 255 else 16
    seen = np.zeros(UNLABELLED + 1, np.int64)
    with atomic_directory(output, kind=_KIND, marker=MARKER) as folder:
        (folder / IMAGES).mkdir()
        (folder / LABELS).mkdir()
        for pair in plan.pairs:
            labels = plan.read(pair.labels)
            seen += np.bincount(labels.ravel(), minlength=len(seen))
            _save(labels, folder / LABELS / f"{pair.stem}.png", bits)
            target = folder / IMAGES / f"{pair.stem}{pair.image.suffix}"
            _place(pair.image.resolve(), target, copy=copy)
            progress(pair.stem)
        written = _summary(plan, seen, bits)
        _write_json(folder / CLASSES, list(plan.names))
        _write_json(
            folder / MARKER,
            {
                "dataset": plan.dataset,
                "split": plan.split,
                "images": written.images,
                "classes": written.classes,
                "bits": bits,
                "origin": plan.origin,
                "producer": f"escnet-bench {__version__}",
            },
        )
    return written


def _summary(plan: Plan, seen: NDArray[np.int64], bits: int) -> Written:
    known = seen[: len(plan.names)]
    if not known.any():
        raise InputError(
            f"none of the {len(plan.pairs)} label maps has a labelled pixel: are these the labels "
            f"of {plan.dataset}, and are the class names its own?"
        )
    return Written(
        images=len(plan.pairs),
        classes=len(plan.names),
        classes_present=int(np.count_nonzero(known)),
        bits=bits,
        labelled=float(known.sum() / seen.sum()),
    )


def _save(labels: LabelMap, path: Path, bits: int) -> None:
    if bits == 8:
        # The low byte of 65535 is 255, which is what 8 bits have for "not labelled".
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
