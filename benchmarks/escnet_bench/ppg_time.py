"""How long the Pseudo Prompt Generator takes on a CPU.

Maps are made from a seed, in three kinds, because the time depends on how many pixels are
foreground and on how long k-means runs:

* ``blobs``: smooth waves of random phase, the typical case;
* ``noise``: scattered foreground, k-means runs long;
* ``flat``: every pixel is foreground.

Wall-clock time of whole calls after a warm-up; nothing else should run on the machine. The rows
say how many threads torch may use; the runtime's generator, in C and in NumPy, uses one.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from escnet_runtime.errors import BackendError, InputError
from escnet_runtime.native import native_library, native_status
from escnet_runtime.native.prompts import fill_prompts
from escnet_runtime.ppg import PpgConstants, empty_prompts, pseudo_prompts
from escnet_runtime.ppg_numpy import numpy_prompts

from .percentiles import percentiles

__all__ = ["Implementation", "MapKind", "PpgRow", "measure_ppg", "runtime_implementations"]

Implementation = Literal["c", "numpy", "torch"]
MapKind = Literal["blobs", "noise", "flat"]

_Floats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PpgRow:
    """One measurement; times in milliseconds for all categories of one call together.

    ``foreground`` is the fraction of the pixels that are foreground.
    """

    implementation: Implementation
    maps: MapKind
    categories: int
    grid: tuple[int, int]
    foreground: float
    threads: int
    repeats: int
    p50_ms: float
    p95_ms: float
    p99_ms: float


def runtime_implementations() -> tuple[Implementation, ...]:
    """The runtime's implementations that are here; the one in C needs a compiler."""
    return ("c", "numpy") if native_status().active else ("numpy",)


def measure_ppg(
    categories: Sequence[int],
    grid: tuple[int, int],
    *,
    constants: PpgConstants | None = None,
    implementations: Sequence[Implementation] = ("numpy",),
    maps: Sequence[MapKind] = ("blobs", "noise", "flat"),
    warm_up: int = 3,
    repeats: int = 30,
    seed: int = 0,
) -> list[PpgRow]:
    """Time the generator for each number of categories on maps of ``grid`` = (h, w) pixels.

    Raises InputError for a count below 1 or a grid the generator refuses, BackendError if torch
    is asked for and not installed, or C where there is no compiler.
    """
    if warm_up < 0 or repeats < 1 or any(n < 1 for n in categories):
        raise InputError(
            f"got categories {list(categories)}, {warm_up} warm-up calls and {repeats} repeats; "
            "expected at least 1 category, 0 warm-up calls and 1 repeat"
        )
    constants = PpgConstants() if constants is None else constants
    rows = []
    for implementation in implementations:
        make_call, threads = _implementation(implementation, constants)
        for kind, n in itertools.product(maps, categories):
            scores = _scores(kind, n, grid, constants, seed)
            p50, p95, p99 = _percentiles(make_call(scores), warm_up, repeats)
            row = PpgRow(
                implementation=implementation,
                maps=kind,
                categories=n,
                grid=grid,
                foreground=float((pseudo_prompts(scores, constants).regions >= 0).mean()),
                threads=threads,
                repeats=repeats,
                p50_ms=p50,
                p95_ms=p95,
                p99_ms=p99,
            )
            rows.append(row)
    return rows


def _implementation(
    name: Implementation, constants: PpgConstants
) -> tuple[Callable[[_Floats], Callable[[], object]], int]:
    """A function that turns scores into the call to time, and the threads that the call may use."""
    if name == "numpy":
        return (
            lambda scores: (
                lambda: numpy_prompts(scores, constants, empty_prompts(scores, constants))
            ),
            1,
        )
    if name == "c":
        library = native_library()
        if library is None:
            raise BackendError(
                f"the generator in C is not here: {native_status().detail} Install a C compiler, "
                "or ask for numpy alone"
            )
        return (
            lambda scores: (
                lambda: fill_prompts(library, scores, constants, empty_prompts(scores, constants))
            ),
            1,
        )
    try:
        import torch

        from escnet import ppg as in_torch
    except ModuleNotFoundError as error:
        raise BackendError(
            f"timing the torch generator needs {error.name}, which is not installed: "
            "install escnet, or ask for numpy alone"
        ) from error

    def make_call(scores: _Floats) -> Callable[[], object]:
        tensor = torch.from_numpy(scores)
        return lambda: in_torch.pseudo_prompts(tensor, constants)

    return make_call, torch.get_num_threads()


def _scores(
    kind: MapKind, n: int, grid: tuple[int, int], constants: PpgConstants, seed: int
) -> _Floats:
    """Correlation maps float32 [n,h,w]; their range follows the temperature."""
    h, w = grid
    rng = np.random.default_rng(seed)
    if kind == "flat":
        values = np.zeros((n, h, w))
    elif kind == "noise":
        values = rng.normal(scale=0.5, size=(n, h, w))
    else:
        phase = rng.uniform(0, 2 * np.pi, (4, n, 1, 1))
        turns = rng.uniform(0.5, 2.5, (4, n, 1, 1))
        y, x = 2 * np.pi * np.arange(h)[:, None] / h, 2 * np.pi * np.arange(w) / w
        values = np.sin(turns[0] * y + phase[0]) * np.sin(turns[1] * x + phase[1])
        values += np.sin(turns[2] * y + turns[3] * x + phase[2])
    return np.asarray(values * constants.temperature, np.float32)


def _percentiles(
    call: Callable[[], object], warm_up: int, repeats: int
) -> tuple[float, float, float]:
    """Median, 95th and 99th percentile of a call's time in milliseconds."""
    for _ in range(warm_up):
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return percentiles(times)
