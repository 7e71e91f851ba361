"""Errors of the export.

::

    EscNetError (escnet_runtime)
    ├── ExportError    a graph could not be exported, or does not compute what torch computes
    └── ParityError    the bundle's accuracy is outside its budget
"""

from escnet_runtime.errors import EscNetError

__all__ = ["ExportError", "ParityError"]


class ExportError(EscNetError):
    """A graph could not be exported, or does not compute what torch computes."""


class ParityError(EscNetError):
    """The exported graphs are outside the accuracy budget; nothing was written."""
