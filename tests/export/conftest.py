"""A model small enough to export in seconds, its graphs, and bundles that reuse them."""

import dataclasses
import functools
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from escnet.build import build_model
from escnet.config import EscNetConfig
from escnet.model import EscNet
from escnet.presets import preset
from escnet.weights import save_checkpoint
from escnet_export import ExportReport, export_bundle
from escnet_export.export import GraphExporter
from escnet_export.graphs import Graph, model_graphs
from escnet_export.precision import DTYPES, cast_model
from escnet_export.samples import SAMPLE_CATEGORIES
from escnet_export.scenes import SceneSet
from escnet_runtime.images import ImageArray
from escnet_runtime.manifest import Precision
from tests.model.models import randomise

__all__ = ["Export", "GraphFiles", "mini_config"]

#: What only travels from graph to graph, in the type that they compute in.
TRAVELLING = frozenset(
    [
        *("block_features", "block_features_out", "guidance", "embedding", "embedding_out"),
        *("skip0", "skip1"),
    ]
)
#: (output, options of export_bundle) → its report.
Export = Callable[..., ExportReport]


class GraphFiles:
    """Graphs of a model, exported when they are first asked for.

    Tracing is what exporting costs, and models of one configuration differ in the values of their
    weights alone: what was traced for one of them serves all.
    """

    def __init__(self, model: EscNet, folder: Path) -> None:
        self._model, self._folder = model, folder
        self._exporters = {kind: GraphExporter(model.config, kind) for kind in Precision}

    def __call__(self, name: str, precision: Precision) -> Path:
        """The file of a graph of the model."""
        path = self._folder / f"{name}-{precision}.onnx"
        if not path.exists():
            graphs = model_graphs(cast_model(self._model, precision))
            self.export(next(graph for graph in graphs if graph.name == name), precision, path)
        return path

    def export(self, graph: Graph, precision: Precision, path: Path) -> None:
        """Export a graph of a model with the same configuration."""
        self._exporters[precision].export(graph, path)


def mini_config() -> EscNetConfig:
    """The default preset with thinner parts, an 8×8 grid and two blocks."""
    tiny = preset("tiny")
    clip = dataclasses.replace(
        tiny.clip,
        embed_dim=32,
        image_size=64,
        vision_width=32,
        vision_layers=3,
        vision_head_width=16,
        text_width=32,
        text_heads=2,
        text_layers=1,
        skip_layers=(0, 1),
    )
    sam = dataclasses.replace(tiny.sam, embed_dim=32, heads=2, mlp_dim=64)
    fusion = dataclasses.replace(tiny.fusion, hidden_dim=32, window=4)
    return dataclasses.replace(tiny, name="mini", clip=clip, sam=sam, fusion=fusion, blocks=2)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors on several threads wait for each other, a hundredfold on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def mini() -> EscNet:
    """A model in which no parameter has the value it was born with. Do not change it."""
    return randomise(build_model(mini_config(), seed=3)).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def checkpoint(mini: EscNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the small model."""
    path = tmp_path_factory.mktemp("checkpoint") / "mini.safetensors"
    save_checkpoint(mini, path, trained=False, weights="made for a test")
    return path


@pytest.fixture(scope="session")
def graph_files(mini: EscNet, tmp_path_factory: pytest.TempPathFactory) -> GraphFiles:
    """Graphs of ``mini``."""
    return GraphFiles(mini, tmp_path_factory.mktemp("graphs"))


@pytest.fixture(scope="session")
def picture() -> ImageArray:
    """A picture with edges and grain, uint8 [48, 64, 3]."""
    y, x = np.mgrid[:48, :64]
    smooth = np.stack([4 * x, 5 * y, 255 * (x > y)], axis=-1)
    grain = np.random.Generator(np.random.PCG64(5)).integers(-20, 21, smooth.shape)
    return (smooth + grain).clip(0, 255).astype(np.uint8)


@pytest.fixture
def quick_export(
    graph_files: GraphFiles, picture: ImageArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``export_bundle`` of ``mini`` takes the graphs that are exported already."""
    make_quick(monkeypatch, graph_files, picture)


def make_quick(
    monkeypatch: pytest.MonkeyPatch,
    graph_files: GraphFiles,
    picture: ImageArray,
    changed: Collection[str] = (),
) -> None:
    """What ``quick_export`` does, for fixtures that live longer than a test.

    ``changed`` are graphs whose weights are not those of ``mini``.
    """

    class Copier(GraphExporter):
        def export(self, graph: Graph, path: Path) -> None:
            if graph.name not in changed and all_of_one_type(graph, self._precision):
                shutil.copyfile(graph_files(graph.name, self._precision), path)
            else:
                assert self._config == mini_config(), "traces are those of mini"
                graph_files.export(graph, self._precision, path)

    monkeypatch.setattr("escnet_export.workshop.GraphExporter", Copier)
    scenes = SceneSet(images=(picture,) * 3, categories=SAMPLE_CATEGORIES)
    monkeypatch.setattr("escnet_export.bundle.default_scenes", lambda _: scenes)


def all_of_one_type(graph: Graph, precision: Precision) -> bool:
    """Whether a graph is what ``graph_files`` gives: no block in it or beside it is raised."""
    dtype = DTYPES[precision]
    weights = {parameter.dtype for parameter in graph.module.parameters()}
    ports = [port for port in (*graph.inputs, *graph.outputs) if port.name in TRAVELLING]
    return weights == {dtype} and all(port.dtype(dtype) == dtype for port in ports)


@pytest.fixture
def export(mini: EscNet, quick_export: None, picture: ImageArray) -> Export:
    """Exports ``mini`` quickly, see :func:`exported`."""
    return functools.partial(exported, mini, picture)


def exported(model: EscNet, picture: ImageArray, output: Path, **options: Any) -> ExportReport:
    """``export_bundle`` at fp32 with one small picture, unless the options say otherwise."""
    settings: dict[str, Any] = {
        "precision": Precision.FP32,
        "weights": "random",
        "trained": False,
        "images": [picture],
        "check_categories": (2,),
    }
    return export_bundle(model, output, **{**settings, **options})


@pytest.fixture(scope="session")
def mini_report(
    mini: EscNet,
    graph_files: GraphFiles,
    picture: ImageArray,
    tmp_path_factory: pytest.TempPathFactory,
) -> ExportReport:
    """A bundle of ``mini`` at fp32, and what exporting it said. Do not change it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_quick(monkeypatch, graph_files, picture)
        return exported(mini, picture, tmp_path_factory.mktemp("mini") / "new" / "bundle")
