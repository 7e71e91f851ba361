"""How ``tiny`` is made, as data: two phases of CLIP, SAM, and ESC-Net on top of them.

:data:`TINY` made the weights that ship, in minutes on a GPU; :data:`TWO_CORES` is for machines
without one; :data:`TINY_192` goes on from the former at a larger image, and does not ship.
"""

from dataclasses import dataclass, replace
from typing import Final

from escnet.train.augment import NO_AUGMENTATION, Augmentation
from escnet.train.categories import CategorySampling
from escnet.train.groups import Rates
from escnet.train.loss import LossWeights
from escnet.train.settings import LoopSettings

from .clip import ClipRates, CropPool

__all__ = ["RECIPES", "TINY", "TINY_192", "TWO_CORES", "ClipPhase", "EscNetPhase", "Recipe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipPhase:
    """A part of CLIP's training; each goes on from the one before."""

    name: str
    pool: CropPool
    rates: ClipRates
    loop: LoopSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class EscNetPhase:
    """A part of ESC-Net's training; each goes on from the one before.

    Attributes:
        sizes: px a side at which scenes are shown, each as often as it stands there. CLIP's
            positions, which are not trained, are resized to it, as between CLIP's own size and
            ESC-Net's in the paper.
        objects: fewest and most objects of a scene.
        drawn: px a side in which scenes are drawn, see :class:`.scenes.TrainingScenes`.
        augmentation: of those scenes.
    """

    name: str
    sizes: tuple[int, ...] = (128,)
    objects: tuple[int, int] = (2, 6)
    drawn: tuple[int, ...] = ()
    augmentation: Augmentation = NO_AUGMENTATION
    rates: Rates
    categories: CategorySampling
    loss: LossWeights
    loop: LoopSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All stages.

    Attributes:
        seed: decides initial weights, data and their order.
    """

    name: str
    seed: int
    clip: tuple[ClipPhase, ...]
    sam_rate: float
    sam: LoopSettings
    escnet: tuple[EscNetPhase, ...]


# The paper's rates (2e-6 and 2e-4) are for foundations trained on hundreds of millions of pictures
# and a hundred thousand steps; these suit a small model and few steps. Few categories an image make
# most of the training cheap; the second phase sees more, because what a mean over the categories
# looks like depends on how many are absent, and some of them not, so that few words work as well.

#: What made the weights that ship. Its first stage is for a GPU, where a step of so small a model
#: takes as long as starting its kernels, so that large batches are nearly free.
TINY: Final = Recipe(
    name="tiny",
    seed=0,
    clip=(
        ClipPhase(
            name="clip-64",
            pool=CropPool(side=64, scenes=30_000, crops=8),
            rates=ClipRates(matrices=4e-2, rest=2e-3),
            loop=LoopSettings(
                steps=3000,
                batch=1024,
                warmup=150,
                floor=0.1,
                precision="bf16",
                log_every=50,
                save_every=500,
            ),
        ),
        ClipPhase(
            name="clip-128",
            pool=CropPool(side=128, scenes=19_200, crops=1),
            rates=ClipRates(matrices=1e-2, rest=5e-4),
            loop=LoopSettings(
                steps=600, batch=32, warmup=30, precision="bf16", log_every=20, save_every=100
            ),
        ),
    ),
    sam_rate=1e-3,
    sam=LoopSettings(
        steps=1500, batch=16, warmup=60, log_every=20, save_every=100, evaluate_every=500
    ),
    escnet=(
        EscNetPhase(
            name="esc-net",
            rates=Rates(small=2e-4, large=1e-3, weight_decay=1e-4),
            categories=CategorySampling(per_image=16, hard=0.6, wide_every=16, wide=64),
            loss=LossWeights(correlation=0.3),
            loop=LoopSettings(
                steps=600, batch=4, warmup=80, floor=0.8, log_every=10, save_every=100
            ),
        ),
        EscNetPhase(
            name="esc-net-wide",
            rates=Rates(small=2e-4, large=1e-3, weight_decay=1e-4),
            categories=CategorySampling(per_image=32, hard=0.6, wide_every=4, wide=192),
            loss=LossWeights(correlation=0.3),
            loop=LoopSettings(steps=420, batch=4, warmup=20, log_every=5, save_every=20),
        ),
        EscNetPhase(
            name="esc-net-crowd",
            objects=(2, 10),
            rates=Rates(small=2e-4, large=1e-3, weight_decay=1e-4),
            categories=CategorySampling(per_image=32, hard=0.6, wide_every=4, wide=256),
            loss=LossWeights(correlation=0.3),
            loop=LoopSettings(steps=500, batch=16, warmup=25, log_every=5, save_every=100),
        ),
    ),
)

#: The same in about two hours on two AVX-512 cores: a sixth of CLIP's crops, and less of SAM.
TWO_CORES: Final = replace(
    TINY,
    name="two-cores",
    clip=(
        ClipPhase(
            name="clip-64",
            pool=CropPool(side=64, scenes=30_000, crops=4),
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
        TINY.clip[1],
    ),
    sam=replace(TINY.sam, steps=600),
    escnet=TINY.escnet[:2],
)

#: After that, at 192 px: objects of a crowd are few patches wide at 128 px, and the paper too
#: trains ESC-Net at a larger image than CLIP's own. Parts of scenes are shown as large as a sliding
#: window shows them.
TINY_192: Final = replace(
    TINY,
    name="tiny-192",
    escnet=(
        *TINY.escnet,
        EscNetPhase(
            name="esc-net-192",
            sizes=(192,),
            objects=(2, 10),
            drawn=(128, 128, 192, 256),
            augmentation=Augmentation(scale=(1.0, 5 / 3), flip=0.5, colour=0.0),
            rates=Rates(small=2e-4, large=1e-3, weight_decay=1e-4),
            categories=CategorySampling(per_image=32, hard=0.6, wide_every=8, wide=160),
            loss=LossWeights(correlation=0.3),
            loop=LoopSettings(
                steps=520, batch=8, warmup=20, precision="bf16", log_every=5, save_every=20
            ),
        ),
    ),
)

RECIPES: Final = {recipe.name: recipe for recipe in (TINY, TINY_192, TWO_CORES)}
