"""Graphs on a device for a pipeline that keeps its tensors on the host.

The pipeline on the CPU runs over it where every stage is looked at (``escnet-verify``, observers),
and for texts. Each graph is one upload, one run, one download.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Final

import numpy as np
import numpy.typing as npt

from ..backends.base import Array, Tensor
from ..device.base import Device
from ..errors import BackendError, OutOfDeviceMemory
from ..manifest import DType, Manifest, TensorSpec
from .backend import Binding, DeviceBackend
from .layout import aligned

__all__ = ["BridgedGraphs"]

_LOG: Final = logging.getLogger("escnet_runtime")

#: bfloat16 lies in NumPy arrays as the upper half of a float32.
_NUMPY: Final[dict[DType, type[np.generic]]] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "int32": np.int32,
    "int8": np.int8,
    "uint8": np.uint8,
}


class BridgedGraphs:
    """A backend of the CPU's pipeline; see :class:`escnet_runtime.backends.base.Backend`.

    Args:
        device: where the graphs run; belongs to the caller, as the next one.
        backend: runs them.
        manifest: of the bundle.
        make_room: frees what others have on the device and can make again; called where a graph
            runs out of memory, before it is tried once more.
    """

    def __init__(
        self,
        device: Device,
        backend: DeviceBackend,
        manifest: Manifest,
        *,
        make_room: Callable[[], None],
    ) -> None:
        self._device, self._backend, self._stages = device, backend, manifest.stages
        self._make_room = make_room

    @property
    def name(self) -> str:
        """See :class:`Backend`."""
        return self._backend.name

    @property
    def description(self) -> str:
        """Library, version and device."""
        return f"{self._backend.description}, {self._device.name}"

    def run(self, graph: str, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        """See :class:`Backend`. Tensors are NumPy arrays.

        Raises:
            OutOfDeviceMemory: it does not fit, with nothing else there either.
        """
        if graph not in self._stages:
            raise BackendError(f"there is no graph {graph!r}; there are {', '.join(self._stages)}")
        stage = self._stages[graph]
        given = {
            spec.name: np.ascontiguousarray(inputs[spec.name], _NUMPY[spec.dtype])
            for spec in stage.inputs
        }
        axes = {
            axis: size
            for spec in stage.inputs
            for axis, size in zip(spec.shape, given[spec.name].shape, strict=True)
            if isinstance(axis, str)
        }
        taken = {
            spec.name: np.empty(
                [axes[axis] if isinstance(axis, str) else axis for axis in spec.shape],
                _NUMPY[spec.dtype],
            )
            for spec in stage.outputs
        }
        try:
            self._run(graph, stage.inputs, given, stage.outputs, taken)
        except OutOfDeviceMemory as error:
            error.let_go()
            _LOG.debug("graph %r alone: %s; tried again with all else freed", graph, error)
        else:
            return dict(taken)
        self._make_room()
        self._run(graph, stage.inputs, given, stage.outputs, taken)
        return dict(taken)

    def to_host(self, tensor: Tensor) -> Array:
        """See :class:`Backend`."""
        array: npt.NDArray[np.generic] = tensor
        if array.dtype == np.uint16:
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array

    def release(self, graph: str) -> None:
        """See :class:`Backend`."""
        self._backend.release(graph)

    def close(self) -> None:
        """Nothing of its own."""

    def _run(
        self,
        graph: str,
        inputs: tuple[TensorSpec, ...],
        given: Mapping[str, Array],
        outputs: tuple[TensorSpec, ...],
        taken: Mapping[str, Array],
    ) -> None:
        """Fill ``taken``."""
        device, stream = self._device, self._backend.stream()
        arrays = [*given.values(), *taken.values()]
        offsets = np.cumsum([0, *(aligned(array.nbytes) for array in arrays)]).tolist()
        sent = offsets[len(given)]
        self._backend.load(graph)
        scratch = self._backend.scratch_bytes()
        with ExitStack() as owned:
            memory = owned.enter_context(device.allocate(offsets[-1] + scratch))
            host = owned.enter_context(device.allocate_host(offsets[-1]))
            bindings = {
                spec.name: Binding(memory.address + offset, spec.dtype, array.shape)
                for spec, array, offset in zip(
                    (*inputs, *outputs), arrays, offsets[:-1], strict=True
                )
            }
            for array, offset in zip(given.values(), offsets, strict=False):
                host.array[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)
            run = self._backend.bind(
                graph,
                {name: bindings[name] for name in given},
                {name: bindings[name] for name in taken},
                scratch=memory.address + offsets[-1],
            )
            try:
                device.upload(memory.address, host, sent, stream)
                with self._backend.tidying():
                    run()
                device.download(host, memory.address, offsets[-1], stream)
            finally:
                stream.synchronize()  # nothing may use the memory once it is freed
            for array, offset in zip(taken.values(), offsets[len(given) :], strict=False):
                content = host.array[offset : offset + array.nbytes]
                array.reshape(-1).view(np.uint8)[:] = content
