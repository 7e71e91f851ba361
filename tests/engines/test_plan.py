"""What is told before a build: rises with the chunk, and comes near to what a build takes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from escnet_engines import BuildError, Library, plan_build
from escnet_engines.command import main
from escnet_engines.cost import OTHER, cost_model, graph_kind
from escnet_engines.library import Job
from escnet_engines.plan import boundary_bytes
from escnet_engines.profiles import stage_profiles
from escnet_runtime.bundle import Bundle
from escnet_runtime.engine_record import AxisRange
from escnet_runtime.errors import BackendError, BundleIntegrityError, InputError
from tests.engines.bundles import MATMUL, OVERSIZED, STATIC, UNREADABLE, UNSHAPEABLE, write_bundle
from tests.engines.conftest import Built

#: The model's own worst factors are below these; other machines and weights may add a little.
FACTORS = {"engine_bytes": 1.6, "scratch_bytes": 2.0, "host_bytes": 1.3}
#: Processors differ.
SECONDS_FACTOR = 6.0


def _job(bundle: Bundle, name: str, chunks: tuple[int, ...]) -> Job:
    stage = bundle.manifest.stages[name]
    return Job(
        onnx=bundle.file(stage.file),
        inputs=stage.inputs,
        profiles=stage_profiles(name, stage, bundle.manifest, chunks),
        targets=("sm_86",),
    )


def test_the_plan_of_tiny_is_near_its_build(rtx: Library, tiny_built: Built) -> None:
    bundle, record = Bundle.open(tiny_built.root), tiny_built.record
    plan = plan_build(bundle, rtx, target="sm_86", chunks=[bundle.manifest.constants.chunk])
    (chunk,) = plan.chunks
    assert record.scratch_bytes is not None
    pairs = {
        "engine_bytes": (plan.engine_bytes, sum(one.bytes for one in record.engines.values())),
        "scratch_bytes": (chunk.scratch_bytes, record.scratch_bytes),
    }
    for quantity, (told, found) in pairs.items():
        assert found / FACTORS[quantity] <= told <= found * FACTORS[quantity], quantity
    for graph in plan.graphs:
        engine = record.engines[graph.graph]
        assert engine.scratch_bytes is not None
        for quantity, told, found in (
            ("engine_bytes", graph.engine_bytes, engine.bytes),
            ("scratch_bytes", graph.scratch_bytes, engine.scratch_bytes),
        ):
            factor = FACTORS[quantity]
            assert found / factor <= told <= found * factor, (graph.graph, quantity)
    assert plan.seconds is not None
    assert tiny_built.cpu_seconds / SECONDS_FACTOR <= plan.seconds
    assert plan.seconds <= tiny_built.cpu_seconds * SECONDS_FACTOR


def test_a_larger_chunk_takes_more(rtx: Library, tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    own = bundle.manifest.constants.chunk
    plan = plan_build(bundle, rtx, target="sm_86")
    assert [one.chunk for one in plan.chunks] == [own, 2 * own, 4 * own, 8 * own]
    for quantity in ("scratch_bytes", "boundary_bytes", "device_bytes"):
        sizes = [getattr(one, quantity) for one in plan.chunks]
        assert sizes == sorted(sizes), quantity
        assert sizes[0] < sizes[-1], quantity
    for one in plan.chunks:
        assert one.device_bytes == plan.engine_bytes + one.scratch_bytes + one.boundary_bytes
    assert [graph.graph for graph in plan.graphs] == list(bundle.manifest.stages)
    assert plan.host_bytes > max(graph.host_bytes for graph in plan.graphs)
    assert not (bundle.root / "engines").exists()


def test_chunks_that_are_asked_for_are_those_told(rtx: Library, plain: Bundle) -> None:
    one = plan_build(plain, rtx, target="sm_86", chunks=[64])
    two = plan_build(plain, rtx, target="sm_86", chunks=[16, 64])
    assert [chunk.chunk for chunk in two.chunks] == [16, 64]
    assert two.chunks[-1] == one.chunks[-1]
    assert two.seconds is not None
    assert one.seconds is not None
    assert one.seconds < two.seconds < 2 * one.seconds  # only one of the graphs has a chunk


def test_bytes_alive_at_once_are_those_of_the_graph(rtx: Library, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", {"square": OVERSIZED, "scores": MATMUL, "fuse": STATIC})
    chunks = (256, 1024)
    # The n × n products, their softmax, and the parser's copy of it, four bytes each.
    assert rtx.survey(_job(bundle, "square", chunks)) == tuple(12 * n**2 for n in chunks)
    assert rtx.survey(_job(bundle, "scores", chunks)) == tuple(32 * n for n in chunks)
    assert rtx.survey(_job(bundle, "fuse", chunks)) == (2 * 4 * 8,)  # and a copy again


def test_inputs_and_outputs_are_counted_by_their_types(plain: Bundle) -> None:
    stage = plain.manifest.stages["scores"]
    half = dataclasses.replace(stage.outputs[0], dtype="float16")
    stage = dataclasses.replace(stage, outputs=(half,))
    profile = {"n": AxisRange(least=1, tuned=8, most=48)}
    assert boundary_bytes(stage, profile) == 48 * 4 * 4 + 48 * 4 * 2
    assert boundary_bytes(plain.manifest.stages["fuse"], None) == 8 * 4 + 8 * 4


def test_the_model_that_ships_is_plausible(tiny_bundle: Path) -> None:
    model = cost_model()
    assert model.kinds.keys() == {OTHER} | {
        graph_kind(name) for name in Bundle.open(tiny_bundle).manifest.stages
    }
    for quantity, factor in FACTORS.items():
        assert 1.0 <= model.worst[quantity] <= factor
    for name in ("esc2_sam", "something_new"):
        small = model.graph(name, onnx_bytes=10**6, live_bytes=10**6)
        large = model.graph(name, onnx_bytes=10**8, live_bytes=10**8)
        for quantity, value in dataclasses.asdict(small).items():
            assert 0 < value < getattr(large, quantity)


def test_a_graph_that_cannot_be_read_is_named(rtx: Library, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", {"fuse": STATIC, "broken": UNREADABLE})
    with pytest.raises(BuildError, match=r"graph 'broken' .*cannot be read .*node 'node_det'"):
        plan_build(bundle, rtx, target="sm_86")


def test_sizes_that_contradict_each_other_are_named(rtx: Library, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", {"fuse": STATIC, "broken": UNSHAPEABLE})
    with pytest.raises(BuildError, match=r"graph 'broken' .*node 'node_reshape'"):
        plan_build(bundle, rtx, target="sm_86")


def test_a_changed_graph_is_not_planned(rtx: Library, plain: Bundle) -> None:
    path = plain.root / "graphs" / "scores.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleIntegrityError, match="its sha256 is not the manifest's"):
        plan_build(plain, rtx, target="sm_86")


def test_options_are_those_of_the_build(rtx: Library, plain: Bundle) -> None:
    with pytest.raises(InputError, match="a chunk is 0"):
        plan_build(plain, rtx, target="sm_86", chunks=[0])
    with pytest.raises(InputError, match="does not compile these graphs for sm_99"):
        plan_build(plain, rtx, target="sm_99")


def _json(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any]]:
    code = main([*map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_plan_in_json_builds_nothing(
    rtx: Library, plain: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--backend", "tensorrt-rtx", "--target", "sm_89,sm_86", "--plan")
    code, result = _json(capsys, plain.root, *words, "--chunk", 20)
    assert code == 0
    assert (result["target"], result["backend"]) == ("sm_86,sm_89", "tensorrt-rtx")
    assert [chunk["chunk"] for chunk in result["chunks"]] == [32]
    assert [engine["graph"] for engine in result["engines"]] == ["scores", "fuse"]
    assert result["bytes"] == sum(engine["bytes"] for engine in result["engines"])
    assert result["seconds"] > 0
    assert result["host_bytes"] > 10**8
    assert result["model"]["worst"].keys() == {*FACTORS, "seconds"}
    assert not (plain.root / "engines").exists()


def test_the_plan_for_people(
    rtx: Library, plain: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(plain.root), "--backend", "tensorrt-rtx", "--target", "sm_86", "--plan"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "largest chunk" in shown
    assert "Compiling for sm_86: about" in shown
    assert "Nothing was built" in shown


def test_of_a_compiler_that_was_not_measured_the_time_is_unknown(
    rtx: Library, plain: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rtx, "backend", "tensorrt")
    with pytest.raises(BackendError, match="no NVIDIA GPU is visible"):
        plan_build(plain, rtx, target="auto")
    monkeypatch.setattr("escnet_engines.plan.choose_targets", lambda *_: ("sm_90",))
    plan = plan_build(plain, rtx, target="auto")
    assert plan.seconds is None
    assert {graph.seconds for graph in plan.graphs} == {None}
