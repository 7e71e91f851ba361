"""``escnet-bench gallery``: what is collected, the files, options and exit codes."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from escnet.build import build_model
from escnet.presets import preset
from escnet.weights import save_checkpoint
from escnet_bench.command import main
from escnet_bench.evaluate import evaluate
from escnet_bench.gallery.pages import GalleryModel, page, sheet_file
from escnet_bench.gallery.sheet import WIDTH
from escnet_bench.gallery.trace import choose, trace_image
from escnet_runtime.dataset import Dataset, Sample
from escnet_runtime.errors import InputError
from escnet_runtime.segmenter import Segmenter
from tests.bench.folders import made_dataset

_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from escnet_bench.command import main
sys.exit(main(["gallery", *sys.argv[1:]]))
"""


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return made_dataset(tmp_path / "data")


def run_json(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, Any]:
    """Exit code and the one JSON object on standard output."""
    code = main(["gallery", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_trace_is_what_a_run_of_the_pipeline_sees(tiny_bundle: Path) -> None:
    """Chunks of two, a class that repeats an earlier one, classes that are not in the image."""
    classes = ["sky", "tree", "wall", "tree", "sea", "lamp", "dog"]
    rng = np.random.Generator(np.random.PCG64(3))
    values, shares = [5, 3, 0, 6, 1, 255], [0.3, 0.25, 0.2, 0.12, 0.08, 0.05]
    labels = rng.choice(np.array(values, np.uint8), (30, 40), p=shares)
    sample = Sample(
        name="noise", image=rng.integers(0, 256, (30, 40, 3)).astype(np.uint8), labels=labels
    )
    with Segmenter(tiny_bundle, chunk=2) as segmenter:
        vocabulary = segmenter.vocabulary(classes)
        trace = trace_image(segmenter, vocabulary, sample, classes, shown=3)
        prediction = segmenter(sample.image, vocabulary).labels

        seen: dict[str, list[Any]] = {}

        def observe(stage: str, where: slice, outputs: Mapping[str, Any]) -> None:
            for name in ("scores", "scores_out", "logits"):
                if name in outputs:
                    maps = segmenter.pipeline.backend.to_host(outputs[name])
                    seen.setdefault(stage, []).extend(np.array(maps, np.float32))
            if "prompts" in outputs:
                seen[stage] = [outputs["prompts"]]

        for _ in segmenter.image_logits(sample.image, vocabulary, observe):
            pass

    np.testing.assert_array_equal(trace.prediction, prediction)
    assert [category.index for category in trace.categories] == [5, 0, 6]  # 3 repeats 1: no scores
    rows = {5: 4, 0: 0, 6: 5}
    stages = ["correlation", *(f"esc{block}_text" for block in range(4))]
    for category in trace.categories:
        row = rows[category.index]
        assert category.pixels == (labels == category.index).sum()
        right = (prediction == category.index) & (labels == category.index)
        union = (prediction == category.index) & (labels != 255) | (labels == category.index)
        assert category.iou == right.sum() / union.sum()
        for values, stage in zip(category.scores, stages, strict=True):
            np.testing.assert_array_equal(values, seen[stage][row])
        np.testing.assert_array_equal(category.logits, seen["decoder"][row])
        for block, prompts in enumerate(category.prompts):
            (wanted,) = seen[f"esc{block}_prompts"]
            for name in ("points", "point_labels", "regions", "probabilities"):
                np.testing.assert_array_equal(getattr(prompts, name)[0], getattr(wanted, name)[row])
    labelled = labels != 255
    accuracy = (prediction == labels)[labelled].mean()
    assert trace.scores.pixel_accuracy == pytest.approx(accuracy)


def test_a_bundle_is_drawn_without_torch(tiny_bundle: Path, dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "gallery"
    command = [sys.executable, "-c", _WITHOUT_TORCH, tiny_bundle, dataset, "--output", output]
    done = subprocess.run(
        [*map(str, command), "--json"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document.pop("gallery") == str(output)
    written = (output / "gallery.json").read_text(encoding="utf-8")
    assert json.loads(written) == document
    assert str(tmp_path) not in written  # results are published
    names = ["gallery.json", "index.md", "photo0.png", "photo1.png"]
    assert sorted(path.name for path in output.iterdir()) == names
    for entry in document["images"]:
        with Image.open(output / entry["sheet"]) as sheet:
            assert sheet.width == WIDTH
    assert (document["model"], document["precision"], document["kind"]) == (
        "tiny",
        "fp16",
        "bundle",
    )
    assert document["conditions"]["bundle"]["model"] == "tiny"
    markdown = (output / "index.md").read_text(encoding="utf-8")
    for words in ("(photo0.png)", "tree, plant", "seeded random", "untrained weights", "ONNX"):
        assert words in markdown
    with Segmenter(tiny_bundle) as segmenter:
        scores = evaluate(segmenter, Dataset.open(dataset)).scores
    assert document["miou"] == pytest.approx(scores.miou)
    assert document["pixel_accuracy"] == pytest.approx(scores.pixel_accuracy)


def test_a_checkpoint_some_images_and_other_names(
    capsys: pytest.CaptureFixture[str], dataset: Path, tmp_path: Path
) -> None:
    checkpoint, output = tmp_path / "tiny.safetensors", tmp_path / "new" / "gallery"
    save_checkpoint(build_model(preset("tiny")), checkpoint, trained=False, weights="random")
    names = tmp_path / "names.txt"
    names.write_text("blue sky\nbush\nbrick wall\n", encoding="utf-8")
    words = ["--images", "photo1.jpg", "--categories-shown", "1", "--classes-file", str(names)]
    code, document = run_json(capsys, checkpoint, dataset, "--output", output, *words)
    assert code == 0
    assert (document["kind"], document["precision"]) == ("checkpoint", "fp32")
    (entry,) = document["images"]
    assert (entry["image"], entry["width"], entry["height"]) == ("photo1", 40, 32)
    (category,) = entry["categories"]
    assert (category["name"], category["asked"]) == ("sky", "blue sky")
    # An older gallery is replaced, whole; what is no gallery is not.
    main(["gallery", str(checkpoint), str(dataset), "--output", str(output), "--limit", "1"])
    assert {path.name for path in output.iterdir()} == {"gallery.json", "index.md", "photo0.png"}
    assert "1 sheet of tiny (checkpoint, fp32" in capsys.readouterr().out
    code, document = run_json(capsys, checkpoint, dataset, "--output", dataset)
    assert code == 2
    assert "Will not replace" in document["error"]["message"]


def test_a_damaged_image_leaves_no_gallery(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, dataset: Path, tmp_path: Path
) -> None:
    (dataset / "images" / "photo1.jpg").write_bytes(b"no picture")
    code, document = run_json(capsys, tiny_bundle, dataset, "--output", tmp_path / "gallery")
    assert code == 2
    assert "photo1.jpg" in document["error"]["message"]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{bundle} {data}", "--output"),
        ("no-such-model {data} --output o", "neither a bundle"),
        ("{bundle} no-such-set --output o", "there is no dataset at no-such-set"),
        ("{bundle} {data} --output o --limit 0", "--limit is 0"),
        ("{bundle} {data} --output o --categories-shown 0", "--categories-shown"),
        ("{bundle} {data} --output o --images photo7 x", "called photo7, x"),
        ("{bundle} {data} --output o --limit 1 --images photo1", "not allowed"),
        ("{bundle} {data} --output o --backend torch", "is a bundle"),
        ("{bundle} {data} --output o --chunk 0", "chunk is 0"),
        ("{bundle} {data} --output o --classes-file {two}", "got 2 categories"),
    ],
)
def test_wrong_usage_exits_2_and_says_why(
    words: str,
    message: str,
    tiny_bundle: Path,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    two = tmp_path / "two.txt"
    two.write_text("sky\ntree\n", encoding="utf-8")
    places = {"bundle": tiny_bundle, "data": dataset, "two": two}
    code, document = run_json(capsys, *[word.format(**places) for word in words.split()])
    assert code == 2
    assert message in document["error"]["message"]
    assert not (tmp_path / "o").exists()


class Endless:
    """Labelled images that are made one by one, and whose names are not known before."""

    names = ("a", "b")

    def __init__(self, count: int) -> None:
        self.count, self.made = count, 0
        self.groups: dict[str, tuple[int, ...]] = {}

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(self.count))

    def __getitem__(self, index: int) -> Sample:
        self.made += 1
        pixels = np.zeros((2, 2, 3), np.uint8)
        return Sample(name=f"scene{index}", image=pixels, labels=pixels[:, :, 0])


def test_images_are_chosen_by_name_or_number(dataset: Path) -> None:
    folder = Dataset.open(dataset)
    (dataset / "images" / "photo1.jpg").write_bytes(b"never read")
    assert [one.name for one in choose(folder, ["photo0.jpg", "photo0"], None)] == ["photo0"]
    assert [one.name for one in choose(folder, None, 1)] == ["photo0"]
    with pytest.raises(InputError, match=r"no image called photo0\.png"):
        choose(folder, ["photo0", "photo0.png"], None)
    scenes = Endless(100)
    assert [one.name for one in choose(scenes, ["scene4", "scene2"], None)] == ["scene2", "scene4"]
    assert scenes.made == 5
    with pytest.raises(InputError, match="no image called scene4"):
        list(choose(Endless(4), ["scene1", "scene4"], None))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["sky", "tree"], "got 2 categories for a dataset of 3 classes; expected 3, in"),
        (["wall", "sky", "tree, plant"], "'wall' is entry 1 and class 3"),
    ],
)
def test_categories_that_do_not_fit_are_refused_before_the_model_is_opened(
    names: list[str],
    message: str,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "names.json").write_text(json.dumps(names), encoding="utf-8")
    words = ("--output", tmp_path / "gallery", "--classes-file", tmp_path / "names.json")
    code, result = run_json(capsys, tmp_path / "no model", dataset, *words)
    assert code == 2
    assert message in result["error"]["message"]


def test_labels_beyond_the_classes_are_refused(tiny_bundle: Path) -> None:
    sample = Sample(
        name="odd", image=np.zeros((4, 4, 3), np.uint8), labels=np.full((4, 4), 2, np.uint8)
    )
    with Segmenter(tiny_bundle) as segmenter:
        vocabulary = segmenter.vocabulary(["sky", "tree"])
        with pytest.raises(InputError, match="odd has the label 2"):
            trace_image(segmenter, vocabulary, sample, ["sky", "tree"], shown=1)
        with pytest.raises(InputError, match="2 categories for a dataset of 3"):
            trace_image(segmenter, vocabulary, sample, ["sky", "tree", "sea"], shown=1)


def test_the_page_shows_names_as_they_are() -> None:
    model = GalleryModel(
        model="tiny",
        kind="bundle",
        precision="fp32",
        weights="trained, *really*",
        trained=True,
        backend="a test",
        chunk=2,
        dataset="my_set",
        classes=2,
        note=None,
    )
    name = "a](b) <i>\n#"
    category = {"name": "red|ring", "iou": 0.5}
    figures = {"miou": 0.5, "pixel_accuracy": 0.75}
    bare: dict[str, Any] = {"miou": None, "pixel_accuracy": None, "categories": []}
    images = [
        {"image": name, "sheet": sheet_file(name), "categories": [category], **figures},
        {"image": "b", "sheet": "b.png", **bare},
    ]
    text = page(model, {"images": images, **figures})
    assert r"trained, \*really\*" in text
    assert r"## a\](b) \<i\>\\n\#" in text
    assert "(a%5D%28b%29%20%3Ci%3E%5Cn%23.png)" in text
    assert r"red\|ring 50.0%" in text
    assert "no pixel is labelled." in text
    assert "2 images" in text
    assert "**" not in text
