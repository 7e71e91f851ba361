"""A lock that processes wait for or are refused by."""

import errno
import os
import sys
import threading
from pathlib import Path

import pytest

from escnet_runtime.locks import exclusive

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no such lock on Windows")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_second_holder_is_refused_until_the_first_lets_go(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "one"
    path.touch() if kind == "file" else path.mkdir()
    with exclusive(path) as held:
        assert held
        with pytest.raises(BlockingIOError), exclusive(path):
            pass
    with exclusive(path) as held:
        assert held
    assert [entry.name for entry in tmp_path.iterdir()] == ["one"]


def test_an_error_inside_lets_go(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclusive(tmp_path):
        raise ZeroDivisionError
    with exclusive(tmp_path) as held:
        assert held


def test_who_waits_is_told_once_and_gets_it(tmp_path: Path) -> None:
    told, got = threading.Event(), threading.Event()

    def second() -> None:
        with exclusive(tmp_path, waiting=told.set) as held:
            if held:
                got.set()

    with exclusive(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        assert told.wait(10)
        assert not got.is_set()
    thread.join(10)
    assert got.is_set()


def test_a_file_system_without_locks_is_said_and_another_error_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(code: int) -> None:
        def flock(descriptor: int, operation: int) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr("escnet_runtime.locks.fcntl.flock", flock)

    failing(errno.ENOLCK)
    with exclusive(tmp_path) as held:
        assert not held
    failing(errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), exclusive(tmp_path):
        pass
