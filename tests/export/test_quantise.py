"""Eight bits in the file: explicit pairs, weights per channel, a block with outliers found out."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from escnet.model import EscNet
from escnet_export import Budget, ExportReport
from escnet_export.calibrate import Calibration, activation_ranges
from escnet_export.errors import ExportError
from escnet_export.plan import graph_of
from escnet_export.quantise import quantise
from escnet_runtime.bundle import Bundle
from escnet_runtime.images import ImageArray
from escnet_runtime.manifest import Precision
from escnet_runtime.segmenter import Segmenter
from escnet_runtime.verify import verify_bundle
from tests.export.broken import OUTLIERS, hostile
from tests.export.conftest import GraphFiles, exported, make_quick

INT8, FP8 = Precision.INT8, Precision.FP8
KINDS = {np.float16: TensorProto.FLOAT16, np.float32: TensorProto.FLOAT}
STORED = {INT8: TensorProto.INT8, FP8: TensorProto.FLOAT8E4M3FN}


@pytest.fixture(scope="module")
def plain_reports(
    mini: EscNet,
    graph_files: GraphFiles,
    picture: ImageArray,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[Precision], ExportReport]:
    """Bundles of ``mini`` in eight bits, whatever they cost. Do not change them."""

    @functools.cache
    def report(precision: Precision) -> ExportReport:
        any_loss = Budget(pixel_agreement=0.0, stage_l2=10.0)
        with pytest.MonkeyPatch.context() as monkeypatch:
            make_quick(monkeypatch, graph_files, picture)
            folder = tmp_path_factory.mktemp("plain") / "bundle"
            return exported(mini, picture, folder, precision=precision, budget=any_loss)

    return report


@pytest.fixture(scope="module")
def plain_errors(
    plain_reports: Callable[[Precision], ExportReport],
) -> Callable[[Precision], float]:
    """The error of the worst stage of ``mini`` in eight bits."""
    return lambda precision: max(
        error.relative_l2 for error in plain_reports(precision).parity.stages.values()
    )


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
@pytest.mark.parametrize(("precision", "largest"), [(INT8, 127), (FP8, 448)])
def test_a_product_is_quantised_with_a_scale_a_channel(
    kind: type[np.floating[Any]],
    method: Calibration,
    precision: Precision,
    largest: int,
    tmp_path: Path,
) -> None:
    weight = numbers(32, 8) * np.float32(2.0) ** np.arange(8, dtype=np.float32)
    path, target, x = product(tmp_path, kind, weight), tmp_path / "narrow.onnx", numbers(64, 32)
    ranges = activation_ranges(path, [{"x": x[:32]}, {"x": x[32:]}], method)
    assert ranges["narrow"] == pytest.approx(np.abs(x).max(), rel=0.35)
    assert quantise("esc0_sam", path, target, ranges, precision=precision) == 1
    graph = onnx.load(str(target)).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QuantizeLinear") == 1
    assert kinds.count("DequantizeLinear") == 2
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert "owner.w" not in tensors
    (stored,) = [tensor for tensor in graph.initializer if list(tensor.dims) == [32, 8]]
    assert stored.data_type == STORED[precision]
    steps = np.abs(tensors[stored.name].astype(np.float32))
    assert (steps.max(axis=0) == largest).all()  # each channel uses the whole range
    zeros = [tensor for tensor in graph.initializer if tensor.name.endswith("_zero")]
    assert {zero.data_type for zero in zeros} == {STORED[precision]}
    assert not any(tensors[zero.name].astype(np.float32).any() for zero in zeros)
    assert {value.dtype for name, value in tensors.items() if name.endswith("_scale")} == {
        np.dtype(kind)
    }
    want, got = run(path, x), run(target, x)
    error = np.linalg.norm(got - want, axis=0) / np.linalg.norm(want, axis=0)
    assert (error < 0.06).all()
    assert (got != want).any()
    assert run(target, numbers(5, 32)).shape == (5, 8)  # any other number of rows


def test_fp8_rounds_to_the_nearest_and_holds_what_is_beyond_its_range(tmp_path: Path) -> None:
    """As torch does, bit for bit; torch makes NaN of what is too large, and so it is held first."""
    path, target = product(tmp_path, np.float32, np.eye(32, dtype=np.float32)), tmp_path / "8.onnx"
    quantise("esc0_sam", path, target, {"narrow": 4.48}, precision=FP8)
    bias = numbers(32, seed=2)
    x = numbers(64, 32) * np.exp(3 * numbers(64, 32, seed=1))
    scale = np.float32(4.48 / 448)
    held = torch.tensor(x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float().numpy()
    assert (np.abs(x) > 4.48).any()
    np.testing.assert_allclose(run(target, x), held * scale + bias, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "shape", "channels", "attributes"),
    [
        ("MatMul", (6, 8), 1, {}),
        ("Gemm", (6, 8), 1, {}),
        ("Gemm", (6, 8), 1, {"transB": 0}),
        ("Gemm", (8, 6), 0, {"transB": 1}),
        ("Conv", (8, 6, 1, 1), 0, {}),
        ("ConvTranspose", (6, 8, 1, 1), 1, {}),
    ],
)
@pytest.mark.parametrize("precision", [INT8, FP8])
def test_a_scale_belongs_to_an_output_channel_in_every_product(
    precision: Precision,
    kind: str,
    shape: tuple[int, ...],
    channels: int,
    attributes: dict[str, Any],
    tmp_path: Path,
) -> None:
    """Channels of sizes far apart: along the other axis int8 would hold the small ones as 0."""
    sizes = (np.float32(2.0) ** -np.arange(8, dtype=np.float32)).reshape(
        [8 if axis == channels else 1 for axis in range(len(shape))]
    )
    batch = (5, 6, *(1 for _ in shape[2:]))
    node = helper.make_node(kind, ["x", "w"], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, batch)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (5, 8, *batch[2:]))],
        [numpy_helper.from_array(numbers(*shape) * sizes, "w")],
    )
    path, target = tmp_path / "plain.onnx", tmp_path / "narrow.onnx"
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), str(path))
    x = numbers(*batch, seed=1)
    largest = {"x": float(np.abs(x).max())}
    assert quantise("esc0_sam", path, target, largest, precision=precision) == 1
    (made,) = [
        node
        for node in onnx.load(str(target)).graph.node
        if node.op_type == "DequantizeLinear" and node.output[0].startswith("w")
    ]
    assert helper.get_node_attr_value(made, "axis") == channels
    want, got = (run(file, x).reshape(5, 8) for file in (path, target))
    error = np.linalg.norm(got - want, axis=0) / np.linalg.norm(want, axis=0)
    assert (error < 0.1).all()


def test_ranges_are_chosen_by_what_a_step_is() -> None:
    assert Calibration.default(INT8) is Calibration.PERCENTILE
    assert Calibration.default(FP8) is Calibration.LARGEST


def test_the_largest_value_of_all_runs_is_the_range(tmp_path: Path) -> None:
    path, x = product(tmp_path, np.float32, numbers(32, 8)), numbers(8, 32)
    ranges = activation_ranges(path, [{"x": x}, {"x": -3 * x}, {"x": x}], Calibration.LARGEST)
    assert ranges["narrow"] == pytest.approx(3 * np.abs(x).max(), rel=1e-6)


def test_a_block_that_is_kept_is_left_alone(tmp_path: Path) -> None:
    path, target = product(tmp_path, np.float32, numbers(32, 8)), tmp_path / "int8.onnx"
    ranges = activation_ranges(path, [{"x": numbers(4, 32)}], Calibration.ENTROPY)
    kept = quantise("esc0_sam", path, target, ranges, precision=INT8, keep=["esc0_sam"])
    assert kept == 0
    np.testing.assert_array_equal(run(path, numbers(4, 32)), run(target, numbers(4, 32)))


@pytest.mark.parametrize("method", list(Calibration))
def test_nothing_to_calibrate_on_is_an_error(method: Calibration, tmp_path: Path) -> None:
    path = product(tmp_path, np.float32, numbers(32, 8))
    with pytest.raises(ExportError, match=r"plain\.onnx could not be calibrated"):
        activation_ranges(path, [], method)


@pytest.mark.slow
@pytest.mark.parametrize("block", list(OUTLIERS))
@pytest.mark.parametrize("precision", [INT8, FP8])
def test_the_block_with_outliers_is_raised_and_no_other(
    precision: Precision,
    block: str,
    mini: EscNet,
    plain_errors: Callable[[Precision], float],
    graph_files: GraphFiles,
    picture: ImageArray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A budget that every other block holds by far, and this one does not."""
    limit = 1.2 * plain_errors(precision)
    make_quick(monkeypatch, graph_files, picture, changed=[graph_of(block)])
    budget = Budget(pixel_agreement=0.0, stage_l2=limit)
    model = hostile(mini, block, precision)
    report = exported(model, picture, tmp_path / "bundle", precision=precision, budget=budget)
    assert [kept.block for kept in report.parity.kept_higher] == [block]
    kept = report.parity.kept_higher[0]
    assert (kept.precision, kept.instead_of) == (Precision.FP16, precision)
    assert kept.damage is not None
    assert kept.damage > 1
    assert report.parity.stages[graph_of(block)].relative_l2 <= limit
    assert verify_bundle(report.bundle).passed
    with Segmenter(report.bundle, "onnxruntime", cache=None) as segmenter:
        labels = segmenter(picture, segmenter.vocabulary(["sky", "grass", "house"])).labels
    assert labels.shape == picture.shape[:2]


@pytest.mark.slow
@pytest.mark.parametrize("precision", [INT8, FP8])
def test_a_bundle_of_eight_bits_keeps_scores_and_sums_in_float32(
    precision: Precision,
    plain_reports: Callable[[Precision], ExportReport],
    graph_files: GraphFiles,
) -> None:
    report = plain_reports(precision)
    manifest = Bundle.open(report.bundle, check="hashes").manifest
    assert manifest.precision is precision
    assert manifest.stages["correlation"].precision is Precision.FP16
    wide = {"scores", "scores_out", "enhanced_sum", "kv_sum", "k_sum", "embeddings", "logits"}
    for name, stage in manifest.stages.items():
        assert all(port.dtype == "float32" for port in stage.outputs if port.name in wide)
        graph = onnx.load(str(report.bundle / stage.file)).graph
        stored = sum(tensor.data_type == STORED[precision] for tensor in graph.initializer)
        assert bool(stored) is (stage.precision is precision), name
    size = sum(stage.bytes for stage in manifest.stages.values())
    plain = sum(graph_files(name, Precision.FP16).stat().st_size for name in manifest.stages)
    assert size < plain
