"""Whether a bundle is whole and computes on this device what the float32 model computed."""

import importlib.metadata
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from .bundle import Bundle
from .errors import BundleFormatError, BundleIntegrityError, EscNetError
from .golden import Golden, GoldenRun, Reference, repeat_golden
from .manifest import Manifest
from .preprocess import preprocess
from .segmenter import Segmenter
from .sketch import sketch, sketch_distance
from .tokenizer import Tokenizer

__all__ = ["Check", "VerifyReport", "verify_bundle"]

#: Decoding and resizing are integer arithmetic: only their last roundings may differ.
_PREPROCESSING_TOLERANCE: Final = 1e-4
_DISTRIBUTIONS: Final = ("onnxruntime", "onnxruntime-gpu")
_EXTRAS: Final = "escnet-runtime[onnxruntime] (or [onnxruntime-gpu])"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at, with a sentence for people."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """All checks, in the order they were made."""

    passed: bool
    checks: tuple[Check, ...]


def verify_bundle(
    path: Path,
    backend: str = "auto",
    *,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Check a bundle's files and repeat its golden run on this device.

    Args:
        path: the bundle's folder.
        backend: one of :data:`escnet_runtime.backends.BACKENDS`.
        progress: called with the bytes read and the bytes in total while files are checked.

    Raises:
        BundleError: there is no bundle at ``path`` at all.
    """
    checks = tuple(_checks(path, backend, progress))
    return VerifyReport(passed=all(check.passed for check in checks), checks=checks)


def _checks(
    path: Path, backend: str, progress: Callable[[int, int], None] | None
) -> Iterator[Check]:
    try:
        bundle = _read(path)
    except BundleFormatError as error:
        yield Check(name="manifest", passed=False, detail=str(error))
        return
    yield _manifest_check(bundle.manifest)
    files = _files_check(bundle, progress)
    yield files
    yield _library_check(bundle.manifest.producer)
    if not files.passed:
        yield _skipped("files of the bundle are damaged or missing")
        return
    try:
        segmenter = Segmenter(bundle.root, backend, cache=None)
    except EscNetError as error:
        yield Check(name="backend", passed=False, detail=str(error))
        yield _skipped("the backend could not be created")
        return
    with segmenter:
        yield Check(name="backend", passed=True, detail=f"The graphs run on {segmenter.backend}.")
        try:
            golden = Golden.load(bundle)
        except EscNetError as error:
            yield _skipped(f"the golden files cannot be used: {error}")
            return
        yield from _golden_checks(segmenter, golden)


def _skipped(reason: str) -> Check:
    return Check(name="golden_run", passed=False, detail=f"Skipped, because {reason}.")


def _read(path: Path) -> Bundle:
    """The bundle, whatever is wrong with its other files."""
    try:
        return Bundle.open(path)
    except BundleIntegrityError:  # bundle.json itself has been read and is all right
        root = path.resolve()
        manifest = Manifest.from_json((root / "bundle.json").read_text(encoding="utf-8"))
        return Bundle(root=root, manifest=manifest)


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
    if problems:
        listed = "; ".join(f"{problem.file}: {problem.detail}" for problem in problems)
        detail = f"{listed}. Copy or export the bundle again."
    else:
        detail = f"All {len(list(bundle.manifest.files()))} files are as they were written."
    return Check(name="files", passed=not problems, detail=detail)


def _library_check(producer: Mapping[str, str]) -> Check:
    """Can the installed ONNX Runtime read the bundle's ONNX, and is it the one it was checked with?

    Only a version that cannot read it fails: another one is named, and the golden run decides.
    """
    installed = _installed_onnxruntime()
    made_with = producer.get("onnxruntime")
    if installed is None:
        wanted = f">={made_with}" if made_with else ""
        detail = f"ONNX Runtime is not installed; install {_EXTRAS}, with onnxruntime{wanted}."
        return Check(name="library", passed=False, detail=detail)
    if made_with is None:
        detail = f"ONNX Runtime {installed}; the bundle does not say what it was checked with."
        return Check(name="library", passed=True, detail=detail)
    least = producer.get("onnxruntime_minimum", made_with)
    passed = _release(installed) >= _release(least)
    detail = f"ONNX Runtime {installed} is here; the bundle was checked with {made_with}."
    if not passed:
        detail += f" It needs {least} or newer: install onnxruntime>={least}."
    elif _release(installed) != _release(made_with):
        detail += " They differ; the golden run below shows whether that matters."
    return Check(name="library", passed=passed, detail=detail)


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


def _golden_checks(segmenter: Segmenter, golden: Golden) -> Iterator[Check]:
    manifest = segmenter.bundle.manifest
    yield _tokenizer_check(segmenter.bundle, golden)
    yield _preprocessing_check(manifest, golden)
    run = repeat_golden(segmenter.pipeline, golden, manifest)
    for stage in dict.fromkeys((*golden.reference.stages, *run.stages)):
        yield _stage_check(stage, golden.reference, run)
    yield Check(
        name="prompts",
        passed=True,
        detail=f"Left alone, this device would choose {run.flips:,} of {run.prompts:,} prompts "
        "otherwise than the float32 model. A few are normal: they are near-ties.",
    )
    yield _labels_check(golden.reference, run)


def _tokenizer_check(bundle: Bundle, golden: Golden) -> Check:
    reference, want = bundle.manifest.tokenizer, golden.tokens
    prompts = golden.reference.prompts
    try:
        tokenizer = Tokenizer.open(bundle.file(reference.file), reference.context_length)
    except EscNetError as error:
        return Check(name="tokenizer", passed=False, detail=str(error))
    got = tokenizer.encode(prompts, cleaned=True)
    # Zeros behind the end of a text are padding.
    width = max(got.shape[1], want.shape[1])
    padded = [np.pad(ids, ((0, 0), (0, width - ids.shape[1]))) for ids in (got, want)]
    wrong = np.flatnonzero((padded[0] != padded[1]).any(axis=1))
    if wrong.size:
        detail = (
            f"{wrong.size} of {len(prompts)} texts become other token ids than they should, for "
            f"instance {prompts[wrong[0]]!r}: install the versions of tokenizers and ftfy that "
            "escnet-runtime asks for."
        )
    else:
        detail = f"All {len(prompts)} texts become the token ids they should."
    return Check(name="tokenizer", passed=not wrong.size, detail=detail)


def _preprocessing_check(manifest: Manifest, golden: Golden) -> Check:
    pixels = preprocess(golden.image, manifest.constants.preprocessing)
    distance = sketch_distance(sketch(pixels), golden.reference.preprocessed)
    detail = f"The golden image becomes the model's input with a difference of {_share(distance)}"
    return Check(
        name="preprocessing",
        passed=distance <= _PREPROCESSING_TOLERANCE,
        detail=f"{detail}; at most {_share(_PREPROCESSING_TOLERANCE)} is allowed.",
    )


def _stage_check(stage: str, reference: Reference, run: GoldenRun) -> Check:
    want, got = reference.stages.get(stage, {}), run.stages.get(stage)
    if got is None:
        return Check(name=stage, passed=False, detail=_not_reached(run))
    if want.keys() != got.keys():
        detail = f"Gives {_listed(got)}, where the reference has {_listed(want)}."
        return Check(name=stage, passed=False, detail=detail)
    distances = {name: sketch_distance(got[name], want[name]) for name in want}
    worst = max(distances, key=distances.__getitem__)
    return Check(
        name=stage,
        passed=distances[worst] <= reference.stage_tolerance,
        detail=f"Differs from the float32 model by {_share(distances[worst])} ({worst}); at most "
        f"{_share(reference.stage_tolerance)} is allowed.",
    )


def _labels_check(reference: Reference, run: GoldenRun) -> Check:
    if run.agreement is None:
        return Check(name="labels", passed=False, detail=_not_reached(run))
    return Check(
        name="labels",
        passed=run.agreement >= reference.pixel_agreement,
        detail=f"{run.agreement:.2%} of the golden image's pixels get the label that the float32 "
        f"model gives; at least {reference.pixel_agreement:.2%} are needed.",
    )


def _not_reached(run: GoldenRun) -> str:
    return f"Not reached: {run.failure or 'the golden run has no such stage'}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def _share(value: float) -> str:
    """A relative difference as a percentage with two digits."""
    return f"{100 * value:.2g} %" if np.isfinite(value) else "infinity (values are not numbers)"
