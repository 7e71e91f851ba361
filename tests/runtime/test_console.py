"""What every command shares: exit codes, one JSON object, logs, progress."""

import argparse
import errno
import json
import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.table import Table
from rich.text import Text

from escnet_runtime.console import Command, Console, command_parser, printable, run_command
from escnet_runtime.errors import BackendError, EscNetError, ImageError

Captured = pytest.CaptureFixture[str]
LOG = logging.getLogger("escnet_runtime.test")


def run(command: Command, *words: str) -> int:
    parser = command_parser("escnet-test", "A command of this test.")
    parser.add_argument("--size", type=int, default=1)
    return run_command(parser, command, words)


def raising(error: BaseException) -> Command:
    def command(arguments: argparse.Namespace, console: Console) -> tuple[int, Mapping[str, Any]]:
        raise error

    return command


def fine(arguments: argparse.Namespace, console: Console) -> tuple[int, Mapping[str, Any]]:
    console.print("for [people]")
    print("a library talks")
    LOG.info("detail")
    return 0, {"size": arguments.size}


def test_people_get_what_is_printed_and_the_log_on_standard_error(capsys: Captured) -> None:
    assert run(fine, "--size", "3") == 0
    out, err = capsys.readouterr()
    assert out == "for [people]\na library talks\n"
    assert err == "detail\n"


def test_json_is_all_of_standard_output(capsys: Captured) -> None:
    assert run(fine, "--size", "3", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"size": 3}
    assert "people" not in err
    assert err == "a library talks\ndetail\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ImageError("no such\nimage"), 2),
        (BackendError("no such backend"), 1),
        (EscNetError("failed"), 1),
        (KeyboardInterrupt(), 130),
        (MemoryError("an array of 3 TiB"), 1),
        (OSError(errno.ENOSPC, "No space left on device", "graph.onnx"), 1),
    ],
)
def test_expected_errors_are_one_message_and_a_code(
    error: BaseException, code: int, capsys: Captured
) -> None:
    assert run(raising(error)) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("escnet-test: error: ")
    assert "Traceback" not in err
    assert run(raising(error), "--json") == code
    document = json.loads(capsys.readouterr().out)
    assert document["error"]["type"] == type(error).__name__
    assert document["error"]["message"]


def test_a_defect_keeps_its_traceback(capsys: Captured) -> None:
    assert run(raising(ZeroDivisionError("by nothing")), "--json") == 1
    out, err = capsys.readouterr()
    assert "Traceback" in err
    assert json.loads(out) == {"error": {"type": "ZeroDivisionError", "message": "by nothing"}}


@pytest.mark.parametrize("words", [["--size", "big"], ["--unknown"], ["--verb"], ["-q", "-v"]])
def test_wrong_usage_is_code_2(words: list[str], capsys: Captured) -> None:
    assert run(fine, *words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: escnet-test")
    assert run(fine, *words, "--json") == 2
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "InputError"


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_help_and_version_are_success(word: str, capsys: Captured) -> None:
    assert run(fine, word) == 0
    assert "escnet-test" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "shown"), [([], "iw"), (["--verbose"], "diw"), (["--quiet"], "w"), (["--json"], "iw")]
)
def test_how_much_is_logged(words: list[str], shown: str, capsys: Captured) -> None:
    def command(arguments: argparse.Namespace, console: Console) -> tuple[int, Mapping[str, Any]]:
        LOG.debug("d")
        logging.getLogger("escnet_export").info("i")
        LOG.warning("w\x1b[2J")
        return 0, {}

    before = logging.getLogger("escnet_runtime").handlers[:]
    run(command, *words)
    lines = capsys.readouterr().err.splitlines()
    assert "".join(line.removeprefix("debug: ").removeprefix("warning: ")[0] for line in lines) == (
        shown
    )
    assert lines[-1] == "warning: w\\x1b[2J"
    assert logging.getLogger("escnet_runtime").handlers == before


def test_a_library_that_logs_by_the_root_doubles_no_line(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def command(arguments: argparse.Namespace, console: Console) -> tuple[int, Mapping[str, Any]]:
        logging.info("a detail of a library")
        logging.getLogger("some.library").info("another")
        LOG.info("ours")
        LOG.warning("ours as well")
        logging.getLogger("some.library").warning("theirs")
        return 0, {}

    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own
    run(command)
    assert capsys.readouterr().err == "ours\nwarning: ours as well\nwarning: theirs\n"
    assert logging.getLogger().handlers == []


def test_numbers_and_paths_become_plain_json(capsys: Captured) -> None:
    document = {
        "path": Path("a") / "b",
        "numpy": [np.float32(0.5), np.int64(3), np.bool_(True)],
        "not finite": (math.inf, math.nan, np.float64(-math.inf)),
        "none": None,
    }
    assert run(lambda *_: (1, document), "--json") == 1
    assert json.loads(capsys.readouterr().out) == {
        "path": str(Path("a") / "b"),
        "numpy": [0.5, 3, True],
        "not finite": [None, None, None],
        "none": None,
    }


def test_progress_stays_off_a_pipe(capsys: Captured) -> None:
    def command(arguments: argparse.Namespace, console: Console) -> tuple[int, Mapping[str, Any]]:
        with console.progress("work", 2) as advance:
            advance("[first")
            advance(count=0.5)
        return 0, {}

    assert run(command) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ((), ["work: b, tactics (1 of 3 done)", "work (2 of 3 done)"]),
        (("--json",), ["work: b, tactics (1 of 3 done)", "work (2 of 3 done)"]),
        (("--quiet",), []),
    ],
)
def test_long_work_off_a_terminal_says_where_it_is(
    words: tuple[str, ...],
    lines: list[str],
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Minutes of nothing look like a process that hangs."""
    now = 0.0
    monkeypatch.setattr("escnet_runtime.console._clock", lambda: now)

    def command(arguments: argparse.Namespace, console: Console) -> tuple[int, Mapping[str, Any]]:
        nonlocal now
        with console.progress("work", 3) as advance:
            for seconds, step, count in (
                *((29.0, "a", 1), (2.0, "b, tactics", 0.5), (28.0, "b, tactics", 0.0)),
                *((3.0, "", 0.5), (1.0, "c", 1)),
            ):
                now += seconds
                advance(step, count=count)
        return 0, {}

    assert run(command, *words) == 0
    assert capsys.readouterr().err.splitlines() == lines


@pytest.mark.parametrize(
    ("text", "shown"), [("naïve 猫", "naïve 猫"), ("a\x1b\n", "a\\x1b\\n"), ("\udcff", "\\udcff")]
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


# --- In a process of its own ---------------------------------------------------------------------

#: It sleeps in pieces: Python sees a signal that comes just before time.sleep after it.
PROGRAM = """
import sys, time
from pathlib import Path
from escnet_runtime.console import command_parser, run_command
def command(arguments, console):
    try:
        print("started", file=sys.stderr, flush=True)
        if arguments.wait:
            for _ in range(600):
                time.sleep(0.1)
        console.print("x" * 200_000)
        return 0, {"text": "x" * 200_000}
    finally:
        print("cleaned up", file=sys.stderr, flush=True)
parser = command_parser("escnet-test", "A command of this test.")
parser.add_argument("--wait", action="store_true")
sys.exit(run_command(parser, command))
"""


def test_what_a_terminal_obeys_is_not_printed(capsys: Captured) -> None:
    """A bundle's model or a class may be called anything."""
    evil = "tiny\x1b]0;title\x07\x1b[2J\x9b1A\u202e\r"

    def command(_: argparse.Namespace, console: Console) -> tuple[int, Mapping[str, Any]]:
        table = Table(evil, title=evil)
        table.add_row(Text(evil, "red"))
        console.print(table, Text(evil), evil, "two\nlines\tand a tab")
        return 0, {}

    assert run(command) == 0
    out = capsys.readouterr().out
    assert not set(out) & set("\x1b\x07\x9b\u202e\r")
    assert out.count("tiny�]0;title�[2J") == 5
    assert "two\nlines" in out


def test_names_that_the_encoding_lacks_are_escaped() -> None:
    program = PROGRAM.replace('"x" * 200_000', '"naïve 猫"')
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.stdout == b"na\\xefve \\u732b\n"


def start(*words: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, *words]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_clean_up_and_answer(number: signal.Signals, code: int) -> None:
    process = start("--wait", "--json")
    assert process.stderr is not None
    assert process.stderr.readline() == "started\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert "cleaned up" in err
    assert "Traceback" not in err
    assert json.loads(out)["error"]["message"]


_FREED = """
class Freed:
    def __del__(self):
        import signal
        signal.raise_signal({number})
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_something_is_freed_is_not_lost(number: signal.Signals, code: int) -> None:
    """Python reports what is raised there, and goes on."""
    program = _FREED.format(number=int(number)) + PROGRAM
    program = program.replace("try:", "try:\n        Freed()", 1)
    done = subprocess.run(
        [sys.executable, "-c", program, "--wait", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "cleaned up" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["error"]["message"]


def test_ctrl_c_in_generated_code_has_the_same_exit_code(tmp_path: Path) -> None:
    text = PROGRAM.replace("try:", 'try:\n        exec("import signal; signal.raise_signal(2)")', 1)
    assert text != PROGRAM
    (tmp_path / "interrupted.py").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "interrupted", "--json"],
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
    )
    assert done.returncode == 130, done.stderr
    assert json.loads(done.stdout)["error"]["type"] == "KeyboardInterrupt"


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_reader_who_leaves_is_no_error(words: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    process = start(*words, stdout=write)
    os.close(write)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 141
    assert err == "started\ncleaned up\n"
