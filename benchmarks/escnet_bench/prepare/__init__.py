"""From data sets as they are distributed to dataset folders: ``escnet-prepare``."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from .ade20k import plan_ade20k_150
from .ade20k_full import plan_ade20k_847
from .coco_stuff import plan_coco_stuff
from .pascal_context import plan_context_59, plan_context_459
from .pascal_voc import plan_voc_20, plan_voc_20b
from .plan import Pair, Plan
from .write import Written, require_free, write_dataset, write_samples

__all__ = [
    "PREPARATIONS",
    "Pair",
    "Plan",
    "Written",
    "require_free",
    "write_dataset",
    "write_samples",
]

#: Name → (folder, split "train" or "val", file of class names) → what is there.
PREPARATIONS: Final[Mapping[str, Callable[[Path, str, Path | None], Plan]]] = {
    "coco-stuff": plan_coco_stuff,
    "ade20k-150": plan_ade20k_150,
    "ade20k-847": plan_ade20k_847,
    "pascal-context-59": plan_context_59,
    "pascal-context-459": plan_context_459,
    "pascal-voc-20": plan_voc_20,
    "pascal-voc-20b": plan_voc_20b,
}
