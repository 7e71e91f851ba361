"""Graphs as a library has rewritten them are kept, and change nothing but the time to load them."""

import hashlib
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from escnet_runtime import Segmenter
from escnet_runtime.backends import GraphFile, graph_cache, onnxruntime
from escnet_runtime.backends.graph_cache import GraphCache
from escnet_runtime.bundle import Bundle
from escnet_runtime.manifest import Precision

NAMES = ["red ring", "blue star", "grass"]
PICTURE = np.random.default_rng(4).integers(0, 256, (90, 120, 3), np.uint8)


@pytest.fixture(params=["onnxruntime", "openvino"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "openvino":
        pytest.importorskip("openvino")
    return str(request.param)


def logits_of(bundle: Path, cache: Path | None, backend: str) -> list[np.ndarray]:
    """All logits of a picture: what a rewritten graph must not change by a bit."""
    with Segmenter(bundle, backend, cache=cache) as segmenter:
        vocabulary = segmenter.vocabulary(NAMES)
        return [logits.copy() for _, logits in segmenter.image_logits(PICTURE, vocabulary)]


def same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def kept(cache: Path) -> list[Path]:
    return sorted((cache / "graphs-v1").iterdir())


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, backend: str) -> list[str]:
    """Notes the graphs that are read and rewritten."""
    noted: list[str] = []
    module = importlib.import_module(f"escnet_runtime.backends.{backend}")
    kind = {"onnxruntime": "OnnxRuntimeBackend", "openvino": "OpenVinoBackend"}[backend]
    original = getattr(module, kind)._made

    def noting(self: object, graph: Any, *more: object) -> object:
        noted.append(graph if isinstance(graph, str) else graph.path.stem)
        return original(self, graph, *more)

    monkeypatch.setattr(getattr(module, kind), "_made", noting)
    return noted


def test_the_second_start_makes_no_graph_and_changes_no_bit(
    tiny_bundle: Path, tmp_path: Path, made: list[str], backend: str
) -> None:
    without = logits_of(tiny_bundle, None, backend)
    assert not (tmp_path / "graphs-v1").exists()
    first = logits_of(tiny_bundle, tmp_path, backend)
    graphs = len(kept(tmp_path))
    assert graphs == len({path.name for path in kept(tmp_path)}) > 10
    made.clear()
    second = logits_of(tiny_bundle, tmp_path, backend)
    assert made == []
    assert same(without, first)
    assert same(without, second)
    assert len(kept(tmp_path)) == graphs


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "refused"])
def test_a_damaged_file_is_made_anew(
    tiny_bundle: Path, tmp_path: Path, made: list[str], backend: str, damage: str
) -> None:
    right = logits_of(tiny_bundle, tmp_path, backend)
    path = max(kept(tmp_path), key=lambda one: one.stat().st_size)
    content = path.read_bytes()
    if damage == "refused":  # whole, and yet no graph: what another build of the library may leave
        path.write_bytes(b"no graph" + hashlib.sha256(b"no graph").digest())
    elif damage == "flipped":
        path.write_bytes(content[:99] + bytes([content[99] ^ 1]) + content[100:])
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    made.clear()
    assert same(logits_of(tiny_bundle, tmp_path, backend), right)
    assert len(made) == 1
    made.clear()
    assert same(logits_of(tiny_bundle, tmp_path, backend), right)
    assert made == []


def test_another_processor_has_other_files(
    tiny_bundle: Path,
    tmp_path: Path,
    made: list[Any],
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits_of(tiny_bundle, tmp_path, backend)
    # Embeddings are kept for every processor, so nobody asks for the text encoder again.
    expected = [graph for graph in made if graph != "text_encoder"]
    before = len(kept(tmp_path))
    monkeypatch.setattr(graph_cache, "processor_features", lambda: frozenset(["another"]))
    made.clear()
    logits_of(tiny_bundle, tmp_path, backend)
    assert made == expected
    assert len(kept(tmp_path)) == before + len(expected)


def test_a_cache_that_cannot_be_written_is_bypassed(
    tiny_bundle: Path, tmp_path: Path, backend: str
) -> None:
    (tmp_path / "graphs-v1").write_text("a file where the folder should be")
    assert same(logits_of(tiny_bundle, tmp_path, backend), logits_of(tiny_bundle, None, backend))


def test_a_disk_that_is_full_is_bypassed(
    tiny_bundle: Path, tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def nowhere(_: GraphCache, graph: str, source: Path) -> Iterator[Path]:
        yield tmp_path / "not there" / "file.onnx"

    monkeypatch.setattr(GraphCache, "keeping", nowhere)
    assert same(logits_of(tiny_bundle, tmp_path, backend), logits_of(tiny_bundle, None, backend))


def test_what_our_own_code_rewrites_is_not_kept(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Bundle.open(tiny_bundle).manifest.stages["correlation"]
    path = tiny_bundle / stage.file
    monkeypatch.setattr(onnxruntime, "_emulated_bf16", lambda model: model)
    file = GraphFile(path, Precision.BF16, stage)
    backend = onnxruntime.OnnxRuntimeBackend({"correlation": file}, cache=tmp_path)
    assert backend._session("correlation") is not None
    assert not (tmp_path / "graphs-v1").exists()


def test_a_graph_that_cannot_be_loaded_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source.onnx"
    source.write_bytes(b"source")
    cache = GraphCache(tmp_path, "here")

    def refuse() -> None:
        with cache.keeping("a", source) as target:
            assert target is not None
            target.write_bytes(b"half")
            raise ValueError("no graph")

    with pytest.raises(ValueError, match="no graph"):
        refuse()
    assert kept(tmp_path) == []
    assert cache.opened("a", bytes) is None


def put(cache: GraphCache, graph: str, content: bytes, source: Path) -> None:
    with cache.keeping(graph, source) as target:
        if target is not None:
            target.write_bytes(content)


def test_large_graphs_are_not_kept(tmp_path: Path) -> None:
    source = tmp_path / "source.onnx"
    source.write_bytes(bytes(1001))
    cache = GraphCache(tmp_path, "here", max_source_bytes=1000)
    put(cache, "a", b"graph", source)
    assert cache.opened("a", bytes) is None
    assert not (tmp_path / "graphs-v1").exists()


def test_what_was_unused_for_longest_makes_room(tmp_path: Path) -> None:
    source = tmp_path / "source.onnx"
    source.write_bytes(b"source")
    cache = GraphCache(tmp_path, "here", max_bytes=3 * 132)
    for age, name in enumerate("abc"):
        put(cache, name, name.encode() * 100, source)
        for path in kept(tmp_path):
            about = path.stat()
            os.utime(path, (about.st_atime, about.st_mtime - 10 - age))
    assert cache.opened("a", bytes) == b"a" * 100  # used now
    abandoned = tmp_path / "graphs-v1" / ".0123.onnx"
    abandoned.write_bytes(b"half")
    os.utime(abandoned, (0, 0))
    put(cache, "d", b"d" * 100, source)
    assert [cache.opened(name, bytes) is not None for name in "abcd"] == [True, False, True, True]
    assert not abandoned.exists()
