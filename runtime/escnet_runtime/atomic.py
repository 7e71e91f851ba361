"""Files and folders that appear whole or not at all.

The content is written under a hidden temporary name next to the target, forced to disk, then
swapped in with one system call. A reader sees the old content or the new one, never a mixture.

Temporary names are ``.NAME.tmp-PID-RANDOM``; a long NAME is cut and followed by a hash of it. A
killed process leaves its temporary behind, and the next writer of the same target removes it, if no
process with that PID is alive. A live process may have got the number of a dead one; the leftover
then stays. The writer's own PID is the exception, because in a container every run has the same
one, often 1: what bears it and is not being written by this process is removed.

A folder of many files is not listed at each write: leftovers that appear after a process's first
write there may stay for some more writes.
"""

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .errors import InputError
from .locks import exclusive
from .replaceable import BUNDLE_MARKER, require_replaceable

__all__ = ["atomic_directory", "atomic_file"]

_AT_FDCWD = -100  # linux/fcntl.h: paths are relative to the working directory
_RENAME_EXCHANGE = 2  # linux/fs.h: swap the two names in one step
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM}
_TAKEN = {errno.ENOTEMPTY, errno.EEXIST}
#: Names of temporaries that this process, or one that it was forked from, is writing. Their random
#: part tells folders apart. Adding and discarding are single steps, for threads and forks.
_OWN: Final[set[str]] = set()
_MARK: Final = ".tmp-"
#: Bytes of a name together with its suffix, beside which the rest of a temporary name fits in the
#: 255 of a file name: a point, the mark, a process's number and the random part.
_WHOLE_NAME: Final = 225
_CUT_NAME: Final = 100  # bytes that are kept of a longer one
_LONGEST_SUFFIX: Final = 32  # bytes; a longer one is no format's
_ENTRIES_A_WRITE: Final = 1000  # of a folder: to list them takes less time than to force a file out


@dataclass(slots=True)
class _Listing:
    """The temporaries that were in a folder of many files, and for how many writes that will do."""

    names: list[str]
    writes: int


_LISTINGS: Final[dict[Path, _Listing]] = {}


@contextmanager
def atomic_directory(
    target: Path, *, kind: str = "bundle", marker: str = BUNDLE_MARKER, remains: str | None = None
) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes ``target`` when the block ends without error.

    An existing target is replaced in one step if it is empty, holds the file ``marker`` (and, if it
    is a bundle's, nothing that no bundle has), or lost it and holds nothing but ``remains``.
    Whatever the block raises, the temporary folder is removed and the target is left as it was. Of
    several processes that write the same target at once, the last to finish wins, whole.

    Args:
        target: the folder.
        kind: what is written, for messages.
        marker: the file by which a folder of this kind is known.
        remains: see :func:`require_replaceable`.

    Raises:
        InputError: the target is something else than that, or its place is not writable.
        OSError: the disk is full, or a similar failure while writing.
    """
    target = Path(os.path.realpath(target))
    require_replaceable(target, kind=kind, marker=marker, remains=remains)
    with _as_input_error(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
    temporary = _temporary_name(target)
    with _noted(temporary):
        with _as_input_error(target):
            temporary.mkdir()
        try:
            with exclusive(temporary):
                yield temporary
                _sync_tree(temporary)
                # Again: the block may have taken minutes.
                require_replaceable(target, kind=kind, marker=marker, remains=remains)
                _swap(temporary, target)
                _sync(target.parent)
        finally:
            # After a swap this name holds what was at the target before.
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write; it becomes ``path`` when the block ends without error.

    The temporary name ends with the suffix of ``path``, because writers of images and arrays choose
    the format by it (not with one of more than 32 bytes, which is no format's).

    Raises:
        InputError: ``path`` is a folder, a device or a pipe, or its place is not writable.
        OSError: the disk is full, or a similar failure while writing.
    """
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise InputError(f"Cannot write the file {path}: it is a folder.")
    if path.exists() and not path.is_file():
        # A rename would put a plain file in the place of /dev/null, for the whole machine.
        raise InputError(
            f"Cannot write the file {path}: it is a device or a pipe, which a whole file cannot "
            "replace. Name a file."
        )
    with _as_input_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
    temporary = _temporary_name(path, _suffix(path))
    with _noted(temporary):
        with _as_input_error(path):
            temporary.touch(exist_ok=False)
        try:
            # Seen from other containers, where this process is not there or seems to be theirs.
            with exclusive(temporary):
                yield temporary
                _sync(temporary)
                os.replace(temporary, path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _noted(temporary: Path) -> Iterator[None]:
    """Within, it is no leftover, whoever asks in this process."""
    _OWN.add(temporary.name)
    try:
        yield
    finally:
        _OWN.discard(temporary.name)


@contextmanager
def _as_input_error(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise InputError(
            f"Cannot write at {target}: {error.strerror or error} ({error.filename})."
        ) from error


def _temporary_name(target: Path, suffix: str = "") -> Path:
    random = secrets.token_hex(4)
    return target.with_name(f".{_shortened(target)}{_MARK}{os.getpid()}-{random}{suffix}")


def _suffix(path: Path) -> str:
    return path.suffix if len(os.fsencode(path.suffix)) <= _LONGEST_SUFFIX else ""


def _shortened(target: Path) -> str:
    """What temporary names have of a target's: all of it, or its beginning and a hash."""
    name = os.fsencode(target.name)
    if len(name) + len(os.fsencode(_suffix(target))) <= _WHOLE_NAME:
        return target.name
    digest = hashlib.sha256(name).hexdigest()[:16]
    return f"{name[:_CUT_NAME].decode(errors='ignore')}-{digest}"


def _remove_leftovers(target: Path) -> None:
    """Remove temporaries of this target whose process was killed."""
    if sys.platform == "win32":
        return  # there, os.kill(pid, 0) would end the process instead of asking for it
    names = _temporaries(target.parent)
    if not names:
        return
    pattern = re.compile(
        rf"\.{re.escape(_shortened(target))}{_MARK}(\d+)-[0-9a-f]+({re.escape(_suffix(target))})?"
    )
    for name in names:
        match = pattern.fullmatch(name)
        if match is not None and not _is_being_written(name, int(match[1])):
            _remove_unless_held(target.with_name(name))


def _temporaries(folder: Path) -> list[str]:
    """Names in a folder that may be temporaries, of any target.

    To list it at each write would take a time that grows with the square of the files, were all of
    them written by this process. So each write pays for some of its entries, and the folder is
    listed again once all are paid for.
    """
    known = _LISTINGS.get(folder)
    if known is not None and known.writes > 0:
        known.writes -= 1
        return known.names
    entries = os.listdir(folder)
    names = [name for name in entries if name.startswith(".") and _MARK in name]
    if len(entries) > _ENTRIES_A_WRITE:
        _LISTINGS[folder] = _Listing(names, len(entries) // _ENTRIES_A_WRITE)
    else:
        _LISTINGS.pop(folder, None)
    return names


def _is_being_written(name: str, pid: int) -> bool:
    """Whether a live process seems to be writing this temporary, as far as this process can see."""
    if name in _OWN:
        return True
    return pid != os.getpid() and _is_alive(pid)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _remove_unless_held(entry: Path) -> None:
    # A process of another container is invisible here, but its lock on a shared file system is not.
    if entry.is_symlink():
        entry.unlink(missing_ok=True)
        return
    with contextlib.suppress(OSError), exclusive(entry):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _sync_tree(folder: Path) -> None:
    for where, _, files in os.walk(folder):
        for name in files:
            _sync(Path(where, name))
        _sync(Path(where))


def _sync(path: Path) -> None:
    """Force a file or a folder to disk. A power cut then cannot leave an empty new file."""
    if path.is_dir() and sys.platform == "win32":
        return  # folders cannot be opened there
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap(temporary: Path, target: Path) -> None:
    """Put ``temporary`` at ``target``; what was there is at ``temporary`` afterwards."""
    while True:
        if not target.exists():
            try:
                os.rename(temporary, target)
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
                continue  # another writer was first
            return
        try:
            if not _exchange(temporary, target):
                _rename_aside(temporary, target)
        except FileNotFoundError:
            if not temporary.exists():
                raise
            continue  # another writer has just moved the target
        return


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step (Linux renameat2). False where that does not exist."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False  # a C library older than glibc 2.28, or musl
    paths = os.fsencode(first), os.fsencode(second)
    if renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(second))


def _rename_aside(temporary: Path, target: Path) -> None:
    """Replace without an exchange: the target is missing for a moment, and restored on failure."""
    aside = _temporary_name(target)
    with _noted(aside):
        os.rename(target, aside)
        try:
            os.rename(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):  # another writer has put its own there: keep that
                os.rename(aside, target)
            shutil.rmtree(aside, ignore_errors=True)
            raise
        shutil.rmtree(aside, ignore_errors=True)
