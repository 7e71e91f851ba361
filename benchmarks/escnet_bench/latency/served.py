"""The measuring process: reads commands from standard input, answers on standard output.

Both are one JSON object a line. What libraries print goes to standard error.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from escnet_runtime.errors import DeviceError
from escnet_runtime.memory import peak_memory

from ..device_memory import watched_memory
from .plan import Variant
from .runs import Order, Run, Workbench

__all__ = ["Server", "main", "reset_peak", "serve"]

_RESET: Final = Path("/proc/self/clear_refs")
_PEAK: Final = "5"  # proc(5): resets the peak of resident memory
_STATM: Final = Path("/proc/self/statm")
_BLOCK: Final = 2**26  # bytes: allocated twice, to see whether freed memory is kept
_PAGE: Final = 4096
_LARGE_PAGE: Final = 2**21  # NumPy asks for them

_Labels = npt.NDArray[np.uint8 | np.uint16]


@dataclass(slots=True)
class Server:
    """Carries out commands with the implementations of one :class:`Order`."""

    order: Order
    bench: Workbench = field(init=False)
    _runs: dict[Variant, Run] = field(default_factory=dict)
    _labels: dict[int, _Labels] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bench = Workbench(self.order)
        self._image = np.load(self.order.image, allow_pickle=False)

    _image: npt.NDArray[np.uint8] = field(init=False)

    def answer(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out one command."""
        match command["do"]:
            case "open":
                return self._open(_variant(command), command["categories"])
            case "call":
                return self._call(_variant(command), command["categories"], command["stages"])
            case "loop":
                return self._loop(_variant(command), command["categories"], command["calls"])
            case "info":
                threads: dict[str, int] = {}
                for run in self._runs.values():
                    threads |= run.threads()
                return {"threads": threads, "kept": keeps_freed_memory()}
            case "trim":
                return {"trimmed": trim()}
            case _:
                raise ValueError(f"unknown command {command['do']!r}")

    def _open(self, variant: Variant, categories: int) -> dict[str, Any]:
        """Make the first call at this number of categories, which loads and compiles."""
        vocabulary = self.bench.vocabulary(categories)
        reset_peak()
        start = time.perf_counter()
        if variant not in self._runs:
            self._runs[variant] = self.bench.open(variant)
        loaded = peak_memory()
        # Measured apart: a call's memory grows with the categories, loaded weights do not.
        before = _resident() if reset_peak() else None
        run = self._runs[variant]
        labels = run(self._image, vocabulary)
        took = time.perf_counter() - start
        called = peak_memory()
        grown = None if before is None or called is None else max(called - before, 0)
        peak = None if loaded is None or called is None else max(loaded, called)
        if variant.ours and categories not in self._labels:
            self._labels[categories] = labels.copy()
        ours = None if variant.peer else self._labels.get(categories)
        return {
            "ms": 1e3 * took,
            "chunk": run.chunk,
            "agreement": None if ours is None else float((labels == ours).mean()),
            "grown_bytes": grown,
            "peak_memory_bytes": peak,
        }

    def _call(self, variant: Variant, categories: int, stages: bool) -> dict[str, Any]:
        run, vocabulary = self._runs[variant], self.bench.vocabulary(categories)
        start = time.perf_counter()
        run(self._image, vocabulary)
        took = time.perf_counter() - start
        return {"ms": 1e3 * took, "stages": run.stages() if stages else None}

    def _loop(self, variant: Variant, categories: int, calls: int) -> dict[str, Any]:
        run, vocabulary = self._runs[variant], self.bench.vocabulary(categories)
        for _ in range(calls):
            run(self._image, vocabulary)
        return {}


def serve(lines: IO[str], answers: IO[str]) -> None:
    """Read an order, then commands, until the lines end."""
    order = Order(**json.loads(next(lines)))
    with _gpu_memory(order) as device_bytes:
        server: Server | None = None
        for line in lines:
            try:
                server = server or Server(order)
                answer = server.answer(json.loads(line))
                answer["device_memory_bytes"] = device_bytes()
            except Exception as error:  # of any library; the other implementations go on
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=answers, flush=True)


@contextlib.contextmanager
def _gpu_memory(order: Order) -> Iterator[Callable[[], int | None]]:
    with contextlib.ExitStack() as stack:
        used: Callable[[], int | None] = lambda: None  # noqa: E731
        if order.gpu:
            # Without escnet-runtime[cuda] device memory is not measured, but torch still runs.
            with contextlib.suppress(DeviceError):
                used = stack.enter_context(watched_memory())
        yield used


def reset_peak() -> bool:
    """Reset the peak of resident memory; False if the system cannot."""
    try:
        _RESET.write_text(_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def keeps_freed_memory() -> bool:
    """Whether malloc keeps a large block after it was freed, for the next allocation."""
    for _ in range(2):
        before = _page_faults()
        block = np.empty(_BLOCK, np.uint8)
        block[::_PAGE] = 1
        faults = _page_faults() - before
        del block
    return faults < _BLOCK // _LARGE_PAGE // 2


def trim() -> bool:
    """Give freed memory back to the system, if malloc can."""
    import ctypes

    library = ctypes.CDLL(None)
    return hasattr(library, "malloc_trim") and bool(library.malloc_trim(0))


def _page_faults() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _resident() -> int | None:
    if not _STATM.exists():
        return None
    return int(_STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _variant(command: Mapping[str, Any]) -> Variant:
    return Variant(implementation=command["implementation"], precision=command["precision"])


def main() -> None:
    """Serve, with standard output kept for the answers."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
