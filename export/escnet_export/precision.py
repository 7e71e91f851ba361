"""Casts a model to a precision: the graphs exported from cast modules are typed.

Casting and exporting always worked where rewriting an exported float32 graph did not
(onnxconverter-common and ModelOpt's AutoCast both broke on one of these graphs).
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

import torch

from escnet.model import EscNet
from escnet_runtime.manifest import Precision

from .graphs import Graph, Kind, Port, model_graphs
from .plan import PrecisionPlan, part_of, wire_types

__all__ = ["DTYPES", "cast_model", "typed_graphs"]

DTYPES: Final = {
    Precision.FP32: torch.float32,
    Precision.FP16: torch.float16,
    Precision.BF16: torch.bfloat16,
}

_KINDS: Final[dict[Precision, Kind]] = {
    Precision.FP32: "float32",
    Precision.FP16: "float16",
    Precision.BF16: "bfloat16",
}

# Angles of the positional encoding reach tens of radians: too large for narrower types.
_ALWAYS_FP32: Final = "positional_encoding_gaussian_matrix"


def cast_model(
    model: EscNet, precision: Precision, parts: Mapping[str, Precision] | None = None
) -> EscNet:
    """A copy of ``model`` at ``precision``, in evaluation mode and without gradients.

    Every parameter and floating-point buffer is cast, except the frequencies of SAM's positional
    encoding. Sums over categories, scores, norms of embeddings and logits are float32 in the
    model's own code.

    Args:
        model: in float32.
        precision: fp32, fp16 or bf16.
        parts: parts of the image encoder with another precision, see :mod:`escnet_export.plan`.
    """
    cast = copy.deepcopy(model).eval().requires_grad_(False)
    with torch.no_grad():
        for prefix, module in cast.named_modules():
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is None or not tensor.is_floating_point() or name == _ALWAYS_FP32:
                    continue
                own = (parts or {}).get(part_of(f"{prefix}.{name}"), precision)
                tensor.data = tensor.data.to(DTYPES[own])
    return cast


def typed_graphs(
    model: EscNet, plan: PrecisionPlan, only: Iterable[str] | None = None
) -> list[Graph]:
    """The graphs of a float32 model with the types of ``plan``, in the order they run.

    int8 and fp8 do not show here: Q/DQ pairs are put into the exported files later. ``only`` limits
    the result to graphs of these names.
    """
    references = model_graphs(model)
    wires = wire_types(references, plan)
    wanted = {reference.name for reference in references} if only is None else set(only)
    models: dict[tuple[object, ...], list[Graph]] = {}
    typed = []
    for index, reference in enumerate(references):
        name = reference.name
        if name not in wanted:
            continue
        own = plan.arithmetic(name)
        parts = {part: plan.arithmetic(part) for part in plan.parts(name)}
        key = (own, tuple(sorted(parts.items())))
        if key not in models:
            models[key] = model_graphs(cast_model(model, own, parts))
        typed.append(_typed(models[key][index], own, wires, mixed=bool(parts)))
    return typed


def _typed(
    graph: Graph, own: Precision, wires: Mapping[tuple[str, str], Precision], *, mixed: bool
) -> Graph:
    """``graph``, whose module computes in ``own``, with the types of its ports."""

    def ports(listed: tuple[Port, ...]) -> tuple[Port, ...]:
        return tuple(
            replace(port, kind=_KINDS[wires[graph.name, port.name]])
            if port.kind == "graph"
            else port
            for port in listed
        )

    def casts(listed: tuple[Port, ...], inside: bool) -> tuple[torch.dtype | None, ...]:
        return tuple(
            None
            if port.kind != "graph"
            else DTYPES[own if inside else wires[graph.name, port.name]]
            for port in listed
        )

    travelling = [port for port in (*graph.inputs, *graph.outputs) if port.kind == "graph"]
    alike = not mixed and all(wires[graph.name, port.name] is own for port in travelling)
    return replace(
        graph,
        inputs=ports(graph.inputs),
        outputs=ports(graph.outputs),
        module=graph.module
        if alike
        else graph.module.cast(casts(graph.inputs, True), casts(graph.outputs, False)),
    )
