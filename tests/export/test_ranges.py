"""Values that float16 does not hold are found by name, on a machine that need not show them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from escnet_export.ranges import FLOAT16_LIMIT, Trap, find_traps, worst_first


def graph(folder: Path, factor: float, weight: float = 1.0) -> Path:
    """x · factor, then divided by it again, in float16 but for the float32 input and output."""
    half, single = TensorProto.FLOAT16, TensorProto.FLOAT
    scales = {"owner.layer.weight": weight, "factor": factor}
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=half),
        helper.make_node("Mul", ["narrow", "owner.layer.weight"], ["first"]),
        helper.make_node("Mul", ["first", "factor"], ["large"]),
        helper.make_node("Div", ["large", "factor"], ["small"]),
        helper.make_node("Cast", ["small"], ["y"], to=single),
    ]
    with np.errstate(over="ignore"):
        weights = [
            numpy_helper.from_array(np.array(value, np.float16), name)
            for name, value in scales.items()
        ]
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", single, [4])],
        [helper.make_tensor_value_info("y", single, [4])],
        weights,
    )
    path = folder / "graph.onnx"
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(made, opset_imports=opset, ir_version=10), str(path))
    return path


def traps(path: Path, *largest: float) -> list[Trap]:
    """Of runs with these values, negative ones."""
    return find_traps("esc0_sam", path, [{"x": np.full(4, -x, np.float32)} for x in largest])


def test_what_leaves_float16_is_named_with_its_true_size(tmp_path: Path) -> None:
    found = traps(graph(tmp_path, 1000.0), 1.0, 70.0)
    assert [(trap.tensor, trap.op, trap.block) for trap in found] == [("large", "Mul", "esc0_sam")]
    assert found[0].largest == pytest.approx(70_000)
    assert found[0].overflows
    assert found[0].near == "layer.weight"
    assert "'large' (after layer.weight) reaches 70,000, which exceeds" in found[0].why()


def test_what_is_near_the_limit_is_told_apart(tmp_path: Path) -> None:
    found = traps(graph(tmp_path, 1000.0), 60.0)
    assert [trap.overflows for trap in found] == [False]
    assert "is near" in found[0].why()
    assert traps(graph(tmp_path, 1000.0), 6.0) == []


def test_the_limit_itself_is_held(tmp_path: Path) -> None:
    found = traps(graph(tmp_path, 1.0), FLOAT16_LIMIT)
    assert found
    assert not any(trap.overflows for trap in found)


def test_a_weight_beyond_float16_is_named(tmp_path: Path) -> None:
    found = traps(graph(tmp_path, 1.0, weight=1e6), 1.0)
    assert [(trap.tensor, trap.op) for trap in found] == [("owner.layer.weight", "weight")]
    assert found[0].overflows


def test_the_worst_of_each_block_comes_first() -> None:
    def trap(block: str, largest: float) -> Trap:
        return Trap(block=block, tensor=f"t{largest}", op="Mul", near="", largest=largest)

    listed = worst_first([trap("a", 1e4), trap("b", 9e4), trap("a", np.inf), trap("b", 8e4)])
    assert [(one.block, one.largest) for one in listed] == [("a", np.inf), ("b", 9e4)]
