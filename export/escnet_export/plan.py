"""The precision of each block of a model: the plan by which a bundle is exported.

A block is a graph (``esc1_sam``) or, inside the image encoder, its stem, one of its transformer
blocks, or its heads (``image_encoder.block3``).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from escnet.config import EscNetConfig
from escnet_runtime.manifest import Precision

from .graphs import Graph

__all__ = [
    "ENCODER",
    "QUANTISED",
    "PrecisionPlan",
    "encoder_parts",
    "graph_of",
    "part_of",
    "wire_types",
]

#: The only graph that is divided into parts.
ENCODER: Final = "image_encoder"
#: Precisions that are expressed by Q/DQ pairs inside a graph of another type.
QUANTISED: Final = frozenset([Precision.INT8, Precision.FP8])
#: Prompts are chosen by this graph's scores, and it is too small to gain from fewer bits.
_NEVER_QUANTISED: Final = frozenset(["correlation"])
_BLOCK: Final = re.compile(r"visual\.transformer\.resblocks\.(\d+)\.")
_TOWER: Final = re.compile(
    r"(^|\.)clip\.visual\.(conv1|class_embedding|positional_embedding|ln_pre)\b"
)


def graph_of(block: str) -> str:
    """The graph that a block is or belongs to."""
    return block.split(".", maxsplit=1)[0]


def encoder_parts(config: EscNetConfig) -> tuple[str, ...]:
    """The parts of the image encoder in the order they run."""
    blocks = (f"{ENCODER}.block{index}" for index in range(config.clip.vision_layers))
    return (f"{ENCODER}.stem", *blocks, f"{ENCODER}.heads")


def part_of(weight: str) -> str:
    """The part of the image encoder that the weight of this name belongs to."""
    if found := _BLOCK.search(weight):
        return f"{ENCODER}.block{found[1]}"
    return f"{ENCODER}.stem" if _TOWER.search(weight) else f"{ENCODER}.heads"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionPlan:
    """The precision of each block.

    Attributes:
        base: precision of every block that the others do not cover.
        image_encoder: precision of the image encoder, if it differs.
        rest: with int8 and fp8, the type of everything that is not quantised: fp16 or fp32.
        raised: blocks that the accuracy gate keeps at a higher precision, with that precision.
    """

    base: Precision
    image_encoder: Precision | None = None
    rest: Precision = Precision.FP16
    raised: Mapping[str, Precision] = field(default_factory=dict)

    def precision(self, block: str) -> Precision:
        """The precision of a graph, or of a part of the image encoder."""
        if block in self.raised:
            return self.raised[block]
        graph = graph_of(block)
        if graph != block:
            return self.precision(graph)
        if graph == ENCODER and self.image_encoder is not None:
            return self.image_encoder
        return self.arithmetic_of(self.base) if graph in _NEVER_QUANTISED else self.base

    def arithmetic_of(self, precision: Precision) -> Precision:
        """fp32, fp16 or bf16: the type of what is not quantised at ``precision``."""
        return self.rest if precision in QUANTISED else precision

    def arithmetic(self, block: str) -> Precision:
        """fp32, fp16 or bf16: the type of a block's weights before they are quantised."""
        return self.arithmetic_of(self.precision(block))

    def higher(self, block: str) -> Precision | None:
        """The next precision above that of ``block``; None for fp32."""
        match self.precision(block):
            case Precision.FP32:
                return None
            case Precision.INT8 | Precision.FP8:
                return self.rest
        return Precision.FP32

    def with_raised(self, block: str, precision: Precision | None = None) -> "PrecisionPlan":
        """This plan with one block raised to ``precision``, by default by one step.

        Raising a whole graph replaces entries of its parts, except those that are higher still.
        """
        target = precision or self.higher(block) or Precision.FP32
        kept = {
            name: value
            for name, value in self.raised.items()
            if graph_of(name) != block or (value is Precision.FP32 and target is not Precision.FP32)
        }
        return replace(self, raised={**kept, block: target})

    def without(self, block: str) -> "PrecisionPlan":
        """This plan with one block at the precision it had before it was raised."""
        kept = {name: value for name, value in self.raised.items() if name != block}
        return replace(self, raised=kept)

    def parts(self, graph: str) -> dict[str, Precision]:
        """Parts of ``graph`` that are raised."""
        return {
            name: value
            for name, value in self.raised.items()
            if name != graph and graph_of(name) == graph
        }


def wire_types(graphs: Sequence[Graph], plan: PrecisionPlan) -> dict[tuple[str, str], Precision]:
    """The types of tensors that pass from graph to graph, by graph and port: fp32, fp16 or bf16.

    All graphs that write or read a tensor have the same type for it: if they compute in different
    ones, the narrower, so that a raised block costs no memory between graphs. fp16 and bf16 meet in
    fp32, because neither can represent all numbers of the other.

    Args:
        graphs: in the order they run, with ports of the kind "graph".
        plan: what each computes in.
    """
    current: dict[str, list[tuple[str, str]]] = {}
    wires: list[list[tuple[str, str]]] = []
    for graph in graphs:
        for port in graph.inputs:
            if port.kind == "graph":
                current[port.name].append((graph.name, port.name))
        for port in graph.outputs:
            if port.kind == "graph":
                wires.append([(graph.name, port.name)])
                current[port.name.removesuffix("_out")] = wires[-1]
    return {
        end: _shared({plan.arithmetic(_at_the_port(graph)) for graph, _ in wire})
        for wire in wires
        for end in wire
    }


def _at_the_port(graph: str) -> str:
    """The block whose type is that of a graph's ports."""
    return f"{ENCODER}.heads" if graph == ENCODER else graph


def _shared(types: set[Precision]) -> Precision:
    narrow = types - {Precision.FP32}
    return narrow.pop() if len(narrow) == 1 else Precision.FP32
