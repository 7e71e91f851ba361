"""One graph from torch to a checked, typed ONNX file."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir
import onnxscript.optimizer
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor, nn

from escnet.config import EscNetConfig
from escnet_runtime.groups import GROUP, group_weights, whole_groups
from escnet_runtime.manifest import Precision

from .errors import ExportError
from .graphs import Graph, Port
from .precision import DTYPES

__all__ = ["GraphExporter", "example_inputs"]

# 20 is the newest opset that TensorRT 10, 11 and RTX and ONNX Runtime all support fully; bf16
# convolutions need 22.
_OPSET: Final = {Precision.FP32: 20, Precision.FP16: 20, Precision.BF16: 22}
_LARGEST: Final = 65536
# Categories of the traced example: two groups, one not full. torch.export would take an axis of
# size 1, a single group, for a constant.
_EXAMPLE: Final = GROUP + 3


def example_inputs(
    graph: Graph,
    config: EscNetConfig,
    *,
    categories: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[Tensor, ...]:
    """Random inputs for each port, for ``categories`` categories.

    Features have unit norm; points, labels and regions are in the ranges that the prompt generator
    gives; weights are 1/N in groups; all else is normally distributed. There are one or two images
    and texts of nine to eleven tokens, or as long as a shorter context lets them be: every dynamic
    axis varies with the number of categories, so that a size that was baked in shows.
    """
    generator = torch.Generator().manual_seed(seed)
    axes = {"n": categories, "t": categories, "b": min(categories, 2)}
    axes["l"] = min(11, config.clip.context_length) - 2 + categories % 3
    axes["g"] = whole_groups(categories, GROUP) // GROUP
    return tuple(_example(port, config, axes, dtype, generator) for port in graph.inputs)


def _example(
    port: Port,
    config: EscNetConfig,
    axes: dict[str, int],
    dtype: torch.dtype,
    generator: torch.Generator,
) -> Tensor:
    shape = [axes[axis] if isinstance(axis, str) else axis for axis in port.shape]

    def integers(low: int, high: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator, dtype=torch.int32)

    match port.name:
        case "tokens":
            tokens = integers(1, config.clip.vocab_size - 2)
            tokens[:, 0], tokens[:, -1] = config.clip.vocab_size - 2, config.clip.vocab_size - 1
            return tokens
        case "regions":
            return integers(-1, config.ppg.regions)
        case "point_labels":
            labels = 2 * integers(0, 2) - 1
            labels[:, 0] = 1  # the first point, the peak of the map, is always used
            return labels
        case "points":
            return integers(0, config.grid).float()
    return _example_floats(port, shape, axes["n"], generator).to(port.dtype(dtype))


def _example_floats(
    port: Port, shape: list[int], categories: int, generator: torch.Generator
) -> Tensor:
    if port.name == "weight":
        return torch.from_numpy(group_weights(categories, categories, GROUP))
    if port.name in ("probabilities", "kv_mean", "k_mean"):
        return torch.rand(shape, generator=generator)
    values = torch.randn(shape, generator=generator)
    if port.name in ("features", "text"):
        values = torch.nn.functional.normalize(values, dim=1)
    return values


class GraphExporter:
    """Exports the graphs of one model at one precision.

    Tracing costs more than writing, and blocks differ only in their weights: the first graph of a
    kind is traced, and the others put their own weights into a copy of it.

    Args:
        config: of the model.
        precision: the one that the model was cast to.
    """

    def __init__(self, config: EscNetConfig, precision: Precision) -> None:
        self._config, self._precision = config, precision
        self._traced: dict[tuple[object, ...], bytes] = {}

    def export(self, graph: Graph, path: Path) -> None:
        """Write ``graph`` to ``path``, with dynamic axes and its weights inside.

        The file passes onnx's checker; :mod:`escnet_export.check` compares its numbers.

        Raises:
            ExportError: torch or onnx refused; the message names the graph.
        """
        try:
            with torch.no_grad(), _quiet():
                kind = _kind(graph)
                if kind not in self._traced:
                    self._traced[kind] = self._trace(graph)
                model = ir.from_proto(onnx.load_model_from_string(self._traced[kind]))
                _set_weights(model, graph.module)
                onnxscript.optimizer.optimize_ir(model)
            onnx.save_model(ir.to_proto(model), str(path))
            onnx.checker.check_model(str(path), full_check=True)
        except OSError:
            raise  # a full disk is not the graph's fault
        except Exception as error:
            raise ExportError(f"graph {graph.name!r} could not be exported: {error}") from error

    def _trace(self, graph: Graph) -> bytes:
        """The graph as ONNX, not optimised, so that weights keep their names.

        The values of large weights are left out: each graph of the kind puts its own in.
        """
        dtype = DTYPES[self._precision]
        args = example_inputs(graph, self._config, categories=_EXAMPLE, dtype=dtype)
        largest = {"l": self._config.clip.context_length}
        shapes = tuple(
            {
                index: torch.export.Dim(axis, min=1, max=largest.get(axis, _LARGEST))
                for index, axis in enumerate(port.shape)
                if isinstance(axis, str)
            }
            for port in graph.inputs
        )
        program = torch.onnx.export(
            graph.module.eval(),
            args,
            dynamo=True,
            opset_version=_OPSET[self._precision],
            input_names=[port.name for port in graph.inputs],
            output_names=[port.name for port in graph.outputs],
            dynamic_shapes=(shapes,),
            optimize=False,
            verbose=False,
        )
        assert program is not None
        names = _weights(graph.module)
        for name, value in program.model.graph.initializers.items():
            if name in names and value.const_value is not None:
                value.const_value = ir.tensor(np.zeros((), np.float32), name=name)
        serialized: bytes = ir.to_proto(program.model).SerializeToString()
        return serialized


def _kind(graph: Graph) -> tuple[object, ...]:
    """A key that is equal for graphs that differ only in the values of their weights."""
    ports = tuple(port.kind for port in (*graph.inputs, *graph.outputs))
    return graph.kind, ports, tuple(tensor.dtype for tensor in _weights(graph.module).values())


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _set_weights(model: ir.Model, module: nn.Module) -> None:
    """Give the initializers the values that ``module`` has under the same names."""
    weights = _weights(module)
    for name, value in model.graph.initializers.items():
        if name in weights:
            value.const_value = TorchTensor(weights[name].detach(), name=name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch's exporter prints, logs and warns of; errors are still raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
