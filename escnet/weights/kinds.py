"""What a file is, by its first bytes: downloads often bring something else under the right name."""

import re
import zipfile
from pathlib import Path
from typing import Final

__all__ = ["PYTORCH", "SAFETENSORS", "kind_of_file"]

PYTORCH: Final = "it is a file of PyTorch, whose suffixes are .pt, .pth, .bin and .ckpt"
SAFETENSORS: Final = "it is a file of safetensors; rename it to .safetensors"

_HEAD: Final = 512
_SHOWN: Final = 60
_LFS: Final = b"version https://git-lfs"
_GZIP: Final = b"\x1f\x8b"
#: No text has them, and every header of weights does: a safetensors' length, a pickle's opcodes.
_BINARY: Final = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]")


def kind_of_file(path: Path) -> str | None:
    """A clause that says what a file is and what to do, where its first bytes show it.

    None where they do not: it is damaged, of a kind that is not known here, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return None
    if not head:
        return "it is empty; download it anew"
    if not _BINARY.search(head):
        return _kind_of_text(head)
    if head.startswith(_GZIP):
        return "it is packed by gzip; unpack it first"
    if head[8:9] == b"{":
        return SAFETENSORS
    return PYTORCH if head.startswith(b"\x80") else _kind_of_zip(path)


def _kind_of_text(head: bytes) -> str:
    if head.startswith(_LFS):
        return (
            "it is a pointer of Git LFS, which stands for the file itself; fetch that with "
            "`git lfs pull`, or download it"
        )
    text = " ".join(head.decode(errors="replace").split())[:_SHOWN]
    return (
        f"it is text and begins with {text!r}, as a page does that is saved in place of the file; "
        "download that anew"
    )


def _kind_of_zip(path: Path) -> str | None:
    """PyTorch's files are ZIP archives, and so is what people pack them in."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # none, or damaged anywhere
        return None
    if any(name.endswith("/data.pkl") for name in names):
        return PYTORCH
    shown = ", ".join(repr(name[:_SHOWN]) for name in names[:3])
    return f"it is a ZIP archive, not PyTorch's, of {shown or 'nothing'}; unpack it first"
