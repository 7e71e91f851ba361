"""``escnet-bench``: options, exit codes, ``--json`` and ``--output``."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from escnet_bench import ppg_time
from escnet_bench.command import main
from escnet_bench.gflop_command import GFLOP_CHUNK
from escnet_runtime.bundle import Bundle
from escnet_runtime.native import native_status

_WITHOUT_TORCH = """
import sys
from importlib.abc import MetaPathFinder
class Hidden(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("hidden by this test", name=name)
sys.meta_path.insert(0, Hidden())
from escnet_bench.command import main
sys.exit(main(sys.argv[1:]))
"""


def run_json(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    """Exit code and the one JSON object on standard output."""
    code = main([*words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_gflop_gives_rows_with_their_conditions(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = tmp_path / "gflop.json"
    code, document = run_json(capsys, "gflop", "--categories", "2", "5", "--output", str(output))
    assert code == 0
    assert document["benchmark"] == "gflop"
    assert document["conditions"]["packages"]["torch"]
    assert [(row["categories"], row["form"]) for row in document["rows"]] == [
        (2, "plain"),
        (2, "shipped"),
        (5, "plain"),
        (5, "shipped"),
    ]
    assert json.loads(output.read_text(encoding="utf-8")) == document


def test_gflop_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gflop", "--categories", "3"]) == 0
    out = capsys.readouterr().out
    for words in ("GFLOP of one image, tiny", "shipped, chunks of 16", "4× sam", "multiply-add"):
        assert words in out


def test_operations_are_counted_at_the_chunk_of_a_bundle(tiny_bundle: Path) -> None:
    assert Bundle.open(tiny_bundle).manifest.constants.chunk == GFLOP_CHUNK


def test_gflop_without_torch_names_what_to_install() -> None:
    command = [sys.executable, "-c", _WITHOUT_TORCH, "gflop"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "escnet-bench[torch]" in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_ppg_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ppg", "--categories", "2", "--grid", "4", "6", "--repeats", "2"]
    code, document = run_json(capsys, *words)
    assert code == 0
    assert {row["maps"] for row in document["rows"]} == {"blobs", "noise", "flat"}
    assert document["rows"][0]["grid"] == [4, 6]
    found = {row["implementation"] for row in document["rows"]}
    assert found == ({"c", "numpy"} if native_status().active else {"numpy"})
    assert main(words) == 0
    assert "Prompt generator" in capsys.readouterr().out


def test_footprint_prints_tables_and_writes_its_result(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tmp_path: Path
) -> None:
    classes, output = tmp_path / "classes.txt", tmp_path / "out" / "footprint.json"
    classes.write_text("red\nblue\n", encoding="utf-8")
    words = ["footprint", "--bundle", str(tiny_bundle), "--categories", "2", "--repeats", "1"]
    words += ["--classes-file", str(classes), "--output", str(output)]
    assert main(words) == 0
    out = capsys.readouterr().out
    for title in ("Memory and time", "first label map", "each stage"):
        assert title in out
    document = json.loads(output.read_text(encoding="utf-8"))
    assert document["conditions"]["bundle"]["model"] == "tiny"
    assert document["conditions"]["load_before"]
    assert document["rows"][0]["categories"] == 2
    # Results are published: they say nothing of this machine's folders.
    assert str(tmp_path) not in output.read_text(encoding="utf-8")


def test_calls_that_warm_up_are_in_no_percentile(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], itertools.chain([500.0] * 3, range(101, 0, -1))

    def call() -> None:
        clock[0] += next(calls) / 1e3

    monkeypatch.setattr(ppg_time, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    found = ppg_time._percentiles(call, warm_up=3, repeats=101)
    assert found == pytest.approx((51, 96, 100))


def test_ppg_in_c_needs_a_compiler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ESCNET_NATIVE", "0")
    words = ["ppg", "--categories", "2", "--grid", "4", "6", "--repeats", "2"]
    assert {row["implementation"] for row in run_json(capsys, *words)[1]["rows"]} == {"numpy"}
    assert main([*words, "--implementations", "c"]) == 1
    assert "Install a C compiler, or ask for numpy alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "BENCHMARK"),
        (["abacus"], "invalid choice"),
        (["footprint"], "--bundle"),
        (["footprint", "--bundle", "no-such-bundle"], "no bundle at no-such-bundle"),
        (["gflop", "--categories", "0"], "--categories has 0"),
        (["gflop", "--categories", "65536"], "--categories has 65536"),
        (["gflop", "--preset", "giant"], "no preset is called 'giant'"),
        (["gflop", "--chunk", "0"], "at least 1"),
        (["gflop", "--categories", "1", "--output", "."], "folder"),
        (["ppg", "--grid", "24"], "--grid"),
        (["ppg", "--repeats", "0"], "0 repeats"),
    ],
)
def test_wrong_usage_exits_2_and_says_why(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err
    code, document = run_json(capsys, *words)
    assert code == 2
    assert message in document["error"]["message"]
