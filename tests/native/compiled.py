"""C text compiled for a test, with the flags that the runtime uses."""

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from escnet_runtime.native.target import FLAGS, SOURCES

__all__ = ["SOURCE", "compile_c", "function"]

SOURCE = {path.name: path.read_text(encoding="utf-8") for path in SOURCES}


def compile_c(
    texts: Sequence[str], folder: Path, *, compiler: str = "cc", flags: Sequence[str] = ()
) -> Path:
    """A shared library of C texts; fails the test with what the compiler says."""
    number = len(list(folder.glob("*.so")))
    paths = [folder / f"{number}-{index}.c" for index in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    output = folder / f"{number}.so"
    command = [
        compiler,
        *FLAGS,
        "-Wall",
        "-Wextra",
        "-Werror",
        *flags,
        *map(str, paths),
        "-o",
        str(output),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return output


def function(library: Path, name: str) -> Any:
    """A function without a result; give addresses as ctypes.c_void_p."""
    found = getattr(ctypes.CDLL(str(library)), name)
    found.restype = None
    return found
