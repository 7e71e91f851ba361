"""The fastest chunk on a CPU: how it is chosen, measured with made-up times, and written down."""

import dataclasses
import errno
import importlib.util
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from escnet_engines import ChunkSizes, chunk_sizes, measure_chunks
from escnet_engines.chunk_plan import chunk_bytes
from escnet_engines.chunk_runs import BlockRuns, Run, kinds_of, timed_in_turns
from escnet_engines.chunks import fastest_chunk
from escnet_engines.command import main
from escnet_engines.lock import only_build
from escnet_runtime import Segmenter
from escnet_runtime.bundle import Bundle
from escnet_runtime.chunk_record import CpuBackend
from escnet_runtime.errors import BackendError, BundleFormatError, InputError
from escnet_runtime.measured_chunks import chunk_file, measured_graphs, read_chunks, survey_chunks
from tests.runtime.chunk_records import made_up_record, write_record

KINDS = ("correlation", "sam", "image", "text", "decoder")
SIZES = ChunkSizes(chunks=(16, 32, 48), categories=150, left_out=(64,), memory_bytes=None)
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def bundle(bundle_copy: Path) -> Bundle:
    """One that a test may write to."""
    return Bundle.open(bundle_copy)


def made_up(
    seconds: Mapping[int, Mapping[str, float]],
) -> Callable[[Bundle, CpuBackend, int], AbstractContextManager[Run]]:
    """Graphs that take these times: chunk → kind → seconds, one second if it is not there."""

    @contextmanager
    def opened(bundle: Bundle, backend: CpuBackend, categories: int) -> Iterator[Run]:
        yield lambda chunk: {kind: seconds.get(chunk, {}).get(kind, 1.0) for kind in KINDS}

    return opened


# --- The choice ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "chunk"),
    [
        ({16: 2.0, 32: 1.0, 48: 1.5}, 32),
        ({16: 1.0, 32: 1.0, 48: 1.0}, 16),
        ({16: 1.029, 32: 1.0}, 16),  # within the noise
        ({16: 1.031, 32: 1.0}, 32),
        ({16: 1.06, 32: 1.02, 48: 1.0}, 32),  # of the fastest, not of the next one
        ({64: 3.0}, 64),
    ],
)
def test_a_tie_goes_to_the_smaller_chunk(seconds: dict[int, float], chunk: int) -> None:
    assert fastest_chunk(seconds) == chunk


def test_graphs_count_as_often_as_they_run(bundle: Bundle) -> None:
    """One decoder that is 3 s faster does not outweigh four blocks that are 1 s slower."""
    slower = dict.fromkeys(("sam",), 2.0)
    runs = made_up({32: {"decoder": 0.0001, **slower}, 16: {"decoder": 3.0}, 48: {"decoder": 9.0}})
    record = measure_chunks(bundle, "onnxruntime", SIZES, runs=runs).record
    assert record.kinds["decoder"].chunk == 32
    assert record.kinds["sam"].chunk == 16
    assert record.kinds["sam"].count == 4
    assert record.together() == pytest.approx({16: 16.0, 32: 17.0001, 48: 22.0})
    assert record.chunk == 16


def test_chunks_take_turns_and_the_first_run_does_not_count() -> None:
    order: list[int] = []
    seconds = iter([100.0, 100.0, 1.0, 5.0, 6.0, 3.0, 2.0, 9.0])

    def run(chunk: int) -> dict[str, float]:
        order.append(chunk)
        return {"sam": next(seconds)}

    told: list[str] = []
    times = timed_in_turns(run, (16, 32), 3, told.append)
    assert order == [32, 16, 16, 32, 32, 16, 16, 32]
    assert told[:3] == ["chunk 32, warm-up", "chunk 16, warm-up", "chunk 16, round 1"]
    assert len(told) == 8
    one, other = times["sam"]
    assert (one.chunk, one.seconds, one.fastest, one.slowest) == (16, 2.0, 1.0, 3.0)
    assert (other.chunk, other.seconds, other.fastest, other.slowest) == (32, 6.0, 5.0, 9.0)


def test_kinds_are_of_graphs_that_run_by_chunk() -> None:
    graphs = ["image_encoder", "correlation", "esc0_sam", "esc0_fuse", "esc1_sam", "decoder"]
    assert kinds_of(graphs) == {
        "correlation": ["correlation"],
        "sam": ["esc0_sam", "esc1_sam"],
        "decoder": ["decoder"],
    }


# --- Which chunks --------------------------------------------------------------------------------


def test_the_first_multiples_of_a_group_are_compared(bundle: Bundle) -> None:
    sizes = chunk_sizes(bundle.manifest)
    assert (sizes.chunks, sizes.categories, sizes.left_out) == ((16, 32, 48, 64), 150, ())
    constants = dataclasses.replace(bundle.manifest.constants, chunk=90)
    manifest = dataclasses.replace(bundle.manifest, constants=constants)
    assert chunk_sizes(manifest).chunks == (16, 32, 48, 64, 96)  # and the bundle's own


def test_chunks_that_are_asked_for_are_whole_groups_each_once(bundle: Bundle) -> None:
    sizes = chunk_sizes(bundle.manifest, chunks=[20, 1, 17, 200])
    assert (sizes.chunks, sizes.categories) == ((16, 32, 208), 208)


@pytest.mark.parametrize(("categories", "chunks"), [(1, (16,)), (20, (16, 32)), (999, 4)])
def test_chunks_that_never_fill_are_not_compared(
    categories: int, chunks: tuple[int, ...] | int, bundle: Bundle
) -> None:
    sizes = chunk_sizes(bundle.manifest, categories=categories)
    assert sizes.categories == categories
    assert sizes.chunks == chunks if isinstance(chunks, tuple) else len(sizes.chunks) == chunks


def test_memory_limits_what_is_compared(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("escnet_engines.chunk_plan.usable_cores", lambda: 1)
    needed = {chunk: chunk_bytes(bundle.manifest, chunk, 150) for chunk in (16, 32, 48, 64)}
    assert sorted(needed.values()) == list(needed.values())
    sizes = chunk_sizes(bundle.manifest, available=round(needed[32] / 0.8) + 1)
    assert (sizes.chunks, sizes.left_out) == ((16, 32), (48, 64))
    with pytest.raises(InputError, match=r"chunks of 48 categories need .* Chunks of 32 fit"):
        chunk_sizes(bundle.manifest, chunks=[32, 48], available=round(needed[32] / 0.8) + 1)
    with pytest.raises(
        InputError, match=r"of the 0 MB that are free\. Measure with fewer categories"
    ):
        chunk_sizes(bundle.manifest, available=0)


def test_lanes_hold_a_chunk_each(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    for cores in (1, 4):
        monkeypatch.setattr("escnet_engines.chunk_plan.usable_cores", lambda cores=cores: cores)
        sizes.append(chunk_bytes(bundle.manifest, 16, 640))
    assert sizes[1] > 1.5 * sizes[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunks": [0]}, "a chunk is 0"),
        ({"chunks": [70_000]}, "expected 1 to 65,535"),
        ({"chunks": []}, "at least one"),
        ({"categories": 0}, "has 0 categories, expected 1 to 65,535"),
        ({"categories": 65_536}, "has 65536 categories"),
        ({"chunks": [33], "categories": 32}, "a chunk of 48 is never full with 32 categories"),
    ],
)
def test_unusable_sizes_are_refused(options: dict[str, Any], message: str, bundle: Bundle) -> None:
    with pytest.raises(InputError, match=message):
        chunk_sizes(bundle.manifest, **options)


# --- The record ----------------------------------------------------------------------------------


def test_what_was_measured_is_written_down(bundle: Bundle) -> None:
    runs = made_up({32: dict.fromkeys(KINDS, 0.5)})
    report = measure_chunks(bundle, "onnxruntime", SIZES, rounds=3, runs=runs)
    assert (report.file, report.replaced, report.left_out) == (
        "engines/chunks-onnxruntime.json",
        None,
        (64,),
    )
    record = read_chunks(bundle, "onnxruntime")
    assert record == report.record
    assert (record.chunk, record.measuring.rounds) == (32, 3)
    assert record.graphs == measured_graphs(bundle)
    (state,) = survey_chunks(bundle)
    assert (state.state, state.chunk) == ("fits", 32)
    assert [path.name for path in (bundle.root / "engines").iterdir()] == [
        "chunks-onnxruntime.json"
    ]


def test_a_second_measurement_replaces_the_first(bundle: Bundle) -> None:
    first = measure_chunks(bundle, "onnxruntime", SIZES, runs=made_up({}))
    second = measure_chunks(bundle, "onnxruntime", SIZES, runs=made_up({48: {"sam": 0.1}}))
    assert (first.record.chunk, second.record.chunk) == (16, 48)
    assert second.replaced == first.record.measuring.date
    (bundle.root / second.file).write_text("{")
    assert measure_chunks(bundle, "onnxruntime", SIZES, runs=made_up({})).replaced == ""
    assert read_chunks(bundle, "onnxruntime").chunk == 16


def test_a_restless_machine_is_told(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    seconds = iter(range(1, 1000))

    @contextmanager
    def restless(*_: object) -> Iterator[Run]:
        yield lambda _: dict.fromkeys(KINDS, float(next(seconds)))

    measure_chunks(bundle, "onnxruntime", SIZES, runs=restless)
    assert "measure again when this machine is idle" in caplog.text
    caplog.clear()
    measure_chunks(bundle, "onnxruntime", SIZES, runs=made_up({}))
    assert caplog.text == ""


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BackendError("as if"), SystemExit(143)])
def test_what_is_interrupted_leaves_nothing(error: BaseException, bundle: Bundle) -> None:
    def step(what: str) -> None:
        if "round 2" in what:
            raise error

    with pytest.raises(type(error)):
        measure_chunks(bundle, "onnxruntime", SIZES, runs=made_up({}), step=step)
    assert not (bundle.root / "engines").exists()


def test_a_full_disk_keeps_the_record_that_was_there(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_record(bundle.root, made_up_record(bundle))
    (path.parent / "tensorrt-rtx-sm_86").mkdir()
    before = path.read_bytes()

    def full(self: Path, *_: object, **__: object) -> None:
        self.write_bytes(b"{")
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        measure_chunks(bundle, "onnxruntime", SIZES, runs=made_up({}))
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in path.parent.iterdir()) == [
        "chunks-onnxruntime.json",
        "tensorrt-rtx-sm_86",
    ]


def test_a_second_measurement_waits(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    with ThreadPoolExecutor(max_workers=1) as pool:
        with only_build(bundle.root):
            second = pool.submit(measure_chunks, bundle, "onnxruntime", SIZES, runs=made_up({}))
            while "waiting: another process" not in caplog.text:
                assert not second.done(), second.result()
                time.sleep(0.01)
            assert not second.done()
        assert second.result().replaced is None


@pytest.mark.parametrize("link", ["engines", chunk_file("onnxruntime")])
def test_a_link_leads_no_record_out_of_the_bundle(
    link: str, bundle: Bundle, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    place = bundle.root / link
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(outside)
    with pytest.raises(BundleFormatError, match="is a link"):
        measure_chunks(bundle, "onnxruntime", SIZES, runs=made_up({}))
    assert list(outside.iterdir()) == []


def test_what_is_not_ours_in_that_place_is_left_alone(bundle: Bundle) -> None:
    place = bundle.root / chunk_file("onnxruntime")
    place.mkdir(parents=True)
    with pytest.raises(InputError, match="it is a folder"):
        measure_chunks(bundle, "onnxruntime", SIZES, runs=made_up({}))
    assert place.is_dir()


def test_no_rounds_are_refused(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="has 0 rounds, expected at least 1"):
        measure_chunks(bundle, "onnxruntime", SIZES, rounds=0, runs=made_up({}))


# --- Real graphs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_graphs_run_as_the_runtime_runs_them(
    backend: CpuBackend, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All kinds, with the lanes of a vocabulary of that size; the first block stands for all."""
    pytest.importorskip(backend)
    from escnet_runtime.backends.onnxruntime import OnnxRuntimeBackend
    from escnet_runtime.backends.openvino import OpenVinoBackend

    kind: Any = {"onnxruntime": OnnxRuntimeBackend, "openvino": OpenVinoBackend}[backend]
    asked: list[Sequence[int]] = []
    ran: set[str] = set()
    real_lanes, real_run = kind.lanes, kind.run

    def lanes(self: Any, rows: Sequence[int]) -> int:
        asked.append(tuple(rows))
        count: int = real_lanes(self, rows)
        return count

    def run(self: Any, graph: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        ran.add(graph)
        outputs: dict[str, Any] = real_run(self, graph, inputs)
        return outputs

    monkeypatch.setattr(kind, "lanes", lanes)
    monkeypatch.setattr(kind, "run", run)
    with BlockRuns(Bundle.open(tiny_bundle), backend, 36) as timed:
        for chunk in (16, 32, 16):
            seconds = timed(chunk)
            assert set(seconds) == set(KINDS)
            assert min(seconds.values()) > 0
    assert asked == [(16, 16, 4), (32, 4), (16, 16, 4)]
    assert ran == {
        "image_encoder",
        "correlation",
        *(f"esc0_{part}" for part in ("sam", "fuse", "image", "text")),
        "decoder",
    }


def _json(capsys: Captured, *words: object) -> tuple[int, dict[str, Any]]:
    code = main([*map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_command_measures_and_the_runtime_uses_it(bundle: Bundle, capsys: Captured) -> None:
    words = [bundle.root, "--backend", "onnxruntime", "--chunk", 20, 40, "--categories", 40]
    code, result = _json(capsys, *words, "--rounds", 2)
    assert code == 0
    assert (result["engines"], result["target"], result["backend"]) == ([], "cpu", "onnxruntime")
    assert (result["file"], result["replaced"]) == ("engines/chunks-onnxruntime.json", False)
    assert [one["chunk"] for one in result["chunks"]] == [32, 48]
    assert {one["graph"]: one["count"] for one in result["graphs"]} == {
        "correlation": 1,
        "esc0_sam": 4,
        "esc0_image": 4,
        "esc0_text": 4,
        "decoder": 1,
    }
    for graph in result["graphs"]:
        assert graph["chunk"] in (32, 48)
        for one in graph["times"]:
            assert 0 < one["fastest"] <= one["seconds"] <= one["slowest"]
    assert (result["measuring"]["categories"], result["measuring"]["rounds"]) == (40, 2)
    assert result["machine"]["processor"]
    with Segmenter(bundle.root, "onnxruntime", cache=None) as segmenter:
        assert (segmenter.chunk, segmenter.chunk_source) == (result["chunk"], "measured")
    assert _json(capsys, *words, "--rounds", 1)[1]["replaced"] is True


def test_people_get_a_table(bundle: Bundle, capsys: Captured) -> None:
    words = [str(bundle.root), "--backend", "onnxruntime", "--chunk", "16", "--rounds", "1"]
    assert main([*words, "--categories", "2"]) == 0
    shown = capsys.readouterr().out
    for name in ("correlation", "sam ×4", "image ×4", "text ×4", "decoder", "all of an image"):
        assert name in shown
    assert "in chunks of 16 categories from now on, the bundle's own" in shown
    assert "It replaces" not in shown
    assert main([*words, "--categories", "3", "--chunk", "1"]) == 0
    assert "It replaces the record of 20" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--chunk", "0"], "a chunk is 0"),
        (["--chunk", "65535"], "chunks of 65536 categories need about"),
        (["--chunk", "many"], "invalid int value"),
        (["--categories", "-1"], "has -1 categories"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--target", "sm_86"], "--target goes with a compiler"),
        (["--workspace", "9"], "--workspace goes with a compiler"),
        (["--plan"], "--plan goes with a compiler"),
    ],
)
def test_wrong_usage_exits_2(
    options: list[str],
    message: str,
    tiny_bundle: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("escnet_engines.chunk_command.available_memory", lambda: 2**30)
    code, result = _json(capsys, tiny_bundle, "--backend", "onnxruntime", *options)
    assert code == 2
    assert message in result["error"]["message"]
    assert not (tiny_bundle / "engines").exists()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_library_that_is_absent_is_named_with_its_extra(
    backend: str, bundle: Bundle, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    code, result = _json(capsys, bundle.root, "--backend", backend)
    assert code == 1
    assert f"install escnet-runtime[{backend}]" in result["error"]["message"]
    assert not (bundle.root / "engines").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_the_command_and_leaves_nothing(
    number: signal.Signals, bundle: Bundle
) -> None:
    command = [sys.executable, "-m", "escnet_engines", str(bundle.root), "--json"]
    process = subprocess.Popen(
        [*command, "--backend", "onnxruntime", "--rounds", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not list(bundle.root.glob("engines/.chunks-*")):  # it is in the middle of its work
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        time.sleep(1.0)
        process.send_signal(number)
        output, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 128 + number, errors
    assert "error" in json.loads(output)
    assert not (bundle.root / "engines").exists()
