"""What is checked: bundles, what opens them, words in their text encoder."""

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
    """Export a model's bundle, unless it is there; gated at few categories, to save time."""
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
    """On the plan's backend, or another."""
    cache = Path(plan.bundles, "embeddings")
    return Segmenter(bundle, backend or plan.backend, cache=cache, chunk=chunk)


@contextmanager
def ort_graphs() -> Iterator[None]:
    """Segmenters that are opened within have ONNX Runtime record CUDA graphs of its own."""
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
    """So many categories, encoded: of the model's world first, then generated ones."""
    return segmenter.vocabulary(category_names(segmenter.bundle.manifest.model.name, categories))
