"""The trained checkpoints that come with the package."""

from pathlib import Path
from typing import Final

from .state import WeightsError

__all__ = ["SHIPPED", "shipped_checkpoint"]

#: Presets whose trained weights ship. Beside each lies a ``.json`` that says how it was made.
SHIPPED: Final = ("tiny",)
_FOLDER: Final = Path(__file__).resolve().parent.parent / "checkpoints"


def shipped_checkpoint(preset: str) -> Path:
    """The checkpoint of a preset.

    Raises:
        WeightsError: none ships.
    """
    if preset not in SHIPPED:
        raise WeightsError(
            f"no trained weights of {preset!r} come with the package, only of "
            f"{', '.join(SHIPPED)}; give a checkpoint's path"
        )
    return _FOLDER / f"{preset}.safetensors"
