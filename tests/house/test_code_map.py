"""docs/code.md names files of this repository: none of them is gone."""

import re
from pathlib import Path

import pytest

from tests.shared import ROOT

PAGE = ROOT / "docs" / "code.md"
_NAMED = re.compile(r"`([\w/-]+(?:\.py|/))`")
_RUNTIME = ROOT / "runtime" / "escnet_runtime"


def named_paths() -> list[str]:
    """All files and folders that the page names."""
    return sorted(set(_NAMED.findall(PAGE.read_text(encoding="utf-8"))))


def place_of(name: str) -> Path:
    """Where a named file is; the page's account of an image leaves the runtime's folder out."""
    return next((one for one in (ROOT / name, _RUNTIME / name) if one.exists()), ROOT / name)


def test_the_page_names_files() -> None:
    assert len(named_paths()) > 40


@pytest.mark.parametrize("name", named_paths())
def test_what_the_page_names_is_there(name: str) -> None:
    assert place_of(name).exists()
