"""The number of images in each release, to detect incomplete downloads."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from escnet_runtime.dataset import listed

from .layout import files_of

__all__ = ["RELEASES", "count_warnings", "unlabelled_warnings"]

#: Data set → split → released images with labels; VOC's training set also in its usual extension.
RELEASES: Final[Mapping[str, Mapping[str, tuple[int, ...]]]] = {
    "coco-stuff": {"train": (118_287,), "val": (5_000,)},
    "ade20k-150": {"train": (20_210,), "val": (2_000,)},
    "ade20k-847": {"train": (25_574,), "val": (2_000,)},
    "pascal-context-59": {"train": (4_998,), "val": (5_105,)},
    "pascal-context-459": {"train": (4_998,), "val": (5_105,)},
    "pascal-voc-20": {"train": (1_464, 10_582), "val": (1_449,)},
    "pascal-voc-20b": {"train": (1_464, 10_582), "val": (1_449,)},
}


def count_warnings(dataset: str, split: str, found: int) -> tuple[str, ...]:
    """A warning if a split has another number of images with labels than its release."""
    expected = RELEASES[dataset][split]
    if found in expected:
        return ()
    shown = " or ".join(f"{count:,}" for count in expected)
    what = "is the download complete" if found < max(expected) else "is it another release"
    return (
        f"{dataset} {split} has {found:,} images with labels here and {shown} as released: {what}? "
        "Figures on other images cannot be compared with published ones",
    )


def unlabelled_warnings(images: Path, stems: Collection[str]) -> tuple[str, ...]:
    """A warning if ``images`` holds .jpg files that are not among ``stems``, which have labels."""
    found = {path.stem for path in files_of(images, "*.jpg")}
    lonely = sorted(found - set(stems))
    if not lonely:
        return ()
    return (f"{len(lonely):,} images have no label map and are left out: {listed(lonely)}",)
