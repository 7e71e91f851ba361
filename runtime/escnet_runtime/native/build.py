"""The library from its sources, by the C compiler of this machine; nothing here is imported before
one is missing in the cache."""

import contextlib
import logging
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ..errors import InputError
from .check import first_difference
from .compiler import Compiler, NotCompiledError
from .library import NativeLibrary
from .store import LibraryStore
from .target import FLAGS, SOURCES, targets

__all__ = ["build_library"]

_SECONDS: Final = 20.0  # for all tries; half a second is usual
#: How long one that did not end in time is not asked again: it may hang, which every start would
#: wait for, or the machine may have been busy.
_HANG_SECONDS: Final = 600.0
_TRIAL_BYTES: Final = 2**20  # more than a compiler needs for what it writes here
_log = logging.getLogger(__name__)


class _PassingError(NotCompiledError):
    """Trouble of the machine, which says nothing of the compiler: the next process tries again."""


class _HangError(NotCompiledError):
    """The compiler did not end in time."""


def build_library(store: LibraryStore, compiler: Compiler) -> tuple[NativeLibrary, str]:
    """Compile, compare with NumPy, keep and load: the library, and what was done.

    Raises NotCompiledError, with a note in the store if it was the compiler: for a day, or for ten
    minutes if it did not end.
    """
    started = time.perf_counter()
    try:
        code = _compiled(compiler.command)
        library = _checked(store, code)
    except _PassingError:
        raise
    except _HangError as reason:
        store.note_failure(compiler.identity, str(reason), seconds=_HANG_SECONDS)
        raise
    except NotCompiledError as reason:
        store.note_failure(compiler.identity, str(reason))
        raise
    except (InputError, OSError) as error:
        raise NotCompiledError(f"the compiled library cannot be kept ({error}).") from error
    seconds = time.perf_counter() - started
    _log.info("compiled prompts and up-sampling with %s in %.1f s", compiler.command[0], seconds)
    return library, f"compiled by {shlex.join(compiler.command)}, kept in {store.folder}."


def _compiled(command: Sequence[str]) -> bytes:
    """The library's content, for the widest target that this compiler knows."""
    until = time.monotonic() + _SECONDS
    code, said = 0, ""
    try:
        with tempfile.TemporaryDirectory(prefix="escnet-native-") as name:
            folder = Path(name)
            for target in targets():
                output = folder / "library.so"
                sources = [str(path) for path in SOURCES]
                arguments = [*command, *FLAGS, *target, *sources, "-o", str(output)]
                code, said = _run(arguments, folder, until - time.monotonic())
                if code == 0 and output.is_file():
                    return output.read_bytes()
            (folder / "trial").write_bytes(bytes(_TRIAL_BYTES))  # whether the disk is full
    except OSError as error:
        raise _PassingError(f"{command[0]} cannot be run ({error}).") from error
    failure = f"{command[0]} does not compile it: {said[-1000:].strip() or 'silent'}"
    # One that a signal has ended, as where memory is short, has not said what it cannot do.
    raise _PassingError(failure) if code < 0 else NotCompiledError(failure)


def _run(arguments: Sequence[str], folder: Path, seconds: float) -> tuple[int, str]:
    """Exit status and messages of a compiler that leaves nothing behind, its children included."""
    environment = {**os.environ, "LC_ALL": "C", "TMPDIR": str(folder)}
    messages = folder / "messages"
    with (
        open(messages, "wb") as output,
        subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder,
            env=environment,
            start_new_session=True,
        ) as process,
    ):
        try:
            code = process.wait(max(seconds, 0))
        except BaseException as stopped:  # also when interrupted: the group dies with us
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(stopped, subprocess.TimeoutExpired):
                raise _HangError(
                    f"{arguments[0]} does not end within {_SECONDS:.0f} seconds."
                ) from stopped
            raise
    return code, messages.read_text(encoding="utf-8", errors="replace")


def _checked(store: LibraryStore, code: bytes) -> NativeLibrary:
    """The library, loaded and kept, if it does what NumPy does."""
    with store.keeping(code) as path:
        try:
            library = NativeLibrary(path)
        except (OSError, AttributeError) as error:
            raise NotCompiledError(f"what was compiled cannot be loaded ({error}).") from error
        different = first_difference(library)
        if different is not None:
            raise NotCompiledError(f"what was compiled does not agree with NumPy: {different}.")
    return library
