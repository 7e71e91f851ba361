"""What ``make`` does without an environment."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.shared import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the Makefile alone; its path has a space."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    return folder


def make(folder: Path, *words: str) -> str:
    """Standard output of ``make`` there."""
    command = ["make", "--no-print-directory", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_clean_leaves_what_took_hours(checkout: Path) -> None:
    kept = [checkout / name for name in ("out/tiny/last.safetensors", "demo/bundle/bundle.json")]
    gone = [checkout / name for name in (".pytest_cache/x", "build/x", "a/__pycache__/x.pyc")]
    for file in (*kept, *gone):
        file.parent.mkdir(parents=True)
        file.touch()
    make(checkout, "clean")
    assert all(file.exists() for file in kept)
    assert not any(file.parent.exists() for file in gone)


def test_help_lists_every_target(checkout: Path) -> None:
    text = (checkout / "Makefile").read_text(encoding="utf-8")
    (targets,) = (line for line in text.splitlines() if line.startswith(".PHONY:"))
    listed = {line.split()[1] for line in make(checkout).splitlines()}
    assert listed == set(targets.split()[1:])
