"""How far a bundle is from float32 PyTorch and from the truth, on the backend that is timed.

Everything runs through the same Segmenter whose latency is measured. Without PyTorch the bundle is
compared with the true labels and with its own golden run: one image through float32 PyTorch, of
which the bundle holds prompts, labels and a fingerprint of each stage.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol

from escnet_runtime.confusion import DEFINITION
from escnet_runtime.console import Advance
from escnet_runtime.dataset import LabelledImages
from escnet_runtime.errors import InputError
from escnet_runtime.golden import Golden, repeat_golden
from escnet_runtime.pipeline import Pipeline
from escnet_runtime.segmenter import Segmenter
from escnet_runtime.sketch import sketch_distance

from .evaluate import check_categories
from .traced import TracedCounts, trace

__all__ = [
    "METHOD",
    "GoldenFigures",
    "ParityRow",
    "Reference",
    "StageFigure",
    "golden_figures",
    "measure_parity",
]

METHOD: Final = (
    f"the bundle through the runtime, on the backend that is timed; {DEFINITION}; labels at the "
    "image's own size; pixel_agreement, prompt_flips and stages against float32 PyTorch of the "
    "same weights through the same pipeline; pixels and prompts of the whole bundle running "
    "freely; a stage is fed what PyTorch fed it, and its worst output counts; golden: the "
    "bundle's own golden image with the golden prompts, stages by their fingerprints (± 9 %)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFigure:
    """Worst relative L2 (‖got - want‖₂ / ‖want‖₂; infinite if not finite) and cosine of a stage."""

    relative_l2: float
    cosine: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenFigures:
    """The repeated golden run: one image, compared with float32 PyTorch's run in the bundle.

    ``prompt_flips`` of ``prompts`` are those that the bundle by itself would choose differently.
    ``stages`` are estimates of the relative L2, which include errors of earlier stages. ``failure``
    says why the run ended early; ``pixel_agreement`` is None then.
    """

    pixel_agreement: float | None
    prompt_flips: int
    prompts: int
    stages: Mapping[str, float]
    failure: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityRow:
    """Figures of a bundle on a backend.

    Attributes:
        model, precision: of the bundle.
        implementation: the backend's name, as in rows of ``escnet-bench latency``.
        backend: the same for people: library, version, device.
        dataset, images, categories: what the figures were measured on.
        reference: "torch", or None without PyTorch; all figures against it are None then.
        miou, reference_miou, miou_difference: of the bundle, of PyTorch, the first minus the
            second; None if no pixel is labelled.
        pixel_accuracy, reference_pixel_accuracy: share of labelled pixels that are right.
        pixel_agreement: share of all pixels with the label that PyTorch gives.
        prompt_flips, prompts: by block, the number of prompts that PyTorch chooses differently, and
            of all prompts.
        stages: by graph, on the first ``stage_images`` images.
        golden: the repeated golden run of the bundle.
    """

    model: str
    precision: str
    implementation: str
    backend: str
    dataset: str
    images: int
    categories: int
    reference: str | None
    miou: float | None
    reference_miou: float | None
    miou_difference: float | None
    pixel_accuracy: float | None
    reference_pixel_accuracy: float | None
    pixel_agreement: float | None
    prompt_flips: tuple[int, ...] | None
    prompts: tuple[int, ...] | None
    stages: Mapping[str, StageFigure] | None
    stage_images: int
    golden: GoldenFigures


class Reference(Protocol):
    """Float32 PyTorch with the bundle's weights."""

    @property
    def segmenter(self) -> Segmenter:
        """PyTorch behind the runtime's pipeline."""

    def comparing(self, wanted: bool) -> AbstractContextManager[None]:
        """If ``wanted``, the bundle also runs each graph that PyTorch runs inside the block."""

    def stages(self) -> Mapping[str, StageFigure]:
        """The worst figures so far, by graph."""


def measure_parity(
    segmenter: Segmenter,
    dataset: LabelledImages,
    *,
    name: str,
    reference: Reference | None = None,
    categories: Sequence[str] | None = None,
    limit: int | None = None,
    stage_images: int = 4,
    step: Advance,
) -> ParityRow:
    """Segment labelled images with a bundle, and with float32 PyTorch if there is one.

    Args:
        segmenter: of the bundle, on a backend.
        dataset: images with labels.
        name: name of the dataset in published results.
        reference: PyTorch with the same weights, if it is here.
        categories: what the model is asked for, in the order of the dataset's classes; by default
            these.
        limit: use only the first so many images; all by default.
        stage_images: number of images on which stages are compared, each at the cost of another
            image.
        step: called for each image.

    Raises:
        InputError: the categories do not fit the classes, or a file cannot be used.
    """
    asked = dataset.names if categories is None else tuple(categories)
    check_categories(dataset.names, asked, limit)
    if stage_images < 0:
        raise InputError(f"stage_images is {stage_images}, expected at least 0")
    manifest = segmenter.bundle.manifest
    golden = golden_figures(segmenter.pipeline, segmenter)
    vocabulary = segmenter.vocabulary(asked)
    counts = TracedCounts(len(dataset.names), manifest.model.blocks)
    if reference is not None:
        with reference.comparing(stage_images > 0):
            its_vocabulary = reference.segmenter.vocabulary(asked)
    for index, sample in enumerate(islice(iter(dataset), limit)):
        got, want = trace(segmenter, sample.image, vocabulary), None
        if reference is not None:
            with reference.comparing(index < stage_images):
                want = trace(reference.segmenter, sample.image, its_vocabulary)
        try:
            counts.add(got, want, sample.labels)
        except InputError as error:
            raise InputError(f"{sample.name}: {error}") from error
        step(sample.name)
    if not counts.images:
        raise InputError(f"{name} has no image; expected at least one")
    ours, theirs = counts.ours.scores(), counts.theirs.scores()
    both = None not in (ours.miou, theirs.miou)
    return ParityRow(
        model=manifest.model.name,
        precision=manifest.precision.value,
        implementation=segmenter.pipeline.backend.name,
        backend=segmenter.backend,
        dataset=name,
        images=counts.images,
        categories=len(asked),
        reference=None if reference is None else "torch",
        miou=ours.miou,
        reference_miou=theirs.miou,
        miou_difference=(ours.miou or 0.0) - (theirs.miou or 0.0) if both else None,
        pixel_accuracy=ours.pixel_accuracy,
        reference_pixel_accuracy=theirs.pixel_accuracy,
        pixel_agreement=None if reference is None else counts.equal / counts.pixels,
        prompt_flips=None if reference is None else tuple(counts.flips.tolist()),
        prompts=None if reference is None else tuple(counts.prompts.tolist()),
        stages=None if reference is None or not stage_images else reference.stages(),
        stage_images=0 if reference is None else min(stage_images, counts.images),
        golden=golden,
    )


def golden_figures(pipeline: Pipeline, segmenter: Segmenter) -> GoldenFigures:
    """Repeat the golden run of the segmenter's bundle on ``pipeline``.

    Raises:
        BundleError: the bundle's golden files cannot be used.
    """
    golden = Golden.load(segmenter.bundle)
    run = repeat_golden(pipeline, golden, segmenter.bundle.manifest)
    distances = {
        stage: max(sketch_distance(got[name], want) for name, want in outputs.items())
        for stage, outputs in golden.reference.stages.items()
        if (got := run.stages.get(stage)) is not None and got.keys() >= outputs.keys()
    }
    return GoldenFigures(
        pixel_agreement=run.agreement,
        prompt_flips=run.flips,
        prompts=run.prompts,
        stages=distances,
        failure=run.failure,
    )
