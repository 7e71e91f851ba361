"""What compiling a bundle's graphs takes: size, scratch, processor time and memory of each build.

Every build runs in a process of its own, because peak memory is counted from a process's start. The
first block stands for all, which differ only in their weights. ``escnet_bench.cost_fit`` fits the
cost model of ``escnet-build --plan`` to these rows.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from escnet_engines import BuildError, open_library
from escnet_engines.cost import graph_kind
from escnet_engines.library import Job
from escnet_engines.monitor import BuildState
from escnet_engines.profiles import chunk_buckets, stage_profiles
from escnet_engines.targets import choose_targets
from escnet_runtime.bundle import Bundle
from escnet_runtime.engine_record import AxisRange, Compiler
from escnet_runtime.errors import EscNetError
from escnet_runtime.manifest import TensorSpec
from escnet_runtime.memory import peak_memory

__all__ = ["METHOD", "BuildRow", "measure_builds", "run_child"]

METHOD: Final = (
    "each graph compiled in a process of its own; seconds are processor time, so that what else "
    "the machine does counts little; host memory is the peak of resident memory above that of the "
    "process with the compiler loaded; of the blocks the first; a graph that is free of the chunk "
    "once"
)
_CHILD: Final = "from escnet_bench.builds import run_child; run_child()"


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildRow:
    """One build.

    Attributes:
        model, precision: of the bundle.
        library: the compiler and its version.
        graph: its name.
        chunk: categories at a time.
        targets: GPUs compiled for.
        onnx_bytes: size of the graph.
        live_bytes: most bytes of results alive at once if its layers run one by one.
        engine_bytes: size of the engine.
        scratch_bytes: memory that its activations need; None if the compiler did not say.
        seconds: processor time.
        host_bytes: peak memory of compiling, without that of the process before it.
    """

    model: str
    precision: str
    library: str
    graph: str
    chunk: int
    targets: tuple[str, ...]
    onnx_bytes: int
    live_bytes: int
    engine_bytes: int
    scratch_bytes: int | None
    seconds: float
    host_bytes: int
    process_bytes: int


def measure_builds(
    bundle: Bundle,
    chunks: Sequence[int],
    *,
    backend: Compiler,
    target: str,
    step: Callable[[str], object] = lambda _: None,
) -> list[BuildRow]:
    """Compile every kind of graph of ``bundle`` for each of ``chunks``.

    Args:
        bundle: opened.
        chunks: categories at a time, each a build of its own.
        backend: the compiler.
        target: as ``escnet-build`` takes it.
        step: called when a build has ended.

    Raises:
        InputError: a chunk or a target cannot be used.
        BackendError: the compiler is not installed.
        EscNetError: a build failed.
    """
    library = open_library(backend)
    targets = choose_targets(library, target, ())
    manifest = bundle.manifest
    rows = []
    known: set[str] = set()
    for chunk in chunk_buckets(manifest, chunks):
        for name, stage in manifest.stages.items():
            profiles = stage_profiles(name, stage, manifest, [chunk])
            case = f"{graph_kind(name)} {profiles}"
            if case in known:
                continue
            known.add(case)
            job = Job(
                onnx=bundle.file(stage.file),
                inputs=stage.inputs,
                profiles=profiles,
                targets=targets,
            )
            try:
                live = max(library.survey(job))
            except BuildError as error:
                raise EscNetError(f"compiling {job.onnx.name} failed: {error}") from error
            row = BuildRow(
                model=manifest.model.name,
                precision=manifest.precision.value,
                library=f"{library.backend} {library.version}",
                graph=name,
                chunk=chunk,
                targets=targets,
                onnx_bytes=stage.bytes,
                live_bytes=live,
                **_in_a_process(backend, job),
            )
            rows.append(row)
            step(f"{name}, {chunk}")
    return rows


def _in_a_process(backend: Compiler, job: Job) -> dict[str, Any]:
    order = json.dumps({"backend": backend, "job": {**asdict(job), "onnx": str(job.onnx)}})
    done = subprocess.run(
        [sys.executable, "-c", _CHILD], input=order, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        last = (done.stderr.strip() or "it says nothing").splitlines()[-1]
        raise EscNetError(f"compiling {job.onnx.name} failed: {last}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def run_child() -> None:
    """The measured process: reads a job from standard input, writes figures to standard output."""
    order = json.load(sys.stdin)
    given = order["job"]
    job = Job(
        onnx=Path(given["onnx"]),
        inputs=tuple(
            TensorSpec(name=one["name"], dtype=one["dtype"], shape=tuple(one["shape"]))
            for one in given["inputs"]
        ),
        profiles=tuple(
            {axis: AxisRange(**sizes) for axis, sizes in profile.items()}
            for profile in given["profiles"]
        ),
        targets=tuple(given["targets"]),
    )
    library = open_library(order["backend"])
    before, start = peak_memory() or 0, time.process_time()
    compiled = library.compile(job, BuildState())
    answer = {
        "engine_bytes": compiled.plan.nbytes,
        "scratch_bytes": compiled.scratch_bytes,
        "seconds": round(time.process_time() - start, 3),
        "host_bytes": (peak_memory() or 0) - before,
        "process_bytes": before,
    }
    print(json.dumps(answer))
