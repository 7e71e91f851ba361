"""The subjects of the checks: bundles, their Segmenters and vocabularies."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from escnet_runtime.segmenter import Segmenter
from escnet_runtime.vocabulary import Vocabulary

from ..subjects import category_names, load_model, made_up_images
from .plan import CheckPlan

__all__ = ["export", "open_segmenter", "ort_graphs", "words"]


def export(plan: CheckPlan, name: str, precision: str) -> Path:
    """Export a model's bundle unless it is there; with few checks, to save time."""
    from escnet_export import export_bundle
    from escnet_runtime.manifest import Precision

    folder = plan.bundle(name, precision)
    if not folder.exists():
        model, weights, trained = load_model(name)
        export_bundle(
            model,
            folder,
            precision=Precision(precision),
            weights=weights,
            trained=trained,
            images=made_up_images(plan.size, 1),
            allow_parity_failure=True,
            check_categories=(2,),
        )
    return folder


def open_segmenter(
    bundle: Path, plan: CheckPlan, backend: str | None = None, *, chunk: int | None = None
) -> Segmenter:
    """Open a bundle on the plan's backend, or on another one."""
    cache = Path(plan.bundles, "embeddings")
    return Segmenter(bundle, backend or plan.backend, cache=cache, chunk=chunk)


@contextmanager
def ort_graphs() -> Iterator[None]:
    """Inside the block, Segmenters are opened with ONNX Runtime's own CUDA graphs on."""
    name = "ESCNET_ORT_CUDA_GRAPHS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def words(segmenter: Segmenter, categories: int) -> Vocabulary:
    """A vocabulary of so many categories: first those of the model's world, then generated ones."""
    return segmenter.vocabulary(category_names(segmenter.bundle.manifest.model.name, categories))
