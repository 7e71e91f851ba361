"""Errors of building engines.

::

    EscNetError (escnet_runtime)
    └── BuildError            a graph cannot be compiled; the message names the graph and the node
        └── BuildMemoryError  it does not fit the memory; the message says what to lower
"""

from escnet_runtime.errors import EscNetError

__all__ = ["BuildError", "BuildMemoryError"]


class BuildError(EscNetError):
    """A graph cannot be compiled."""


class BuildMemoryError(BuildError):
    """A graph, or compiling it, does not fit the memory."""
