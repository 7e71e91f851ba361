"""Where tests find what lies outside the repository."""

from pathlib import Path

__all__ = ["ROOT", "shared_data"]

ROOT = Path(__file__).resolve().parent.parent


def shared_data() -> Path | None:
    """The folder ``shared/data`` beside the repository, or None where there is none.

    It holds photographs and lists of class names. A test that uses it skips on None.
    """
    folder = ROOT.parent / "shared" / "data"
    return folder if folder.is_dir() else None
