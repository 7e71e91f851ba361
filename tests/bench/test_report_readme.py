"""The README's table is what the committed results give."""

import dataclasses
from pathlib import Path

import pytest

from escnet_bench.command import main
from escnet_bench.report import find_results, read_result
from escnet_bench.report.facts import Result
from escnet_bench.report.readme import BEGIN, END, readme_table, updated_readme
from escnet_runtime.errors import InputError
from tests.bench.result_files import latency, write
from tests.shared import ROOT

README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"


def committed() -> list[Result]:
    """All committed results."""
    return [read_result(path, name) for name, path in find_results([str(RESULTS)])]


def test_the_readmes_table_is_what_committed_results_give() -> None:
    text = README.read_text(encoding="utf-8")
    assert updated_readme(text, committed()) == text, (
        "run: escnet-bench report benchmarks/results --readme README.md"
    )


def test_each_row_names_a_file_that_is_there() -> None:
    text = README.read_text(encoding="utf-8")
    rows = text.partition(BEGIN)[2].partition(END)[0].strip().splitlines()[2:]
    assert len(rows) >= 9
    for row in rows:
        assert (RESULTS / row.split("|")[-2].strip().strip("`")).is_file()


def test_a_row_of_another_backend_than_the_usual_names_it() -> None:
    [one, *_] = [timing for r in committed() if r.benchmark == "footprint" for timing in r.timings]
    result = dataclasses.replace(
        committed()[0],
        benchmark="footprint",
        timings=(one, dataclasses.replace(one, implementation="openvino")),
    )
    bundles = [row.split("|")[1].strip() for row in readme_table([result]).splitlines()[2:]]
    assert bundles == [f"`{one.model}` {one.precision}", f"`{one.model}` {one.precision}, openvino"]


def test_no_name_breaks_the_table() -> None:
    [one, *_] = [timing for r in committed() if r.benchmark == "footprint" for timing in r.timings]
    odd = dataclasses.replace(one, model="a|b\nc", file="x|y.json")
    result = dataclasses.replace(committed()[0], benchmark="footprint", timings=(odd,))
    _, _, row = readme_table([result]).splitlines()
    assert row.startswith(f"| `a\\|bc` {one.precision} |")
    assert row.endswith("| `x\\|y.json` |")


def test_nothing_in_a_file_is_markdown_of_the_readme() -> None:
    """Anybody's file may be among the committed ones."""
    [one, *_] = [timing for r in committed() if r.benchmark == "footprint" for timing in r.timings]
    evil = "x` [free](https://evil.example) <img src=x> **y**"
    odd = dataclasses.replace(one, model=evil, precision=evil, implementation=evil, file=evil)
    result = dataclasses.replace(committed()[0], benchmark="footprint", timings=(odd,))
    row = readme_table([result]).splitlines()[2]
    outside = "".join(row.split("`")[::2])  # what is no code
    assert not set("[]<>*") & set(outside)
    assert row.count("`") == 8


def test_what_is_around_the_table_stays(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# A\n\n{BEGIN}\nold\n{END}\n\nrest\n", encoding="utf-8")
    assert main(["report", str(RESULTS), "--readme", str(readme)]) == 0
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(f"# A\n\n{BEGIN}\n| bundle |")
    assert text.endswith(f"|\n{END}\n\nrest\n")
    assert "old" not in text
    before = readme.stat().st_mtime_ns
    assert main(["report", str(RESULTS), "--readme", str(readme)]) == 0
    assert readme.stat().st_mtime_ns == before


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_marks_that_are_not_there_once_are_an_error(text: str) -> None:
    with pytest.raises(InputError, match="once each, in this order"):
        updated_readme(text, committed())


def test_without_footprints_there_is_no_table(tmp_path: Path) -> None:
    result = read_result(write(tmp_path / "a.json", latency()))
    with pytest.raises(InputError, match="no file is a footprint"):
        updated_readme(f"{BEGIN}{END}", [result])
