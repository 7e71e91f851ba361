"""Texts of files as they may stand in HTML and SVG. Every one passes through :func:`text`."""

import html

__all__ = ["text"]


def text(value: object) -> str:
    """A value as it may stand in HTML, in an attribute too; control characters are dropped."""
    shown = "".join(one for one in str(value) if one.isprintable() or one in "\n\t")
    return html.escape(shown, quote=True)
