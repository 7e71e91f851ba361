"""Text embeddings of a data set's classes, encoded anew in each step as the text tower learns."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from escnet.clip import unit_norm
from escnet.model import EscNet
from escnet.tokenizer import clip_tokenizer
from escnet_runtime.vocabulary import TextPlan, plan_texts

__all__ = ["TextEncoding"]


class TextEncoding:
    """Embeddings of a data set's classes, by the runtime's own rules for templates and synonyms.

    Args:
        model: its text tower encodes, its configuration has the templates.
        names: the classes.
    """

    def __init__(self, model: EscNet, names: Sequence[str]) -> None:
        tokenizer = clip_tokenizer(model.config.clip)
        plans = [plan_texts([name], model.config.templates) for name in names]
        prompts = dict.fromkeys(prompt for plan in plans for prompt in plan.prompts)
        place = {prompt: index for index, prompt in enumerate(prompts)}
        self._members = [_members(plan, place) for plan in plans]
        self._tokens = torch.from_numpy(tokenizer.encode(list(prompts), cleaned=True))

    def encode(self, model: EscNet, classes: Tensor) -> Tensor:
        """Unit-norm embeddings, float32 [n, D], of classes int64 [n]."""
        members = [self._members[index] for index in classes.tolist()]
        used = np.unique(np.concatenate(members))
        tokens = self._tokens[used]
        # What lies behind the longest text is padding, zeros.
        tokens = tokens[:, : int(tokens.any(0).nonzero().max()) + 1]
        encoded = model.encode_text(tokens.to(classes.device))
        which = torch.from_numpy(np.searchsorted(used, np.concatenate(members)))
        owner = torch.repeat_interleave(torch.tensor([len(some) for some in members]))
        total = torch.zeros(len(members), encoded.shape[1], device=encoded.device)
        total = total.index_add(0, owner.to(encoded.device), encoded[which.to(encoded.device)])
        return unit_norm(total)


def _members(plan: TextPlan, place: Mapping[str, int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Numbers of the prompts of a single category."""
    return np.array([place[plan.prompts[member]] for member in plan.members])
