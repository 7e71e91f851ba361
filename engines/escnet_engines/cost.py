"""The cost of a build, estimated by a model that is fitted to measured builds and shipped as data.

For each kind of graph (``esc0_sam`` and ``esc3_sam`` are one), with an ONNX file of W bytes and at
most L bytes of results alive at once (:func:`~escnet_engines.survey.live_bytes`):

- engine = W + ``code``: the weights, unchanged, and code for the GPU
- scratch = ``scratch`` + ``scratch_per_live_byte`` · L
- seconds = ``seconds`` + ``seconds_per_byte`` · W, on one core
- host memory = ``host`` + ``host_per_byte`` · W, in addition to the process's own at its start

``escnet-bench builds`` measures, ``python -m escnet_bench.cost_fit`` fits.
"""

import functools
import importlib.resources
import re
from dataclasses import dataclass
from typing import Final

from escnet_runtime.strict_json import parse_object, typed

__all__ = ["COST_FILE", "OTHER", "CostModel", "GraphCost", "KindCost", "cost_model", "graph_kind"]

COST_FILE: Final = "cost.json"
#: Key of the constants for kinds of graphs that were never measured.
OTHER: Final = "other"


@dataclass(frozen=True, kw_only=True, slots=True)
class KindCost:
    """Constants for a kind of graph; see the module's docstring."""

    code: float
    scratch: float
    scratch_per_live_byte: float
    seconds: float
    host: float


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphCost:
    """What one graph is expected to take, in bytes and seconds of one core."""

    engine_bytes: int
    scratch_bytes: int
    seconds: float
    host_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CostModel:
    """The fitted model.

    Attributes:
        library: name and version of the compiler that was measured.
        cpu: the processor that it ran on.
        files: names of the result files.
        builds: number of builds in them.
        worst: quantity → the largest factor, in either direction, between a build and the model.
        process_bytes: memory of the process before it compiles anything.
        kinds: kind of graph → constants; ``OTHER`` for all others.
    """

    library: str
    cpu: str
    files: tuple[str, ...]
    builds: int
    worst: dict[str, float]
    seconds_per_byte: float
    host_per_byte: float
    process_bytes: float
    kinds: dict[str, KindCost]

    def graph(self, name: str, *, onnx_bytes: int, live_bytes: int) -> GraphCost:
        """The expected cost of the graph called ``name``."""
        kind = self.kinds.get(graph_kind(name), self.kinds[OTHER])
        return GraphCost(
            engine_bytes=round(onnx_bytes + kind.code),
            scratch_bytes=round(kind.scratch + kind.scratch_per_live_byte * live_bytes),
            seconds=kind.seconds + self.seconds_per_byte * onnx_bytes,
            host_bytes=round(kind.host + self.host_per_byte * onnx_bytes),
        )


def graph_kind(name: str) -> str:
    """A graph's name without its block's number: blocks differ only in their weights."""
    return re.sub(r"^esc\d+_", "esc_", name)


@functools.cache
def cost_model() -> CostModel:
    """The model that comes with the package."""
    text = importlib.resources.files(__package__).joinpath(COST_FILE).read_text(encoding="utf-8")
    return typed(parse_object(text, COST_FILE), CostModel)
