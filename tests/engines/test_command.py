"""``escnet-build`` from the outside: what it says and its exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest

import escnet_engines
from escnet_engines import Library
from escnet_engines.command import main
from escnet_runtime.bundle import Bundle
from tests.engines.bundles import STATIC, UNREADABLE, write_bundle


def _json(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any]]:
    code = main([*map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_result_in_json(
    plain: Bundle, rtx: Library, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (plain.root, "--backend", "tensorrt-rtx", "--target", "sm_89,sm_86")
    code, result = _json(capsys, *words)
    assert code == 0
    assert (result["target"], result["backend"]) == ("sm_86,sm_89", "tensorrt-rtx")
    assert result["chunks"] == [32]
    assert [engine["graph"] for engine in result["engines"]] == ["scores", "fuse"]
    for engine in result["engines"]:
        assert engine["bytes"] == (plain.root / engine["file"]).stat().st_size
        assert engine["seconds"] > 0
    assert result["scratch_bytes"] == max(one["scratch_bytes"] for one in result["engines"])
    again = _json(capsys, *words)[1]
    assert (again["reused"], again["engines"]) == (True, result["engines"])


def test_the_result_for_people(
    built: Path, rtx: Library, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(built), "--backend", "tensorrt-rtx", "--target", "sm_86,sm_89"]) == 0
    shown = capsys.readouterr()
    assert "engines/tensorrt-rtx-sm_86-sm_89: 2 engines of tensorrt-rtx" in shown.out
    assert "were there and fit" in shown.out
    assert shown.err == ""  # no bar where there is no terminal


def test_a_failed_graph_exits_1(
    rtx: Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_bundle(tmp_path / "b", {"fuse": STATIC, "broken": UNREADABLE}).root
    code, result = _json(capsys, root, "--backend", "tensorrt-rtx", "--target", "sm_86")
    assert code == 1
    assert result["error"]["type"] == "BuildError"
    assert "node 'node_det' (Det)" in result["error"]["message"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backend", "other"], "invalid choice"),
        ([], "--backend"),
        (["--backend", "tensorrt-rtx", "--chunk", "many"], "invalid int value"),
        (["--backend", "tensorrt-rtx", "--workspace", "0"], "--workspace is 0"),
        # Of who takes it for bytes.
        (["--backend", "tensorrt-rtx", "--workspace", str(2**32)], "MiB, expected 1 to 1,048,576"),
        (["--backend", "tensorrt-rtx", "--rounds", "3"], "--rounds goes with the backends onnx"),
        (["--backend", "tensorrt", "--categories", "9"], "tensorrt times kernels itself"),
    ],
)
def test_wrong_usage_exits_2(
    options: list[str], message: str, plain: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result = _json(capsys, plain.root, *options)
    assert code == 2
    assert message in result["error"]["message"]


def test_no_bundle_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = _json(capsys, tmp_path, "--backend", "tensorrt-rtx")
    assert code == 2
    assert "is not a bundle" in result["error"]["message"]


def test_the_public_face() -> None:
    assert escnet_engines.__all__ == [
        "COMPILERS",
        "BuildError",
        "BuildMemoryError",
        "BuildPlan",
        "BuildReport",
        "ChunkReport",
        "ChunkSizes",
        "Library",
        "build_engines",
        "chunk_sizes",
        "measure_chunks",
        "open_library",
        "plan_build",
    ]
