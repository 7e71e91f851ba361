"""A checkout of CAT-Seg (github.com/cvlab-kaist/CAT-Seg), whose own code is timed beside ours."""

from pathlib import Path
from typing import Final

from escnet_runtime.errors import InputError

__all__ = ["AGGREGATOR", "CLIP", "require_checkout"]

#: The modules that are loaded.
AGGREGATOR: Final = "cat_seg/modeling/transformer/model.py"
CLIP: Final = "cat_seg/third_party/model_vpt.py"


def require_checkout(folder: Path) -> None:
    """Refuse a folder that is no checkout of CAT-Seg.

    Raises:
        InputError: a file is missing; says which.
    """
    for name in (AGGREGATOR, CLIP):
        if not (folder / name).is_file():
            raise InputError(
                f"--cat-seg {folder}: there is no {name}; expected a checkout of CAT-Seg, "
                "github.com/cvlab-kaist/CAT-Seg"
            )
