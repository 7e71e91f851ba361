"""How ``tiny`` is made, as data: two phases of CLIP, SAM, and ESC-Net on top of them."""

from dataclasses import dataclass
from typing import Final

from escnet.train.categories import CategorySampling
from escnet.train.loss import LossWeights
from escnet.train.segmentation import Rates
from escnet.train.settings import LoopSettings

from .clip import ClipRates, CropPool

__all__ = ["TINY", "ClipPhase", "EscNetPhase", "Recipe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipPhase:
    """A part of CLIP's training; each goes on from the one before."""

    name: str
    pool: CropPool
    rates: ClipRates
    loop: LoopSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class EscNetPhase:
    """A part of ESC-Net's training; each goes on from the one before."""

    name: str
    rates: Rates
    categories: CategorySampling
    loss: LossWeights
    loop: LoopSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All stages. ``seed`` decides initial weights, data and their order."""

    seed: int
    clip: tuple[ClipPhase, ...]
    sam_rate: float
    sam: LoopSettings
    escnet: tuple[EscNetPhase, ...]


#: Measured on two AVX-512 cores; docs/tiny.md has the times and figures.
TINY: Final = Recipe(
    seed=0,
    clip=(
        ClipPhase(
            name="clip-64",
            pool=CropPool(side=64, scenes=30_000),
            rates=ClipRates(matrices=2e-2, rest=1e-3),
            loop=LoopSettings(
                steps=5000,
                batch=96,
                warmup=200,
                floor=0.1,
                precision="bf16",
                log_every=20,
                save_every=250,
                evaluate_every=1250,
            ),
        ),
        ClipPhase(
            name="clip-128",
            pool=CropPool(side=128, scenes=24_000),
            rates=ClipRates(matrices=1e-2, rest=5e-4),
            loop=LoopSettings(
                steps=1000,
                batch=32,
                warmup=50,
                precision="bf16",
                log_every=20,
                save_every=200,
                evaluate_every=500,
            ),
        ),
    ),
    sam_rate=1e-3,
    sam=LoopSettings(
        steps=400, batch=16, warmup=40, log_every=10, save_every=50, evaluate_every=200
    ),
    # The paper's rates (2e-6 and 2e-4) are for foundations trained on hundreds of millions of
    # pictures and a hundred thousand steps; these suit a small model and few steps. Few categories
    # an image make most of the training cheap; the second phase sees as many as evaluation does,
    # because what a mean over the categories looks like depends on how many are absent.
    escnet=(
        EscNetPhase(
            name="esc-net",
            rates=Rates(small=2e-4, large=1e-3, weight_decay=1e-4),
            categories=CategorySampling(per_image=16, hard=0.6, wide_every=16, wide=64),
            loss=LossWeights(correlation=0.3),
            loop=LoopSettings(
                steps=1600,
                batch=4,
                warmup=80,
                floor=0.1,
                log_every=10,
                save_every=100,
                evaluate_every=400,
            ),
        ),
        EscNetPhase(
            name="esc-net-wide",
            rates=Rates(small=2e-4, large=1e-3, weight_decay=1e-4),
            categories=CategorySampling(per_image=64, hard=0.6),
            loss=LossWeights(correlation=0.3),
            loop=LoopSettings(steps=160, batch=4, warmup=10, log_every=5, save_every=20),
        ),
    ),
)
