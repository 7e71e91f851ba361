"""``escnet-export`` from the outside: what it says, its exit codes, and what Ctrl-C leaves."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from PIL import Image

from escnet_engines import BuildError, Library, open_library
from escnet_export import ExportReport
from escnet_export.command import main
from escnet_export.errors import ParityError
from escnet_export.report import Budget
from escnet_runtime.bundle import Bundle
from escnet_runtime.engines import find_engines, fingerprint_here

Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def run(
    checkpoint: Path, quick_export: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Exports the checkpoint to ``tmp_path/bundle`` with ``--json``: exit code and the object."""

    def command(*options: str) -> tuple[int, dict[str, Any]]:
        given = ["--checkpoint", str(checkpoint), "--output", str(tmp_path / "bundle")]
        numbers = ["--precision", "fp32", "--check-categories", "2"]
        code = main([*given, *numbers, "--json", *options])
        return code, json.loads(capsys.readouterr().out)

    return command


def test_the_result_in_json(run: Run, tmp_path: Path) -> None:
    code, result = run()
    assert code == 0
    assert result.keys() >= {"bundle", "precision", "seconds", "parity"}
    assert (result["bundle"], result["precision"]) == (str(tmp_path / "bundle"), "fp32")
    assert result["seconds"] > 0
    parity = result["parity"]
    assert parity["passed"] is True
    assert 0 <= parity["pixel_agreement"] <= 1
    assert isinstance(parity["prompt_flips"], int)
    assert parity["kept_in_fp32"] == []
    manifest = Bundle.open(tmp_path / "bundle", check="hashes").manifest
    assert parity["stages"].keys() == manifest.stages.keys()
    assert all(error.keys() == {"relative_l2", "cosine"} for error in parity["stages"].values())
    assert manifest.model.weights == "made for a test"


def test_the_result_for_people(
    checkpoint: Path, quick_export: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", str(checkpoint), "--output", str(tmp_path / "bundle")]
    options = ["--precision", "fp32", "--check-categories", "2", "--quiet"]
    assert main([*arguments, *options]) == 0
    shown = capsys.readouterr().out
    assert "parity passed" in shown
    assert "weights are untrained, so stages are the gate" in shown
    assert "prompts flipped" in shown


def test_engines_that_go_with_the_bundle_that_is_replaced_are_named(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are of its graphs, and took minutes to build, or hours."""
    assert run()[0] == 0
    engines = tmp_path / "bundle" / "engines"
    (engines / "tensorrt-sm_87").mkdir(parents=True)
    (engines / "chunks-openvino.json").write_text("{}", encoding="utf-8")
    caplog.clear()
    assert run()[0] == 0
    gone = "is gone with it: chunks-openvino.json, tensorrt-sm_87; run escnet-build again"
    assert gone in caplog.text
    caplog.clear()
    assert run()[0] == 0
    assert "is gone" not in caplog.text


def test_a_missed_budget_exits_1_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    code, result = run("--max-stage-l2", "0")
    assert code == 1
    assert result["error"]["type"] == "ParityError"
    assert "--allow-parity-failure" in result["error"]["message"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ([], ()),
        (["--max-prompt-flips", "0.1"], ()),
        (["--min-pixel-agreement", "0.9"], ("pixels",)),
        (["--max-stage-l2", "0.1", "--min-pixel-agreement", "0.9"], ("pixels", "stages")),
    ],
)
def test_a_bound_that_is_given_counts_whatever_the_weights(
    options: list[str], asked: tuple[str, ...], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets: list[Budget] = []

    def export(*_: object, budget: Budget, **__: object) -> NoReturn:
        budgets.append(budget)
        raise ParityError("seen")

    monkeypatch.setattr("escnet_export.command.export_bundle", export)
    assert run(*options)[0] == 1
    assert [budget.asked for budget in budgets] == [asked]


def test_a_missed_budget_may_be_allowed(run: Run, tmp_path: Path) -> None:
    code, result = run("--max-stage-l2", "0", "--allow-parity-failure")
    assert code == 0
    assert result["parity"]["passed"] is False
    assert Bundle.open(tmp_path / "bundle").manifest.parity.allowed_failure


def test_parity_on_a_folder_of_pictures(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.Generator(np.random.PCG64(1))
    for name, size in (("a.png", (30, 40)), ("b.jpg", (50, 20)), ("c.png", (9, 9))):
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    code, result = run("--images", str(folder), "--limit", "2")
    assert code == 0
    assert result["parity"]["images"] == 2


def test_labelled_images_without_a_label_are_no_measure(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("escnet_export.command.export_bundle", _must_not_run)
    for folder in ("images", "labels"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "images" / "a.png")
    Image.new("L", (8, 8), 255).save(tmp_path / "data" / "labels" / "a.png")
    (tmp_path / "data" / "classes.json").write_text('["cat", "dog"]', encoding="utf-8")
    code, result = run("--images", str(tmp_path / "data"), "--max-miou-loss", "0.01")
    assert code == 2
    assert "no pixel of the first 1 images has a label" in result["error"]["message"]


def test_a_full_disk_is_said_and_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("escnet_export.golden_run.write_golden", full)
    code, result = run()
    assert code == 1
    assert "the disk is full" in result["error"]["message"]
    assert list(tmp_path.iterdir()) == []


RTX = ("--backend", "tensorrt-rtx")


@pytest.fixture
def compiler() -> Library:
    """TensorRT-RTX, which compiles without a GPU."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs escnet-engines[tensorrt-rtx]")
    return open_library("tensorrt-rtx")


@pytest.mark.slow
def test_engines_are_built_in_the_same_go(run: Run, compiler: Library, tmp_path: Path) -> None:
    code, result = run(*RTX, "--target", "sm_86,sm_89")
    assert code == 0
    bundle = Bundle.open(tmp_path / "bundle", check="hashes")
    (build,) = result["builds"]
    assert (build["backend"], build["target"]) == ("tensorrt-rtx", "sm_86,sm_89")
    assert [one["graph"] for one in build["engines"]] == list(bundle.manifest.stages)
    here = dataclasses.replace(
        fingerprint_here("tensorrt-rtx", compiler.version), targets=("sm_89",)
    )
    _, files = find_engines(bundle, here)
    assert files.keys() == bundle.manifest.stages.keys()


def test_a_failed_build_leaves_the_bundle_without_engines(
    run: Run,
    compiler: Library,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> NoReturn:
        raise BuildError("node 'node_x': as if")

    monkeypatch.setattr(Library, "compile", fail)
    code, result = run(*RTX, "--target", "sm_86")
    assert code == 1
    assert result["parity"]["passed"] is True
    assert result["builds"] == []
    assert result["error"]["type"] == "BuildError"
    message = result["error"]["message"]
    assert "node 'node_x'" in message
    assert message.endswith(f"escnet-build {tmp_path / 'bundle'} {' '.join(RTX)} --target sm_86")
    Bundle.open(tmp_path / "bundle", check="hashes")
    assert not (tmp_path / "bundle" / "engines").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--target", "sm_99"], 2, "does not compile these graphs for sm_99"),
        (["--precision", "fp8", "--target", "sm_86,sm_89"], 2, "sm_86 cannot compute in fp8"),
        (["--image-encoder", "fp8", "--target", "sm_80"], 2, "sm_80 cannot compute in fp8"),
        (
            ["--precision", "bf16", "--target", "sm_75"],
            2,
            "does not compile these graphs for sm_75",
        ),
        ([], 1, "no NVIDIA GPU is visible; name the GPUs"),
    ],
)
def test_gpus_that_cannot_be_built_for_are_said_before_the_export(
    options: list[str],
    code: int,
    message: str,
    run: Run,
    compiler: Library,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("escnet_export.command.export_bundle", _must_not_run)
    monkeypatch.setattr("escnet_runtime.engines.find_gpu", lambda: None)
    got, result = run(*RTX, *options)
    assert got == code
    assert message in result["error"]["message"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--min-pixel-agreement", "1.5"], "--min-pixel-agreement is 1.5"),
        (["--min-pixel-agreement", "nan"], "--min-pixel-agreement is nan"),
        (["--max-stage-l2", "-1"], "--max-stage-l2 is -1.0"),
        (["--max-prompt-flips", "2"], "--max-prompt-flips is 2.0"),
        (["--max-miou-loss", "nan"], "--max-miou-loss is nan"),
        (["--max-miou-loss", "0.01"], "--max-miou-loss goes with labelled images, got none"),
        (["--image-encoder", "fp4"], "fp4"),
        (["--images", "shapes:nowhere"], "shapes:nowhere"),
        (["--max-stage-l2", "nan"], "--max-stage-l2 is nan"),
        (["--max-stage-l2", "inf"], "--max-stage-l2 is inf, expected a finite number"),
        (["--check-categories", "2", "0"], "--check-categories has 0"),
        (["--check-categories", "100000"], "--check-categories has 100000"),
        (["--images", "nowhere"], "nowhere"),
        (["--images", ".", "--limit", "0"], "--limit is 0"),
        (["--precision", "fp4"], "fp4"),
        (["--rest", "fp32"], "--rest goes with --precision int8 or fp8"),
        (["--calibration", "entropy"], "--calibration goes with --precision int8 or fp8"),
        (["--precision", "int8", "--calibration", "luck"], "luck"),
        (["--clip", "some-tag"], "go with --preset"),
        (["--clip", ""], "go with --preset"),
        (["--seed", str(10**30)], "--seed is 1000000000000000000000000000000, expected 0 to"),
        (["--seed", "1"], "go with --preset"),
        (["--image-size", "100"], "image size of 100 px for 'mini'; expected one of 32, 64, 96, "),
        (["--preset", "tiny"], "not allowed with"),
        (["--backend", "onnxruntime"], "invalid choice"),
        (["--target", "sm_86"], "--target goes with --backend"),
        (["--unknown"], "--unknown"),
    ],
)
def test_wrong_usage_exits_2_before_any_work(
    options: list[str], message: str, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("escnet_export.command.export_bundle", _must_not_run)
    monkeypatch.chdir(tmp_path)
    code, result = run(*options)
    assert code == 2
    assert message in result["error"]["message"]
    assert list(tmp_path.iterdir()) == []


def test_an_empty_name_of_weights_gives_no_random_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("escnet_export.command.export_bundle", _must_not_run)
    options = ["--preset", "tiny", "--clip", "", "--output", str(tmp_path / "bundle")]
    assert main(options) == 2
    assert "'' is not a file of weights" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_output_that_cannot_be_replaced_exits_2_before_the_model_is_loaded(
    kind: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("escnet_export.command.load_checkpoint", _must_not_run)
    target = tmp_path / "bundle"
    if kind == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine").write_text("mine")
    code, result = run()
    assert code == 2
    assert result["error"]["type"] == "InputError"
    assert str(target) in result["error"]["message"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_missing_checkpoint_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "missing.safetensors"
    assert main(["--checkpoint", str(missing), "--output", str(tmp_path / "bundle")]) == 2
    assert "missing.safetensors" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_ctrl_c_leaves_the_old_bundle_and_exits_130(
    mini_report: ExportReport, tmp_path: Path
) -> None:
    target = Path(shutil.copytree(mini_report.bundle, tmp_path / "place" / "bundle"))
    before = (target / "bundle.json").read_bytes()
    command = [sys.executable, "-m", "escnet_export", "--preset", "tiny", "--json"]
    process = subprocess.Popen(
        [*command, "--output", str(target)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _wait_for(lambda: bool(list(target.parent.glob(".bundle.tmp-*/graphs"))), process)
        time.sleep(0.5)  # into torch's exporter
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert json.loads(output)["error"]["type"] == "KeyboardInterrupt"
    assert list(target.parent.iterdir()) == [target]
    assert (target / "bundle.json").read_bytes() == before
    Bundle.open(target, check="hashes")


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.05)


def _must_not_run(*_: object, **__: object) -> NoReturn:
    pytest.fail("work was begun")
