"""Estimates the memory a network needs while it runs from its parsed form, without compiling it."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from escnet_runtime.engine_record import Profile
from escnet_runtime.manifest import TensorSpec

from .errors import BuildError

__all__ = ["live_bytes", "set_sizes"]


def set_sizes(network: Any, inputs: Sequence[TensorSpec], profile: Profile | None) -> None:
    """Set the inputs of ``network`` to the largest sizes of ``profile``; others are inferred.

    Args:
        network: parsed.
        inputs: with their named dynamic axes.
        profile: of these axes; None if there are none.
    """
    shapes = {spec.name: spec.shape for spec in inputs}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        tensor.shape = [
            profile[axis].most if profile and isinstance(axis, str) else axis
            for axis in shapes[tensor.name]
        ]


def live_bytes(network: Any, constant: Any) -> int:
    """Most bytes of results alive at once if the layers run one by one as the graph has them.

    A compiler needs less, because it merges layers, and more, because layers need scratch memory:
    its need is proportional to this number.

    Args:
        network: with sizes set by :func:`set_sizes`.
        constant: the type of layers that hold weights.

    Raises:
        BuildError: the sizes contradict each other; names the node.
    """
    born: list[list[str]] = []
    sizes: dict[str, float] = {}
    last: dict[str, int] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for tensor in _tensors(layer.num_inputs, layer.get_input):
            last[tensor.name] = index
        outputs = [] if layer.type == constant else _tensors(layer.num_outputs, layer.get_output)
        born.append([])
        for tensor in outputs:
            born[-1].append(tensor.name)
            try:
                sizes[tensor.name] = _size(tensor)
            except RuntimeError as error:  # raised by the library if sizes contradict each other
                raise BuildError(
                    f"node {layer.name!r}: at these sizes its result has no shape ({error})"
                ) from error
    return int(_peak(born, sizes, last))


def _peak(born: list[list[str]], sizes: dict[str, float], last: dict[str, int]) -> float:
    dying: dict[int, list[str]] = {}
    for index, names in enumerate(born):
        for name in names:
            dying.setdefault(max(last.get(name, len(born)), index), []).append(name)
    live = peak = 0.0
    for index, names in enumerate(born):
        live += sum(sizes[name] for name in names)
        peak = max(peak, live)
        live -= sum(sizes[name] for name in dying.get(index, ()))
    return peak


def _tensors(count: int, get: Any) -> Iterator[Any]:
    found = (get(index) for index in range(count))
    return (tensor for tensor in found if tensor is not None)  # an optional input that is left out


def _size(tensor: Any) -> float:
    """Size in bytes; 0 if the shape depends on data."""
    dimensions = list(tensor.shape)
    if any(size < 0 for size in dimensions):
        return 0.0
    return float(math.prod(dimensions) * tensor.dtype.itemsize)
