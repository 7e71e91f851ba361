"""The smallest part of a graph that is beyond a bound by itself, cut out by ``debug reduce``."""

import importlib.util
import subprocess
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from polygraphy.backend.onnx import modify_outputs
from polygraphy.json import save_json

from .atomic import atomic_file
from .errors import BackendError
from .layers_compare import Feeds, all_values, compare_models, quiet_libraries, reference_graph

__all__ = ["minimise_graph", "part_error"]

_REDUCE: Final = "import sys; from polygraphy.tools import main; sys.exit(main())"
_LINES_SHOWN: Final = 8


def minimise_graph(
    name: str,
    typed: onnx.ModelProto,
    feeds: Feeds,
    tensor: str,
    *,
    bound: float,
    target: Path,
) -> int:
    """Write the smallest part that ends in ``tensor`` and is beyond ``bound``; count its nodes.

    Args:
        name: of the graph, for messages.
        typed: the graph.
        feeds: its inputs.
        tensor: the first one that is beyond the bound.
        bound: largest relative L2, where a part is fed what float32 gives.
        target: the ONNX file to write.

    Raises:
        BackendError: Polygraphy cannot reduce it.
    """
    if importlib.util.find_spec("onnx_graphsurgeon") is None:
        raise BackendError(
            "--minimise needs onnx_graphsurgeon, which is not installed: install "
            "escnet-runtime[layers]"
        )
    with tempfile.TemporaryDirectory(prefix="escnet-layers-") as place, atomic_file(target) as file:
        folder = Path(place)
        ending = modify_outputs(typed, outputs=[tensor], copy=True)
        onnx.save_model(ending, str(folder / "graph.onnx"))
        with quiet_libraries():
            save_json([OrderedDict(feeds)], str(folder / "inputs.json"))
        values: dict[str, Any] = {**feeds, **all_values(typed, feeds)}
        np.savez(folder / "values.npz", **values)
        check = [sys.executable, "-m", f"{__package__}.layers_check"]
        check += ["polygraphy_debug.onnx", "values.npz", repr(bound)]
        words = ["debug", "reduce", "graph.onnx", "--output", "reduced.onnx", "--mode", "bisect"]
        words += ["--no-reduce-outputs", "--load-inputs", "inputs.json", "--check", *check]
        done = subprocess.run(
            [sys.executable, "-c", _REDUCE, *words],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        reduced = folder / "reduced.onnx"
        if done.returncode or not reduced.is_file():
            tail = "\n".join(done.stdout.splitlines()[-_LINES_SHOWN:])
            raise BackendError(f"Polygraphy cannot reduce graph {name!r}:\n{tail}")
        file.write_bytes(reduced.read_bytes())
        return len(onnx.load_model(str(reduced)).graph.node)


def part_error(part: onnx.ModelProto, values: Mapping[str, npt.NDArray[Any]]) -> float:
    """The largest relative L2 of the outputs of a part of a graph.

    Args:
        part: as it is typed.
        values: what its inputs are in float32, by name.
    """
    feeds = {port.name: _rounded_to(values[port.name], port) for port in part.graph.input}
    outputs = {port.name for port in part.graph.output}
    layers = compare_models(reference_graph(part), part, feeds)
    return max((layer.relative_l2 for layer in layers if layer.tensor in outputs), default=0.0)


def _rounded_to(values: npt.NDArray[Any], port: onnx.ValueInfoProto) -> npt.NDArray[Any]:
    """Values rounded to the port's type, as the graph is fed."""
    kind = port.type.tensor_type.elem_type
    rounded = values.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    return rounded.astype(np.float32) if kind == onnx.TensorProto.BFLOAT16 else rounded
