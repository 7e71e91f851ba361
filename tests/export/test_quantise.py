"""int8 in the file: explicit pairs, weights per channel, and a block with outliers found out."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from escnet.model import EscNet
from escnet_export import Budget, ExportReport
from escnet_export.errors import ExportError
from escnet_export.plan import graph_of
from escnet_export.quantise import Calibration, activation_ranges, quantise
from escnet_runtime.bundle import Bundle
from escnet_runtime.images import ImageArray
from escnet_runtime.manifest import Precision
from escnet_runtime.segmenter import Segmenter
from escnet_runtime.verify import verify_bundle
from tests.export.broken import OUTLIERS, hostile
from tests.export.conftest import GraphFiles, exported, make_quick

KINDS = {np.float16: TensorProto.FLOAT16, np.float32: TensorProto.FLOAT}


def numbers(*shape: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Normal random numbers."""
    generator = np.random.Generator(np.random.PCG64(seed))
    return generator.standard_normal(shape).astype(np.float32)


def product(folder: Path, kind: type[np.floating[Any]], weight: np.ndarray[Any, Any]) -> Path:
    """x @ W + b, then @ C of one channel; the input and output are float32."""
    channels = weight.shape[1]
    constants = {
        "owner.w": weight,
        "owner.b": numbers(channels, seed=2),
        "c": numbers(channels, 1, seed=3),
    }
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=KINDS[kind]),
        helper.make_node("MatMul", ["narrow", "owner.w"], ["wide"]),
        helper.make_node("Add", ["wide", "owner.b"], ["sum"]),
        helper.make_node("MatMul", ["sum", "c"], ["one"]),
        helper.make_node("Cast", ["sum"], ["y"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["one"], ["z"], to=TensorProto.FLOAT),
    ]
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", len(weight)])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", channels]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 1]),
        ],
        [numpy_helper.from_array(value.astype(kind), name) for name, value in constants.items()],
    )
    path = folder / "plain.onnx"
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(made, opset_imports=opset, ir_version=10), str(path))
    return path


def run(path: Path, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The sums."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: np.ndarray[Any, Any] = session.run(["y"], {"x": x})[0]
    return found


@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("method", list(Calibration))
def test_a_product_is_quantised_with_a_scale_a_channel(
    kind: type[np.floating[Any]], method: Calibration, tmp_path: Path
) -> None:
    weight = numbers(32, 8) * np.float32(2.0) ** np.arange(8, dtype=np.float32)
    path, target, x = product(tmp_path, kind, weight), tmp_path / "int8.onnx", numbers(64, 32)
    ranges = activation_ranges(path, [{"x": x[:32]}, {"x": x[32:]}], method)
    assert ranges["narrow"] == pytest.approx(np.abs(x).max(), rel=0.35)
    assert quantise("esc0_sam", path, target, ranges) == 1
    graph = onnx.load(str(target)).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QuantizeLinear") == 1
    assert kinds.count("DequantizeLinear") == 2
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert "owner.w" not in tensors
    stored = next(value for value in tensors.values() if value.shape == (32, 8))
    assert stored.dtype == np.int8
    assert (np.abs(stored).max(axis=0) == 127).all()  # each channel uses the whole range
    assert all(not value.any() for name, value in tensors.items() if name.endswith("_zero"))
    assert {value.dtype for name, value in tensors.items() if name.endswith("_scale")} == {
        np.dtype(kind)
    }
    want, got = run(path, x), run(target, x)
    error = np.linalg.norm(got - want, axis=0) / np.linalg.norm(want, axis=0)
    assert (error < 0.06).all()
    assert (got != want).any()
    assert run(target, numbers(5, 32)).shape == (5, 8)  # any other number of rows


def test_a_block_that_is_kept_is_left_alone(tmp_path: Path) -> None:
    path, target = product(tmp_path, np.float32, numbers(32, 8)), tmp_path / "int8.onnx"
    ranges = activation_ranges(path, [{"x": numbers(4, 32)}], Calibration.ENTROPY)
    assert quantise("esc0_sam", path, target, ranges, keep=["esc0_sam"]) == 0
    np.testing.assert_array_equal(run(path, numbers(4, 32)), run(target, numbers(4, 32)))


def test_nothing_to_calibrate_on_is_an_error(tmp_path: Path) -> None:
    path = product(tmp_path, np.float32, numbers(32, 8))
    with pytest.raises(ExportError, match=r"plain\.onnx could not be calibrated"):
        activation_ranges(path, [], Calibration.ENTROPY)


@pytest.mark.slow
@pytest.mark.parametrize("block", list(OUTLIERS))
def test_the_block_with_outliers_is_raised_and_no_other(
    block: str,
    mini: EscNet,
    graph_files: GraphFiles,
    picture: ImageArray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A budget that every other block holds by far, and this one does not."""
    make_quick(monkeypatch, graph_files, picture, changed=[graph_of(block)])

    def int8(model: EscNet, name: str, budget: Budget, **options: object) -> ExportReport:
        settings = {"precision": Precision.INT8, "budget": budget, **options}
        return exported(model, picture, tmp_path / name, **settings)

    any_loss = Budget(pixel_agreement=0.0, stage_l2=10.0)
    plain = int8(mini, "plain", any_loss).parity.stages
    model, graph = hostile(mini, block), graph_of(block)
    worst = max(error.relative_l2 for error in plain.values())
    limit = 1.2 * worst
    report = int8(model, "bundle", Budget(pixel_agreement=0.0, stage_l2=limit))
    assert [kept.block for kept in report.parity.kept_higher] == [block]
    kept = report.parity.kept_higher[0]
    assert (kept.precision, kept.instead_of) == (Precision.FP16, Precision.INT8)
    assert kept.damage is not None
    assert kept.damage > 1
    assert report.parity.stages[graph].relative_l2 <= limit
    assert verify_bundle(report.bundle).passed
    with Segmenter(report.bundle, "onnxruntime", cache=None) as segmenter:
        labels = segmenter(picture, segmenter.vocabulary(["sky", "grass", "house"])).labels
    assert labels.shape == picture.shape[:2]


@pytest.mark.slow
def test_an_int8_bundle_keeps_scores_and_sums_in_float32(
    mini: EscNet,
    graph_files: GraphFiles,
    picture: ImageArray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_quick(monkeypatch, graph_files, picture)
    report = exported(mini, picture, tmp_path / "bundle", precision=Precision.INT8)
    manifest = Bundle.open(report.bundle, check="hashes").manifest
    assert manifest.precision is Precision.INT8
    assert manifest.stages["correlation"].precision is Precision.FP16
    wide = {"scores", "scores_out", "enhanced_sum", "kv_sum", "k_sum", "embeddings", "logits"}
    for name, stage in manifest.stages.items():
        assert all(port.dtype == "float32" for port in stage.outputs if port.name in wide)
        graph = onnx.load(str(report.bundle / stage.file)).graph
        stored = sum(tensor.data_type == TensorProto.INT8 for tensor in graph.initializer)
        assert bool(stored) is (stage.precision is Precision.INT8), name
    size = sum(stage.bytes for stage in manifest.stages.values())
    plain = sum(graph_files(name, Precision.FP16).stat().st_size for name in manifest.stages)
    assert size < plain
