"""The model itself as a backend: the runtime's pipeline with torch in float32 as its graphs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from escnet.model import EscNet
from escnet_runtime.backends.base import Array, Tensor

from .graphs import model_graphs
from .tensors import StoredTensors, TensorStore

__all__ = ["Call", "RecordingBackend", "StoredCall", "TorchBackend"]


class TorchBackend:
    """Runs the graphs of ``model`` in torch, on the model's device.

    Typed graphs are compared with the runtime's pipeline over this backend; a test shows that it
    gives the same as ``EscNet.forward``.
    """

    name = "torch"

    def __init__(self, model: EscNet) -> None:
        self._graphs = {graph.name: graph for graph in model_graphs(model)}
        self._device = next(model.parameters()).device

    @property
    def description(self) -> str:
        """Library, version and device."""
        return f"torch {torch.__version__} on {self._device}"

    def run(self, graph: str, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        """See :class:`escnet_runtime.backends.base.Backend`."""
        spec = self._graphs[graph]
        args = [self._tensor(inputs[port.name]) for port in spec.inputs]
        with torch.inference_mode():
            results = spec.module(*args)
        names = [port.name for port in spec.outputs]
        return dict(zip(names, results, strict=True))

    def to_host(self, tensor: Tensor) -> Array:
        """See :class:`escnet_runtime.backends.base.Backend`."""
        array: Array = tensor.cpu().numpy() if isinstance(tensor, torch.Tensor) else tensor
        return array

    def release(self, graph: str) -> None:
        """Nothing to free: the weights are the model's."""

    def close(self) -> None:
        """Nothing to free."""

    def _tensor(self, value: Any) -> torch.Tensor:
        # A copy: a vocabulary's arrays are read-only, and the pipeline changes its own in place.
        made = torch.tensor(value) if isinstance(value, np.ndarray) else value
        return made.to(self._device)


@dataclass(frozen=True, slots=True)
class Call:
    """One run of a graph: inputs and outputs as NumPy arrays, which may be on disk until read."""

    graph: str
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class StoredCall(Call):
    """A run whose arrays are in a :class:`TensorStore`."""

    inputs: StoredTensors
    outputs: StoredTensors


class RecordingBackend(TorchBackend):
    """A reference that records every call, so that each typed graph can be given its inputs."""

    def __init__(self, model: EscNet, store: TensorStore) -> None:
        super().__init__(model)
        self._store = store
        self.calls: list[StoredCall] = []

    def run(self, graph: str, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        """As the base class, and record the call."""
        outputs = super().run(graph, inputs)
        self.calls.append(StoredCall(graph, self._kept(inputs), self._kept(outputs)))
        return outputs

    def _kept(self, tensors: Mapping[str, Tensor | Array]) -> StoredTensors:
        return self._store.put({name: self.to_host(value) for name, value in tensors.items()})
