"""``escnet-verify --layers``: which node of a graph first gives something else than in float32.

Polygraphy runs a graph twice on the inputs that it gets in the golden run, as it is and with every
narrow type turned into float32 (or the graph of another bundle), with all tensors inside marked as
outputs, and its ``debug reduce`` cuts a graph down to the part that fails. Nothing is optimised or
fused, so every node rounds its result to the type it has in the file.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from .backends.base import Array, Backend, Tensor
from .bundle import Bundle
from .errors import BackendError, BundleFormatError, InputError
from .golden import Golden, repeat_golden
from .layers_compare import Feeds, Layer, compare_models, reference_graph
from .layers_minimise import minimise_graph
from .pipeline import Pipeline
from .segmenter import Segmenter

__all__ = ["LayersReport", "StageLayers", "compare_layers"]

_FLOAT16_MOST: Final = 65504
_BEYOND: Final = f", beyond what float16 holds ({_FLOAT16_MOST})"
_PROVIDERS: Final = {"onnxruntime": "cpu", "onnxruntime-cuda": "cuda"}


@dataclass(frozen=True, kw_only=True, slots=True)
class StageLayers:
    """A graph: its layers in the order they are computed, and the first beyond the bound."""

    name: str
    layers: tuple[Layer, ...]
    first: Layer | None


@dataclass(frozen=True, kw_only=True, slots=True)
class LayersReport:
    """What was compared.

    Attributes:
        bound: largest relative L2 of a layer.
        reference: what it was compared with, in words.
        stages: the graphs, in the order they run.
        missing: graphs that the golden run did not reach.
        minimised: the file with the smallest failing part, and how many nodes it has.
    """

    bound: float
    reference: str
    stages: tuple[StageLayers, ...]
    missing: tuple[str, ...] = ()
    minimised: tuple[Path, int] | None = None

    @property
    def first(self) -> tuple[str, Layer] | None:
        """The first graph with a layer beyond the bound, and that layer."""
        found = ((stage.name, stage.first) for stage in self.stages if stage.first)
        return next(found, None)

    def summary(self) -> str:
        """The result in words, for people."""
        count = sum(len(stage.layers) for stage in self.stages)
        lines = [
            f"Layers: {count:,} tensors in {len(self.stages)} graphs against {self.reference}; "
            f"the bound is a relative L2 of {self.bound:.1e}."
        ]
        if self.first is None:
            lines.append("None is beyond it.")
        else:
            name, layer = self.first
            lines.append(
                f"The first beyond it is {layer.tensor} of node {layer.node} ({layer.op}) in graph "
                f"{name}: {layer.relative_l2:.1e}. Its largest value in float32 is "
                f"{layer.largest:.3g}{_BEYOND if layer.largest > _FLOAT16_MOST else ''}."
            )
        if self.missing:
            lines.append(f"Not reached by the golden run: {', '.join(self.missing)}.")
        if self.minimised is not None:
            path, nodes = self.minimised
            lines.append(f"The smallest failing part has {nodes} nodes and is in {path}.")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        document = asdict(self)
        document["first"] = None
        if self.first is not None:
            document["first"] = {"graph": self.first[0], **asdict(self.first[1])}
        if self.minimised is not None:
            document["minimised"] = {"file": self.minimised[0], "nodes": self.minimised[1]}
        return document


def compare_layers(
    path: Path,
    *,
    stages: Sequence[str] | None = None,
    backend: str = "auto",
    bound: float | None = None,
    reference: Path | None = None,
    minimise: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> LayersReport:
    """Compare a bundle's graphs with float32, tensor by tensor, on the golden picture.

    Args:
        path: the bundle's folder.
        stages: graphs to look at; all by default.
        backend: what runs the graphs as they are; the reference is ONNX Runtime on the CPU.
        bound: largest relative L2 of a tensor; by default what the bundle allows a stage.
        reference: another bundle of the same model, say at fp32, to compare with. By default the
            graph itself with every narrow type made float32: weights stay rounded.
        minimise: where to write the smallest part of the first graph beyond the bound that is
            beyond it by itself, fed what the reference gives.
        progress: told of each graph.

    Raises:
        InputError: a bundle or an option cannot be used.
        BackendError: a graph does not run, or Polygraphy cannot reduce it.
    """
    bundle = Bundle.open(path)
    other = None if reference is None else Bundle.open(reference)
    backend = "onnxruntime" if backend == "auto" else backend
    if backend not in _PROVIDERS:
        raise InputError(
            f"backend {backend!r} runs engines, whose nodes cannot be looked at; expected one of "
            f"{', '.join(_PROVIDERS)}"
        )
    names = _chosen(bundle, stages)
    golden = Golden.load(bundle)
    limit = golden.reference.stage_tolerance if bound is None else bound
    progress("golden run")
    inputs = _recorded(bundle, golden, backend)
    found, missing = [], []
    failing: tuple[str, onnx.ModelProto, Feeds, str] | None = None
    for name in names:
        if name not in inputs:
            missing.append(name)
            continue
        progress(name)
        typed = _graph_of(bundle, name)
        wide = reference_graph(typed, None if other is None else _graph_of(other, name))
        with _named(name):
            layers = compare_models(wide, typed, inputs[name], provider=_PROVIDERS[backend])
        first = next((layer for layer in layers if not layer.relative_l2 <= limit), None)
        found.append(StageLayers(name=name, layers=tuple(layers), first=first))
        if first is not None and failing is None:
            failing = name, typed, inputs[name], first.tensor
    minimised = None
    if minimise is not None:
        if failing is None:
            raise InputError(f"no layer is beyond {limit:.1e}: there is nothing to minimise")
        progress("minimise")
        nodes = minimise_graph(*failing, bound=limit, target=minimise)
        minimised = minimise, nodes
    words = "the same graphs in float32" if other is None else f"the bundle {other.root}"
    return LayersReport(
        bound=limit,
        reference=words,
        stages=tuple(found),
        missing=tuple(missing),
        minimised=minimised,
    )


def _chosen(bundle: Bundle, stages: Sequence[str] | None) -> list[str]:
    known = list(bundle.manifest.stages)
    strange = [name for name in stages or () if name not in known]
    if strange:
        raise InputError(
            f"the bundle has no graph {', '.join(map(repr, strange))}; it has {', '.join(known)}"
        )
    return [name for name in known if stages is None or name in stages]


class _Recorder:
    """A backend that keeps what each graph was fed first."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.inputs: dict[str, Feeds] = {}

    @property
    def name(self) -> str:
        return self._backend.name

    @property
    def description(self) -> str:
        return self._backend.description

    def run(self, graph: str, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        if graph not in self.inputs:
            host = {name: np.array(self._backend.to_host(value)) for name, value in inputs.items()}
            self.inputs[graph] = host
        return self._backend.run(graph, inputs)

    def to_host(self, tensor: Tensor) -> Array:
        return self._backend.to_host(tensor)

    def release(self, graph: str) -> None:
        self._backend.release(graph)

    def close(self) -> None:
        self._backend.close()


def _recorded(bundle: Bundle, golden: Golden, backend: str) -> dict[str, Feeds]:
    """The inputs of each graph in the golden run."""
    manifest = bundle.manifest
    with Segmenter(bundle, backend, cache=None) as segmenter:
        recorder = _Recorder(segmenter.pipeline.backend)
        pipeline = Pipeline(
            recorder,
            blocks=manifest.model.blocks,
            ppg=manifest.constants.ppg,
            group=manifest.constants.group,
        )
        repeat_golden(pipeline, golden, manifest)
    return recorder.inputs


def _graph_of(bundle: Bundle, name: str) -> onnx.ModelProto:
    if name not in bundle.manifest.stages:
        raise BundleFormatError(f"the bundle {bundle.root} has no graph {name!r} to compare with")
    path = bundle.file(bundle.manifest.stages[name].file)
    return onnx.load_model_from_string(path.read_bytes())


@contextlib.contextmanager
def _named(graph: str) -> Iterator[None]:
    """What a library says of a graph that does not run, with its name."""
    try:
        yield
    except Exception as error:  # ONNX Runtime's and Polygraphy's errors share no base below that
        raise BackendError(f"graph {graph!r} does not run layer by layer: {error}") from error
