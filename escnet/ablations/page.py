"""The places in ``docs/ablations.md`` that the command fills: one for each folder of runs."""

from pathlib import Path
from typing import Final

from PIL import Image

from escnet_runtime.atomic import atomic_file
from escnet_runtime.errors import InputError

__all__ = ["PICTURE", "fill_page"]

#: The picture beside a folder's table.
PICTURE: Final = "table.png"


def fill_page(page: Path, name: str, table: str, picture: Image.Image | None) -> None:
    """Replace what stands between a folder's two marks by its table and, if there is one, picture.

    Args:
        page: the Markdown file.
        name: of the folder of runs, such as "ablations-800". A page has a place for each of them,
            and the picture lies beside it as ``pictures/NAME.png``.
        table: as :func:`escnet.ablations.table.table_of` gives it.
        picture: as :func:`escnet.ablations.plot.plot_of` gives it.

    Raises:
        InputError: the page is not there, or has not each mark once, in this order.
    """
    opening = f"<!-- results of {name}: written by python -m escnet.ablations --page -->"
    closing = f"<!-- end of results of {name} -->"
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    before, begin, rest = text.partition(opening)
    _, end, after = rest.partition(closing)
    if not begin or not end or opening in after or closing in after:
        raise InputError(
            f"{page} has no place for the results of {name}; expected a page with the lines "
            f"{opening!r} and {closing!r}, once each"
        )
    shown = ""
    if picture is not None:
        in_docs = f"pictures/{name}.png"
        target = page.parent / in_docs
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as temporary:
            picture.save(temporary, format="PNG", optimize=True)
        shown = f"\n![mIoU of each variant; a dot is a seed]({in_docs})\n"
    with atomic_file(page) as temporary:
        temporary.write_text(
            f"{before}{opening}\n\n{table}{shown}\n{closing}{after}", encoding="utf-8"
        )
