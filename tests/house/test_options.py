"""What ``--help`` says of every option of every command."""

import argparse
import importlib
import re
from collections.abc import Iterator, Sequence

import pytest

from tests.house.test_boundaries import WORKSPACE

SCRIPTS = {
    script: target.partition(":")[0]
    for one in WORKSPACE.values()
    for script, target in one.project.get("scripts", {}).items()
}


class _Reached(BaseException):
    """The parser of a command, at the moment in which it is to parse."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


@pytest.fixture(params=SCRIPTS)
def actions(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> dict[str, argparse.Action]:
    """Every argument of a command and of its subcommands, by "command option"."""

    def reached(parser: argparse.ArgumentParser, _: Sequence[str] | None = None) -> None:
        raise _Reached(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", reached)
    module = importlib.import_module(SCRIPTS[str(request.param)])
    with pytest.raises(_Reached) as caught:
        module.main([])
    return dict(_actions(caught.value.parser))


def test_every_option_says_what_it_is_and_not_only_its_default(
    actions: dict[str, argparse.Action],
) -> None:
    assert len(actions) > 5
    silent = [
        name
        for name, action in actions.items()
        if not re.sub(r"\(default: [^()]*(\([^()]*\)[^()]*)*\)", "", action.help or "").strip()
    ]
    assert not silent


def test_every_chunk_has_the_default_of_a_segmenter(actions: dict[str, argparse.Action]) -> None:
    """``escnet-build`` and what compiles or counts without a Segmenter have their own."""
    own = ("escnet-build", "escnet-bench gflop", "escnet-bench builds")
    for name, action in actions.items():
        if name.endswith("--chunk") and not name.startswith(own):
            assert action.default is None
            assert "what escnet-build has measured here, else the bundle's own" in str(action.help)


def _actions(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
        else:
            yield f"{parser.prog} {(action.option_strings or [action.dest])[-1]}", action
