"""OpenVINO runs a bundle's graphs: the same labels, in float32 or in bf16 as typed."""

import dataclasses
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest

from escnet_runtime import Segmenter
from escnet_runtime.backends import GraphFile, create_backend
from escnet_runtime.backends.openvino import OpenVinoBackend, _given
from escnet_runtime.backends_here import backends_here
from escnet_runtime.bundle import Bundle
from escnet_runtime.errors import BackendError, EscNetError
from escnet_runtime.lanes import best_lanes, usable_cores
from escnet_runtime.manifest import Precision
from escnet_runtime.verify import verify_bundle
from tests.runtime.forked import exit_status_of_a_child
from tests.runtime.hostile import replace_file


def _files(root: Path) -> dict[str, GraphFile]:
    bundle = Bundle.open(root)
    return {
        name: GraphFile.of(bundle.file(stage.file), stage)
        for name, stage in bundle.manifest.stages.items()
    }


def test_it_repeats_the_golden_run_beside_the_others(tiny_bundle: Path) -> None:
    report = verify_bundle(tiny_bundle)
    assert report.verdict.fine, report.verdict
    ran = [one.name for one in report.backends if one.state == "passed"]
    assert ran == ["onnxruntime", "openvino"]
    checks = {check.name for check in report.checks}
    stages = ("image_encoder", "esc0_sam", "esc1_image", "decoder", "labels")
    assert {f"openvino: {stage}" for stage in stages} <= checks


def test_a_graph_in_a_format_of_its_own_is_refused(bundle_copy: Path) -> None:
    """Its weights are in a second file, which has no hash in the bundle."""
    path = bundle_copy / "graphs/decoder.onnx"
    openvino.save_model(openvino.Core().read_model(path), path.with_suffix(".xml"))
    replace_file(bundle_copy, "graphs/decoder.onnx", path.with_suffix(".xml").read_bytes())
    assert path.with_suffix(".bin").is_file()
    with Segmenter(bundle_copy, "openvino", cache=None) as segmenter:
        vocabulary = segmenter.vocabulary(["red ring"])
        with pytest.raises(BackendError, match="graph 'decoder' failed in OpenVINO"):
            segmenter(np.zeros((8, 8, 3), np.uint8), vocabulary)


def test_words_have_the_same_place(tiny_bundle: Path) -> None:
    names = ["red ring", "a very long name of many words", "tiled floor"]
    with (
        Segmenter(tiny_bundle, "openvino", cache=None) as other,
        Segmenter(tiny_bundle, "onnxruntime", cache=None) as ours,
    ):
        assert other.backend.startswith("OpenVINO")
        both = other.vocabulary(names).embeddings * ours.vocabulary(names).embeddings
        assert both.sum(axis=1).min() > 0.999


def test_forms_of_a_graph_are_bounded(tiny_bundle: Path) -> None:
    backend = OpenVinoBackend(_files(tiny_bundle))
    stage = Bundle.open(tiny_bundle).manifest.stages["correlation"]
    types = {port.name: port.dtype for port in stage.inputs}
    sizes = {port.name: [int(n) for n in port.shape[1:]] for port in stage.inputs}
    features = np.zeros([1, *sizes["features"]], types["features"])
    for rows in range(1, 9):
        text = np.full([rows, *sizes["text"]], 0.1, types["text"])
        out = backend.run("correlation", {"features": features, "text": text})
        assert out["scores"].shape[0] == rows
    assert len(backend._compiled["correlation", 1]) == 4
    backend.release("correlation")
    assert not backend._compiled
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.run("correlation", {"features": features, "text": text})


def _drawn(
    root: Path, *, rows: int, count: int
) -> tuple[np.ndarray[Any, Any], list[np.ndarray[Any, Any]]]:
    """Random inputs of the graph "correlation": features, and so many texts of so many rows."""
    stage = Bundle.open(root).manifest.stages["correlation"]
    sizes = {port.name: [int(n) for n in port.shape[1:]] for port in stage.inputs}
    draw = np.random.default_rng(0).standard_normal
    features = draw([1, *sizes["features"]]).astype(np.float32)
    return features, [draw([rows, *sizes["text"]]).astype(np.float32) for _ in range(count)]


def test_chunks_run_side_by_side(tiny_bundle: Path) -> None:
    backend = OpenVinoBackend(_files(tiny_bundle))
    features, texts = _drawn(tiny_bundle, rows=16, count=12)

    def scores(text: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        out = backend.run("correlation", {"features": features, "text": text})
        return np.array(backend.to_host(out["scores"]))

    alone = [scores(text) for text in texts]
    lanes = backend.lanes([16] * 12)
    assert lanes == best_lanes([16] * 12, usable_cores())
    with ThreadPoolExecutor(4) as pool:  # more than it was told of: they wait, or get their own
        together = list(pool.map(scores, texts))
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)
    (form,) = backend._compiled["correlation", lanes].values()
    assert 1 <= len(form.free) <= 4


def test_what_a_run_gave_stays_and_its_memory_is_used_again(tiny_bundle: Path) -> None:
    backend = OpenVinoBackend(_files(tiny_bundle))
    features, texts = _drawn(tiny_bundle, rows=4, count=3)

    def run(text: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        scores: np.ndarray[Any, Any] = backend.run(
            "correlation", {"features": features, "text": text}
        )["scores"]
        return scores

    first = run(texts[0])
    before = first.copy()
    assert not np.array_equal(run(texts[1]), before)
    np.testing.assert_array_equal(first, before)
    del first
    # One is the request's, which has written it; another is lent, and then free for the next.
    places = {run(text).ctypes.data for text in texts * 3}
    assert len(places) <= 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
def test_a_forked_child_need_not_free_what_its_parent_used(tiny_bundle: Path) -> None:
    """OpenVINO would wait for threads that the child does not have."""
    held = [OpenVinoBackend(_files(tiny_bundle))]
    features, texts = _drawn(tiny_bundle, rows=4, count=1)
    inputs = {"features": features, "text": texts[0]}
    scores = held[0].run("correlation", inputs)["scores"].copy()
    assert exit_status_of_a_child(held.clear) == 0
    np.testing.assert_array_equal(held[0].run("correlation", inputs)["scores"], scores)


_FIRST_RUNS_AT_ONCE = """
import threading
import numpy as np
import openvino
from openvino import opset13
import escnet_runtime.backends.openvino

x = opset13.parameter([16, 16], np.float32)
model = openvino.Model([opset13.matmul(x, x, False, False)], [x])
compiled = openvino.Core().compile_model(model, "CPU", {"NUM_STREAMS": 2})
requests = [compiled.create_infer_request() for _ in range(4)]
start = threading.Barrier(4)

def run(request):
    start.wait()
    request.infer({0: np.ones((16, 16), np.float32)}, share_inputs=True)

threads = [threading.Thread(target=run, args=(one,)) for one in requests]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_first_runs_in_several_threads_do_not_wait_for_each_other() -> None:
    """Without what the backend's module does as it is imported, a quarter of these hang."""
    for _ in range(6):
        subprocess.run([sys.executable, "-c", _FIRST_RUNS_AT_ONCE], check=True, timeout=120)


def test_nothing_is_lowered(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that answers with another precision than asked for is refused."""
    real = openvino.CompiledModel.get_property

    def lowered(model: openvino.CompiledModel, name: str) -> object:
        if name == "INFERENCE_PRECISION_HINT":
            return openvino.Type.bf16
        return real(model, name)

    backend = OpenVinoBackend(_files(tiny_bundle))
    monkeypatch.setattr(openvino.CompiledModel, "get_property", lowered)
    with (
        Segmenter(tiny_bundle, backend) as segmenter,
        pytest.raises(BackendError, match="in bf16 though it was told f32"),
    ):
        segmenter.vocabulary(["ring"])


@pytest.mark.parametrize(
    ("able", "precision", "hint"),
    [
        (["FP32", "BF16"], Precision.BF16, "dynamic"),
        (["FP32"], Precision.BF16, "f32"),
        (["FP32", "BF16", "FP16"], Precision.FP16, "f32"),
        (["FP32", "BF16", "FP16"], Precision.FP32, "f32"),
    ],
)
def test_bf16_graphs_run_as_typed_where_the_processor_can(
    able: list[str],
    precision: Precision,
    hint: str,
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Any] = []
    asked, compiles = openvino.Core.get_property, openvino.Core.compile_model

    def get_property(core: openvino.Core, *names: str) -> Any:
        return able if "OPTIMIZATION_CAPABILITIES" in names else asked(core, *names)

    def compile_model(core: openvino.Core, model: Any, device: str, options: Any) -> Any:
        told.append(options["INFERENCE_PRECISION_HINT"])
        return compiles(core, model, device, options)

    monkeypatch.setattr(openvino.Core, "get_property", get_property)
    monkeypatch.setattr(openvino.Core, "compile_model", compile_model)
    files = {
        name: dataclasses.replace(file, precision=precision)
        for name, file in _files(tiny_bundle).items()
    }
    backend = OpenVinoBackend(files)
    with Segmenter(tiny_bundle, backend, cache=None) as segmenter:
        segmenter.vocabulary(["ring"])
    assert told == [hint]
    assert backend.description.endswith("as typed" if hint == "dynamic" else "in float32")


def test_bf16_goes_in_rounded_and_comes_out_as_what_it_is(tiny_bundle: Path) -> None:
    draw = np.random.default_rng(0).standard_normal(5000)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.00390625, 1.01171875, 3.4e38, 1e-40]
    torch = pytest.importorskip("torch")
    values = np.concatenate([draw, special]).astype(np.float32)
    given = _given(values, bf16=True)
    assert given.dtype == np.float16  # what OpenVINO calls its bits
    again = OpenVinoBackend(_files(tiny_bundle)).to_host(given.view(np.uint16))
    np.testing.assert_array_equal(again, torch.from_numpy(values).bfloat16().float().numpy())
    np.testing.assert_array_equal(_given(given.view(np.uint16), bf16=True), given)
    assert _given(values, bf16=False).dtype == np.float32


def test_eight_bits_are_refused_with_advice(tiny_bundle: Path) -> None:
    file = _files(tiny_bundle)["correlation"]
    with pytest.raises(BackendError, match=r"typed int8.*onnxruntime"):
        create_backend({"x": GraphFile(file.path, Precision.INT8)}, "openvino")


def test_a_graph_that_is_not_there(tiny_bundle: Path) -> None:
    with pytest.raises(EscNetError, match="no graph 'nothing'"):
        OpenVinoBackend(_files(tiny_bundle)).run("nothing", {})


@pytest.mark.parametrize(
    ("precision", "lacks"), [(Precision.FP16, None), (Precision.INT8, "graphs are typed int8")]
)
def test_it_is_among_the_backends_here(
    precision: Precision, lacks: str | None, tiny_bundle: Path
) -> None:
    found = {one.name: one.lacks for one in backends_here(tiny_bundle, [], [precision])}
    assert found["openvino"] == lacks


def test_without_the_library_the_extra_is_named(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "openvino" else real(name, *rest),
    )
    with pytest.raises(BackendError, match=r"install escnet-runtime\[openvino\]"):
        Segmenter(tiny_bundle, "openvino")
    found = {one.name: one.lacks for one in backends_here(tiny_bundle, [], [Precision.FP32])}
    assert "escnet-runtime[openvino]" in (found["openvino"] or "")


def test_openvino_does_not_report_that_it_is_imported(tmp_path: Path) -> None:
    program = """
import sys
import escnet_runtime.backends.openvino
print(sorted(name for name in sys.modules if name.startswith("openvino_telemetry")))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip() == "[]", done.stderr
    assert not list(tmp_path.iterdir())  # it keeps an identifier of the user there
