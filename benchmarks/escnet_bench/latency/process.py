"""A handle of a measuring process: starts it with an allocator, sends commands, ends it."""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final, Protocol

from escnet_runtime.closing import Closing
from escnet_runtime.errors import EscNetError
from escnet_runtime.lanes import thread_limit

from .plan import Allocator, Variant
from .runs import Order

__all__ = [
    "ALLOCATORS",
    "ProcessEnded",
    "Refused",
    "Served",
    "ServedProcess",
    "TooSlow",
    "inherited",
    "thread_variables",
]

_MODULE: Final = "escnet_bench.latency.served"
_TUNABLES: Final = "GLIBC_TUNABLES"
_THREADS: Final = (
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OMP_THREAD_LIMIT",
    "OPENBLAS_NUM_THREADS",
)
_SAID: Final = 2000  # most characters that are quoted from the output of a process that ended
#: Allocator → environment of the process. 4 GiB is above every single allocation. glibc before 2.35
#: accepts no threshold above 32 MiB, but it can be told to make no mappings at all.
ALLOCATORS: Final[dict[Allocator, dict[str, str]]] = {
    "default": {},
    "kept": {
        _TUNABLES: "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.mmap_max=0:"
        "glibc.malloc.trim_threshold=68719476736"
    },
}


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment that a measuring process inherits.

    Variables that replace or tune malloc are dropped, and those that set PyTorch's threads, which
    ONNX Runtime and OpenVINO ignore: to limit the cores of all alike, use ``taskset``.
    """
    return {
        name: value
        for name, value in environment.items()
        if name not in (_TUNABLES, *_THREADS) and not name.startswith("MALLOC_")
    }


def thread_variables() -> dict[str, str]:
    """Variables that give PyTorch as many threads as our runtime takes in a container with a CPU
    quota; empty without one."""
    limit = thread_limit()
    return {"OMP_NUM_THREADS": str(limit)} if limit else {}


class Refused(EscNetError):
    """An implementation failed, but its process goes on."""


class ProcessEnded(EscNetError):
    """The process ended while it was asked."""


class TooSlow(EscNetError):
    """The process did not answer in time, and was ended."""


class Served(Protocol):
    """The interface of a measuring process."""

    def ask(self, do: str, variant: Variant | None = None, **more: Any) -> dict[str, Any]:
        """Send a command and wait for the answer, at most ``seconds``.

        Raises:
            Refused, ProcessEnded, TooSlow: there is no answer.
        """

    def close(self) -> None:
        """End it."""


class ServedProcess(Closing):
    """A process that measures; use it as a context manager, or call :meth:`close`.

    Args:
        order: what it works on.
        allocator: how its memory is allocated.
    """

    def __init__(self, order: Order, allocator: Allocator) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        environment = {**inherited(os.environ), **ALLOCATORS[allocator], **thread_variables()}
        # A session of its own: Ctrl-C is for the command, which ends this process itself.
        self._process = subprocess.Popen(
            [sys.executable, "-m", _MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=environment,
            start_new_session=True,
        )
        self._buffer = b""
        self._send(asdict(order))

    def ask(
        self, do: str, variant: Variant | None = None, *, seconds: float = 60.0, **more: Any
    ) -> dict[str, Any]:
        """See :class:`Served`."""
        named = {} if variant is None else asdict(variant)
        self._send({"do": do, **named, **more})
        answer: dict[str, Any] = json.loads(self._line(seconds))
        if "error" in answer:
            raise Refused(answer["error"])
        return answer

    def close(self) -> None:
        """End it, at once."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._said):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:  # it never read the last command
                continue

    def _send(self, what: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(what).encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):  # it ended, or was ended here
            raise self._ended() from None

    def _line(self, seconds: float) -> bytes:
        """The next line of the answers, within ``seconds``."""
        assert self._process.stdout is not None
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(until - time.monotonic(), 0)):
                    self.close()
                    raise TooSlow(f"no answer within {seconds:.0f} s")
                read = os.read(self._process.stdout.fileno(), 65536)
                if not read:
                    raise self._ended()
                self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _ended(self) -> ProcessEnded:
        code = self._process.wait()
        if self._said.closed:
            return ProcessEnded("its process was ended before")
        self._said.seek(0)
        said = self._said.read().decode("utf-8", errors="replace").strip()[-_SAID:]
        memory = " (out of memory?)" if code == -signal.SIGKILL else ""
        how = f"signal {-code}{memory}" if code < 0 else f"code {code}"
        return ProcessEnded(f"its process ended with {how}: {said or 'it said nothing'}")
