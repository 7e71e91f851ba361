"""escnet-verify --layers: the node where numbers go wrong is named, and cut out with Polygraphy."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import escnet_runtime
from escnet_runtime.commands.verify import main
from escnet_runtime.errors import InputError
from escnet_runtime.layers import compare_layers
from escnet_runtime.layers_check import main as check_main
from escnet_runtime.layers_compare import compare_models, reference_graph
from escnet_runtime.layers_minimise import minimise_graph
from tests.runtime.hostile import replace_file

Captured = pytest.CaptureFixture[str]
FEEDS = {"x": np.linspace(0.5, 2.0, 8, dtype=np.float16).reshape(2, 4)}


def chain(*factors: float, kind: int = TensorProto.FLOAT16) -> onnx.ModelProto:
    """x times one factor after the other; the node of the k-th is called ``times_k``."""
    narrow = helper.tensor_dtype_to_np_dtype(kind)
    names = ["x", *[f"y{k}" for k in range(len(factors))]]
    weights = [
        numpy_helper.from_array(np.array(factor, narrow), f"w{k}")
        for k, factor in enumerate(factors)
    ]
    nodes = [
        helper.make_node("Mul", [names[k], f"w{k}"], [names[k + 1]], name=f"times_{k}")
        for k in range(len(factors))
    ]
    ports = [helper.make_tensor_value_info(name, kind, ["n", 4]) for name in names]
    graph = helper.make_graph(
        nodes, "chain", ports[:1], ports[-1:], weights, value_info=ports[1:-1]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def found(model: onnx.ModelProto) -> list[tuple[str, bool]]:
    """Each node, and whether it is beyond a bound that rounding keeps."""
    layers = compare_models(reference_graph(model), model, FEEDS)
    return [(layer.node, not layer.relative_l2 <= 5e-3) for layer in layers]


def test_rounding_is_within_bounds() -> None:
    model = chain(1.1, 1.3, 0.7)
    assert found(model) == [("times_0", False), ("times_1", False), ("times_2", False)]
    layers = compare_models(reference_graph(model), model, FEEDS)
    assert all(0 < layer.relative_l2 < 2e-3 for layer in layers)


def test_the_node_that_overflows_is_the_first_beyond() -> None:
    model = chain(2.0, 50.0, 1000.0, 0.001)
    assert found(model) == [
        ("times_0", False),
        ("times_1", False),
        ("times_2", True),
        ("times_3", True),
    ]
    layer = compare_models(reference_graph(model), model, FEEDS)[2]
    assert layer.relative_l2 == float("inf")
    assert (layer.op, layer.tensor) == ("Mul", "y2")
    assert layer.largest == pytest.approx(2.0 * 2.0 * 50.0 * 1000.0)


def test_what_is_not_a_number_is_beyond() -> None:
    model = chain(1.0, float("inf"), 0.0)
    assert found(model) == [("times_0", False), ("times_1", True), ("times_2", True)]


def test_another_graph_may_be_the_reference() -> None:
    typed, other = chain(1.1, 1.3), chain(1.1, 2.6, kind=TensorProto.FLOAT)
    layers = compare_models(reference_graph(typed, other), typed, FEEDS)
    assert layers[0].relative_l2 < 2e-3
    assert layers[1].relative_l2 == pytest.approx(0.5, rel=1e-2)


def test_tensors_are_given_out_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("escnet_runtime.layers_compare._MOST_OUTPUT_BYTES", 1)
    assert [name for name, _ in found(chain(1.1, 1.3, 0.7))] == ["times_0", "times_1", "times_2"]


@pytest.mark.slow
def test_polygraphy_cuts_out_the_node_that_overflows(tmp_path: Path) -> None:
    model = chain(1.5, 1.25, 0.75, 2.0, 50.0, 1000.0, 0.001, 0.5)
    target = tmp_path / "smallest.onnx"
    assert minimise_graph("chain", model, FEEDS, "y5", bound=5e-3, target=target) == 1
    (node,) = onnx.load_model(str(target)).graph.node
    assert node.name == "times_5"


def test_the_check_of_a_part(tmp_path: Path, capsys: Captured) -> None:
    model, values = tmp_path / "part.onnx", tmp_path / "values.npz"
    np.savez(values, x=FEEDS["x"].astype(np.float32))
    for factors, code in (((1.1, 1.3), 0), ((300.0, 300.0), 1)):
        onnx.save_model(chain(*factors), str(model))
        assert check_main([str(model), str(values), "0.005"]) == code
        assert "worst relative L2" in capsys.readouterr().out


# --- On a bundle ---------------------------------------------------------------------------------


def verify(words: Sequence[str | Path], capsys: Captured) -> tuple[int, dict[str, Any]]:
    code = main([*map(str, words), "--json"])
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, document


def test_the_layers_of_a_good_bundle(tiny_bundle: Path, capsys: Captured) -> None:
    code, said = verify([tiny_bundle, "--layers", "--stage", "correlation"], capsys)
    assert code == 0
    (stage,) = said["layers"]["stages"]
    assert stage["name"] == "correlation"
    assert stage["first"] is said["layers"]["first"] is None
    assert len(stage["layers"]) > 3
    assert {"node", "op", "tensor", "relative_l2", "largest"} == set(stage["layers"][0])
    assert said["layers"]["missing"] == []


def test_people_are_told_the_first_layer(tiny_bundle: Path, capsys: Captured) -> None:
    words = [str(tiny_bundle), "--layers", "--stage", "correlation", "--bound", "1e-9"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "The first beyond it is" in out
    assert "Its largest value in float32 is" in out


def test_a_bundle_that_is_not_whole_has_no_layers(bundle_copy: Path, capsys: Captured) -> None:
    replace_file(bundle_copy, "parity.json", b"{}")
    (bundle_copy / "parity.json").write_bytes(b"[]")
    code, said = verify([bundle_copy, "--layers"], capsys)
    assert code == 2
    assert "parity.json is damaged" in said["error"]["message"]


def test_wrong_options_are_refused(tiny_bundle: Path, tmp_path: Path, capsys: Captured) -> None:
    for words, message in (
        (["--stage", "decoder"], "--stage goes with --layers"),
        (["--minimise", str(tmp_path / "x.onnx")], "--minimise goes with --layers"),
        (["--layers", "--bound", "-1"], "expected a number above 0"),
    ):
        code, said = verify([tiny_bundle, *words], capsys)
        assert code == 2
        assert message in said["error"]["message"]
    with pytest.raises(InputError, match=r"no graph 'middle'; it has image_encoder"):
        compare_layers(tiny_bundle, stages=["middle"])
    target = tmp_path / "smallest.onnx"
    with pytest.raises(InputError, match="nothing to minimise"):
        compare_layers(tiny_bundle, stages=["esc0_fuse"], bound=1.0, minimise=target)
    assert not target.exists()


def test_without_polygraphy_it_says_what_to_install(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    loaded = ("polygraphy.", "escnet_runtime.layers")
    for name in [name for name in sys.modules if name.startswith(loaded)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(escnet_runtime, "layers", raising=False)
    code, said = verify([tiny_bundle, "--layers"], capsys)
    assert code == 1
    assert "polygraphy" in said["error"]["message"]
    assert "install escnet-runtime[layers]" in said["error"]["message"]
