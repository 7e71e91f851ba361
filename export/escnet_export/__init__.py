"""ESC-Net from PyTorch to a bundle: split, export, type, check, measure, write."""

from .bundle import ExportReport, export_bundle
from .errors import ExportError, ParityError
from .report import Budget, ParityReport

__all__ = [
    "Budget",
    "ExportError",
    "ExportReport",
    "ParityError",
    "ParityReport",
    "export_bundle",
]
