"""A few tokens at a time, where those of a chunk are more than a processor's cache holds.

An MLP makes four numbers of one. Those of 16 categories of ``vit-b-16`` are 19 MB, which go to
memory and come back three times; in pieces of a cache's size they stay. The chunk itself cannot be
smaller: what joins categories is summed in groups (:mod:`escnet.groups`).

In float32 graphs alone, which are for CPUs: a GPU would have more and smaller products. A token is
treated by itself either way, so the results are the same.
"""

from typing import Final

import torch
from torch import Tensor

from escnet_runtime.groups import GROUP

from .exporting import exporting

__all__ = ["equal_pieces", "tokens_at_once"]

#: What an MLP may make at a time of one group of categories. Measured with ONNX Runtime 1.32 on two
#: cores of an AMD EPYC: of 1.2 to 19 MB, this takes the least time with two threads for one chunk,
#: and next to the least with two chunks side by side.
_BYTES: Final = 4_800_000


def tokens_at_once(x: Tensor, hidden: int) -> int:
    """How many tokens of each category an MLP of ``hidden`` channels is given at a time.

    Args:
        x: [n, P, C], the tokens of a chunk.

    Returns:
        1 to P; P outside float32 graphs.
    """
    if not exporting() or x.dtype != torch.float32:
        return x.shape[1]
    return max(1, min(x.shape[1], _BYTES // (GROUP * hidden * x.dtype.itemsize)))


def equal_pieces(x: Tensor, hidden: int) -> int:
    """Into how many pieces of one size the tokens of ``x`` are cut; see :func:`tokens_at_once`."""
    tokens, most = x.shape[1], tokens_at_once(x, hidden)
    return next(count for count in range(-(-tokens // most), tokens + 1) if tokens % count == 0)
