"""What a network needs while it runs, read off its parsed form: nothing is compiled."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from escnet_runtime.engine_record import Profile
from escnet_runtime.manifest import TensorSpec

from .errors import BuildError

__all__ = ["live_bytes", "set_sizes"]


def set_sizes(network: Any, inputs: Sequence[TensorSpec], profile: Profile | None) -> None:
    """Give the inputs of ``network`` the largest sizes of ``profile``; the library infers others.

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
    """Most bytes of results that are alive at once, layer by layer, as the graph is written.

    A compiler merges layers and keeps less, and needs scratch within layers and keeps more: this
    is what its need is in proportion to.

    Args:
        network: with the sizes of :func:`set_sizes`.
        constant: the type of layers that hold weights.

    Raises:
        BuildError: the sizes do not fit together; names the node.
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
            except RuntimeError as error:  # how the library says that sizes contradict each other
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
    """In bytes; a shape that only the data decides counts as nothing."""
    dimensions = list(tensor.shape)
    if any(size < 0 for size in dimensions):
        return 0.0
    return float(math.prod(dimensions) * tensor.dtype.itemsize)
