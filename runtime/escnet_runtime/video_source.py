"""What a video is read from: a file, a camera of this machine, or an address in the network."""

import re
from pathlib import Path
from typing import Final

__all__ = [
    "camera_number",
    "does_not_wait",
    "is_address",
    "is_live",
    "source_stem",
    "without_secrets",
]

_CAMERA: Final = re.compile(r"camera:(\d{1,3})")
#: Protocols of FFmpeg's that network cameras and streaming servers speak.
_ADDRESS: Final = re.compile(r"(rtsps?|rtmps?|https?|srt|tcp|udp)://", re.IGNORECASE)
_LONGEST_STEM: Final = 100


def camera_number(source: str) -> int | None:
    """N of "camera:N"; None for anything else."""
    camera = _CAMERA.fullmatch(source)
    return None if camera is None else int(camera[1])


def is_address(source: str) -> bool:
    """Whether a source is in the network, such as "rtsp://camera/stream"."""
    return _ADDRESS.match(source) is not None


def is_live(source: str) -> bool:
    """Whether a source goes on until somebody ends it; what was read by then is all there is."""
    return camera_number(source) is not None or is_address(source)


def does_not_wait(source: str) -> bool:
    """Whether a source goes on at its own pace, whoever reads it: not what is a file elsewhere."""
    return is_live(source) and not source.lower().startswith("http")


def without_secrets(text: str, source: str) -> str:
    """``text``, such as an error, with no user, password or query of an address in it."""
    if not is_address(source):
        return text
    protocol, _, place = source.partition("://")
    host = re.split("[/?#]", place)[0]
    rest = place.removeprefix(host)
    if ":" in host and "@" in rest:
        shown = "…"  # its password may hold a slash, and what seems to be a port begin it
    else:
        shown = host.rpartition("@")[2] + re.split("[?#]", rest)[0]
    for written in (source, repr(source)[1:-1]):  # errors quote it as Python does
        text = text.replace(written, f"{protocol}://{shown}")
    return text


def source_stem(source: str) -> str:
    """How files are called that are made of a source."""
    if camera_number(source) is not None:
        return source.replace(":", "")
    if not is_address(source):
        return Path(source).stem
    place = without_secrets(source, source).partition("://")[2]
    return re.sub(r"[^A-Za-z0-9.-]+", "_", place).strip("_.-")[:_LONGEST_STEM] or "stream"
