"""The graphs of a bundle, as they were written."""

from pathlib import Path

from escnet_runtime.bundle import Bundle, sha256_file
from escnet_runtime.errors import BundleIntegrityError

__all__ = ["checked_graph"]


def checked_graph(bundle: Bundle, name: str) -> Path:
    """The file of a graph, after its digest was compared with the manifest.

    Raises:
        BundleIntegrityError: it is missing, or is not the one that was written.
        BundleFormatError: its path leads out of the bundle.
    """
    stage = bundle.manifest.stages[name]
    path = bundle.file(stage.file)
    if sha256_file(path) != stage.sha256:
        raise BundleIntegrityError(
            f"{stage.file} of the bundle {bundle.root} is not as it was written: it has "
            "another sha256. Copy or export the bundle again."
        )
    return path
