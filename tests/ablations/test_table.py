"""The table and the picture, from results that are made up here."""

from pathlib import Path
from typing import Any

import pytest

from escnet.ablations.page import fill_page
from escnet.ablations.plot import plot_of
from escnet.ablations.table import rows_of, table_of
from escnet_runtime.errors import InputError


def result(variant: str, seed: int | None, miou: float, held_out: float = 0.25) -> dict[str, Any]:
    """A result line with these figures."""
    return {
        "variant": variant,
        "seed": seed,
        "figures": {"miou": miou, "miou_held_out": held_out},
        "training_seconds": None if seed is None else 100.0 + seed,
        "provenance": {
            "device": "cpu",
            "threads": 2,
            "torch": "2.15",
            "commit": "0123456789",
            "changed": False,
        },
        "conditions": {
            "budget": {
                "steps": 160,
                "batch": 4,
                "count": 64,
                "scenes": "shapes:heldout:901",
                "categories": {"per_image": 16, "wide_every": 16, "wide": 64},
            },
            "names": 194,
            "clip_sha256": "c" * 64,
            "sam_sha256": "5" * 64,
        },
    }


RESULTS = [
    result("clip", None, 0.2),
    result("base", 0, 0.5),
    result("base", 1, 0.54),
    result("points", 0, 0.45),
    result("points", 1, 0.50),
    result("blocks-0", 1, 0.3),
]


def test_differences_are_between_runs_of_one_seed() -> None:
    rows = rows_of(RESULTS)
    assert list(rows) == ["clip", "base", "points", "blocks-0"]
    assert rows["points"].against == pytest.approx((-5.0, -4.0))
    assert rows["blocks-0"].against == pytest.approx((-24.0,))
    assert rows["clip"].against == pytest.approx((-30.0, -34.0))
    assert rows["base"].seconds == pytest.approx(100.5)
    assert rows["clip"].seconds is None


def test_the_table_says_mean_and_spread() -> None:
    lines = table_of(RESULTS).splitlines()
    assert "| base | 52.0 ± 2.8 | | 25.0 ± 0.0 | 2 | 100 s |" in lines
    assert "| points alone | 47.5 ± 3.5 | -4.5 ± 0.7 | 25.0 ± 0.0 | 2 | 100 s |" in lines
    assert "| 0 | 30.0 | -24.0 | 25.0 | 1 | 101 s |" in lines
    assert any(line.startswith("| CLIP's correlation alone") for line in lines)
    assert {line.count("|") for line in lines if line.startswith("|")} == {7}
    assert any(line.startswith("Not run yet: without-sam, random-sam, masks,") for line in lines)
    assert "160 steps of 4 scenes with 16 categories (every 16th with 64)" in lines[-1]
    assert "64 scenes of `shapes:heldout:901`, each asked for all 194 names" in lines[-1]


def test_without_a_base_there_is_no_difference() -> None:
    lines = table_of([result("points", 0, 0.45)]).splitlines()
    assert "| points alone | 45.0 | – | 25.0 | 1 | 100 s |" in lines


def test_no_result_is_said_and_not_drawn() -> None:
    assert table_of([]) == "The runs have not been made yet.\n"
    assert plot_of([]) is None


def test_a_picture_is_drawn_of_any_results() -> None:
    for some in (RESULTS, RESULTS[:1], RESULTS[3:4], [result("base", 0, 1.0)]):
        picture = plot_of(some)
        assert picture is not None
        assert len(picture.getcolors(1 << 20) or []) > 3


def test_a_page_without_a_place_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    with pytest.raises(InputError, match=r"has no place for the results of ablations"):
        fill_page(page, "ablations", "", None)
    page.write_text("nothing here")
    with pytest.raises(InputError, match=r"has no place for the results of ablations"):
        fill_page(page, "ablations", "", None)


def test_each_folder_of_runs_has_its_own_place(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    places = [
        f"<!-- results of {name}: written by python -m escnet.ablations --page -->\n"
        f"<!-- end of results of {name} -->\n"
        for name in ("ablations", "ablations-800")
    ]
    page.write_text("between\n".join(places))
    for name, steps in (("ablations-800", "of 800"), ("ablations", "of 240")):
        fill_page(page, name, f"{steps}\n", plot_of(RESULTS))
    short, long = page.read_text().split("between\n")
    assert "of 240" in short
    assert "(pictures/ablations.png)" in short
    assert "of 800" in long
    assert "(pictures/ablations-800.png)" in long
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {
        "ablations.png",
        "ablations-800.png",
    }
