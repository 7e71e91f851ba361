"""``parity.json`` and ``parity.html``: how exact an export is, for programs and for people."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from escnet_runtime.preprocess import Preprocessing
from escnet_runtime.strict_json import plain_json

from .page import parity_page
from .page_picture import ParityPicture
from .parity import Outcome, Sample, label_map
from .texts import Texts

__all__ = ["PARITY_FILES", "write_parity"]

PARITY_FILES: Final = ("parity.json", "parity.html")
#: Images shown in parity.html.
_PICTURES: Final = 4


def write_parity(
    folder: Path,
    report: dict[str, Any],
    samples: Sequence[Sample],
    outcomes: Sequence[Outcome],
    texts: Texts,
    spec: Preprocessing,
) -> None:
    """Write both files.

    Args:
        folder: of the bundle.
        report: see :func:`escnet_export.page.parity_page`.
        samples: images through float32 torch; the first ones are shown.
        outcomes: the same images through the typed graphs.
        texts: of the images' categories.
        spec: how images were prepared.
    """
    text = json.dumps(plain_json(report), indent=2, allow_nan=False) + "\n"
    (folder / PARITY_FILES[0]).write_text(text, encoding="utf-8")
    page = parity_page(report, _pictures(samples, outcomes, texts, spec))
    (folder / PARITY_FILES[1]).write_text(page, encoding="utf-8")


def _pictures(
    samples: Sequence[Sample], outcomes: Sequence[Outcome], texts: Texts, spec: Preprocessing
) -> list[ParityPicture]:
    names = tuple(texts.plan.names[label] for label in texts.plan.label_of)
    pairs = zip(samples[:_PICTURES], outcomes, strict=False)
    return [_picture(sample, outcome, spec, names) for sample, outcome in pairs]


def _picture(
    sample: Sample, outcome: Outcome, spec: Preprocessing, names: tuple[str, ...]
) -> ParityPicture:
    want = sample.outcome
    return ParityPicture(
        image=sample.image,
        reference_labels=label_map(want.logits, spec.size, spec.size),
        typed_labels=label_map(outcome.logits, spec.size, spec.size),
        names=names,
        grid=want.prompts[0].regions.shape[1:],
        reference_prompts=want.prompts,
        typed_prompts=outcome.prompts,
    )
