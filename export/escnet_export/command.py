"""``escnet-export``: a checkpoint or a preset becomes a bundle."""

import argparse
import logging
import math
import shlex
from collections.abc import Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from escnet.presets import DEFAULT_PRESET, preset
from escnet.weights import LoadedCheckpoint, load_checkpoint, load_preset, resized
from escnet_engines import BuildError, Library, open_library
from escnet_engines.command import build_result, build_shown, build_summary
from escnet_engines.targets import choose_targets, require_arithmetic
from escnet_runtime.bundle import Bundle
from escnet_runtime.console import Console, run_command
from escnet_runtime.dataset import CLASSES, IMAGES, LABELS
from escnet_runtime.engines import ENGINES_FOLDER, fingerprint_here
from escnet_runtime.errors import EscNetError, InputError
from escnet_runtime.images import ImageArray, find_images, load_image
from escnet_runtime.labelled import SHAPES, open_labelled
from escnet_runtime.manifest import Precision
from escnet_runtime.replaceable import require_replaceable
from escnet_runtime.vocabulary import MAX_CATEGORIES

from .bundle import ExportReport, export_bundle
from .calibrate import Calibration
from .options import export_parser
from .plan import QUANTISED
from .ranges import worst_first
from .report import Budget, Gate
from .scenes import SceneSet, labelled_scenes

__all__ = ["main"]

_LOG: Final = logging.getLogger("escnet_export")
_BOUND_OF: Final[dict[Gate, str]] = {"pixels": "pixel_agreement", "stages": "stage_l2"}
#: What a dataset folder contains, unlike a folder of photos.
_OF_A_DATASET: Final = (IMAGES, LABELS, CLASSES)
_NEAR_SHOWN: Final = 3  # blocks
_MOST_SEED: Final = 2**63 - 1


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    return run_command(export_parser(), _export, argv)


def _export(arguments: argparse.Namespace, console: Console) -> tuple[int, dict[str, Any]]:
    require_replaceable(arguments.output)
    precision = Precision(arguments.precision)
    encoder = None if arguments.image_encoder is None else Precision(arguments.image_encoder)
    _check_quantised(arguments, {precision, encoder})
    libraries = _libraries(arguments, {precision, encoder or precision})
    _check_numbers(arguments)
    images, scenes = _images(arguments.images, arguments.limit)
    if arguments.max_miou_loss is not None and (scenes is None or not scenes.labels):
        raise InputError(
            "--max-miou-loss goes with labelled images, got none: give --images a dataset folder "
            f"({', '.join(_OF_A_DATASET)}) or {SHAPES}heldout"
        )
    budget = _budget(arguments, Budget.default(precision, encoder))
    loaded = _loaded(arguments)
    config = loaded.model.config
    graphs = 4 + 4 * config.blocks
    compiled = _compiled(arguments.output)
    with console.progress(f"export {config.name}", 3 * graphs + 10) as advance:
        report = export_bundle(
            loaded.model,
            arguments.output,
            precision=precision,
            weights=loaded.weights,
            trained=loaded.trained,
            images=images,
            scenes=scenes,
            budget=budget,
            image_encoder=encoder,
            rest=Precision(arguments.rest or Precision.FP16),
            calibration=arguments.calibration and Calibration(arguments.calibration),
            raise_blocks=not arguments.no_raise,
            allow_parity_failure=arguments.allow_parity_failure,
            check_categories=arguments.check_categories,
            step=advance,
        )
    console.print(_summary(report))
    builds, failure = _build(report, libraries, arguments.target or "auto", console)
    if gone := sorted(compiled - _compiled(arguments.output)):
        _LOG.warning(
            "the bundle that was replaced had output of escnet-build, which is gone with it: %s; "
            "run escnet-build again where the bundle is used",
            ", ".join(gone),
        )
    result = _result(report)
    if libraries:
        result["builds"] = builds
    if failure is None:
        return 0, result
    return 1, {**result, "error": {"type": type(failure).__name__, "message": str(failure)}}


def _compiled(bundle: Path) -> set[str]:
    """Names of what escnet-build has added to a bundle: folders of engines, measured chunks."""
    try:
        return {entry.name for entry in (bundle / ENGINES_FOLDER).iterdir()}
    except OSError:
        return set()


def _check_quantised(arguments: argparse.Namespace, precisions: Set[Precision | None]) -> None:
    """Refuse options of quantisation where nothing is quantised."""
    for option in ("rest", "calibration"):
        if getattr(arguments, option) is not None and not precisions & QUANTISED:
            raise InputError(
                f"--{option} goes with --precision int8 or fp8, or with such an --image-encoder; "
                "nothing is quantised"
            )


def _libraries(arguments: argparse.Namespace, precisions: Set[Precision]) -> list[Library]:
    """The compilers asked for; checked before the export, so that it is not made in vain."""
    if arguments.target is not None and not arguments.backend:
        raise InputError("--target goes with --backend: it is what engines are compiled for")
    libraries = [open_library(backend) for backend in dict.fromkeys(arguments.backend)]
    for library in libraries:
        here = fingerprint_here(library.backend, library.version)
        targets = choose_targets(library, arguments.target or "auto", here.targets)
        require_arithmetic(targets, sorted(precisions))
    return libraries


def _build(
    report: ExportReport, libraries: Sequence[Library], target: str, console: Console
) -> tuple[list[dict[str, Any]], EscNetError | None]:
    """Compile the exported bundle; returns the builds and the last failure, if any."""
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


def _budget(arguments: argparse.Namespace, default: Budget) -> Budget:
    """The default budget with the user's numbers, which count for any weights."""
    given = {
        "pixel_agreement": arguments.min_pixel_agreement,
        "stage_l2": arguments.max_stage_l2,
        "prompt_flips": arguments.max_prompt_flips,
        "miou_loss": arguments.max_miou_loss,
    }
    said = {name: value for name, value in given.items() if value is not None}
    asked = tuple(gate for gate, name in _BOUND_OF.items() if name in said)
    return replace(default, **said, asked=asked)


def _images(where: str | None, limit: int) -> tuple[list[ImageArray] | None, SceneSet | None]:
    """Photos, or labelled images with their own categories; both None for the built-in scenes."""
    if limit < 1:
        raise InputError(f"--limit is {limit}, expected at least 1")
    if where is None:
        return None, None
    if where.startswith(SHAPES) or all((Path(where) / name).exists() for name in _OF_A_DATASET):
        return None, labelled_scenes(open_labelled(where), limit)
    return [load_image(path) for path in find_images([where])[:limit]], None


def _check_numbers(arguments: argparse.Namespace) -> None:
    stage = arguments.max_stage_l2
    for option in ("min_pixel_agreement", "max_prompt_flips", "max_miou_loss"):
        value = getattr(arguments, option)
        if value is not None and not 0.0 <= value <= 1.0:
            name = f"--{option.replace('_', '-')}"
            raise InputError(f"{name} is {value}, expected a fraction from 0 to 1")
    if stage is not None and not 0.0 <= stage < math.inf:
        raise InputError(f"--max-stage-l2 is {stage}, expected a finite number of at least 0")
    if arguments.seed is not None and not 0 <= arguments.seed <= _MOST_SEED:
        raise InputError(f"--seed is {arguments.seed}, expected 0 to {_MOST_SEED:,}")
    for number in arguments.check_categories:
        if not 1 <= number <= MAX_CATEGORIES:
            raise InputError(f"--check-categories has {number}, expected 1 to {MAX_CATEGORIES:,}")


def _loaded(arguments: argparse.Namespace) -> LoadedCheckpoint:
    """The model that was asked for, with a description of its weights."""
    size: int | None = arguments.image_size
    if arguments.checkpoint is not None:
        # An empty string, as of an unset shell variable, counts as given.
        if (arguments.clip, arguments.sam, arguments.seed) != (None, None, None):
            raise InputError(
                "--clip, --sam and --seed go with --preset: a checkpoint has its own weights"
            )
        loaded = load_checkpoint(arguments.checkpoint)
        return loaded if size is None else resized(loaded, size)
    config = preset(arguments.preset or DEFAULT_PRESET)
    if size is not None:
        config = config.at_size(size)
    return load_preset(config, clip=arguments.clip, sam=arguments.sam, seed=arguments.seed)


def _summary(report: ExportReport) -> str:
    parity = report.parity
    verdict = "passed" if parity.passed else "MISSED, written on request"
    lines = [
        f"{report.bundle}: {len(report.checks)} graphs at {report.precision} in "
        f"{report.seconds:.0f} s",
        f"parity {verdict}: {parity.reason()}",
        f"prompts flipped: {parity.prompt_flips} of {parity.prompts}; pixels equal: "
        f"{parity.pixel_agreement:.2%} ({parity.near_ties:.2%} near-ties; without them "
        f"{parity.agreement_without_ties:.2%})",
    ]
    if parity.miou is not None and parity.reference_miou is not None:
        lines.append(f"mIoU {parity.miou:.2%}; float32 torch {parity.reference_miou:.2%}")
    lines += [f"kept higher: {kept.sentence()}" for kept in parity.kept_higher]
    near = [trap for trap in worst_first(parity.traps) if not trap.overflows]
    lines += [f"near the limit: {trap.block}: {trap.why()}" for trap in near[:_NEAR_SHOWN]]
    if len(near) > _NEAR_SHOWN:
        lines.append(f"near the limit: {len(near) - _NEAR_SHOWN} more blocks, see parity.json")
    return "\n".join(lines)


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
