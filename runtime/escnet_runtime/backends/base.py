"""What the pipeline asks of a backend.

A tensor is whatever the backend makes of one: the pipeline hands outputs of one graph to the next
without looking inside, and asks for a NumPy array only where it computes itself. It has a shape and
can be cut along its first axis.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ..manifest import Precision, Stage
from ..unchanged import FileState, file_state, reading

__all__ = ["Array", "Backend", "GraphFile", "Tensor"]

Tensor: TypeAlias = Any
Array: TypeAlias = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class GraphFile:
    """Where a graph's ONNX lies and what precision it is typed in.

    ``stage`` is what the bundle says of its inputs and outputs, which the file must have; None if
    nothing is known of them. ``state`` is that of the file when the bundle was opened.
    """

    path: Path
    precision: Precision
    stage: Stage | None = None
    state: FileState | None = None

    @classmethod
    def of(cls, path: Path, stage: Stage) -> "GraphFile":
        """The file of a stage of a bundle.

        A stage that computes in float32 among bf16 ones takes and gives bf16: what has to know how
        to handle bf16 has to know it of this file too.
        """
        types = {port.dtype for port in (*stage.inputs, *stage.outputs)}
        precision = Precision.BF16 if "bfloat16" in types else stage.precision
        return cls(path, precision, stage, file_state(path))

    def reading(self) -> AbstractContextManager[Path]:
        """The path, for a block that reads it.

        Raises:
            BundleIntegrityError: when the block ends, if it is no more the file of that stage.
        """
        if self.stage is None:
            return nullcontext(self.path)
        return reading(self.path, self.stage.sha256, self.state)


class Backend(Protocol):
    """Runs graphs by name."""

    @property
    def name(self) -> str:
        """The name it is chosen by, for instance ``"onnxruntime"``."""

    @property
    def description(self) -> str:
        """One line for people: library, version, device."""

    def run(self, graph: str, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        """Run ``graph``; NumPy arrays and tensors of this backend may be mixed as inputs.

        Raises:
            BackendError: the graph failed; the message names it.
        """

    def to_host(self, tensor: Tensor) -> Array:
        """The tensor's values as a NumPy array."""

    def release(self, graph: str) -> None:
        """Free what ``graph`` holds; a later run loads it again."""

    def close(self) -> None:
        """Free everything. Running afterwards is an error."""
