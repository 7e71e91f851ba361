"""The options of ``escnet-export``."""

import argparse
from pathlib import Path
from typing import Final

from escnet.presets import DEFAULT_PRESET, PRESETS
from escnet_engines import COMPILERS
from escnet_runtime.console import command_parser
from escnet_runtime.manifest import Precision

from .calibrate import Calibration
from .check import CATEGORIES
from .report import Budget

__all__ = ["export_parser"]

_MIOU_LOSS: Final = Budget.default(Precision.FP32).miou_loss


def export_parser() -> argparse.ArgumentParser:
    """The parser of the command, with all of its options."""
    parser = command_parser(
        "escnet-export",
        "Split an ESC-Net into graphs, export them as typed ONNX, check them against float32 "
        "PyTorch, and write a bundle. Nothing is written unless the accuracy budget holds.",
    )
    _add_model(parser)
    _add_precision(parser)
    _add_images(parser)
    _add_budget(parser)
    _add_engines(parser)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", type=Path, metavar="FILE", help="an escnet checkpoint")
    source.add_argument(
        "--preset", choices=list(PRESETS), help=f"a configuration (default: {DEFAULT_PRESET})"
    )
    parser.add_argument(
        "--clip", metavar="TAG|FILE", help="with --preset: CLIP weights, an open_clip tag or a file"
    )
    parser.add_argument(
        "--sam", type=Path, metavar="FILE", help="with --preset: a SAM checkpoint for the blocks"
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="PX",
        help="side of the image that the model sees, instead of the checkpoint's or the preset's: "
        "larger for small objects, smaller for speed; CLIP's position embeddings are resized",
    )
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="with --preset: random weights from this seed, also for tiny in place of its trained "
        "ones",
    )


def _add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=[p.value for p in Precision],
        default=Precision.FP16.value,
        help=f"type of weights and arithmetic in the graphs (default: {Precision.FP16})",
    )
    parser.add_argument(
        "--image-encoder",
        choices=[p.value for p in Precision],
        metavar="PRECISION",
        help="precision of the image encoder, if it differs from the rest",
    )
    quantised = parser.add_argument_group("int8 and fp8")
    quantised.add_argument(
        "--rest",
        choices=[Precision.FP16.value, Precision.FP32.value],
        help="type of everything that is not quantised: fp16, for GPUs, or fp32, which is faster "
        "on a CPU (default: fp16)",
    )
    quantised.add_argument(
        "--calibration",
        choices=[method.value for method in Calibration],
        help="how the range of a tensor is derived from its values on the images (default: "
        "percentile, the 99.99th, for int8; largest for fp8)",
    )


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="BUNDLE",
        help="folder to write the bundle to; a bundle that is there is replaced",
    )
    parser.add_argument(
        "--images",
        metavar="DIR|DATASET",
        help="images to measure the budget on and to calibrate int8 and fp8 with: a folder of "
        "photos, or a labelled dataset (a folder or shapes:heldout), whose mIoU then counts too "
        "(default: built-in scenes)",
    )
    parser.add_argument(
        "--limit", type=int, default=8, metavar="N", help="images to use at most (default: 8)"
    )


def _add_budget(parser: argparse.ArgumentParser) -> None:
    budget = parser.add_argument_group(
        "accuracy budget",
        "If the precision costs more than the budget, blocks are raised to a higher precision, the "
        "most damaging first, until it holds; each is reported with its reason and its cost. An "
        "option given here counts for trained and untrained weights alike.",
    )
    budget.add_argument(
        "--min-pixel-agreement",
        type=float,
        metavar="FRACTION",
        help="smallest share of pixels with the same label as in float32 PyTorch (default: depends "
        "on the precision, for trained weights only)",
    )
    budget.add_argument(
        "--max-stage-l2",
        type=float,
        metavar="X",
        help="largest relative L2 of a stage (default: depends on the precision, for untrained "
        "weights only)",
    )
    budget.add_argument(
        "--max-prompt-flips",
        type=float,
        metavar="FRACTION",
        help="largest share of prompts that may differ from float32 PyTorch's (default: no limit)",
    )
    budget.add_argument(
        "--max-miou-loss",
        type=float,
        metavar="FRACTION",
        help="largest loss of mIoU against float32 PyTorch, where --images has labels (default: "
        f"{_MIOU_LOSS})",
    )
    budget.add_argument(
        "--no-raise",
        action="store_true",
        help="raise no block: if the budget does not hold, the export fails",
    )
    budget.add_argument(
        "--allow-parity-failure",
        action="store_true",
        help="write the bundle even if the budget is missed; the bundle records it",
    )
    budget.add_argument(
        "--check-categories",
        type=int,
        nargs="+",
        default=list(CATEGORIES),
        metavar="N",
        help="numbers of categories at which each graph is compared with torch (default: "
        f"{' '.join(map(str, CATEGORIES))})",
    )


def _add_engines(parser: argparse.ArgumentParser) -> None:
    engines = parser.add_argument_group(
        "engines",
        "Built after the bundle was written; if that fails, the bundle stays, without engines.",
    )
    engines.add_argument(
        "--backend",
        nargs="+",
        choices=COMPILERS,
        default=[],
        help="also compile the graphs, as escnet-build does",
    )
    engines.add_argument(
        "--target",
        metavar="auto|sm_86,...",
        help="GPUs to compile for (default: the one in this machine)",
    )
