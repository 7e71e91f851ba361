"""Runs in processes of their own: killed at any moment, and several at once."""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from escnet.train.loop import train
from tests.train.toys import ToyTask, settings, start_toy, weights

pytestmark = pytest.mark.slow


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output."""
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


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
    status, output = finished(start_toy(run, f"{name}@22"))
    assert status == code, output
    assert "stopped after step 6 of 12" in output
    assert "--resume" in output
    assert torch.load(run / "state.pt", weights_only=True)["progress"]["step"] == 6
    train(ToyTask(), settings(), run, resume=True)
    assert_same(run, whole)


def test_ctrl_c_reaches_the_workers_too_and_the_step_is_finished(tmp_path: Path) -> None:
    """A terminal sends it to every process of the group; the worker here sends it to itself."""
    run = tmp_path / "run"
    status, output = finished(start_toy(run, "SIGINT@22", workers=1))
    assert status == 0, output  # the worker ignores it, and nobody else got it


@pytest.mark.parametrize("when", ["22", "save-1", "save-2", "save-3"])
def test_a_killed_run_resumes(tmp_path: Path, whole: Path, when: str) -> None:
    run = tmp_path / "run"
    status, output = finished(start_toy(run, f"SIGKILL@{when}"))
    assert status == -signal.SIGKILL, output
    train(ToyTask(), settings(), run, resume=True)
    assert_same(run, whole)
    assert not [path for path in run.iterdir() if ".tmp-" in path.name]
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [*range(1, 13), 12]


def test_a_run_in_another_process_locks_the_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = start_toy(run, steps=1_000_000)
    try:
        while not (run / "state.pt").is_file():
            assert first.poll() is None
            time.sleep(0.1)
        status, output = finished(start_toy(run, "resume"))
        assert status == 2
        assert "another process is training in" in output
    finally:
        first.send_signal(signal.SIGTERM)
        assert finished(first)[0] == 143


def rank_weights(folder: Path, rank: int) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / f"rank{rank}.json").read_text())
    return state


def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    """DistributedDataParallel without find_unused_parameters: all that is trained has gradients."""
    train(ToyTask(), settings(batch=8, accumulate=2), tmp_path / "one")
    status, output = finished(start_toy(tmp_path / "two", processes=2, batch=4, accumulate=2))
    assert status == 0, output
    assert rank_weights(tmp_path / "two", 0) == rank_weights(tmp_path / "two", 1)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(one[name], two[name])
    lines = (tmp_path / "two" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 13  # of the main process alone
    losses = [json.loads(line) for line in lines]
    alone = [json.loads(line) for line in (tmp_path / "one" / "metrics.jsonl").open()]
    for mine, theirs in zip(losses, alone, strict=True):
        for name in mine.keys() - {"seconds"}:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4)


def test_two_processes_stop_together_and_resume(tmp_path: Path) -> None:
    """The signal comes to the second process alone."""
    options = {"processes": 2, "batch": 2}
    assert finished(start_toy(tmp_path / "whole", **options))[0] == 0
    status, output = finished(start_toy(tmp_path / "parts", "SIGTERM@22", **options))
    assert status != 0
    assert "stopped after step 6 of 12" in output
    status, output = finished(start_toy(tmp_path / "parts", "resume", **options))
    assert status == 0, output
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_two_processes_share_a_refusal(tmp_path: Path) -> None:
    train(ToyTask(), settings(), tmp_path / "run")
    status, output = finished(start_toy(tmp_path / "run", processes=2))
    assert status != 0
    assert output.count("refused:") == 2
    assert "resume it with --resume" in output
