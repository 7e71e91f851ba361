"""The Segmenter on an exported bundle: any words, any image, any chunk, several threads."""

import dataclasses
import gc
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from PIL import Image

from escnet_runtime import (
    BackendError,
    BundleError,
    EscNetError,
    ImageError,
    InputError,
    Segmentation,
    Segmenter,
    Vocabulary,
    VocabularyError,
)
from escnet_runtime.backends import BACKENDS
from escnet_runtime.bundle import Bundle, sha256_file
from escnet_runtime.gpu import choose
from escnet_runtime.images import ImageArray, load_image
from escnet_runtime.manifest import Manifest, Precision
from escnet_runtime.pipeline import Pipeline
from escnet_runtime.postprocess import resize_bilinear
from escnet_runtime.ppg import PpgConstants, Prompts, pseudo_prompts
from escnet_runtime.preprocess import resize
from escnet_runtime.segmenter import Window
from escnet_runtime.sketch import relative_l2
from tests.runtime.forked import exit_status_of_a_child
from tests.runtime.hostile import change_description

NAMES = ["sky", "tree", "grass", "road", "house", "car", "dog"]
#: What fp16 can tell apart, as a share of the logits' standard deviation.
FP16_MARGIN = 0.01
MORE_NAMES = [
    *("cow", "lamp", "river", "boat", "bird", "sofa"),
    *("wall", "cloud", "mountain", "fence", "snow", "lake"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for embeddings that the tests of this module share."""
    return tmp_path_factory.mktemp("embeddings")


@pytest.fixture(scope="module")
def segmenter(tiny_bundle: Path, cache: Path) -> Iterator[Segmenter]:
    """A Segmenter that the tests of this module share."""
    with Segmenter(tiny_bundle, cache=cache) as made:
        yield made


@pytest.fixture(scope="module")
def vocabulary(segmenter: Segmenter) -> Vocabulary:
    """Seven categories."""
    return segmenter.vocabulary(NAMES)


@pytest.fixture(scope="module")
def picture() -> ImageArray:
    """Areas of different colours with grain, uint8 [90, 120, 3]."""
    y, x = np.mgrid[:90, :120]
    areas = np.stack([255 * (y < 40), 2 * x, 200 * ((x - 60) ** 2 + (y - 60) ** 2 < 500)], axis=-1)
    grain = np.random.Generator(np.random.PCG64(2)).integers(-30, 31, areas.shape)
    return (areas + grain).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def result(segmenter: Segmenter, picture: ImageArray, vocabulary: Vocabulary) -> Segmentation:
    """The picture under the seven categories."""
    return segmenter(picture, vocabulary)


def logits_of(
    segmenter: Segmenter, picture: ImageArray, vocabulary: Vocabulary
) -> npt.NDArray[np.float32]:
    """float32 [U, l, l]."""
    return np.concatenate([part for _, part in segmenter.image_logits(picture, vocabulary)])


def decided(logits: npt.NDArray[np.float32], height: int, width: int) -> npt.NDArray[np.bool_]:
    """Pixels where the best category leads by more than fp16's rounding."""
    full = resize_bilinear(logits, height, width)
    best = np.partition(full, len(full) - 2, axis=0)[-2:]
    clear: npt.NDArray[np.bool_] = best[1] - best[0] > FP16_MARGIN * logits.std()
    return clear


# Results


def test_a_result_fits_the_image(result: Segmentation, picture: ImageArray) -> None:
    assert result.labels.shape == result.confidence.shape == picture.shape[:2]
    assert result.labels.dtype == np.uint8
    assert result.confidence.dtype == np.float16
    assert result.names == tuple(NAMES)
    assert result.labels.max() < len(NAMES)
    assert ((result.confidence >= 1 / len(NAMES) - 1e-3) & (result.confidence <= 1)).all()
    assert np.unique(result.labels).size > 1
    np.testing.assert_array_equal(result.image, picture)


def test_labels_and_confidence_are_those_of_the_logits(
    segmenter: Segmenter, picture: ImageArray, vocabulary: Vocabulary, result: Segmentation
) -> None:
    logits = resize_bilinear(logits_of(segmenter, picture, vocabulary), *picture.shape[:2])
    softmax = np.exp(logits - logits.max(axis=0))
    softmax /= softmax.sum(axis=0)
    np.testing.assert_array_equal(result.labels, logits.argmax(axis=0))
    np.testing.assert_allclose(result.confidence, softmax.max(axis=0), atol=1e-3)


def test_untrained_weights_are_said(segmenter: Segmenter, result: Segmentation) -> None:
    assert segmenter.note is not None
    assert "untrained" in segmenter.note
    assert result.note == segmenter.note


def test_the_same_again(
    segmenter: Segmenter, picture: ImageArray, vocabulary: Vocabulary, result: Segmentation
) -> None:
    again = segmenter(picture, vocabulary)
    np.testing.assert_array_equal(again.labels, result.labels)
    np.testing.assert_array_equal(again.confidence, result.confidence)


@pytest.mark.parametrize(("window", "looks"), [("none", 1), ("sliding", 5)])
def test_an_observer_sees_the_run_that_gave_the_labels(
    window: Window, looks: int, segmenter: Segmenter, picture: ImageArray, vocabulary: Vocabulary
) -> None:
    seen: list[str] = []
    result = segmenter(
        picture, vocabulary, window=window, observer=lambda stage, *_: seen.append(stage)
    )
    assert seen.count("image_encoder") == seen.count("esc3_prompts") == looks
    assert {"correlation", "esc0_text", "decoder"} < set(seen)
    plain = segmenter(picture, vocabulary, window=window)
    np.testing.assert_array_equal(result.labels, plain.labels)


# Chunks


@pytest.mark.parametrize("categories", [1, 2, 17, 19, 60])
def test_chunks_change_nothing_to_the_last_bit(
    categories: int, tiny_bundle: Path, cache: Path, picture: ImageArray
) -> None:
    """At fp16, with untrained weights: most pixels are near-ties that any bit would flip."""
    names = [f"{name} {i}" for i in range(5) for name in (*NAMES, *MORE_NAMES)][:categories]
    logits, labels = [], []
    for chunk in dict.fromkeys((categories, 1, 17, 48)):
        with Segmenter(tiny_bundle, chunk=chunk, cache=cache) as segmenter:
            vocabulary = segmenter.vocabulary(names)
            logits.append(logits_of(segmenter, picture, vocabulary))
            labels.append(segmenter(picture, vocabulary).labels)
    for other in range(1, len(logits)):
        np.testing.assert_array_equal(logits[other], logits[0])
        np.testing.assert_array_equal(labels[other], labels[0])


@pytest.mark.parametrize(("chunk", "rounded"), [(1, 16), (16, 16), (17, 32)])
def test_a_chunk_is_whole_groups(chunk: int, rounded: int, tiny_bundle: Path) -> None:
    with Segmenter(tiny_bundle, chunk=chunk, cache=None) as segmenter:
        assert segmenter.chunk == rounded


@pytest.mark.parametrize("chunk", [0, -3, 2.5, True])
def test_a_chunk_is_at_least_one(chunk: int, tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match=f"chunk is {chunk}"):
        Segmenter(tiny_bundle, chunk=chunk)


# Vocabularies


def test_one_category_fills_the_image(segmenter: Segmenter, picture: ImageArray) -> None:
    alone = segmenter(picture, segmenter.vocabulary(["sky"]))
    assert (alone.labels == 0).all()
    assert (alone.confidence == 1).all()


def test_three_hundred_categories(segmenter: Segmenter, picture: ImageArray) -> None:
    names = [f"kind {index} of thing" for index in range(300)]
    many = segmenter(picture, segmenter.vocabulary(names))
    assert many.labels.dtype == np.uint16
    assert many.labels.max() < 300
    assert np.unique(many.labels).size > 5


def test_duplicates_change_no_label_and_shift_no_index(
    segmenter: Segmenter, picture: ImageArray, result: Segmentation, vocabulary: Vocabulary
) -> None:
    names = [NAMES[0], NAMES[0].upper(), *NAMES[1:4], NAMES[2], *NAMES[4:]]
    doubled = segmenter.vocabulary(names)
    np.testing.assert_array_equal(doubled.embeddings, vocabulary.embeddings)
    labels = segmenter(picture, doubled).labels
    assert doubled.names == tuple(names)
    assert not np.isin(labels, [1, 5]).any()
    index = {name: position for position, name in reversed(list(enumerate(names)))}
    np.testing.assert_array_equal(labels, np.array([index[n] for n in NAMES])[result.labels])


def test_order_of_categories_permutes_the_labels(
    segmenter: Segmenter, picture: ImageArray, result: Segmentation, vocabulary: Vocabulary
) -> None:
    order = [3, 0, 6, 2, 5, 1, 4]
    other = segmenter(picture, segmenter.vocabulary([NAMES[index] for index in order]))
    clear = decided(logits_of(segmenter, picture, vocabulary), *picture.shape[:2])
    same = np.array(order)[other.labels] == result.labels
    assert same[clear].mean() >= 0.9999
    assert set(np.array(NAMES)[result.labels[clear]]) == set(np.array(other.names)[
        other.labels[clear]
    ])  # fmt: skip


def test_names_of_any_script(segmenter: Segmenter, picture: ImageArray) -> None:
    names = ["Straße", "空", "крокодил", "🐈", "e\u0301tang", "قطة"]
    made = segmenter.vocabulary(names)
    assert made.names == tuple(names)
    assert len(np.unique(made.embeddings, axis=0)) == len(names)
    np.testing.assert_allclose(np.linalg.norm(made.embeddings, axis=1), 1, atol=1e-5)
    assert segmenter(picture, made).names == tuple(names)


def test_a_name_far_longer_than_the_text_encoder_reads(
    segmenter: Segmenter, caplog: pytest.LogCaptureFixture
) -> None:
    made = segmenter.vocabulary(["very " * 500 + "long", "short", "the " * 30])
    assert np.isfinite(made.embeddings).all()
    (record,) = caplog.records
    assert "reads 77 tokens, and not the end of 1 texts: 'a photo of a very" in record.getMessage()


def test_synonyms_are_averaged(segmenter: Segmenter) -> None:
    both = segmenter.vocabulary(["sofa, couch"])
    apart = segmenter.vocabulary(["sofa", "couch"])
    mean = apart.embeddings.mean(axis=0)
    np.testing.assert_allclose(both.embeddings[0], mean / np.linalg.norm(mean), atol=1e-4)
    assert both.names == ("sofa, couch",)


def test_templates_are_averaged(segmenter: Segmenter, vocabulary: Vocabulary) -> None:
    own = segmenter.bundle.manifest.constants.templates
    assert vocabulary.templates == own
    same = segmenter.vocabulary(NAMES, templates=own)
    np.testing.assert_array_equal(same.embeddings, vocabulary.embeddings)
    parts = [segmenter.vocabulary(NAMES, templates=[t]) for t in ("a {}", "one {} here")]
    both = segmenter.vocabulary(NAMES, templates=["a {}", "one {} here"])
    mean = (parts[0].embeddings + parts[1].embeddings) / 2
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(both.embeddings, mean, atol=1e-4)
    assert relative_l2(both.embeddings, vocabulary.embeddings) > 1e-3


@pytest.mark.parametrize("templates", [[], ["no place"], ["{} and {}"], "a {}"])
def test_unusable_templates_are_refused(templates: Any, segmenter: Segmenter) -> None:
    with pytest.raises(VocabularyError):
        segmenter.vocabulary(NAMES, templates=templates)


@pytest.mark.parametrize("names", [[], [""], "cat", [" ", "cat"], [3]])
def test_unusable_names_are_refused(names: Any, segmenter: Segmenter) -> None:
    with pytest.raises(VocabularyError):
        segmenter.vocabulary(names)


@pytest.mark.parametrize("wrong", [NAMES, None, np.zeros((3, 128), np.float32)])
def test_something_else_than_a_vocabulary_is_refused(
    wrong: Any, segmenter: Segmenter, picture: ImageArray
) -> None:
    with pytest.raises(InputError, match=r"expected a Vocabulary; make one with"):
        segmenter(picture, wrong)


def test_a_vocabulary_of_another_model_is_refused(
    segmenter: Segmenter, picture: ImageArray, vocabulary: Vocabulary
) -> None:
    """Also where the width happens to be the same: the numbers mean something else."""
    foreign = Vocabulary(
        names=vocabulary.names,
        embeddings=vocabulary.embeddings,
        label_of=vocabulary.label_of,
        templates=vocabulary.templates,
        model="another",
    )
    for asked in (segmenter, segmenter.image_logits):
        with pytest.raises(InputError, match="another model's text encoder"):
            asked(picture, foreign)


def test_prompts_are_made_with_the_bundles_own_constants(
    bundle_copy: Path, cache: Path, picture: ImageArray
) -> None:
    """Not with those that all presets have."""
    constants = PpgConstants(temperature=0.3, alpha=0.7, iterations=1)
    change_description(
        bundle_copy, lambda found: found["constants"]["ppg"].update(dataclasses.asdict(constants))
    )
    scores: list[npt.NDArray[np.float32]] = []
    made: list[Prompts] = []

    def observe(stage: str, where: slice, outputs: Mapping[str, Any]) -> None:
        if stage == "correlation":
            scores.append(np.array(outputs["scores"][: where.stop - where.start]))
        elif stage == "esc0_prompts":
            made.append(outputs["prompts"])

    with Segmenter(bundle_copy, cache=cache) as segmenter:
        segmenter(picture, segmenter.vocabulary(NAMES), observer=observe)
    expected, usual = (
        pseudo_prompts(np.concatenate(scores), one) for one in (constants, PpgConstants())
    )
    (found,) = made
    for part in ("points", "point_labels", "regions", "probabilities"):
        np.testing.assert_array_equal(getattr(found, part), getattr(expected, part))
    assert (found.regions != usual.regions).any()


# Images


@pytest.mark.parametrize("size", [(1, 1), (20000, 10), (3, 700), (129, 127)])
def test_any_size(size: tuple[int, int], segmenter: Segmenter, vocabulary: Vocabulary) -> None:
    width, height = size
    gradient = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
    found = segmenter(gradient.astype(np.uint8), vocabulary)
    assert found.labels.shape == found.confidence.shape == (height, width)
    assert np.isfinite(found.confidence).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("how", ["file", "object"])
def test_any_mode(
    mode: str, how: str, segmenter: Segmenter, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    grey = (np.arange(40 * 30).reshape(30, 40) % 256).astype(np.uint8)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(grey).convert(mode)
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    image.save(path)
    found = segmenter(path if how == "file" else image, vocabulary)
    assert found.labels.shape == (30, 40)
    same = segmenter(load_image(image), vocabulary)
    np.testing.assert_array_equal(found.labels, same.labels)


def test_a_turned_photo_is_labelled_upright(
    segmenter: Segmenter, vocabulary: Vocabulary, picture: ImageArray, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
    found = segmenter(str(tmp_path / "turned.png"), vocabulary)
    upright = segmenter(np.ascontiguousarray(np.rot90(picture, -1)), vocabulary)
    assert found.labels.shape == (120, 90)
    np.testing.assert_array_equal(found.labels, upright.labels)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4, 5), np.uint8), "5"),
        (np.zeros((0, 4, 3), np.uint8), "without a pixel"),
        ("no/such/picture.png", "does not exist"),
        (7, "int"),
    ],
)
def test_unusable_images_are_refused(
    image: Any, message: str, segmenter: Segmenter, vocabulary: Vocabulary
) -> None:
    with pytest.raises(ImageError, match=message):
        segmenter(image, vocabulary)


# Sliding windows


def test_sliding_is_the_mean_of_the_five_crops(
    segmenter: Segmenter, vocabulary: Vocabulary, picture: ImageArray
) -> None:
    """Windows of S px at multiples of the stride on the enlarged image, and the whole image."""
    model = segmenter.bundle.manifest.model
    size, cells = model.image_size, model.logits[0]
    step = round(cells * 2 / 3)
    pixels = step * size // cells
    canvas = resize(picture, size + pixels, size + pixels)
    total = np.zeros((len(NAMES), cells + step, cells + step))
    count = np.zeros(total.shape[1:])
    for top in (0, 1):
        for left in (0, 1):
            y, x = top * pixels, left * pixels
            crop = np.ascontiguousarray(canvas[y : y + size, x : x + size])
            area = np.s_[top * step : top * step + cells, left * step : left * step + cells]
            total[:, *area] += logits_of(segmenter, crop, vocabulary)
            count[area] += 1
    whole = logits_of(segmenter, resize(picture, size, size), vocabulary)
    joined = (total / count + resize_bilinear(whole, *count.shape)) / 2
    want = resize_bilinear(joined.astype(np.float32), *picture.shape[:2])
    found = segmenter(picture, vocabulary, window="sliding")
    assert found.labels.shape == picture.shape[:2]
    assert (found.labels == want.argmax(axis=0)).mean() >= 0.999
    softmax = np.exp(want - want.max(axis=0))
    confidence = 1 / softmax.sum(axis=0)
    np.testing.assert_allclose(found.confidence, confidence, atol=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (700, 3)])
def test_sliding_over_any_size(
    size: tuple[int, int], segmenter: Segmenter, vocabulary: Vocabulary
) -> None:
    found = segmenter(np.full((*size, 3), 90, np.uint8), vocabulary, window="sliding")
    assert found.labels.shape == size


def test_an_unknown_window_is_refused(
    segmenter: Segmenter, vocabulary: Vocabulary, picture: ImageArray
) -> None:
    with pytest.raises(InputError, match="window is 'round', expected 'none' or 'sliding'"):
        segmenter(picture, vocabulary, window="round")  # type: ignore[arg-type]


# The cache of embeddings


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of texts of each run of the text encoder."""
    counts: list[int] = []
    encode = Pipeline.encode_text

    def counting(self: Pipeline, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        counts.append(len(tokens))
        return encode(self, tokens)

    monkeypatch.setattr(Pipeline, "encode_text", counting)
    return counts


def test_texts_are_encoded_once(tiny_bundle: Path, tmp_path: Path, encoded: list[int]) -> None:
    with Segmenter(tiny_bundle, cache=tmp_path) as first:
        made = first.vocabulary(NAMES)
        assert sum(encoded) == len(NAMES)
        again = first.vocabulary([*reversed(NAMES), "cow"])
        assert sum(encoded) == len(NAMES) + 1  # the new one alone
    with Segmenter(tiny_bundle, cache=tmp_path) as second:
        other = second.vocabulary(NAMES)
    assert sum(encoded) == len(NAMES) + 1
    np.testing.assert_array_equal(other.embeddings, made.embeddings)
    np.testing.assert_array_equal(again.embeddings[:-1][::-1], made.embeddings)


def test_no_cache_means_none(tiny_bundle: Path, tmp_path: Path, encoded: list[int]) -> None:
    with Segmenter(tiny_bundle, cache=None) as made:
        made.vocabulary(NAMES)
        made.vocabulary(NAMES)
    assert sum(encoded) == 2 * len(NAMES)
    assert list(tmp_path.iterdir()) == []


def test_the_default_cache_follows_the_environment(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESCNET_CACHE", str(tmp_path / "here"))
    with Segmenter(tiny_bundle) as made:
        made.vocabulary(["sky"])
    assert list((tmp_path / "here").iterdir())


def test_a_cache_of_another_model_is_not_used(
    bundle_copy: Path, tiny_bundle: Path, tmp_path: Path, encoded: list[int]
) -> None:
    cache = tmp_path / "cache"
    with Segmenter(tiny_bundle, cache=cache) as first:
        first.vocabulary(NAMES)
    manifest = Manifest.from_json((bundle_copy / "bundle.json").read_text(encoding="utf-8"))
    _retouch(bundle_copy, manifest.stages["text_encoder"].file)
    with Segmenter(bundle_copy, cache=cache) as other:
        other.vocabulary(NAMES)
    assert sum(encoded) == 2 * len(NAMES)


def test_two_processes_share_a_cache(tiny_bundle: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from escnet_runtime import Segmenter\n"
        "from escnet_runtime.pipeline import Pipeline\n"
        "def refuse(*_): raise SystemExit('the text encoder ran')\n"
        "if sys.argv[3] == 'no': Pipeline.encode_text = refuse\n"
        "with Segmenter(sys.argv[1], cache=sys.argv[2]) as segmenter:\n"
        "    print(segmenter.vocabulary(['sky', 'sea']).embeddings.tobytes().hex())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    outputs = []
    for may_encode in ("yes", "no"):
        done = subprocess.run(
            [sys.executable, "-c", program, str(tiny_bundle), str(tmp_path), may_encode],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1] != ""


# Threads and the end


def test_threads_share_a_segmenter(
    segmenter: Segmenter, vocabulary: Vocabulary, picture: ImageArray, result: Segmentation
) -> None:
    """Each with a picture and a vocabulary of its own, and what it would get alone."""
    pictures = [np.roll(picture, 17 * index, axis=1) for index in range(4)]
    lists = [NAMES[: 3 + index] for index in range(4)]
    alone = [
        segmenter(image, segmenter.vocabulary(names))
        for image, names in zip(pictures, lists, strict=True)
    ]
    found: dict[int, list[Segmentation]] = {index: [] for index in range(4)}

    def work(index: int) -> None:
        for _ in range(2):
            words = segmenter.vocabulary(lists[index])
            found[index].append(segmenter(pictures[index], words))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, want in enumerate(alone):
        assert len(found[index]) == 2
        for got in found[index]:
            np.testing.assert_array_equal(got.labels, want.labels)
            np.testing.assert_array_equal(got.confidence, want.confidence)


def test_a_closed_segmenter_says_so(
    tiny_bundle: Path, cache: Path, vocabulary: Vocabulary, picture: ImageArray
) -> None:
    with Segmenter(tiny_bundle, cache=cache) as made:
        made(picture, vocabulary)
        assert made.pipeline.backend._sessions  # type: ignore[attr-defined]
    assert not made.pipeline.backend._sessions  # type: ignore[attr-defined]  # freed
    made.close()  # twice is fine
    for use in (
        lambda: made(picture, vocabulary),
        lambda: made.vocabulary(["new"]),
        lambda: logits_of(made, picture, vocabulary),
    ):
        with pytest.raises(EscNetError, match="this Segmenter is closed; make a new one"):
            use()
    with pytest.raises(BackendError, match="closed"):
        made.pipeline.encode_text(np.ones((1, 7), np.int32))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
@pytest.mark.parametrize("how", ["closed", "closed in use", "dropped", "backend closed"])
def test_a_forked_child_need_not_free_what_its_parent_used(
    how: str, tiny_bundle: Path, cache: Path, vocabulary: Vocabulary, picture: ImageArray
) -> None:
    """ONNX Runtime would wait for threads that the child does not have."""
    held = [Segmenter(tiny_bundle, "onnxruntime", cache=cache)]
    held[0](picture, vocabulary)

    def free() -> None:
        if how == "dropped":
            held.clear()
            gc.collect()
        elif how == "backend closed":
            held[0].pipeline.backend.close()
        else:
            held[0].close()

    in_use, done = threading.Event(), threading.Event()

    def use() -> None:
        with held[0]._lock:
            in_use.set()
            done.wait(60)

    thread = threading.Thread(target=use)
    if how == "closed in use":
        thread.start()
        in_use.wait(60)
    try:
        assert exit_status_of_a_child(free) == 0
    finally:
        done.set()
        if how == "closed in use":
            thread.join()
    held[0](picture, vocabulary)  # the parent has lost nothing
    held[0].close()
    assert not held[0].pipeline.backend._sessions  # type: ignore[attr-defined]


def test_the_text_encoder_is_not_kept(tiny_bundle: Path) -> None:
    with Segmenter(tiny_bundle, cache=None) as made:
        made.vocabulary(["sky"])
        loaded = {graph for graph, _ in made.pipeline.backend._sessions}  # type: ignore[attr-defined]
        assert "text_encoder" not in loaded


# Bundles and backends


def test_the_backend_is_described(tiny_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="escnet_runtime"), Segmenter(tiny_bundle) as made:
        assert made.backend == f"ONNX Runtime {onnxruntime.__version__} on CPU"
    assert "'auto' chose onnxruntime" in caplog.text


@pytest.mark.parametrize(
    ("bf16", "absent", "chosen"),
    [
        (False, (), "onnxruntime"),
        (True, (), "openvino"),  # ONNX Runtime would emulate
        (True, ("openvino",), "onnxruntime"),
        (False, ("onnxruntime",), "openvino"),
        (True, ("onnxruntime", "openvino"), None),
    ],
)
def test_auto_on_a_cpu_takes_the_fastest_that_is_installed(
    bf16: bool,
    absent: tuple[str, ...],
    chosen: str | None,
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    find, files = importlib.util.find_spec, choose._files
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in absent else find(name)
    )
    if bf16:
        monkeypatch.setattr(
            choose,
            "_files",
            lambda bundle: {
                name: dataclasses.replace(file, precision=Precision.BF16)
                for name, file in files(bundle).items()
            },
        )
    monkeypatch.setattr(choose, "find_gpu", lambda: None)
    if chosen is None:
        with pytest.raises(BackendError, match=r"escnet-runtime\[onnxruntime\]"):
            Segmenter(tiny_bundle, cache=None)
        return
    with caplog.at_level("INFO", logger="escnet_runtime"), Segmenter(tiny_bundle, cache=None):
        pass
    assert f"'auto' chose {chosen}" in caplog.text
    assert ("not openvino: " in caplog.text) == (absent == ("openvino",))


def test_an_unknown_backend_names_the_known_ones(tiny_bundle: Path) -> None:
    with pytest.raises(BackendError, match="'abacus' is unknown") as caught:
        Segmenter(tiny_bundle, backend="abacus")
    assert all(name in str(caught.value) for name in BACKENDS)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="CUDA is here"
)
def test_cuda_where_there_is_none_names_what_to_install(tiny_bundle: Path) -> None:
    with pytest.raises(BackendError, match="has no CUDAExecutionProvider") as caught:
        Segmenter(tiny_bundle, backend="onnxruntime-cuda")
    assert "CPUExecutionProvider" in str(caught.value)  # what is there
    assert "escnet-runtime[onnxruntime-gpu]" in str(caught.value)


def test_without_onnx_runtime_the_extra_is_named(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(BackendError, match=r"escnet-runtime\[onnxruntime\]"):
        Segmenter(tiny_bundle)


def test_a_library_that_does_not_load_is_one_that_is_not_here(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where it was built for another NumPy, or lacks a library of the system."""
    monkeypatch.setitem(sys.modules, "escnet_runtime.backends.onnxruntime", None)
    monkeypatch.setattr(choose, "find_gpu", lambda: None)
    with pytest.raises(BackendError, match=r"does not load: .*escnet-runtime\[onnxruntime\]"):
        Segmenter(tiny_bundle, "onnxruntime", cache=None)
    with caplog.at_level("INFO", logger="escnet_runtime"), Segmenter(tiny_bundle, cache=None):
        pass
    assert "'auto' chose openvino" in caplog.text
    monkeypatch.setitem(sys.modules, "escnet_runtime.backends.openvino", None)
    with pytest.raises(BackendError, match="does not load"):
        Segmenter(tiny_bundle, cache=None)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        Segmenter(tmp_path / "missing")
    with pytest.raises(BundleError, match=r"bundle\.json"):
        Segmenter(tmp_path)


def test_a_graph_that_cannot_be_loaded_is_named(
    bundle_copy: Path, vocabulary: Vocabulary, picture: ImageArray
) -> None:
    """Same length, so that only its sha256 shows, or running it."""
    file = bundle_copy / "graphs" / "decoder.onnx"
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(BundleError, match=r"decoder\.onnx: has sha256"):
        Segmenter(bundle_copy)
    with (
        # Without a cache, which may have the graph that the manifest means.
        Segmenter(Bundle.open(bundle_copy, check="sizes"), cache=None) as made,
        pytest.raises(BackendError, match=r"cannot load graph 'decoder'"),
    ):
        made(picture, vocabulary)


def test_a_bundle_may_move(
    tiny_bundle: Path, tmp_path: Path, cache: Path, picture: ImageArray, result: Segmentation
) -> None:
    moved = shutil.copytree(tiny_bundle, tmp_path / "somewhere else ü")
    with Segmenter(str(moved), cache=cache) as made:
        found = made(picture, made.vocabulary(NAMES))
    np.testing.assert_array_equal(found.labels, result.labels)


def _retouch(bundle: Path, file: str) -> None:
    """Change a graph's bytes but not what it computes, and the manifest accordingly."""
    model = onnx.load(str(bundle / file))
    model.doc_string = "another one"
    onnx.save(model, str(bundle / file))
    manifest = Manifest.from_json((bundle / "bundle.json").read_text(encoding="utf-8"))
    name = next(name for name, stage in manifest.stages.items() if stage.file == file)
    size, digest = (bundle / file).stat().st_size, sha256_file(bundle / file)
    stage = dataclasses.replace(manifest.stages[name], bytes=size, sha256=digest)
    changed = dataclasses.replace(manifest, stages={**manifest.stages, name: stage})
    (bundle / "bundle.json").write_text(changed.to_json(), encoding="utf-8")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_bundle_that_is_replaced_is_not_mixed_with_the_one_that_is_open(
    backend: str, bundle_copy: Path, tmp_path: Path
) -> None:
    """What is computed by graphs of both would be kept as the first one's, for every later run."""
    manifest = Manifest.from_json((bundle_copy / "bundle.json").read_text(encoding="utf-8"))
    cache, file = tmp_path / "cache", manifest.stages["text_encoder"].file
    with Segmenter(bundle_copy, backend, cache=cache) as made:
        _retouch(bundle_copy, file)
        with pytest.raises(BundleError, match=r"text_encoder\.onnx is another one now.*new Segmen"):
            made.vocabulary(["sky"])
        (bundle_copy / file).unlink()
        with pytest.raises(BundleError, match=r"text_encoder\.onnx is gone"):
            made.vocabulary(["sky"])
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_bundle_that_is_copied_anew_is_the_same(bundle_copy: Path, tiny_bundle: Path) -> None:
    with Segmenter(bundle_copy, cache=None) as made:
        shutil.rmtree(bundle_copy)
        shutil.copytree(tiny_bundle, bundle_copy)
        made.vocabulary(["sky"])
        tokenizer = bundle_copy / made.bundle.manifest.tokenizer.file
    with Segmenter(bundle_copy, cache=None) as made:
        tokenizer.write_bytes(tokenizer.read_bytes() + b" ")
        with pytest.raises(BundleError, match=r"is another one now"):
            made.vocabulary(["sky"])


def test_an_embedding_does_not_depend_on_what_is_encoded_with_it(tiny_bundle: Path) -> None:
    names = ["cat", "dog", "a very long name of a thing", "tv", "sofa, couch", "物"]
    with Segmenter(tiny_bundle, cache=None) as segmenter:
        together = segmenter.vocabulary(names).embeddings
        for name, embedding in zip(names, together, strict=True):
            alone = segmenter.vocabulary([name]).embeddings[0]
            assert np.array_equal(alone, embedding), name


def test_sessions_of_others_in_the_same_process_still_work(tiny_bundle: Path) -> None:
    program = (
        "import sys, onnxruntime as ort\n"
        "from escnet_runtime import Segmenter\n"
        "with Segmenter(sys.argv[1], cache=None) as segmenter:\n"
        "    segmenter.vocabulary(['sky'])\n"
        "    ort.InferenceSession(sys.argv[2], providers=['CPUExecutionProvider'])\n"
    )
    graph = tiny_bundle / "graphs" / "correlation.onnx"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny_bundle), str(graph)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
