"""A Segmenter that nobody closes: what it owns is closed all the same, and the process ends."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from escnet_runtime import Segmenter
from escnet_runtime.bundle import Bundle
from escnet_runtime.gpu import choose
from escnet_runtime.images import ImageArray
from tests.device.host_device import HostDevice
from tests.gpu.conftest import NAMES, frames
from tests.gpu.made_up import MadeUpGraphs, OnHost
from tests.kernels.machines import HostMachine
from tests.shared import ROOT


@pytest.fixture
def made(
    bundle: Bundle, host: HostMachine, monkeypatch: pytest.MonkeyPatch
) -> tuple[HostDevice, list[MadeUpGraphs]]:
    """A device, and what runs graphs there for each Segmenter."""
    device, graphs = HostDevice(host), list[MadeUpGraphs]()

    def opener(name: str, cache: Path | None) -> choose.Opener:
        def make(bundle: Bundle, device: object, stream: object, chunk: int | None) -> MadeUpGraphs:
            graphs.append(MadeUpGraphs(bundle.manifest, stream, device))  # type: ignore[arg-type]
            return graphs[-1]

        return make

    monkeypatch.setattr(choose, "_opener", opener)
    return device, graphs


def test_what_nobody_refers_to_is_closed(
    bundle: Bundle, made: tuple[HostDevice, list[MadeUpGraphs]], picture: ImageArray
) -> None:
    device, graphs = made
    segmenter = Segmenter(bundle, "onnxruntime-cuda", device=device, cache=None)
    words = segmenter.vocabulary(NAMES)
    stream = segmenter.stream(frames(picture, 4, []), words)
    next(stream)
    del segmenter
    gc.collect()
    assert device.open  # the stream goes on
    result = next(stream)
    del stream
    gc.collect()
    assert not device.open
    assert graphs[0].closed
    assert not graphs[0].freed_untidily
    assert result.labels.shape == (12, 16)


def test_one_that_fails_while_it_is_made_is_closed_too(
    bundle: Bundle,
    made: tuple[HostDevice, list[MadeUpGraphs]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device, graphs = made

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("made up")

    monkeypatch.setattr("escnet_runtime.segmenter.TextEmbedding", fail)
    with pytest.raises(RuntimeError, match="made up"):
        Segmenter(bundle, "onnxruntime-cuda", device=device, cache=None)
    gc.collect()
    assert not device.open
    assert graphs[0].closed


def test_closing_twice_closes_once(
    bundle: Bundle, made: tuple[HostDevice, list[MadeUpGraphs]]
) -> None:
    device, _ = made
    segmenter = Segmenter(bundle, "onnxruntime-cuda", device=device, cache=None)
    for _ in range(2):
        segmenter.close()
        assert not device.open
        assert not segmenter._freed.alive


def test_a_backend_of_the_callers_stays_open(
    bundle: Bundle, picture: ImageArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With close() it goes too, as it has always done."""
    closed: list[str] = []
    backend = OnHost(bundle.manifest)
    monkeypatch.setattr(backend, "close", lambda: closed.append("closed"), raising=False)
    segmenter = Segmenter(bundle, backend, cache=None)
    segmenter.vocabulary(NAMES)
    del segmenter
    gc.collect()
    assert not closed
    Segmenter(bundle, backend, cache=None).close()
    assert closed == ["closed"]


PROGRAM = """
import os, sys, threading
from contextlib import ExitStack
from pathlib import Path
from escnet_runtime import Segmenter, segmenter as module
from escnet_runtime.bundle import Bundle
from escnet_runtime.gpu.choose import Chosen
from tests.gpu.made_up import OnHost, made_up_manifest

bundle = Bundle.open(Path(sys.argv[1]))
bundle = Bundle(root=bundle.root, manifest=made_up_manifest(bundle.manifest))

def choose(*_, **__):
    owned = ExitStack()
    owned.callback(lambda: print("freed", flush=True))
    return Chosen(backend=OnHost(bundle.manifest), device=None, owned=owned)

module.choose_backend = choose
segmenter = Segmenter(bundle, "onnxruntime", cache=None)
segmenter.itself = segmenter  # only the end of the process breaks that
if sys.argv[2] == "busy":
    module._END_SECONDS = 0.1
    held = threading.Event()
    def use():
        with segmenter._lock:
            held.set()
            threading.Event().wait()
    threading.Thread(target=use, daemon=True).start()
    held.wait()
elif sys.argv[2] == "forked":
    child = os.fork()
    if child == 0:
        sys.exit(0)
    os.waitpid(child, 0)
elif sys.argv[2] == "calling":
    held = threading.Event()
    def use():
        with segmenter._lock:
            held.set()
            threading.Event().wait(0.2)
            print("called", flush=True)
    threading.Thread(target=use, daemon=True).start()
    held.wait()
print("end", flush=True)
"""


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("idle", ["end", "freed"]),
        ("calling", ["end", "called", "freed"]),
        ("busy", ["end"]),
        ("forked", ["end", "freed"]),
    ],
)
def test_the_end_of_the_process_closes_it_between_calls_and_does_not_hang(
    tiny_bundle: Path, way: str, said: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_bundle), way],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=ROOT,
    )
    assert done.stdout.splitlines() == said, done.stderr
    assert done.returncode == 0
    assert ("still used a Segmenter" in done.stderr) == (way == "busy")
