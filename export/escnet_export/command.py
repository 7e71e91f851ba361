"""``escnet-export``: a checkpoint or a preset becomes a bundle."""

import argparse
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from escnet.build import build_model
from escnet.model import EscNet
from escnet.presets import DEFAULT_PRESET, PRESETS, preset
from escnet.weights import (
    SHIPPED,
    load_checkpoint,
    load_clip,
    load_sam,
    shipped_checkpoint,
)
from escnet_engines import COMPILERS, BuildError, Library, open_library
from escnet_engines.command import build_result, build_shown, build_summary
from escnet_engines.targets import choose_targets
from escnet_runtime.atomic import require_replaceable
from escnet_runtime.bundle import Bundle
from escnet_runtime.console import Console, command_parser, run_command
from escnet_runtime.engines import fingerprint_here
from escnet_runtime.errors import EscNetError, InputError
from escnet_runtime.images import ImageArray, find_images, load_image
from escnet_runtime.manifest import Precision
from escnet_runtime.vocabulary import MAX_CATEGORIES

from .bundle import ExportReport, export_bundle
from .check import CATEGORIES
from .parity import Budget

__all__ = ["main"]

_LOG: Final = logging.getLogger("escnet_export")
_PRECISIONS = (Precision.FP32, Precision.FP16, Precision.BF16)


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    return run_command(_parser(), _export, argv)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "escnet-export",
        "Split an ESC-Net into graphs, export them as typed ONNX, check them against float32 "
        "PyTorch, and write a bundle. Nothing is written unless the accuracy budget holds.",
    )
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
        "--seed",
        type=int,
        help="with --preset: seeded random weights, for tiny too, whose trained ones are the "
        "default",
    )
    parser.add_argument(
        "--precision", choices=[p.value for p in _PRECISIONS], default=Precision.FP16.value
    )
    parser.add_argument("--output", type=Path, required=True, metavar="BUNDLE")
    parser.add_argument(
        "--images", metavar="DIR", help="photos for measuring parity (default: built-in scenes)"
    )
    parser.add_argument(
        "--limit", type=int, default=8, metavar="N", help="photos to use at most (default: 8)"
    )
    budget = parser.add_argument_group("accuracy budget")
    budget.add_argument("--min-pixel-agreement", type=float, metavar="FRACTION")
    budget.add_argument("--max-stage-l2", type=float, metavar="X")
    budget.add_argument(
        "--allow-parity-failure",
        action="store_true",
        help="write the bundle even if the budget is missed; the bundle says so",
    )
    budget.add_argument(
        "--check-categories",
        type=int,
        nargs="+",
        default=list(CATEGORIES),
        metavar="N",
        help="numbers of categories at which each graph is compared with torch",
    )
    engines = parser.add_argument_group(
        "engines", "Built once the bundle is there; if that fails, it stays, without engines."
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
        help="GPUs to compile for (default: the one that is here)",
    )
    return parser


def _export(arguments: argparse.Namespace, console: Console) -> tuple[int, dict[str, Any]]:
    require_replaceable(arguments.output)
    libraries = _libraries(arguments)
    images = _images(arguments.images, arguments.limit)
    precision = Precision(arguments.precision)
    _check_numbers(arguments)
    default = Budget.default(precision)
    agreement, stage = arguments.min_pixel_agreement, arguments.max_stage_l2
    budget = Budget(
        pixel_agreement=default.pixel_agreement if agreement is None else agreement,
        stage_l2=default.stage_l2 if stage is None else stage,
    )
    model, weights, trained = _model(arguments)
    graphs = 4 + 4 * model.config.blocks
    with console.progress(f"export {model.config.name}", 2 * graphs + 10) as advance:
        report = export_bundle(
            model,
            arguments.output,
            precision=precision,
            weights=weights,
            trained=trained,
            images=images,
            budget=budget,
            allow_parity_failure=arguments.allow_parity_failure,
            check_categories=arguments.check_categories,
            step=advance,
        )
    console.print(_summary(report))
    builds, failure = _build(report, libraries, arguments.target or "auto", console)
    result = _result(report)
    if libraries:
        result["builds"] = builds
    if failure is None:
        return 0, result
    return 1, {**result, "error": {"type": type(failure).__name__, "message": str(failure)}}


def _libraries(arguments: argparse.Namespace) -> list[Library]:
    """The compilers asked for. What keeps them from building is better said before an export."""
    if arguments.target is not None and not arguments.backend:
        raise InputError("--target goes with --backend: it is what engines are compiled for")
    libraries = [open_library(backend) for backend in dict.fromkeys(arguments.backend)]
    for library in libraries:
        here = fingerprint_here(library.backend, library.version)
        choose_targets(library, arguments.target or "auto", here.targets)
    return libraries


def _build(
    report: ExportReport, libraries: Sequence[Library], target: str, console: Console
) -> tuple[list[dict[str, Any]], EscNetError | None]:
    """Compile the bundle that is there now: what was built, and what failed last."""
    builds: list[dict[str, Any]] = []
    failure: EscNetError | None = None
    for library in libraries:
        bundle = Bundle.open(report.bundle)
        try:
            built = build_shown(console, bundle, library, target=target)
        except BuildError as error:
            command = (
                f"escnet-build {shlex.quote(str(report.bundle))} --backend {library.backend} "
                f"--target {shlex.quote(target)}"
            )
            failure = type(error)(
                f"{error} The bundle {report.bundle} is whole, without engines for "
                f"{library.backend}; to build them again: {command}"
            )
            _LOG.error("%s", failure)
            continue
        console.print(build_summary(built))
        builds.append(build_result(bundle, built))
    return builds, failure


def _images(folder: str | None, limit: int) -> list[ImageArray] | None:
    if folder is None:
        return None
    if limit < 1:
        raise InputError(f"--limit is {limit}, expected at least 1")
    return [load_image(path) for path in find_images([folder])[:limit]]


def _check_numbers(arguments: argparse.Namespace) -> None:
    agreement, stage = arguments.min_pixel_agreement, arguments.max_stage_l2
    if agreement is not None and not 0.0 <= agreement <= 1.0:
        raise InputError(f"--min-pixel-agreement is {agreement}, expected a fraction from 0 to 1")
    if stage is not None and not stage >= 0.0:
        raise InputError(f"--max-stage-l2 is {stage}, expected a number of at least 0")
    for number in arguments.check_categories:
        if not 1 <= number <= MAX_CATEGORIES:
            raise InputError(f"--check-categories has {number}, expected 1 to {MAX_CATEGORIES:,}")


def _model(arguments: argparse.Namespace) -> tuple[EscNet, str, bool]:
    """The model, where its weights come from, and whether they are trained."""
    if arguments.checkpoint is not None:
        if arguments.clip or arguments.sam or arguments.seed is not None:
            raise InputError(
                "--clip, --sam and --seed go with --preset: a checkpoint has its own weights"
            )
        loaded = load_checkpoint(arguments.checkpoint)
        return loaded.model, loaded.weights, loaded.trained
    config = preset(arguments.preset or DEFAULT_PRESET)
    own = arguments.clip or arguments.sam or arguments.seed is not None
    if config.name in SHIPPED and not own:
        loaded = load_checkpoint(shipped_checkpoint(config.name))
        return loaded.model, loaded.weights, loaded.trained
    seed = arguments.seed or 0
    model = build_model(config, seed=seed)
    parts = [f"seeded random (seed {seed})"]
    if arguments.clip:
        load_clip(model, arguments.clip)
        parts.append(f"CLIP from {Path(arguments.clip).name}")
    if arguments.sam:
        load_sam(model, arguments.sam)
        parts.append(f"SAM from {arguments.sam.name}")
    return model, ", ".join(parts), False


def _summary(report: ExportReport) -> str:
    parity = report.parity
    verdict = "passed" if parity.passed else "MISSED, written on request"
    return (
        f"{report.bundle}: {len(report.checks)} graphs at {report.precision} in "
        f"{report.seconds:.0f} s\n"
        f"parity {verdict}: {parity.reason()}\n"
        f"prompts flipped: {parity.prompt_flips} of {parity.prompts}; pixels equal: "
        f"{parity.pixel_agreement:.2%} ({parity.near_ties:.2%} near-ties; without them "
        f"{parity.agreement_without_ties:.2%})"
    )


def _result(report: ExportReport) -> dict[str, Any]:
    parity = report.parity.to_dict()
    return {
        "bundle": str(report.bundle),
        "precision": report.precision.value,
        "seconds": round(report.seconds, 3),
        "parity": {**parity, "reason": report.parity.reason()},
        "checks": {
            name: {str(count): value for count, value in found.items()}
            for name, found in report.checks.items()
        },
    }
