"""``escnet-bench report``: which files it takes, what it shows of them, and what it writes."""

import itertools
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from escnet_bench.command import main
from escnet_bench.report import find_results, read_result
from escnet_bench.report.bars import stage_bars
from escnet_bench.report.colours import DARK, LIGHT, MARKS, PAPER, Styles
from escnet_bench.report.grouping import shortened
from escnet_bench.report.lines import latency_panels, memory_panels, styles_of
from escnet_bench.report.page import report_page
from escnet_bench.report.points import accuracy_panels, same_panels
from escnet_bench.report.svg import spread
from escnet_bench.report.tables import ratio_tables
from escnet_runtime.errors import InputError
from tests.bench.result_files import (
    conditions,
    evaluation,
    latency,
    latency_row,
    parity,
    parity_row,
    write,
)
from tests.shared import ROOT

COMMITTED = ROOT / "benchmarks" / "results"
_HIDING = """
import sys
sys.modules["matplotlib"] = None
from escnet_bench.command import main
sys.exit(main(sys.argv[1:]))
"""


class Page(HTMLParser):
    """Tags, attributes and words of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read(folder: Path, *documents: object) -> list[Any]:
    """Results of documents, each in a file of its own."""
    paths = [write(folder / f"r{index}.json", one) for index, one in enumerate(documents)]
    return [read_result(path) for path in paths]


def run_json(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, Any]:
    """Exit code and the one JSON object on standard output."""
    code = main(["report", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_committed_results_are_all_understood() -> None:
    results = [read_result(path, name) for name, path in find_results([str(COMMITTED)])]
    shown = {result.benchmark for result in results if result.unused is None}
    assert {"footprint", "gflop", "precision", "eval", "gpu-check latency"} <= shown
    named = {result.file: result.unused for result in results if result.unused}
    assert "builds" in str(named["builds-tiny-fp16-cpu.json"])
    assert "before escnet-bench parity" in str(named["parity-tiny-cpu.json"])
    text = Page(report_page(results)).text
    for words in ("NVIDIA H200", "AMD EPYC, 2 cores", "builds-tiny-fp16-cpu.json", "vit-l-14-336"):
        assert words in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "bad.json is empty; expected a result file"),
        ("{", "bad.json is not valid JSON"),
        ("[1]", "bad.json: expected an object, got"),
        ('{"a": 1}', 'bad.json is no result file: got an object with the keys "a"; expected'),
        ("{}", "with the keys none"),
        (latency(schema_version="2.0"), "bad.json has schema 2.0, this escnet-bench reads 1.x"),
        (latency(schema_version="0.9"), "schema 0.9, this escnet-bench reads 1.x; measure again"),
        (latency(schema_version="9" * 5000), 'schema_version is "9999999'),
        (latency(schema_version=1), 'schema_version is 1, expected a text such as "1.0"'),
        (latency(conditions=[]), "bad.json: conditions: got list, expected an object"),
        (latency(conditions={"cpu": "x"}), "bad.json: conditions: missing date"),
        (latency(rows=[]), "bad.json: rows: got an empty list, expected at least one row"),
        (latency(rows={}), "bad.json: rows: got dict, expected a list"),
        (latency({"model": "x"}), "bad.json: rows[0]: missing implementation"),
        (latency(rows=[latency_row(), 5]), "bad.json: rows[1]: got int, expected an object"),
        (latency(latency_row(p50_ms="1")), "bad.json: rows[0]: p50_ms: expected float"),
        (latency(latency_row(p95_ms=-1.0)), "p95_ms is -1, expected 0 to 1e+15"),
        (latency(latency_row(categories=0)), "categories is 0, expected 1 to 1e+15"),
        (latency(latency_row(p50_ms=0.0)), "bad.json: rows[0]: p50_ms is 0, expected 1e-09"),
        (latency(latency_row(agreement=99.9)), "agreement is 99.9, expected 0 to 1"),
        (parity(parity_row(miou=81.2)), "bad.json: rows[0]: miou is 81.2, expected 0 to 1"),
        (evaluation(miou=81.2), "bad.json: miou is 81.2, expected 0 to 1"),
        (evaluation(pixel_accuracy=1.5), "bad.json: pixel_accuracy is 1.5, expected 0 to 1"),
        (latency(latency_row(peak_memory_bytes=10**400)), "peak_memory_bytes is no number"),
        (latency(latency_row(stages={"sam": -1.0})), "stages is -1, expected 0"),
        (latency(left_out={"a": 1}), "bad.json: left_out: got dict, expected a list"),
        (latency(conditions=conditions(clocks_after=[])), "conditions.clocks_after: got list"),
        (latency(conditions=conditions(clocks_after={"gpus": [{}]})), "gpus[0]: missing name"),
        (latency(conditions=conditions(clocks_before={"gpus": 1})), "clocks_before.gpus: got int"),
        (latency(ratios=[{}]), "bad.json: ratios[0]: missing model"),
        (parity(parity_row(stages=[])), "rows[0].stages: expected an object"),
        ('{"benchmark": "latency", "conditions": {}, "rows": [NaN]}', "is not valid JSON"),
        (b"\xff\xfe", "bad.json is no text in UTF-8"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_nothing_is_written(
    content: object, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.json"
    match content:
        case bytes():
            path.write_bytes(content)
        case str():
            path.write_text(content, encoding="utf-8")
        case _:
            write(path, content)
    good = write(tmp_path / "good.json", latency())
    code, document = run_json(capsys, good, path, "--output", tmp_path / "out")
    assert code == 2
    assert message in document["error"]["message"]
    assert not (tmp_path / "out").exists()


def test_what_is_being_written_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path / ".latency.json.tmp-1.json", {})
    with pytest.raises(InputError, match=r"no \*\.json in it"):
        find_results([str(tmp_path)])


def test_sources_are_files_folders_and_patterns(tmp_path: Path) -> None:
    a, b = write(tmp_path / "x" / "a.json", {}), write(tmp_path / "x" / "y" / "b.json", {})
    assert find_results([str(a)]) == [("a.json", a)]
    assert find_results([str(tmp_path)]) == [("x/a.json", a), ("x/y/b.json", b)]
    assert find_results([f"{tmp_path}/x/*.json", str(a)]) == [("a.json", a)]
    c = write(tmp_path / "z" / "y" / "b.json", {})
    assert find_results([str(b), str(c), str(a)]) == [
        ("y/b.json", b),
        ("y/b.json (2)", c),
        ("a.json", a),
    ]
    (tmp_path / "empty").mkdir()
    for nowhere in ("nowhere.json", "empty", "*.toml"):
        with pytest.raises(InputError, match=r"expected result files"):
            find_results([str(tmp_path / nowhere)])


def test_a_folder_that_is_called_like_a_file_is_none(tmp_path: Path) -> None:
    a = write(tmp_path / "x" / "a.json", {})
    b = write(tmp_path / "x" / "old.json" / "b.json", {})
    assert find_results([str(tmp_path / "x")]) == [("a.json", a), ("old.json/b.json", b)]


def test_a_name_that_no_file_can_have_is_refused() -> None:
    """Such as what is in a file, in place of its name."""
    with pytest.raises(InputError, match=r'^\{"benchmark".*…: .*; expected result files') as error:
        find_results([json.dumps(latency())])
    assert len(str(error.value)) < 600


def test_what_a_stranger_writes_is_text(tmp_path: Path) -> None:
    evil = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'
    document = latency(
        latency_row(implementation=evil, model=evil, precision=evil, stages={evil: 5.0}),
        conditions=conditions(cpu=evil, system=evil, packages={"torch": evil}),
        left_out=[{"implementation": evil, "reason": evil}],
        note=evil,
    )
    comparison = parity(parity_row(dataset=evil, stages={evil: {}}, model=evil))
    other = {**latency(), "benchmark": evil}
    page = report_page(read(tmp_path, document, comparison, other))
    found = Page(page)
    assert not {"script", "img", "iframe", "link", "object"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in found.text


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    page = report_page(read(tmp_path, latency(), parity()))
    found = Page(page)
    assert "default-src 'none'" in page
    targets = [v for name, v in found.attributes if name in {"src", "href", "xlink:href"}]
    assert targets
    assert all(str(target).startswith("#") for target in targets)
    assert not re.search(r"url\(|@import|https?://", page)


def test_what_was_not_measured_is_said_and_never_zero(tmp_path: Path) -> None:
    row = latency_row(stages=None, peak_memory_bytes=None, p95_ms=None, agreement=None)
    text = Page(report_page(read(tmp_path, latency(row)))).text
    for words in (
        "No file has times by stage. It is measured by escnet-bench latency",
        "No file says how right the masks are. It is measured by escnet-bench parity",
        "No file has memory.",
        "No file counts operations.",
        "No baseline was measured here",
    ):
        assert words in text
    results = read(tmp_path, latency(row))
    styles = styles_of(results)
    assert memory_panels(results, styles) == ([], [])
    assert stage_bars(results) == []


def test_lines_are_by_implementation_and_panels_by_machine(tmp_path: Path) -> None:
    gpu = conditions(gpus=["NVIDIA Test GPU, 8192 MiB, 600.1"], date="2026-11-28T00:00:00+00:00")
    kept = latency_row(allocator="kept", p50_ms=80.0)
    results = read(
        tmp_path, latency(), latency(conditions=gpu), latency(kept, latency_row(categories=58))
    )
    panels = latency_panels(results, styles_of(results))
    labels = [(panel.machine.label, panel.note) for panel in panels]
    usual = "fp16, unless a label says another"
    assert labels == [
        ("Test CPU, 4 cores · 2026-11-26", usual),
        ("Test CPU, 4 cores · 2026-11-26", "fp16; allocator keeps memory"),
        ("NVIDIA Test GPU · 2026-11-28", usual),
    ]
    lines = {one.name: one.points for one in panels[0].series}
    assert lines["torch fp32"] == ((19, 250.0), (150, 2000.0))
    # Another file of that day adds a number of categories that was not there.
    assert lines["onnxruntime"] == ((19, 100.0), (58, 100.0), (150, 500.0))
    assert panels[0].x == panels[2].x
    assert panels[0].y == panels[2].y


def test_two_runs_of_the_same_are_two_lines(tmp_path: Path) -> None:
    again = latency(latency_row(p50_ms=140.0), latency_row(p50_ms=600.0, categories=150))
    results = read(tmp_path, latency(), again)
    (panel,) = latency_panels(results, styles_of(results))
    lines = {one.name: one.points for one in panel.series}
    assert lines["onnxruntime (r0)"] == ((19, 100.0), (150, 500.0))
    assert lines["onnxruntime (r1)"] == ((19, 140.0), (150, 600.0))


def test_two_runs_of_the_same_are_two_points(tmp_path: Path) -> None:
    torch = {"implementation": "torch", "precision": "fp32", "agreement": 0.999}
    again = latency(latency_row(p50_ms=140.0), latency_row(**torch))
    results = read(tmp_path, latency(latency_row(), latency_row(precision="fp32")), again)
    (panel,) = same_panels(results, styles_of(results))
    assert [one.name for one in panel.series] == [
        "onnxruntime fp16 (r0)",
        "onnxruntime",
        "onnxruntime fp16 (r1)",
        "torch",
    ]


def test_what_a_processor_computes_is_not_its_gpus(tmp_path: Path) -> None:
    there = {"gpus": ["NVIDIA Test GPU, 8192 MiB, 600.1"]}
    on_cpu = latency(conditions=conditions(**there, device="cpu"))
    on_gpu = parity(
        parity_row(implementation="onnxruntime-cuda"),
        conditions=conditions(**there, device="gpu"),
    )
    older = latency(conditions=conditions(**there))
    names = [one.machine.name for one in read(tmp_path, on_cpu, on_gpu, older)]
    assert names == ["Test CPU, 4 cores", "NVIDIA Test GPU", "NVIDIA Test GPU"]
    results = read(tmp_path / "two", on_cpu, on_gpu)
    assert accuracy_panels(results, styles_of(results)) == ([], [])


def test_cores_that_could_not_be_used_are_not_the_machines(tmp_path: Path) -> None:
    """Such as in a container, or below taskset: another machine than with all of them."""
    some = latency(conditions=conditions(cores=64, usable_cores=2))
    every = latency(conditions=conditions(cores=64, usable_cores=64))
    older = latency(conditions=conditions(usable_cores=None))
    names = [one.machine.name for one in read(tmp_path, some, every, older)]
    assert names == ["Test CPU, 2 cores", "Test CPU, 64 cores", "Test CPU, 4 cores"]


def test_a_machine_with_several_gpus_has_the_names_of_all(tmp_path: Path) -> None:
    gpus = ["Small GPU, 2048 MiB, 600.1", "Large GPU, 81559 MiB, 600.1"]
    two = latency(conditions=conditions(gpus=gpus))
    four = latency(conditions=conditions(gpus=[gpus[1]] * 4))
    names = [one.machine.name for one in read(tmp_path, two, four)]
    assert names == ["Small GPU and Large GPU", "4 × Large GPU"]


def test_a_machine_that_was_held_back_is_remarked(tmp_path: Path) -> None:
    def clocks(throttled: int, *reasons: str) -> dict[str, Any]:
        gpu = {"name": "Test GPU", "sm_mhz": 1200, "celsius": 84, "throttle_reasons": [*reasons]}
        return {
            "cpu_mhz": [1800.0, 3200.5],
            "cpu_max_mhz": 3500.0,
            "governor": "schedutil",
            "cpu_throttled": throttled,
            "gpus": [gpu],
        }

    hot = {"clocks_before": clocks(7), "clocks_after": clocks(19, "power cap")}
    energy = "RAPL: processor packages"
    there = conditions(**hot, energy=energy, threads={"torch": 2})
    cool = conditions(clocks_before=clocks(7), clocks_after=clocks(7), energy=None)
    (one, other) = read(tmp_path, latency(conditions=there), latency(conditions=cool))
    assert one.remarks == (
        "the processor throttled itself 12 times meanwhile",
        "Test GPU was held back after the measurement (power cap)",
    )
    assert other.remarks == ()
    text = Page(report_page([one])).text
    assert "12 times meanwhile" in text
    assert "cores at 1800 to 3200 of 3500 MHz; governor schedutil" in text
    assert "Test GPU 1200 MHz, 84 °C, power cap" in text
    assert energy in text  # what the millijoules of the table are of
    assert "torch 2" in text


def test_control_characters_reach_no_page(tmp_path: Path) -> None:
    odd = latency_row(implementation="a\0b\x1b", model="m\x07")
    page = report_page(read(tmp_path, latency(odd, conditions=conditions(date="\0" * 10))))
    assert not [one for one in page if ord(one) < 32 and one != "\n"]
    assert "ab fp16" in Page(page).text


def test_a_card_says_how_much_faster_than_the_baseline(tmp_path: Path) -> None:
    torch = {"implementation": "torch", "precision": "fp32"}
    rows = (latency_row(**torch), latency_row(implementation="torch-compile-static", p50_ms=50.0))
    text = Page(report_page(read(tmp_path, latency(*rows)))).text
    assert "torch-compile-static fp16; 2.00 × as fast as torch" in text


def test_an_evaluation_in_openvino_meets_its_latency(tmp_path: Path) -> None:
    timed = latency(latency_row(implementation="openvino", categories=150, p50_ms=400.0))
    evaluated = evaluation(backend="OpenVINO 2026.4.0 on CPU, in float32")
    results = read(tmp_path, timed, evaluated)
    miou, _ = accuracy_panels(results, styles_of(results))
    assert miou[0].series[0].points == ((400.0, 0.7618),)


def ratios(results: list[Any], baseline: str | None = None) -> dict[str, tuple[Any, ...]]:
    """Of the only table: how many times as fast each row is."""
    (one,) = ratio_tables(results, baseline)
    return {name: speed for name, speed, _ in one.rows}


def test_ratios_are_of_rounds_where_there_are_some_else_of_medians(tmp_path: Path) -> None:
    assert ratios(read(tmp_path, latency())) == {
        "onnxruntime fp16": (2.5, 4.0),
        "torch fp32": (1.0, 1.0),
    }
    of_rounds = [
        {**{key: latency_row()[key] for key in ("model", "allocator", "categories")}, **one}
        for one in (
            {"implementation": "onnxruntime", "precision": "fp16", "ours": "x", "ratio": 1.0},
            {"implementation": "torch", "precision": "fp32", "ours": "x", "ratio": 3.0},
        )
    ]
    found = ratios(read(tmp_path, latency(ratios=of_rounds)))
    assert found["onnxruntime fp16"] == (3.0, 4.0)
    found = ratios(read(tmp_path, latency()), "onnxruntime")
    assert found["torch fp32"] == (0.4, 0.25)


def test_ratios_are_never_of_two_runs(tmp_path: Path) -> None:
    ours = latency(latency_row())
    theirs = latency(latency_row(implementation="torch", p50_ms=500.0))
    assert ratios(read(tmp_path, ours, theirs))["onnxruntime fp16"] == (None,)


def test_accuracy_meets_the_latency_of_the_same_bundle_alone(tmp_path: Path) -> None:
    results = read(tmp_path, latency(), parity())
    miou, agreement = accuracy_panels(results, styles_of(results))
    assert miou[0].series[0].points == ((500.0, 0.7618),)  # 150 is the nearest to 194
    assert agreement[0].series[0].points == ((500.0, 0.99988),)
    assert "timed at 150 categories" in miou[0].note
    changed = conditions()
    changed["bundle"]["sha256"] = "cd" * 32
    results = read(tmp_path, latency(), parity(conditions=changed))
    assert accuracy_panels(results, styles_of(results)) == ([], [])
    assert "No bundle has both a time and an accuracy" in Page(report_page(results)).text


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"window": "sliding"}, "window sliding"),
        ({"correlation": True, "window": "sliding"}, "CLIP's correlation alone, window sliding"),
        ({"shortlist": "auto"}, "shortlist auto"),
        ({"shortlist": 64}, "shortlist 64"),
    ],
)
def test_only_the_accuracy_of_what_was_timed_meets_a_latency(
    changes: dict[str, Any], note: str, tmp_path: Path
) -> None:
    results = read(tmp_path, latency(), evaluation())
    miou, _ = accuracy_panels(results, styles_of(results))
    assert miou[0].series[0].points == ((500.0, 0.7618),)
    results = read(tmp_path, latency(), evaluation(**changes))
    assert accuracy_panels(results, styles_of(results)) == ([], [])
    assert note in Page(report_page(results)).text


def test_parity_is_shown_with_flips_and_the_farthest_stage(tmp_path: Path) -> None:
    text = Page(report_page(read(tmp_path, parity()))).text
    for words in ("76.18%", "76.20%", "-0.020", "10 of 3,880", "1 / 2 / 3 / 4", "not finite"):
        assert words in text
    bare = {"reference": None, "pixel_agreement": None, "prompt_flips": None, "stages": None}
    bare |= {"reference_miou": None, "prompts": None}
    text = Page(report_page(read(tmp_path, parity(parity_row(**bare))))).text
    assert "99.870%" in text
    assert "9 of 360" in text
    assert "golden image alone" in text


def test_what_was_left_out_is_named_with_its_reason(tmp_path: Path) -> None:
    left_out = [
        {"implementation": "openvino", "precision": "fp32", "categories": 847, "reason": "no time"},
        {"implementation": "tensorrt", "categories": None, "reason": "not installed"},
    ]
    text = Page(report_page(read(tmp_path, latency(left_out=left_out)))).text
    assert "openvino, fp32, 847 categories no time" in text
    assert "tensorrt, any number of categories not installed" in text


def test_seconds_and_bytes_of_a_footprint_are_milliseconds_and_megabytes(tmp_path: Path) -> None:
    row = {
        "categories": 150,
        "chunk": 16,
        "backend": "ONNX Runtime 1.32.0 on CPU",
        "image": "made up, 640×480",
        "image_seconds": 0.25,
        "image_seconds_each": [0.25, 0.24, 0.26],
        "prompt_share": 0.1,
        "peak_memory_bytes": 300_000_000,
        "filled_cache": {"interpreter": 0.5, "total": 1.5},
        "stages": {"image_encoder": 0.2, "decoder": 0.04, "other": 0.01},
    }
    results = read(tmp_path, {**latency(), "benchmark": "footprint", "rows": [row]})
    (timing,) = results[0].timings
    assert (timing.p50_ms, timing.repeats, timing.first_mask_seconds) == (250, 3, 1.5)
    (bars,) = stage_bars(results)
    (bar,) = bars.rows[0].bars
    assert bar.total == pytest.approx(250)
    assert dict(bar.parts)["decoder"] == pytest.approx(40)
    (panel,), nothing = memory_panels(results, styles_of(results))
    assert nothing == []
    assert panel.series[0].points == ((150, 300.0),)
    assert panel.y.label.startswith("MB")


def test_small_stages_are_added_up_not_dropped(tmp_path: Path) -> None:
    stages = {f"stage{index}": 10.0 + index for index in range(12)}
    (bars,) = stage_bars(read(tmp_path, latency(latency_row(stages=stages))))
    (bar,) = bars.rows[0].bars
    assert len(bar.parts) == 8
    assert bar.parts[-1][0] == "other"
    assert bar.total == pytest.approx(sum(stages.values()))


@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_colours_stay_apart_for_everybody(palette: tuple[str, ...]) -> None:
    """At least 20 in CIELAB, seen with all cones, without those for long or medium waves."""
    for sight in _SIGHTS.values():
        labs = [_lab(colour, sight) for colour in palette]
        assert min(math.dist(a, b) for a, b in itertools.combinations(labs, 2)) > 20
    paper = PAPER[0] if palette is LIGHT else PAPER[1]
    assert min(_contrast(colour, paper) for colour in palette) >= 2.9
    assert len(palette) == len(MARKS) == len(set(MARKS))


def test_strangers_get_colours_that_are_left() -> None:
    styles = Styles.of(["onnxruntime", "mine", "yours", "onnxruntime-cuda"])
    assert styles.index["onnxruntime"] == styles.index["onnxruntime-cuda"] == 0
    assert len({styles.index["mine"], styles.index["yours"], 0}) == 3
    many = Styles.of([f"x{index}" for index in range(40)])
    assert set(many.index.values()) == set(range(len(LIGHT)))


def test_labels_do_not_lie_on_each_other() -> None:
    places = spread([50.0, 50.0, 51.0, 10.0, 99.0], 0.0, 100.0, 12.0)
    ordered = sorted(places)
    assert all(b - a >= 12 - 1e-9 for a, b in itertools.pairwise(ordered))
    assert places.index(min(places)) == 3
    assert places.index(max(places)) == 4


def test_the_command_writes_a_page_and_plots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "in" / "a.json", latency())
    write(tmp_path / "in" / "b.json", parity())
    write(tmp_path / "in" / "c.json", {**latency(), "benchmark": "soup"})
    out = tmp_path / "out"
    code, document = run_json(capsys, tmp_path / "in", "--output", out)
    assert code == 0
    assert document["report"] == str(out / "report.html")
    assert document["rows"] == {"latency": 4, "accuracy": 1, "operations": 0, "left_out": 0}
    assert document["files"] == ["a.json", "b.json"]
    assert document["not_shown"][0]["file"] == "c.json"
    names = {"latency", "memory", "miou-latency", "agreement-latency", "same-latency", "stages"}
    assert {Path(plot).name for plot in document["plots"]} == {f"{name}.png" for name in names}
    for plot in document["plots"]:
        with Image.open(plot) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 200
            colours = picture.convert("RGB").getcolors(1 << 24)
            assert colours is not None
            assert len(colours) > 20
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["report.html", *(Path(plot).name for plot in document["plots"])]
    )
    assert main(["report", str(tmp_path / "in"), "--output", str(out), "--no-plots"]) == 0
    assert "soup" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--baseline", "soup"], "nothing of that name was timed; there are onnxruntime, torch"),
        (["--readme", "R.md", "--no-plots"], "--readme writes only its table"),
        (["--readme", "nowhere.md"], "cannot read nowhere.md"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.json", latency())
    code, document = run_json(capsys, path, *words)
    assert code == 2
    assert message in document["error"]["message"]


def test_files_of_which_nothing_is_shown_are_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.json", {**latency(), "benchmark": "soup"})
    code, document = run_json(capsys, path, "--output", tmp_path / "out")
    assert code == 2
    assert "nothing to show: a.json: results of 'soup'" in document["error"]["message"]


def test_without_matplotlib_plots_are_an_error_that_names_the_extra(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", latency())
    command = [sys.executable, "-c", _HIDING, "report", str(path), "--output", str(tmp_path / "o")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "install escnet-bench[report], or take --no-plots" in done.stderr
    done = subprocess.run(
        [*command, "--no-plots"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


# Machado, Oliveira, Fernandes 2009, severity 1.
_SIGHTS = {
    "all": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "no long waves": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "no medium waves": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
}


def _linear(colour: str) -> list[float]:
    values = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]


def _lab(colour: str, sight: tuple[tuple[float, ...], ...]) -> tuple[float, float, float]:
    linear = _linear(colour)
    seen = [sum(a * b for a, b in zip(row, linear, strict=True)) for row in sight]
    red, green, blue = (min(max(value, 0.0), 1.0) for value in seen)
    x = (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.95047
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    z = (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.08883
    fx, fy, fz = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def _contrast(one: str, other: str) -> float:
    lights = [
        0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05
        for red, green, blue in (_linear(one), _linear(other))
    ]
    return max(lights) / min(lights)


@pytest.mark.parametrize(
    ("name", "most", "expected"),
    [
        ("torch", 5, "torch"),
        ("torch-plain", 8, "torch-p…"),
        ("torch (latency-tiny-again-cpu)", 23, "torch (…tiny-again-cpu)"),
        ("torch (latency-tiny-again-cpu)", 12, "torch (late…"),
        ("torch (latency-tiny-again-cpu)", 1, "t…"),
    ],
)
def test_a_label_keeps_what_tells_it_apart(name: str, most: int, expected: str) -> None:
    assert shortened(name, most) == expected
