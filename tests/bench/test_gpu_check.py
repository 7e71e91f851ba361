"""The script of a GPU's checks: its parts, its files, and what a failure or a limit leaves."""

import dataclasses
import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from escnet_bench.gpu_check import __main__ as command
from escnet_bench.gpu_check import parts
from escnet_bench.gpu_check.plan import METHODS, PARTS, CheckPlan, Report
from escnet_bench.gpu_check.subjects import open_segmenter
from escnet_bench.subjects import known_categories
from escnet_runtime.postprocess import resize_bilinear


@pytest.fixture
def plan(tmp_path: Path) -> CheckPlan:
    """Small, on the CPU."""
    return CheckPlan(
        output=str(tmp_path / "results"),
        bundles=str(tmp_path / "bundles"),
        models=("tiny",),
        categories=(5,),
        backend="onnxruntime",
        size=(24, 32),
        repeats=1,
        compile=False,
        device="cpu",
    )


@pytest.fixture
def timed(plan: CheckPlan, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> CheckPlan:
    """With a bundle, and no call before those that count."""
    Path(plan.bundles).mkdir()
    plan.bundle("tiny", "fp16").symlink_to(tiny_bundle)
    monkeypatch.setattr(parts, "_WARM_UP", 0)
    return plan


def written(plan: CheckPlan, part: str) -> Any:
    """A part's file."""
    return json.loads(Path(plan.output, f"gpu-check-{part}.json").read_text(encoding="utf-8"))


def test_every_part_has_its_method_and_its_function() -> None:
    assert set(PARTS) == set(METHODS) == set(parts.RUN)


def test_a_plan_survives_its_way_to_a_process(plan: CheckPlan) -> None:
    assert CheckPlan.from_json(plan.to_json()) == plan


def test_rows_are_on_disk_as_they_come(plan: CheckPlan) -> None:
    report = Report.begin("memory", plan)
    assert not written(plan, "memory")["finished"]
    report.add(categories=5, ratio=float("nan"))
    found = written(plan, "memory")
    assert found["rows"] == [{"categories": 5, "ratio": None}]
    assert found["conditions"]["method"] == METHODS["memory"]
    assert plan.bundles not in json.dumps(found)


def test_what_fails_is_written_and_the_rest_goes_on(plan: CheckPlan) -> None:
    report = Report.begin("parity", plan)
    with report.attempt("first"):
        raise ValueError("made up")
    with report.attempt("second"):
        report.add(categories=5)
    found = written(plan, "parity")
    assert found["errors"] == ["first: ValueError: made up"]
    assert len(found["rows"]) == 1


def test_labels_of_a_bundle_are_compared(plan: CheckPlan, tiny_bundle: Path) -> None:
    Path(plan.bundles).mkdir()
    plan.bundle("tiny", "fp16").symlink_to(tiny_bundle)
    report = Report.begin("pipeline", plan)
    parts.RUN["pipeline"](plan, report)
    row, all_names = written(plan, "pipeline")["rows"]
    assert row["categories"] == 5
    assert all_names["categories"] == known_categories("tiny") == 194
    assert all_names["agreement"] == 1
    assert row["agreement"] == row["clear_agreement"] == 1
    assert row["logits_relative_l2"] == 0
    assert 0 < row["clear_share"] <= 1


@pytest.mark.parametrize(("agreement", "failed"), [(0.9989, True), (0.999, False)])
def test_labels_that_differ_from_those_of_the_cpu_fail(
    plan: CheckPlan, agreement: float, failed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for near-ties: those of five made-up names in pictures of 194."""
    plan.bundle("tiny", "fp16").mkdir(parents=True)
    monkeypatch.setattr(parts, "open_segmenter", lambda *_: nullcontext())
    monkeypatch.setattr(parts, "words", lambda *_: None)
    monkeypatch.setattr(parts, "_compared", lambda *_: {"agreement": agreement})
    report = Report.begin("pipeline", plan)
    parts.RUN["pipeline"](plan, report)
    assert len(report.rows) == 2
    assert report.errors == written(plan, "pipeline")["errors"]
    assert len(report.errors) == failed
    if failed:
        assert "194 categories: 99.89% of the labels are the CPU's" in report.errors[0]


@pytest.mark.parametrize(("taken", "failed"), [(105, False), (95, False), (80, True), (120, True)])
def test_a_plan_that_is_far_from_what_is_taken_fails(
    plan: CheckPlan, taken: int, failed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan.bundle("tiny", "fp16").mkdir(parents=True)
    planned = SimpleNamespace(
        total_bytes=100, chunk=16, arena_bytes=1, slot_bytes=1, backend_bytes=1, table=lambda: ""
    )
    used = [0]

    def stream(*_: object) -> list[None]:
        used[0] += taken
        return []

    segmenter = SimpleNamespace(plan=lambda *_: planned, stream=stream)
    monkeypatch.setattr(parts, "open_segmenter", lambda *_: nullcontext(segmenter))
    monkeypatch.setattr(parts, "words", lambda *_: None)
    monkeypatch.setattr(parts, "watched_memory", lambda: nullcontext(lambda: used[0]))
    report = Report.begin("memory", plan)
    parts.RUN["memory"](plan, report)
    assert report.rows[0]["measured_bytes"] == taken
    assert len(report.errors) == failed
    assert all(f"100 bytes were planned and {taken} taken" in error for error in report.errors)


@pytest.mark.parametrize(
    ("host", "device", "wrong", "message"),
    [
        ([0, 60, 100, 120], [0, 0, 9000, 60], 0, None),
        ([0, 300, 600, 900], [0, 0, 0, 0], 0, "the host's memory grew"),
        ([0, 0, 0, 0], [0, 0, 400, 400], 0, "the GPU's memory grew"),
        ([0, 0, 0, 0], [0, 0, 0, 0], 3, "images got other labels than the first time"),
    ],
)
def test_a_soak_that_grows_or_goes_wrong_fails(
    plan: CheckPlan,
    host: list[int],
    device: list[int],
    wrong: int,
    message: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The leak of the first run on a GPU, 2.6 GB, passed for done."""
    plan.bundle("tiny", "fp16").mkdir(parents=True)
    given = iter(zip(host, device, strict=True))
    now = [0, 0]

    def stream(source: Iterable[object], _: object) -> Iterator[SimpleNamespace]:
        for index, _image in enumerate(source):
            now[:] = [one << 20 for one in next(given)]
            yield SimpleNamespace(labels=np.array([index < wrong]))

    class Pretended:
        def __call__(self, *_: object) -> SimpleNamespace:
            return SimpleNamespace(labels=np.array([False]))

    segmenter = Pretended()
    segmenter.stream = stream  # type: ignore[attr-defined]
    monkeypatch.setattr(parts, "open_segmenter", lambda *_: nullcontext(segmenter))
    monkeypatch.setattr(parts, "words", lambda *_: None)
    monkeypatch.setattr(parts, "watched_memory", lambda: nullcontext(lambda: now[1]))
    monkeypatch.setattr(parts, "_resident", lambda: now[0])
    report = Report.begin("soak", plan)
    parts.RUN["soak"](dataclasses.replace(plan, images=4), report)
    assert [row["images"] for row in report.rows] == [1, 2, 3, 4]
    assert len(report.errors) == (message is not None)
    assert all(str(message) in error for error in report.errors)


def test_implementations_take_turns(timed: CheckPlan) -> None:
    report = Report.begin("latency", timed)
    parts.RUN["latency"](timed, report)
    found = written(timed, "latency")
    assert not found["errors"]
    assert [row["implementation"] for row in found["rows"]] == ["escnet", "torch eager fp32"]
    assert all(row["p99_ms"] >= row["p50_ms"] > 0 for row in found["rows"])


def test_several_chunks_are_timed_where_they_differ(
    timed: CheckPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_in_torch", lambda *_, **__: {})
    timed = dataclasses.replace(timed, chunks=(16, 32, 64), categories=(5, 19))
    parts.RUN["latency"](timed, Report.begin("latency", timed))
    found = [
        (row["categories"], row["implementation"]) for row in written(timed, "latency")["rows"]
    ]
    assert found == [
        (5, "escnet, chunks of 16"),
        (19, "escnet, chunks of 16"),
        (19, "escnet, chunks of 32"),
    ]


def test_cuda_graphs_of_onnx_runtime_are_timed_beside_the_default(
    timed: CheckPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_in_torch", lambda *_, **__: {})
    monkeypatch.delenv("ESCNET_ORT_CUDA_GRAPHS", raising=False)
    asked = []
    opened = open_segmenter

    def watched(*words: Any, **more: Any) -> Any:
        asked.append(os.environ.get("ESCNET_ORT_CUDA_GRAPHS"))
        return opened(*words, **more)

    monkeypatch.setattr(parts, "open_segmenter", watched)
    timed = dataclasses.replace(timed, ort_graphs=True)
    parts.RUN["latency"](timed, Report.begin("latency", timed))
    rows = written(timed, "latency")["rows"]
    names = ["escnet", "escnet, ONNX Runtime's own CUDA graphs"]
    assert [row["implementation"] for row in rows] == ["escnet", *names]
    assert [row.get("agreement") for row in rows] == [None, 1, 1]
    assert asked == [None, "1"]
    assert "ESCNET_ORT_CUDA_GRAPHS" not in os.environ


@pytest.mark.parametrize("other", ["torch", "recorded"])
def test_what_cannot_run_costs_none_of_our_rows(
    other: str, timed: CheckPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise RuntimeError("made up")

    monkeypatch.setattr(parts, "_in_torch", fail if other == "torch" else lambda *_, **__: {})
    monkeypatch.setattr(parts, "_recorded", fail)
    report = Report.begin("latency", timed)
    parts.RUN["latency"](dataclasses.replace(timed, ort_graphs=other == "recorded"), report)
    assert {row["implementation"] for row in report.rows} == {"escnet"}
    [error] = report.errors
    assert error.endswith("tiny fp16, 5 categories: RuntimeError: made up")


def test_what_compilers_take_costs_no_row_of_the_others(
    timed: CheckPlan, monkeypatch: pytest.MonkeyPatch
) -> None:

    def in_torch(*_: object, compiled: bool) -> dict[str, parts.Call]:
        if compiled:
            raise RuntimeError("made up")
        return {"torch eager": lambda image: None}

    monkeypatch.setattr(parts, "_in_torch", in_torch)
    timed = dataclasses.replace(timed, compile=True, categories=(3, 5))
    report = Report.begin("latency", timed)
    parts.RUN["latency"](timed, report)
    rows = [(row["categories"], row["implementation"]) for row in report.rows]
    plain = [(n, name) for n in (3, 5) for name in ("escnet", "torch eager")]
    assert rows == [*plain, (3, "escnet"), (5, "escnet")]
    assert len(report.errors) == 2


@pytest.mark.parametrize("categories", [1, 2, 31, 70])
def test_a_clear_label_leads_by_more_than_rounding(categories: int) -> None:
    logits = np.random.default_rng(0).normal(size=(categories, 6, 5)).astype(np.float32)
    full = np.sort(resize_bilinear(logits, 13, 9), axis=0)
    second = full[-2] if categories > 1 else np.float32(-np.inf)
    clear = full[-1] - second > 0.01 * logits.std()
    np.testing.assert_array_equal(parts._decided(logits, (13, 9)), clear)


def test_a_missing_bundle_is_an_error_of_its_part(plan: CheckPlan) -> None:
    report = Report.begin("memory", plan)
    parts.RUN["memory"](plan, report)
    assert "there is no bundle tiny-fp16; run the part 'bundles'" in report.errors[0]


def test_a_part_beyond_its_limit_keeps_what_it_has(
    plan: CheckPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Report.begin("soak", plan)
    report.add(images=500)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: SleepingProcess())
    monkeypatch.setattr(os, "killpg", lambda *_: None)
    assert command._in_a_process("soak", plan, 3) == "stopped after its 3 s"
    found = written(plan, "soak")
    assert found["rows"] == [{"images": 500}]
    assert found["errors"] == ["stopped after its 3 s"]


class SleepingProcess:
    """One that does not end by itself."""

    pid = 0
    _asked = 0

    def wait(self, timeout: float | None = None) -> int:
        self._asked += 1
        if self._asked == 1:
            raise subprocess.TimeoutExpired("made up", timeout or 0)
        return -9


@pytest.mark.parametrize("arguments", [["--parts", "none"], ["--categories", "0"]])
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(arguments)
