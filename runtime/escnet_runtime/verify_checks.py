"""The checks of a bundle that run none of its graphs: description, files, library, engines."""

import importlib.metadata
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from .bundle import Bundle
from .engines import EngineFolder, installed_version, survey_engines
from .errors import BundleError
from .manifest import Manifest
from .measured_chunks import survey_chunks
from .nvidia import find_gpu
from .verdict import Check, Findings, rebuild_advice, unused_chunks

__all__ = [
    "COPY_AGAIN",
    "chunk_checks",
    "engine_checks",
    "files_check",
    "library_check",
    "manifest_check",
]

_DISTRIBUTIONS: Final = ("onnxruntime", "onnxruntime-gpu")
_LONGEST_VERSION: Final = 40  # characters
_EXTRAS: Final = "escnet-runtime[onnxruntime] (or [onnxruntime-gpu])"
COPY_AGAIN: Final = (
    "Copy the bundle again from where it was made; if that does not help, export it."
)
_WITHOUT: Final = "ONNX Runtime runs the bundle without them."


def manifest_check(manifest: Manifest) -> Check:
    """Passed: a description that cannot be used does not get here."""
    model = manifest.model
    weights = "trained" if model.trained else "untrained"
    return Check(
        name="manifest",
        passed=True,
        detail=f"bundle.json is whole: format {manifest.schema_version}, model {model.name} "
        f"({weights}), {manifest.precision}.",
    )


def files_check(bundle: Bundle, progress: Callable[[int, int], None] | None) -> Check:
    """Every file against its size and sha256."""
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
        advice=COPY_AGAIN,
    )


def library_check(producer: Mapping[str, str]) -> Check:
    """Can the installed ONNX Runtime read the bundle's ONNX, and is it the one it was checked with?

    Only a version that cannot read it fails: another one is named, and the golden run decides.
    """
    installed = _installed_onnxruntime()
    made_with = _version(producer, "onnxruntime")
    minimum = _version(producer, "onnxruntime_minimum")
    if installed is None:
        wanted = minimum or made_with
        advice = f"install {_EXTRAS}{f', with onnxruntime>={wanted}' if wanted else ''}."
        checked = f" The bundle was checked with {made_with}." if made_with else ""
        return Check(
            name="library",
            passed=False,
            detail=f"ONNX Runtime is not installed; {advice}{checked}",
            reason="ONNX Runtime, which runs its graphs, is not installed",
            advice=advice[0].upper() + advice[1:],
        )
    if made_with is None:
        detail = f"ONNX Runtime {installed}; the bundle does not say what it was checked with."
        return Check(name="library", passed=True, detail=detail)
    least = minimum or made_with
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
    try:  # under another name, such as onnxruntime-openvino or a build of one's own
        from .backends.onnxruntime import VERSION
    except (ImportError, OSError):
        return None
    return VERSION


def _release(version: str) -> tuple[int, ...]:
    """(1, 32, 0) of "1.32.0.dev1"; zeros at the end do not count."""
    leading = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in leading[0].split(".")] if leading else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def engine_checks(bundle: Bundle, found: Findings) -> Iterator[Check]:
    """A check of each folder of engines against its record, this device and its libraries."""
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
    """A check of one folder; ``wanted``: its backend's engines are to run here, or never do."""
    if folder.state == "fits":
        return Check(name=folder.folder, passed=True, detail="The engines fit this device.")
    if folder.state == "damaged":
        return Check(
            name=folder.folder,
            passed=False,
            detail="; ".join(folder.reasons),
            reason=f"engines in {folder.folder} are damaged",
            advice=rebuild_advice(folder),
        )
    reasons = "; ".join(folder.reasons)
    return Check(
        name=folder.folder,
        passed=not wanted,
        note=not wanted,
        detail=f"These engines do not run here: {reasons}. {rebuild_advice(folder)}",
        reason=f"its engines are for something else ({(folder.outdated or folder.reasons)[0]})",
        advice=f"{rebuild_advice(folder)} {_WITHOUT}",
    )


def chunk_checks(bundle: Bundle, found: Findings) -> Iterator[Check]:
    """A check of each record of measured chunks; one of another machine or graph is only noted."""
    found.chunks.extend(survey_chunks(bundle))
    for state in found.chunks:
        match state.state:
            case "fits":
                detail = f"{state.backend} runs {state.chunk} categories at a time, as measured."
            case "misfit":
                detail = unused_chunks(state)
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
