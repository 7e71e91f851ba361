"""What each precision of a model costs and gives: mIoU, agreement, flips, size, time on the CPU.

Each precision is exported with the accuracy gate on one set of images; its bundle is then measured
on another. Precisions are done one after the other, and results are kept in a folder, from which an
interrupted run resumes.
"""

import dataclasses
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from escnet.weights import load_checkpoint
from escnet_export import export_bundle
from escnet_export.scenes import labelled_scenes
from escnet_runtime.atomic import atomic_file
from escnet_runtime.bundle import Bundle, sha256_file
from escnet_runtime.console import Advance
from escnet_runtime.dataset import LabelledImages, Sample
from escnet_runtime.errors import BundleError, InputError
from escnet_runtime.labelled import open_labelled
from escnet_runtime.manifest import Precision
from escnet_runtime.segmenter import Segmenter
from escnet_runtime.strict_json import parse_object

from .torch_checkpoint import checkpoint_segmenter
from .traced import Traced, TracedCounts, trace

if TYPE_CHECKING:
    from typing_extensions import Self  # of typing from Python 3.11 on

__all__ = ["METHOD", "VARIANTS", "PrecisionRow", "Task", "Variant", "precision_rows"]

METHOD: Final = (
    "each precision exported with its default budget, which the accuracy gate holds on images that "
    "are not those of the figures; mIoU, equal labels (at the image's own size) and flipped "
    "prompts, all against float32 PyTorch and the true labels, by whole calls of the runtime on "
    "ONNX Runtime's CPU provider; image_seconds is the median of whole calls on the first image, "
    "all bundles in turns, after one call each"
)
_EMULATED: Final = "ONNX Runtime's CPU provider has no kernels for bf16: it is emulated in float32"
_LOG: Final = logging.getLogger("escnet_bench")
_DONE: Final = "run.json"


def _silent(_: str = "", /, *, count: float = 1) -> None:
    del count


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A way to export; ``rest`` is the type of what int8 and fp8 do not quantise."""

    precision: Precision
    rest: Precision = Precision.FP16

    @classmethod
    def of(cls, name: str) -> "Self":
        """``fp16``, or ``int8+fp32`` for int8 with the rest in float32.

        Raises:
            InputError: there is no such precision.
        """
        if name not in VARIANTS:
            raise InputError(f"{name!r} is no precision; expected one of {', '.join(VARIANTS)}")
        precision, _, rest = name.partition("+")
        return cls(precision=Precision(precision), rest=Precision(rest or Precision.FP16))

    @property
    def untimed(self) -> str | None:
        """Why a time on this CPU would mean nothing; None if it means something."""
        return _EMULATED if self.precision is Precision.BF16 else None


VARIANTS: Final = ("fp32", "fp16", "bf16", "int8+fp16", "int8+fp32", "fp8+fp16", "fp8+fp32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A checkpoint and the images it is measured on.

    Attributes:
        checkpoint: of this project.
        images: the dataset to measure on, see :func:`~escnet_runtime.open_labelled`.
        limit: how many of its images are used, the first ones.
        gate_images, gate_limit: the same for the accuracy gate and calibration.
        repeats: calls to time.
    """

    checkpoint: Path
    images: str
    limit: int
    gate_images: str
    gate_limit: int
    repeats: int

    def key(self) -> dict[str, Any]:
        """Everything that figures depend on; a table holds only figures with equal keys."""
        return {
            "checkpoint": sha256_file(self.checkpoint),
            **{name: getattr(self, name) for name in ("images", "limit")},
            **{name: getattr(self, name) for name in ("gate_images", "gate_limit")},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionRow:
    """One precision.

    Attributes:
        precision: as it was asked for.
        miou, torch_miou: of the bundle, and of float32 PyTorch on the same images.
        pixel_agreement: share of labels equal to float32 PyTorch's.
        prompt_flips, prompts: prompts that differ from its, of all.
        worst_stage, worst_stage_l2: the graph with the largest relative L2 to float32 PyTorch on
            the same inputs, on the gate's images.
        passed: whether the budget holds on the gate's images; ``reason`` says by how much.
        kept_higher: blocks that the gate kept at a higher precision, with that precision.
        bytes: size of all graphs.
        image_seconds: median; None if a time would mean nothing, for the reason in ``untimed``.
        images, categories: how many the figures were measured on.
    """

    precision: str
    miou: float | None
    torch_miou: float | None
    pixel_agreement: float
    prompt_flips: int
    prompts: int
    worst_stage: str
    worst_stage_l2: float | None
    passed: bool
    reason: str
    kept_higher: tuple[str, ...]
    bytes: int
    image_seconds: float | None
    untimed: str | None
    images: int
    categories: int


def precision_rows(
    task: Task,
    names: tuple[str, ...],
    work: Path,
    *,
    step: Advance = _silent,
) -> list[PrecisionRow]:
    """Export and measure each of ``names``, see :meth:`Variant.of`.

    Args:
        task: the checkpoint and the images.
        names: precisions.
        work: a folder for bundles and figures; what it holds of the same task is not done again.
        step: called with what is being done, and advanced by one for each image of PyTorch and of
            each precision.

    Raises:
        InputError: a name is no precision, a number is less than 1, a dataset cannot be used, or
            ``work`` holds figures of another task.
    """
    variants = {name: Variant.of(name) for name in names}
    for what in ("limit", "gate_limit", "repeats"):
        if getattr(task, what) < 1:
            raise InputError(f"{what} is {getattr(task, what)}, expected at least 1")
    dataset = open_labelled(task.images)
    open_labelled(task.gate_images)  # so that a missing dataset is an error now and not later
    _claim(work, task)
    references = _References(work / "torch")
    with ExitStack() as stack:
        if not references.complete(min(task.limit, len(dataset))):
            torch = stack.enter_context(checkpoint_segmenter(task.checkpoint))
            references.make(torch, dataset, task.limit, step)
        else:
            step("torch, done before", count=task.limit)
    rows = [_row(task, name, variants[name], dataset, references, work, step) for name in variants]
    step("time", count=0)
    timed = [name for name, variant in variants.items() if variant.untimed is None]
    seconds = _in_turns({name: work / name for name in timed}, dataset, task.repeats)
    return [
        dataclasses.replace(row, image_seconds=seconds.get(row.precision), untimed=variant.untimed)
        for row, variant in zip(rows, variants.values(), strict=True)
    ]


def _claim(work: Path, task: Task) -> None:
    """Create the folder for this task, or refuse one that belongs to something else."""
    key, path = task.key(), work / _DONE
    work.mkdir(parents=True, exist_ok=True)
    if path.exists():
        found = parse_object(path.read_text(encoding="utf-8"), _DONE)
        if found != key:
            other = ", ".join(sorted(name for name in key if found.get(name) != key[name]))
            raise InputError(
                f"{work} holds the figures of a run with another {other}; name another folder, or "
                "remove that one"
            )
    elif any(work.iterdir()):
        raise InputError(f"{work} is not empty and holds no run; name another folder")
    else:
        _write(path, key)


def _write(path: Path, data: Mapping[str, Any]) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2), encoding="utf-8")


def _results(
    segmenter: Segmenter, dataset: LabelledImages, limit: int
) -> Iterator[tuple[Sample, Traced]]:
    vocabulary = segmenter.vocabulary(dataset.names)
    for sample in islice(iter(dataset), limit):
        yield sample, trace(segmenter, sample.image, vocabulary)


class _References:
    """Results of float32 PyTorch for the images, one file each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def complete(self, images: int) -> bool:
        """Whether the results of all images are there."""
        return all(self._path(index).exists() for index in range(images))

    def make(self, torch: Segmenter, dataset: LabelledImages, limit: int, step: Advance) -> None:
        """Segment all images."""
        step("torch", count=0)
        for index, (sample, result) in enumerate(_results(torch, dataset, limit)):
            with atomic_file(self._path(index)) as temporary:
                np.savez_compressed(temporary, labels=result.labels, prompts=result.prompts)
            step(f"torch, {sample.name}")

    def __getitem__(self, index: int) -> Traced:
        with np.load(self._path(index), allow_pickle=False) as found:
            return Traced(found["labels"], found["prompts"])

    def _path(self, index: int) -> Path:
        return self._folder / f"{index:06}.npz"


def _row(
    task: Task,
    name: str,
    variant: Variant,
    dataset: LabelledImages,
    references: _References,
    work: Path,
    step: Advance,
) -> PrecisionRow:
    """Export and measure one precision, or read the figures of an earlier run."""
    path = work / f"{name}.json"
    if path.exists():
        found = parse_object(path.read_text(encoding="utf-8"), path.name)
        step(f"{name}, done before", count=task.limit)
        return PrecisionRow(**{**found, "kept_higher": tuple(found["kept_higher"])})
    bundle = _bundle(task, variant, work / name, lambda what: step(f"{name}, {what}", count=0))
    counts = TracedCounts(len(dataset.names), bundle.manifest.model.blocks)
    with Segmenter(bundle, "onnxruntime", cache=None) as segmenter:
        for sample, got in _results(segmenter, dataset, task.limit):
            counts.add(got, references[counts.images], sample.labels)
            step(f"{name}, {sample.name}")
    row = PrecisionRow(
        precision=name,
        miou=counts.ours.scores().miou,
        torch_miou=counts.theirs.scores().miou,
        pixel_agreement=counts.equal / counts.pixels,
        prompt_flips=int(counts.flips.sum()),
        prompts=int(counts.prompts.sum()),
        **_of_parity(bundle),
        bytes=sum(stage.bytes for stage in bundle.manifest.stages.values()),
        image_seconds=None,
        untimed=None,
        images=counts.images,
        categories=len(dataset.names),
    )
    _write(path, dataclasses.asdict(row))
    _LOG.info(
        "%s: mIoU %s, %.3f%% of labels equal, %.1f MB",
        name,
        "none" if row.miou is None else f"{row.miou:.2%}",
        100 * row.pixel_agreement,
        row.bytes / 1e6,
    )
    return row


def _of_parity(bundle: Bundle) -> dict[str, Any]:
    """The figures of a row that are in ``parity.json``: those on the gate's images."""
    parity = parse_object((bundle.root / "parity.json").read_text(encoding="utf-8"), "parity.json")
    stages = {stage: error["relative_l2"] for stage, error in parity["stages"].items()}
    # A number that is not finite is null in the file, and is the worst.
    worst = max(stages, key=lambda stage: np.inf if stages[stage] is None else stages[stage])
    return {
        "worst_stage": worst,
        "worst_stage_l2": stages[worst],
        "passed": parity["passed"],
        "reason": parity["reason"],
        "kept_higher": tuple(
            f"{kept['block']} ({kept['precision']})" for kept in parity["kept_higher"]
        ),
    }


def _bundle(task: Task, variant: Variant, folder: Path, step: Callable[[str], None]) -> Bundle:
    """The bundle in ``folder``, exported unless it is there and intact."""
    if folder.exists():
        try:
            return Bundle.open(folder, check="hashes")
        except BundleError:
            step("export again")
    loaded = load_checkpoint(task.checkpoint)
    export_bundle(
        loaded.model,
        folder,
        precision=variant.precision,
        rest=variant.rest,
        weights=loaded.weights,
        trained=loaded.trained,
        scenes=labelled_scenes(open_labelled(task.gate_images), task.gate_limit),
        check_categories=(2,),
        allow_parity_failure=True,  # the row says so
        step=step,
    )
    return Bundle.open(folder)


def _in_turns(
    bundles: Mapping[str, Path], dataset: LabelledImages, repeats: int
) -> dict[str, float]:
    """Median seconds of a whole call on the first image, by name."""
    image = next(iter(dataset)).image
    times: dict[str, list[float]] = {name: [] for name in bundles}
    with ExitStack() as stack:
        segmenters = {
            name: stack.enter_context(Segmenter(path, "onnxruntime", cache=None))
            for name, path in bundles.items()
        }
        vocabularies = {
            name: segmenter.vocabulary(dataset.names) for name, segmenter in segmenters.items()
        }
        for turn in range(repeats + 1):
            for name, segmenter in segmenters.items():
                begin = time.perf_counter()
                segmenter(image, vocabularies[name])
                if turn:  # the first call loads the graphs
                    times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(found) for name, found in times.items()}
