"""What a build will take, before it is started: memory on the device by chunk, memory here, time.

Each graph is parsed, which takes about a second, and nothing is compiled. The estimate from that is
made by :mod:`escnet_engines.cost`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from escnet_runtime.bundle import Bundle
from escnet_runtime.engine_record import Profile
from escnet_runtime.engines import fingerprint_here
from escnet_runtime.manifest import Stage
from escnet_runtime.vocabulary import MAX_CATEGORIES

from .cost import CostModel, GraphCost, cost_model, graph_kind
from .errors import BuildError
from .graphs import checked_graph
from .library import Job, Library
from .profiles import chunk_buckets, stage_profiles
from .targets import choose_targets, require_arithmetic

__all__ = ["BuildPlan", "ChunkPlan", "GraphPlan", "boundary_bytes", "plan_build"]

_ITEM_BYTES: Final = {
    "float32": 4,
    "int32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int8": 1,
    "uint8": 1,
}
#: Multiples of the bundle's own chunk that are compared if no chunk is asked for.
_COMPARED: Final = (1, 2, 4, 8)


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphPlan:
    """What one graph takes at the largest chunk.

    Attributes:
        graph: its name.
        engine_bytes: weights and code.
        scratch_bytes: memory that its activations need while it runs.
        boundary_bytes: its inputs and outputs.
        seconds: time to compile it on one core like the measured one; None if this compiler was
            not measured.
        host_bytes: memory that compiling it takes on this machine.
    """

    graph: str
    engine_bytes: int
    scratch_bytes: int
    boundary_bytes: int
    seconds: float | None
    host_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkPlan:
    """Memory on the device if this is the largest chunk.

    Attributes:
        chunk: categories at a time.
        scratch_bytes: scratch memory, which all graphs share: that of the graph that needs most.
        boundary_bytes: inputs and outputs of the graph for which they are largest.
        device_bytes: both of these and all engines.
    """

    chunk: int
    scratch_bytes: int
    boundary_bytes: int
    device_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildPlan:
    """What a build will take.

    Attributes:
        targets: GPUs to compile for.
        graphs: in the order they are compiled.
        chunks: those asked for, or else the bundle's own and multiples of it.
        engine_bytes: size of all engines.
        host_bytes: peak memory of the compiling process.
        seconds: time to compile all graphs; None if this compiler was not measured.
        model: the cost model behind the numbers.
    """

    targets: tuple[str, ...]
    graphs: tuple[GraphPlan, ...]
    chunks: tuple[ChunkPlan, ...]
    engine_bytes: int
    host_bytes: int
    seconds: float | None
    model: CostModel


def plan_build(
    bundle: Bundle,
    library: Library,
    *,
    target: str = "auto",
    chunks: Sequence[int] | None = None,
    step: Callable[[str], object] = lambda _: None,
) -> BuildPlan:
    """Estimate what :func:`~escnet_engines.build_engines` takes with the same arguments.

    Args:
        bundle: opened.
        library: the compiler; it parses the graphs.
        target: as for the build.
        chunks: as for the build.
        step: called with the name of each graph when it is done.

    Raises:
        InputError: an option cannot be used, or the bundle is damaged.
        BackendError: there is no GPU, and one is needed.
        BuildError: the compiler cannot read a graph; names its node.
    """
    here = fingerprint_here(library.backend, library.version)
    targets = choose_targets(library, target, here.targets)
    require_arithmetic(targets, (stage.precision for stage in bundle.manifest.stages.values()))
    asked = chunk_buckets(bundle.manifest, chunks)
    shown = asked
    if chunks is None:
        most = [times * asked[0] for times in _COMPARED if times * asked[0] <= MAX_CATEGORIES]
        shown = chunk_buckets(bundle.manifest, most)
    model = cost_model()
    measured = model.library.split()[0] == library.backend
    surveys = _Surveys(bundle, library, targets, shown)
    at_chunk: dict[int, list[GraphCost]] = {chunk: [] for chunk in shown}
    graphs = []
    for name, stage in bundle.manifest.stages.items():
        live = surveys.live_bytes(name)
        costs = [model.graph(name, onnx_bytes=stage.bytes, live_bytes=one) for one in live]
        for chunk, cost in zip(shown, costs, strict=True):
            at_chunk[chunk].append(cost)
        cost = costs[shown.index(asked[-1])]
        count = max(len(stage_profiles(name, stage, bundle.manifest, asked)), 1)
        graphs.append(
            GraphPlan(
                graph=name,
                engine_bytes=cost.engine_bytes,
                scratch_bytes=cost.scratch_bytes,
                boundary_bytes=boundary_bytes(stage, surveys.profile(name, asked[-1])),
                seconds=count * cost.seconds if measured else None,
                host_bytes=cost.host_bytes,
            )
        )
        step(name)
    engines = sum(graph.engine_bytes for graph in graphs)
    return BuildPlan(
        targets=targets,
        graphs=tuple(graphs),
        chunks=tuple(_chunk_plan(chunk, at_chunk[chunk], engines, surveys) for chunk in shown),
        engine_bytes=engines,
        host_bytes=round(model.process_bytes) + max(graph.host_bytes for graph in graphs),
        seconds=sum(graph.seconds or 0.0 for graph in graphs) if measured else None,
        model=model,
    )


def boundary_bytes(stage: Stage, profile: Profile | None) -> int:
    """Bytes of a graph's inputs and outputs at the largest sizes of ``profile``."""
    total = 0
    for spec in (*stage.inputs, *stage.outputs):
        sizes = [
            profile[axis].most if profile and isinstance(axis, str) else axis for axis in spec.shape
        ]
        total += (
            math.prod(size for size in sizes if isinstance(size, int)) * _ITEM_BYTES[spec.dtype]
        )
    return total


class _Surveys:
    """Bytes alive at once in each graph, by chunk; one graph of each kind is surveyed."""

    def __init__(
        self, bundle: Bundle, library: Library, targets: tuple[str, ...], chunks: tuple[int, ...]
    ) -> None:
        self.bundle, self.library = bundle, library
        self.targets, self.chunks = targets, chunks
        self._known: dict[object, tuple[int, ...]] = {}

    def profile(self, name: str, chunk: int) -> Profile | None:
        stage = self.bundle.manifest.stages[name]
        found = stage_profiles(name, stage, self.bundle.manifest, [chunk])
        return found[0] if found else None

    def live_bytes(self, name: str) -> tuple[int, ...]:
        """The bytes for each chunk."""
        stage = self.bundle.manifest.stages[name]
        key = (graph_kind(name), stage.bytes, stage.inputs, stage.outputs)
        if key not in self._known:
            self._known[key] = self._survey(name, stage)
        return self._known[key]

    def _survey(self, name: str, stage: Stage) -> tuple[int, ...]:
        profiles = stage_profiles(name, stage, self.bundle.manifest, self.chunks)  # each once
        job = Job(
            onnx=checked_graph(self.bundle, name),
            inputs=stage.inputs,
            profiles=profiles,
            targets=self.targets,
        )
        try:
            live = self.library.survey(job)
        except BuildError as error:
            raise BuildError(
                f"graph {name!r} ({stage.file}) cannot be read by {self.library.backend} "
                f"{self.library.version}: {error}"
            ) from error
        if not profiles:
            return live * len(self.chunks)
        wanted = (self.profile(name, chunk) for chunk in self.chunks)
        return tuple(live[profiles.index(profile)] for profile in wanted if profile is not None)


def _chunk_plan(
    chunk: int, costs: Sequence[GraphCost], engines: int, surveys: _Surveys
) -> ChunkPlan:
    scratch = max(cost.scratch_bytes for cost in costs)
    boundary = max(
        boundary_bytes(stage, surveys.profile(name, chunk))
        for name, stage in surveys.bundle.manifest.stages.items()
    )
    return ChunkPlan(
        chunk=chunk,
        scratch_bytes=scratch,
        boundary_bytes=boundary,
        device_bytes=engines + scratch + boundary,
    )
