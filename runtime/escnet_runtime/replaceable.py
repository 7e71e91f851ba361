"""Which folders may be replaced by a new one of their kind: nothing of anybody else's is."""

import os
from pathlib import Path
from typing import Final

from .errors import BundleFormatError, InputError
from .strict_json import parse_object

__all__ = ["BUNDLE_MARKER", "require_replaceable"]

#: The file by which a bundle is known.
BUNDLE_MARKER: Final = "bundle.json"
#: Keys that the ``bundle.json`` of every bundle has, since format 1.0: other programs write files
#: of that name too.
_KEYS: Final = frozenset(["schema_version", "digest", "model", "stages"])
#: All that a bundle holds, see docs/bundle.md.
_OF_A_BUNDLE: Final = frozenset(
    [BUNDLE_MARKER, "graphs", "golden", "engines", "tokenizer.json", "parity.json", "parity.html"]
)
_NAMED: Final = 5  # entries of a folder in a message


def require_replaceable(
    target: Path, *, kind: str = "bundle", marker: str = BUNDLE_MARKER, remains: str | None = None
) -> None:
    """Refuse a folder that :func:`escnet_runtime.atomic.atomic_directory` would not replace.

    That function asks it itself; a command with hours of work before it asks first.

    Args:
        target: the folder.
        kind: what is to be written, for messages.
        marker: the file by which a folder of this kind is known.
        remains: a pattern of files that are nothing without the marker, such as "*.engine": a
            folder that lost it and holds only these is one of this kind, damaged.

    Raises:
        InputError: the target is neither free nor empty nor of that kind.
    """
    target = Path(os.path.realpath(target))
    if not target.name:
        raise InputError(f"Cannot write a {kind} at {target}: name a folder inside it.")
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError(f"Cannot write a {kind} at {target}: it exists and is not a folder.")
    if target.is_mount():
        raise InputError(
            f"Cannot write a {kind} at {target}: it is a mount point, which cannot be replaced in "
            "one step. Name a folder inside it."
        )
    if (target / marker).is_file():
        if marker == BUNDLE_MARKER:
            _require_bundle(target)
        return
    if not all(_is_one_of(entry, remains) for entry in target.iterdir()):
        raise InputError(
            f"Will not replace {target}: it is neither empty nor a {kind} (no {marker} in it). "
            "Name another folder, or remove this one yourself."
        )


def _require_bundle(target: Path) -> None:
    """Refuse a folder that has a ``bundle.json`` and is not a bundle, or holds more than one."""
    advice = "Name another folder, or remove this one yourself."
    try:
        found = parse_object((target / BUNDLE_MARKER).read_text(encoding="utf-8"), BUNDLE_MARKER)
    except FileNotFoundError:
        return  # another writer has just moved it
    except (OSError, ValueError, BundleFormatError) as error:
        raise InputError(
            f"Will not replace {target}: its {BUNDLE_MARKER} cannot be read as a bundle's "
            f"({str(error).rstrip('.')}). {advice}"
        ) from error
    if missing := sorted(_KEYS - found.keys()):
        raise InputError(
            f"Will not replace {target}: its {BUNDLE_MARKER} is not a bundle's, it has no "
            f"{', '.join(missing)}. {advice}"
        )
    strange = sorted(entry.name for entry in target.iterdir() if entry.name not in _OF_A_BUNDLE)
    if strange:
        more = len(strange) - _NAMED
        named = ", ".join(strange[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        raise InputError(
            f"Will not replace {target}: beside a bundle it holds {named}. Move that away, or name "
            "another folder."
        )


def _is_one_of(entry: Path, pattern: str | None) -> bool:
    if pattern is None or not entry.match(pattern):
        return False
    return entry.is_file() and not entry.is_symlink()
