"""The counts of an evaluation so far, in a file, from which a killed evaluation resumes."""

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
_EVERY: Final = 20.0  # seconds between two writes of the counts
_TOTALS: Final = "totals"
_OF: Final = "of"


@dataclass(slots=True)
class Totals:
    """Totals besides the confusion of pixels.

    Attributes:
        images: number of images counted, the first ones of the dataset.
        kept_sum: distinct categories that the model was given, summed over images.
        kept_max: the largest such number of one image.
        seconds: duration of all runs together.
        runs: number of processes that have counted.
    """

    images: int = 0
    kept_sum: int = 0
    kept_max: int = 0
    seconds: float = 0.0
    runs: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class WorkFile:
    """A file of counts with the identity of their evaluation; counts of another are refused.

    Args:
        path: of the file, which is created with the first counts.
        identity: everything that counts depend on; see :func:`identity_of`.
    """

    path: Path
    identity: Mapping[str, Any]

    def read(self, counter: ConfusionCounter) -> Totals:
        """Put earlier counts into ``counter``, if there is a file, and return their totals.

        Raises:
            InputError: the file belongs to another evaluation, or holds no counts.
        """
        if not self.path.exists():
            return Totals()
        again = "name another file, or remove this one to start afresh"
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
        """Replace the file's content by a counter's ``counts()`` and the totals.

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
        """Count an image for which the model was given ``kept`` categories; see the counter."""
        self._counter.add(labels, truth)
        totals, now = self.totals, time.perf_counter()
        totals.runs += not self._begun
        self._begun = True
        totals.images += 1
        totals.kept_sum += kept
        totals.kept_max = max(totals.kept_max, kept)
        totals.seconds = self._before + now - self._start
        if self._work is not None:
            # One assignment: a signal in the middle of an image leaves the state before it.
            self._whole = self._counter.counts(), replace(totals)
        if now - self._written > _EVERY:
            self.write()

    def write(self) -> None:
        """Write the counts of completed images, if there is a file and any are new."""
        if self._work is not None and self._whole is not None:
            self._work.write(*self._whole)
            self._written = time.perf_counter()


@contextlib.contextmanager
def counting(counter: ConfusionCounter, total: int, work: WorkFile | None) -> Iterator[Counting]:
    """Continue the counts of ``work`` in ``counter``; they are written back however the block ends.

    Args:
        counter: empty.
        total: number of images to be counted in all.
        work: the file of counts; None to keep none.

    Raises:
        InputError: ``work`` belongs to another evaluation, or has counted more images than
            ``total``.
    """
    totals = Totals() if work is None else work.read(counter)
    if work is not None and totals.images > total:
        raise InputError(
            f"{work.path} has counts of {totals.images} images, which cannot be reduced to the "
            f"{total} that are asked for: name another file"
        )
    found = Counting(counter, totals, work)
    try:
        yield found
    finally:
        found.write()


def identity_of(
    model: Path, dataset: LabelledImages, categories: Sequence[str], **settings: Any
) -> dict[str, Any]:
    """Everything that the counts of an evaluation depend on.

    Args:
        model: a bundle's folder or a checkpoint's file; identified by its content.
        dataset: identified by the names and sizes of its files, or by what its scenes are drawn
            from.
        categories: what the model is asked for.
        settings: of the evaluation, as JSON values.
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
