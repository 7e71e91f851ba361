"""Runs in processes of their own: killed at any moment, and several at once."""

import dataclasses
import json
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from escnet.train.loop import train
from escnet.train.processes import accelerator_of, bf16_is_slow
from escnet_runtime.errors import InputError
from tests.train.toys import ToyTask, metrics, printed, settings, start_toy, start_toys, weights


def exit_code(process: BaseProcess) -> int | None:
    process.join(timeout=600)
    return process.exitcode


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    train(ToyTask(), settings(), folder)
    return folder


def assert_same(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_saves_first(tmp_path: Path, whole: Path, name: str, code: int) -> None:
    run = tmp_path / "run"
    assert exit_code(start_toy(run, f"{name}@22")) == code, printed(run)
    assert "stopped after step 6 of 12" in printed(run)
    assert "--resume" in printed(run)
    assert torch.load(run / "state.pt", weights_only=True)["progress"]["step"] == 6
    train(ToyTask(), settings(), run, resume=True)
    assert_same(run, whole)


@pytest.mark.parametrize(
    ("when", "step", "measured"), [("validation-2", 10, [5]), ("validation-3", 12, [5, 10])]
)
def test_a_signal_ends_a_validation(
    tmp_path: Path, whole: Path, when: str, step: int, measured: list[int]
) -> None:
    """Which is made anew by the run that resumes; that of the last step too."""
    run, often = tmp_path / "run", settings(evaluate_every=5)
    assert exit_code(start_toy(run, f"SIGTERM@{when}", evaluate_every=5)) == 143, printed(run)
    expected = f"stopped after step {step} of 12, before its validation was finished"
    assert expected in printed(run)
    progress = torch.load(run / "state.pt", weights_only=True)["progress"]
    assert (progress["step"], progress["evaluated"]) == (step, measured[-1])
    assert [line["step"] for line in metrics(run) if "quality" in line] == measured
    outcome = train(ToyTask(), often, run, resume=True)
    assert_same(run, whole)
    found = [line for line in metrics(run) if "quality" in line]
    assert [line["step"] for line in found] == [5, 10, 12]
    uninterrupted = train(ToyTask(), often, tmp_path / "uninterrupted")
    assert (outcome.best, outcome.best_step) == (uninterrupted.best, uninterrupted.best_step)
    assert outcome.figures == uninterrupted.figures


def test_a_signal_in_the_last_step_leaves_the_validation_to_who_resumes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert exit_code(start_toy(run, "SIGTERM@46")) == 143, printed(run)
    assert "stopped after step 12 of 12, before its validation was finished" in printed(run)
    assert not [line for line in metrics(run) if "quality" in line]
    assert train(ToyTask(), settings(), run, resume=True).best_step == 12


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_workers_leave_signals_to_the_process_that_trains(tmp_path: Path, name: str) -> None:
    """A terminal sends Ctrl-C to every process of the group; here the worker alone gets one."""
    run = tmp_path / "run"
    assert exit_code(start_toy(run, f"{name}@22", workers=1)) == 0, printed(run)


@pytest.mark.parametrize("when", ["22", "save-1", "save-2", "save-3", "save-4"])
def test_a_killed_run_resumes(tmp_path: Path, whole: Path, when: str) -> None:
    run = tmp_path / "run"
    assert exit_code(start_toy(run, f"SIGKILL@{when}")) == -signal.SIGKILL, printed(run)
    train(ToyTask(), settings(), run, resume=True)
    assert_same(run, whole)
    assert not [path for path in run.iterdir() if ".tmp-" in path.name]
    assert [line["step"] for line in metrics(run)] == [*range(1, 13), 12]


def test_a_killed_run_with_workers_resumes_at_once(tmp_path: Path, whole: Path) -> None:
    """Its workers live on for seconds, until they look for the process that started them."""
    run = tmp_path / "run"
    killed = start_toy(run, "SIGKILL@worker-30", workers=2)
    killed.join()  # with a timeout it would wait for a pipe that the workers have open too
    assert killed.exitcode == -signal.SIGKILL, printed(run)
    train(ToyTask(), settings(workers=2), run, resume=True)
    assert_same(run, whole)


def test_a_run_killed_again_and_again_gets_there(tmp_path: Path, whole: Path) -> None:
    """Each time a while after it has started, wherever it is then."""
    run = tmp_path / "run"
    kills = 0
    for attempt in range(200):
        process = start_toy(run, "resume", save_every=1)
        process.join(timeout=0.1 + 0.013 * attempt)
        if process.exitcode is None:
            process.kill()
            kills += 1
        if exit_code(process) == 0:
            break
    assert kills > 0
    assert_same(run, whole)


def test_a_run_in_another_process_locks_the_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = start_toy(run, steps=1_000_000)
    try:
        while not (run / "state.pt").is_file():
            assert first.exitcode is None, printed(run)
            time.sleep(0.05)
        with pytest.raises(InputError, match="another process is training in"):
            train(ToyTask(), settings(), run, resume=True)
    finally:
        first.terminate()
        assert exit_code(first) == 143


def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    """DistributedDataParallel without find_unused_parameters: all that is trained has gradients."""
    one, two = tmp_path / "one", tmp_path / "two"
    train(ToyTask(), settings(batch=8, accumulate=2), one)
    codes = [exit_code(process) for process in start_toys(two, 2, batch=4, accumulate=2)]
    assert codes == [0, 0], printed(two)
    ranks = [json.loads((two / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]
    for name, value in weights(one).items():
        torch.testing.assert_close(value, weights(two)[name])
    # A line is written once, and its losses are means over both processes.
    lines = [metrics(run) for run in (one, two)]
    assert len(lines[0]) == len(lines[1]) == 13
    for alone, together in zip(*lines, strict=True):
        for name in alone.keys() - {"seconds"}:
            assert together[name] == pytest.approx(alone[name], rel=1e-3)


def test_two_processes_stop_together_and_resume(tmp_path: Path) -> None:
    """The signal comes to the second process alone."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert [exit_code(one) for one in start_toys(whole, 2, batch=2)] == [0, 0]
    # Samples 22 and 23 are of the second process, in step 6.
    stopped = start_toys(parts, 2, [[], ["SIGTERM@22"]], batch=2)
    assert [exit_code(one) for one in stopped] == [143, 143], printed(parts)
    assert "stopped after step 6 of 12" in printed(parts)
    resumed = start_toys(parts, 2, [["resume"], ["resume"]], batch=2)
    assert [exit_code(one) for one in resumed] == [0, 0], printed(parts)
    assert_same(whole, parts)


@pytest.mark.parametrize("which", [0, 1])
def test_two_processes_stop_together_in_a_validation(tmp_path: Path, which: int) -> None:
    """The signal comes to the one that validates, or to the other in the step before."""
    run = tmp_path / "run"
    options = [["SIGTERM@validation-1"], []] if which == 0 else [[], ["SIGTERM@46"]]
    stopped = start_toys(run, 2, options, batch=2)
    assert [exit_code(one) for one in stopped] == [143, 143], printed(run)
    assert not [line for line in metrics(run) if "quality" in line]
    resumed = start_toys(run, 2, [["resume"], ["resume"]], batch=2)
    assert [exit_code(one) for one in resumed] == [0, 0], printed(run)
    assert metrics(run)[-1]["step"] == 12
    assert "quality" in metrics(run)[-1]


def test_two_processes_share_a_refusal(tmp_path: Path) -> None:
    train(ToyTask(), settings(), tmp_path / "run")
    codes = [exit_code(process) for process in start_toys(tmp_path / "run", 2)]
    assert codes == [2, 2]
    assert "resume it with --resume" in printed(tmp_path / "run", 1)


@pytest.mark.parametrize(
    ("machine", "capability", "slow"),
    [
        ("x86_64", "AVX2", True),
        ("AMD64", "DEFAULT", True),
        ("x86_64", "AVX512", False),
        ("aarch64", "DEFAULT", False),
    ],
)
def test_bf16_where_there_are_no_instructions_for_it_is_said(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    machine: str,
    capability: str,
    slow: bool,
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert bf16_is_slow() is slow
    for precision in ("bf16", "no"):
        caplog.clear()
        with accelerator_of(dataclasses.replace(settings(), precision=precision)):
            assert ("precision is bf16" in caplog.text) is (slow and precision == "bf16")
