"""Arithmetic that is float32 whatever is around it: mixed precision, or TF32 on a GPU."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

__all__ = ["composed", "product", "whole_float32"]


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in float32, under autocast too.

    Scores decide prompts, and sums over categories grow with their number: neither survives 8 or
    11 bits of mantissa.
    """
    with _no_autocast(a.device.type):
        return a.float() @ b.float()


def composed(equation: str, *parts: Tensor) -> Tensor:
    """``torch.einsum`` of weights in float32, under autocast too.

    What is composed of weights is a weight: rounded, it would be another model's.
    """
    with _no_autocast(parts[0].device.type):
        result: Tensor = torch.einsum(equation, *(part.float() for part in parts))
        return result


def _no_autocast(kind: str) -> AbstractContextManager[object]:
    # Asked first, so that nothing of this is traced by an export, which never runs under autocast.
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


@contextmanager
def whole_float32() -> Iterator[None]:
    """Within, float32 means float32 on a GPU too, in all threads; also a decorator.

    PyTorch gives convolutions the 10 bits of mantissa of TF32 unless it is told not to.
    """
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = False
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
