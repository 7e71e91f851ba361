"""Validation while training: the runtime's rules around the model."""

from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from escnet import EscNet
from escnet.train.validate import label_map, validate, vocabulary
from escnet_runtime.dataset import Sample
from escnet_runtime.errors import InputError
from tests.train.small import small_model


class _Images:
    """Noise, labelled with what is given."""

    groups: Mapping[str, tuple[int, ...]] = {}

    def __init__(self, names: tuple[str, ...], labels: list[np.ndarray]) -> None:
        self.names, self._labels = names, labels

    def __len__(self) -> int:
        return len(self._labels)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        labels = self._labels[index]
        return Sample(name=f"noise{index}", image=noise(index, *labels.shape), labels=labels)


def noise(seed: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3)).astype(np.uint8)


NAMES = ("cat", "dog, puppy", "a house")


def test_labels_that_are_what_it_finds_are_all_right() -> None:
    model = small_model()
    words = vocabulary(model, NAMES)
    labels = [label_map(model, noise(index, 40, 50), words) for index in range(2)]
    assert labels[0].dtype == np.uint8
    seen: list[str] = []
    found = validate(model, _Images(NAMES, labels), progress=seen.append)
    assert found == {"miou": 1.0, "pixel_accuracy": 1.0}
    assert seen == ["noise0", "noise1"]


def test_groups_of_classes_have_means_of_their_own() -> None:
    """Over their classes that occur; 0 where none does. What is taken for one of them counts."""
    labels = np.repeat(np.array([0, 1, 2, 3], np.uint8), 16).reshape(8, 8)
    images = _Images(("a", "b", "c", "d", "e"), [labels])
    images.groups = {"few": (1, 2), "one": (0, 4), "none": (4,)}

    def all_but_b_are_c(model: EscNet, image: Tensor, text: Tensor) -> Tensor:
        scores = torch.zeros(5, 8, 8)
        scores[2] = 1.0
        scores[1, 2:4] = 2.0
        scores[1, 2, :4] = 0.0
        return scores

    found = validate(small_model(), images, predict=all_but_b_are_c)
    b, c = 12 / 16, 16 / (16 + 16 + 16 + 4)
    assert found["miou"] == pytest.approx((b + c) / 4)
    assert found["miou_few"] == pytest.approx((b + c) / 2)
    assert (found["miou_one"], found["miou_none"]) == (0.0, 0.0)
    assert found["pixel_accuracy"] == pytest.approx(28 / 64)


def test_a_duplicate_is_never_found() -> None:
    """As in a Segmenter: the first of equal names has all their pixels."""
    model = small_model()
    words = vocabulary(model, ("cat", "Cat", "dog"))
    assert len(words.embeddings) == 2
    assert 1 not in label_map(model, noise(0, 40, 50), words)


def test_many_names_need_two_bytes() -> None:
    model = small_model()
    words = vocabulary(model, tuple(f"thing {index}" for index in range(257)))
    assert label_map(model, noise(0, 8, 8), words).dtype == np.uint16


def test_it_is_in_whole_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU torch gives convolutions fewer bits by default; training goes on with them."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen: list[bool] = []

    def predict(model: EscNet, image: Tensor, text: Tensor) -> Tensor:
        seen.append(torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
        return model.forward(image, text)

    images = _Images(NAMES, [np.zeros((8, 8), np.uint8)])
    validate(small_model(), images, predict=predict)
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32


def test_it_can_be_ended_before_each_image() -> None:
    class Asked(Exception):
        pass

    seen: list[str] = []

    def check() -> None:
        if len(seen) == 2:
            raise Asked

    images = _Images(NAMES, [np.zeros((8, 8), np.uint8)] * 4)
    with pytest.raises(Asked):
        validate(small_model(), images, check=check, progress=seen.append)
    assert seen == ["noise0", "noise1"]


def test_it_leaves_no_gradients() -> None:
    model = small_model()
    with torch.enable_grad():
        validate(model, _Images(NAMES, [np.zeros((8, 8), np.uint8)]))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_without_a_labelled_pixel_it_is_an_error() -> None:
    nothing = _Images(NAMES, [np.full((8, 8), 255, np.uint8)])
    with pytest.raises(InputError, match="no pixel"):
        validate(small_model(), nothing)
