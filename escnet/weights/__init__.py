"""Weights from files: CLIP's and SAM's own, and this project's checkpoints.

A file is read without ever running a Python pickle, checked whole, and only then copied into a
model: after an error the model is what it was before.
"""

from .checkpoint import LoadedCheckpoint, load_checkpoint, save_checkpoint
from .clip import load_clip
from .files import write_tensors
from .preset import load_preset
from .resize import resized, view_at
from .sam import load_sam
from .shipped import SHIPPED, shipped_checkpoint
from .state import WeightsError

__all__ = [
    "SHIPPED",
    "LoadedCheckpoint",
    "WeightsError",
    "load_checkpoint",
    "load_clip",
    "load_preset",
    "load_sam",
    "resized",
    "save_checkpoint",
    "shipped_checkpoint",
    "view_at",
    "write_tensors",
]
