"""docs/bundle.md is enough: a program that follows it, and nothing else, gives the same bits."""

import ast
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from escnet_runtime import Segmenter
from escnet_runtime.images import ImageArray, load_image
from escnet_runtime.ppg import PpgConstants, pseudo_prompts
from escnet_runtime.preprocess import resize
from escnet_runtime.sketch import relative_l2
from tests.shared import example

_PROMPTS = ("points", "point_labels", "regions", "probabilities")


client = example("bundle_client")


def _pixels(height: int, width: int, seed: int = 0) -> ImageArray:
    """Some blobs of colour, so that not every pixel is a near-tie."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def _names(count: int) -> list[str]:
    colours = ("red", "green", "blue", "a pale, or light", "it's 1,000")
    return [f"{colours[number % 5]} thing {number}, object {number}" for number in range(count)]


def test_it_uses_nothing_of_ours() -> None:
    tree = ast.parse(inspect.getsource(client))
    imported = [
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    ]
    assert not [name for name in imported if name is None or name.startswith("escnet")]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 17, 33])
def test_every_stage_is_that_of_the_runtime(tiny_bundle: Path, count: int) -> None:
    pixels, names = _pixels(97, 140), _names(count)
    one = client.Client(tiny_bundle)
    seen: dict[tuple[str, str], Any] = {}

    def see(stage: str, outputs: Mapping[str, Any]) -> None:
        seen.update({(stage, name): np.array(array) for name, array in outputs.items()})

    with Segmenter(tiny_bundle, backend="onnxruntime") as segmenter:
        vocabulary = segmenter.vocabulary(names)
        observed: dict[tuple[str, str], list[Any]] = {}

        def observe(stage: str, where: slice, outputs: Mapping[str, Any]) -> None:
            for name, value in outputs.items():
                if name == "prompts":
                    for prompt in _PROMPTS:
                        observed[stage, prompt] = [getattr(value, prompt)]
                    continue
                array = np.array(segmenter.pipeline.backend.to_host(value))
                own = array if name.endswith("_sum") else array[: where.stop - where.start]
                observed.setdefault((stage, name), []).append(own)

        result = segmenter(pixels, vocabulary, observer=observe)
    text, name_of = one.vocabulary(names)
    np.testing.assert_array_equal(text, vocabulary.embeddings)
    logits = one.logits(one.preprocess(pixels), text, see=see)
    assert seen.keys() == observed.keys()
    for key, parts in observed.items():
        np.testing.assert_array_equal(seen[key], np.concatenate(parts), err_msg=str(key))
    labels, confidence = client.masks(logits, *pixels.shape[:2])
    np.testing.assert_array_equal(name_of[labels], result.labels)
    np.testing.assert_allclose(confidence, result.confidence, rtol=1e-3)


def _run_filled(
    chunks: Any, one: Any, graph: str, known: Mapping[str, Any]
) -> dict[str, np.ndarray[Any, Any]]:
    """``Chunks.run`` with whole groups: the last category is repeated, with weight 0."""
    ports = one.manifest["stages"][graph]["inputs"]
    joined: dict[str, list[Any]] = {}
    for own in chunks.parts:
        weight = chunks.weight(len(own))
        rows = np.concatenate([own, np.repeat(own[-1:], weight.size - len(own))])
        by_category = [port["name"] for port in ports if port["shape"][0] == "n"]
        inputs = {**known, "weight": weight} | {name: known[name][rows] for name in by_category}
        for name, array in one.run(graph, inputs).items():
            kept = array if name.endswith("_sum") else array[: len(own)]
            joined.setdefault(name, []).append(kept)
    return {name: np.concatenate(arrays) for name, arrays in joined.items()}


def test_chunks_may_be_filled_up(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = client.Client(tiny_bundle)
    image, (text, _) = one.preprocess(_pixels(40, 50)), one.vocabulary(_names(19))
    plain = one.logits(image, text)
    monkeypatch.setattr(client.Chunks, "run", _run_filled)
    np.testing.assert_array_equal(one.logits(image, text), plain)
    # In sessions of fixed shapes, by the names that the axes have in the files.
    options = ort.SessionOptions()
    for axis, size in {"n": 16, "g": 1, "b": 1}.items():
        options.add_free_dimension_override_by_name(axis, size)
    fixed = client.Client(tiny_bundle)
    for name, stage in fixed.manifest["stages"].items():
        if name != "text_encoder":
            fixed._sessions[name] = ort.InferenceSession(tiny_bundle / stage["file"], options)
            for port in fixed._sessions[name].get_inputs():
                assert all(isinstance(size, int) for size in port.shape), (name, port.name)
    assert relative_l2(fixed.logits(image, text), plain) < 0.05  # a point may flip


@pytest.mark.slow
def test_sliding_windows(tiny_bundle: Path) -> None:
    pixels, names = _pixels(70, 53), _names(3)
    found = client.Client(tiny_bundle).segment(pixels, names, sliding=True)
    with Segmenter(tiny_bundle, backend="onnxruntime") as segmenter:
        result = segmenter(pixels, segmenter.vocabulary(names), window="sliding")
    np.testing.assert_array_equal(found["labels"], result.labels)
    assert found["labels"].dtype == result.labels.dtype


def test_words(tiny_bundle: Path) -> None:
    names = ["cat", "sofa, couch, settee, divan", "1,000 yen note", "Tête-à-tête", "x" * 200]
    names += ["traffic light", "TRAFFIC  Light", "&amp;amp; sign", "dog, , puppy, dog", "schÃ¶n"]
    names += [
        "couch, settee,  Sofa, divan",
        ",",
        "it's",
        "<end_of_text> a",
        "日本",
        "last, ",
        "ﬁne",
    ]
    text, name_of = client.Client(tiny_bundle).vocabulary(names)
    with Segmenter(tiny_bundle, backend="onnxruntime") as segmenter:
        vocabulary = segmenter.vocabulary(names)
    np.testing.assert_array_equal(name_of, vocabulary.label_of)
    np.testing.assert_array_equal(text, vocabulary.embeddings)


@settings(max_examples=60, database=None)
@given(st.data())
def test_prompts(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(1, 12)) for _ in range(3))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    scores = random.standard_normal(shape).astype(np.float32)
    if data.draw(st.booleans()):  # ties
        scores = np.round(scores)
    constants = PpgConstants(
        temperature=data.draw(st.sampled_from([0.02, 0.3, 1.0])),
        alpha=data.draw(st.sampled_from([1.0, 0.5, 1e-2])),
        regions=data.draw(st.integers(1, 6)),
        iterations=data.draw(st.integers(0, 10)),
    )
    found = client.prompts(
        scores,
        temperature=constants.temperature,
        alpha=constants.alpha,
        regions=constants.regions,
        iterations=constants.iterations,
    )
    want = pseudo_prompts(scores, constants)
    for name in _PROMPTS:
        np.testing.assert_array_equal(found[name], getattr(want, name), err_msg=name)


@settings(max_examples=60, database=None)
@given(*[st.integers(1, 90)] * 4)
def test_resizing(height: int, width: int, to_height: int, to_width: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    found = client.resize(pixels, to_height, to_width)
    np.testing.assert_array_equal(found, resize(pixels, to_height, to_width))


def test_files(tmp_path: Path) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (6, 9, 4), np.uint8)
    upright = Image.Exif()
    upright[0x0112] = 6
    pictures = {
        "rgba.png": Image.fromarray(rgba),
        "grey.png": Image.fromarray(rgba[:, :, 0]),
        "grey-alpha.png": Image.fromarray(rgba).convert("LA"),
        "palette.png": Image.fromarray(rgba[:, :, :3]).quantize(7),
        "turned.jpg": Image.fromarray(rgba[:, :, :3]),
        "deep.png": Image.fromarray(rgba[:, :, 0].astype(np.uint16) * 200 + 17),
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / name, exif=upright if name == "turned.jpg" else Image.Exif())
        found = client.read_image(tmp_path / name)
        np.testing.assert_array_equal(found, load_image(tmp_path / name), err_msg=name)


def test_the_golden_run(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = client.Client(tiny_bundle)
    errors, agreement = client.repeat_golden(one)
    assert len(errors) == sum(len(stage["outputs"]) for stage in one.manifest["stages"].values())
    assert max(errors.values()) <= one.reference["stage_tolerance"]
    assert agreement >= one.reference["pixel_agreement"]
    client.main(str(tiny_bundle))
    assert "have the golden label" in capsys.readouterr().out


def test_the_command(tiny_bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(_pixels(20, 31)).save(tmp_path / "a.png")
    client.main(str(tiny_bundle), str(tmp_path / "a.png"), str(tmp_path / "b.png"), "cat", "sofa")
    with Segmenter(tiny_bundle, backend="onnxruntime") as segmenter:
        want = segmenter(tmp_path / "a.png", segmenter.vocabulary(["cat", "sofa"])).labels
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "b.png")), want)
