"""A whole bundle on a device on the CPU: ONNX Runtime on our addresses and the shipped kernels."""

from pathlib import Path

import numpy as np
import pytest

from escnet_runtime import Segmenter
from escnet_runtime.gpu import choose
from tests.device.host_device import HostDevice
from tests.gpu.host_graphs import host_opener
from tests.kernels.machines import HostMachine


@pytest.mark.slow
def test_labels_are_those_of_the_cpu(
    tiny_bundle: Path, host: HostMachine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    y, x = np.mgrid[:24, :32]
    areas = [255 * (y < 10), 7 * x, 200 * ((x - 16) ** 2 + (y - 16) ** 2 < 40)]
    picture = np.stack(areas, axis=-1).astype(np.uint8)
    names = ["sky", "tree", "grass", "road", "house", "car"]
    device = HostDevice(host)
    monkeypatch.setattr(choose, "_opener", lambda name, cache: host_opener(device))
    with (
        Segmenter(tiny_bundle, "onnxruntime", cache=tmp_path) as on_cpu,
        Segmenter(tiny_bundle, "onnxruntime-cuda", device=device, cache=tmp_path) as segmenter,
    ):
        want = on_cpu(picture, on_cpu.vocabulary(names))
        windows = on_cpu(picture, on_cpu.vocabulary(names), window="sliding")
        vocabulary = segmenter.vocabulary(names)
        segmenter.plan(len(names), (24, 32), window="sliding")  # the larger arena of the two
        segmenter(picture, vocabulary)
        device.log.clear()
        in_windows = segmenter(picture, vocabulary, window="sliding")
        got = segmenter(picture, vocabulary)
        kept = ("upload", "download", "synchronize", "allocate", "allocate_host", "prepare")
        asked = [one.name for one in device.calls(*kept)]
    assert np.unique(want.labels).size > 1
    assert (got.labels == want.labels).mean() >= 0.999
    assert np.abs(got.confidence.astype(np.float32) - want.confidence).max() < 5e-3
    assert (in_windows.labels == windows.labels).mean() >= 0.999
    assert asked == 2 * ["upload", "download", "synchronize"]
    assert not device.open
