"""Access to a bundle's graphs, with a check that they are unchanged."""

from pathlib import Path

from escnet_runtime.bundle import Bundle, sha256_file
from escnet_runtime.errors import BundleIntegrityError

__all__ = ["checked_graph"]


def checked_graph(bundle: Bundle, name: str) -> Path:
    """The file of a graph, whose sha256 is compared with the manifest first.

    Raises:
        BundleIntegrityError: it is missing or was changed.
        BundleFormatError: its path leads out of the bundle.
    """
    stage = bundle.manifest.stages[name]
    path = bundle.file(stage.file)
    if sha256_file(path) != stage.sha256:
        raise BundleIntegrityError(
            f"{stage.file} of the bundle {bundle.root} was changed or damaged: its sha256 is not "
            "the manifest's. Copy or export the bundle again."
        )
    return path
