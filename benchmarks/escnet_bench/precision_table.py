"""What each precision of a model costs and gives: mIoU, agreement, flips, size, time on the CPU.

Every precision is exported by the accuracy gate on the same labelled images, which all its figures
are of; then the bundles segment one of them in turns.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Self

from escnet.weights import LoadedCheckpoint
from escnet_export import ExportReport, export_bundle
from escnet_export.scenes import SceneSet
from escnet_runtime.bundle import Bundle
from escnet_runtime.errors import InputError
from escnet_runtime.manifest import Precision
from escnet_runtime.segmenter import Segmenter

__all__ = ["METHOD", "VARIANTS", "PrecisionRow", "Variant", "precision_rows"]

METHOD: Final = (
    "each precision exported with its default budget; mIoU, equal labels and flipped prompts on "
    "the same labelled images, at the labels' and at the model's input size, on ONNX Runtime's CPU "
    "provider; image_seconds is the median of whole calls on the first image, all bundles in "
    "turns, after one call each"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A way to export; ``rest`` is what int8 leaves unquantised."""

    precision: Precision
    rest: Precision = Precision.FP16

    @classmethod
    def of(cls, name: str) -> Self:
        """``fp16``, or ``int8+fp32`` for int8 with the rest in float32.

        Raises:
            InputError: there is no such precision.
        """
        precision, _, rest = name.partition("+")
        try:
            return cls(precision=Precision(precision), rest=Precision(rest or Precision.FP16))
        except ValueError:
            raise InputError(
                f"{name!r} is no precision; expected one of {', '.join(VARIANTS)}"
            ) from None

    @property
    def runs_on_cpu(self) -> bool:
        """Whether ONNX Runtime's CPU provider has kernels for it: bf16 is only emulated."""
        return self.precision is not Precision.BF16


VARIANTS: Final = ("fp32", "fp16", "bf16", "int8+fp16", "int8+fp32")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionRow:
    """One precision.

    Attributes:
        precision: as it was asked for.
        miou, torch_miou: of the bundle, and of float32 PyTorch on the same images.
        pixel_agreement: share of labels equal to float32 PyTorch's.
        prompt_flips, prompts: prompts that differ from its, of all.
        worst_stage, worst_stage_l2: the graph farthest from it, fed the same.
        kept_higher: blocks that the gate kept at a higher precision, with it.
        bytes: of all graphs.
        image_seconds: median; None where this CPU has no kernels for it.
        images, categories: what the figures are of.
    """

    precision: str
    miou: float | None
    torch_miou: float | None
    pixel_agreement: float
    prompt_flips: int
    prompts: int
    worst_stage: str
    worst_stage_l2: float
    kept_higher: tuple[str, ...]
    bytes: int
    image_seconds: float | None
    images: int
    categories: int


def precision_rows(
    loaded: LoadedCheckpoint,
    scenes: SceneSet,
    names: Sequence[str],
    *,
    repeats: int,
    step: Callable[[str], None] = lambda _: None,
) -> list[PrecisionRow]:
    """Export and measure each of ``names``, see :meth:`Variant.of`.

    Raises:
        InputError: a name is no precision, or there is nothing to repeat.
        ParityError: a precision misses its budget whatever is raised.
    """
    if repeats < 1:
        raise InputError(f"got {repeats} repeats, expected at least 1")
    variants = {name: Variant.of(name) for name in names}
    with TemporaryDirectory(prefix="escnet-precision-") as folder, ExitStack() as stack:
        reports = {}
        for name, variant in variants.items():
            step(f"export {name}")
            reports[name] = export_bundle(
                loaded.model,
                Path(folder) / name,
                precision=variant.precision,
                rest=variant.rest,
                weights=loaded.weights,
                trained=loaded.trained,
                scenes=scenes,
                check_categories=(2,),
            )
        segmenters = {
            name: stack.enter_context(Segmenter(reports[name].bundle, "onnxruntime", cache=None))
            for name, variant in variants.items()
            if variant.runs_on_cpu
        }
        step("time")
        seconds = _in_turns(segmenters, scenes, repeats)
        return [_row(name, reports[name], seconds.get(name)) for name in variants]


def _in_turns(segmenters: dict[str, Segmenter], scenes: SceneSet, repeats: int) -> dict[str, float]:
    """Median seconds of a whole call, by name."""
    vocabularies = {
        name: segmenter.vocabulary(scenes.categories) for name, segmenter in segmenters.items()
    }
    times: dict[str, list[float]] = {name: [] for name in segmenters}
    for turn in range(repeats + 1):
        for name, segmenter in segmenters.items():
            begin = time.perf_counter()
            segmenter(scenes.images[0], vocabularies[name])
            if turn:  # the first call loads the graphs
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(found) for name, found in times.items()}


def _row(name: str, report: ExportReport, seconds: float | None) -> PrecisionRow:
    parity = report.parity
    stages = Bundle.open(report.bundle).manifest.stages
    return PrecisionRow(
        precision=name,
        miou=parity.miou,
        torch_miou=parity.reference_miou,
        pixel_agreement=parity.pixel_agreement,
        prompt_flips=parity.prompt_flips,
        prompts=parity.prompts,
        worst_stage=parity.worst_stage,
        worst_stage_l2=parity.stages[parity.worst_stage].relative_l2,
        kept_higher=tuple(f"{kept.block} ({kept.precision})" for kept in parity.kept_higher),
        bytes=sum(stage.bytes for stage in stages.values()),
        image_seconds=seconds,
        images=parity.images,
        categories=parity.categories,
    )
