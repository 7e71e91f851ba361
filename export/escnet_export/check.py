"""Every exported graph against torch at several numbers of categories.

An exporter can bake a number into a graph without a word; only running the file at other numbers
shows it. Blocks differ in weights alone, so the costly largest number is run once for each kind of
graph and the others are shown to have the same nodes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import torch

from escnet.config import EscNetConfig
from escnet_runtime.backends import GraphFile, create_backend
from escnet_runtime.backends.base import Array
from escnet_runtime.errors import BackendError
from escnet_runtime.manifest import Precision
from escnet_runtime.sketch import relative_l2

from .errors import ExportError
from .export import example_inputs
from .graphs import Graph
from .precision import DTYPES

__all__ = ["CATEGORIES", "STAGE_TOLERANCE", "GraphCheck", "structure_hash", "to_numpy"]

#: One, two (no broadcast hides a mistake), a street scene's, and more than any baked-in example.
CATEGORIES: Final = (1, 2, 19, 300)
#: Largest relative L2 of one graph against float32 torch, fed the same inputs.
STAGE_TOLERANCE: Final = {Precision.FP32: 1e-4, Precision.FP16: 5e-3, Precision.BF16: 5e-2}


class GraphCheck:
    """Compares exported files with the float32 graphs they came from.

    Args:
        config: for making inputs.
        precision: what the files are typed in; decides the tolerance.
        categories: numbers of categories to run; the largest once for each kind of graph.
    """

    def __init__(
        self,
        config: EscNetConfig,
        precision: Precision,
        *,
        categories: Sequence[int] = CATEGORIES,
    ) -> None:
        self._config, self._precision = config, precision
        self._categories = sorted(categories)
        self._kinds: set[str] = set()

    def check(self, reference: Graph, path: Path) -> dict[int, float]:
        """Relative L2 of the file at each number of categories.

        Raises:
            ExportError: one is above the tolerance, or the file fails to run.
        """
        kind = structure_hash(path)
        known = kind in self._kinds
        numbers = (self._categories[:-1] if known else []) or self._categories
        axes = {a for port in reference.inputs for a in port.shape if isinstance(a, str)}
        if axes <= {"b"}:  # no category in it; one and two images say all
            numbers = [n for n in numbers if axes and n <= 2] or numbers[:1]
        self._kinds.add(kind)
        files = {reference.name: GraphFile(path, self._precision)}
        backend = create_backend(files, "onnxruntime")
        tolerance, found = STAGE_TOLERANCE[self._precision], {}
        for number in numbers:
            inputs = example_inputs(reference, self._config, categories=number)
            feeds = {
                port.name: to_numpy(tensor, port.dtype(DTYPES[self._precision]))
                for port, tensor in zip(reference.inputs, inputs, strict=True)
            }
            with torch.inference_mode():
                want = reference.module(*inputs)
            try:
                got = backend.run(reference.name, feeds)
            except BackendError as error:
                raise ExportError(
                    f"graph {reference.name!r} does not run at {number} categories: {error}"
                ) from error
            found[number] = max(
                relative_l2(backend.to_host(got[port.name]), tensor.numpy())
                for port, tensor in zip(reference.outputs, want, strict=True)
            )
            if not found[number] <= tolerance:
                raise ExportError(
                    f"graph {reference.name!r} at {number} categories differs from torch by "
                    f"{found[number]:.1e} (relative L2), expected at most {tolerance:.0e}"
                )
        return found


def to_numpy(tensor: torch.Tensor, dtype: torch.dtype) -> Array:
    """``tensor`` rounded to ``dtype``, as NumPy holds it: bf16 stays float32, already rounded."""
    rounded = tensor.to(dtype)
    array: Array = (rounded.float() if dtype == torch.bfloat16 else rounded).numpy()
    return np.ascontiguousarray(array)


def structure_hash(path: Path) -> str:
    """A hash of a graph without its weights' values."""
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        shape: Mapping[str, object] = {"dims": tuple(tensor.dims), "type": tensor.data_type}
        tensor.Clear()
        tensor.name = str(shape)
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
