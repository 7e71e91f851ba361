"""How far the typed graphs are from float32 torch: by stage, by prompt, by pixel.

A stage is given the inputs that torch gave it, so its error is its own. Prompts and pixels are
those of the whole typed pipeline running freely.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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

from .check import to_numpy
from .graphs import Graph, model_graphs
from .precision import DTYPES
from .reference import Call, RecordingBackend, StoredCall
from .report import Budget, ParityReport, StageError
from .tensors import TensorStore

__all__ = [
    "Comparison",
    "Outcome",
    "Sample",
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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pipeline gives for one image: prompts by block, and logits float32 [N, l, l]."""

    prompts: list[Prompts]
    logits: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sample:
    """One image through float32 torch, with a record of every call of a graph.

    ``labels`` [H, W] are the true labels, as rows of ``text``; :mod:`escnet_runtime.confusion` says
    which value marks unlabelled pixels.
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

    Inputs and outputs of the graphs are put into ``store``, by default one for this sample alone.
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

    Label maps are compared at the model's input size.

    Args:
        model: in float32.
        backend: runs the typed graphs.
        samples: images through float32 torch.
        precision: of the graphs.
        spec: how images are prepared.
        trained: whether the weights are trained; selects the gate.
        budget: what may be lost.
        progress: called after each image.
        graphs: the graphs with the types of their ports; by default all have ``precision``.
        stages: errors of stages that are known already and need not be measured.
        text: the categories' embeddings that the typed graphs get; by default torch's.

    Returns:
        The figures, judged by the budget, and the typed graphs' outcome for each image.
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
    """The error of one graph given torch's inputs; ``dtype`` is that of ports of kind "graph"."""
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
    """The inputs of a recorded call, cast to the types that a graph takes."""
    return {
        name: to_numpy(torch.from_numpy(np.ascontiguousarray(array)), types[name])
        for name, array in call.inputs.items()
    }


@dataclass(slots=True)
class Comparison:
    """Outcomes of the typed pipeline, running freely, compared with float32 torch."""

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
        """The figures, judged by the budget."""
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
