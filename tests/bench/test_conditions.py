"""What is recorded with a result, and what must not be."""

import json
import math
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from escnet_bench.conditions import Conditions, board_model, cpu_model
from escnet_bench.results import plain, result_document, saving
from escnet_runtime.bundle import Bundle, sha256_file
from escnet_runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of an invented benchmark."""

    seconds: float
    grid: tuple[int, int] = (2, 3)


def test_the_machine_and_its_load_are_recorded() -> None:
    conditions = Conditions.now("by hand").finished()
    assert conditions.method == "by hand"
    assert conditions.date.endswith("+00:00")
    assert conditions.cores is None or conditions.cores >= 1
    assert conditions.packages["numpy"]
    assert conditions.load_after is None or len(conditions.load_after) == 3


ARM = "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: {part}\n\n"


def machine(root: Path, cpuinfo: str, board: str | None = None) -> Path:
    """A made-up machine's ``proc``."""
    (root / "proc/device-tree").mkdir(parents=True)
    (root / "proc/cpuinfo").write_text(cpuinfo, encoding="ascii")
    if board is not None:
        (root / "proc/device-tree/model").write_bytes(board.encode() + b"\0")
    return root


def test_two_boards_are_two_machines(tmp_path: Path) -> None:
    """Arm's cores have no names, and the same ones are in many boards."""
    boards = (
        machine(tmp_path / "pi", ARM.format(part="0xd0b"), "Raspberry Pi 5 Model B Rev 1.0"),
        machine(tmp_path / "rock", ARM.format(part="0xd0b"), "Radxa ROCK 5B"),
        machine(tmp_path / "server", ARM.format(part="0xd40")),
        machine(tmp_path / "other server", ARM.format(part="0xd4f")),
    )
    assert len({cpu_model(board) for board in boards}) == len(boards)
    assert cpu_model(boards[0]).startswith("Raspberry Pi 5 Model B Rev 1.0, ")
    assert "0xd40" in cpu_model(boards[2])


def test_a_processor_with_a_name_is_called_that(tmp_path: Path) -> None:
    root = machine(tmp_path, "processor\t: 0\nmodel name\t: AMD EPYC\n\n")
    assert cpu_model(root) == "AMD EPYC"
    assert board_model(root) is None


def test_variables_that_matter_are_recorded_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("SOME_TOKEN", "secret")
    monkeypatch.setenv("LD_PRELOAD", "")
    variables = Conditions.now("").variables
    assert variables["MALLOC_TRIM_THRESHOLD_"] == "1000000"
    assert variables["OMP_NUM_THREADS"] == "1"
    assert "SOME_TOKEN" not in variables
    assert "LD_PRELOAD" not in variables


def test_a_preloaded_library_is_recorded_without_its_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("subprocess.run", _no_tools)
    monkeypatch.setenv("LD_PRELOAD", "/somewhere/lib/libjemalloc.so.2:libother.so")
    assert Conditions.now("").variables["LD_PRELOAD"] == "libjemalloc.so.2 libother.so"


def test_tools_that_fail_leave_gaps_and_no_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", _no_tools)
    conditions = Conditions.now("")
    assert conditions.gpus == ()
    assert conditions.commit is None
    assert conditions.changed is None


def test_a_bundle_is_identified_by_its_manifest_and_not_by_its_folder(tiny_bundle: Path) -> None:
    conditions = Conditions.now("", Bundle.open(tiny_bundle))
    assert conditions.bundle is not None
    assert conditions.bundle.model == "tiny"
    assert conditions.bundle.precision == "fp16"
    assert conditions.bundle.trained is False
    assert conditions.bundle.sha256 == sha256_file(tiny_bundle / "bundle.json")
    assert str(tiny_bundle.parent) not in repr(conditions)


def test_the_document_is_plain_json() -> None:
    document = result_document("x", Conditions.now("m"), [Row(seconds=0.12345678)])
    assert document["benchmark"] == "x"
    assert document["rows"] == [{"seconds": 0.123457, "grid": [2, 3]}]
    assert json.loads(json.dumps(document, allow_nan=False)) == document


@pytest.mark.parametrize(
    ("said", "published"),
    [
        ("cannot read /srv/ann/a b/x.onnx: gone", "cannot read a b/x.onnx: gone"),
        ('File "/opt/venv/lib/torch/nn.py", line 3', 'File "nn.py", line 3'),
        ("~/.cache/escnet/bench/k/bundle.json", "bundle.json"),
        ("load C:\\Users\\Ann\\model.onnx failed", "load model.onnx failed"),
        ("12 GB/s, 1.2 / 1.3, and/or, docs/benchmarks.md", None),
        ("see https://example.org/a/b.html", None),
    ],
)
def test_what_is_published_names_no_folders(said: str, published: str | None) -> None:
    assert plain({"reason": [said]}) == {"reason": [published or said]}


def test_a_users_name_with_a_space_is_published_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, work = tmp_path / "Ann Lee", tmp_path / "Ann Lee" / "all of it"
    work.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    said = f"cannot read {home}/models/a.onnx: gone; {work}/b.onnx: gone, too"
    assert plain(said) == "cannot read a.onnx: gone; b.onnx: gone, too"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_json_does_not_have_are_null(value: float) -> None:
    document = result_document("x", Conditions.now("m"), [Row(seconds=value)])
    assert document["rows"][0]["seconds"] is None


def test_a_saved_file_is_the_document(tmp_path: Path) -> None:
    path = tmp_path / "results" / "x.json"
    with saving(path) as save:
        save({"benchmark": "×"})
        assert not path.exists()
    assert json.loads(path.read_text(encoding="utf-8")) == {"benchmark": "×"}


def test_a_failed_benchmark_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(InputError), saving(path):
        raise InputError("did not work")
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_impossible_place_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder"), saving(tmp_path):
        pytest.fail("measured all the same")


def _no_tools(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
    raise OSError("no such tool")
