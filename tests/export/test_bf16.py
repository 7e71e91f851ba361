"""bf16 on a machine without bf16 kernels: float32, rounded where a bf16 result is made."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from escnet.model import EscNet
from escnet_export.check import STAGE_TOLERANCE, GraphCheck, to_numpy
from escnet_export.export import example_inputs
from escnet_export.graphs import model_graphs
from escnet_export.precision import cast_model
from escnet_runtime.backends import GraphFile, create_backend
from escnet_runtime.backends.bf16 import emulate_bf16
from escnet_runtime.errors import BackendError
from escnet_runtime.manifest import Precision
from escnet_runtime.sketch import relative_l2
from tests.export.conftest import GraphFiles

Floats = npt.NDArray[np.float32]
#: Of two neighbouring bf16 numbers: 8 bits of mantissa, the first one implied.
EPSILON = 2.0**-7
GRAPHS = ["correlation", "esc0_fuse", "esc1_fuse"]


def rounded(array: npt.NDArray[np.generic]) -> Floats:
    """The nearest bf16 numbers, ties to even, as float32."""
    result: Floats = torch.tensor(array).to(torch.bfloat16).float().numpy()
    return result


def run_in_bf16(
    nodes: Sequence[onnx.NodeProto], inputs: Mapping[str, Floats], folder: Path
) -> Floats:
    """``out`` of a bf16 graph from vectors [4096], in float32."""
    kind, shape = TensorProto.BFLOAT16, [4096]
    specs = [helper.make_tensor_value_info(name, kind, shape) for name in inputs]
    output = helper.make_tensor_value_info("out", kind, shape)
    graph = helper.make_graph(nodes, "graph", specs, [output])
    opset = [helper.make_opsetid("", 22)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(folder / "graph.onnx"))
    file = GraphFile(folder / "graph.onnx", Precision.BF16)
    backend = create_backend({"graph": file}, "onnxruntime")
    result: Floats = np.asarray(backend.to_host(backend.run("graph", inputs)["out"]), np.float32)
    return result


def numbers(seed: int) -> Floats:
    """bf16 numbers of many magnitudes."""
    generator = np.random.Generator(np.random.PCG64(seed))
    values = generator.standard_normal(4096) * np.exp(generator.uniform(-8, 8, 4096))
    return rounded(values.astype(np.float32))


def test_every_step_is_rounded_as_torch_does(tmp_path: Path) -> None:
    """x · y + z rounds twice; in float32 alone, about half of the results differ."""
    nodes = [
        helper.make_node("Mul", ["x", "y"], ["product"]),
        helper.make_node("Add", ["product", "z"], ["out"]),
    ]
    feeds = {name: numbers(seed) for seed, name in enumerate("xyz")}
    got = run_in_bf16(nodes, feeds, tmp_path)
    x, y, z = (torch.tensor(feeds[name]).to(torch.bfloat16) for name in "xyz")
    np.testing.assert_array_equal(got, (x * y + z).float().numpy())
    once = rounded(feeds["x"] * feeds["y"] + feeds["z"])
    assert (got != once).mean() > 0.05


def test_ties_go_to_even(tmp_path: Path) -> None:
    values = np.ones(4096, np.float32)
    values[:4] = [1 + EPSILON, 1 + 2 * EPSILON, 1 + 3 * EPSILON, -1 - EPSILON]
    half = np.full(4096, EPSILON / 2, np.float32)
    nodes = [helper.make_node("Add", ["x", "y"], ["out"])]
    got = run_in_bf16(nodes, {"x": values, "y": half}, tmp_path)
    expected = [1 + 2 * EPSILON, 1 + 2 * EPSILON, 1 + 4 * EPSILON, -1 - 0 * EPSILON, 1]
    np.testing.assert_array_equal(got[:5], np.array(expected, np.float32))


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_agrees_with_torch_in_bf16(
    name: str, mini: EscNet, graph_files: GraphFiles
) -> None:
    path = graph_files(name, Precision.BF16)
    typed = next(g for g in model_graphs(cast_model(mini, Precision.BF16)) if g.name == name)
    inputs = example_inputs(typed, mini.config, categories=5, dtype=torch.bfloat16)
    with torch.inference_mode():
        want = typed.module(*inputs)
    backend = create_backend({name: GraphFile(path, Precision.BF16)}, "onnxruntime")
    feeds = {
        port.name: to_numpy(tensor, tensor.dtype)
        for port, tensor in zip(typed.inputs, inputs, strict=True)
    }
    got = backend.run(name, feeds)
    for port, tensor in zip(typed.outputs, want, strict=True):
        array = np.asarray(backend.to_host(got[port.name]), np.float32)
        assert relative_l2(array, tensor.float().numpy()) <= EPSILON / 2
        if port.kind == "graph":
            np.testing.assert_array_equal(array, rounded(array))
        else:
            assert (array != rounded(array)).any()  # scores are float32 and stay so


@pytest.mark.parametrize("name", GRAPHS)
def test_the_file_itself_is_bf16(name: str, graph_files: GraphFiles) -> None:
    model = onnx.load(str(graph_files(name, Precision.BF16)))
    weights = [t for t in model.graph.initializer if t.name.endswith((".weight", ".bias"))]
    assert weights
    assert {tensor.data_type for tensor in weights} == {TensorProto.BFLOAT16}
    # ONNX Runtime's CUDA provider has it for float32 and float16 alone.
    assert "DepthToSpace" not in {node.op_type for node in model.graph.node}
    widened = onnx.load_model_from_string(emulate_bf16(model.SerializeToString()))
    ports = (*widened.graph.input, *widened.graph.output, *widened.graph.initializer)
    kinds = {
        p.data_type if isinstance(p, onnx.TensorProto) else p.type.tensor_type.elem_type
        for p in ports
    }
    assert TensorProto.BFLOAT16 not in kinds
    onnx.checker.check_model(widened, full_check=True)


def test_the_check_of_the_export_holds_at_bf16(mini: EscNet, graph_files: GraphFiles) -> None:
    check = GraphCheck(mini.config, Precision.BF16, categories=(1, 2, 19))
    reference = next(g for g in model_graphs(mini) if g.name == "correlation")
    found = check.check(reference, graph_files("correlation", Precision.BF16))
    assert list(found) == [1, 2, 19]
    assert 1e-4 < max(found.values()) <= STAGE_TOLERANCE[Precision.BF16]


def test_without_onnx_the_extra_to_install_is_named(
    graph_files: GraphFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    path: Path = graph_files("esc0_fuse", Precision.BF16)
    monkeypatch.setitem(sys.modules, "escnet_runtime.backends.bf16", None)
    backend = create_backend({"esc0_fuse": GraphFile(path, Precision.BF16)}, "onnxruntime")
    with pytest.raises(BackendError, match=r"install escnet-runtime\[bf16\]"):
        backend.run("esc0_fuse", {})
