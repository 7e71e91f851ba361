"""A small made-up model: graphs of a few lines of NumPy, on the host and on a device."""

import ctypes
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from escnet_runtime.contract import Port, graph_ports
from escnet_runtime.device.base import Stream
from escnet_runtime.gpu.backend import Binding
from escnet_runtime.manifest import DType, Manifest, Precision, Stage, TensorSpec
from tests.device.host_device import HostDevice, Operation

__all__ = ["GROUP", "MadeUpGraphs", "OnHost", "made_up_manifest", "made_up_stages"]

Array = npt.NDArray[Any]
GROUP, HEADS = 4, 2
_NUMPY: dict[DType, Any] = {"float32": np.float32, "float16": np.float16, "int32": np.int32}


def made_up_manifest(manifest: Manifest) -> Manifest:
    """One with small sizes and travelling tensors of float16; the rest as in ``manifest``."""
    small = dataclasses.replace(
        manifest,
        model=dataclasses.replace(
            manifest.model,
            image_size=8,
            grid=(4, 4),
            logits=(8, 8),
            embed_dim=6,
            hidden_dim=8,
            sam_dim=3,
            blocks=2,
        ),
        constants=dataclasses.replace(
            manifest.constants,
            chunk=GROUP,
            group=GROUP,
            preprocessing=dataclasses.replace(manifest.constants.preprocessing, size=8),
        ),
    )
    return made_up_stages(small)


def made_up_stages(manifest: Manifest) -> Manifest:
    """The same with graphs of the model's sizes."""
    stages = {
        name: Stage(
            file=f"graphs/{name}.onnx",
            sha256="0" * 64,
            bytes=1000,
            precision=Precision.FP16,
            inputs=tuple(_spec(*port) for port in inputs.items()),
            outputs=tuple(_spec(*port) for port in outputs.items()),
        )
        for name, (inputs, outputs) in graph_ports(manifest).items()
    }
    return dataclasses.replace(manifest, stages=stages)


def _spec(name: str, port: Port) -> TensorSpec:
    free = iter({"kv": (HEADS, 4, 4), "k_": (HEADS, 4)}.get(name[:2], (2,)))
    shape = tuple(next(free) if axis is None else axis for axis in port.shape)
    kinds: dict[bool, DType] = {True: "float16", False: "float32"}
    dtype = "int32" if port.types == {"int32"} else kinds["float16" in port.types]
    return TensorSpec(name=name, dtype=dtype, shape=shape)


class _Functions:
    """What each kind of graph computes; outputs in the order of the graph's ports."""

    def text_encoder(self, tokens: Array) -> tuple[Array, ...]:
        return (np.sin(tokens.sum(axis=1, keepdims=True) * np.arange(1, 7)),)

    def image_encoder(self, image: Array) -> tuple[Array, ...]:
        cells = image.reshape(1, 3, 4, 2, 4, 2).mean(axis=(3, 5))
        features = np.concatenate([cells, np.roll(cells, 1, axis=2)], axis=1)
        skip = np.repeat(np.repeat(cells[:, :2], 2, axis=2), 2, axis=3)
        return features, cells, skip, np.repeat(np.repeat(skip, 2, axis=2), 2, axis=3)

    def correlation(self, features: Array, text: Array) -> tuple[Array, ...]:
        scores = 0.3 * np.einsum("dyx,nd->nyx", features[0], text)
        embedding = scores[..., None] + np.linspace(0, 1, 8)
        return scores, embedding

    def sam(
        self,
        block_features: Array,
        points: Array,
        point_labels: Array,
        regions: Array,
        probabilities: Array,
        weight: Array,
    ) -> tuple[Array, ...]:
        own = (points.sum(axis=2) * (point_labels == 1)).sum(axis=1)
        maps = own[:, None, None] + (regions + 1) * probabilities
        return (_group_sums(maps[:, None] + block_features.astype(np.float32), weight),)

    def fuse(self, block_features: Array, enhanced_mean: Array) -> tuple[Array, ...]:
        out = block_features + np.tanh(enhanced_mean)
        return out, np.tile(out, (1, 3, 1, 1))[:, :8]

    def image(
        self, embedding: Array, guidance: Array, text: Array, weight: Array
    ) -> tuple[Array, ...]:
        guide = np.moveaxis(guidance, 1, 3)
        out = embedding + 0.1 * np.tanh(embedding * guide + text.mean(axis=1)[:, None, None, None])
        k = out.astype(np.float32).reshape(len(out), 16, HEADS, 4)
        kv = k[..., None] * k[..., None, :]
        return out, _group_sums(kv, weight), _group_sums(k, weight)

    def text(
        self, embedding: Array, text: Array, scores: Array, kv_mean: Array, k_mean: Array
    ) -> tuple[Array, ...]:
        read = kv_mean.sum(axis=2).reshape(4, 4, 8)
        out = embedding + np.tanh(read) * 0.1 + k_mean.mean()
        return out, scores + 0.05 * out.astype(np.float32).mean(axis=3)

    def decoder(self, embedding: Array, skip0: Array, skip1: Array) -> tuple[Array, ...]:
        maps = np.repeat(np.repeat(embedding.astype(np.float32).mean(axis=3), 2, 1), 2, 2)
        return (maps * 3 + skip0[0, 0] + skip1[0, 1, ::2, ::2],)


def _group_sums(values: Array, weight: Array) -> Array:
    """[n, ...] and [g, GROUP] → [g, ...]."""
    used = min(weight.size, len(values))
    shares = weight.ravel()[:used].reshape(-1, *[1] * (values.ndim - 1))
    weighted = shares * values[:used].astype(np.float32)
    return np.stack([weighted[i : i + GROUP].sum(axis=0) for i in range(0, used, GROUP)])


class OnHost:
    """The graphs as a backend of the pipeline on the CPU."""

    name = description = "made up"

    def __init__(self, manifest: Manifest) -> None:
        self._stages = manifest.stages

    def run(self, graph: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        stage = self._stages[graph]
        kind = graph.partition("_")[2] if graph.startswith("esc") else graph
        given = [np.asarray(inputs[spec.name], _NUMPY[spec.dtype]) for spec in stage.inputs]
        made = getattr(_Functions(), kind)(*given)
        return {
            spec.name: np.asarray(array, _NUMPY[spec.dtype])
            for spec, array in zip(stage.outputs, made, strict=True)
        }

    def to_host(self, tensor: Any) -> Any:
        return tensor

    def release(self, graph: str) -> None:
        pass

    def close(self) -> None:
        pass


class MadeUpGraphs:
    """The graphs on a device's addresses.

    Attributes:
        before: called by the host with a graph's name as a run of it is enqueued.
        watch: called with a graph's name and inputs when it runs.
        texts: sets of embeddings, one of which every graph's rows must come from.
        bytes: what the loaded graphs hold.
        kept: graphs that have run since they were last waited for.
        freed_untidily: graphs of which something was kept when all was closed.
    """

    name = description = "made up"
    most_rows = None
    resident_bytes = 0

    def __init__(
        self, manifest: Manifest, stream: Stream, device: HostDevice, *, capturable: bool = False
    ) -> None:
        self._host, self._stream, self._device = OnHost(manifest), stream, device
        self.capturable = capturable
        self.loaded: list[str] = []
        self.before: Callable[[str], None] = lambda graph: None
        self.watch: Callable[[str, Mapping[str, Array]], None] = lambda graph, inputs: None
        self.closed = False
        self.kept: set[str] = set()
        self.freed_untidily: set[str] = set()
        self._waits = False

    @property
    def untidy(self) -> bool:
        return bool(self.kept)

    @contextmanager
    def tidying(self) -> Iterator[None]:
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def stream(self) -> Stream:
        return self._stream

    def scratch_bytes(self) -> int:
        return 0

    def load(self, *graphs: str) -> None:
        self.loaded += [graph for graph in graphs if graph not in self.loaded]

    def bind(
        self,
        graph: str,
        inputs: Mapping[str, Binding],
        outputs: Mapping[str, Binding],
        *,
        scratch: int = 0,
    ) -> Callable[[], None]:
        def run() -> None:
            given = {name: _at(one) for name, one in inputs.items()}
            self.watch(graph, given)
            for name, array in self._host.run(graph, given).items():
                _at(outputs[name])[...] = array

        def enqueue() -> None:
            self.before(graph)
            (self.kept.discard if self._waits else self.kept.add)(graph)
            self._device.give(self._stream, Operation("graph_run", graph), run)

        return enqueue

    def release(self, graph: str) -> None:
        if graph not in self.kept:
            self.loaded = [name for name in self.loaded if name != graph]

    def unload(self) -> None:
        for graph in list(self.loaded):
            self.release(graph)

    def close(self) -> None:
        self.unload()
        self.freed_untidily |= self.kept
        self.kept.clear()
        self.closed = True


def _at(one: Binding) -> Array:
    """The array at an address of the host."""
    dtype = np.dtype(_NUMPY[one.dtype])
    size = int(np.prod(one.shape)) * dtype.itemsize
    raw = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(one.address))
    array: Array = raw.view(dtype).reshape(one.shape)
    return array
