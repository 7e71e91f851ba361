"""ESC-Net in PyTorch: the model, its configurations, its weights."""

from .build import build_model
from .config import EscNetConfig
from .model import EscNet
from .presets import PRESETS, preset

__all__ = ["PRESETS", "EscNet", "EscNetConfig", "build_model", "preset"]
