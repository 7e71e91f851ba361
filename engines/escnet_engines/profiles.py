"""Sizes of the dynamic axes that engines are built for, from a bundle's constants."""

from collections.abc import Sequence

from escnet_runtime.engine_record import AxisRange, Profile
from escnet_runtime.errors import InputError
from escnet_runtime.groups import whole_groups
from escnet_runtime.manifest import Manifest, Stage
from escnet_runtime.text_embedding import TEXT_BATCH
from escnet_runtime.vocabulary import MAX_CATEGORIES

from .errors import BuildError

__all__ = ["chunk_buckets", "stage_profiles"]

#: Length of a text, in tokens, that the text encoder is tuned for: a template and a short name.
_USUAL_TOKENS = 16


def chunk_buckets(manifest: Manifest, chunks: Sequence[int] | None) -> tuple[int, ...]:
    """Chunks that engines are tuned for: ascending, in whole groups.

    Args:
        manifest: of the bundle.
        chunks: the chunks asked for; by default the bundle's own.

    Raises:
        InputError: a chunk is out of range.
    """
    constants = manifest.constants
    wanted = [constants.chunk] if chunks is None else chunks
    for chunk in wanted:
        if not 1 <= chunk <= MAX_CATEGORIES:
            raise InputError(f"a chunk is {chunk} categories, expected 1 to {MAX_CATEGORIES:,}")
    if not wanted:
        raise InputError("there is no chunk to build engines for; expected at least one")
    return tuple(sorted({whole_groups(chunk, constants.group) for chunk in wanted}))


def stage_profiles(
    name: str, stage: Stage, manifest: Manifest, chunks: Sequence[int]
) -> tuple[Profile, ...]:
    """Profiles of a graph: for each chunk one, which covers up to that many categories.

    Equal profiles are given once. A graph without dynamic axes has none.

    Raises:
        BuildError: an axis is not one of the bundle format.
    """
    axes = [axis for spec in stage.inputs for axis in spec.shape if isinstance(axis, str)]
    group = manifest.constants.group
    profiles: list[Profile] = []
    for chunk in chunks:
        known = {
            "b": _up_to(1),
            "n": _up_to(chunk),
            "g": _up_to(chunk // group),
            "t": _up_to(TEXT_BATCH),
            "l": _tokens(manifest.tokenizer.context_length),
        }
        unknown = set(axes) - known.keys()
        if unknown:
            raise BuildError(
                f"graph {name!r} has the dynamic axis {', '.join(sorted(unknown))}; expected some "
                f"of {', '.join(known)}"
            )
        profile = {axis: known[axis] for axis in dict.fromkeys(axes)}
        if profile and profile not in profiles:
            profiles.append(profile)
    return tuple(profiles)


def _up_to(most: int) -> AxisRange:
    return AxisRange(least=1, tuned=most, most=most)


def _tokens(most: int) -> AxisRange:
    return AxisRange(least=1, tuned=min(_USUAL_TOKENS, most), most=most)
