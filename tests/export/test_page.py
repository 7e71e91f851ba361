import base64
import io
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from escnet_export.page import parity_page
from escnet_export.page_picture import ParityPicture
from escnet_runtime.errors import InputError
from escnet_runtime.palette import palette
from escnet_runtime.ppg import Prompts

NAMES = ("sky", "grass", "<road>")
VOID = {"meta", "img", "br", "link"}


def report(**changes: Any) -> dict[str, Any]:
    stages = {
        "correlation": {"relative_l2": 1e-4, "cosine": 0.999999999},
        "decoder": {"relative_l2": 2e-3, "cosine": 0.9999},
    }
    return {
        "gate": "pixels",
        "passed": True,
        "images": 3,
        "categories": 12,
        "pixels": 338688,
        "pixel_agreement": 0.99734,
        "near_ties": 0.0123,
        "agreement_without_ties": 0.9998,
        "prompt_flips": 7,
        "prompts": 720,
        "blocks": [{"flips": 3, "prompts": 360}, {"flips": 4, "prompts": 360}],
        "stages": stages,
        "budget": {
            "pixel_agreement": 0.995,
            "stage_l2": 5e-3,
            "prompt_flips": None,
            "asked": (),
        },
        "kept_in_fp32": [],
        "kept_higher": [],
        "traps": [],
        "model": "vit-b-16",
        "precision": "fp16",
        "trained": True,
        "reason": "why it passed or not",
        **changes,
    }


def prompts(points: np.ndarray[Any, Any]) -> Prompts:
    count = len(points)
    return Prompts(
        points=points.astype(np.float32),
        point_labels=np.ones((count, 5), np.int32),
        regions=np.zeros((count, 6, 6), np.int32),
        probabilities=np.zeros((count, 6, 6), np.float32),
    )


def picture(*, moved: int = 0, pixels: int = 0, **changes: Any) -> ParityPicture:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3, dtype=np.uint8), 32)[:, None] * np.ones(96, np.uint8)
    other = labels.copy()
    other.ravel()[:pixels] = 1
    points = rng.integers(0, 5, (3, 5, 2))
    shifted = points.copy()
    shifted[0, :moved, 0] += 1
    values: dict[str, Any] = {
        "image": rng.integers(0, 256, (480, 640, 3), np.uint8),
        "reference_labels": labels,
        "typed_labels": other,
        "names": NAMES,
        "grid": (6, 6),
        "reference_prompts": [prompts(points)],
        "typed_prompts": [prompts(shifted)],
        **changes,
    }
    return ParityPicture(**values)


class Reader(HTMLParser):
    """Collects tags and text, and checks that what is opened is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


def images(page: str) -> list[Image.Image]:
    found = re.findall(r'(?:src|href)="data:image/png;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def rgb(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image.convert("RGB"))


def test_the_page_states_verdict_and_figures() -> None:
    text = Reader(parity_page(report(), [])).text
    for words in ("Passed", "vit-b-16", "fp16", "99.734 %", "99.500 %", "7 of 720", "338,688"):
        assert words in text
    assert "Failed" not in text
    assert "Weightstrained" in text


def test_a_miss_by_a_hair_does_not_read_as_the_budget() -> None:
    page = parity_page(report(passed=False, pixel_agreement=0.9949999), [])
    text = Reader(page).text
    assert "Failed" in text
    assert "label 99.499 %" in text


def test_what_is_missed_beside_the_gate_is_told() -> None:
    budget = {**report()["budget"], "prompt_flips": 0.005}
    why = "0.97% of prompts flipped, budget at most 0.50%"
    failed = Reader(parity_page(report(passed=False, budget=budget, reason=why), [])).text
    assert f"Missed: {why}." in failed
    assert "7 of 720 flipped; the budget is at most 0.50%" in failed
    passed = Reader(parity_page(report(), [])).text
    assert "Missed" not in passed
    assert "7 of 720 flipped." in passed


def test_untrained_weights_are_judged_by_their_worst_stage() -> None:
    stages = {
        "first": {"relative_l2": 1e-3, "cosine": 1.0},
        "broken": {"relative_l2": float("inf"), "cosine": -1.0},
        "exact": {"relative_l2": 0.0, "cosine": 1.0},
    }
    changes = {"gate": "stages", "trained": False, "passed": False, "stages": stages}
    reader = Reader(parity_page(report(**changes), []))
    assert "worst stage is broken: relative L2 not finite" in reader.text
    assert "not trained" in reader.text
    bars = [a["style"] for tag, a in reader.tags if tag == "i"]
    assert bars[1:] == ["width:100.0%", "width:0.0%"]
    over = [tag for tag, a in reader.tags if tag == "i" and a.get("class") == "over"]
    assert len(over) == 1


def test_bars_are_on_a_log_scale_with_the_budget_marked() -> None:
    stages = {f"s{k}": {"relative_l2": 10.0**-k, "cosine": 1.0} for k in (2, 3, 4)}
    reader = Reader(parity_page(report(stages=stages), []))
    widths = [float(str(a["style"])[6:-1]) for tag, a in reader.tags if tag == "i"]
    assert widths[0] - widths[1] == pytest.approx(widths[1] - widths[2], abs=0.2)
    marks = [float(str(a["style"])[5:-1]) for tag, a in reader.tags if tag == "b"]
    assert len(marks) == 3
    assert widths[1] < marks[0] < widths[0]


def test_nothing_is_loaded_and_nothing_runs() -> None:
    page = parity_page(report(), [picture(moved=1)])
    reader = Reader(page)
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "iframe", "object"}
    for _, attributes in reader.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert str(value).startswith(("data:image/png;base64,", "#"))
    assert "url(" not in page
    assert "@import" not in page


def test_all_text_is_escaped() -> None:
    evil = '<script>alert("1")</script>'
    stages = {evil: {"relative_l2": 1e-2, "cosine": 0.9}}
    changes = {"model": evil, "precision": evil, "stages": stages, "kept_in_fp32": [evil]}
    for gate in ("pixels", "stages"):
        page = parity_page(report(gate=gate, **changes), [picture()])
        assert "<script" not in page
        assert evil in Reader(page).text
    assert "&lt;road&gt;" in page


def test_pictures_show_photo_both_label_maps_and_their_difference() -> None:
    photo, reference, typed, difference = images(parity_page(report(), [picture(pixels=96)]))
    assert photo.size == reference.size == typed.size == difference.size == (320, 240)
    colours = palette(3)
    assert (rgb(reference)[:79] == colours[0]).all()
    assert (rgb(typed)[0] == colours[1]).all()
    assert (rgb(typed)[5] == colours[0]).all()
    top, rest = rgb(difference)[0], rgb(difference)[4:]
    assert (top == top[0]).all()
    assert not (rest == top[0]).all(axis=-1).any()


def test_one_different_pixel_is_seen_even_when_scaled_down() -> None:
    labels = np.zeros((2000, 2000), np.uint16)
    other = labels.copy()
    other[1234, 777] = 2
    shown = picture(reference_labels=labels, typed_labels=other)
    difference = rgb(images(parity_page(report(), [shown]))[3])
    assert len(np.unique(difference.reshape(-1, 3), axis=0)) == 2


def test_more_categories_than_colours_are_shown() -> None:
    names = [f"category {k}" for k in range(300)]
    labels = (np.arange(300 * 300, dtype=np.uint16) % 300).reshape(300, 300)
    shown = picture(
        names=names,
        reference_labels=labels,
        typed_labels=labels,
        reference_prompts=[],
        typed_prompts=[],
    )
    assert len(images(parity_page(report(), [shown]))) == 4


def test_flipped_prompts_are_ringed() -> None:
    def circles(moved: int) -> int:
        reader = Reader(parity_page(report(), [picture(moved=moved)]))
        return sum(tag == "circle" for tag, _ in reader.tags)

    assert circles(0) == 15
    assert circles(2) == 15 + 2 * 2  # a ring is drawn twice: white, then black on it


def test_prompts_that_appear_or_vanish_are_ringed() -> None:
    for side in ("reference_prompts", "typed_prompts"):
        shown = picture()
        getattr(shown, side)[0].point_labels[1, 2] = -1
        reader = Reader(parity_page(report(), [shown]))
        assert sum(tag == "circle" for tag, _ in reader.tags) == 15 + 2
        assert not [tag for tag, _ in reader.tags if tag == "path"]


def test_flips_of_a_later_block_are_drawn_and_told_in_words() -> None:
    first, second = picture(), picture(moved=1)
    shown = picture(
        reference_prompts=[*first.reference_prompts, *second.reference_prompts],
        typed_prompts=[*first.typed_prompts, *second.typed_prompts],
    )
    reader = Reader(parity_page(report(), [shown]))
    assert "Prompts of block 1: 1 flipped" in reader.text
    assert "Prompts of block 0" not in reader.text
    x, y = second.reference_prompts[0].points[0, 0].astype(int)
    assert f"1skycolumn {x}, row {y}column {x + 1}, row {y}" in reader.text
    assert sum(tag == "rect" for tag, _ in reader.tags) == 2


def test_prompts_that_appear_have_no_place_in_torch() -> None:
    shown = picture()
    shown.reference_prompts[0].point_labels[2, 4] = -1
    assert "0<road>nonecolumn" in Reader(parity_page(report(), [shown])).text


def test_many_flips_are_counted() -> None:
    shown = picture(typed_prompts=[prompts(np.full((3, 5, 2), 5))])
    reader = Reader(parity_page(report(), [shown]))
    assert "Prompts of block 0: 15 flipped" in reader.text
    assert "And 7 more." in reader.text


def test_a_lone_different_pixel_is_ringed_and_many_are_not() -> None:
    def rings(pixels: int) -> int:
        shown = picture(pixels=pixels, reference_prompts=[], typed_prompts=[])
        reader = Reader(parity_page(report(), [shown]))
        return sum(tag == "circle" for tag, _ in reader.tags)

    assert [rings(0), rings(1), rings(32 * 96)] == [0, 1, 0]


def test_changes_of_labels_are_told_in_words() -> None:
    text = Reader(parity_page(report(), [picture(pixels=7)])).text
    assert "Difference: 7 of 9,216 pixels, 99.924 % equal" in text
    assert "Pixels that differ: sky became grass (7)." in text
    assert "Difference: none" in Reader(parity_page(report(), [picture()])).text


def test_the_text_encoder_stands_where_it_runs() -> None:
    stages = {name: {"relative_l2": 1e-4, "cosine": 1.0} for name in ("decoder", "text_encoder")}
    text = Reader(parity_page(report(stages=stages), [])).text
    assert text.index("text_encoder") < text.index("decoder")


def test_four_pictures_at_most_and_below_a_megabyte() -> None:
    page = parity_page(report(), [picture(moved=1)] * 6)
    assert len(images(page)) == 16
    assert len(page.encode()) < 1_000_000


def test_a_report_without_a_figure_is_an_error() -> None:
    incomplete = report()
    del incomplete["near_ties"]
    with pytest.raises(KeyError, match="near_ties"):
        parity_page(incomplete, [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((4, 4), np.uint8)}, r"image uint8 \[4, 4\]"),
        ({"image": np.zeros((4, 4, 3), np.float32)}, "image float32"),
        ({"typed_labels": np.zeros((5, 96), np.uint8)}, r"\[96, 96\] and \[5, 96\]"),
        ({"typed_labels": np.full((96, 96), 3, np.uint8)}, "labels 3 to 3 for 3 names"),
        ({"names": ("sky",)}, "for 1 names"),
        ({"typed_prompts": []}, "prompts of 1 and 0 blocks"),
        ({"typed_prompts": [prompts(np.zeros((2, 5, 2)))]}, "prompts of 2 categories"),
    ],
)
def test_a_picture_that_does_not_fit_together_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        picture(**changes)
