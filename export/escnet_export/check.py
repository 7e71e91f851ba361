"""Every exported graph against torch at several numbers of categories.

An exporter can silently bake the number of categories into a graph; only running the file at other
numbers shows it. The largest number is costly and is run once for each kind of graph: blocks differ
only in their weights, which comparing the nodes of their graphs proves.
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

#: One, two (so that broadcasting hides no mistake), as many as Cityscapes has, and far more than
#: the traced example has.
CATEGORIES: Final = (1, 2, 19, 300)
#: Largest relative L2 between a graph and float32 torch on the same inputs.
STAGE_TOLERANCE: Final = {
    Precision.FP32: 1e-4,
    Precision.FP16: 5e-3,
    Precision.BF16: 5e-2,
    Precision.INT8: 0.15,
    Precision.FP8: 0.15,
}
_NARROW: Final = {"float16": Precision.FP16, "bfloat16": Precision.BF16}


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

    def check(
        self,
        reference: Graph,
        path: Path,
        typed: Graph | None = None,
        *,
        tolerance: float | None = None,
    ) -> dict[int, float]:
        """Relative L2 of the file at each number of categories.

        An error above the tolerance is the file's fault, unless torch itself, computing in the
        types of ``typed``, is as far from float32. Then the precision is too low for these weights,
        which the accuracy gate judges on images.

        Args:
            reference: the float32 graph.
            path: the file it was exported to.
            typed: the graph with the types of the file. By default the file has the types of the
                precision, and every error above the tolerance is raised.
            tolerance: largest relative L2; by default that of the precision, or of the ports if
                they are narrower.

        Raises:
            ExportError: an error is above the tolerance, or the file fails to run.
        """
        ports = (typed or reference).inputs
        kinds = {port.kind for port in (*ports, *(typed or reference).outputs)}
        kept = {_NARROW[kind] for kind in kinds if kind in _NARROW}
        kind = structure_hash(path)
        known = kind in self._kinds
        numbers = (self._categories[:-1] if known else []) or self._categories
        axes = {a for port in reference.inputs for a in port.shape if isinstance(a, str)}
        if axes <= {"b"}:  # no axis of categories: one and two images are enough
            numbers = [n for n in numbers if axes and n <= 2] or numbers[:1]
        self._kinds.add(kind)
        emulated = Precision.BF16 if Precision.BF16 in kept else self._precision
        files = {reference.name: GraphFile(path, emulated)}
        backend = create_backend(files, "onnxruntime")
        found = {}
        if tolerance is None:
            tolerance = max(STAGE_TOLERANCE[kind] for kind in (self._precision, *kept))
        for number in numbers:
            inputs = example_inputs(reference, self._config, categories=number)
            feeds = {
                port.name: to_numpy(tensor, port.dtype(DTYPES[self._precision]))
                for port, tensor in zip(ports, inputs, strict=True)
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
            if found[number] <= tolerance:
                continue
            if typed is None or not _too_low(typed, inputs, want, tolerance):
                raise ExportError(
                    f"graph {reference.name!r} at {number} categories differs from torch by "
                    f"{found[number]:.1e} (relative L2), expected at most {tolerance:.0e}"
                )
        return found


def _too_low(
    typed: Graph,
    inputs: Sequence[torch.Tensor],
    want: Sequence[torch.Tensor],
    tolerance: float,
) -> bool:
    """Whether torch, computing in the types of ``typed``, is far from float32 as well."""
    narrow = [port for port in (*typed.inputs, *typed.outputs) if port.kind in _NARROW]
    weights = {weight.dtype for weight in typed.module.parameters()}
    if weights == {torch.float32} and not narrow:
        return False  # all of it is float32: any difference is the file's fault
    cast = [
        tensor.to(port.dtype(torch.float32))
        for port, tensor in zip(typed.inputs, inputs, strict=True)
    ]
    with torch.inference_mode():
        got = typed.module(*cast)
    errors = (
        relative_l2(one.float().numpy(), other.numpy())
        for one, other in zip(got, want, strict=True)
    )
    return not max(errors) <= tolerance / 2


def to_numpy(tensor: torch.Tensor, dtype: torch.dtype) -> Array:
    """``tensor`` rounded to ``dtype``, as NumPy array; bf16, which NumPy lacks, as float32."""
    rounded = tensor.to(dtype)
    array: Array = (rounded.float() if dtype == torch.bfloat16 else rounded).numpy()
    return np.ascontiguousarray(array)


def structure_hash(path: Path) -> str:
    """A hash of a graph that ignores the values of its weights."""
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        shape: Mapping[str, object] = {"dims": tuple(tensor.dims), "type": tensor.data_type}
        tensor.Clear()
        tensor.name = str(shape)
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
