"""Stages of an image, added up by kind."""

from collections.abc import Mapping

__all__ = ["by_kind"]


def by_kind(stages: Mapping[str, float]) -> dict[str, float]:
    """ "esc0_sam", "esc1_sam", … add up to "sam"; others keep their names."""
    found: dict[str, float] = {}
    for stage, spent in stages.items():
        kind = stage.partition("_")[2] if stage.startswith("esc") else stage
        found[kind] = found.get(kind, 0.0) + spent
    return found
