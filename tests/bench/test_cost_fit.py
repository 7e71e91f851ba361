"""The model behind ``escnet-build --plan`` is the fit of measurements that are committed."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from escnet_bench.builds import measure_builds
from escnet_bench.command import main
from escnet_bench.cost_fit import fit
from escnet_bench.cost_fit import main as fit_main
from escnet_engines import Library, open_library
from escnet_engines.cost import OTHER, cost_model
from escnet_runtime.errors import EscNetError, InputError
from tests.engines.bundles import MATMUL, STATIC, UNSHAPEABLE, write_bundle
from tests.shared import ROOT


@pytest.fixture
def compiler() -> Library:
    """TensorRT-RTX, which compiles without a GPU."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs escnet-engines[tensorrt-rtx]")
    return open_library("tensorrt-rtx")


def _row(graph: str, weights: int, live: int, **changes: Any) -> dict[str, Any]:
    """A build that follows the model exactly."""
    row = {
        "library": "compiler 1.0",
        "graph": graph,
        "onnx_bytes": weights,
        "live_bytes": live,
        "engine_bytes": weights + 2_000,
        "scratch_bytes": 8_000 + 3 * live,
        "seconds": 0.5 + 1e-6 * weights,
        "host_bytes": 50_000 + 4 * weights,
        "process_bytes": 1_000_000,
    }
    return {**row, **changes}


def _document(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"conditions": {"cpu": "a processor"}, "rows": list(rows)}


def test_what_follows_the_model_is_found_again() -> None:
    rows = [_row(f"esc{i}_sam", 10**4 * (i + 1), 500 * (i + 1)) for i in range(4)]
    model = fit({"builds.json": _document(*rows)})
    assert model.kinds.keys() == {"esc_sam", OTHER}
    for kind in model.kinds.values():
        assert kind.code == 2_000
        assert kind.scratch == pytest.approx(8_000, rel=1e-3)
        assert kind.scratch_per_live_byte == pytest.approx(3, rel=1e-3)
        assert kind.seconds == pytest.approx(0.5, rel=1e-3)
        assert kind.host == pytest.approx(50_000, rel=1e-3)
    assert model.host_per_byte == pytest.approx(4, rel=1e-3)
    assert model.worst == dict.fromkeys(
        ("engine_bytes", "scratch_bytes", "seconds", "host_bytes"), 1.0
    )
    assert (model.library, model.cpu, model.builds) == ("compiler 1.0", "a processor", 4)


def test_no_slope_is_below_zero() -> None:
    """Where more is measured to take less, by chance, the plan must still rise with the chunk."""
    rows = [_row("decoder", 10**4, live, scratch_bytes=9_000 - live) for live in (100, 500, 900)]
    kind = fit({"builds.json": _document(*rows)}).kinds["decoder"]
    assert kind.scratch_per_live_byte == 0
    assert 8_100 <= kind.scratch <= 8_900


def test_builds_that_do_not_tell_scratch_count_for_the_rest() -> None:
    rows = [_row("decoder", 10**4, live) for live in (100, 500, 900)]
    model = fit({"a.json": _document(*rows, _row("decoder", 2 * 10**4, 10, scratch_bytes=None))})
    assert model.builds == 4
    assert model.kinds["decoder"].scratch_per_live_byte == pytest.approx(3, rel=1e-3)


def test_builds_of_several_libraries_are_refused() -> None:
    rows = [_row("decoder", 1, 1), _row("decoder", 1, 1, library="compiler 2.0")]
    with pytest.raises(InputError, match=r"of one library, got .*compiler 2\.0"):
        fit({"builds.json": _document(*rows)})


def test_the_model_that_ships_is_the_fit_of_what_was_measured() -> None:
    shipped = cost_model()
    documents = {
        name: json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))
        for name in shipped.files
    }
    again = fit(documents)
    assert again.kinds.keys() == shipped.kinds.keys()
    for name, kind in again.kinds.items():
        for field, value in dataclasses.asdict(kind).items():
            assert getattr(shipped.kinds[name], field) == pytest.approx(value, rel=0.01)
    assert shipped.worst == pytest.approx(again.worst, rel=0.01)
    assert shipped.builds == sum(len(document["rows"]) for document in documents.values())


@pytest.mark.slow
def test_builds_are_measured_one_by_one(
    compiler: Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_bundle(tmp_path / "b", {"scores": MATMUL, "fuse": STATIC}).root
    words = ["builds", "--bundle", str(root), "--chunk", "16", "64", "--json"]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    rows = document["rows"]
    assert [(row["graph"], row["chunk"]) for row in rows] == [
        ("scores", 16),
        ("fuse", 16),
        ("scores", 64),
    ]
    for row in rows:
        assert row["engine_bytes"] > 1000
        assert row["host_bytes"] > 10**6
        assert row["process_bytes"] > 10**7
        assert row["seconds"] > 0
    assert rows[0]["live_bytes"] * 4 == rows[2]["live_bytes"]
    assert fit({"builds.json": document}).builds == 3


def test_a_build_that_fails_is_named(compiler: Library, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", {"good": STATIC, "fine": MATMUL, "bad": UNSHAPEABLE})
    with pytest.raises(EscNetError, match=r"compiling bad\.onnx failed: .*node_reshape"):
        measure_builds(bundle, [16], backend="tensorrt-rtx", target="sm_86")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--help"], 0, "usage: python -m escnet_bench.cost_fit"),
        ([], 2, "the following arguments are required: RESULT"),
        (["none.json"], 2, "none.json"),
    ],
)
def test_the_fit_says_what_it_wants(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        fit_main(words)
    assert ended.value.code == code
    assert said in "".join(capsys.readouterr())
