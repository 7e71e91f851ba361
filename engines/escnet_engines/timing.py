"""The timing cache on disk: timings of kernels that later builds need not measure again."""

import logging
from pathlib import Path

from escnet_runtime.atomic import atomic_file
from escnet_runtime.embedding_cache import default_cache_directory
from escnet_runtime.engine_record import Fingerprint
from escnet_runtime.engines import engine_folder
from escnet_runtime.errors import InputError

from .library import Library

__all__ = ["load_timings", "save_timings"]

_LOG = logging.getLogger("escnet_engines")


def load_timings(library: Library, here: Fingerprint) -> None:
    """Give the library the timings of earlier builds for this GPU, if there are any."""
    try:
        content = _path(here).read_bytes()
    except OSError:
        content = b""
    library.use_timing_cache(content)


def save_timings(library: Library, here: Fingerprint) -> None:
    """Keep the timings for later builds; if the cache cannot be written, only log that."""
    content = library.timing_cache()
    if not content:
        return
    try:
        with atomic_file(_path(here)) as path:
            path.write_bytes(content)
    except (InputError, OSError) as error:
        _LOG.warning("the timings of this build are not kept: %s", error)


def _path(here: Fingerprint) -> Path:
    folder = default_cache_directory() / "timing"
    return folder / f"{engine_folder(here.backend, here.targets)}-{here.version}.cache"
