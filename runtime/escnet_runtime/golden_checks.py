"""The checks that a golden run on one backend comes to."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from .bundle import Bundle
from .errors import EscNetError
from .golden import Golden, GoldenRun, Reference, repeat_golden
from .manifest import Manifest
from .preprocess import preprocess
from .segmenter import Segmenter
from .sketch import sketch, sketch_distance
from .tokenizer import Tokenizer

__all__ = ["GoldenCheck", "device_check", "golden_checks"]

#: Decoding and resizing are integer arithmetic: only their last roundings may differ.
_PREPROCESSING_TOLERANCE: Final = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenCheck:
    """One thing that was compared, and what it is about."""

    kind: Literal["tokenizer", "preprocessing", "stage", "prompts", "labels", "device"]
    name: str
    passed: bool
    detail: str


def golden_checks(
    segmenter: Segmenter, golden: Golden, *, shared: bool = True
) -> Iterator[GoldenCheck]:
    """Repeat the golden run: tokenizer, preprocessing, each stage, prompts, labels.

    The first two do not depend on the backend: they are left out unless ``shared``.
    """
    manifest = segmenter.bundle.manifest
    if shared:
        yield _tokenizer_check(segmenter.bundle, golden)
        yield _preprocessing_check(manifest, golden)
    run = repeat_golden(segmenter.pipeline, golden, manifest)
    for stage in dict.fromkeys((*golden.reference.stages, *run.stages)):
        yield _stage_check(stage, golden.reference, run)
    yield GoldenCheck(
        kind="prompts",
        name="prompts",
        passed=True,
        detail=f"Left alone, this device would choose {run.flips:,} of {run.prompts:,} prompts "
        "otherwise than the float32 model. A few are normal: they are near-ties.",
    )
    yield _labels_check(golden.reference, run)


def device_check(segmenter: Segmenter, golden: Golden) -> GoldenCheck | None:
    """The golden image as :meth:`Segmenter.__call__` runs it on a GPU; None on the CPU.

    The golden run goes stage by stage, with the host between. Here are the runtime's own kernels,
    and the CUDA graph, if there is one: labels are compared with those that the same graphs give
    with the host's kernels. Of untrained weights they are near-ties, so nothing is demanded.
    """
    if segmenter.device_pipeline is None:
        return None
    least = golden.reference.pixel_agreement if segmenter.bundle.manifest.model.trained else 0.0
    try:
        vocabulary = segmenter.vocabulary(golden.reference.categories)
        whole = segmenter(golden.image, vocabulary)
        apart = segmenter(golden.image, vocabulary, observer=_unseen)
    except EscNetError as error:
        return GoldenCheck(kind="device", name="whole_image", passed=False, detail=str(error))
    agreement = float((whole.labels == apart.labels).mean())
    return GoldenCheck(
        kind="device",
        name="whole_image",
        passed=agreement >= least,
        detail=f"With all of it on the device, {agreement:.2%} of the golden image's pixels get "
        f"the label that its graphs give one by one; at least {least:.2%} are needed.",
    )


def _unseen(*_: object) -> None:
    """An observer: with one, an image goes graph by graph."""


def _tokenizer_check(bundle: Bundle, golden: Golden) -> GoldenCheck:
    reference, want = bundle.manifest.tokenizer, golden.tokens
    prompts = golden.reference.prompts
    try:
        tokenizer = Tokenizer.open(bundle.file(reference.file), reference.context_length)
    except EscNetError as error:
        return GoldenCheck(kind="tokenizer", name="tokenizer", passed=False, detail=str(error))
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
    return GoldenCheck(kind="tokenizer", name="tokenizer", passed=not wrong.size, detail=detail)


def _preprocessing_check(manifest: Manifest, golden: Golden) -> GoldenCheck:
    pixels = preprocess(golden.image, manifest.constants.preprocessing)
    distance = sketch_distance(sketch(pixels), golden.reference.preprocessed)
    detail = f"The golden image becomes the model's input with a difference of {_share(distance)}"
    return GoldenCheck(
        kind="preprocessing",
        name="preprocessing",
        passed=distance <= _PREPROCESSING_TOLERANCE,
        detail=f"{detail}; at most {_share(_PREPROCESSING_TOLERANCE)} is allowed.",
    )


def _stage_check(stage: str, reference: Reference, run: GoldenRun) -> GoldenCheck:
    want, got = reference.stages.get(stage, {}), run.stages.get(stage)
    if got is None:
        return GoldenCheck(kind="stage", name=stage, passed=False, detail=_not_reached(run))
    if want.keys() != got.keys():
        detail = f"Gives {_listed(got)}, where the reference has {_listed(want)}."
        return GoldenCheck(kind="stage", name=stage, passed=False, detail=detail)
    distances = {name: sketch_distance(got[name], want[name]) for name in want}
    worst = max(distances, key=distances.__getitem__)
    return GoldenCheck(
        kind="stage",
        name=stage,
        passed=distances[worst] <= reference.stage_tolerance,
        detail=f"Differs from the float32 model by {_share(distances[worst])} ({worst}); at most "
        f"{_share(reference.stage_tolerance)} is allowed.",
    )


def _labels_check(reference: Reference, run: GoldenRun) -> GoldenCheck:
    if run.agreement is None:
        return GoldenCheck(kind="labels", name="labels", passed=False, detail=_not_reached(run))
    return GoldenCheck(
        kind="labels",
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
    """A relative difference as a percentage with two digits; no powers of ten above 1 %."""
    if not np.isfinite(value):
        return "infinity (values are not numbers)"
    percent = 100 * value
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"
