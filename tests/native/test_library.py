"""The library is compiled once on a machine, and whatever goes wrong, NumPy runs."""

import errno
import hashlib
import itertools
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import escnet_runtime.native
from escnet_runtime.native import build, native_library, native_status, target
from escnet_runtime.native import library as loading
from escnet_runtime.ppg import PpgConstants, pseudo_prompts

Script = Callable[[str], Path]

REPORT = (
    "import logging, sys; logging.basicConfig(level=logging.INFO, stream=sys.stdout);"
    "from escnet_runtime.native import native_status as s; print(s());"
    "print('build' if 'escnet_runtime.native.build' in sys.modules else 'light')"
)


@pytest.fixture(autouse=True)
def fresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """A process that has loaded nothing, with a cache and a folder for temporary files."""
    monkeypatch.setenv("ESCNET_CACHE", str(tmp_path / "cache"))
    for name in ("ESCNET_NATIVE", "CC"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    caplog.set_level(logging.INFO)
    loading._load_once.cache_clear()
    yield
    loading._load_once.cache_clear()
    assert not list((tmp_path / "temporary").iterdir()), "the compiler left something behind"
    assert not [one for one in caplog.records if one.levelno > logging.INFO]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Makes $CC a shell script, which counts its calls in the file ``calls``."""

    def make(body: str) -> Path:
        path = tmp_path / "compiler"
        path.write_text(f"#!/bin/sh\necho >> {tmp_path}/calls\n{body}\n", encoding="utf-8")
        path.chmod(0o755)
        monkeypatch.setenv("CC", str(path))
        return path

    return make


def calls(tmp_path: Path) -> int:
    file = tmp_path / "calls"
    return len(file.read_text(encoding="utf-8")) if file.exists() else 0


def kept(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "cache" / "native-v1"
    return sorted(folder.iterdir()) if folder.exists() else []


def again() -> bool:
    """Whether the C forms run in a process that starts now."""
    loading._load_once.cache_clear()
    return native_status().active


def assert_numpy_runs(reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """One line says why, and prompts come all the same."""
    for _ in range(3):
        assert native_library() is None
    assert reason in native_status().detail
    lines = [one for one in caplog.messages if one.startswith("Prompts and labels are computed by")]
    assert len(lines) == 1
    assert reason in lines[0]
    prompts = pseudo_prompts(np.zeros((1, 2, 2), np.float32), PpgConstants())
    assert (prompts.regions >= 0).all()


# --- compiled once -------------------------------------------------------------------------------


def test_the_second_process_finds_the_library(compiler: str, tmp_path: Path) -> None:
    """And does not even import what compiles it, nor look for a compiler."""
    outputs = []
    for path in (os.environ["PATH"], ""):
        command = [sys.executable, "-c", REPORT]
        environment = {**os.environ, "PATH": path}
        outputs.append(subprocess.check_output(command, text=True, env=environment).splitlines())
    assert "compiled by" in outputs[0][-2]
    assert outputs[0][-1] == "build"
    assert "compiled before" in outputs[1][-2]
    assert outputs[1][-1] == "light"
    (file,) = kept(tmp_path)
    assert file.suffix == ".so"


def test_importing_the_runtime_compiles_nothing(tmp_path: Path) -> None:
    program = "import sys, escnet_runtime; print('escnet_runtime.native.build' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "False\n"
    assert not kept(tmp_path)


def test_processes_that_start_together_share_one_cache(compiler: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", REPORT]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert all("active=True" in output for output in outputs), outputs
    assert all(file.suffix == ".so" for file in kept(tmp_path))
    assert again()


def test_one_that_does_not_load_here_hides_no_other(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as that of a newer C library, from a machine that shares the folder."""
    assert native_status().active
    (good,) = kept(tmp_path)
    key, digest = good.stem.split("-")
    contents = (f"of another machine {number}".encode() for number in itertools.count())
    other = next(one for one in contents if hashlib.sha256(one).hexdigest() < digest)
    good.with_name(f"{key}-{hashlib.sha256(other).hexdigest()}.so").write_bytes(other)
    monkeypatch.setenv("PATH", "")  # nothing can be compiled
    assert again()
    assert str(good) in native_status().detail


def test_threads_that_start_together_compile_once(
    compiler: str, tmp_path: Path, script: Script
) -> None:
    script(f'exec {compiler} "$@"')
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(native_library())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
    assert found[0] is not None
    assert calls(tmp_path) == 1


@pytest.mark.parametrize("change", ["source", "flags", "targets", "CC"])
def test_what_changes_the_code_changes_the_key(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = target.library_key()
    assert target.library_key() == before
    if change == "source":
        other = tmp_path / "other.c"
        other.write_text("int x;", encoding="utf-8")
        monkeypatch.setattr(target, "SOURCES", (*target.SOURCES, other))
    elif change == "flags":
        monkeypatch.setattr(target, "FLAGS", (*target.FLAGS, "-g"))
    elif change == "targets":
        monkeypatch.setattr(target, "processor_features", lambda: frozenset(["none"]))
        monkeypatch.setattr(target, "_machine", lambda: "arm64")
    else:
        monkeypatch.setenv("CC", "another")
    assert target.library_key() != before


def test_targets_follow_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it does not have is not compiled for: a cache may lie on a shared folder."""
    monkeypatch.setattr(target, "_machine", lambda: "x86_64")
    for features, count in ((target._V4, 4), (target._V3, 3), (target._V4 - {"fma"}, 1)):
        monkeypatch.setattr(target, "processor_features", lambda chosen=features: chosen)
        assert len(target.targets()) == count
        assert target.targets()[-1] == ()
    monkeypatch.setattr(target, "_machine", lambda: "aarch64")
    assert target.targets() == ((),)


# --- what is kept --------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["empty", "short", "flipped", "longer", "folder"])
def test_a_damaged_file_is_replaced(
    damage: str, compiler: str, tmp_path: Path, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    script(f'exec {compiler} "$@"')
    assert native_status().active
    (path,) = kept(tmp_path)
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    path.unlink()  # the loaded one stays as it is
    if damage == "folder":
        path.mkdir()
    else:
        damaged = {"empty": b"", "short": content[:middle], "flipped": flipped}
        path.write_bytes(damaged.get(damage, content + b"\0"))
    assert again() == (damage != "folder")
    assert calls(tmp_path) == 2
    if damage != "folder":
        assert "is damaged; it is compiled anew" in caplog.text
        assert path.read_bytes() == content
        assert again()
        assert calls(tmp_path) == 2


def test_what_another_user_can_write_is_not_loaded(
    compiler: str, tmp_path: Path, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    script(f'exec {compiler} "$@"')
    assert native_status().active
    (path,) = kept(tmp_path)
    path.chmod(0o666)
    assert again()
    assert "another user can write it" in caplog.text
    assert calls(tmp_path) == 2
    assert not path.stat().st_mode & 0o002  # replaced by one's own


def test_nothing_is_loaded_where_another_user_can_put_a_file(
    compiler: str, tmp_path: Path, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    """It could take the place of one between the look at it and its loading."""
    script(f'exec {compiler} "$@"')
    assert native_status().active
    (path,) = kept(tmp_path)
    path.parent.chmod(0o777)
    assert not again()
    assert "Set ESCNET_CACHE to a writable folder of your own" in native_status().detail
    assert calls(tmp_path) == 1  # nothing is compiled either
    path.parent.chmod(0o1777)  # sticky: others add files, and leave these alone
    assert again()
    assert calls(tmp_path) == 1


def test_a_cache_that_cannot_be_written(
    compiler: str, tmp_path: Path, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is compiled that every start would have to compile again."""
    script(f'exec {compiler} "$@"')
    (tmp_path / "cache").write_text("in the way", encoding="utf-8")
    assert_numpy_runs("Set ESCNET_CACHE to a writable folder", caplog)
    assert calls(tmp_path) == 0


def test_a_disk_that_fills_up(
    compiler: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("escnet_runtime.atomic._sync", full)
    assert_numpy_runs("No space left on device", caplog)
    monkeypatch.undo()


# --- compilers -----------------------------------------------------------------------------------


def test_without_a_compiler_a_start_imports_nothing_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {**os.environ, "PATH": str(tmp_path)}
    output = subprocess.check_output([sys.executable, "-c", REPORT], text=True, env=environment)
    assert "no C compiler" in output
    assert output.endswith("light\n")


def test_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_numpy_runs("no C compiler is on the path", caplog)


def test_a_word_that_is_no_command(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", "'cc")
    assert_numpy_runs("which is no command", caplog)


def test_a_compiler_that_fails_is_not_asked_again_for_a_day(
    tmp_path: Path, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    path = script("echo the licence has run out >&2; exit 1")
    assert_numpy_runs("does not compile it: the licence has run out", caplog)
    tries = len(target.targets())
    assert calls(tmp_path) == tries
    assert not again()
    assert "not tried again" in native_status().detail
    assert calls(tmp_path) == tries
    (note,) = kept(tmp_path)
    os.utime(note, (0, 0))
    assert not again()
    assert calls(tmp_path) == 2 * tries
    path.write_text(path.read_text(encoding="utf-8") + "# a newer one\n", encoding="utf-8")
    assert not again()
    assert calls(tmp_path) == 3 * tries


@pytest.mark.parametrize("trouble", ["no space", "no folder", "disk full just then", "killed"])
def test_passing_trouble_of_the_machine_is_not_noted(
    trouble: str,
    compiler: str,
    tmp_path: Path,
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The next process tries again."""

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    script(f'exec {compiler} "$@"')
    reason = "No space left on device"
    with monkeypatch.context() as patched:
        match trouble:
            case "no space":
                patched.setattr(build, "_run", no_space)
            case "no folder":
                patched.setattr(tempfile, "tempdir", str(tmp_path / "none"))
                reason = "No such file"
            case "disk full just then":
                patched.setattr(build, "_run", lambda *_: (1, "cannot write"))
                patched.setattr(Path, "write_bytes", no_space)
            case "killed":
                patched.setattr(build, "_run", lambda *_: (-9, "Killed"))
                reason = "does not compile it: Killed"
        assert_numpy_runs(reason, caplog)
    assert not kept(tmp_path)
    assert again()


def test_an_old_compiler_gets_what_it_knows(compiler: str, tmp_path: Path, script: Script) -> None:
    """For a processor that it does not know: what all of its kind run."""
    script(f'case "$*" in *-march=*|*-mavx2*) exit 1;; esac; exec {compiler} "$@"')
    assert native_status().active
    assert calls(tmp_path) == len(target.targets())


@pytest.mark.parametrize("body", ["exit 0", 'for last; do :; done; echo rubbish > "$last"'])
def test_a_compiler_that_makes_no_library(
    body: str, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    script(body)
    reason = "cannot be loaded" if "rubbish" in body else "silent"
    assert_numpy_runs(reason, caplog)


def test_a_compiler_by_a_relative_path(
    compiler: str, tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a word of its own."""
    script(f'test "$1" = -pipe && exec {compiler} "$@"')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CC", "./compiler -pipe")
    assert native_status().active


def test_a_file_that_cannot_be_run(
    tmp_path: Path, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    script("").write_bytes(b"\x7fELF nothing")
    assert_numpy_runs("cannot be run", caplog)


def test_a_compiler_that_hangs_is_ended_with_its_children(
    tmp_path: Path,
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(build, "_SECONDS", 3.0)
    script(f'touch "$TMPDIR/half"; sleep 1000 & echo $! > {tmp_path}/child; wait')
    assert_numpy_runs("does not end within", caplog)
    assert_gone(int((tmp_path / "child").read_text(encoding="utf-8")))
    (note,) = kept(tmp_path)
    assert note.suffix == ".failed"
    assert not again()
    assert "not tried again" in native_status().detail
    assert calls(tmp_path) == 1
    # It holds for ten minutes: the machine may have been busy.
    date = note.stat().st_mtime - 600
    os.utime(note, (date, date))
    monkeypatch.setattr(build, "_run", lambda *_: (1, "asked again"))
    assert not again()
    assert "asked again" in native_status().detail


def test_an_interrupted_process_leaves_nothing(tmp_path: Path, script: Script) -> None:
    script(f'touch "$TMPDIR/half"; sleep 1000 & echo $! > {tmp_path}/child; kill -INT $PPID; wait')
    done = subprocess.run(
        [sys.executable, "-c", REPORT], capture_output=True, text=True, timeout=60, check=False
    )
    assert "KeyboardInterrupt" in done.stderr
    assert_gone(int((tmp_path / "child").read_text(encoding="utf-8")))
    assert not kept(tmp_path)


def assert_gone(process: int) -> None:
    """Ended: not there, or not yet collected by who adopted it."""
    status = Path(f"/proc/{process}/stat")
    for _ in range(1000):
        if not status.exists() or status.read_text(encoding="utf-8").split(") ")[1][0] in "ZX":
            return
        threading.Event().wait(0.01)
    pytest.fail("the compiler's child still runs")


# --- switched off --------------------------------------------------------------------------------


def test_sources_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a program that was frozen without them."""
    monkeypatch.setattr(target, "SOURCES", (tmp_path / "prompts.c",))
    assert_numpy_runs("No such file or directory", caplog)


@pytest.mark.parametrize("value", ["0", "off", "False", " no "])
def test_the_environment_turns_it_off(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESCNET_NATIVE", value)
    assert native_library() is None
    assert "ESCNET_NATIVE turns it off" in native_status().detail
    assert not kept(tmp_path)


def test_public_names() -> None:
    assert escnet_runtime.native.__all__ == [
        "NativeLibrary",
        "NativeStatus",
        "native_library",
        "native_status",
    ]
