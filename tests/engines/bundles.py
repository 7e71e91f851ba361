"""Bundles of graphs so small that a compiler needs a second for each; no PyTorch."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from escnet_runtime.bundle import Bundle
from escnet_runtime.manifest import FileRef, Stage, TensorSpec
from tests.runtime.test_manifest import sample_manifest

__all__ = ["MATMUL", "OVERSIZED", "STATIC", "UNREADABLE", "UNSHAPEABLE", "Graph", "write_bundle"]

_FILES = {"tokenizer.json": b"{}", "golden/image.png": b"", "parity.json": b"[]"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
    """Nodes between inputs and one output ``y``; shapes name their dynamic axes."""

    nodes: Sequence[Any]
    inputs: Mapping[str, tuple[int | str, ...]]
    output: tuple[int | str, ...]
    weights: Sequence[Any] = ()

    def onnx(self) -> bytes:
        """The file's content."""
        made = helper.make_graph(
            list(self.nodes),
            "graph",
            [_port(name, shape) for name, shape in self.inputs.items()],
            [_port("y", self.output)],
            list(self.weights),
        )
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        serialized: bytes = model.SerializeToString()
        return serialized


def _port(name: str, shape: tuple[int | str, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


MATMUL = Graph(
    nodes=[
        helper.make_node("MatMul", ["x", "w"], ["product"], name="node_matmul"),
        helper.make_node("Relu", ["product"], ["y"], name="node_relu"),
    ],
    inputs={"x": ("n", 4)},
    output=("n", 4),
    weights=[numpy_helper.from_array(np.ones((4, 4), np.float32), "w")],
)
STATIC = Graph(
    nodes=[helper.make_node("Softmax", ["x"], ["y"], name="node_softmax")],
    inputs={"x": (1, 8)},
    output=(1, 8),
)
#: TensorRT has no such operator.
UNREADABLE = Graph(
    nodes=[helper.make_node("Det", ["x"], ["y"], name="node_det")],
    inputs={"x": ("n", 4, 4)},
    output=("n",),
)
#: Parsed, and refused by the builder: 4 n values do not become 7.
UNSHAPEABLE = Graph(
    nodes=[helper.make_node("Reshape", ["x", "s"], ["y"], name="node_reshape")],
    inputs={"x": ("n", 4)},
    output=(7, 1),
    weights=[numpy_helper.from_array(np.array([7, 1]), "s")],
)
#: A product of n × n values, summed.
OVERSIZED = Graph(
    nodes=[
        helper.make_node("MatMul", ["x", "z"], ["product"], name="node_square"),
        helper.make_node("Softmax", ["product"], ["shares"], name="node_softmax"),
        helper.make_node("ReduceSum", ["shares"], ["y"], name="node_sum", keepdims=0),
    ],
    inputs={"x": ("n", 4), "z": (4, "n")},
    output=(),
)


def write_bundle(root: Path, graphs: Mapping[str, Graph]) -> Bundle:
    """Write a bundle of these graphs, with chunks of 32 categories in groups of 16, and open it."""
    contents = {**_FILES, **{f"graphs/{name}.onnx": one.onnx() for name, one in graphs.items()}}
    for file, data in contents.items():
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def reference(file: str) -> FileRef:
        data = contents[file]
        return FileRef(file=file, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))

    def stage(name: str, graph: Graph) -> Stage:
        file = reference(f"graphs/{name}.onnx")
        specs = [
            TensorSpec(name=port, dtype="float32", shape=shape)
            for port, shape in {**graph.inputs, "y": graph.output}.items()
        ]
        return Stage(
            file=file.file,
            sha256=file.sha256,
            bytes=file.bytes,
            precision=sample.precision,
            inputs=tuple(specs[:-1]),
            outputs=tuple(specs[-1:]),
        )

    sample = sample_manifest()
    tokenizer = reference("tokenizer.json")
    manifest = dataclasses.replace(
        sample,
        stages={name: stage(name, graph) for name, graph in graphs.items()},
        tokenizer=dataclasses.replace(
            sample.tokenizer, sha256=tokenizer.sha256, bytes=tokenizer.bytes
        ),
        golden=dataclasses.replace(sample.golden, files=(reference("golden/image.png"),)),
        parity=dataclasses.replace(sample.parity, files=(reference("parity.json"),)),
    )
    (root / "bundle.json").write_text(manifest.to_json(), encoding="utf-8")
    return Bundle.open(root, check="hashes")
