"""Fits the cost model of ``escnet-build --plan`` to measured builds.

``python -m escnet_bench.cost_fit RESULT.json ...`` prints the model as JSON; ``cost.json`` of
``escnet_engines`` is one. Relative errors are minimised, so that small graphs count as much as
large ones.
"""

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from escnet_engines.cost import OTHER, CostModel, KindCost, graph_kind
from escnet_runtime.errors import InputError

__all__ = ["fit"]

_Array = npt.NDArray[np.float64]
_Rows = Sequence[Mapping[str, Any]]
#: Significant digits kept: the fit is no more exact than that.
_DIGITS: Final = 4


def fit(documents: Mapping[str, Mapping[str, Any]]) -> CostModel:
    """Fit the model to result files of ``escnet-bench builds``.

    Args:
        documents: result files by name, all of one library.

    Raises:
        InputError: there is no build, or they are of several libraries.
    """
    rows: _Rows = [row for document in documents.values() for row in document["rows"]]
    libraries = {row["library"] for row in rows}
    if len(libraries) != 1:
        raise InputError(f"expected builds of one library, got {sorted(libraries)}")
    by_kind: dict[str, _Rows] = {
        kind: [row for row in rows if graph_kind(row["graph"]) == kind]
        for kind in dict.fromkeys(graph_kind(row["graph"]) for row in rows)
    }
    seconds, seconds_per_byte = _shared_slope(by_kind, "seconds")
    host, host_per_byte = _shared_slope(by_kind, "host_bytes")
    scratch = {kind: _line(some) for kind, some in {**by_kind, OTHER: rows}.items()}
    code = {
        kind: float(np.median(_column(some, "engine_bytes") - _column(some, "onnx_bytes")))
        for kind, some in {**by_kind, OTHER: rows}.items()
    }
    model = CostModel(
        library=libraries.pop(),
        cpu=", ".join(dict.fromkeys(d["conditions"]["cpu"] for d in documents.values())),
        files=tuple(documents),
        builds=len(rows),
        worst={},
        seconds_per_byte=_rounded(seconds_per_byte),
        host_per_byte=_rounded(host_per_byte),
        process_bytes=_rounded(max(row["process_bytes"] for row in rows)),
        kinds={
            kind: KindCost(
                code=_rounded(max(code[kind], 0.0)),
                scratch=_rounded(scratch[kind][0]),
                scratch_per_live_byte=_rounded(scratch[kind][1]),
                seconds=_rounded(seconds[kind]),
                host=_rounded(host[kind]),
            )
            for kind in (*by_kind, OTHER)
        },
    )
    return dataclasses.replace(model, worst=_worst(model, rows))


def _shared_slope(by_kind: Mapping[str, _Rows], quantity: str) -> tuple[dict[str, float], float]:
    """Fit a constant for each kind and one slope by ONNX size for all, none below zero."""
    kinds = list(by_kind)
    design, values = [], []
    for index, kind in enumerate(kinds):
        for row in by_kind[kind]:
            design.append([*(float(other == index) for other in range(len(kinds)))])
            design[-1].append(float(row["onnx_bytes"]))
            values.append(float(row[quantity]))
    solution = _solve(np.array(design), np.array(values))
    constants = dict(zip(kinds, map(float, solution[:-1]), strict=True))
    constants[OTHER] = float(np.median(list(constants.values())))
    return constants, float(solution[-1])


def _line(rows: _Rows) -> tuple[float, float]:
    """Fit scratch as a constant and a slope by the bytes alive at once, neither below zero.

    The line minimises the largest factor, in either direction, between a build and the line, since
    a plan should hold in its worst case. At the optimum three builds are farthest from the line,
    two of them on one side: it is the line through those two, scaled until both sides are equally
    far.
    """
    known = [row for row in rows if row["scratch_bytes"]]  # 0 has no factor
    if not known:
        return 0.0, 0.0
    live, scratch = _column(known, "live_bytes"), _column(known, "scratch_bytes")
    best, found = np.inf, (0.0, 0.0)
    for constant, slope in _lines(live, scratch):
        ratios = (constant + slope * live) / scratch
        if ratios.min() <= 0:
            continue
        worst = ratios.max() / ratios.min()
        if worst < best:
            middle = np.sqrt(ratios.max() * ratios.min())
            best, found = worst, (float(constant / middle), float(slope / middle))
    return found


def _lines(x: _Array, y: _Array) -> Iterator[tuple[float, float]]:
    """Candidates (constant, slope): a level line, one through zero, each one through two points."""
    yield 1.0, 0.0
    yield 0.0, 1.0
    for first, second in itertools.combinations(range(len(x)), 2):
        if x[first] == x[second]:
            continue
        slope = float((y[second] - y[first]) / (x[second] - x[first]))
        constant = float(y[first] - slope * x[first])
        if slope >= 0 and constant >= 0:
            yield constant, slope


def _solve(design: _Array, values: _Array) -> _Array:
    """Least squares of relative errors, with coefficients that would be negative set to zero."""
    free = np.ones(design.shape[1], bool)
    while True:
        scale = np.abs(design[:, free]).max(axis=0)
        weighted = design[:, free] / scale / values[:, None]
        found = np.linalg.lstsq(weighted, np.ones_like(values), rcond=None)[0] / scale
        if (found >= 0).all():
            solution = np.zeros(design.shape[1])
            solution[free] = found
            return solution
        free[np.flatnonzero(free)[found < 0]] = False


def _worst(model: CostModel, rows: _Rows) -> dict[str, float]:
    found: dict[str, float] = {}
    for row in rows:
        cost = model.graph(row["graph"], onnx_bytes=row["onnx_bytes"], live_bytes=row["live_bytes"])
        for quantity, value in dataclasses.asdict(cost).items():
            if not row[quantity]:
                continue
            factor = max(value / row[quantity], row[quantity] / value)
            found[quantity] = max(found.get(quantity, 1.0), factor)
    return {quantity: round(factor, 2) for quantity, factor in found.items()}


def _column(rows: _Rows, quantity: str) -> _Array:
    return np.array([row[quantity] for row in rows], np.float64)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def main(words: Sequence[str]) -> None:
    """Print the model that fits the files."""
    parser = argparse.ArgumentParser(
        prog="python -m escnet_bench.cost_fit",
        description="Fit the cost model of escnet-build --plan to measured builds and print it as "
        "JSON.",
    )
    parser.add_argument(
        "files",
        type=Path,
        nargs="+",
        metavar="RESULT",
        help="result files of escnet-bench builds, all of one library",
    )
    files: Sequence[Path] = parser.parse_args(words).files
    try:
        model = fit({path.name: json.loads(path.read_text(encoding="utf-8")) for path in files})
    except (InputError, OSError, ValueError) as error:
        parser.error(str(error))
    print(json.dumps(dataclasses.asdict(model), indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
