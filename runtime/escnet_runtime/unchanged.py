"""Whether a file of an open bundle is still the one that was checked.

Graphs are read when they are first used: minutes or days after the bundle was opened and compared
with its hashes. Meanwhile an export may have put another bundle in its place. Graphs of two bundles
together compute something, without an error, and what is kept of it would be kept under the name of
the first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from .bundle import sha256_file
from .errors import BundleIntegrityError

__all__ = ["FileState", "file_state", "reading", "require_unchanged"]

#: Number, size and time of change: of a file that is put in the place of another, one differs.
FileState: TypeAlias = tuple[int, int, int]


def file_state(path: Path) -> FileState | None:
    """What to remember of a file that was checked a moment ago; None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def require_unchanged(path: Path, sha256: str, state: FileState | None) -> None:
    """Refuse a file that is another one than was checked; the same bytes are the same file.

    Args:
        path: the file.
        sha256: what it was compared with; only a file of another state is read for it.
        state: :func:`file_state` from when it was checked.

    Raises:
        BundleIntegrityError: it is gone, or another one is in its place.
    """
    found = file_state(path)
    if found == state and state is not None:
        return
    what = "is gone"
    if found is not None:
        # A copy of the same bundle, or a file system that numbers files anew.
        digest = sha256_file(path)
        if digest == sha256:
            return
        what = f"is another one now (sha256 {digest[:12]}…, opened with {sha256[:12]}…)"
    raise BundleIntegrityError(
        f"{path} {what}: the bundle was replaced while it was open. Make a new Segmenter; to "
        "change a bundle under a running one, write the new one beside it."
    )


@contextmanager
def reading(path: Path, sha256: str, state: FileState | None) -> Iterator[Path]:
    """Yield the path to read, and refuse what was read if the file is not the one that was checked.

    Looked at when the block ends, by an error too: so a file that changes while it is read is
    found, and one that is gone is said to be.

    Raises:
        BundleIntegrityError: see :func:`require_unchanged`.
    """
    try:
        yield path
    finally:
        require_unchanged(path, sha256, state)
