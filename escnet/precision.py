"""Arithmetic that stays in float32 while the rest of a forward pass runs in mixed precision."""

import torch
from torch import Tensor

__all__ = ["product"]


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in float32, under autocast too.

    Scores decide prompts, and sums over categories grow with their number: neither survives 8 or
    11 bits of mantissa.
    """
    a, b = a.float(), b.float()
    kind = a.device.type
    # Asked first, so that nothing of this is traced by an export, which never runs under autocast.
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return a @ b
    with torch.autocast(kind, enabled=False):
        return a @ b
