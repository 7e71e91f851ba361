"""Whether the model is being traced for a file: a few forms are for graphs alone."""

from collections.abc import Callable

import torch

__all__ = ["exporting"]


def exporting() -> bool:
    """Is the model being traced for a file?

    Torch 2.6 cannot tell that from ``torch.compile``, whose graphs then take that form as well.
    """
    asked: Callable[[], bool] = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return asked()
