"""CAT-Seg's own code beside ours: a checkout that the test makes, with such modules."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from escnet.presets import preset
from escnet_bench.latency import runs
from escnet_bench.latency.cat_seg import CatSeg
from escnet_bench.latency.checkout import AGGREGATOR, CLIP, require_checkout
from escnet_bench.latency.plan import PEER, Variant
from escnet_runtime.errors import BackendError, InputError

VISUAL = """
import torch
from torch import nn

class Block(nn.Module):
    def forward(self, x):
        return x + 1

class VisualTransformer(nn.Module):
    def __init__(self, input_resolution, patch_size, width, layers, heads, output_dim,
                 prompt_depth, prompt_length):
        super().__init__()
        assert (input_resolution, heads) == (224, width // 64)
        self.conv = nn.Conv2d(3, width, patch_size, patch_size)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(*[Block() for _ in range(layers)])
        self.output_dim = output_dim

    def forward(self, x, dense=False):
        assert dense and x.shape == (1, 3, 384, 384)
        mean = x.mean((2, 3))
        x = self.conv(x).flatten(2).permute(2, 0, 1)
        x = self.transformer.resblocks(torch.cat([x[:1], x]))
        features = torch.zeros(1, len(x), self.output_dim)
        features[:, 1:, :3] = mean[:, None]
        features[:, :1] = 99  # the class token, which nobody may look at
        return features
"""
AGGREGATE = """
import torch
from torch import nn

class Aggregator(nn.Module):
    def __init__(self, prompt_channel, text_guidance_dim, appearance_guidance_dim,
                 feature_resolution, decoder_guidance_dims, **more):
        super().__init__()
        assert prompt_channel == 1 and text_guidance_dim == appearance_guidance_dim == 512
        assert more["window_size"] == 12 and more["attention_type"] == "linear"

    def forward(self, features, text, guidance):
        assert text.shape[2] == 1
        assert [tuple(one.shape) for one in guidance] == [
            (1, 512, 24, 24), (1, 256, 48, 48), (1, 128, 96, 96)
        ]
        scores = torch.einsum("bchw,btpc->bthw", features, text)
        return torch.nn.functional.interpolate(scores, (96, 96))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name, text in ((CLIP, VISUAL), (AGGREGATOR, AGGREGATE)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    require_checkout(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("count", "kind"), [(3, np.uint8), (300, np.uint16)])
def test_pixels_become_labels(checkout: Path, count: int, kind: type[np.generic]) -> None:
    run = CatSeg(checkout, preset("vit-b-16"), torch.device("cpu"))
    text = np.zeros((count, 512), np.float32)
    text[[0, 1, count - 1], [0, 1, 2]] = 1.0  # a category for each colour
    for channel, label in enumerate((0, 1, count - 1)):
        pixels = np.zeros((30, 50, 3), np.uint8)
        pixels[..., channel] = 255
        labels = run(pixels, text)
        assert labels.dtype == kind
        assert labels.shape == (30, 50)
        assert np.all(labels == label)


def test_a_clip_that_it_has_not_is_refused(checkout: Path) -> None:
    with pytest.raises(InputError, match="no CLIP of width 128 with patches of 8 px"):
        CatSeg(checkout, preset("tiny"), torch.device("cpu"))


def test_a_module_that_is_not_installed_is_named(checkout: Path) -> None:
    (checkout / AGGREGATOR).write_text("import einops_of_tomorrow", encoding="utf-8")
    with pytest.raises(InputError, match="needs einops_of_tomorrow, which is not installed"):
        CatSeg(checkout, preset("vit-b-16"), torch.device("cpu"))


def test_what_is_no_checkout_is_refused(checkout: Path) -> None:
    (checkout / CLIP).unlink()
    with pytest.raises(InputError, match=rf"there is no {CLIP}; expected a checkout of CAT-Seg"):
        require_checkout(checkout)


def test_the_workbench_asks_for_a_checkout(tiny_bundle: Path) -> None:
    order = runs.Order(bundle=str(tiny_bundle), model="tiny", image="", texts="", gpu=False)
    peer = Variant(implementation=PEER, precision="fp32")
    assert peer.peer
    with pytest.raises(BackendError, match="--cat-seg FOLDER"):
        runs.Workbench(order).open(peer)
    bench = runs.Workbench(replace(order, cat_seg="somewhere"))
    with pytest.raises(InputError, match="no CLIP of width 128"):
        bench.open(peer)
