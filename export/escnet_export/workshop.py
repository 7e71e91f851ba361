"""Makes the files that a plan asks for, each once, and keeps them until the plan is final."""

import math
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from escnet.model import EscNet
from escnet_runtime.backends import Backend, GraphFile, create_backend
from escnet_runtime.backends.base import Array
from escnet_runtime.manifest import Precision

from .calibrate import Calibration, activation_ranges
from .check import GraphCheck
from .export import GraphExporter
from .graphs import Graph, model_graphs
from .plan import QUANTISED, PrecisionPlan
from .precision import typed_graphs
from .quantise import quantise

__all__ = ["Built", "Step", "Workshop", "open_backend"]

Step: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The exported file of a graph.

    Attributes:
        graph: with the types of its ports.
        path: the file.
        precision: of the graph as a whole.
        arithmetic: fp32, fp16 or bf16: the type of what is not quantised in it.
        checks: relative L2 to float32 torch by number of categories, on made-up inputs.
    """

    graph: Graph
    path: Path
    precision: Precision
    arithmetic: Precision
    checks: dict[int, float]

    @property
    def file(self) -> GraphFile:
        """The file as a backend takes it."""
        kinds = {port.kind for port in (*self.graph.inputs, *self.graph.outputs)}
        return GraphFile(self.path, Precision.BF16 if "bfloat16" in kinds else self.precision)


class Workshop:
    """Exports, checks and quantises graphs.

    Args:
        model: in float32.
        folder: is created; each file gets a folder of its own in it.
        categories: numbers of categories at which each file is checked.
        step: called with the name of each step as it begins.
        inputs: a graph's name → the inputs that float32 torch gave it on the images; int8 and fp8
            are calibrated on them.
        calibration: how ranges are derived from them; by default :meth:`Calibration.default`.
    """

    def __init__(
        self,
        model: EscNet,
        folder: Path,
        categories: Sequence[int],
        *,
        step: Step = lambda _: None,
        inputs: Callable[[str], Sequence[Mapping[str, Array]]] = lambda _: (),
        calibration: Calibration | None = None,
    ) -> None:
        self._model, self._folder, self._step = model, folder, step
        self._categories, self._inputs, self._calibration = categories, inputs, calibration
        self._references = {graph.name: graph for graph in model_graphs(model)}
        self._exporters: dict[Precision, GraphExporter] = {}
        self._checks: dict[Precision, GraphCheck] = {}
        self._plain: dict[tuple[object, ...], Built] = {}
        self._quantised: dict[tuple[object, ...], Built] = {}
        self._ranges: dict[tuple[Path, Calibration], dict[str, float]] = {}
        self._count = 0

    def build(self, plan: PrecisionPlan, only: Iterable[str] | None = None) -> dict[str, Built]:
        """The files of ``plan`` by graph, in the order the graphs run; with ``only``, of these.

        Raises:
            ExportError: a graph could not be exported, or does not compute what torch computes.
        """
        return {
            graph.name: self._one(graph, plan) for graph in typed_graphs(self._model, plan, only)
        }

    def _one(self, graph: Graph, plan: PrecisionPlan) -> Built:
        """The file of a graph, exported if it does not exist yet."""
        arithmetic, precision = plan.arithmetic(graph.name), plan.precision(graph.name)
        parts = {part: plan.arithmetic(part) for part in plan.parts(graph.name)}
        wider = {part: kind for part, kind in parts.items() if kind is not arithmetic}
        ports = tuple(port.kind for port in (*graph.inputs, *graph.outputs))
        key = (graph.name, arithmetic, tuple(sorted(wider.items())), ports)
        if key not in self._plain:
            self._plain[key] = self._export(graph, arithmetic, wider)
        plain = self._plain[key]
        if precision not in QUANTISED:
            return plain
        kept = (*key, precision, frozenset(parts))
        if kept not in self._quantised:
            self._quantised[kept] = self._quantise(plain, precision, frozenset(parts))
        return self._quantised[kept]

    def _export(self, graph: Graph, arithmetic: Precision, wider: Collection[str]) -> Built:
        path = self._path(graph.name)
        if arithmetic not in self._exporters:
            self._exporters[arithmetic] = GraphExporter(self._model.config, arithmetic)
            self._checks[arithmetic] = GraphCheck(
                self._model.config, arithmetic, categories=self._categories
            )
        what = _what(graph.name, wider)
        self._step(f"export {what}")
        self._exporters[arithmetic].export(graph, path)
        self._step(f"check {what}")
        return Built(
            graph=graph,
            path=path,
            precision=arithmetic,
            arithmetic=arithmetic,
            checks=self._checks[arithmetic].check(self._references[graph.name], path, graph),
        )

    def _quantise(self, plain: Built, precision: Precision, keep: Collection[str]) -> Built:
        name, path = plain.graph.name, self._path(plain.graph.name)
        method = self._calibration or Calibration.default(precision)
        known = (plain.path, method)
        if known not in self._ranges:
            self._step(f"calibrate {name}")
            self._ranges[known] = activation_ranges(plain.path, self._inputs(name), method)
        self._step(f"quantise {_what(name, keep)}")
        quantise(name, plain.path, path, self._ranges[known], precision=precision, keep=keep)
        # Ranges from images do not fit made-up inputs: all that is checked is that the file runs.
        check = GraphCheck(self._model.config, plain.arithmetic, categories=self._categories)
        checks = check.check(self._references[name], path, plain.graph, tolerance=math.inf)
        return replace(plain, path=path, precision=precision, checks=checks)

    def _path(self, graph: str) -> Path:
        path = self._folder / f"{self._count}" / f"{graph}.onnx"
        path.parent.mkdir(parents=True)
        self._count += 1
        return path

    def deliver(self, built: Mapping[str, Built], folder: Path) -> dict[str, Built]:
        """Move the files to ``folder/NAME.onnx`` and delete all others."""
        moved = {}
        for name, one in built.items():
            target = folder / f"{name}.onnx"
            shutil.move(one.path, target)
            moved[name] = replace(one, path=target)
        shutil.rmtree(self._folder)
        return moved


def _what(graph: str, parts: Collection[str]) -> str:
    """A text for people: the graph, and its parts that have another precision."""
    return ", ".join([graph, *sorted(part.split(".")[1] for part in parts)])


def open_backend(built: Mapping[str, Built]) -> Backend:
    """ONNX Runtime on the CPU with these files; close it after use."""
    return create_backend({name: one.file for name, one in built.items()}, "onnxruntime")
