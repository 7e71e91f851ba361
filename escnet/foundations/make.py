"""``make tiny``: from seeds to the checkpoint that ships, in one resumable run.

A folder a stage (``clip-64``, ``clip-128``, ``sam``, ``esc-net``), each as the training loop leaves
it, and ``tiny.safetensors`` with ``tiny.json`` (provenance) at the end. Run again, it goes on where
it stopped; a finished stage is not repeated.
"""

import dataclasses
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from escnet.build import build_clip, build_model
from escnet.config import EscNetConfig
from escnet.model import EscNet
from escnet.presets import preset
from escnet.train.data import TrainingSample
from escnet.train.loop import LAST, train
from escnet.train.segmentation import SegmentationTask
from escnet.train.settings import LoopSettings
from escnet.train.task import Task
from escnet.train.validate import validation
from escnet.weights import load_clip, load_sam, save_checkpoint
from escnet.world import ShapesDataset, dataset
from escnet_runtime.atomic import atomic_file
from escnet_runtime.console import Console

from .clip import ClipTask
from .recipe import ClipPhase, Recipe
from .sam import SamTask, build_sam

__all__ = ["make_tiny"]

CHECKPOINT: Final = "tiny.safetensors"
PROVENANCE: Final = "tiny.json"
#: Scenes that the run itself validates on; the figures that are published are escnet-eval's.
_VALIDATION: Final = "shapes:heldout:900"
_VALIDATION_SCENES: Final = 60
