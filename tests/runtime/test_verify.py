"""escnet-verify: each way in which a bundle or a device can be wrong has a check that says so."""

import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from escnet_runtime import backends_here, verify
from escnet_runtime.backends import BACKENDS
from escnet_runtime.backends.onnxruntime import VERSION, OnnxRuntimeBackend
from escnet_runtime.bundle import Bundle, sha256_file
from escnet_runtime.commands.verify import main
from escnet_runtime.engine_record import Engine, EngineRecord, Fingerprint
from escnet_runtime.engines import fingerprint_here
from escnet_runtime.errors import BackendError, BundleError
from escnet_runtime.gpu import choose
from escnet_runtime.manifest import FileRef, Manifest
from escnet_runtime.nvidia import Gpu
from escnet_runtime.verify import Check, verify_bundle
from escnet_runtime.verify_checks import library_check
from tests.device.host_device import HostDevice
from tests.gpu.host_graphs import host_opener
from tests.kernels.machines import HostMachine

Captured = pytest.CaptureFixture[str]
_Ref = TypeVar("_Ref", bound=FileRef)


@pytest.fixture(autouse=True)
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is installed where these tests run, and has its own (``test_openvino.py``)."""
    others = tuple(name for name in BACKENDS if name != "openvino")
    monkeypatch.setattr(backends_here, "BACKENDS", others)


def checks_of(path: Path, backend: str = "auto") -> dict[str, Check]:
    report = verify_bundle(path, backend)
    assert report.passed == all(check.passed for check in report.checks)
    checks = {check.name: check for check in report.checks}
    assert len(checks) == len(report.checks)
    return checks


def failed(checks: Mapping[str, Check]) -> list[str]:
    return [name for name, check in checks.items() if not check.passed]


def sign(root: Path) -> None:
    """Make the bundle's description fit its files again."""
    path = root / "bundle.json"
    manifest = Manifest.from_json(path.read_text(encoding="utf-8"))

    def fitted(ref: _Ref) -> _Ref:
        file = root / ref.file
        return replace(ref, sha256=sha256_file(file), bytes=file.stat().st_size)

    golden = replace(manifest.golden, files=tuple(map(fitted, manifest.golden.files)))
    tokenizer = fitted(manifest.tokenizer)
    signed = replace(manifest, golden=golden, tokenizer=tokenizer)
    path.write_text(signed.to_json(), encoding="utf-8")


def change_reference(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = root / "golden" / "reference.json"
    reference = json.loads(path.read_text(encoding="utf-8"))
    change(reference)
    path.write_text(json.dumps(reference), encoding="utf-8")
    sign(root)


def change_graph(monkeypatch: pytest.MonkeyPatch, graph: str, change: Callable[[Any], Any]) -> None:
    """A device that does something else to what ``graph`` gives."""
    run = OnnxRuntimeBackend.run

    def changed(self: OnnxRuntimeBackend, name: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        outputs = run(self, name, inputs)
        if name != graph:
            return outputs
        return {key: change(self.to_host(value)) for key, value in outputs.items()}

    monkeypatch.setattr(OnnxRuntimeBackend, "run", changed)


# --- Good bundles --------------------------------------------------------------------------------


def test_a_good_bundle_passes(tiny_bundle: Path, capsys: Captured) -> None:
    assert main([str(tiny_bundle), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["passed"] is True
    names = [check["name"] for check in document["checks"]]
    start = ["manifest", "files", "library", "backend", "tokenizer", "preprocessing"]
    assert names[:8] == [*start, "text_encoder", "image_encoder"]
    assert names[-3:] == ["decoder", "prompts", "labels"]
    assert {f"esc{block}_{part}" for block in range(4) for part in ("sam", "text")} <= {*names}
    assert all(set(check) == {"name", "passed", "detail"} for check in document["checks"])
    assert all(check["detail"] for check in document["checks"])


def test_people_get_a_list_and_a_verdict(
    tiny_bundle: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([str(tiny_bundle)]) == 0
    out, _ = capsys.readouterr()
    first, why, *_ = out.splitlines()
    assert first == "This bundle is fine on this device."
    assert "files are as they were written" in why
    change_graph(monkeypatch, "decoder", np.negative)
    assert main([str(tiny_bundle), "--quiet"]) == 1
    out, err = capsys.readouterr()
    assert "FAILED  decoder" in out
    first, advice, why, *_ = out.splitlines()
    assert first == (
        "This bundle is not fine on this device: the graph 'decoder' does not compute here what it "
        "should."
    )
    assert advice.startswith("What to do: Do not rely on its masks here.")
    assert why.startswith("2 of")
    assert err == ""


# --- Bad bundles ---------------------------------------------------------------------------------


def test_what_is_no_bundle_is_wrong_input(tmp_path: Path, capsys: Captured) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(BundleError):
            verify_bundle(path)
        assert main([str(path), "--json"]) == 2
        assert json.loads(capsys.readouterr().out)["error"]["type"] == "BundleError"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": "4.0"}, "Update escnet-runtime"),
        ({"mood": "good"}, "mood"),
        ({"precision": "fp32"}, "digest"),
    ],
)
def test_a_manifest_that_cannot_be_used_ends_it(
    bundle_copy: Path, change: dict[str, str], said: str
) -> None:
    path = bundle_copy / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}), encoding="utf-8")
    checks = checks_of(bundle_copy)
    assert [*checks] == ["manifest"] == failed(checks)
    assert said in checks["manifest"].detail


def test_every_damaged_file_is_named_and_no_graph_runs(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, parity = bundle_copy / "graphs" / "decoder.onnx", bundle_copy / "parity.html"
    data = bytearray(decoder.read_bytes())
    data[len(data) // 2] ^= 1
    decoder.write_bytes(data)
    parity.write_bytes(parity.read_bytes()[:-1])
    (bundle_copy / "golden" / "labels.png").unlink()

    def never(*_: object) -> None:
        raise AssertionError("a graph ran")

    monkeypatch.setattr(OnnxRuntimeBackend, "run", never)
    checks = checks_of(bundle_copy)
    assert failed(checks) == ["files", "golden_run"]
    for said in ("decoder.onnx: has sha256", "parity.html: has", "labels.png: is missing"):
        assert said in checks["files"].detail
    assert "damaged or missing" in checks["golden_run"].detail


@pytest.mark.parametrize(
    ("installed", "passed"),
    [("1.9.2", False), ("1.31.0", True), ("1.32.0", True), ("2.0", True), (None, False)],
)
def test_the_library_must_be_able_to_read_the_bundle(
    bundle_copy: Path, installed: str | None, passed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if installed is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed

    if installed is None:
        monkeypatch.setitem(sys.modules, "escnet_runtime.backends.onnxruntime", None)

    path = bundle_copy / "bundle.json"
    manifest = Manifest.from_json(path.read_text(encoding="utf-8"))
    producer = {**manifest.producer, "onnxruntime": "1.32.0"}
    path.write_text(replace(manifest, producer=producer).to_json(), encoding="utf-8")
    (bundle_copy / "parity.html").unlink()  # the golden run is not what this is about
    monkeypatch.setattr("escnet_runtime.verify_checks.importlib.metadata.version", version)
    check = checks_of(bundle_copy)["library"]
    assert check.passed == passed
    assert "1.32.0" in check.detail
    assert (installed or "install") in check.detail


def test_a_library_that_is_missing_need_not_be_the_one_of_the_export(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a Python that is older, such as a Jetson's, that one may not exist."""
    monkeypatch.setattr("escnet_runtime.verify_checks._installed_onnxruntime", lambda: None)
    check = library_check({"onnxruntime": "1.32.0", "onnxruntime_minimum": "1.18"})
    assert check.advice.endswith("with onnxruntime>=1.18.")


def test_a_library_of_another_distribution_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-openvino and onnxruntime-directml bring the same module, as do own builds."""

    def unknown(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("escnet_runtime.verify_checks.importlib.metadata.version", unknown)
    check = library_check({"onnxruntime": VERSION})
    assert check.passed
    assert check.detail.startswith(f"ONNX Runtime {VERSION} is here")


def test_a_golden_prompt_that_the_device_would_not_choose_is_counted(bundle_copy: Path) -> None:
    path = bundle_copy / "golden" / "prompts.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    before = int(checks_of(bundle_copy)["prompts"].detail.split(" of ")[0].split()[-1])
    arrays["points"][-1, 0, 0] = (arrays["points"][-1, 0, 0] + 1) % 4
    np.savez_compressed(path, **arrays)
    sign(bundle_copy)
    check = checks_of(bundle_copy)["prompts"]
    assert check.passed
    assert f"choose {before + 1} of" in check.detail


def test_other_token_ids_fail(bundle_copy: Path) -> None:
    texts = []

    def change(reference: dict[str, Any]) -> None:
        reference["tokens"][3][1] += 1
        texts.extend(reference["prompts"])

    change_reference(bundle_copy, change)
    check = checks_of(bundle_copy)["tokenizer"]
    assert not check.passed
    assert len(texts) > 10
    assert f"1 of {len(texts)} texts" in check.detail


def test_another_preprocessing_fails(bundle_copy: Path) -> None:
    def change(reference: dict[str, Any]) -> None:
        reference["preprocessed"] = [1.01 * value for value in reference["preprocessed"]]

    change_reference(bundle_copy, change)
    assert failed(checks_of(bundle_copy)) == ["preprocessing"]


def _without_prompts(root: Path) -> None:
    np.savez(root / "golden" / "prompts.npz", points=np.zeros(3, np.int8))


def _small_prompts(root: Path) -> None:
    np.savez(
        root / "golden" / "prompts.npz",
        points=np.zeros((1, 2, 3, 2), np.int8),
        point_labels=np.zeros((1, 2, 3), np.int8),
        regions=np.zeros((1, 2, 24, 24), np.int8),
    )


def _pickled_prompts(root: Path) -> None:
    np.savez(
        root / "golden" / "prompts.npz",
        points=np.array([{}], object),
        point_labels=np.zeros(1, np.int8),
        regions=np.zeros(1, np.int8),
    )


def _no_archive(root: Path) -> None:
    (root / "golden" / "prompts.npz").write_bytes(b"PK\x03\x04 torn")


def _no_json(root: Path) -> None:
    (root / "golden" / "reference.json").write_text("[]", encoding="utf-8")


def _torn_labels(root: Path) -> None:
    path = root / "golden" / "labels.png"
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    "change",
    [_without_prompts, _small_prompts, _pickled_prompts, _no_archive, _no_json, _torn_labels],
)
def test_golden_files_that_cannot_be_used_are_a_failed_check(
    bundle_copy: Path, change: Callable[[Path], None]
) -> None:
    change(bundle_copy)
    sign(bundle_copy)
    checks = checks_of(bundle_copy)
    assert failed(checks) == ["golden_run"]
    assert "golden files cannot be used" in checks["golden_run"].detail


def test_ragged_tokens_are_a_failed_check(bundle_copy: Path) -> None:
    change_reference(bundle_copy, lambda reference: reference["tokens"][0].append(0))
    assert failed(checks_of(bundle_copy)) == ["golden_run"]


# --- Bad devices ---------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [lambda array: array * 1.5, lambda array: array + np.inf])
def test_a_stage_that_computes_otherwise_is_named_first(
    tiny_bundle: Path, change: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    change_graph(monkeypatch, "esc1_fuse", lambda array: change(array).astype(array.dtype))
    checks = checks_of(tiny_bundle)
    assert failed(checks)[0] == "esc1_fuse"
    assert "at most" in checks["esc1_fuse"].detail


def test_a_graph_that_fails_ends_the_run(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise BackendError("graph 'esc2_sam' failed: no memory")

    change_graph(monkeypatch, "esc2_sam", fail)
    checks = checks_of(tiny_bundle)
    names = list(checks)
    reached = [name for name in names if checks[name].passed]
    assert reached == [*names[: names.index("esc2_sam")], "prompts"]
    assert "no memory" in checks["labels"].detail


def test_a_backend_that_is_not_there_is_a_failed_check(tiny_bundle: Path) -> None:
    report = verify_bundle(tiny_bundle, "abacus")
    checks = {check.name: check for check in report.checks}
    assert failed(checks) == ["backend", "golden_run"]
    assert "abacus" in checks["backend"].detail
    # Another one may well be there.
    assert "the backend that was asked for, abacus, cannot run" in report.verdict.sentence


def test_a_stage_of_another_name_fails(bundle_copy: Path) -> None:
    def change(reference: dict[str, Any]) -> None:
        stages = reference["stages"]
        stages["esc0_merge"] = stages.pop("esc0_fuse")
        stages["decoder"]["depth"] = stages["decoder"]["logits"]

    change_reference(bundle_copy, change)
    assert failed(checks_of(bundle_copy)) == ["decoder", "esc0_merge", "esc0_fuse"]


# --- Engines -------------------------------------------------------------------------------------

FOLDER = "engines/tensorrt-rtx-sm_86"


def add_engines(root: Path, **fingerprint: Any) -> None:
    """Files in place of engines, made of this bundle's graphs for the device of ``on_a_gpu``."""
    manifest = Manifest.from_json((root / "bundle.json").read_text(encoding="utf-8"))
    place = root / FOLDER
    place.mkdir(parents=True)
    engines = {}
    for name, stage in manifest.stages.items():
        path = place / f"{name}.engine"
        path.write_bytes(name.encode())
        engines[name] = Engine(
            file=path.name,
            sha256=sha256_file(path),
            bytes=path.stat().st_size,
            onnx_sha256=stage.sha256,
            profiles=(),
            scratch_bytes=0,
            seconds=1.0,
        )
    values = {
        "backend": "tensorrt-rtx",
        "version": "1.7.1.116",
        "targets": ("sm_86",),
        "driver": None,
        "os": fingerprint_here("tensorrt-rtx", "").os,
        **fingerprint,
    }
    record = EngineRecord(fingerprint=Fingerprint(**values), engines=engines)
    (place / "engine.json").write_text(record.to_json(), encoding="utf-8")


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device with an sm_86 and TensorRT-RTX 1.7.1.116."""
    gpu = Gpu(target="sm_86", driver="13.0")
    pretend(monkeypatch, gpu, "1.7.1.116")


def pretend(monkeypatch: pytest.MonkeyPatch, gpu: Gpu | None, version: str | None) -> None:
    """A device with this GPU and this version of TensorRT-RTX."""
    for module in ("engines", "verify_checks", "verdict", "backends_here"):
        monkeypatch.setattr(f"escnet_runtime.{module}.find_gpu", lambda: gpu)
    for module in ("verify_checks", "backends_here"):
        monkeypatch.setattr(
            f"escnet_runtime.{module}.installed_version",
            lambda name: version if name == "tensorrt-rtx" else None,
        )
    monkeypatch.setattr("escnet_runtime.engines.installed_version", lambda _: version)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """No graph runs: backends only say whether they compute what they should.

    Maps each that was run to that; "wrong" in it makes engines compute something else.
    """
    seen: dict[str, bool] = {}

    def stand_in(
        bundle: Bundle, name: str, *, shared: bool = True, asked: bool = False
    ) -> Iterator[Check]:
        assert shared == (not seen.keys() - {"wrong", name})
        seen[name] = name == "onnxruntime" or "wrong" not in seen
        yield Check(name="backend", passed=True, detail=f"The graphs run on {name}.")
        detail, reason = "Differs by 3 %.", "the graph 'decoder' does not compute what it should"
        yield Check(
            name="decoder", passed=seen[name], detail=detail, reason=reason, advice="Beware."
        )

    monkeypatch.setattr(verify, "_backend_checks", stand_in)
    return seen


def test_engines_that_fit_are_run(
    bundle_copy: Path, on_a_gpu: None, tried: dict[str, bool], capsys: Captured
) -> None:
    add_engines(bundle_copy)
    assert main([str(bundle_copy), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert tried == {"onnxruntime": True, "tensorrt-rtx": True}
    states = {state["name"]: state for state in said["backends"]}
    assert {name: state["state"] for name, state in states.items()} == {
        "onnxruntime": "passed",
        "tensorrt-rtx": "passed",
        "onnxruntime-cuda": "not run",
        "tensorrt": "not run",
    }
    assert "has no CUDAExecutionProvider" in states["onnxruntime-cuda"]["detail"]
    assert "escnet-runtime[tensorrt]" in states["tensorrt"]["detail"]
    assert "on onnxruntime and on tensorrt-rtx it computes" in said["verdict"]["why"]
    assert [(e["folder"], e["state"]) for e in said["engines"]] == [(FOLDER, "fits")]
    names = [check["name"] for check in said["checks"]]
    assert names[-3:] == ["tensorrt-rtx: backend", "tensorrt-rtx: decoder", FOLDER]


def test_engines_that_compute_something_else_fail_and_the_others_are_named(
    bundle_copy: Path, on_a_gpu: None, tried: dict[str, bool]
) -> None:
    add_engines(bundle_copy)
    tried["wrong"] = True
    report = verify_bundle(bundle_copy)
    assert [check.name for check in report.checks if not check.passed] == ["tensorrt-rtx: decoder"]
    assert "with tensorrt-rtx, the graph 'decoder' does not compute" in report.verdict.sentence
    assert report.verdict.advice == "Beware. With onnxruntime it is fine."


def test_a_backend_by_name_is_the_only_one(
    bundle_copy: Path, on_a_gpu: None, tried: dict[str, bool]
) -> None:
    add_engines(bundle_copy)
    report = verify_bundle(bundle_copy, "onnxruntime")
    assert [*tried] == ["onnxruntime"]
    assert [state.name for state in report.backends] == ["onnxruntime"]


def test_a_gpu_without_engines_names_the_command_that_builds_them(
    bundle_copy: Path, on_a_gpu: None, tried: dict[str, bool]
) -> None:
    report = verify_bundle(bundle_copy)
    assert report.passed
    assert [*tried] == ["onnxruntime"]
    states = {state.name: state for state in report.backends}
    assert states["tensorrt-rtx"].detail == (
        "the bundle has no engines for it; build them: "
        f"escnet-build {bundle_copy} --backend tensorrt-rtx"
    )


def test_a_device_that_has_engines_alone_needs_no_onnx_runtime(
    bundle_copy: Path,
    on_a_gpu: None,
    tried: dict[str, bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "escnet_runtime.backends_here.importlib.util.find_spec",
        lambda name: None if name == "onnxruntime" else find(name),
    )
    add_engines(bundle_copy)
    report = verify_bundle(bundle_copy)
    assert report.passed
    assert tried == {"tensorrt-rtx": True}
    states = {state.name: state.detail for state in report.backends if state.state == "not run"}
    assert "is not installed" in states["onnxruntime"]
    assert "library" not in [check.name for check in report.checks]


def test_what_is_not_here_is_said_a_line_for_each_reason(
    bundle_copy: Path, no_gpu: None, tried: dict[str, bool], capsys: Captured
) -> None:
    assert main([str(bundle_copy)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in lines if line.startswith("Not checked")] == [
        "Not checked: onnxruntime-cuda, tensorrt, tensorrt-rtx: there is no NVIDIA GPU with a "
        "driver."
    ]


@pytest.mark.slow
def test_a_backend_on_a_device_is_run_stage_by_stage_and_as_a_whole(
    bundle_copy: Path, on_a_gpu: None, host: HostMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime on a device on the CPU, with the shipped kernels, in place of engines."""
    device = HostDevice(host)
    monkeypatch.setattr(choose, "_opener", lambda name, cache: host_opener(device))
    monkeypatch.setattr(choose, "open_device", lambda: device)
    add_engines(bundle_copy)
    checks = checks_of(bundle_copy)
    assert not failed(checks)
    own = [name.partition(": ")[2] for name in checks if name.startswith("tensorrt-rtx: ")]
    assert own[:2] == ["backend", "text_encoder"]
    assert own[-3:] == ["prompts", "labels", "whole_image"]
    assert "esc3_text" in own
    agreement = checks["tensorrt-rtx: whole_image"].detail.split("device, ")[1].split("%")[0]
    assert float(agreement) >= 99.9
    assert not device.open


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"targets": ("sm_120",)}, "compute capability is sm_120, here it is sm_86"),
        ({"version": "1.6.0.5"}, "version is 1.6.0.5, here it is 1.7.1.116"),
        ({"os": "windows-amd64"}, "os is windows-amd64, here it is"),
        ({"driver": "13.9"}, "driver is CUDA 13.9, here it is the older CUDA 13.0"),
    ],
)
@pytest.mark.usefixtures("tried")
def test_engines_for_something_else_are_refused_on_a_gpu(
    bundle_copy: Path, change: dict[str, Any], difference: str, on_a_gpu: None
) -> None:
    add_engines(bundle_copy, **change)
    report = verify_bundle(bundle_copy)
    assert [check.name for check in report.checks if not check.passed] == [FOLDER]
    command = f"escnet-build {bundle_copy} --backend tensorrt-rtx"
    assert difference in report.verdict.sentence
    assert f"Rebuild them: {command}" in report.verdict.advice
    assert report.engines[0].state == "misfit"
    assert report.engines[0].command == command
    # Whoever runs the graphs with ONNX Runtime needs no engines.
    assert verify_bundle(bundle_copy, "onnxruntime").passed


@pytest.mark.usefixtures("tried")
def test_without_a_gpu_engines_are_a_note(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, None, None)
    add_engines(bundle_copy)
    report = verify_bundle(bundle_copy)
    assert report.passed
    (note,) = [note for note in report.verdict.notes if FOLDER in note]
    assert "tensorrt-rtx is not installed here" in note
    assert "here it is no NVIDIA GPU" in note
    assert f"escnet-build {bundle_copy} --backend tensorrt-rtx" in note


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without a GPU, with TensorRT-RTX 1.7.1.116."""
    pretend(monkeypatch, None, "1.7.1.116")


def of_another_graph(root: Path) -> None:
    """The bundle was exported again after its engines were built."""
    record = root / FOLDER / "engine.json"
    document = json.loads(record.read_text(encoding="utf-8"))
    document["engines"]["decoder"]["onnx_sha256"] = "0" * 64
    record.write_text(json.dumps(document), encoding="utf-8")


def of_fewer_categories(root: Path) -> None:
    """Engines that take fewer categories at a time than the bundle wants."""
    record = root / FOLDER / "engine.json"
    document = json.loads(record.read_text(encoding="utf-8"))
    document["engines"]["decoder"]["profiles"] = [{"n": {"least": 1, "tuned": 8, "most": 8}}]
    record.write_text(json.dumps(document), encoding="utf-8")


@pytest.mark.parametrize(
    ("fingerprint", "change", "difference"),
    [
        ({"version": "1.6.0.5"}, None, "version is 1.6.0.5, here it is 1.7.1.116"),
        ({}, of_another_graph, "ONNX of 'decoder' had sha256 000000000000"),
        ({}, of_fewer_categories, "profiles of 'decoder' end at 8 categories"),
    ],
)
@pytest.mark.usefixtures("tried")
def test_what_no_gpu_would_mend_is_refused_without_one(
    bundle_copy: Path,
    fingerprint: dict[str, Any],
    change: Callable[[Path], None] | None,
    difference: str,
    no_gpu: None,
) -> None:
    add_engines(bundle_copy, **fingerprint)
    if change is not None:
        change(bundle_copy)
    report = verify_bundle(bundle_copy)
    assert [check.name for check in report.checks if not check.passed] == [FOLDER]
    assert difference in report.verdict.sentence
    command = f"escnet-build {bundle_copy} --backend tensorrt-rtx --target sm_86"
    assert f"Rebuild them: {command}" in report.verdict.advice
    assert verify_bundle(bundle_copy, "onnxruntime").passed


@pytest.mark.usefixtures("tried")
def test_engines_of_another_system_are_a_note_without_a_gpu(
    bundle_copy: Path, no_gpu: None
) -> None:
    """They were made for another machine: which library is on this one says nothing of them."""
    add_engines(bundle_copy, os="linux-other", version="1.6.0.5")
    report = verify_bundle(bundle_copy)
    assert report.passed
    assert any("os is linux-other" in note for note in report.verdict.notes)


@pytest.mark.usefixtures("tried")
def test_a_folder_that_lost_its_record_is_damaged(bundle_copy: Path, no_gpu: None) -> None:
    add_engines(bundle_copy)
    (bundle_copy / FOLDER / "engine.json").unlink()
    report = verify_bundle(bundle_copy)
    assert [check.name for check in report.checks if not check.passed] == [FOLDER]
    assert "--backend tensorrt-rtx --target sm_86" in report.verdict.advice


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "record", "path"])
@pytest.mark.usefixtures("tried")
def test_damaged_engines_are_refused_everywhere(bundle_copy: Path, damage: str) -> None:
    add_engines(bundle_copy)
    engine, record = (bundle_copy / FOLDER / name for name in ("decoder.engine", "engine.json"))
    if damage == "flip":
        engine.write_bytes(b"decodeR")
    elif damage == "truncate":
        engine.write_bytes(b"dec")
    elif damage == "remove":
        engine.unlink()
    elif damage == "record":
        record.write_bytes(record.read_bytes()[:-9])
    else:
        document = json.loads(record.read_text(encoding="utf-8"))
        document["engines"]["decoder"]["file"] = "../../../outside"
        record.write_text(json.dumps(document), encoding="utf-8")
    for backend in ("auto", "onnxruntime"):
        report = verify_bundle(bundle_copy, backend)
        assert [check.name for check in report.checks if not check.passed] == [FOLDER]
        assert "are damaged" in report.verdict.sentence
        assert "escnet-build" in report.verdict.advice


def test_the_engines_of_another_device_beside_those_of_this_one_do_no_harm(
    bundle_copy: Path, on_a_gpu: None, tried: dict[str, bool]
) -> None:
    add_engines(bundle_copy, targets=("sm_120",))
    (bundle_copy / FOLDER).rename(bundle_copy / "engines/tensorrt-rtx-sm_120")
    add_engines(bundle_copy)
    report = verify_bundle(bundle_copy)
    assert report.passed
    assert tried == {"onnxruntime": True, "tensorrt-rtx": True}
    assert {folder.state for folder in report.engines} == {"fits", "misfit"}


@pytest.mark.usefixtures("tried")
def test_engines_for_something_else_are_a_note_without_their_library(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU on which another backend is used."""
    pretend(monkeypatch, Gpu(target="sm_86", driver="13.0"), None)
    add_engines(bundle_copy, targets=("sm_120",))
    report = verify_bundle(bundle_copy)
    assert report.passed
    assert any("tensorrt-rtx is not installed here" in note for note in report.verdict.notes)
