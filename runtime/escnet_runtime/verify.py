"""Whether a bundle is whole and computes on this device what the float32 model computed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from .backends_here import BackendHere, backends_here
from .bundle import Bundle
from .contract import require_contract
from .engines import EngineFolder
from .errors import BundleFormatError, EscNetError
from .golden import Golden
from .golden_checks import GoldenCheck, device_check, golden_checks
from .segmenter import Segmenter
from .verdict import BackendState, Check, Findings, Verdict, verdict_of
from .verify_checks import (
    COPY_AGAIN,
    chunk_checks,
    engine_checks,
    files_check,
    library_check,
    manifest_check,
)

__all__ = ["BackendState", "Check", "Verdict", "VerifyReport", "verify_bundle"]

_NOT_RELIED: Final = "Do not rely on its masks here."
_OTHERWISE: Final = (
    f"{_NOT_RELIED} Install another version of ONNX Runtime, or export the model again at fp32."
)
_OTHER_ENGINES: Final = (
    f"{_NOT_RELIED} Rebuild its engines with escnet-build, or run it with --backend onnxruntime."
)


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
    found = Findings(backend=backend)
    checks = tuple(_checks(path, found, progress))
    verdict = verdict_of(checks, found)
    return VerifyReport(
        passed=verdict.fine,
        checks=checks,
        verdict=verdict,
        backends=tuple(found.backends),
        engines=tuple(found.engines),
    )


def _checks(
    path: Path, found: Findings, progress: Callable[[int, int], None] | None
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
    yield manifest_check(bundle.manifest)
    files = files_check(bundle, progress)
    found.files = len(list(bundle.manifest.files()))
    yield files
    engines = (*engine_checks(bundle, found), *chunk_checks(bundle, found))
    there = _backends(bundle, found)
    names = [one.name for one in there if one.lacks is None] or ["onnxruntime"]
    if any(name.startswith("onnxruntime") for name in names):
        yield library_check(bundle.manifest.producer)
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


def _backends(bundle: Bundle, found: Findings) -> list[BackendHere]:
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
        advice=COPY_AGAIN,
    )


def _run_checks(bundle: Bundle, names: list[str], found: Findings) -> Iterator[Check]:
    """The golden run on each backend; checks of a second one have its name in front."""
    asked = found.backend != "auto"
    for index, name in enumerate(names):
        made = []
        for check in _backend_checks(bundle, name, shared=not index, asked=asked):
            made.append(check)
            yield _of_another(check, name) if index else check
        failed = next((check for check in made if not check.passed), None)
        found.backends.append(
            BackendState(
                name=name,
                state="failed" if failed else "passed",
                detail=(failed or made[-1]).detail,
            )
        )


def _of_another(check: Check, backend: str) -> Check:
    """A check of a second backend."""
    reason = check.reason and f"with {backend}, {check.reason}"
    return replace(check, name=f"{backend}: {check.name}", reason=reason)


def _backend_checks(
    bundle: Bundle, name: str, *, shared: bool = True, asked: bool = False
) -> Iterator[Check]:
    """The checks of one backend.

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
    """A check with the words for its verdict."""
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
