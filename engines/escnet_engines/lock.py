"""One build or measurement of a bundle at a time."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from escnet_runtime.locks import exclusive

__all__ = ["only_build"]

_LOG: Final = logging.getLogger("escnet_engines")


@contextmanager
def only_build(root: Path) -> Iterator[None]:
    """Hold the lock of the bundle at ``root``; if another process has it, log that and wait."""

    def waiting() -> None:
        _LOG.warning("waiting: another process is building or measuring for %s", root)

    with exclusive(root, waiting=waiting) as held:
        if not held:
            _LOG.warning(
                "the file system of %s has no locks: run only one build or measurement there", root
            )
        yield
