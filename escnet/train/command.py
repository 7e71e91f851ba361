"""``escnet-train``: a configuration and a dataset become a checkpoint."""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table
from rich.text import Text

from escnet_runtime.console import Console, command_parser, run_command
from escnet_runtime.errors import EscNetError, InputError

from .config import (
    TrainConfig,
    changed_keys,
    find_config,
    parse_config,
    read_config,
    require_utf8,
    shipped_configs,
    to_toml,
)
from .task import ParameterGroup

if TYPE_CHECKING:
    from .folder import RunFolder
    from .segmentation import SegmentationTask

__all__ = ["main"]

#: What the extra [train] installs, by the names it is imported by.
_EXTRA: Final = ("accelerate", "tensorboard")
_EXAMPLES: Final = 2  # names of parameters to show for each group
_EPILOG = """\
The folder of a run holds last.safetensors and best.safetensors (checkpoints), state.pt (to resume
from), config.toml, groups.tsv (which parameter learns at which rate; -v prints it), metrics.jsonl
and tensorboard/. SIGTERM and Ctrl-C save first.

Several GPUs: torchrun --nproc-per-node N -m escnet.train --config ...

The keys of a configuration are listed in docs/training.md.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if int(os.environ.get("RANK", "0")) == 0:
        return run_command(_parser(), _train, words)
    # A process beside the main one trains, and says nothing but errors.
    words = [word for word in words if word not in {"-v", "--verbose", "-q", "--quiet"}]
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        return run_command(_parser(), _train, [*words, "--quiet"])


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "escnet-train",
        "Train an ESC-Net on labelled images. A run that was stopped or killed goes on with "
        "--resume, and ends with the weights it would have had.",
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add(
        "--config",
        required=True,
        metavar="FILE|NAME",
        help=f"a TOML file, or one that comes along: {', '.join(shipped_configs())}",
    )
    add("--resume", action="store_true", help="go on with the run in the output folder")
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder of the run (the one that keeps the configuration, or else its output)",
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace a value of the configuration, such as training.steps=100; KEY= takes it away",
    )
    return parser


def _train(arguments: argparse.Namespace, console: Console) -> tuple[int, Mapping[str, Any]]:
    config, output = _asked(arguments)
    with _extra_required():
        from .folder import RunFolder
        from .loop import Stopped, train
        from .start import prepared
    folder = RunFolder(output)
    folder.require_free(resume=arguments.resume)
    if folder.state.is_file():
        _require_same(folder, config)
    start = prepared(config, console=console)
    if not arguments.quiet:
        _show_parameters(start.task, folder, console, every_one=arguments.verbose)
    result: dict[str, Any] = {
        "output": output,
        "checkpoint": folder.last,
        "groups": folder.groups,
    }
    try:
        outcome = train(
            start.task,
            config.training,
            output,
            resume=arguments.resume,
            config=to_toml(config),
            data=start.data,
            console=console,
        )
    except Stopped as stop:
        console.err.print(Text(str(stop)), soft_wrap=True)
        return 128 + stop.number, {**result, "steps": stop.step, "stopped": True}
    result |= {
        "best": folder.best if outcome.best_step is not None else None,
        "best_miou": outcome.best,
        "best_step": outcome.best_step,
        "steps": config.training.steps,
        **{name: outcome.figures.get(name) for name in ("miou", "pixel_accuracy")},
        "seconds": round(outcome.seconds, 1),
    }
    console.print(_summary(result))
    return 0, result


def _asked(arguments: argparse.Namespace) -> tuple[TrainConfig, Path]:
    """The configuration with what the command line changes in it, and the folder of the run."""
    path = find_config(arguments.config)
    config = read_config(path, [*_kept_in(path), *arguments.set])
    output = arguments.output or (config.output and Path(config.output))
    if not output:
        raise InputError("where should the run be kept? give --output DIR, or output in the file")
    config = dataclasses.replace(config, output=str(output))
    require_utf8(config)
    return config, output


@contextlib.contextmanager
def _extra_required() -> Iterator[None]:
    """Within, a library of the extra that is missing is an error that says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _EXTRA:
            raise
        raise EscNetError(
            f'training needs {error.name}, which is not installed: pip install "escnet[train]"'
        ) from error


def _show_parameters(
    task: "SegmentationTask", folder: "RunFolder", console: Console, *, every_one: bool
) -> None:
    """Say what is trained at which rate: group by group, or parameter by parameter as well."""
    from .listing import parameter_list

    console.print(_groups(task.groups))
    if every_one:
        console.print(_aligned(parameter_list(task.module, task.groups)))
    console.print(f"each parameter with its group and rate: {folder.groups}")


def _kept_in(path: Path) -> list[str]:
    """As an override: the folder of the run that keeps this file, wherever it has been moved to."""
    from .folder import RunFolder

    folder = RunFolder(path.parent)
    if path.name != folder.config.name or not folder.lock.is_file():
        return []
    return [f"output={json.dumps(str(folder.path), ensure_ascii=False)}"]


def _require_same(folder: "RunFolder", now: TrainConfig) -> None:
    """By what the state says: its config.toml, which may be ``now``, can have been edited."""
    kept, path = folder.begun_with(), folder.state
    if kept is not None:
        before = parse_config(kept, str(path))
    elif folder.config.is_file():  # a state from before it said so
        path = folder.config
        before = read_config(path)
    else:
        return
    changed = changed_keys(before, now)
    if changed:
        raise InputError(
            f"the run was started with another configuration ({path}): {'; '.join(changed)}. "
            "Resume it with that one. To train on with other settings, start a new run from its "
            "last.safetensors (model.checkpoint)"
        )


def _groups(groups: Sequence[ParameterGroup]) -> Table:
    """What is trained at which rate."""
    table = Table(title="Trained; all else is frozen", title_justify="left")
    for heading in ("group", "tensors", "parameters", "rate", "weight decay"):
        table.add_column(heading, justify="left" if heading == "group" else "right")
    table.add_column("for example", overflow="fold")
    for group in groups:
        names = list(group.parameters)
        table.add_row(
            group.name,
            f"{len(names):,}",
            f"{sum(one.numel() for one in group.parameters.values()):,}",
            f"{group.rate:g}",
            f"{group.weight_decay:g}",
            ", ".join(names[:_EXAMPLES]),
        )
    return table


def _aligned(listed: str) -> str:
    """Columns between tabs → columns of one width each."""
    lines = [line.split("\t") for line in listed.splitlines()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _summary(result: Mapping[str, Any]) -> str:
    lines = [f"{result['checkpoint']}: {result['steps']} steps in {result['seconds']:.0f} s"]
    if result["miou"] is not None:
        lines[0] += f", mIoU {result['miou']:.2%}, pixel accuracy {result['pixel_accuracy']:.2%}"
    if result["best"] is not None:
        lines.append(
            f"{result['best']}: step {result['best_step']}, mIoU {result['best_miou']:.2%}"
        )
    return "\n".join(lines)
