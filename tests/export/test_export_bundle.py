"""A bundle is whole and says what it is, or it is not there at all."""

import errno
import json
import shutil
import threading
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from escnet.presets import preset
from escnet_export import Budget, ExportReport, ParityError
from escnet_export.check import STAGE_TOLERANCE
from escnet_export.errors import ExportError
from escnet_export.reference import RecordingBackend
from escnet_export.report import StageError
from escnet_export.scenes import default_scenes
from escnet_runtime.backends.onnxruntime import OnnxRuntimeBackend
from escnet_runtime.bundle import Bundle
from escnet_runtime.errors import InputError
from escnet_runtime.manifest import Precision, Stage
from escnet_runtime.strict_json import parse_object
from escnet_runtime.verify import verify_bundle
from escnet_runtime.world.words import HELD_OUT
from tests.export.conftest import Export, GraphFiles

#: As far as it tells a bundle from other folders.
OLD = b'{"schema_version": "1.0", "digest": "", "model": {}, "stages": {}}'
IMPOSSIBLE = Budget(pixel_agreement=1.0, stage_l2=0.0)
TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int32": TensorProto.INT32,
}
#: What the runtime computes with: float32 or int32 at every precision.
WIDE = {
    *("image", "features", "tokens", "embeddings", "text", "scores", "scores_out", "logits"),
    *("points", "point_labels", "regions", "probabilities", "weight"),
    *("enhanced_sum", "enhanced_mean", "kv_sum", "k_sum", "kv_mean", "k_mean"),
}
#: Angles of the positional encoding reach tens of radians.
FLOAT32_WEIGHT = "positional_encoding_gaussian_matrix"


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(entry.name for entry in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a bundle."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder with a bundle that another export left."""
    folder = tmp_path / "place" / "bundle"
    folder.mkdir(parents=True)
    (folder / "bundle.json").write_bytes(OLD)
    return folder


@pytest.fixture(scope="module")
def stages(tiny_bundle: Path) -> dict[str, Stage]:
    """The graphs of an fp16 bundle."""
    return Bundle.open(tiny_bundle).manifest.stages


def test_a_bundle_is_what_the_report_says(mini_report: ExportReport) -> None:
    bundle = Bundle.open(mini_report.bundle, check="hashes")
    manifest = bundle.manifest
    assert names(mini_report.bundle.parent) == ["bundle"]
    assert manifest.precision is mini_report.precision is Precision.FP32
    assert (manifest.model.name, manifest.model.blocks) == ("mini", 2)
    assert not manifest.model.trained
    assert list(manifest.stages) == list(mini_report.checks)
    for found in mini_report.checks.values():
        assert 0 <= max(found.values()) <= 1e-4
    assert manifest.producer.keys() >= {"escnet", "torch", "onnx", "onnxruntime", "python"}
    listed = {reference.file for reference in manifest.files()} | {"bundle.json"}
    assert set(contents(mini_report.bundle)) == listed  # nothing unaccounted for


def test_parity_is_in_the_manifest(mini_report: ExportReport) -> None:
    parity = Bundle.open(mini_report.bundle).manifest.parity
    assert parity.passed
    assert not parity.allowed_failure
    assert parity.gate == "stages"
    assert parity.pixel_agreement == mini_report.parity.pixel_agreement
    assert parity.prompt_flips == mini_report.parity.prompt_flips


def test_a_bundle_verifies(mini_report: ExportReport) -> None:
    report = verify_bundle(mini_report.bundle)
    assert report.passed, [check for check in report.checks if not check.passed]


def test_parity_is_written_for_people_and_programs(mini_report: ExportReport) -> None:
    data = parse_object((mini_report.bundle / "parity.json").read_text(), "parity.json")
    assert data["passed"] is True
    assert data["model"] == "mini"
    assert (data["gate"], data["images"], data["trained"]) == ("stages", 1, False)
    assert data["stages"].keys() == Bundle.open(mini_report.bundle).manifest.stages.keys()
    assert data["stages"]["decoder"].keys() == {"relative_l2", "cosine"}
    assert data["reason"] == mini_report.parity.reason()
    assert "<html" in (mini_report.bundle / "parity.html").read_text().lower()


def test_the_golden_run_is_measured_too_where_the_images_are_others(
    export: Export,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What is calibrated on dark photos is coarser on the built-in scene: no fault of a device."""
    monkeypatch.setattr(
        "escnet_export.golden_run.stage_error", lambda *_: StageError(relative_l2=0.5, cosine=0.8)
    )
    report = export(tmp_path / "bundle")
    assert report.parity.stages[report.parity.worst_stage].relative_l2 < 1e-4
    reference = json.loads((report.bundle / "golden" / "reference.json").read_text())
    assert reference["stage_tolerance"] == pytest.approx(1.0)
    assert reference["pixel_agreement"] <= 0.999 - 0.02
    assert verify_bundle(report.bundle).passed
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "the worst graph has a relative L2 of 0.5 to float32" in warning
    assert "100.0 % of pixels keep their label" in warning


def test_a_wide_budget_is_no_excuse_for_a_device(export: Export, tmp_path: Path) -> None:
    report = export(tmp_path / "bundle", budget=Budget(pixel_agreement=0.0, stage_l2=10.0))
    reference = json.loads((report.bundle / "golden" / "reference.json").read_text())
    assert reference["stage_tolerance"] == STAGE_TOLERANCE[Precision.FP32]
    assert reference["pixel_agreement"] >= 0.97 - report.parity.near_ties > 0.5
    assert verify_bundle(report.bundle).passed


def test_trained_weights_are_judged_by_pixels(export: Export, tmp_path: Path) -> None:
    budget = Budget(pixel_agreement=0.99, stage_l2=0.0)
    options = {"trained": True, "allow_parity_failure": True}
    report = export(tmp_path / "bundle", budget=budget, **options)
    manifest = Bundle.open(report.bundle).manifest
    assert manifest.model.trained
    assert manifest.parity.gate == report.parity.gate == "pixels"
    assert not manifest.parity.allowed_failure  # it was allowed and did not happen
    assert manifest.parity.pixel_agreement >= 0.99


def test_a_missed_budget_leaves_nothing(export: Export, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="nothing was written"):
        export(tmp_path / "place" / "bundle", budget=IMPOSSIBLE)
    assert names(tmp_path / "place") == []


def test_a_missed_budget_keeps_the_old_bundle(export: Export, old: Path) -> None:
    with pytest.raises(ParityError, match="stages are the gate: worst relative L2"):
        export(old, budget=IMPOSSIBLE)
    assert names(old.parent) == ["bundle"]
    assert contents(old) == {"bundle.json": OLD}


def test_a_failure_that_is_allowed_is_written_and_said(export: Export, old: Path) -> None:
    steps: list[str] = []
    options = {"allow_parity_failure": True, "step": steps.append}
    report = export(old, budget=IMPOSSIBLE, **options)
    assert {f"export {name}" for name in report.checks} <= set(steps)
    assert not report.parity.passed
    parity = Bundle.open(old, check="hashes").manifest.parity
    assert not parity.passed
    assert parity.allowed_failure
    assert json.loads((old / "parity.json").read_text())["passed"] is False
    assert "Failed" in (old / "parity.html").read_text()
    assert names(old.parent) == ["bundle"]


def test_a_graph_that_gives_nan_is_refused_or_said_in_json(
    export: Export, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN is no JSON: the bundle must be readable all the same."""
    run = OnnxRuntimeBackend.run

    def broken(self: OnnxRuntimeBackend, graph: str, inputs: Any) -> dict[str, Any]:
        out = run(self, graph, inputs)
        if graph == "esc1_fuse" and len(self._graphs) > 1:  # not when the graph is checked alone
            out["guidance"] = np.full(out["guidance"].shape, np.nan, np.float32)
        return out

    monkeypatch.setattr(OnnxRuntimeBackend, "run", broken)
    with pytest.raises(ParityError, match="'esc1_fuse' gives numbers that are not finite"):
        export(old)
    assert contents(old) == {"bundle.json": OLD}
    export(old, allow_parity_failure=True)
    data = parse_object((old / "parity.json").read_text(), "parity.json")
    assert data["stages"]["esc1_fuse"] == {"relative_l2": None, "cosine": -1.0}
    Bundle.open(old, check="hashes")
    monkeypatch.undo()
    assert verify_bundle(old).passed  # the files themselves are fine


def test_a_wrong_graph_is_refused_by_name(
    export: Export, graph_files: GraphFiles, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block's file holds the weights of another block."""
    own = graph_files("esc1_sam", Precision.FP32)
    other = graph_files("esc0_sam", Precision.FP32)
    copy = shutil.copyfile

    def swapped(source: Path, target: Path) -> Path:
        return copy(other if source == own else source, target)

    monkeypatch.setattr(shutil, "copyfile", swapped)  # by which the quick exporter writes
    with pytest.raises(ExportError, match="graph 'esc1_sam' at 2 categories differs"):
        export(old)
    assert names(old.parent) == ["bundle"]
    assert contents(old) == {"bundle.json": OLD}


@pytest.mark.parametrize(
    "where", ["bundle.write_tokenizer", "parity_files.parity_page", "bundle.write_manifest"]
)
def test_a_full_disk_leaves_the_old_bundle(
    where: str, export: Export, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"escnet_export.{where}", full)
    with pytest.raises(OSError, match="No space left") as caught:
        export(old)
    assert caught.value.errno == errno.ENOSPC
    assert names(old.parent) == ["bundle"]
    assert contents(old) == {"bundle.json": OLD}


def test_ctrl_c_in_the_middle_leaves_the_old_bundle(
    export: Export, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = RecordingBackend.run, []

    def interrupted(self: RecordingBackend, graph: str, inputs: Any) -> dict[str, Any]:
        calls.append(graph)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return run(self, graph, inputs)

    monkeypatch.setattr(RecordingBackend, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(old)
    assert names(old.parent) == ["bundle"]
    assert contents(old) == {"bundle.json": OLD}


def test_two_exports_to_one_place_leave_one_whole_bundle(export: Export, old: Path) -> None:
    errors: list[BaseException] = []

    def run(weights: str) -> None:
        try:
            export(old, weights=weights)
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=run, args=(weights,)) for weights in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert names(old.parent) == ["bundle"]
    assert Bundle.open(old, check="hashes").manifest.model.weights in ("one", "two")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_bundle_is_refused_before_any_work(
    kind: str, export: Export, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine").write_text("mine")
    steps: list[str] = []
    with pytest.raises(InputError, match="target"):
        export(target, step=steps.append)
    assert not steps
    assert names(tmp_path) == ["target"]


def test_no_image_is_an_error(export: Export, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected at least one"):
        export(tmp_path / "bundle", images=[])
    assert names(tmp_path) == []


def test_pictures_of_the_package_are_the_default(export: Export, tmp_path: Path) -> None:
    report = export(tmp_path / "bundle", images=None)
    assert report.parity.images == 3


def test_the_default_pictures_are_those_of_the_models_world() -> None:
    small, large = (default_scenes(preset(name)) for name in ("tiny", "vit-b-16"))
    for scenes in (small, large):
        assert len({image.tobytes() for image in scenes.images}) == 3
        assert len(set(scenes.categories)) == len(scenes.categories)
    held_out = {one.name for one in HELD_OUT}
    assert held_out & set(small.categories), "nothing that training never saw"
    assert "sky" in large.categories


def test_ports_are_of_the_types_and_shapes_the_manifest_says(
    stages: dict[str, Stage], tiny_bundle: Path
) -> None:
    for stage in stages.values():
        graph = onnx.load(str(tiny_bundle / stage.file)).graph
        for listed, specs in ((graph.input, stage.inputs), (graph.output, stage.outputs)):
            assert [value.name for value in listed] == [spec.name for spec in specs]
            for value, spec in zip(listed, specs, strict=True):
                tensor = value.type.tensor_type
                shape = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
                assert tensor.elem_type == TYPES[spec.dtype], f"{stage.file} {spec}"
                assert shape == spec.shape, f"{stage.file} {spec}"


def test_what_the_runtime_computes_with_is_wide_at_fp16(stages: dict[str, Stage]) -> None:
    for stage in stages.values():
        assert stage.precision is Precision.FP16
        for spec in (*stage.inputs, *stage.outputs):
            assert (spec.dtype == "float16") is (spec.name not in WIDE), f"{stage.file} {spec}"


def test_an_fp16_file_holds_fp16_weights(stages: dict[str, Stage], tiny_bundle: Path) -> None:
    tiny = preset("tiny")
    for stage in stages.values():
        tensors = onnx.load(str(tiny_bundle / stage.file)).graph.initializer
        sizes = {TensorProto.FLOAT: 0, TensorProto.FLOAT16: 0}
        for tensor in tensors:
            if tensor.name.endswith((".weight", ".bias")):
                assert tensor.data_type == TensorProto.FLOAT16, f"{stage.file} {tensor.name}"
            if tensor.data_type in sizes:
                sizes[tensor.data_type] += int(np.prod(tensor.dims))
        # Constants remain: the positions of SAM's encoder and what folding made of small weights.
        positions = tiny.grid**2 * tiny.sam.embed_dim if stage.file.endswith("_sam.onnx") else 0
        rest = sizes[TensorProto.FLOAT] - positions
        assert 0 <= rest <= 0.03 * sizes[TensorProto.FLOAT16], stage.file
