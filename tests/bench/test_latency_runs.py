"""Implementations themselves: the same labels from all, and the process that runs them."""

import dataclasses
import functools
import io
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from escnet import EscNet, build_model, preset
from escnet.ppg import pseudo_prompts
from escnet_bench.latency import process, runs, served, torch_runs
from escnet_bench.latency.naive_ppg import naive_prompts
from escnet_bench.latency.plan import Variant
from escnet_bench.latency.process import ProcessEnded, Refused, ServedProcess, TooSlow
from escnet_bench.latency.runs import Order, Workbench, save_vocabularies
from escnet_bench.latency.torch_runs import Compiled, TorchRun
from escnet_bench.subjects import category_names, load_model, made_up_images, pictures
from escnet_export import export_bundle
from escnet_runtime import BackendError, Segmenter
from escnet_runtime.manifest import Precision
from escnet_runtime.ppg import PpgConstants

NAMES = (
    "onnxruntime",
    "openvino",
    "torch",
    "torch-plain",
    "torch-compile-static",
    "torch-compile-dynamic",
    "torch-shared-compile-static",
)


def small_model() -> EscNet:
    """`tiny` with two of its blocks, untrained."""
    config = dataclasses.replace(preset("tiny"), blocks=2)
    return build_model(config, seed=1).eval().requires_grad_(False)


def variant(name: str) -> Variant:
    """An implementation in float32."""
    return Variant(implementation=name, precision="fp32")


@pytest.fixture(scope="module")
def trained_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained `tiny` at fp32."""
    model, weights, trained = load_model("tiny")
    output = tmp_path_factory.mktemp("latency") / "tiny-fp32"
    export_bundle(
        model,
        output,
        precision=Precision.FP32,
        weights=weights,
        trained=trained,
        images=made_up_images((32, 32), 1),
        allow_parity_failure=True,
        check_categories=(2,),
    )
    return output


def make_order(bundle: Path, folder: Path, *categories: int) -> Order:
    """What a process works on: a scene of the model's world."""
    np.save(folder / "image.npy", pictures("tiny", (0, 0), 1)[0])
    with Segmenter(bundle, "onnxruntime") as segmenter:
        texts = {n: segmenter.vocabulary(category_names("tiny", n)) for n in categories}
    save_vocabularies(folder / "texts.npz", texts)
    return Order(
        bundle=str(bundle),
        model="tiny",
        image=str(folder / "image.npy"),
        texts=str(folder / "texts.npz"),
        gpu=False,
    )


@pytest.fixture
def order(tiny_bundle: Path, tmp_path: Path) -> Order:
    """Of the bundle that every test shares."""
    return make_order(tiny_bundle, tmp_path, 3, 5)


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool | None]]:
    """torch.compile without its code generator, which takes minutes; says how often it was used."""
    captured: list[bool | None] = []

    def backend(module: torch.fx.GraphModule, inputs: Any) -> Any:
        captured.append(any(isinstance(one, torch.SymInt) for one in inputs))
        return module.forward

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=False):  # restored at the end
        yield captured
    torch.compiler.reset()


@pytest.mark.slow
def test_all_implementations_give_the_same_labels(
    trained_bundle: Path, tmp_path: Path, compiles: list[bool | None]
) -> None:
    server = served.Server(make_order(trained_bundle, tmp_path, 19))
    agreement = {}
    for name in NAMES:
        answer = server.answer(
            {"do": "open", "implementation": name, "precision": "fp32", "categories": 19}
        )
        agreement[name] = answer["agreement"]
    assert min(agreement.values()) >= 0.999, agreement
    assert compiles
    for name in NAMES:
        answer = server.answer(
            {
                "do": "call",
                "implementation": name,
                "precision": "fp32",
                "categories": 19,
                "stages": True,
            }
        )
        assert answer["ms"] > 0
        if "compile" in name:
            assert answer["stages"] is None
        else:
            assert {"preprocess", "image_encoder", "correlation", "prompts"} < set(answer["stages"])
            assert {"sam", "fuse", "image", "text", "decoder"} < set(answer["stages"])
            assert sum(answer["stages"].values()) <= answer["ms"]


@pytest.mark.slow
def test_compiled_runs_do_not_answer_one_another(compiles: list[bool | None]) -> None:
    model = load_model("tiny")[0].requires_grad_(False)
    [image] = made_up_images((24, 32), 1)
    texts = {n: np.eye(n, 128, dtype=np.float32) for n in (5, 7)}
    expected = {n: TorchRun(model, form="plain")(image, text) for n, text in texts.items()}
    counts = []
    for kind in ("static", "dynamic"):
        run = TorchRun(model, form="plain", compiled=kind)
        for n, text in texts.items():
            before = len(compiles)
            assert (run(image, text) == expected[n]).all()
            counts.append(len(compiles) - before)
    static, static_again, dynamic, dynamic_again = counts
    assert min(static, static_again, dynamic) > 0  # each number of categories anew, and no loan
    # Any number: what is new is a way through the prompts' loop that the first did not take.
    assert dynamic_again < static_again / 2


def test_a_torch_that_cannot_isolate_compiles_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """An older one keeps what it compiled by code alone, and has its limit in its settings."""
    compiled: list[Any] = []

    def old(model: Any, *, dynamic: bool | None = None) -> Any:
        compiled.append(model)
        return model

    monkeypatch.setattr("torch.compile", old)
    net = small_model()
    [image] = made_up_images((24, 32), 1)
    text = np.eye(5, net.config.clip.embed_dim, dtype=np.float32)
    expected = TorchRun(net, form="shared")(image, text)
    kinds: tuple[Compiled, ...] = ("static", "dynamic", "static")
    # Settings are of the process: they are restored at the end.
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=False):
        for kind in kinds:
            labels = TorchRun(net, form="shared", compiled=kind)(image, text)
            np.testing.assert_array_equal(labels, expected)
        assert torch._dynamo.config.recompile_limit > 8
    assert len({id(one.__code__) for one in compiled}) == len(compiled) == 3


@pytest.mark.slow
def test_a_compiled_run_is_compiled_at_every_number_of_categories(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch gives up silently beyond so many compilations of a function, and runs it as it is."""
    ran = 0

    def backend(module: torch.fx.GraphModule, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            nonlocal ran
            ran += len(module.graph.nodes)
            return module.forward(*args)

        return run

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    net = small_model()
    [image] = made_up_images((24, 32), 1)
    counts = []
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=False):  # restored at the end
        compiled = TorchRun(net, form="shared", compiled="static")
        for categories in (5, 9, 12):
            text = np.eye(categories, net.config.clip.embed_dim, dtype=np.float32)
            compiled(image, text)
            ran = 0
            compiled(image, text)
            counts.append(ran)
    torch.compiler.reset()
    assert counts[0] > 0
    assert len(set(counts)) == 1


def test_a_watched_model_is_left_as_it_was() -> None:
    model = load_model("tiny")[0].requires_grad_(False)
    [image] = made_up_images((24, 32), 1)
    text = np.eye(7, 128, dtype=np.float32)
    before = {id(module): set(vars(module)) for module in model.modules()}
    for form in ("plain", "shared"):
        labels = TorchRun(model, form=form)(image, text)
        assert labels.shape == (24, 32)
        assert labels.dtype == np.uint8
        assert labels.max() < 7
    assert before == {id(module): set(vars(module)) for module in model.modules()}


def test_half_precision_runs_in_both_forms() -> None:
    model = load_model("tiny")[0].requires_grad_(False).half()
    [image] = made_up_images((24, 32), 1)
    text = np.eye(5, 128, dtype=np.float32)
    labels = [TorchRun(model, form=form)(image, text) for form in ("plain", "shared")]
    assert (labels[0] == labels[1]).mean() > 0.9


def test_naive_prompts_are_prompts() -> None:
    constants = PpgConstants(temperature=0.5, alpha=0.6)
    scores = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(0))
    scores[3] = 0.0
    scores[3, 2, 5] = 9.0  # a single pixel of foreground
    naive, ours = naive_prompts(scores, constants), pseudo_prompts(scores, constants)
    torch.testing.assert_close(naive.probabilities, ours.probabilities)
    assert torch.equal(naive.regions >= 0, ours.regions >= 0)
    assert naive.point_labels.tolist()[3] == [1, -1, -1, -1, -1]
    assert naive.points[3, 0].tolist() == [5, 2]
    for field in ("points", "point_labels", "regions"):
        assert getattr(naive, field).dtype == getattr(ours, field).dtype
        assert getattr(naive, field).shape == getattr(ours, field).shape


def test_a_process_is_told_what_to_do(order: Order) -> None:
    with ServedProcess(order, "kept") as one:
        ours = Variant(implementation="onnxruntime", precision="fp16")
        first = one.ask("open", ours, categories=3, seconds=120)
        assert first["agreement"] == 1
        assert first["peak_memory_bytes"] > 2**20
        assert first["device_memory_bytes"] is None
        again = one.ask("call", ours, categories=3, stages=True)
        assert again["ms"] > 0
        assert again["stages"]["sums"] >= 0
        assert one.ask("loop", ours, categories=3, calls=2)["device_memory_bytes"] is None
        info = one.ask("info", seconds=120)
        assert info["kept"]
        assert info["threads"]["onnxruntime"] >= 1
        with pytest.raises(Refused, match="KeyError"):
            one.ask("call", variant("torch"), categories=3, stages=False)
        with pytest.raises(Refused, match="unknown command 'sing'"):
            one.ask("sing")
        one.ask("trim")


def test_the_default_allocator_gives_large_blocks_back(order: Order) -> None:
    with ServedProcess(order, "default") as one:
        assert not one.ask("info", seconds=120)["kept"]


def test_a_process_that_dies_is_told(order: Order) -> None:
    with ServedProcess(order, "default") as one:
        one.ask("info", seconds=120)
        os.kill(one._process.pid, signal.SIGKILL)
        with pytest.raises(ProcessEnded, match=r"signal 9 \(out of memory\?\): it said nothing"):
            one.ask("info")
    with pytest.raises(ProcessEnded, match="ended before"):
        one.ask("info")


def test_a_process_that_takes_too_long_is_ended(order: Order) -> None:
    with ServedProcess(order, "default") as one:
        with pytest.raises(TooSlow, match="no answer within 0 s"):
            one.ask("info", seconds=0)
        assert one._process.poll() == -signal.SIGKILL


def test_what_a_process_says_at_its_end_is_told(
    order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_MODULE", "escnet_bench.no_such_module")
    with (
        ServedProcess(order, "default") as one,
        pytest.raises(ProcessEnded, match=r"code 1: .*No module named"),
    ):
        one.ask("info", seconds=120)


def test_an_order_that_cannot_be_used_is_refused(order: Order, tmp_path: Path) -> None:
    wrong = {
        "bundle": str(tmp_path / "none"),
        "model": None,
        "image": order.image,
        "texts": order.texts,
        "gpu": False,
    }
    answers = io.StringIO()
    served.serve(io.StringIO(json.dumps(wrong) + '\n{"do": "info"}\n'), answers)
    assert "BundleIntegrityError" in answers.getvalue() or "no bundle" in answers.getvalue()


def test_without_a_model_in_torch_its_runs_are_refused(order: Order) -> None:
    bench = Workbench(Order(**{**vars_of(order), "model": None}))
    with pytest.raises(BackendError, match="no model in PyTorch"):
        bench.open(variant("torch"))


def vars_of(order: Order) -> dict[str, Any]:
    """Its fields."""
    return {name: getattr(order, name) for name in order.__dataclass_fields__}


def test_what_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    missing = functools.partial(runs.missing_extra, gpu=False)
    assert missing(variant("torch")) == "torch is not installed: install escnet-bench[torch]"
    assert "[baselines]" in (missing(variant("openvino")) or "")
    assert "NVIDIA" in (missing(variant("tensorrt")) or "")
    assert missing(variant("onnxruntime")) is None
    assert torch_runs.__all__ == ["Compiled", "Form", "TorchRun", "labels_on_host"]
