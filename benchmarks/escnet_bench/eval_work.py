"""What an evaluation has counted so far, in a file: one that is killed goes on from there."""

import contextlib
import hashlib
import json
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from escnet_runtime.atomic import atomic_file
from escnet_runtime.bundle import sha256_file
from escnet_runtime.confusion import ConfusionCounter, Labels
from escnet_runtime.dataset import Dataset, LabelledImages
from escnet_runtime.errors import InputError
from escnet_runtime.labelled import ShapesImages
from escnet_runtime.world import WORLD_VERSION

__all__ = ["Counting", "Totals", "WorkFile", "counting", "identity_of"]

_VERSION: Final = 2
_EVERY: Final = 20.0  # seconds between two times that counts are written
_TOTALS: Final = "totals"
_OF: Final = "of"


@dataclass(slots=True)
class Totals:
    """Beside the confusion of pixels.

    Attributes:
        images: counted, the first ones of the dataset.
        kept_sum: distinct categories that the model was given, over the images.
        kept_max: the most of an image.
        seconds: of all runs.
        runs: processes that have counted.
    """

    images: int = 0
    kept_sum: int = 0
    kept_max: int = 0
    seconds: float = 0.0
    runs: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class WorkFile:
    """Where counts are kept, and what they are of: other counts there are refused.

    Args:
        path: of the file; it is made with the first counts.
        identity: all that a count depends on; see :func:`identity_of`.
    """

    path: Path
    identity: Mapping[str, Any]

    def read(self, counter: ConfusionCounter) -> Totals:
        """Put what was counted before into ``counter``; nothing where there is no file.

        Raises:
            InputError: the file is of another evaluation, or is something else.
        """
        if not self.path.exists():
            return Totals()
        again = "name another file, or remove this one to begin anew"
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                content = dict(stored)
            of = json.loads(str(content.pop(_OF)[()]))
            totals = Totals(**json.loads(str(content.pop(_TOTALS)[()])))
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{self.path} holds no counts of an evaluation ({error}): {again}"
            ) from error
        wanted = self._of()
        differing = sorted(key for key in {*of, *wanted} if of.get(key) != wanted.get(key))
        if differing:
            raise InputError(
                f"{self.path} has counts of another evaluation, with another "
                f"{', '.join(differing)}: {again}"
            )
        counter.restore(content)
        return totals

    def write(self, counts: Mapping[str, Any], totals: Totals) -> None:
        """Keep what a counter's ``counts`` gave, in place of what was kept before.

        Raises:
            InputError: the file cannot be written.
        """
        texts = {_OF: json.dumps(self._of()), _TOTALS: json.dumps(asdict(totals))}
        arrays: dict[str, Any] = {name: np.array(text) for name, text in texts.items()}
        arrays.update(counts)
        with atomic_file(self.path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)

    def _of(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(json.dumps({"version": _VERSION, **self.identity}))
        return found


class Counting:
    """Counts images one after the other; see :func:`counting`."""

    def __init__(self, counter: ConfusionCounter, totals: Totals, work: WorkFile | None) -> None:
        self.totals = totals
        self._counter, self._work = counter, work
        self._before, self._start = totals.seconds, time.perf_counter()
        self._written, self._begun = self._start, False
        self._whole: tuple[Mapping[str, Any], Totals] | None = None

    def add(self, labels: Labels, truth: Labels, kept: int) -> None:
        """Count an image that the model was given ``kept`` categories for; see the counter."""
        self._counter.add(labels, truth)
        totals, now = self.totals, time.perf_counter()
        totals.runs += not self._begun
        self._begun = True
        totals.images += 1
        totals.kept_sum += kept
        totals.kept_max = max(totals.kept_max, kept)
        totals.seconds = self._before + now - self._start
        if self._work is not None:
            # In one step: a signal that comes while an image is counted leaves the one before.
            self._whole = self._counter.counts(), replace(totals)
        if now - self._written > _EVERY:
            self.write()

    def write(self) -> None:
        """Keep the images that are counted as a whole, if they are kept and some are new."""
        if self._work is not None and self._whole is not None:
            self._work.write(*self._whole)
            self._written = time.perf_counter()


@contextlib.contextmanager
def counting(counter: ConfusionCounter, total: int, work: WorkFile | None) -> Iterator[Counting]:
    """What counts into ``counter`` from where ``work`` ends; it is kept there however this ends.

    Args:
        counter: empty.
        total: images that are to be counted in all.
        work: None: nothing is kept.

    Raises:
        InputError: ``work`` is of another evaluation, or has more images than that.
    """
    totals = Totals() if work is None else work.read(counter)
    if work is not None and totals.images > total:
        raise InputError(
            f"{work.path} has counts of {totals.images} images, which cannot be taken apart, and "
            f"{total} are asked for: name another file"
        )
    found = Counting(counter, totals, work)
    try:
        yield found
    finally:
        found.write()


def identity_of(
    model: Path, dataset: LabelledImages, categories: Sequence[str], **settings: Any
) -> dict[str, Any]:
    """What the counts of an evaluation depend on.

    Args:
        model: a bundle's folder or a checkpoint's file; its content counts.
        dataset: by the names and sizes of its files, or what its scenes are drawn from.
        categories: what the model is asked for.
        settings: of the evaluation, as JSON has them.
    """
    return {
        "model": sha256_file(model / "bundle.json" if model.is_dir() else model),
        "dataset": _dataset(dataset),
        "categories": _hash(list(categories)),
        **settings,
    }


def _dataset(dataset: LabelledImages) -> Any:
    if isinstance(dataset, ShapesImages):
        scenes = dataset.scenes
        return [WORLD_VERSION, scenes.split, scenes.first, scenes.size, list(scenes.objects)]
    assert isinstance(dataset, Dataset)
    files = [[path.name, path.stat().st_size] for pair in dataset.pairs for path in pair]
    return _hash([list(dataset.names), files])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
