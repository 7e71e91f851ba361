"""The development environment: its keys, its place, and what happens when it cannot be built."""

import shutil
import subprocess
import sys
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.shared import ROOT
from tools.environment import (
    NOT_INSTALLED,
    EnvironmentBuildError,
    activated,
    adopt_commands,
    cache_folder,
    checkout_environment,
    dependency_key,
)
from tools.workspace import DISTRIBUTIONS, distributions, name_of, third_party


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace whose one requirement cannot be installed, with a cache of its own."""
    root = tmp_path / "checkout"
    for folder, package in DISTRIBUTIONS.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "pyproject.toml").write_text(
            f'[build-system]\nrequires = []\n[project]\nname = "{package}"\n'
            'dependencies = ["no-such-package-anywhere>=1"]\n',
            encoding="utf-8",
        )
    (root / "constraints.txt").write_text("", encoding="utf-8")
    monkeypatch.setenv("ESCNET_ENV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return root


@pytest.mark.slow
def test_failed_installation_shows_its_log_and_leaves_nothing_complete(workspace: Path) -> None:
    for _ in range(2):  # the second run starts over instead of using what the first one left
        with pytest.raises(EnvironmentBuildError) as caught:
            checkout_environment(workspace)
        assert "No matching distribution found for no-such-package-anywhere" in str(caught.value)
        assert ".log" in str(caught.value)
    assert not list((workspace.parent / "cache").glob("*/complete"))


@pytest.mark.parametrize("what", ["cache", "cache/lock"])
def test_a_cache_that_cannot_be_written_is_said_with_what_to_do(workspace: Path, what: str) -> None:
    blocked = workspace.parent / what
    if what == "cache":
        blocked.write_text("a file", encoding="utf-8")
    else:
        blocked.mkdir(parents=True)
    with pytest.raises(EnvironmentBuildError, match="set ESCNET_ENV_CACHE to another one"):
        checkout_environment(workspace)


def test_too_little_disk_space_is_said_before_anything_is_installed(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    with pytest.raises(EnvironmentBuildError, match=r"needs about 8 GB .* has 1\.0 GB free"):
        checkout_environment(workspace)
    assert not list((workspace.parent / "cache").glob("dependencies-*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "Usage"), (["no-such-command"], "no command 'no-such-command'")],
)
def test_wrong_usage_of_run_exits_2(arguments: list[str], message: str) -> None:
    command = [sys.executable, str(ROOT / "tools" / "run.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert not done.stdout


def test_environment_key_follows_the_pins_and_not_their_comments(tmp_path: Path) -> None:
    requirements = third_party(ROOT)
    constraints = tmp_path / "constraints.txt"
    keys = []
    for text in ("a==1\n", "# why\n\na==1\n", "a==2\n"):
        constraints.write_text(text, encoding="utf-8")
        keys.append(dependency_key(tmp_path, requirements))
    assert keys[0] == keys[1] != keys[2]
    assert dependency_key(tmp_path, [*requirements, "b"]) != keys[2]


def test_environment_cache_can_be_moved(tmp_path: Path) -> None:
    moved = {"ESCNET_ENV_CACHE": str(tmp_path / "here"), "XDG_CACHE_HOME": str(tmp_path)}
    assert cache_folder(moved) == (tmp_path / "here").resolve()
    assert cache_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path.resolve() / "escnet-dev"
    assert cache_folder({}) == Path.home().resolve() / ".cache" / "escnet-dev"


def test_commands_of_the_environment_come_first(tmp_path: Path) -> None:
    given = {"PATH": "/usr/bin", "PYTHONPATH": "elsewhere", "LANG": "C"}
    variables = activated(tmp_path, given)
    assert variables["PATH"].split(":") == [f"{tmp_path}/bin", "/usr/bin"]
    assert "PYTHONPATH" not in variables
    assert variables["LANG"] == "C"


@pytest.mark.parametrize("folder", ["cache", "a cache", "long" * 40])
def test_commands_of_the_shared_layer_run_under_the_python_of_the_checkout(
    tmp_path: Path, folder: str
) -> None:
    """Where the path has a space or is longer than a kernel reads, pip has a shell start them."""
    shared, checkout = tmp_path / folder / "dependencies-0", tmp_path / folder / "checkout-0"
    for layer in (shared, checkout):
        venv.create(layer, symlinks=True)
    python = f"{shared}/bin/python"
    start = f"#!{python}\n"
    if " " in start or len(start) > 127:
        start = f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n"
    script = shared / "bin" / "tool"
    script.write_text(f"{start}import sys\nprint(sys.prefix)\n", encoding="utf-8")
    script.chmod(0o755)

    adopt_commands(shared / "bin", checkout / "bin")

    command = [str(checkout / "bin" / "tool")]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert Path(found) == checkout


def test_requirements_leave_out_our_own_packages() -> None:
    own = {name_of(one.name) for one in distributions(ROOT)}
    names = {name_of(line) for line in third_party(ROOT, without=NOT_INSTALLED)}
    assert not names & (own | NOT_INSTALLED)
    assert {"torch", "onnxruntime", "pytest", "hatchling"} <= names
