"""A lock that processes wait for or are refused by."""

import errno
import fcntl
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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


@contextmanager
def forked(body: Callable[[], None]) -> Iterator[None]:
    """A copy of this process, which is there and has run ``body`` within."""
    (told, tell), (wait, end) = os.pipe(), os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of locks that other threads may hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        code = 1
        try:
            os.close(end)
            body()
            os.write(tell, b".")
            os.read(wait, 1)  # until the other end is closed
            code = 0
        finally:
            os._exit(code)
    os.close(tell)
    os.close(wait)
    try:
        assert os.read(told, 1) == b"."
        yield
    finally:
        os.close(told)
        os.close(end)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_forked_child_does_not_hold_it(tmp_path: Path) -> None:
    """Else the helpers of a killed process would keep its folder locked."""
    with ExitStack() as lock, forked_within(lock, tmp_path):
        with pytest.raises(BlockingIOError), exclusive(tmp_path):
            pass  # the child has let go of nothing but its copy
        lock.close()
        with exclusive(tmp_path) as held:
            assert held


@contextmanager
def forked_within(lock: ExitStack, path: Path) -> Iterator[None]:
    """A child that is forked while ``lock`` holds the lock of ``path``."""
    lock.enter_context(exclusive(path))
    with forked(lambda: None):
        yield


def test_a_forked_child_that_leaves_the_block_closes_no_file_of_its_own(tmp_path: Path) -> None:
    with ExitStack() as lock:
        lock.enter_context(exclusive(tmp_path))

        def leave() -> None:
            # The first free descriptor: the number of the copy that is closed.
            with (tmp_path / "file").open("wb") as file:
                lock.close()
                file.write(b"all there")

        with forked(leave):
            assert (tmp_path / "file").read_bytes() == b"all there"


def test_a_forked_child_can_take_locks(tmp_path: Path) -> None:
    def take() -> None:
        with exclusive(tmp_path) as held:
            assert held

    with forked(take), exclusive(tmp_path) as held:
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


def test_a_file_is_locked_on_nfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which locks no file that is open for reading alone (flock(2), "NFS details")."""
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(descriptor, operation)

    monkeypatch.setattr("escnet_runtime.locks.fcntl.flock", flock)
    (tmp_path / "file").touch()
    with exclusive(tmp_path / "file") as held:
        assert held
        with pytest.raises(BlockingIOError), exclusive(tmp_path / "file"):
            pass


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
