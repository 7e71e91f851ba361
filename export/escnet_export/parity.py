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
from escnet_runtime.backends.base import Array
from escnet_runtime.confusion import ConfusionCounter, Labels
from escnet_runtime.groups import GROUP
from escnet_runtime.images import ImageArray
from escnet_runtime.manifest import Precision
from escnet_runtime.pipeline import Pipeline
from escnet_runtime.postprocess import UpsampleArgmax
from escnet_runtime.ppg import Prompts
from escnet_runtime.preprocess import Preprocessing, preprocess
from escnet_runtime.sketch import relative_l2

from .check import STAGE_TOLERANCE, to_numpy
from .graphs import Graph, model_graphs
from .kept import Kept
from .plan import graph_of
from .precision import DTYPES
from .ranges import Trap
from .reference import Call, RecordingBackend, StoredCall
from .tensors import TensorStore

__all__ = [
    "Budget",
    "Comparison",
    "Gate",
    "Outcome",
    "ParityReport",
    "Sample",
    "StageError",
    "compare_pipelines",
    "feeds_of",
    "label_map",
    "measure_parity",
    "reference_sample",
    "stage_error",
]

#: A pixel is a near-tie where the two best logits differ by less than this share of the logits'
#: standard deviation: rounding decides there, not the model.
_TIE = 0.01

Gate = Literal["pixels", "stages"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a bundle may lose.

    ``pixel_agreement`` is the gate of trained weights; ``stage_l2``, the largest relative L2 of a
    stage, that of untrained ones, whose near-ties make pixels meaningless. The other two count
    beside either: ``miou_loss`` where images have labels, as a difference of two fractions;
    ``prompt_flips``, the largest share of prompts that may flip, where it is given. ``asked`` are
    the gates that someone asked for by a number of their own: these hold whatever the weights.
    """

    pixel_agreement: float
    stage_l2: float
    miou_loss: float = 0.01
    prompt_flips: float | None = None
    asked: tuple[Gate, ...] = ()

    @classmethod
    def default(cls, precision: Precision, image_encoder: Precision | None = None) -> "Budget":
        """By precision, pixels and stages; the coarser one's where the image encoder has another.

        99.9 % and 1e-4 at fp32; 99.5 % and 5e-3 at fp16; 98 % and 5e-2 at bf16; 97 % and 0.15 at
        int8 and fp8.
        """
        precision = max(precision, image_encoder or precision, key=STAGE_TOLERANCE.__getitem__)
        agreement = {
            Precision.FP32: 0.999,
            Precision.FP16: 0.995,
            Precision.BF16: 0.98,
            Precision.INT8: 0.97,
            Precision.FP8: 0.97,
        }
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
    miou: float | None = None
    reference_miou: float | None = None
    kept_in_fp32: list[str] = field(default_factory=list)
    kept_higher: list[Kept] = field(default_factory=list)
    traps: list[Trap] = field(default_factory=list)

    def judge(self) -> None:
        """Hold the figures against the budget; ``passed`` is the result."""
        self.passed = not self.missed()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)

    @property
    def worst_stage(self) -> str:
        """The one farthest from float32."""
        return max(self.stages, key=lambda name: self.stages[name].relative_l2)

    @property
    def miou_loss(self) -> float | None:
        """What float32 torch has more of, as a fraction; None without labels."""
        if self.miou is None or self.reference_miou is None:
            return None
        return self.reference_miou - self.miou

    @property
    def flipped(self) -> float:
        """The share of prompts that flipped."""
        return self.prompt_flips / self.prompts if self.prompts else 0.0

    def damage(self) -> float:
        """What is lost, in budgets: at most 1 in each of its parts where the budget holds."""
        if not np.isfinite(self.stages[self.worst_stage].relative_l2):
            return np.inf
        budget, total = self.budget, 0.0
        if "pixels" in self._gates:
            total += _share(1 - self.pixel_agreement, 1 - budget.pixel_agreement)
        if "stages" in self._gates:
            total += _share(self.stages[self.worst_stage].relative_l2, budget.stage_l2)
        if budget.prompt_flips is not None:
            total += _share(self.flipped, budget.prompt_flips)
        if self.miou_loss is not None:
            total += _share(max(self.miou_loss, 0.0), budget.miou_loss)
        return total

    def missed(self) -> list[str]:
        """Each part of the budget that does not hold, as a clause."""
        worst = self.stages[self.worst_stage].relative_l2
        if not np.isfinite(worst):  # labels can agree by chance where a graph gives NaN
            return [
                f"graph {self.worst_stage!r} gives numbers that are not finite where float32 "
                "torch's are"
            ]
        overflows = [f"{block} overflows: {why}" for block, why in self._overflows().items()]
        return overflows + [clause for holds, clause in self._parts() if not holds]

    def _parts(self) -> list[tuple[bool, str]]:
        """Each part of the budget that counts here, the gate's own first: whether it holds."""
        budget = self.budget
        parts: dict[Gate, tuple[bool, str]] = {
            "pixels": (self.pixel_agreement >= budget.pixel_agreement, self._pixels()),
            "stages": (
                self.stages[self.worst_stage].relative_l2 <= budget.stage_l2,
                self._stages(),
            ),
        }
        found = [parts.pop(self.gate)]
        found += [part for gate, part in parts.items() if gate in self._gates]
        if budget.prompt_flips is not None:
            found.append(
                (
                    self.flipped <= budget.prompt_flips,
                    f"{self.flipped:.2%} of prompts flipped, budget at most "
                    f"{budget.prompt_flips:.2%}",
                )
            )
        if self.miou_loss is not None:
            found.append(
                (
                    self.miou_loss <= budget.miou_loss,
                    f"mIoU {self.miou:.2%} where float32 torch has {self.reference_miou:.2%}, "
                    f"budget at most {budget.miou_loss:.2%} less",
                )
            )
        return found

    @property
    def _gates(self) -> set[Gate]:
        return {self.gate, *self.budget.asked}

    def _overflows(self) -> dict[str, str]:
        """Blocks that a device would compute infinities in: this machine may not show it."""
        # One step above int8 is float16 as well.
        raised = {kept.block for kept in self.kept_higher if kept.precision is Precision.FP32}
        return {
            trap.block: trap.why()
            for trap in reversed(self.traps)
            if trap.overflows and not {trap.block, graph_of(trap.block)} & raised
        }

    def reason(self) -> str:
        """Why it did not pass, or all that it was held against, in one sentence."""
        return "; ".join(self.missed() or [clause for _, clause in self._parts()])

    def _pixels(self) -> str:
        return (
            f"pixel agreement {self.pixel_agreement:.4%} with float32 torch, budget at least "
            f"{self.budget.pixel_agreement:.4%}"
        )

    def _stages(self) -> str:
        why = "weights are untrained, so stages are the gate: " if self.gate == "stages" else ""
        return (
            f"{why}worst relative L2 of a stage "
            f"{self.stages[self.worst_stage].relative_l2:.1e} ({self.worst_stage}), budget at most "
            f"{self.budget.stage_l2:.0e}"
        )


def _share(lost: float, allowed: float) -> float:
    return lost / allowed if allowed > 0 else (np.inf if lost > 0 else 0.0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One image through a pipeline: prompts by block, logits float32 [N, l, l]."""

    prompts: list[Prompts]
    logits: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sample:
    """One image through float32 torch, with every call of a graph.

    ``labels`` [H, W] are true ones, as rows of ``text``; see :mod:`escnet_runtime.confusion` for
    what is not labelled.
    """

    image: ImageArray
    text: npt.NDArray[np.float32]
    calls: list[StoredCall]
    outcome: Outcome
    labels: Labels | None = None


def reference_sample(
    model: EscNet,
    image: ImageArray,
    text: npt.NDArray[np.float32],
    spec: Preprocessing,
    labels: Labels | None = None,
    *,
    store: TensorStore | None = None,
) -> Sample:
    """Run ``image`` through float32 torch, all categories in one chunk.

    What the graphs took and gave is in ``store``, by default one of this sample alone.
    """
    backend = RecordingBackend(model, store or TensorStore())
    pipeline = _pipeline(model, backend)
    outcome = _run(pipeline, image, text, spec)
    return Sample(image, text, backend.calls, outcome, labels)


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
    graphs: Sequence[Graph] | None = None,
    stages: Mapping[str, StageError] | None = None,
    text: npt.NDArray[np.float32] | None = None,
) -> tuple[ParityReport, list[Outcome]]:
    """Compare ``backend``, which runs the typed graphs, with ``samples`` of float32 torch.

    Returns the figures and what the typed graphs made of each image. ``progress`` is called after
    each image. Label maps are compared at the model's input size.

    Args:
        model: in float32.
        backend: runs the typed graphs.
        samples: images through float32 torch.
        precision: of the graphs.
        spec: how images are prepared.
        trained: decides the gate.
        budget: what may be lost.
        progress: called after each image.
        graphs: with the types of their ports; by default all are of ``precision``.
        stages: figures of stages that are known already.
        text: the categories' embeddings that the typed graphs get; by default those of torch.
    """
    errors = dict(stages or {})
    for graph in graphs or model_graphs(model):
        if graph.name not in errors and any(call.graph == graph.name for call in samples[0].calls):
            errors[graph.name] = stage_error(backend, graph, samples, DTYPES.get(precision))
    found = compare_pipelines(model, backend, samples, spec=spec, text=text, progress=progress)
    report = found.report(samples, trained=trained, budget=budget, stages=errors)
    return report, found.outcomes


def stage_error(
    backend: Backend,
    graph: Graph,
    samples: Sequence[Sample],
    dtype: torch.dtype | None = None,
) -> StageError:
    """One graph fed what torch fed it; ``dtype`` is that of ports of the kind "graph"."""
    error = StageError()
    types = {port.name: port.dtype(dtype or torch.float32) for port in graph.inputs}
    for sample in samples:
        for call in sample.calls:
            if call.graph == graph.name:
                outputs = backend.run(call.graph, feeds_of(call, types))
                for name, want in call.outputs.items():
                    error.add(backend.to_host(outputs[name]), want)
    return error


def feeds_of(call: Call, types: Mapping[str, torch.dtype]) -> dict[str, Array]:
    """The inputs of a recorded call in the types that a graph takes."""
    return {
        name: to_numpy(torch.from_numpy(np.ascontiguousarray(array)), types[name])
        for name, array in call.inputs.items()
    }


@dataclass(slots=True)
class Comparison:
    """What typed graphs, running freely, made of images, against float32 torch."""

    pixels: "_PixelCounts"
    flips: npt.NDArray[np.int64]
    prompts: npt.NDArray[np.int64]
    outcomes: list[Outcome] = field(default_factory=list)
    counters: tuple[ConfusionCounter, ConfusionCounter] | None = None

    def report(
        self,
        samples: Sequence[Sample],
        *,
        trained: bool,
        budget: Budget,
        stages: dict[str, StageError],
    ) -> ParityReport:
        """The figures, judged."""
        typed, reference = (
            (None, None)
            if self.counters is None
            else (counter.scores().miou for counter in self.counters)
        )
        report = ParityReport(
            gate="pixels" if trained else "stages",
            passed=False,
            images=len(samples),
            categories=len(samples[0].text),
            pixels=self.pixels.total,
            pixel_agreement=self.pixels.agreement,
            near_ties=self.pixels.ties / self.pixels.total,
            agreement_without_ties=self.pixels.agreement_without_ties,
            prompt_flips=int(self.flips.sum()),
            prompts=int(self.prompts.sum()),
            blocks=[
                {"flips": int(flips), "prompts": int(prompts)}
                for flips, prompts in zip(self.flips, self.prompts, strict=True)
            ],
            stages=stages,
            budget=budget,
            miou=typed,
            reference_miou=reference,
        )
        report.judge()
        return report


def compare_pipelines(
    model: EscNet,
    backend: Backend,
    samples: Sequence[Sample],
    *,
    spec: Preprocessing,
    text: npt.NDArray[np.float32] | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Comparison:
    """Run ``backend`` freely on the images of ``samples``; see :func:`measure_parity`."""
    blocks = model.config.blocks
    found = Comparison(_PixelCounts(), np.zeros(blocks, np.int64), np.zeros(blocks, np.int64))
    if all(sample.labels is not None for sample in samples):
        classes = len(samples[0].text)
        found.counters = (ConfusionCounter(classes), ConfusionCounter(classes))
    pipeline = _pipeline(model, backend)
    for sample in samples:
        embeddings = sample.text if text is None else text
        outcome = _run(pipeline, sample.image, embeddings, spec)
        reference = sample.outcome
        found.outcomes.append(outcome)
        for block, (got, want) in enumerate(zip(outcome.prompts, reference.prompts, strict=True)):
            found.flips[block] += _flips(got, want)
            found.prompts[block] += want.point_labels.size
        found.pixels.add(outcome.logits, reference.logits, spec.size)
        if found.counters is not None and sample.labels is not None:
            for counter, logits in zip(
                found.counters, (outcome.logits, reference.logits), strict=True
            ):
                counter.add(label_map(logits, *sample.labels.shape), sample.labels)
        progress()
    return found


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
