"""Whether a bundle is whole and computes on this device what the float32 model computed."""

import importlib.metadata
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

from .backends_here import BackendHere, backends_here
from .bundle import Bundle
from .contract import require_contract
from .engines import EngineFolder, installed_version, survey_engines
from .errors import BundleError, BundleFormatError, EscNetError
from .golden import Golden
from .golden_checks import GoldenCheck, device_check, golden_checks
from .manifest import Manifest
from .measured_chunks import ChunkState, survey_chunks
from .nvidia import find_gpu
from .segmenter import Segmenter

__all__ = ["BackendState", "Check", "Verdict", "VerifyReport", "verify_bundle"]

_DISTRIBUTIONS: Final = ("onnxruntime", "onnxruntime-gpu")
_LONGEST_VERSION: Final = 40  # characters
_EXTRAS: Final = "escnet-runtime[onnxruntime] (or [onnxruntime-gpu])"
_AGAIN: Final = "Copy the bundle again from where it was made; if that does not help, export it."
_WITHOUT: Final = "ONNX Runtime runs the bundle without them."


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at, with a sentence for people.

    ``reason`` and ``advice`` are for the verdict, if this is what decides it: a clause, and a
    sentence that says what to do. ``note``: it passed, and there is something to know all the same.
    """

    name: str
    passed: bool
    detail: str
    reason: str = ""
    advice: str = ""
    note: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendState:
    """A backend and what came of it here: "passed", "failed", or "not run" and what it lacks."""

    name: str
    state: Literal["passed", "failed", "not run"]
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """For people who know nothing of graphs: is it fine here, why, what to do, what to know."""

    fine: bool
    sentence: str
    why: str
    advice: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """All checks, in the order they were made, and what they come to."""

    passed: bool
    checks: tuple[Check, ...]
    verdict: Verdict
    backends: tuple[BackendState, ...] = ()
    engines: tuple[EngineFolder, ...] = ()


def verify_bundle(
    path: Path,
    backend: str = "auto",
    *,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Check a bundle's files and repeat its golden run on this device.

    Every backend that can run it here does; what each of the others lacks is said, and no failure.

    Engines in it are compared with their record, this device and the libraries here. Damaged ones
    fail. Ones made for something else fail if there is an NVIDIA GPU and their library, so that
    they could run here, or if no GPU would mend it (another graph, chunk or version of a library
    that is here); else they are a note. With a ``backend`` by name only damaged ones fail.

    Args:
        path: the bundle's folder.
        backend: one of :data:`escnet_runtime.backends.BACKENDS`; "auto" is all that are here.
        progress: called with the bytes read and the bytes in total while files are checked.

    Raises:
        BundleError: there is no bundle at ``path`` at all.
    """
    found = _Findings(backend=backend)
    checks = tuple(_checks(path, found, progress))
    verdict = _verdict(checks, found)
    return VerifyReport(
        passed=verdict.fine,
        checks=checks,
        verdict=verdict,
        backends=tuple(found.backends),
        engines=tuple(found.engines),
    )


@dataclass(slots=True, kw_only=True)
class _Findings:
    """What the checks find beside passing or failing."""

    backend: str
    manifest: Manifest | None = None
    files: int = 0
    backends: list[BackendState] = field(default_factory=list)
    engines: list[EngineFolder] = field(default_factory=list)
    chunks: list[ChunkState] = field(default_factory=list)


def _checks(
    path: Path, found: _Findings, progress: Callable[[int, int], None] | None
) -> Iterator[Check]:
    try:
        bundle = Bundle.open(path, check="description")
        require_contract(bundle.manifest)
    except BundleFormatError as error:
        yield Check(
            name="manifest",
            passed=False,
            detail=str(error),
            reason="its description cannot be used",
            advice=str(error),
        )
        return
    found.manifest = bundle.manifest
    yield _manifest_check(bundle.manifest)
    files = _files_check(bundle, progress)
    found.files = len(list(bundle.manifest.files()))
    yield files
    engines = (*_engine_checks(bundle, found), *_chunk_checks(bundle, found))
    there = _backends(bundle, found)
    names = [one.name for one in there if one.lacks is None] or ["onnxruntime"]
    if any(name.startswith("onnxruntime") for name in names):
        yield _library_check(bundle.manifest.producer)
    if files.passed:
        yield from _run_checks(bundle, names, found)
    else:
        yield _skipped("files of the bundle are damaged or missing")
    found.backends += [
        BackendState(name=one.name, state="not run", detail=one.lacks)
        for one in there
        if one.lacks is not None and one.name not in names
    ]
    yield from engines


def _backends(bundle: Bundle, found: _Findings) -> list[BackendHere]:
    """All there are, or the one that was asked for: that has to run."""
    if found.backend != "auto":
        return [BackendHere(name=found.backend, lacks=None)]
    precisions = {stage.precision for stage in bundle.manifest.stages.values()}
    return backends_here(bundle.root, found.engines, precisions)


def _skipped(reason: str) -> Check:
    return Check(
        name="golden_run",
        passed=False,
        detail=f"Skipped, because {reason}.",
        reason=reason,
        advice=_AGAIN,
    )


def _manifest_check(manifest: Manifest) -> Check:
    model = manifest.model
    weights = "trained" if model.trained else "untrained"
    return Check(
        name="manifest",
        passed=True,
        detail=f"bundle.json is whole: format {manifest.schema_version}, model {model.name} "
        f"({weights}), {manifest.precision}.",
    )


def _files_check(bundle: Bundle, progress: Callable[[int, int], None] | None) -> Check:
    problems = bundle.check_files(progress)
    if not problems:
        count = len(list(bundle.manifest.files()))
        return Check(
            name="files", passed=True, detail=f"All {count} files are as they were written."
        )
    listed = "; ".join(f"{problem.file}: {problem.detail}" for problem in problems)
    words = {"missing": "is missing", "unsafe": "must not be used"}
    first = problems[0]
    more = f" (and {len(problems) - 1} more of its files)" if len(problems) > 1 else ""
    return Check(
        name="files",
        passed=False,
        detail=f"{listed}. Copy or export the bundle again.",
        reason=f"{first.file} {words.get(first.problem, 'is damaged')}{more}",
        advice=_AGAIN,
    )


def _library_check(producer: Mapping[str, str]) -> Check:
    """Can the installed ONNX Runtime read the bundle's ONNX, and is it the one it was checked with?

    Only a version that cannot read it fails: another one is named, and the golden run decides.
    """
    installed = _installed_onnxruntime()
    made_with = _version(producer, "onnxruntime")
    if installed is None:
        wanted = f">={made_with}" if made_with else ""
        advice = f"install {_EXTRAS}, with onnxruntime{wanted}."
        return Check(
            name="library",
            passed=False,
            detail=f"ONNX Runtime is not installed; {advice}",
            reason="ONNX Runtime, which runs its graphs, is not installed",
            advice=advice[0].upper() + advice[1:],
        )
    if made_with is None:
        detail = f"ONNX Runtime {installed}; the bundle does not say what it was checked with."
        return Check(name="library", passed=True, detail=detail)
    least = _version(producer, "onnxruntime_minimum") or made_with
    passed = _release(installed) >= _release(least)
    detail = f"ONNX Runtime {installed} is here; the bundle was checked with {made_with}."
    if not passed:
        detail += f" It needs {least} or newer: install onnxruntime>={least}."
    elif _release(installed) != _release(made_with):
        detail += " They differ; the golden run below shows whether that matters."
    return Check(
        name="library",
        passed=passed,
        detail=detail,
        reason=f"ONNX Runtime {installed} is too old for it",
        advice=f"Install onnxruntime>={least}.",
    )


def _version(producer: Mapping[str, str], library: str) -> str | None:
    """What a bundle says of a library, which may be a text of any length."""
    said = producer.get(library)
    return said and said[:_LONGEST_VERSION]


def _installed_onnxruntime() -> str | None:
    for name in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _release(version: str) -> tuple[int, ...]:
    """(1, 32, 0) of "1.32.0.dev1"; zeros at the end do not count."""
    leading = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in leading[0].split(".")] if leading else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _run_checks(bundle: Bundle, names: list[str], found: _Findings) -> Iterator[Check]:
    """The golden run on each backend; checks of a second one have its name in front."""
    for index, name in enumerate(names):
        failed = None
        asked = found.backend != "auto"
        for check in _backend_checks(bundle, name, shared=not index, asked=asked):
            if not check.passed and failed is None:
                failed = check
            yield _of_another(check, name) if index else check
        state: Literal["passed", "failed"] = "failed" if failed else "passed"
        detail = failed.detail if failed else check.detail
        found.backends.append(BackendState(name=name, state=state, detail=detail))


def _of_another(check: Check, backend: str) -> Check:
    """A check of a second backend."""
    reason = check.reason and f"with {backend}, {check.reason}"
    return replace(check, name=f"{backend}: {check.name}", reason=reason)


def _backend_checks(
    bundle: Bundle, name: str, *, shared: bool = True, asked: bool = False
) -> Iterator[Check]:
    """Those of one backend.

    Args:
        bundle: what is checked.
        name: of the backend.
        shared: also what is the same for all backends.
        asked: it was named, and another one may run here.
    """
    try:
        segmenter = Segmenter(bundle, name, cache=None)
    except EscNetError as error:
        reason = "nothing here can run its graphs" if shared else "its graphs do not run here"
        if asked:
            reason = f"the backend that was asked for, {name}, cannot run its graphs here"
        yield Check(
            name="backend",
            passed=False,
            detail=str(error),
            reason=reason,
            advice=str(error),
        )
        yield _skipped("the backend could not be created")
        return
    with segmenter:
        yield Check(name="backend", passed=True, detail=f"The graphs run on {segmenter.backend}.")
        try:
            golden = Golden.load(bundle)
        except EscNetError as error:
            yield _skipped(f"the golden files cannot be used: {error}")
            return
        for check in golden_checks(segmenter, golden, shared=shared):
            yield _explained(check, name)
        whole = device_check(segmenter, golden)
        if whole is not None:
            yield _explained(whole, name)


def _explained(check: GoldenCheck, backend: str) -> Check:
    """With the words for a verdict."""
    otherwise = _OTHERWISE if backend.startswith("onnxruntime") else _OTHER_ENGINES
    match check.kind:
        case "tokenizer":
            reason = "words do not become what they should"
            advice = "Install the versions of tokenizers and ftfy that escnet-runtime asks for."
        case "preprocessing":
            reason = "pictures do not become what they should"
            advice = "Install the version of Pillow that escnet-runtime asks for."
        case "labels":
            reason = "the golden picture gets other labels here"
            advice = otherwise
        case "device":
            reason = "a whole picture on the device gets other labels than its graphs one by one"
            advice = f"{_NOT_RELIED} Run it with --backend onnxruntime, and report this."
        case _:
            reason = f"the graph {check.name!r} does not compute here what it should"
            advice = otherwise
            if otherwise is _OTHERWISE:
                advice += f" escnet-verify BUNDLE --layers --stage {check.name} shows where."
    return Check(
        name=check.name, passed=check.passed, detail=check.detail, reason=reason, advice=advice
    )


_NOT_RELIED: Final = "Do not rely on its masks here."
_OTHERWISE: Final = (
    f"{_NOT_RELIED} Install another version of ONNX Runtime, or export the model again at fp32."
)
_OTHER_ENGINES: Final = (
    f"{_NOT_RELIED} Rebuild its engines with escnet-build, or run it with --backend onnxruntime."
)


def _engine_checks(bundle: Bundle, found: _Findings) -> Iterator[Check]:
    try:
        folders = survey_engines(bundle)
    except BundleError as error:
        yield Check(
            name="engines",
            passed=False,
            detail=str(error),
            reason="its folder of engines must not be used",
            advice=str(error),
        )
        return
    found.engines.extend(folders)
    fitting = {folder.backend for folder in folders if folder.state == "fits"}
    for folder in folders:
        counts = bool(folder.outdated) or _could_run(folder)
        wanted = found.backend == "auto" and counts and folder.backend not in fitting
        yield _engine_check(folder, wanted)


def _could_run(folder: EngineFolder) -> bool:
    """Whether engines of that library would run here, were they made for this device."""
    there = folder.backend is not None and installed_version(folder.backend) is not None
    return there and find_gpu() is not None


def _engine_check(folder: EngineFolder, wanted: bool) -> Check:
    """Of one folder; ``wanted`` says that engines of its backend are to run here, or never do."""
    if folder.state == "fits":
        return Check(name=folder.folder, passed=True, detail="The engines fit this device.")
    if folder.state == "damaged":
        return Check(
            name=folder.folder,
            passed=False,
            detail="; ".join(folder.reasons),
            reason=f"engines in {folder.folder} are damaged",
            advice=_rebuild(folder),
        )
    reasons = "; ".join(folder.reasons)
    return Check(
        name=folder.folder,
        passed=not wanted,
        note=not wanted,
        detail=f"These engines do not run here: {reasons}. {_rebuild(folder)}",
        reason=f"its engines are for something else ({(folder.outdated or folder.reasons)[0]})",
        advice=f"{_rebuild(folder)} {_WITHOUT}",
    )


def _rebuild(folder: EngineFolder) -> str:
    if folder.command is None:
        return f"Remove {folder.folder} from the bundle; escnet-build makes engines anew."
    here = find_gpu() is not None or "--target" in folder.command
    how = "Rebuild them" if here else "On a device with an NVIDIA GPU, rebuild them"
    return f"{how}: {folder.command}"


def _chunk_checks(bundle: Bundle, found: _Findings) -> Iterator[Check]:
    """Of each record of measured chunks; one of another machine or graph is a note."""
    found.chunks.extend(survey_chunks(bundle))
    for state in found.chunks:
        match state.state:
            case "fits":
                detail = f"{state.backend} runs {state.chunk} categories at a time, as measured."
            case "misfit":
                detail = _unused(state)
            case "damaged":
                detail = "; ".join(state.reasons)
        yield Check(
            name=state.file,
            passed=state.state != "damaged",
            note=state.state == "misfit",
            detail=detail,
            reason=f"the measured chunks in {state.file} are damaged",
            advice=f"Remove {state.file} from the bundle, or measure anew: {state.command}",
        )


def _unused(state: ChunkState) -> str:
    reasons = "; ".join(state.reasons)
    return f"{state.file} is not used here: {reasons}. Measure anew: {state.command}"


# --- The verdict ---------------------------------------------------------------------------------


def _verdict(checks: tuple[Check, ...], found: _Findings) -> Verdict:
    bad = [check for check in checks if not check.passed]
    notes = _notes(found)
    ran = [state.name for state in found.backends if state.state == "passed"]
    if bad:
        first = bad[0]
        return Verdict(
            fine=False,
            sentence=f"This bundle is not fine on this device: {first.reason or first.detail}.",
            why=f"{len(bad)} of {len(checks)} checks failed, {first.name} first: {first.detail}",
            advice=(first.advice or "Do not rely on it on this device.") + _good_ones(bad, ran),
            notes=notes,
        )
    return Verdict(
        fine=True,
        sentence="This bundle is fine on this device.",
        why=f"All {found.files} of its files are as they were written, and on "
        f"{' and on '.join(ran)} it computes what the float32 model computed.",
        advice="Nothing to do: use it.",
        notes=notes,
    )


def _good_ones(bad: list[Check], ran: list[str]) -> str:
    """What may be used all the same, where everything that failed is of other backends."""
    if not ran or not all(": " in check.name for check in bad):
        return ""
    return f" With {' and '.join(ran)} it is fine."


def _notes(found: _Findings) -> tuple[str, ...]:
    notes = []
    if found.manifest is not None:
        if not found.manifest.model.trained:
            notes.append("Its weights are untrained: its masks mean nothing.")
        if not found.manifest.parity.passed:
            notes.append("It missed its accuracy budget when it was exported: see parity.html.")
    for folder in found.engines:
        if folder.state == "misfit":
            reasons = "; ".join(folder.reasons)
            notes.append(f"{folder.folder} does not run here: {reasons}. {_rebuild(folder)}")
    notes += [_unused(state) for state in found.chunks if state.state == "misfit"]
    return tuple(notes)
