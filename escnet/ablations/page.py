"""The place in ``docs/ablations.md`` that the command fills."""

from pathlib import Path
from typing import Final

from PIL import Image

from escnet_runtime.atomic import atomic_file
from escnet_runtime.errors import InputError

__all__ = ["PICTURE", "fill_page"]

#: The picture beside the table, and what it is called in the folder ``pictures`` of the page.
PICTURE: Final = "table.png"
_IN_DOCS: Final = "pictures/ablations.png"
_BEGIN: Final = "<!-- results: written by python -m escnet.ablations --page -->"
_END: Final = "<!-- end of results -->"


def fill_page(page: Path, table: str, picture: Image.Image | None) -> None:
    """Replace what stands between the two marks by the table and, if there is one, the picture.

    Raises:
        InputError: the page is not there, or has not each mark once, in this order.
    """
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end or _BEGIN in after or _END in after:
        raise InputError(
            f"{page} has no place for the results; expected a page with the lines {_BEGIN!r} and "
            f"{_END!r}, once each"
        )
    shown = ""
    if picture is not None:
        target = page.parent / _IN_DOCS
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as temporary:
            picture.save(temporary, format="PNG", optimize=True)
        shown = f"\n![mIoU of each variant; a dot is a seed]({_IN_DOCS})\n"
    with atomic_file(page) as temporary:
        temporary.write_text(f"{before}{_BEGIN}\n\n{table}{shown}\n{_END}{after}", encoding="utf-8")
