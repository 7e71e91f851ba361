"""Options that several commands take, said once."""

import argparse

from ..backends import BACKENDS

__all__ = ["add_backend_option", "add_chunk_option"]


def add_backend_option(parser: argparse.ArgumentParser, *, torch: bool = False) -> None:
    """``--backend``: what runs the graphs; with ``torch`` also the graphs of a checkpoint."""
    parser.add_argument(
        "--backend",
        choices=(*BACKENDS, "torch") if torch else BACKENDS,
        default="auto",
        help="what runs the graphs"
        + ("; a checkpoint's are run by torch" if torch else "")
        + " (default: auto, which says what it chose)",
    )


def add_chunk_option(parser: argparse.ArgumentParser) -> None:
    """``--chunk``: as :class:`~escnet_runtime.segmenter.Segmenter` takes it."""
    parser.add_argument(
        "--chunk",
        metavar="N",
        type=int,
        help="categories at a time, rounded up to whole groups: decides memory and speed (default: "
        "what escnet-build has measured here, else the bundle's own; on a GPU 64, or what its "
        "engines are for)",
    )
