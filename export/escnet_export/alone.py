"""Float32 torch with one graph replaced by its typed file: the effect of that graph alone."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from escnet.model import EscNet
from escnet_runtime.backends import Backend
from escnet_runtime.backends.base import Array, Tensor

from .check import to_numpy
from .parity import Sample
from .reference import TorchBackend
from .tensors import digest
from .workshop import Built

__all__ = ["OneTypedGraph"]


class OneTypedGraph(TorchBackend):
    """Float32 torch for all graphs but one, which runs from its typed file.

    A call whose inputs were recorded in ``samples`` is answered from the record, so the graphs
    before the typed one are not computed again.

    Args:
        model: in float32.
        typed: the backend that runs the file.
        built: the graph and its file.
        samples: images through float32 torch.
    """

    def __init__(
        self, model: EscNet, typed: Backend, built: Built, samples: Sequence[Sample]
    ) -> None:
        super().__init__(model)
        self._typed, self._built = typed, built
        self._kinds = {port.name: port.dtype(torch.float32) for port in built.graph.inputs}
        self._known = {
            _key(call.graph, call.inputs.digests): call
            for sample in samples
            for call in sample.calls
        }

    def run(self, graph: str, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        """As the base class; the typed graph runs from its file, its outputs cast to float32."""
        arrays = {name: self.to_host(value) for name, value in inputs.items()}
        if graph != self._built.graph.name:
            digests = {name: digest(array) for name, array in arrays.items()}
            known = self._known.get(_key(graph, digests))
            if known is None:
                return super().run(graph, inputs)
            return {name: torch.tensor(value) for name, value in known.outputs.items()}
        feeds = {
            name: to_numpy(torch.tensor(value), self._kinds[name]) for name, value in arrays.items()
        }
        outputs = self._typed.run(graph, feeds)
        return {
            name: torch.tensor(np.asarray(self._typed.to_host(value), np.float32))
            for name, value in outputs.items()
        }


def _key(graph: str, digests: Mapping[str, bytes]) -> tuple[str, frozenset[tuple[str, bytes]]]:
    return graph, frozenset(digests.items())
