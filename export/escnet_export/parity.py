"""How far the typed graphs are from float32 torch: by stage, by prompt, by pixel.

A stage is fed what torch fed it, so its figure is its own. Prompts and pixels come from the whole
typed pipeline running freely.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from escnet.model import EscNet
from escnet_runtime.backends import Backend
from escnet_runtime.groups import GROUP
from escnet_runtime.images import ImageArray
from escnet_runtime.manifest import Precision
from escnet_runtime.pipeline import Pipeline
from escnet_runtime.postprocess import UpsampleArgmax
from escnet_runtime.ppg import Prompts
from escnet_runtime.preprocess import Preprocessing, preprocess
from escnet_runtime.sketch import relative_l2

from .check import STAGE_TOLERANCE, to_numpy
from .graphs import model_graphs
from .precision import DTYPES
from .reference import Call, RecordingBackend

__all__ = [
    "Budget",
    "Outcome",
    "ParityReport",
    "Sample",
    "StageError",
    "label_map",
    "measure_parity",
    "reference_sample",
]

#: A pixel is a near-tie where the two best logits differ by less than this share of the logits'
#: standard deviation: rounding decides there, not the model.
_TIE = 0.01

Gate = Literal["pixels", "stages"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a bundle may lose.

    ``pixel_agreement`` is the gate of trained weights; ``stage_l2``, the largest relative L2 of a
    stage, that of untrained ones, whose near-ties make pixels meaningless.
    """

    pixel_agreement: float
    stage_l2: float

    @classmethod
    def default(cls, precision: Precision) -> "Budget":
        """99.9 % of pixels and 1e-4 at fp32; 99.5 % and 5e-3 at fp16; 98 % and 5e-2 at bf16."""
        agreement = {Precision.FP32: 0.999, Precision.FP16: 0.995, Precision.BF16: 0.98}
        return cls(pixel_agreement=agreement[precision], stage_l2=STAGE_TOLERANCE[precision])


@dataclass(slots=True)
class StageError:
    """The worst relative L2 and cosine of a stage's outputs over all images."""

    relative_l2: float = 0.0
    cosine: float = 1.0

    def add(self, got: npt.NDArray[np.generic], want: npt.NDArray[np.generic]) -> None:
        """Take one output into account."""
        self.relative_l2 = max(self.relative_l2, relative_l2(got, want))
        self.cosine = min(self.cosine, _cosine(got, want))


def _cosine(got: npt.NDArray[np.generic], want: npt.NDArray[np.generic]) -> float:
    """Of the angle between two tensors; -1 if it is not defined."""
    x, y = np.asarray(got, np.float64).ravel(), np.asarray(want, np.float64).ravel()
    if not (x.any() or y.any()):
        return 1.0
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        cosine = float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))
    return cosine if np.isfinite(cosine) else -1.0


@dataclass(slots=True, kw_only=True)
class ParityReport:
    """The figures of a bundle, as ``parity.json`` holds them."""

    gate: Gate
    passed: bool
    images: int
    categories: int
    pixels: int
    pixel_agreement: float
    near_ties: float
    agreement_without_ties: float
    prompt_flips: int
    prompts: int
    blocks: list[dict[str, int]]
    stages: dict[str, StageError]
    budget: Budget
    kept_in_fp32: list[str] = field(default_factory=list)

    def add_stage(
        self, name: str, got: npt.NDArray[np.generic], want: npt.NDArray[np.generic]
    ) -> None:
        """Take one more stage into account, and its figure into the gate if that is the stages."""
        error = self.stages.setdefault(name, StageError())
        error.add(got, want)
        limit = self.budget.stage_l2 if self.gate == "stages" else np.inf
        if not (error.relative_l2 <= limit and np.isfinite(error.relative_l2)):
            self.passed = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)

    def reason(self) -> str:
        """Why it passed or not, in one sentence."""
        worst = max(self.stages, key=lambda name: self.stages[name].relative_l2)
        if not np.isfinite(self.stages[worst].relative_l2):
            return f"graph {worst!r} gives numbers that are not finite where float32 torch's are"
        if self.gate == "pixels":
            return (
                f"pixel agreement {self.pixel_agreement:.4%} with float32 torch, budget at least "
                f"{self.budget.pixel_agreement:.4%}"
            )
        return (
            f"weights are untrained, so stages are the gate: worst relative L2 "
            f"{self.stages[worst].relative_l2:.1e} ({worst}), budget at most "
            f"{self.budget.stage_l2:.0e}"
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """One image through a pipeline: prompts by block, logits float32 [N, l, l]."""

    prompts: list[Prompts]
    logits: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sample:
    """One image through float32 torch, with every call of a graph."""

    image: ImageArray
    text: npt.NDArray[np.float32]
    calls: list[Call]
    outcome: Outcome


def reference_sample(
    model: EscNet, image: ImageArray, text: npt.NDArray[np.float32], spec: Preprocessing
) -> Sample:
    """Run ``image`` through float32 torch, all categories in one chunk."""
    backend = RecordingBackend(model)
    pipeline = _pipeline(model, backend)
    outcome = _run(pipeline, image, text, spec)
    return Sample(image, text, backend.calls, outcome)


def measure_parity(
    model: EscNet,
    backend: Backend,
    samples: Sequence[Sample],
    *,
    precision: Precision,
    spec: Preprocessing,
    trained: bool,
    budget: Budget,
    progress: Callable[[], None] = lambda: None,
) -> tuple[ParityReport, list[Outcome]]:
    """Compare ``backend``, which runs the typed graphs, with ``samples`` of float32 torch.

    Returns the figures and what the typed graphs made of each image. ``progress`` is called after
    each image. Label maps are compared at the model's input size.
    """
    types = {
        graph.name: {port.name: port.dtype(DTYPES[precision]) for port in graph.inputs}
        for graph in model_graphs(model)
    }
    stages: dict[str, StageError] = {}
    pixels = _PixelCounts()
    flips = np.zeros(model.config.blocks, np.int64)
    total = np.zeros(model.config.blocks, np.int64)
    pipeline = _pipeline(model, backend)
    outcomes: list[Outcome] = []
    for sample in samples:
        for call in sample.calls:
            _compare_stage(backend, call, types[call.graph], stages)
        outcome, reference = _run(pipeline, sample.image, sample.text, spec), sample.outcome
        outcomes.append(outcome)
        for block, (got, want) in enumerate(zip(outcome.prompts, reference.prompts, strict=True)):
            flips[block] += _flips(got, want)
            total[block] += want.point_labels.size
        pixels.add(outcome.logits, reference.logits, spec.size)
        progress()
    gate: Gate = "pixels" if trained else "stages"
    worst = max(error.relative_l2 for error in stages.values())
    fine = pixels.agreement >= budget.pixel_agreement if trained else worst <= budget.stage_l2
    fine = fine and np.isfinite(worst)  # labels can agree by chance where a graph gives NaN
    report = ParityReport(
        gate=gate,
        passed=bool(fine),
        images=len(samples),
        categories=len(samples[0].text),
        pixels=pixels.total,
        pixel_agreement=pixels.agreement,
        near_ties=pixels.ties / pixels.total,
        agreement_without_ties=pixels.agreement_without_ties,
        prompt_flips=int(flips.sum()),
        prompts=int(total.sum()),
        blocks=[{"flips": int(f), "prompts": int(t)} for f, t in zip(flips, total, strict=True)],
        stages=stages,
        budget=budget,
    )
    return report, outcomes


def _pipeline(model: EscNet, backend: Backend) -> Pipeline:
    return Pipeline(backend, blocks=model.config.blocks, ppg=model.config.ppg, group=GROUP)


def _run(
    pipeline: Pipeline, image: ImageArray, text: npt.NDArray[np.float32], spec: Preprocessing
) -> Outcome:
    prompts: list[Prompts] = []

    def observe(stage: str, _: slice, outputs: Mapping[str, Any]) -> None:
        if stage.endswith("_prompts"):
            prompts.append(outputs["prompts"])

    encoded = pipeline.encode_image(preprocess(image, spec))
    parts = pipeline.logits(encoded, text, chunk=len(text), observer=observe)
    logits = np.concatenate([logits for _, logits in parts])
    return Outcome(prompts, logits)


def _compare_stage(
    backend: Backend, call: Call, types: dict[str, torch.dtype], stages: dict[str, StageError]
) -> None:
    feeds = {
        name: to_numpy(torch.from_numpy(np.ascontiguousarray(array)), types[name])
        for name, array in call.inputs.items()
    }
    outputs = backend.run(call.graph, feeds)
    error = stages.setdefault(call.graph, StageError())
    for name, want in call.outputs.items():
        error.add(backend.to_host(outputs[name]), want)


def _flips(got: Prompts, want: Prompts) -> int:
    """Prompts whose point or validity differs."""
    moved = (got.points != want.points).any(axis=-1) | (got.point_labels != want.point_labels)
    return int(moved.sum())


@dataclass(slots=True)
class _PixelCounts:
    total: int = 0
    equal: int = 0
    ties: int = 0
    equal_without_ties: int = 0

    def add(self, got: npt.NDArray[np.float32], want: npt.NDArray[np.float32], size: int) -> None:
        same = label_map(got, size, size) == label_map(want, size, size)
        if len(want) > 1:
            best = np.partition(want, len(want) - 2, axis=0)[-2:]
            margin = (best[1] - best[0])[None]
            tied = _nearest((margin < _TIE * want.std())[0], size)
        else:
            tied = np.zeros_like(same)
        self.total += same.size
        self.equal += int(same.sum())
        self.ties += int(tied.sum())
        self.equal_without_ties += int((same & ~tied).sum())

    @property
    def agreement(self) -> float:
        return self.equal / self.total

    @property
    def agreement_without_ties(self) -> float:
        rest = self.total - self.ties
        return self.equal_without_ties / rest if rest else 1.0


def label_map(
    logits: npt.NDArray[np.float32], height: int, width: int
) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """The best category of each pixel at another size: logits [N, l, l] → [height, width]."""
    reduced = UpsampleArgmax(height, width, (logits.shape[1], logits.shape[2]), len(logits))
    reduced.add(0, logits)
    return reduced.result()[0]


def _nearest(cells: npt.NDArray[np.bool_], size: int) -> npt.NDArray[np.bool_]:
    index = (np.arange(size) * cells.shape[0]) // size
    enlarged: npt.NDArray[np.bool_] = cells[index][:, index]
    return enlarged
