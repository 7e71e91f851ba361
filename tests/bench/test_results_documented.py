"""Every key that a result file may have is told in the documents."""

import json
from pathlib import Path

import pytest

from tests.shared import ROOT

RESULTS = ROOT / "benchmarks/results"
#: Made by hand: their method tells what their keys are.
BY_HAND = {"chunks", "export", "photos", "engines", "calibration", "training"}
DOCUMENTS = ("benchmarks/results/README.md", "docs/benchmarks.md", "docs/benchmarks-report.md")


@pytest.mark.parametrize(
    "path", sorted(RESULTS.rglob("*.json")), ids=lambda path: path.relative_to(RESULTS).as_posix()
)
def test_every_key_of_a_committed_file_is_documented(path: Path) -> None:
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS)
    document = json.loads(path.read_text(encoding="utf-8"))
    kind = document.get("benchmark", "eval")
    if kind in BY_HAND or path.name == "parity-tiny-cpu.json":
        pytest.skip("put together by hand")
    rows = document.get("rows", [])
    keys = {key for row in rows for key in row} | set(document) | set(document["conditions"])
    frame = {"benchmark", "schema_version", "conditions", "rows", "note"}
    assert not {key for key in keys - frame if f"`{key}`" not in text and f'"{key}"' not in text}
