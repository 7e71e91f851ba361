"""What is varied, as data: a name, and what it changes against the base.

The base is the paper's form with this project's constants: the preset ``tiny`` as it ships.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from escnet.config import EscNetConfig
from escnet_runtime.errors import InputError

__all__ = ["BASE", "CORRELATION", "PARTS", "VARIANTS", "Variant", "changed", "variants_called"]

#: The name of CLIP's own correlation, which is not trained: argmax of the cosines, no ESC-Net.
CORRELATION: Final = "clip"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One row of the table.

    Attributes:
        name: on the command line, and of its folder.
        part: what it varies, one of :data:`PARTS`; "" for the base and for what is not ESC-Net.
        label: in the table.
        change: the fields that differ from the base's configuration, such as "sam.prompts".
        sam_weights: whether the SAM blocks start from the trained SAM, or from random numbers.
    """

    name: str
    part: str
    label: str
    change: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sam_weights: bool = True


#: Headings of the table's parts, and how the base reads in each.
PARTS: Final = {
    "SAM block": "pre-trained (base)",
    "Prompts": "points and masks (base)",
    "Blocks": "4 (base)",
    "Regions N_o": "5 (base)",
    "Temperature τ": "0.02 (base)",
    "Threshold α": "0.5 (base)",
}

BASE: Final = Variant(name="base", part="", label="base")

_PROMPTS: Final = {"points": "points alone", "masks": "masks alone", "boxes": "boxes"}

VARIANTS: Final = (
    Variant(name=CORRELATION, part="", label="CLIP's correlation alone, no ESC-Net"),
    BASE,
    Variant(name="without-sam", part="SAM block", label="none", change={"sam.in_blocks": False}),
    Variant(name="random-sam", part="SAM block", label="random weights", sam_weights=False),
    *(
        Variant(name=name, part="Prompts", label=label, change={"sam.prompts": name})
        for name, label in _PROMPTS.items()
    ),
    *(
        Variant(name=f"blocks-{count}", part="Blocks", label=f"{count}", change={"blocks": count})
        for count in (0, 1, 2, 3)
    ),
    *(
        Variant(
            name=f"regions-{count}",
            part="Regions N_o",
            label=f"{count}",
            change={"ppg.regions": count},
        )
        for count in (1, 3, 8)
    ),
    *(
        Variant(
            name=f"tau-{value}",
            part="Temperature τ",
            label=f"{value}",
            change={"ppg.temperature": value},
        )
        for value in (0.01, 0.04)
    ),
    *(
        Variant(
            name=f"alpha-{value}",
            part="Threshold α",
            label=f"{value}",
            change={"ppg.alpha": value},
        )
        for value in (0.25, 0.75)
    ),
)


def changed(config: EscNetConfig, change: Mapping[str, Any]) -> EscNetConfig:
    """``config`` with other values in some fields, such as {"ppg.alpha": 0.25, "blocks": 2}.

    Raises:
        InputError: the values do not fit.
    """
    for path, value in change.items():
        part, _, field = path.rpartition(".")
        if part:
            inner = dataclasses.replace(getattr(config, part), **{field: value})
            config = dataclasses.replace(config, **{part: inner})
        else:
            config = dataclasses.replace(config, **{field: value})
    return config


def variants_called(names: list[str] | None) -> tuple[Variant, ...]:
    """Those of the names, in the table's order; all of them by default.

    Raises:
        InputError: there is no such variant.
    """
    known = [variant.name for variant in VARIANTS]
    for name in names or []:
        if name not in known:
            raise InputError(f"no variant is called {name!r}; there are {', '.join(known)}")
    return tuple(variant for variant in VARIANTS if names is None or variant.name in names)
