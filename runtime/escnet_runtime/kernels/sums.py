"""Launching ``escnet_accumulate`` and ``escnet_group_weights``."""

import ctypes

from escnet_runtime.errors import InputError
from escnet_runtime.groups import whole_groups

from .launch import THREADS, Launch, blocks

__all__ = ["accumulate_launch", "group_weights_launch"]

_MOST_CATEGORIES = 1 << 24  # float32 holds every whole number up to here


def accumulate_launch(
    parts: int,
    sums: int,
    shape: tuple[int, int],
    *,
    group: int,
    first_category: int,
    start: bool,
    active: int = 0,
) -> Launch:
    """Add a chunk's sums of groups to the running sum, as ``GroupSums.add`` and bit for bit.

    Args:
        parts: address of contiguous float32 [g, elements], the sums of g groups.
        sums: address of contiguous float32 [elements]; not within ``parts``.
        shape: (g, elements).
        group: categories a group.
        first_category: the number of the chunk's first category.
        start: True for the first chunk; what ``sums`` held before is not read then.
        active: address of one int32, the categories in use of all chunks together; 0 (no address)
            if all are. It is read when the kernel runs. A group with none of them is not added
            and not read; a first chunk without any leaves zeros.

    Raises InputError for what the kernel does not take.
    """
    groups, elements = shape
    if min(shape) < 1 or max(shape) >= 1 << 31:
        raise InputError(
            f"got sums {list(shape)}; expected [groups, elements], each from 1 to 2147483647"
        )
    most = first_category + groups * group
    if group < 1 or first_category < 0 or first_category % group or most > _MOST_CATEGORIES:
        raise InputError(
            f"got {groups} groups of {group} categories from category {first_category} on; "
            f"expected whole groups, and at most {_MOST_CATEGORIES} categories"
        )
    integers = (groups, group, first_category, start, elements)
    return Launch(
        kernel="escnet_accumulate",
        grid=(blocks(elements), 1, 1),
        block=(THREADS, 1, 1),
        arguments=(
            *map(ctypes.c_void_p, (parts, active, sums)),
            *map(ctypes.c_int, integers),
        ),
    )


def group_weights_launch(
    weights: int,
    *,
    categories: int,
    group: int,
    active: int = 0,
    parts: tuple[int, int] | None = None,
) -> Launch:
    """Write the weights of a bucket, as ``group_weights`` of all its categories and bit for bit.

    Args:
        weights: address of contiguous float32 [g, group], whole groups for ``categories``. Those
            of a chunk that begins at a group are the rows from there on.
        categories: the most that can be in use, the bucket.
        group: categories a group.
        active: address of one int32, the categories in use; 0 (no address) if all are. It is read
            when the kernel runs.
        parts: where ``weights`` is not contiguous: so many categories are, and floats from where
            they begin to where the next ones do.

    Raises InputError for what the kernel does not take.
    """
    if categories < 1 or group < 1 or whole_groups(categories, group) > _MOST_CATEGORIES:
        raise InputError(
            f"got {categories} categories in groups of {group}; expected at least 1 of each, and "
            f"at most {_MOST_CATEGORIES} in whole groups"
        )
    rows = whole_groups(categories, group)
    together, step = parts or (rows, 0)
    if together < 1 or not 0 <= step < 1 << 31:
        raise InputError(
            f"got {together} weights together, the next ones {step} floats further; expected at "
            "least one, and less than 2147483648 floats"
        )
    return Launch(
        kernel="escnet_group_weights",
        grid=(blocks(rows), 1, 1),
        block=(THREADS, 1, 1),
        arguments=(
            *map(ctypes.c_void_p, (weights, active)),
            *map(ctypes.c_int, (categories, rows, together, step)),
        ),
    )
