"""Which chunks to measure on a CPU: whole groups that the vocabulary fills and memory allows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from escnet_runtime.errors import InputError
from escnet_runtime.groups import category_chunks, whole_groups
from escnet_runtime.lanes import best_lanes, usable_cores
from escnet_runtime.manifest import Manifest
from escnet_runtime.vocabulary import MAX_CATEGORIES

from .profiles import chunk_buckets

__all__ = ["ChunkSizes", "chunk_bytes", "chunk_sizes"]

#: Categories of the vocabulary used for measuring: as many as ADE20K has.
_CATEGORIES: Final = 150
#: Chunks, in groups, that are compared if none is asked for.
_GROUPS: Final = (1, 2, 3, 4)
#: Memory that the largest graph needs inside for one category, as a multiple of the category's
#: state between graphs. Measured: 32 to 69, with tiny and vit-b-16 at fp32 in ONNX Runtime 1.32 and
#: OpenVINO 2026.4.
_INSIDE: Final = 72
#: A graph's inputs and its outputs are in memory at the same time.
_BETWEEN: Final = 2
_ITEM_BYTES: Final = 4  # narrower types are widened between graphs
#: Share of the free memory that a measurement may take by this estimate.
_SHARE: Final = 0.8


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkSizes:
    """The chunks to measure.

    Attributes:
        chunks: categories at a time, in whole groups, ascending.
        categories: number of categories in the vocabulary.
        left_out: default chunks that were dropped because they would not fit the memory.
        memory_bytes: free memory; None if not known.
    """

    chunks: tuple[int, ...]
    categories: int
    left_out: tuple[int, ...]
    memory_bytes: int | None


def chunk_sizes(
    manifest: Manifest,
    *,
    chunks: Sequence[int] | None = None,
    categories: int | None = None,
    available: int | None = None,
) -> ChunkSizes:
    """Chunks to measure, and with how many categories.

    Args:
        manifest: of the bundle.
        chunks: the chunks asked for, which are rounded up to whole groups; by default the first
            multiples of the group and the bundle's own chunk, as far as they fit the memory.
        categories: number of categories in the vocabulary; by default 150, or enough to fill the
            largest chunk.
        available: free memory in bytes; if None, not known, nothing is left out.

    Raises:
        InputError: a number is out of range, a chunk is never full, or memory does not suffice.
    """
    constants = manifest.constants
    if categories is not None and not 1 <= categories <= MAX_CATEGORIES:
        raise InputError(
            f"the vocabulary to measure with has {categories} categories, expected 1 to "
            f"{MAX_CATEGORIES:,}"
        )
    asked = chunks is not None
    if chunks is None:
        chunks = [constants.group * groups for groups in _GROUPS] + [constants.chunk]
    wanted = chunk_buckets(manifest, chunks)
    if categories is None:
        categories = min(max(_CATEGORIES, wanted[-1]), MAX_CATEGORIES)
    most = whole_groups(categories, constants.group)
    filled = tuple(chunk for chunk in wanted if chunk <= most)
    if asked and filled != wanted:
        raise InputError(
            f"a chunk of {wanted[-1]} is never full with {categories} categories; expected chunks "
            f"of at most {most}: make it smaller, or measure with more categories"
        )
    needed = {chunk: chunk_bytes(manifest, chunk, categories) for chunk in filled}
    fitting = tuple(
        chunk for chunk, size in needed.items() if available is None or size <= _SHARE * available
    )
    too_large = tuple(chunk for chunk in needed if chunk not in fitting)
    if not fitting or (asked and too_large):
        raise InputError(_does_not_fit(needed, too_large[0], fitting, available or 0))
    return ChunkSizes(
        chunks=fitting, categories=categories, left_out=too_large, memory_bytes=available
    )


def chunk_bytes(manifest: Manifest, chunk: int, categories: int) -> int:
    """A high estimate of the memory for an image at a chunk, without the weights.

    Each lane needs what one chunk takes inside a graph; all categories together need the tensors
    that pass from graph to graph.
    """
    row = sum(
        _ITEM_BYTES * math.prod(size for size in spec.shape if isinstance(size, int))
        for spec in manifest.stages["correlation"].outputs
    )
    cut = category_chunks(categories, chunk, manifest.constants.group)
    rows = sorted(where.stop - where.start for where in cut)
    together: int = sum(rows[-best_lanes(rows, usable_cores()) :])
    return row * (_INSIDE * together + _BETWEEN * categories)


def _does_not_fit(
    needed: dict[int, int], chunk: int, fitting: tuple[int, ...], available: int
) -> str:
    advice = f"Chunks of {fitting[-1]} fit" if fitting else "Measure with fewer categories"
    return (
        f"chunks of {chunk} categories need about {needed[chunk] / 1e6:,.0f} MB of memory; "
        f"expected at most {_SHARE:.0%} of the {available / 1e6:,.0f} MB that are free. {advice}, "
        "or end other processes that use the memory"
    )
