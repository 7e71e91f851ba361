"""Each exported graph computes what torch computes, whatever the number of categories."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from escnet.build import build_model
from escnet.model import EscNet
from escnet_export.check import CATEGORIES, GraphCheck, structure_hash
from escnet_export.errors import ExportError
from escnet_export.export import GraphExporter, example_inputs
from escnet_export.graphs import Graph, GraphModule, model_graphs
from escnet_runtime.manifest import Precision
from tests.export.conftest import GraphFiles

KINDS = [
    *("image_encoder", "text_encoder", "correlation"),
    *("esc0_sam", "esc0_fuse", "esc0_image", "esc0_text", "decoder"),
]
#: These have no category axis: a batch of one and two images, and nothing dynamic at all.
WITHOUT_CATEGORIES = {"image_encoder": (1, 2), "esc0_fuse": (1,)}
BLOCKS = range(4)


def graph_called(model: EscNet, name: str) -> Graph:
    """One graph of a model."""
    return next(graph for graph in model_graphs(model) if graph.name == name)


def test_a_model_has_these_graphs(mini: EscNet) -> None:
    names = [graph.name for graph in model_graphs(mini)]
    second = [name.replace("esc0", "esc1") for name in KINDS if "esc0" in name]
    assert names == [*KINDS[:-1], *second, "decoder"]
    assert {graph.kind for graph in model_graphs(mini)} == {k.replace("esc0", "esc") for k in KINDS}


@pytest.mark.parametrize("name", KINDS)
def test_fp32_equals_torch_at_1_2_19_and_300_categories(
    name: str, mini: EscNet, graph_files: GraphFiles
) -> None:
    reference = graph_called(mini, name)
    found = GraphCheck(mini.config, Precision.FP32).check(
        reference, graph_files(name, Precision.FP32)
    )
    assert tuple(found) == WITHOUT_CATEGORIES.get(name, CATEGORIES)
    assert all(0 <= error <= 1e-4 for error in found.values())


@pytest.mark.parametrize("part", ["sam", "fuse", "image", "text"])
def test_another_block_gets_its_own_weights(
    part: str, mini: EscNet, graph_files: GraphFiles
) -> None:
    """The exporter traces a kind of graph once; only the weights tell the blocks apart."""
    first, second = (graph_files(f"esc{block}_{part}", Precision.FP32) for block in range(2))
    reference = graph_called(mini, f"esc1_{part}")
    check = GraphCheck(mini.config, Precision.FP32, categories=(2,))
    check.check(reference, second)
    with pytest.raises(ExportError, match=f"'esc1_{part}' .*differs"):
        check.check(reference, first)


@pytest.mark.slow
@pytest.mark.parametrize("regions", [1, 8])
def test_other_numbers_of_regions_export(regions: int, mini: EscNet, tmp_path: Path) -> None:
    ppg = dataclasses.replace(mini.config.ppg, regions=regions)
    config = dataclasses.replace(mini.config, blocks=1, ppg=ppg)
    net = build_model(config, seed=1).requires_grad_(False)
    graph, path = graph_called(net, "esc0_sam"), tmp_path / "sam.onnx"
    GraphExporter(config, Precision.FP32).export(graph, path)
    found = GraphCheck(config, Precision.FP32, categories=(1, 19)).check(graph, path)
    assert all(0 <= error <= 1e-4 for error in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["esc0_image", "esc0_text"])
def test_a_graph_in_pieces_gives_the_same_bits(
    name: str, mini: EscNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At other numbers of categories than the example's, too."""
    graph = graph_called(mini, name)
    GraphExporter(mini.config, Precision.FP32).export(graph, tmp_path / "whole.onnx")
    monkeypatch.setattr("escnet.pieces._BYTES", 1)
    GraphExporter(mini.config, Precision.FP32).export(graph, tmp_path / "pieces.onnx")
    paths = [tmp_path / "whole.onnx", tmp_path / "pieces.onnx"]
    few, many = (
        sum(node.op_type == "Gelu" for node in onnx.load(path).graph.node) for path in paths
    )
    assert many >= 4 * few
    whole, pieces = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in paths
    )
    for categories in (1, 2, 19, 40):
        given = example_inputs(graph, mini.config, categories=categories)
        feeds = {port.name: value.numpy() for port, value in zip(graph.inputs, given, strict=True)}
        for got, want in zip(pieces.run(None, feeds), whole.run(None, feeds), strict=True):
            np.testing.assert_array_equal(got, want)


def test_a_number_that_the_exporter_bakes_in_is_refused_by_name(
    mini: EscNet, tmp_path: Path
) -> None:
    """torch unrolls such a loop without a word, for the number of categories of its example."""

    def one_by_one(features: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        parts = [mini.correlate(features, text[i : i + 1]) for i in range(int(text.shape[0]))]
        return torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts])

    graph, path = graph_called(mini, "correlation"), tmp_path / "loop.onnx"
    loop = dataclasses.replace(graph, module=GraphModule(mini, one_by_one))
    GraphExporter(mini.config, Precision.FP32).export(loop, path)
    found = GraphCheck(mini.config, Precision.FP32, categories=(19,)).check(graph, path)
    assert found[19] <= 1e-4
    with pytest.raises(ExportError, match=r"graph .correlation. .*at 2 categories"):
        GraphCheck(mini.config, Precision.FP32, categories=(2, 19)).check(graph, path)


@pytest.mark.parametrize(("size", "message"), [(1, "differs"), (5, "does not run")])
def test_a_fixed_shape_is_refused_by_name(
    size: int, message: str, mini: EscNet, graph_files: GraphFiles, tmp_path: Path
) -> None:
    """One map for all categories, and a size that fits no input but its own."""
    model = onnx.load(str(graph_files("correlation", Precision.FP32)))
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["all_scores" if name == "scores" else name for name in names]
    source = "all_scores"
    if size == 1:
        model.graph.node.append(helper.make_node("ReduceMax", [source], ["top"], keepdims=1))
        source = "top"
    shape = numpy_helper.from_array(np.array([size, 8, 8]), "fixed_shape")
    model.graph.initializer.append(shape)
    model.graph.node.append(helper.make_node("Expand", [source, "fixed_shape"], ["scores"]))
    path = tmp_path / "fixed.onnx"
    onnx.save(model, str(path))
    with pytest.raises(ExportError, match=f"'correlation' .*{message}"):
        GraphCheck(mini.config, Precision.FP32, categories=(2,)).check(
            graph_called(mini, "correlation"), path
        )


def test_example_inputs_follow_the_ports_and_the_seed(mini: EscNet) -> None:
    graph = graph_called(mini, "esc0_sam")
    first = example_inputs(graph, mini.config, categories=37, seed=1)
    again = example_inputs(graph, mini.config, categories=37, seed=1)
    other = example_inputs(graph, mini.config, categories=37, seed=2)
    axes = {"n": 37, "g": 3}  # groups of 16
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    for port, tensor in zip(graph.inputs, first, strict=True):
        assert tuple(tensor.shape) == tuple(axes.get(str(axis), axis) for axis in port.shape)
        assert tensor.dtype == port.dtype(torch.float32)


@pytest.mark.parametrize("length", [3, 10])
def test_example_texts_fit_a_short_context(length: int, mini: EscNet) -> None:
    """They are as long as the text encoder reads, and no longer."""
    clip = dataclasses.replace(mini.config.clip, context_length=length)
    net = build_model(dataclasses.replace(mini.config, clip=clip)).requires_grad_(False)
    encoder, found = graph_called(net, "text_encoder"), set()
    for categories in (1, 2, 19, 300):
        (tokens,) = example_inputs(encoder, net.config, categories=categories)
        found.add(tokens.shape[1])
        assert encoder.module(tokens)[0].shape == (categories, clip.embed_dim)
    assert max(found) == length
    assert len(found) > 1


@pytest.mark.parametrize("part", ["sam", "fuse", "image", "text"])
def test_blocks_are_of_one_kind(part: str, tiny_bundle: Path) -> None:
    graphs = tiny_bundle / "graphs"
    assert len({structure_hash(graphs / f"esc{block}_{part}.onnx") for block in BLOCKS}) == 1
    assert structure_hash(graphs / f"esc0_{part}.onnx") != structure_hash(graphs / "decoder.onnx")


def test_a_changed_graph_is_of_another_kind(graph_files: GraphFiles, tmp_path: Path) -> None:
    file, path = graph_files("esc0_text", Precision.FP32), tmp_path / "changed.onnx"
    kind = structure_hash(file)

    def changed(change: object) -> str:
        model = onnx.load(str(file))
        assert callable(change)
        change(model.graph)
        onnx.save(model, str(path))
        return structure_hash(path)

    def other_weights(graph: onnx.GraphProto) -> None:
        tensor = next(t for t in graph.initializer if t.data_type == TensorProto.FLOAT)
        values = numpy_helper.to_array(tensor) + 1
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    def other_node(graph: onnx.GraphProto) -> None:
        next(node for node in graph.node if node.op_type == "Add").op_type = "Mul"

    def other_attribute(graph: onnx.GraphProto) -> None:
        norm = next(node for node in graph.node if node.op_type == "LayerNormalization")
        norm.attribute.append(helper.make_attribute("stash_type", 1))

    assert changed(other_weights) == kind
    assert changed(other_node) != kind
    assert changed(other_attribute) != kind


def test_the_largest_number_is_run_once_for_each_kind(
    mini: EscNet, graph_files: GraphFiles
) -> None:
    check = GraphCheck(mini.config, Precision.FP32, categories=(4, 2, 9))
    graph, path = graph_called(mini, "esc0_text"), graph_files("esc0_text", Precision.FP32)
    assert list(check.check(graph, path)) == [2, 4, 9]
    assert list(check.check(graph, path)) == [2, 4]
    check = GraphCheck(mini.config, Precision.FP32, categories=(3,))
    assert list(check.check(graph, path)) == list(check.check(graph, path)) == [3]
