"""The checkpoint that ships: it is whole, its provenance is told, and it segments what is new."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from escnet import preset
from escnet.train.segmentation import normalised
from escnet.train.text import TextEncoding
from escnet.weights import WeightsError, load_checkpoint, load_preset, shipped_checkpoint
from escnet_runtime.world import dataset
from escnet_runtime.world.words import HELD_OUT

LARGEST = 12e6  # bytes, what the project promises


def test_it_is_trained_small_and_the_preset() -> None:
    path = shipped_checkpoint("tiny")
    assert path.stat().st_size <= LARGEST
    loaded = load_checkpoint(path)
    assert loaded.trained
    assert "random" not in loaded.weights
    assert loaded.model.config == preset("tiny")


def test_its_provenance_names_commit_seed_command_and_figures() -> None:
    found = json.loads(shipped_checkpoint("tiny").with_suffix(".json").read_text(encoding="utf-8"))
    assert found["model"] == "tiny"
    assert found["command"].startswith("make tiny")
    assert isinstance(found["recipe"]["seed"], int)
    for name, stage in found["stages"].items():
        assert len(stage["commit"]) == 40, name
        assert stage["figures"], name
        assert stage["seconds"] > 0, name


def test_a_preset_without_trained_weights_says_so() -> None:
    with pytest.raises(WeightsError, match=r"no trained weights of 'vit-b-16'.*only of tiny"):
        shipped_checkpoint("vit-b-16")


def test_a_preset_has_its_trained_weights_unless_others_are_asked_for() -> None:
    assert load_preset(preset("tiny")).trained
    small = load_preset(preset("tiny").at_size(64))
    assert small.trained
    assert small.model.config.clip.image_size == 64
    seeded = load_preset(preset("tiny"), seed=0)
    assert not seeded.trained
    assert seeded.weights == "seeded random (seed 0)"


def test_it_segments_compositions_it_never_saw() -> None:
    """Four scenes, all 194 names of the held-out set: chance is right for half a percent."""
    model = load_checkpoint(shipped_checkpoint("tiny")).model.requires_grad_(False)
    scenes = dataset("shapes:heldout:77", length=4)
    names = scenes.classes
    text = TextEncoding(model, names).encode(model, torch.arange(len(names)))
    new = {names.index(one.name) for one in HELD_OUT}
    right = {False: 0, True: 0}
    count = {False: 0, True: 0}
    for image, labels in scenes:
        logits = model(normalised(model.config, torch.from_numpy(image)[None]), text)
        large = F.interpolate(logits[None], size=labels.shape, mode="bilinear")[0]
        found = large.argmax(0).numpy()
        held_out = np.isin(labels, list(new))
        for kind in (False, True):
            right[kind] += int((found == labels)[held_out == kind].sum())
            count[kind] += int((held_out == kind).sum())
    assert right[False] / count[False] > 0.9
    assert right[True] / count[True] > 0.6
