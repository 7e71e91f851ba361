"""``escnet-verify --layers``: which node of a graph first gives something else than in float32.

Polygraphy runs a graph twice on the inputs that it gets in the golden run, as it is and with every
narrow type turned into float32 (or the graph of another bundle), with all tensors inside marked as
outputs, and its ``debug reduce`` cuts a graph down to the part that fails. Nothing is optimised or
fused, so every node rounds its result to the type it has in the file.
"""

import contextlib
import importlib.util
import io
import math
import subprocess
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from polygraphy.backend.onnx import BytesFromOnnx, ModifyOutputs, modify_outputs
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.comparator import Comparator
from polygraphy.json import save_json
from polygraphy.logger import G_LOGGER

from .atomic import atomic_file
from .backends.base import Array, Backend, Tensor
from .backends.widen import round_nodes, take_inputs, widen
from .bundle import Bundle
from .errors import BackendError, BundleFormatError, InputError
from .golden import Golden, repeat_golden
from .pipeline import Pipeline
from .segmenter import Segmenter
from .sketch import relative_l2

__all__ = [
    "Layer",
    "LayersReport",
    "StageLayers",
    "compare_layers",
    "compare_models",
    "minimise_graph",
    "part_error",
    "reference_graph",
]

#: Bytes of tensors that one run may give out.
_MOST_OUTPUT_BYTES: Final = 2**29
_GUESS_BYTES: Final = 2**20  # of a tensor whose shape ONNX does not infer
_FLOAT16_MOST: Final = 65504
_BEYOND: Final = f", beyond what float16 holds ({_FLOAT16_MOST})"
_WARNINGS, _ERRORS_ALONE = 2, 3  # severities of ONNX Runtime's log; the first is its default
_PROVIDERS: Final = {"onnxruntime": "cpu", "onnxruntime-cuda": "cuda"}

_Feeds = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One tensor inside a graph.

    Attributes:
        node: the node that makes it.
        op: the node's operator.
        tensor: its name.
        relative_l2: its distance from the reference; infinite where it is not finite.
        largest: the largest absolute value that it has in the reference.
    """

    node: str
    op: str
    tensor: str
    relative_l2: float
    largest: float


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
        """For people."""
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
    failing: tuple[str, onnx.ModelProto, _Feeds, str] | None = None
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


def compare_models(
    reference: onnx.ModelProto,
    typed: onnx.ModelProto,
    feeds: _Feeds,
    *,
    provider: str = "cpu",
) -> list[Layer]:
    """Every floating-point tensor that both graphs have, in the order ``typed`` computes them.

    Args:
        reference: is run on the CPU.
        typed: is run by ``provider``; on the CPU in float32, rounded behind every node.
        feeds: by name; both take the same. bfloat16 is fed as float32.
        provider: "cpu" or "cuda".
    """
    known = {name for node in reference.graph.node for name in node.output}
    makers = {
        name: node
        for node in typed.graph.node
        for name in node.output
        if name in known and name and node.op_type != "Constant"
    }
    errors = _Errors(makers)
    reference = _fed(reference, feeds)
    # ONNX Runtime drops roundings between nodes on the CPU, and with them what overflows there.
    typed = _fed(round_nodes(typed) if provider == "cpu" else typed, feeds)
    for names in _batches(reference, list(makers), feeds):
        with _quiet():
            results = Comparator.run(
                [_runner(reference, names, "cpu"), _runner(typed, names, provider)],
                data_loader=[feeds],
            )
            Comparator.compare_accuracy(results, compare_func=errors)
    return errors.layers


class _Errors:
    """A comparison for Polygraphy that keeps its figures.

    Args:
        makers: the node of each tensor, in the order they are computed.
    """

    def __init__(self, makers: Mapping[str, onnx.NodeProto]) -> None:
        self._makers = makers
        self.layers: list[Layer] = []

    def __call__(
        self, want: Mapping[str, Array], got: Mapping[str, Array]
    ) -> "OrderedDict[str, bool]":
        for name, node in self._makers.items():
            if name in want and np.asarray(want[name]).dtype.kind == "f":
                self.layers.append(_layer(node, name, want[name], got[name]))
        return OrderedDict((name, True) for name in want)


def _layer(node: onnx.NodeProto, name: str, want: Array, got: Array) -> Layer:
    exact, here = np.asarray(want, np.float64), np.asarray(got, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        error = relative_l2(here, exact)
    return Layer(
        node=node.name or name,
        op=node.op_type,
        tensor=name,
        relative_l2=error,
        largest=float(np.abs(exact).max(initial=0.0)),
    )


def _runner(model: onnx.ModelProto, outputs: Sequence[str], provider: str) -> Any:
    marked = ModifyOutputs(model, outputs=list(outputs), copy=True)
    session = SessionFromOnnx(
        BytesFromOnnx(marked),
        providers=[provider],
        graph_optimization_level=onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    )
    return OnnxrtRunner(session)


def _batches(model: onnx.ModelProto, names: list[str], feeds: _Feeds) -> Iterator[list[str]]:
    """Tensors to mark at a time, so that what is given out stays within bounds."""
    sizes = _sizes(model, feeds)
    batch: list[str] = []
    total = 0
    for name in names:
        size = sizes.get(name, _GUESS_BYTES)
        if batch and total + size > _MOST_OUTPUT_BYTES:
            yield batch
            batch, total = [], 0
        batch.append(name)
        total += size
    if batch:
        yield batch


def _sizes(model: onnx.ModelProto, feeds: _Feeds) -> dict[str, int]:
    """Bytes of the tensors whose shape ONNX infers from those of the inputs, as float32."""
    shaped = onnx.ModelProto()
    shaped.CopyFrom(model)
    del shaped.graph.value_info[:]
    for value in shaped.graph.input:
        if value.name in feeds:
            for axis, size in zip(
                value.type.tensor_type.shape.dim, feeds[value.name].shape, strict=True
            ):
                axis.dim_value = size
    try:
        inferred = onnx.shape_inference.infer_shapes(shaped)
    except Exception:  # ONNX raises its own types; sizes are then guessed
        return {}
    return {
        value.name: 4 * math.prod(axis.dim_value or 1 for axis in value.type.tensor_type.shape.dim)
        for value in inferred.graph.value_info
    }


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
        self.inputs: dict[str, _Feeds] = {}

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


def _recorded(bundle: Bundle, golden: Golden, backend: str) -> dict[str, _Feeds]:
    """What each graph is fed in the golden run."""
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


def reference_graph(
    typed: onnx.ModelProto, other: onnx.ModelProto | None = None
) -> onnx.ModelProto:
    """What a graph is compared with, in float32: itself or another one."""
    model = onnx.ModelProto()
    model.CopyFrom(typed if other is None else other)
    widen(model.graph)
    return model


def _fed(model: onnx.ModelProto, feeds: _Feeds) -> onnx.ModelProto:
    """A copy of a model that takes ``feeds`` of the types they have."""
    fed = onnx.ModelProto()
    fed.CopyFrom(model)
    kinds = {
        name: onnx.helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feeds.items()
    }
    take_inputs(fed, kinds)
    return fed


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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Polygraphy logs to standard output, which is not its own here; ONNX Runtime warns."""
    onnxruntime.set_default_logger_severity(_ERRORS_ALONE)
    try:
        with (
            G_LOGGER.verbosity(G_LOGGER.CRITICAL),
            contextlib.redirect_stdout(io.StringIO()),
            np.errstate(all="ignore"),  # Polygraphy's statistics of what is not finite
        ):
            yield
    finally:
        onnxruntime.set_default_logger_severity(_WARNINGS)


# --- The smallest failing part -------------------------------------------------------------------

_REDUCE: Final = "import sys; from polygraphy.tools import main; sys.exit(main())"
_LINES_SHOWN: Final = 8


def minimise_graph(
    name: str,
    typed: onnx.ModelProto,
    feeds: _Feeds,
    tensor: str,
    *,
    bound: float,
    target: Path,
) -> int:
    """Write the smallest part that ends in ``tensor`` and is beyond ``bound``; count its nodes.

    Args:
        name: of the graph, for messages.
        typed: the graph.
        feeds: its inputs.
        tensor: the first one that is beyond the bound.
        bound: largest relative L2, where a part is fed what float32 gives.
        target: the ONNX file to write.

    Raises:
        BackendError: Polygraphy cannot reduce it.
    """
    if importlib.util.find_spec("onnx_graphsurgeon") is None:
        raise BackendError(
            "--minimise needs onnx_graphsurgeon, which is not installed: install "
            "escnet-runtime[layers]"
        )
    with tempfile.TemporaryDirectory(prefix="escnet-layers-") as place, atomic_file(target) as file:
        folder = Path(place)
        ending = modify_outputs(typed, outputs=[tensor], copy=True)
        onnx.save_model(ending, str(folder / "graph.onnx"))
        with _quiet():
            save_json([OrderedDict(feeds)], str(folder / "inputs.json"))
        values: dict[str, Any] = {**feeds, **_all_values(typed, feeds)}
        np.savez(folder / "values.npz", **values)
        check = [sys.executable, "-m", f"{__package__}.layers_check"]
        check += ["polygraphy_debug.onnx", "values.npz", repr(bound)]
        words = ["debug", "reduce", "graph.onnx", "--output", "reduced.onnx", "--mode", "bisect"]
        words += ["--no-reduce-outputs", "--load-inputs", "inputs.json", "--check", *check]
        done = subprocess.run(
            [sys.executable, "-c", _REDUCE, *words],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        reduced = folder / "reduced.onnx"
        if done.returncode or not reduced.is_file():
            tail = "\n".join(done.stdout.splitlines()[-_LINES_SHOWN:])
            raise BackendError(f"Polygraphy cannot reduce graph {name!r}:\n{tail}")
        file.write_bytes(reduced.read_bytes())
        return len(onnx.load_model(str(reduced)).graph.node)


def part_error(part: onnx.ModelProto, values: Mapping[str, npt.NDArray[Any]]) -> float:
    """The largest relative L2 of the outputs of a part of a graph.

    Args:
        part: as it is typed.
        values: what its inputs are in float32, by name.
    """
    feeds = {port.name: _rounded_to(values[port.name], port) for port in part.graph.input}
    outputs = {port.name for port in part.graph.output}
    layers = compare_models(reference_graph(part), part, feeds)
    return max((layer.relative_l2 for layer in layers if layer.tensor in outputs), default=0.0)


def _rounded_to(values: npt.NDArray[Any], port: onnx.ValueInfoProto) -> npt.NDArray[Any]:
    """As a graph of the port's type is fed."""
    kind = port.type.tensor_type.elem_type
    rounded = values.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    return rounded.astype(np.float32) if kind == onnx.TensorProto.BFLOAT16 else rounded


def _all_values(typed: onnx.ModelProto, feeds: _Feeds) -> _Feeds:
    """What every tensor inside the graph is in float32."""
    model = _fed(reference_graph(typed), feeds)
    names = [name for node in typed.graph.node for name in node.output if name]
    values: _Feeds = {}
    for batch in _batches(model, names, feeds):
        with _quiet(), _runner(model, batch, "cpu") as runner:
            values.update({key: np.array(value) for key, value in runner.infer(feeds).items()})
    return values
