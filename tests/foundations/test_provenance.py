"""What ran, where: the commit of this tree, or none."""

import importlib
import subprocess
from pathlib import Path

import pytest

module = importlib.import_module("escnet.foundations.provenance")


def git(folder: Path, *words: str) -> str:
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(folder), *author, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = module.provenance.__wrapped__()
    assert (found["commit"], found["changed"]) == (None, None)
    assert found["threads"] >= 1


def test_the_commit_is_of_the_tree_that_tracks_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of one that it was installed into."""
    package = tmp_path / "escnet" / "foundations"
    package.mkdir(parents=True)
    code = package / "provenance.py"
    code.write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "another project")
    monkeypatch.setattr(module, "__file__", str(code))
    found = module.provenance.__wrapped__()
    assert (found["commit"], found["changed"]) == (None, None)
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "its own")
    found = module.provenance.__wrapped__()
    assert (found["commit"], found["changed"]) == (git(tmp_path, "rev-parse", "HEAD"), False)
    code.write_text("changed")
    assert module.provenance.__wrapped__()["changed"] is True
