"""How long and how fast to train, as data."""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from escnet_runtime.errors import InputError

__all__ = ["LoopSettings", "MixedPrecision"]

MixedPrecision: TypeAlias = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """Settings of :func:`escnet.train.loop.train`.

    Attributes:
        steps: optimiser steps in all.
        batch: samples of one process in one forward pass.
        accumulate: forward passes of one step.
        warmup: steps in which the rates rise linearly to their full value; then they fall along
            half a cosine to ``floor`` times it.
        floor: see ``warmup``.
        clip_norm: the gradient's Euclidean norm is cut to this; 0 does not cut.
        precision: of matrix products and convolutions in the forward pass ("no": float32).
        workers: processes that prepare data; 0 prepares it in the training process.
        log_every: steps between two lines of metrics.
        save_every: steps between two saved states.
        evaluate_every: steps between two validations; 0 validates at the end alone.
    """

    steps: int
    batch: int
    accumulate: int = 1
    warmup: int = 0
    floor: float = 0.0
    clip_norm: float = 1.0
    precision: MixedPrecision = "no"
    workers: int = 0
    log_every: int = 20
    save_every: int = 200
    evaluate_every: int = 0

    def __post_init__(self) -> None:
        at_least_one = ("steps", "batch", "accumulate", "log_every", "save_every")
        for name in (*at_least_one, "warmup", "workers", "evaluate_every"):
            least = 1 if name in at_least_one else 0
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if not 0.0 <= self.floor <= 1.0:
            raise InputError(f"floor is {self.floor}; expected 0 to 1")
        if not 0.0 <= self.clip_norm < math.inf:
            raise InputError(f"clip_norm is {self.clip_norm}; expected 0 or more")
        if self.warmup >= self.steps:
            raise InputError(
                f"warmup is {self.warmup} of {self.steps} steps; expected fewer than the steps"
            )

    def rate_factor(self, step: int) -> float:
        """What the rates are multiplied with in a step, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / (self.steps - self.warmup)
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * done))
