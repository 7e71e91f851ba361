"""What a run recognises its data by, kept in its state: with other data it would be another run."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from escnet_runtime.world import WORLD_VERSION

from .data import LabelledSource, file_pairs

__all__ = ["DataFingerprint", "differences"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFingerprint:
    """What one data set is recognised by.

    Attributes:
        images: how many; the order in which they are shown follows from their number.
        names: SHA-256 of their names (without suffix) in order. The scenes of a built-in set follow
            from its name; for those it is the SHA-256 of the version of the world.
        classes: SHA-256 of the names of the classes in order: labels are indices into these.
    """

    images: int
    names: str
    classes: str

    @classmethod
    def of(cls, source: LabelledSource) -> Self:
        """The fingerprint of a data set; no image is read."""
        pairs = file_pairs(source)
        names = [f"world {WORLD_VERSION}"] if pairs is None else [image.stem for image, _ in pairs]
        return cls(images=len(source), names=_sha256(names), classes=_sha256(source.names))

    def plain(self) -> dict[str, Any]:
        """Numbers and texts, as a state keeps them."""
        return dataclasses.asdict(self)


def differences(
    before: Mapping[str, Mapping[str, Any]], now: Mapping[str, DataFingerprint]
) -> list[str]:
    """What is not as it was, in words; a data set by its key.

    Args:
        before: from :meth:`DataFingerprint.plain`, by key.
        now: by the same keys.
    """
    return [
        f"{key}: {found}"
        for key, one in now.items()
        if key in before
        for found in _differences(before[key], one)
    ]


def _differences(before: Mapping[str, Any], now: DataFingerprint) -> Iterable[str]:
    if before["images"] != now.images:
        yield f"{before['images']:,} images, now {now.images:,}"
    elif before["names"] != now.names:
        yield f"other images than before, or other names of them ({now.images:,}, as before)"
    if before["classes"] != now.classes:
        yield "other classes than before, or in another order"


def _sha256(texts: Iterable[str]) -> str:
    found = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogateescape")  # names of files may be any bytes
        # The length first, or ["ab"] would be ["a", "b"].
        found.update(len(content).to_bytes(8, "little") + content)
    return found.hexdigest()
