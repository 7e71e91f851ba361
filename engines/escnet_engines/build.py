"""From a bundle's graphs to its engines: compile each, write their record, move them into place."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from escnet_runtime.atomic import atomic_directory
from escnet_runtime.bundle import Bundle, sha256_file
from escnet_runtime.engine_record import (
    MOST_WORKSPACE,
    RECORD_FILE,
    Engine,
    EngineRecord,
    Fingerprint,
    Profile,
)
from escnet_runtime.engines import ENGINES_FOLDER, engine_folder, fingerprint_here, read_engines
from escnet_runtime.errors import BundleError, BundleFormatError, InputError

from .errors import BuildError, BuildMemoryError
from .graphs import checked_graph
from .library import Compiled, Job, Library
from .lock import only_build
from .monitor import BuildState
from .profiles import chunk_buckets, stage_profiles
from .targets import choose_targets, require_arithmetic
from .timing import load_timings, save_timings

__all__ = ["BuildReport", "Progress", "build_engines"]

#: Called with the graph, the builder's phase, and the number of graphs done, with a fraction.
Progress = Callable[[str, str, float], None]
_POLL_SECONDS: Final = 0.1
_SUFFIX: Final = ".engine"


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildReport:
    """What a build did.

    Attributes:
        folder: of the engines, relative to the bundle.
        record: the content of its engine.json.
        chunks: categories at a time that the engines are tuned for.
        reused: nothing was compiled, because engines that fit were there already.
        seconds: duration of the build.
    """

    folder: str
    record: EngineRecord
    chunks: tuple[int, ...]
    reused: bool
    seconds: float


def build_engines(
    bundle: Bundle,
    library: Library,
    *,
    target: str = "auto",
    chunks: Sequence[int] | None = None,
    workspace: int | None = None,
    progress: Progress = lambda *_: None,
) -> BuildReport:
    """Compile all graphs of ``bundle`` into ``engines/<backend>-<targets>/``.

    The folder appears whole or not at all. Engines that were built from the same graphs, by the
    same library, for the same GPUs, sizes and workspace are kept if they run with this machine's
    driver. A second build of the same bundle waits for the first.

    Args:
        bundle: opened.
        library: the compiler.
        target: "auto" or a list of GPUs, see :func:`choose_targets`.
        chunks: categories at a time to tune for; the bundle's own chunk by default.
        workspace: largest scratch memory of one layer, in bytes; no limit by default.
        progress: see :data:`Progress`.

    Raises:
        InputError: an option cannot be used, or the bundle is damaged or cannot be written to.
        BackendError: there is no GPU, and one is needed.
        BuildError: a graph cannot be compiled; nothing was changed.
    """
    start = time.perf_counter()
    here = fingerprint_here(library.backend, library.version)
    targets = choose_targets(library, target, here.targets)
    require_arithmetic(targets, (stage.precision for stage in bundle.manifest.stages.values()))
    buckets = chunk_buckets(bundle.manifest, chunks)
    if workspace is not None and not 1 <= workspace <= MOST_WORKSPACE:
        raise InputError(f"the workspace is {workspace:,} bytes, expected 1 to {MOST_WORKSPACE:,}")
    plan = _Plan(
        bundle=bundle,
        # A build for other machines does not depend on the driver of this one.
        fingerprint=dataclasses.replace(
            here, targets=targets, driver=here.driver if targets == here.targets else None
        ),
        profiles={
            name: stage_profiles(name, stage, bundle.manifest, buckets)
            for name, stage in bundle.manifest.stages.items()
        },
        chunks=buckets,
        workspace=workspace,
    )
    with only_build(bundle.root):
        record = plan.existing()
        reused = record is not None
        if record is None:
            record = _compile_all(plan, library, progress)
    return BuildReport(
        folder=plan.folder,
        record=record,
        chunks=buckets,
        reused=reused,
        seconds=time.perf_counter() - start,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """A build that is to be done."""

    bundle: Bundle
    fingerprint: Fingerprint
    profiles: dict[str, tuple[Profile, ...]]
    chunks: tuple[int, ...]
    workspace: int | None

    @property
    def folder(self) -> str:
        name = engine_folder(self.fingerprint.backend, self.fingerprint.targets)
        return f"{ENGINES_FOLDER}/{name}"

    def place(self) -> Path:
        """The path of the folder, which no link may lead out of the bundle."""
        path = self.bundle.root / self.folder
        for part in (path.parent, path):
            if part.is_symlink():
                raise BundleFormatError(
                    f"{part} is a link, but engines are written only inside the bundle. Remove it."
                )
        return path

    def existing(self) -> EngineRecord | None:
        """The record of engines that are there already, intact, and are those to be built."""
        try:
            record = read_engines(self.bundle, Path(self.folder).name)
            fits = self._is_for_this(record) and all(
                self._is_current(record, name) for name in self.bundle.manifest.stages
            )
        except BundleError:  # missing or damaged: to be built
            return None
        return record if fits else None

    def _is_for_this(self, record: EngineRecord) -> bool:
        """Whether a record is for these GPUs and options, and `find_engines` would take it here."""
        return (
            record.fingerprint.targets == self.fingerprint.targets
            and not record.fingerprint.differences(self.fingerprint)
            and record.workspace == self.workspace
        )

    def _is_current(self, record: EngineRecord, name: str) -> bool:
        engine = record.engines.get(name)
        return (
            engine is not None
            and engine.onnx_sha256 == self.bundle.manifest.stages[name].sha256
            and engine.profiles == self.profiles[name]
            and engine.sha256 == sha256_file(self.bundle.file(f"{self.folder}/{engine.file}"))
        )


def _compile_all(plan: _Plan, library: Library, progress: Progress) -> EngineRecord:
    load_timings(library, plan.fingerprint)
    place = plan.place()
    engines = {}
    try:
        with atomic_directory(
            place, kind="folder of engines", marker=RECORD_FILE, remains=f"*{_SUFFIX}"
        ) as folder:
            for index, name in enumerate(plan.bundle.manifest.stages):

                def within(phase: str, done: float, name: str = name, index: int = index) -> None:
                    progress(name, phase, index + done)

                engines[name] = _compile_one(plan, library, name, folder, within)
            record = EngineRecord(
                fingerprint=plan.fingerprint, engines=engines, workspace=plan.workspace
            )
            (folder / RECORD_FILE).write_text(record.to_json(), encoding="utf-8")
    except BaseException:
        with contextlib.suppress(OSError):
            place.parent.rmdir()  # fails, as it should, if it is not empty
        raise
    save_timings(library, plan.fingerprint)
    return record


def _compile_one(
    plan: _Plan, library: Library, name: str, folder: Path, progress: Callable[[str, float], None]
) -> Engine:
    start = time.perf_counter()
    stage = plan.bundle.manifest.stages[name]
    job = Job(
        onnx=checked_graph(plan.bundle, name),
        inputs=stage.inputs,
        profiles=plan.profiles[name],
        targets=plan.fingerprint.targets,
        workspace=plan.workspace,
    )
    try:
        compiled = _watched(library, job, progress)
    except (BuildMemoryError, MemoryError) as error:
        raise BuildMemoryError(
            f"graph {name!r} does not fit the memory: {error}. {_what_to_change(plan)}"
        ) from error
    except BuildError as error:
        raise BuildError(
            f"graph {name!r} ({stage.file}) cannot be compiled by {library.backend} "
            f"{library.version}: {error}"
        ) from error
    path = folder / f"{name}{_SUFFIX}"
    path.write_bytes(compiled.plan)
    return Engine(
        file=path.name,
        sha256=sha256_file(path),
        bytes=path.stat().st_size,
        onnx_sha256=stage.sha256,
        profiles=plan.profiles[name],
        scratch_bytes=compiled.scratch_bytes,
        seconds=round(time.perf_counter() - start, 3),
    )


def _watched(library: Library, job: Job, progress: Callable[[str, float], None]) -> Compiled:
    """Compile in a thread, so that this one receives Ctrl-C and can stop the builder."""
    state = BuildState()
    with ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(library.compile, job, state)
        try:
            while not wait([future], timeout=_POLL_SECONDS).done:
                fraction, phase = state.read()
                progress(phase, fraction)
            compiled = future.result()
        except BaseException:
            state.cancel()
            raise
    progress("", 1.0)
    return compiled


def _what_to_change(plan: _Plan) -> str:
    chunk, least = max(plan.chunks), plan.bundle.manifest.constants.group
    lower = f"Lower --chunk (now {chunk}, at least {least}), or " if chunk > least else ""
    if plan.workspace is None:
        advice = "limit --workspace, or end other processes that use the memory"
    else:
        advice = f"raise --workspace (now {plan.workspace // 2**20} MiB)"
    advice = f"{lower}{advice}"
    return f"{advice[0].upper()}{advice[1:]}; --plan shows what a build will take"
