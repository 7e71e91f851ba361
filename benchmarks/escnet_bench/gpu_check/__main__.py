"""``python -m escnet_bench.gpu_check``: run the parts, each in a process of its own.

It needs no installed package of ours: a checkout on PYTHONPATH is enough.
"""

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .plan import PARTS, CheckPlan, Report

__all__ = ["main"]

_DEFAULT = CheckPlan(output="benchmarks/results/gpu", bundles="out/gpu-check")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 1 if a part failed or found an error."""
    if argv is None and len(sys.argv) == 3 and sys.argv[1] in PARTS:  # a part's own process
        return _run_part(sys.argv[1], CheckPlan.from_json(sys.argv[2]))
    arguments = _parser().parse_args(argv)
    plan = _plan(arguments)
    failed = False
    for part in arguments.parts:
        print(f"{part}:", flush=True)
        start = time.monotonic()
        said = _in_a_process(part, plan, arguments.limit)
        print(f"  {said}, {time.monotonic() - start:.0f} s", flush=True)
        failed |= said != "done"
    print(f"The results are in {plan.output}", flush=True)
    return int(failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "gpu-check",
        description="Check everything that needs a GPU. Each part writes gpu-check-PART.json.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        metavar="PART",
        help=_listed(PARTS),
    )
    add("--output", default=_DEFAULT.output, metavar="DIR", help="folder of the result files")
    add(
        "--bundles",
        default=_DEFAULT.bundles,
        metavar="DIR",
        help="folder of the bundles, MODEL-PRECISION; missing ones are exported",
    )
    add(
        "--models",
        nargs="+",
        default=list(_DEFAULT.models),
        metavar="PRESET",
        help=f"presets (default: {' '.join(_DEFAULT.models)})",
    )
    add(
        "--precisions",
        nargs="+",
        default=list(_DEFAULT.precisions),
        metavar="NAME",
        help=f"precisions of the bundles (default: {' '.join(_DEFAULT.precisions)})",
    )
    add(
        "--categories",
        type=int,
        nargs="+",
        default=list(_DEFAULT.categories),
        metavar="N",
        help=f"numbers of categories (default: {' '.join(map(str, _DEFAULT.categories))})",
    )
    add(
        "--backend",
        default=_DEFAULT.backend,
        help=f"backend of the runtime, on the GPU (default: {_DEFAULT.backend})",
    )
    add(
        "--size",
        type=int,
        nargs=2,
        default=list(_DEFAULT.size),
        metavar=("H", "W"),
        help=f"height and width of the images, px (default: {' '.join(map(str, _DEFAULT.size))})",
    )
    add("--images", type=int, default=_DEFAULT.images, metavar="N", help="images of the soak")
    add("--repeats", type=int, default=_DEFAULT.repeats, metavar="N", help="rounds of timing")
    add(
        "--chunks",
        type=int,
        nargs="+",
        default=list(_DEFAULT.chunks),
        metavar="N",
        help="categories at a time that the part 'latency' compares (default: the runtime's own)",
    )
    add(
        "--ort-graphs",
        action="store_true",
        help="in the part 'latency', also time ONNX Runtime's own CUDA graphs",
    )
    add("--limit", type=float, metavar="S", help="most seconds of a part; rows so far are kept")
    add("--no-compile", action="store_true", help="leave out torch.compile, which takes minutes")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: only to try the script")
    return parser


def _listed(parts: Sequence[str]) -> str:
    return f"which of {', '.join(parts)} (default: all)"


def _plan(arguments: argparse.Namespace) -> CheckPlan:
    numbers = [*arguments.categories, *arguments.size, *arguments.chunks]
    numbers += [arguments.images, arguments.repeats]
    if min(numbers) < 1:
        sys.exit(f"gpu-check: got {min(numbers)}, expected numbers of at least 1")
    return CheckPlan(
        output=arguments.output,
        bundles=arguments.bundles,
        models=tuple(arguments.models),
        precisions=tuple(arguments.precisions),
        categories=tuple(arguments.categories),
        backend=arguments.backend,
        size=(arguments.size[0], arguments.size[1]),
        images=arguments.images,
        repeats=arguments.repeats,
        chunks=tuple(sorted(set(arguments.chunks))),
        ort_graphs=arguments.ort_graphs,
        compile=not arguments.no_compile,
        device=arguments.device,
    )


def _in_a_process(part: str, plan: CheckPlan, limit: float | None) -> str:
    """Run a part; returns in a few words how it ended, which its file says too."""
    command = [sys.executable, "-m", __package__ or "", part, plan.to_json()]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return _noted(part, plan, f"stopped after its {limit:.0f} s")
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if code < 0:
        return _noted(part, plan, f"ended by signal {-code}")
    return "done" if code == 0 else "failed"


def _noted(part: str, plan: CheckPlan, what: str) -> str:
    """Record in the part's file how it ended."""
    path = Path(plan.output, f"gpu-check-{part}.json")
    if path.exists():
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        document["errors"].append(what)
        text = json.dumps(document, indent=2, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
    return what


def _run_part(part: str, plan: CheckPlan) -> int:
    logging.basicConfig(format="  %(levelname)s %(name)s: %(message)s")
    logging.getLogger("escnet_runtime").setLevel(logging.INFO)
    report = Report.begin(part, plan)
    from .parts import RUN

    with report.attempt(part):
        RUN[part](plan, report)
    report.save(finished=True)
    for error in report.errors:
        print(f"  ERROR {error}", flush=True)
    return int(bool(report.errors))


if __name__ == "__main__":
    sys.exit(main())
