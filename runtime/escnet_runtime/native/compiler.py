"""The C compiler of this machine, found without running it."""

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from typing import Final

from ..errors import EscNetError

__all__ = ["Compiler", "NotCompiledError", "find_compiler"]

_NAMES: Final = ("cc", "gcc", "clang")


class NotCompiledError(EscNetError):
    """Why there is no library. It does not leave this package: NumPy runs instead."""


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """A command, and what tells it from another version of itself."""

    command: tuple[str, ...]
    identity: str


def find_compiler() -> Compiler:
    """The first of $CC, cc, gcc and clang that is there; raises NotCompiledError."""
    if sys.platform == "win32":
        raise NotCompiledError("it is not compiled on Windows.")
    for words in (_wanted(), *([name] for name in _NAMES)):
        path = shutil.which(words[0]) if words else None
        if path is not None:
            about = os.stat(path)  # of what a link leads to
            parts = (os.path.realpath(path), *words[1:], about.st_size, about.st_mtime_ns)
            return Compiler(
                command=(os.path.abspath(path), *words[1:]), identity=" ".join(map(str, parts))
            )
    raise NotCompiledError(f"no C compiler is on the path ($CC, {', '.join(_NAMES)}).")


def _wanted() -> list[str]:
    """$CC, which may have arguments."""
    value = os.environ.get("CC", "")
    try:
        return shlex.split(value)
    except ValueError as error:
        raise NotCompiledError(f"CC is {value!r}, which is no command ({error}).") from error
