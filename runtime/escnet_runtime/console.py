"""What all commands of the toolkit share: options, log, progress, exit codes, ``--json``.

A command is a parser and a function from its arguments to an exit code and the object that
``--json`` prints; :func:`run_command` does the rest. Standard output carries the result alone: one
JSON object with ``--json``, what the command prints for people otherwise. Logs, progress and errors
go to standard error.

Exit codes: 0 success; 1 failure; 2 wrong usage or input; 130 Ctrl-C; 141 the reader of standard
output left; 143 SIGTERM.
"""

import argparse
import contextlib
import errno
import io
import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn, Protocol, TypeAlias

import rich.console
import rich.progress
from rich.markup import escape
from rich.segment import Segment
from rich.text import Text

from . import __version__
from .errors import EscNetError, InputError
from .signals import TERMINATED, signals_raise
from .strict_json import plain_json

__all__ = [
    "Advance",
    "Command",
    "Console",
    "add_common_options",
    "command_parser",
    "printable",
    "run_command",
]

_LOG: Final = logging.getLogger(__name__)
_clock = time.monotonic
_LOGGERS: Final = ("escnet", "escnet_bench", "escnet_engines", "escnet_export", "escnet_runtime")
_FAILED, _WRONG_INPUT, _INTERRUPTED, _PIPE_CLOSED = 1, 2, 130, 141
_SAID_SECONDS: Final = 30.0  # between two lines of progress where there is no bar
#: What moves cursors, sets titles and more: C0 and C1, but for tabs and ends of lines; and what
#: turns the direction of the text behind it.
_OBEYED: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
#: Columns where the width cannot be known: tables are as wide as they need, up to this.
_WIDE: Final = 200


class Advance(Protocol):
    """Moves a progress bar on."""

    def __call__(self, step: str = "", /, *, count: float = 1) -> None:
        """Say that ``count`` more steps are done, and what is being done now, if that is new."""


class Console:
    """The output of a command.

    Args:
        json: nothing is shown; the result goes to standard output at the end.
        quiet: no progress.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json, self.quiet = json, quiet
        self._out = _RichConsole(stderr=False)
        self.err: rich.console.Console = _RichConsole(stderr=True)

    def print(self, *renderables: rich.console.RenderableType) -> None:
        """Print for people on standard output; nothing with ``--json``. Markup is not read."""
        if not self.json:
            # Text is left to the terminal to wrap, so that a long path can be copied.
            soft = all(isinstance(one, str | Text) for one in renderables)
            self._out.print(*renderables, soft_wrap=soft)

    @contextlib.contextmanager
    def progress(self, description: str, total: float | None) -> Iterator[Advance]:
        """A progress bar on standard error, if that is a terminal, without ``--json``, ``--quiet``.

        Elsewhere a line in the log every half minute, so that work that takes longer is not taken
        for a process that hangs: over a pipe, in a container, as a service.

        Args:
            description: what is being done, a few words.
            total: number of steps; None where it is not known.
        """
        hidden = self.json or self.quiet or not self.err.is_terminal
        bar = rich.progress.Progress(
            console=self.err, transient=True, disable=hidden, redirect_stdout=False
        )
        # Entered where it is shown alone: Rich before 14.3 ends a hidden one by an empty line.
        with contextlib.nullcontext() if hidden else bar:
            task = bar.add_task(description, total=total)
            done, said = 0.0, _clock()

            def advance(step: str = "", /, *, count: float = 1) -> None:
                nonlocal done, said
                text = printable(f"{description}: {step}" if step else description)
                if step:
                    bar.update(task, description=escape(text))
                bar.advance(task, count)
                done += count
                if hidden and _clock() - said >= _SAID_SECONDS:
                    said = _clock()
                    of = "" if total is None else f" of {total:.0f}"
                    _LOG.info("%s (%d%s done)", text, done, of)

            yield advance


#: Exit code (0 or 1) and what ``--json`` prints.
Command: TypeAlias = Callable[[argparse.Namespace, Console], tuple[int, Mapping[str, Any]]]


def command_parser(
    prog: str, description: str, *, epilog: str | None = None, common: bool = True
) -> argparse.ArgumentParser:
    """A parser whose usage errors are InputErrors, with the options every command takes.

    Args:
        prog: name of the command.
        description: one or two sentences.
        epilog: printed below the options, as it is.
        common: add the common options; False for one with subcommands, where each subparser gets
            them by :func:`add_common_options`.
    """
    parser = _Parser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{prog} {__version__}")
    if common:
        add_common_options(parser)
    return parser


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--json`` and ``--verbose`` or ``--quiet``."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )
    volume = parser.add_mutually_exclusive_group()
    volume.add_argument("-v", "--verbose", action="store_true", help="log details as well")
    volume.add_argument("-q", "--quiet", action="store_true", help="log warnings and errors alone")


def run_command(
    parser: argparse.ArgumentParser, command: Command, argv: Sequence[str] | None = None
) -> int:
    """Parse, run ``command``, print its JSON if asked for, and give the exit code.

    Args:
        parser: from :func:`command_parser`.
        command: does the work, gives exit code and result; what it raises becomes a message and
            an exit code.
        argv: the words behind the command's name; those of the process by default.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # Looked up before parsing, so that wrong usage is answered in JSON too.
    wants_json = "--json" in words
    document: Mapping[str, Any]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name the encoding lacks is not worth a failure
            stream.reconfigure(errors="backslashreplace")
    try:
        # What a library prints must not end up in front of the JSON.
        with signals_raise(), contextlib.redirect_stdout(sys.stderr if wants_json else sys.stdout):
            arguments = parser.parse_args(words)
            console = Console(json=arguments.json, quiet=arguments.quiet)
            with _logging_to(console.err, _level(arguments)):
                code, document = command(arguments, console)
    except BrokenPipeError:
        _drop_stdout()
        return _PIPE_CLOSED
    except SystemExit as stop:
        if stop.code != TERMINATED:  # --help and --version
            return stop.code if isinstance(stop.code, int) else 0
        code, document = TERMINATED, _failure("Terminated", "ended by SIGTERM")
    except KeyboardInterrupt:
        _complain(parser.prog, "interrupted")
        code, document = _INTERRUPTED, _failure("KeyboardInterrupt", "interrupted")
    except Exception as error:
        code, message = _explain(error, parser.prog)
        document = _failure(type(error).__name__, message)
    return _print_json(document, code, parser.prog) if wants_json else code


def printable(text: object) -> str:
    """Text as a terminal may show it: control characters and broken file names as escapes."""
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in str(text)
    )


class _Parser(argparse.ArgumentParser):
    """Raises instead of leaving the process, so that :func:`run_command` can answer."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        raise InputError(message)


class _RichConsole(rich.console.Console):
    """No markup (names may hold brackets), and a closed pipe is not rich's to handle."""

    def __init__(self, *, stderr: bool) -> None:
        stream = sys.stderr if stderr else sys.stdout
        terminal = stream is not None and stream.isatty()
        super().__init__(
            stderr=stderr,
            markup=False,
            highlight=False,
            emoji=False,
            width=None if terminal or "COLUMNS" in os.environ else _WIDE,
        )

    def render(
        self,
        renderable: rich.console.RenderableType,
        options: rich.console.ConsoleOptions | None = None,
    ) -> Iterator[Segment]:
        """Names of strangers' files and models may hold what a terminal obeys."""
        for segment in super().render(renderable, options):
            obeyed = not segment.control and _OBEYED.search(segment.text)
            yield segment._replace(text=_OBEYED.sub("�", segment.text)) if obeyed else segment

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class _LogHandler(logging.Handler):
    """Log lines through rich, which keeps them apart from a progress bar."""

    def __init__(self, console: rich.console.Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        message = printable(self.format(record))
        if record.levelno != logging.INFO:
            message = f"{record.levelname.lower()}: {message}"
        self._console.print(Text(message), soft_wrap=True)


def _level(arguments: argparse.Namespace) -> int:
    if arguments.verbose:
        return logging.DEBUG
    return logging.WARNING if arguments.quiet else logging.INFO


@contextlib.contextmanager
def _logging_to(console: rich.console.Console, level: int) -> Iterator[None]:
    """Log of the toolkit's packages to ``console``; how it was is restored afterwards."""
    handler = _LogHandler(console)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
    try:
        with _root_handled(console):
            yield
    finally:
        for logger, before in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(before)


@contextlib.contextmanager
def _root_handled(console: rich.console.Console) -> Iterator[None]:
    """Warnings of other libraries to ``console``, unless somebody handles them.

    ``logging.info`` of a library gives a root logger without a handler one that stays, and from
    there on every line of ours would be shown twice.
    """
    root = logging.getLogger()
    if root.handlers:
        yield
        return
    handler = _LogHandler(console)
    handler.setLevel(logging.WARNING)
    handler.addFilter(lambda record: record.name.partition(".")[0] not in _LOGGERS)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def _explain(error: Exception, prog: str) -> tuple[int, str]:
    """Tell the user on standard error; the exit code and the message."""
    match error:
        case EscNetError():
            message = str(error)
        case MemoryError():
            message = f"not enough memory: {error}".rstrip(": ")
        case OSError(errno=errno.ENOSPC):
            message = f"the disk is full: {error}"
        case _:  # a defect: whoever mends it needs the traceback
            traceback.print_exception(error, file=sys.stderr)
            return _FAILED, str(error)
    _complain(prog, message)
    return (_WRONG_INPUT if isinstance(error, InputError) else _FAILED), message


def _complain(prog: str, message: str) -> None:
    lines = "\n".join(printable(line) for line in message.splitlines())
    with contextlib.suppress(OSError):  # nobody reads standard error either
        print(f"{prog}: error: {lines}", file=sys.stderr, flush=True)


def _failure(kind: str, message: str) -> dict[str, Any]:
    return {"error": {"type": kind, "message": message}}


def _print_json(document: Mapping[str, Any], code: int, prog: str) -> int:
    try:
        print(json.dumps(plain_json(document), allow_nan=False), flush=True)
    except BrokenPipeError:
        _drop_stdout()
        return _PIPE_CLOSED
    except OSError as error:
        _drop_stdout()
        _complain(prog, f"cannot write to standard output: {error.strerror}")
        return _FAILED
    return code


def _drop_stdout() -> None:
    """Send what is still buffered nowhere, or Python complains while it ends."""
    if sys.stdout is None:
        return
    with contextlib.suppress(OSError, ValueError):  # a stand-in for stdout may have no descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
