"""Kernels on the CPU: the shipped source compiled by g++ through ``cuda_host.h``."""

import ctypes
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from escnet_runtime.kernels import Launch

__all__ = ["HostCompiler", "HostKernel", "KernelFaultError"]

_HERE = Path(__file__).parent
# No contraction: nvcc may fuse a product and a sum too, and no decision may depend on it.
_FLAGS = ["-std=c++17", "-O2", "-g0", "-fPIC", "-ffp-contract=off"]
# Stacks are switched by longjmp, which a hardened C library takes for an error.
_MACHINE_FLAGS = ["-U_FORTIFY_SOURCE"]
_ENTRY = """
#include "{source}"
extern "C" const char* host_launch(const unsigned* shape, unsigned seed, void** arguments) {{
  cuda_host::launch({kernel}, dim3{{shape[0], shape[1], shape[2]}},
                    dim3{{shape[3], shape[4], shape[5]}}, seed, arguments);
  return cuda_host::report();
}}
"""


class KernelFaultError(Exception):
    """A race on shared memory, or a barrier that not all threads reach."""


@dataclass(frozen=True, kw_only=True)
class HostKernel:
    """A kernel compiled for the CPU. Not safe for several threads at once."""

    library: ctypes.CDLL

    def launch(self, launch: Launch, *, seed: int = 0) -> None:
        """Run it; the seed says in which order threads run, 0 is the natural order.

        Raises KernelFaultError for what the machine found wrong.
        """
        shape = (ctypes.c_uint * 6)(*launch.grid, *launch.block)
        report = self.library.host_launch(shape, ctypes.c_uint(seed), launch.addresses())
        if report:
            raise KernelFaultError(report.decode())


class HostCompiler:
    """Compiles kernels into shared libraries of one folder."""

    def __init__(self, compiler: str, folder: Path) -> None:
        self._compiler, self._folder = compiler, folder
        self._machine = folder / "cuda_host.o"
        self._count = 0
        self._run([*_MACHINE_FLAGS, "-c", _HERE / "cuda_host.cpp", "-o", self._machine])

    def compile(self, kernel: str, source: str) -> HostKernel:
        """The kernel of that name in a CUDA source text."""
        self._count += 1
        stem = self._folder / f"{kernel}-{self._count}"
        cuda, entry, obj, library = (
            stem.with_suffix(suffix) for suffix in (".cu", ".cpp", ".o", ".so")
        )
        cuda.write_text(source, encoding="utf-8")
        entry.write_text(_ENTRY.format(source=cuda.name, kernel=kernel), encoding="utf-8")
        header: list[str | Path] = ["-include", _HERE / "cuda_host.h"]
        self._run(["-fsanitize=thread", *header, "-c", entry, "-o", obj])
        # Without the sanitizer's library: the machine has the functions it would call. Symbolic, or
        # a function of that name in another library of the process would run in place of a kernel.
        self._run(["-shared", "-Wl,-Bsymbolic", obj, self._machine, "-o", library])
        loaded = ctypes.CDLL(str(library))
        loaded.host_launch.restype = ctypes.c_char_p
        return HostKernel(library=loaded)

    def _run(self, arguments: list[str | Path]) -> None:
        command = [self._compiler, *_FLAGS, *map(str, arguments)]
        environment = {**os.environ, "LC_ALL": "C"}
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=300, env=environment
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
