"""Engines are built by a real compiler, whole or not at all, and only where they are missing."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnx
import pytest

from escnet_engines import BuildError, BuildMemoryError, Library, build_engines, plan_build
from escnet_engines.command import main
from escnet_engines.library import Compiled, Job
from escnet_engines.lock import only_build
from escnet_engines.monitor import BuildState
from escnet_engines.profiles import stage_profiles
from escnet_export.quantise import activations, quantise
from escnet_runtime.bundle import Bundle
from escnet_runtime.engine_record import AxisRange
from escnet_runtime.engines import find_engines, fingerprint_here, read_engines
from escnet_runtime.errors import BundleFormatError, BundleIntegrityError, InputError
from escnet_runtime.manifest import Precision
from escnet_runtime.nvidia import Gpu
from tests.engines.bundles import (
    MATMUL,
    OVERSIZED,
    STATIC,
    UNREADABLE,
    UNSHAPEABLE,
    Graph,
    write_bundle,
)
from tests.engines.conftest import Built
from tests.engines.exported import write_exported

FOLDER = "tensorrt-rtx-sm_86-sm_89"
#: Another chunk than the bundle's own.
CHUNK = 48


def test_the_record_says_what_was_built(built: Path, rtx: Library) -> None:
    bundle = Bundle.open(built, check="hashes")
    record = read_engines(bundle, FOLDER)
    here = fingerprint_here("tensorrt-rtx", rtx.version)
    assert record.fingerprint.targets == ("sm_86", "sm_89")
    assert record.fingerprint.version == rtx.version
    assert record.fingerprint.os == here.os
    assert record.fingerprint.driver is None  # built for GPUs that are not here
    assert record.engines.keys() == bundle.manifest.stages.keys()
    for name, engine in record.engines.items():
        assert engine.onnx_sha256 == bundle.manifest.stages[name].sha256
        assert engine.bytes == (built / "engines" / FOLDER / engine.file).stat().st_size > 1000
        assert engine.seconds > 0
    assert record.engines["scores"].profiles == ({"n": AxisRange(least=1, tuned=32, most=32)},)
    assert record.engines["fuse"].profiles == ()


def test_what_is_built_is_found_on_its_gpus(built: Path, rtx: Library) -> None:
    bundle = Bundle.open(built)
    record = read_engines(bundle, FOLDER)
    for target in ("sm_86", "sm_89"):
        here = dataclasses.replace(record.fingerprint, targets=(target,), driver="13.0")
        found, files = find_engines(bundle, here)
        assert found == record
        assert files["scores"] == built / "engines" / FOLDER / "scores.engine"


def test_scratch_is_what_the_compiler_says(rtx: Library, tmp_path: Path) -> None:
    """Of two sizes the larger needs more, and the bundle needs the larger of its graphs'."""
    bundle = write_bundle(tmp_path / "b", {"square": OVERSIZED, "fuse": STATIC})
    sizes = []
    for chunk in (256, 1024):
        record = build_engines(bundle, rtx, target="sm_86", chunks=[chunk]).record
        square = record.engines["square"].scratch_bytes
        assert square is not None
        assert record.scratch_bytes == square
        sizes.append(square)
    # The product is n × n values of four bytes.
    assert sizes[0] >= 4 * 256**2
    assert sizes[1] >= 4 * 1024**2


def test_engines_that_fit_are_kept(built_copy: Bundle, rtx: Library) -> None:
    place = built_copy.root / "engines" / FOLDER
    before = {path.name: path.stat().st_mtime_ns for path in place.iterdir()}
    report = build_engines(built_copy, rtx, target="sm_86,sm_89")
    assert report.reused
    assert {path.name: path.stat().st_mtime_ns for path in place.iterdir()} == before


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """What was compiled: nothing is, in truth."""
    jobs: list[Job] = []

    def compile(_: Library, job: Job, __: BuildState) -> Compiled:
        jobs.append(job)
        return Compiled(plan=b"machine code", scratch_bytes=None)

    monkeypatch.setattr(Library, "compile", compile)
    return jobs


@pytest.mark.parametrize(
    ("built_on", "here", "reused"),
    [(None, "13.0", True), ("13.0", "13.1", True), ("13.0", "12.9", False), ("13.0", None, False)],
)
def test_engines_are_kept_where_the_runtime_takes_them_whatever_the_driver(
    built_on: str | None,
    here: str | None,
    reused: bool,
    plain: Bundle,
    rtx: Library,
    compiled: list[Job],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The driver is None where there is no GPU: then they are built ahead."""
    for driver in (built_on, here):
        gpu = None if driver is None else Gpu(target="sm_86", driver=driver)
        monkeypatch.setattr("escnet_runtime.engines.find_gpu", lambda gpu=gpu: gpu)
        compiled.clear()
        report = build_engines(plain, rtx, target="sm_86")
    assert report.reused is reused
    assert bool(compiled) is not reused
    assert report.record.fingerprint.driver == (built_on if reused else here)


def test_another_workspace_is_built_for(plain: Bundle, rtx: Library, compiled: list[Job]) -> None:
    first = build_engines(plain, rtx, target="sm_86")
    assert (first.reused, first.record.workspace) == (False, None)
    limited = build_engines(plain, rtx, target="sm_86", workspace=2**20)
    assert (limited.reused, limited.record.workspace) == (False, 2**20)
    assert {job.workspace for job in compiled} == {None, 2**20}
    assert build_engines(plain, rtx, target="sm_86", workspace=2**20).reused
    # A record of format 1.0 does not tell: it may have been any.
    path = plain.root / first.folder / "engine.json"
    record = json.loads(path.read_text())
    del record["workspace"]
    path.write_text(json.dumps({**record, "schema_version": "1.0"}))
    assert build_engines(plain, rtx, target="sm_86").reused
    assert not build_engines(plain, rtx, target="sm_86", workspace=2**20).reused


def test_engines_of_other_sizes_are_replaced(built_copy: Bundle, rtx: Library) -> None:
    report = build_engines(built_copy, rtx, target="sm_86,sm_89", chunks=[CHUNK, 16])
    assert not report.reused
    profiles = read_engines(built_copy, FOLDER).engines["scores"].profiles
    assert [profile["n"].most for profile in profiles] == [16, CHUNK]


def test_a_damaged_engine_is_built_anew(built_copy: Bundle, rtx: Library) -> None:
    engine = built_copy.root / "engines" / FOLDER / "scores.engine"
    whole = engine.stat().st_size
    os.truncate(engine, 100)
    assert not build_engines(built_copy, rtx, target="sm_86,sm_89").reused
    assert engine.stat().st_size == pytest.approx(whole, rel=0.2)


@pytest.mark.parametrize(
    ("graph", "node"), [(UNREADABLE, "node_det"), (UNSHAPEABLE, "node_reshape")]
)
def test_a_failed_graph_names_the_node_and_leaves_nothing(
    graph: Graph, node: str, rtx: Library, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "b", {"fuse": STATIC, "broken": graph})
    with pytest.raises(BuildError, match=f"graph 'broken'.* node '{node}'"):
        build_engines(bundle, rtx, target="sm_86")
    assert not (bundle.root / "engines").exists()


def test_a_failed_build_keeps_the_engines_that_were_there(
    built_copy: Bundle, rtx: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_engines(built_copy, FOLDER)

    def fail(*_: object) -> None:
        raise BuildError("as if")

    monkeypatch.setattr(Library, "compile", fail)
    with pytest.raises(BuildError, match="as if"):
        build_engines(built_copy, rtx, target="sm_86,sm_89", chunks=[CHUNK])
    assert read_engines(built_copy, FOLDER) == before
    assert [path.name for path in (built_copy.root / "engines").iterdir()] == [FOLDER]


def test_too_little_memory_says_what_to_lower(rtx: Library, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", {"square": OVERSIZED})
    with pytest.raises(BuildMemoryError, match=r"Lower --chunk \(now 60000.*raise --workspace"):
        build_engines(bundle, rtx, target="sm_86", chunks=[60_000], workspace=2**20)
    assert not (bundle.root / "engines").exists()


def test_a_folder_that_lost_its_record_is_built_anew(built_copy: Bundle, rtx: Library) -> None:
    place = built_copy.root / "engines" / FOLDER
    (place / "engine.json").unlink()
    assert not build_engines(built_copy, rtx, target="sm_86,sm_89").reused
    assert read_engines(built_copy, FOLDER).engines.keys() == {"scores", "fuse"}


def test_what_is_not_ours_in_that_place_is_left_alone(built_copy: Bundle, rtx: Library) -> None:
    place = built_copy.root / "engines" / FOLDER
    (place / "engine.json").rename(place / "notes.txt")
    with pytest.raises(InputError, match=r"Will not replace .*remove this one yourself"):
        build_engines(built_copy, rtx, target="sm_86,sm_89")
    assert (place / "notes.txt").exists()


def test_gpus_that_do_not_compute_in_fp8_are_refused_before_compiling(
    plain: Bundle, rtx: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def must_not_run(*_: object) -> None:
        raise AssertionError("nothing is to be compiled")

    for name in ("compile", "survey"):
        monkeypatch.setattr(Library, name, must_not_run)
    stages = dict(plain.manifest.stages)
    stages["fuse"] = dataclasses.replace(stages["fuse"], precision=Precision.FP8)
    bundle = dataclasses.replace(plain, manifest=dataclasses.replace(plain.manifest, stages=stages))
    target = "sm_120,sm_80,sm_86"
    message = r"^sm_80, sm_86 cannot compute in fp8, which needs sm_89 or newer.*--precision"
    for run in (build_engines, plan_build):
        with pytest.raises(InputError, match=message):
            run(bundle, rtx, target=target)
    assert not (plain.root / "engines").exists()


def test_a_chunk_that_cannot_be_lowered_is_not_told_to_be(
    rtx: Library, plain: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise BuildMemoryError("bad_alloc")

    monkeypatch.setattr(Library, "compile", full)
    with pytest.raises(
        BuildMemoryError, match=r"bad_alloc\. Limit --workspace, or end other processes"
    ):
        build_engines(plain, rtx, target="sm_86", chunks=[1])
    with pytest.raises(BuildMemoryError, match=r"bad_alloc\. Lower --chunk \(now 32, at least 16"):
        build_engines(plain, rtx, target="sm_86")


def test_a_changed_graph_is_not_built(plain: Bundle, rtx: Library) -> None:
    path = plain.root / "graphs" / "scores.onnx"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        BundleIntegrityError, match=r"graphs/scores\.onnx .*its sha256 is not the manifest's"
    ):
        build_engines(plain, rtx, target="sm_86")


@pytest.mark.parametrize("link", ["engines", f"engines/{FOLDER}"])
def test_a_link_leads_no_engine_out_of_the_bundle(
    link: str, plain: Bundle, rtx: Library, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    place = plain.root / link
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(outside)
    with pytest.raises(BundleFormatError, match="is a link"):
        build_engines(plain, rtx, target="sm_86,sm_89")
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunks": [0]}, "a chunk is 0"),
        ({"chunks": [70_000]}, "expected 1 to 65,535"),
        ({"chunks": []}, "at least one"),
        ({"workspace": 0}, "workspace is 0"),
        ({"workspace": 2**41}, "workspace is 2,199,023,255,552 bytes, expected 1 to"),
    ],
)
def test_unusable_options_are_refused(
    options: dict[str, list[int]], message: str, plain: Bundle, rtx: Library
) -> None:
    with pytest.raises(InputError, match=message):
        build_engines(plain, rtx, target="sm_86", **options)  # type: ignore[arg-type]


def test_progress_goes_from_graph_to_graph(plain: Bundle, rtx: Library) -> None:
    seen: list[tuple[str, float]] = []
    build_engines(
        plain, rtx, target="sm_86", progress=lambda graph, _, done: seen.append((graph, done))
    )
    assert list(dict.fromkeys(graph for graph, _ in seen)) == ["scores", "fuse"]
    steps = [done for _, done in seen]
    assert steps == sorted(steps)
    assert steps[-1] == 2.0


def test_the_builder_reports_its_phases_and_stops_when_told(rtx: Library, plain: Bundle) -> None:
    job = Job(
        onnx=plain.file("graphs/scores.onnx"),
        inputs=plain.manifest.stages["scores"].inputs,
        profiles=({"n": AxisRange(least=1, tuned=4, most=4)},),
        targets=("sm_86",),
    )
    state = BuildState()
    phases: list[str] = []
    begin = state.start

    def start(phase: str, parent: str | None, steps: int) -> None:
        phases.append(phase)
        begin(phase, parent, steps)

    state.start = start  # type: ignore[method-assign]
    assert rtx.compile(job, state).plan is not None
    assert len(phases) > 2
    state.cancel()
    with pytest.raises(BuildError, match="Cancel"):
        rtx.compile(job, state)


def test_an_interrupted_build_leaves_nothing(plain: Bundle, rtx: Library) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engines(plain, rtx, target="sm_86", progress=interrupt)
    assert not (plain.root / "engines").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_the_command_and_leaves_nothing(
    number: signal.Signals, rtx: Library, tmp_path: Path
) -> None:
    root = tmp_path / "bundle"
    write_bundle(root, {f"graph{index}": MATMUL for index in range(200)})
    command = [sys.executable, "-m", "escnet_engines", str(root), "--backend", "tensorrt-rtx"]
    process = subprocess.Popen(
        [*command, "--target", "sm_86", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not list(root.glob("engines/.*/*.engine")):  # it is in the middle of its work
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(number)
        output, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 128 + number, errors
    assert "error" in json.loads(output)
    assert not (root / "engines").exists()


def test_a_second_build_waits_for_the_first(
    built: Path, plain: Bundle, rtx: Library, caplog: pytest.LogCaptureFixture
) -> None:
    """And then finds that there is nothing left to do."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        with only_build(plain.root):
            second = pool.submit(build_engines, plain, rtx, target="sm_86,sm_89")
            while "waiting: another process" not in caplog.text:
                assert not second.done(), second.result()
                time.sleep(0.01)
            assert not second.done()
            shutil.copytree(built / "engines", plain.root / "engines")
        assert second.result().reused


@pytest.mark.slow
def test_every_graph_of_tiny_builds(tiny_built: Built) -> None:
    """The model as it is exported, at fp16, by NVIDIA's compiler."""
    bundle, record = Bundle.open(tiny_built.root), tiny_built.record
    assert record.engines.keys() == bundle.manifest.stages.keys()
    assert record.scratch_bytes
    here = dataclasses.replace(record.fingerprint, targets=("sm_86",), driver="13.0")
    assert find_engines(bundle, here)[1].keys() == bundle.manifest.stages.keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision"), [("vit-b-16", Precision.FP16), ("tiny", Precision.BF16)]
)
def test_every_graph_of_a_preset_builds(
    name: str, precision: Precision, rtx: Library, tmp_path: Path
) -> None:
    """All of them, the blocks' too, from untrained weights."""
    bundle = write_exported(tmp_path / "bundle", name, precision)
    record = build_engines(bundle, rtx, target="sm_86").record
    assert record.engines.keys() == bundle.manifest.stages.keys()
    assert {"esc0_sam", "esc3_sam", "decoder"} < record.engines.keys()
    for graph, engine in record.engines.items():
        # An engine holds the weights of its graph.
        assert engine.bytes > 0.9 * bundle.manifest.stages[graph].bytes
        assert engine.scratch_bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "target"), [(Precision.INT8, "sm_86"), (Precision.FP8, "sm_89")]
)
def test_every_kind_of_graph_builds_in_eight_bits(
    precision: Precision, target: str, tiny_bundle: Path, rtx: Library, tmp_path: Path
) -> None:
    """Pairs at activations, weights with a scale a channel; what the scales are does not matter."""
    bundle = Bundle.open(tiny_bundle)
    for name, stage in bundle.manifest.stages.items():
        if name == "correlation" or name.startswith(("esc1", "esc2", "esc3")):
            continue
        plain, path = bundle.file(stage.file), tmp_path / f"{name}.onnx"
        ranges = dict.fromkeys(activations(onnx.load(str(plain)).graph), 4.0)
        assert quantise(name, plain, path, ranges, precision=precision) > 0
        job = Job(
            onnx=path,
            inputs=stage.inputs,
            profiles=stage_profiles(name, stage, bundle.manifest, [16]),
            targets=(target,),
        )
        assert rtx.compile(job, BuildState()).scratch_bytes
        if precision is Precision.FP8:  # the compiler knows it too, and says it late
            with pytest.raises(BuildError, match="fp8"):
                rtx.compile(dataclasses.replace(job, targets=("sm_86",)), BuildState())


def test_a_compiler_that_does_not_tell_scratch_builds_all_the_same(
    plain: Bundle, rtx: Library, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told in the compiler's log alone, whose words may change."""
    monkeypatch.setattr("escnet_engines.library._ACTIVATIONS", re.compile("other words"))
    record = build_engines(plain, rtx, target="sm_86").record
    assert {engine.scratch_bytes for engine in record.engines.values()} == {None}
    assert record.scratch_bytes is None
    assert main([str(plain.root), "--backend", "tensorrt-rtx", "--target", "sm_86"]) == 0
    assert "an unknown amount of scratch" in capsys.readouterr().out
