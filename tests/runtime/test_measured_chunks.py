"""Measured chunks of a bundle: used where they fit, named where they do not, never guessed."""

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from escnet_runtime import Segmenter
from escnet_runtime.backends import BACKENDS, GraphFile
from escnet_runtime.backends.onnxruntime import OnnxRuntimeBackend
from escnet_runtime.bundle import Bundle
from escnet_runtime.chunk_record import ChunkRecord, Machine
from escnet_runtime.commands.segment import main as segment
from escnet_runtime.errors import BundleFormatError
from escnet_runtime.measured_chunks import (
    chunk_file,
    measured_chunk,
    measured_graphs,
    read_chunks,
    survey_chunks,
)
from escnet_runtime.verify import Check, verify_bundle
from tests.runtime.chunk_records import change_record, made_up_record, write_record

Change = Callable[[dict[str, Any]], object]
Log = pytest.LogCaptureFixture


@pytest.fixture(autouse=True)
def _all_is_logged(caplog: Log) -> None:
    caplog.set_level(logging.DEBUG, "escnet_runtime")


@pytest.fixture(scope="module")
def measured(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a record of this machine that has chunks of 48. Do not change it."""
    root = tmp_path_factory.mktemp("measured") / "bundle"
    shutil.copytree(tiny_bundle, root)
    write_record(root, made_up_record(Bundle.open(root)))
    return root


@pytest.fixture
def changed(measured: Path, tmp_path: Path) -> Callable[[Change], Bundle]:
    """A copy of that bundle with another record."""

    def make(change: Change) -> Bundle:
        root = Path(shutil.copytree(measured, tmp_path / "changed"))
        change_record(root / chunk_file("onnxruntime"), change)
        return Bundle.open(root, check="sizes")

    return make


# --- The record ----------------------------------------------------------------------------------


def test_a_record_comes_back_as_it_was(tiny_bundle: Path) -> None:
    record = made_up_record(Bundle.open(tiny_bundle))
    assert ChunkRecord.from_json(record.to_json()) == record
    assert record.kinds["sam"].count == 4
    assert set(record.kinds) == {"correlation", "sam", "image", "text", "decoder"}
    # Two graphs once, three kinds in four blocks.
    expected = {16: 14 * (0.2 - 0.016), 48: 14 * (0.2 - 0.048)}
    assert record.together() == pytest.approx(expected)


def test_a_record_that_could_not_be_read_is_not_written(tiny_bundle: Path) -> None:
    record = dataclasses.replace(made_up_record(Bundle.open(tiny_bundle)), chunk=64)
    with pytest.raises(BundleFormatError, match=r"\$\.chunk: 64 was not measured"):
        record.to_json()


DAMAGES: list[tuple[Change, str]] = [
    (lambda r: r.update(schema_version="2.0"), r"has format '2\.0', expected '1\.0'"),
    (lambda r: r.update(surprise=1), "unknown key 'surprise'"),
    (lambda r: r["machine"].pop("cores"), "missing cores"),
    (lambda r: r["machine"].update(backend="tensorrt"), "expected one of onnxruntime, openvino"),
    (lambda r: r["machine"].update(backend="openvino"), "openvino, expected onnxruntime in engi"),
    (lambda r: r["machine"].update(cores=0), "0 is none"),
    (lambda r: r.update(chunk="48"), "expected int, got str"),
    (lambda r: r.update(chunk=17), "17 was not measured"),
    (lambda r: r.update(kinds={}), r"\$\.kinds: is empty"),
    (lambda r: r["graphs"].update(decoder="0"), "64 hexadecimal digits"),
    (lambda r: r["graphs"].update({"../x": "f" * 64}), "not an identifier"),
    (lambda r: r["graphs"].update(more="f" * 64), "count 14 graphs of 15"),
    (lambda r: r["kinds"]["sam"].update(graph="esc9_sam"), "is none of the graphs"),
    (lambda r: r["kinds"]["sam"].update(count=0), "there are 0 graphs"),
    (lambda r: r["kinds"]["sam"].update(chunk=32), "the chunk 32 was not measured"),
    (lambda r: r["kinds"]["sam"]["times"].pop(), "other chunks than elsewhere"),
    (lambda r: r["kinds"]["sam"]["times"][0].update(seconds=9.0), "9.0 s is not between"),
    (lambda r: r["kinds"]["sam"]["times"][0].update(fastest=0.0), "is not between 0.0"),
    (lambda r: r["kinds"]["correlation"].update(times=[]), r"has the chunks \[\]"),
    (lambda r: _all_times(r, 10**9), "expected rising numbers from 1 to 1,048,576"),
    (lambda r: _all_times(r, 8), "expected rising numbers"),
    (lambda r: r["measuring"].update(rounds=0), "0 is not plausible"),
    (lambda r: r["measuring"].update(categories=10**9), "1000000000 is not plausible"),
    (lambda r: r["measuring"].update(noise=2.0), "2.0 is no share"),
]


def _all_times(record: dict[str, Any], last: int) -> None:
    for kind in record["kinds"].values():
        kind["times"][1]["chunk"] = last


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_record_is_refused_and_warned_of(
    damage: Change, message: str, changed: Callable[[Change], Bundle], caplog: Log
) -> None:
    bundle = changed(damage)
    with pytest.raises(BundleFormatError, match=message):
        read_chunks(bundle, "onnxruntime")
    assert measured_chunk(bundle, "onnxruntime") is None
    (line,) = caplog.records
    assert line.levelname == "WARNING"
    assert "engines/chunks-onnxruntime.json is damaged" in line.message
    assert line.message.endswith(f"anew: escnet-build {bundle.root} --backend onnxruntime")


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"[1]", b" " * (2**20 + 1)])
def test_a_file_that_is_no_record_is_damaged(data: bytes, bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    path = bundle_copy / chunk_file("onnxruntime")
    path.parent.mkdir()
    path.write_bytes(data)
    (state,) = survey_chunks(bundle)
    assert (state.state, state.chunk) == ("damaged", None)


def test_a_link_out_of_the_bundle_is_not_followed(
    measured: Path, bundle_copy: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside.json"
    shutil.copy(measured / chunk_file("onnxruntime"), outside)
    path = bundle_copy / chunk_file("onnxruntime")
    path.parent.mkdir()
    for target in (outside, tmp_path / "nowhere"):
        path.symlink_to(target)
        (state,) = survey_chunks(Bundle.open(bundle_copy))
        assert state.state == "damaged"
        path.unlink()


# --- Does it fit? --------------------------------------------------------------------------------


def test_a_record_of_this_machine_fits(measured: Path) -> None:
    (state,) = survey_chunks(Bundle.open(measured))
    assert (state.state, state.reasons, state.chunk) == ("fits", (), 48)
    assert state.command == f"escnet-build {measured} --backend onnxruntime"


def test_a_bundle_without_a_record_is_not_talked_about(tiny_bundle: Path, caplog: Log) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert survey_chunks(bundle) == []
    assert measured_chunk(bundle, "onnxruntime") is None
    assert measured_chunk(bundle, "tensorrt") is None
    assert caplog.records == []


def test_a_machine_differs_in_every_field() -> None:
    there = Machine(backend="onnxruntime", version="1.0", processor="A", cores=2, os="linux-x86_64")
    here = Machine(backend="openvino", version="2.0", processor="B", cores=4, os="linux-aarch64")
    assert there.differences(there) == []
    assert there.differences(here) == [
        "backend is onnxruntime, here it is openvino",
        "version is 1.0, here it is 2.0",
        "processor is A, here it is B",
        "cores is 2, here it is 4",
        "os is linux-x86_64, here it is linux-aarch64",
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: r["machine"].update(version="0.9"), "version is 0.9, here it is "),
        (lambda r: r["machine"].update(processor="Other"), "processor is Other, here it is "),
        (lambda r: r["machine"].update(cores=4096), "cores is 4096, here it is "),
        (lambda r: r["machine"].update(os="other-6502"), "os is other-6502, here it is "),
        (
            lambda r: r["graphs"].update(esc2_sam="f" * 64),
            "ONNX of 'esc2_sam' had sha256 ffffffffffff…, here it has ",
        ),
        (lambda r: _rename(r, "decoder", "other"), "there is no graph 'other' any more"),
    ],
)
def test_a_misfit_is_not_used_and_says_why(
    change: Change, reason: str, changed: Callable[[Change], Bundle], caplog: Log
) -> None:
    bundle = changed(change)
    with Segmenter(bundle, "onnxruntime", cache=None) as segmenter:
        assert (segmenter.chunk, segmenter.chunk_source) == (16, "bundle")
    (line,) = [one for one in caplog.records if "chunks" in one.message]
    assert line.levelname == "INFO"
    assert f"engines/chunks-onnxruntime.json does not fit: {reason}" in line.message
    assert line.message.endswith(f"anew: escnet-build {bundle.root} --backend onnxruntime")
    check = _checks(bundle.root)["engines/chunks-onnxruntime.json"]
    assert (check.passed, check.note) == (True, True)
    assert reason in check.detail


def _rename(record: dict[str, Any], old: str, new: str) -> None:
    record["graphs"][new] = record["graphs"].pop(old)
    for kind in record["kinds"].values():
        kind["graph"] = new if kind["graph"] == old else kind["graph"]


def test_a_graph_that_was_not_there_is_a_misfit(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    record = made_up_record(bundle)
    graphs = {**measured_graphs(bundle), "esc4_sam": "0" * 64}
    assert record.misfits(graphs) == ["the graph 'esc4_sam' was not there"]


def test_a_library_that_is_not_here_is_a_misfit(
    measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("escnet_runtime.measured_chunks.library_version", lambda _: None)
    (state,) = survey_chunks(Bundle.open(measured))
    assert (state.state, state.reasons) == ("misfit", ("onnxruntime is not installed here",))


# --- The Segmenter -------------------------------------------------------------------------------


def test_a_measured_chunk_is_used(measured: Path, caplog: Log) -> None:
    with Segmenter(measured, "onnxruntime", cache=None) as segmenter:
        assert (segmenter.chunk, segmenter.chunk_source) == (48, "measured")
    assert [one.levelname for one in caplog.records if "chunks" in one.message] == ["DEBUG"]
    with Segmenter(measured, cache=None) as segmenter:  # "auto", on the CPU
        assert segmenter.chunk_source == "measured"


def test_an_explicit_chunk_wins(measured: Path) -> None:
    with Segmenter(measured, "onnxruntime", chunk=17, cache=None) as segmenter:
        assert (segmenter.chunk, segmenter.chunk_source) == (32, "asked")


@pytest.mark.parametrize(
    ("name", "expected"), [("onnxruntime", (48, "measured")), ("my-own", (16, "bundle"))]
)
def test_a_backend_has_the_chunk_that_was_measured_under_its_name(
    name: str, expected: tuple[int, str], measured: Path
) -> None:
    bundle = Bundle.open(measured)
    files = {
        name: GraphFile.of(bundle.file(stage.file), stage)
        for name, stage in bundle.manifest.stages.items()
    }

    class Named(OnnxRuntimeBackend):
        pass

    Named.name = name
    with Segmenter(bundle, Named(files), cache=None) as segmenter:
        assert (segmenter.chunk, segmenter.chunk_source) == expected


def test_a_measured_chunk_changes_no_label(measured: Path, tiny_bundle: Path) -> None:
    names = [f"thing {index}" for index in range(50)]  # a chunk of 48 and a category alone
    picture = np.random.default_rng(1).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    results = []
    for root in (measured, tiny_bundle):
        with Segmenter(root, "onnxruntime") as segmenter:
            results.append(segmenter(picture, segmenter.vocabulary(names)))
    np.testing.assert_array_equal(results[0].labels, results[1].labels)


def test_the_command_tells_the_chunk(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png")
    words = [str(measured), str(tmp_path / "a.png"), "--classes", "cat, dog", "--json"]
    words += ["--output", str(tmp_path), "--backend", "onnxruntime"]
    for more, expected in ([], (48, "measured")), (["--chunk", "1"], (16, "asked")):
        assert segment([*words, *more]) == 0
        document = json.loads(capsys.readouterr().out)
        assert (document["chunk"], document["chunk_source"]) == expected


# --- Verify --------------------------------------------------------------------------------------


@pytest.fixture
def _without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    others = tuple(name for name in BACKENDS if name != "openvino")
    monkeypatch.setattr("escnet_runtime.backends_here.BACKENDS", others)


def _checks(root: Path) -> dict[str, Check]:
    return {check.name: check for check in verify_bundle(root, "onnxruntime").checks}


def test_verify_tells_a_record_that_fits(measured: Path) -> None:
    check = _checks(measured)["engines/chunks-onnxruntime.json"]
    assert (check.passed, check.note) == (True, False)
    assert check.detail == "onnxruntime runs 48 categories at a time, as measured."


def test_verify_fails_a_damaged_record_and_advises(changed: Callable[[Change], Bundle]) -> None:
    bundle = changed(lambda record: record.update(chunk=17))
    report = verify_bundle(bundle.root, "onnxruntime")
    assert not report.passed
    assert [check.name for check in report.checks if not check.passed] == [
        "engines/chunks-onnxruntime.json"
    ]
    assert report.verdict.sentence == (
        "This bundle is not fine on this device: the measured chunks in "
        "engines/chunks-onnxruntime.json are damaged."
    )
    assert report.verdict.advice == (
        "Remove engines/chunks-onnxruntime.json from the bundle, or measure anew: escnet-build "
        f"{bundle.root} --backend onnxruntime"
    )


@pytest.mark.usefixtures("_without_openvino")
def test_verify_notes_a_misfit_in_its_verdict(changed: Callable[[Change], Bundle]) -> None:
    bundle = changed(lambda record: record["machine"].update(cores=4096))
    report = verify_bundle(bundle.root)
    assert report.passed
    (note,) = [note for note in report.verdict.notes if "chunks" in note]
    assert "is not used here: cores is 4096, here it is " in note
