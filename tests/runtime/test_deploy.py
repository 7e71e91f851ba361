"""What docs/deploy.md gives to copy: the web service, tiles of a large image, a message of ROS."""

import io
import json
import re
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from escnet_runtime import BundleError, Segmenter
from escnet_runtime.images import ImageArray
from tests.shared import ROOT, example


def snippet(name: str) -> Any:
    """A function that the document has in a block of Python."""
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", text, re.S) if f"def {name}(" in b]
    names: dict[str, Any] = {"np": np}
    exec(block, names)
    return names[name]


@pytest.fixture(scope="module")
def http_service() -> ModuleType:
    return example("http_service")


@pytest.fixture
def service(
    http_service: ModuleType, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    monkeypatch.setattr(http_service, "MOST_BYTES", 100_000)
    monkeypatch.setattr(http_service, "MOST_PIXELS", 100_000)
    with http_service.Service(("127.0.0.1", 0), bundle_copy) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def asked(service: Any, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Status and body of an answer."""
    url = f"http://127.0.0.1:{service.server_address[1]}{path}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def png(pixels: ImageArray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_the_service(service: Any, bundle_copy: Path, tiny_bundle: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    with Segmenter(tiny_bundle) as segmenter:
        expected = segmenter(pixels, segmenter.vocabulary(["cat", "sofa"]))
    status, body = asked(service, "/segment?classes=cat,sofa", png(pixels))
    assert status == 200
    with Image.open(io.BytesIO(body)) as labels:
        np.testing.assert_array_equal(np.asarray(labels), expected.labels)
    status, body = asked(service, "/area?classes=cat,sofa", png(pixels))
    assert (status, json.loads(body)) == (200, expected.area())
    status, body = asked(service, "/health")
    assert status == 200
    assert json.loads(body)["backend"].startswith("ONNX Runtime")

    for path, content, code, why in (
        ("/segment?classes=", png(pixels), 400, "No category"),
        ("/segment?classes=cat", b"no image", 400, "no image that can be read"),
        ("/segment?classes=cat", png(pixels)[:200], 400, "cannot read"),
        (
            "/segment?classes=cat",
            b"P6\n" + b"9" * 30 + b" 1 255\n",
            400,
            "no image that can be read",
        ),
        ("/area?classes=" + ",".join(map(str, range(300))), png(pixels), 400, "at most 200"),
        ("/segment?classes=cat", bytes(100_001), 413, "expected an image of 1 to"),
        ("/segment?classes=cat", png(np.zeros((400, 400, 3), np.uint8)), 400, "400×400 pixels"),
        ("/elsewhere", png(pixels), 404, "/segment"),
        ("/elsewhere", None, 404, "/segment"),
    ):
        status, body = asked(service, path, content)
        assert status == code, body
        assert why in json.loads(body)["error"]

    def broken(*_: object) -> None:
        raise BundleError("/srv/models/tiny was replaced while it was open")

    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(service.model.segmenter, "vocabulary", broken)
        status, body = asked(service, "/segment?classes=new", png(pixels))
        assert (status, b"/srv" in body) == (500, False)

    # Another bundle in its place: the old one goes on, until the new one is there and warm.
    old = service.model
    shutil.rmtree(bundle_copy)
    service.reload()
    assert service.model is old
    assert asked(service, "/area?classes=cat,sofa", png(pixels))[0] == 200
    shutil.copytree(tiny_bundle, bundle_copy)
    service.reload()
    assert service.model is not old
    assert json.loads(asked(service, "/area?classes=cat,sofa", png(pixels))[1]) == expected.area()


def test_the_service_holds_a_few_requests_and_decodes_one_at_a_time(
    service: Any, http_service: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small file may be a large image, of which a hundred would fill the memory."""
    busy, most = 0, 0
    counting, go_on = threading.Lock(), threading.Event()

    def segment(*_: object) -> SimpleNamespace:
        nonlocal busy, most
        with counting:
            busy, most = busy + 1, max(most, busy + 1)
        go_on.wait(10)
        with counting:
            busy -= 1
        return SimpleNamespace(area=dict)

    monkeypatch.setattr(service.model, "segmenter", segment)
    service.model.vocabulary = lambda _: None
    pixels = png(np.zeros((4, 4, 3), np.uint8))
    with ThreadPoolExecutor(http_service.MOST_AT_ONCE + 1) as pool:
        running = [
            pool.submit(asked, service, "/area?classes=cat", pixels)
            for _ in range(http_service.MOST_AT_ONCE + 1)
        ]
        refused = next(as_completed(running)).result()
        go_on.set()
        found = sorted(one.result()[0] for one in running)
    assert refused[0] == 503
    assert "ask again" in json.loads(refused[1])["error"]
    assert found == [200] * http_service.MOST_AT_ONCE + [503]
    assert most == 1


@pytest.mark.parametrize("size", [(1, 1), (1024, 1024), (1500, 2049), (300, 3000)])
def test_tiles_cover_an_image_once(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    sizes = []

    def segmenter(tile: ImageArray, _: object) -> SimpleNamespace:
        sizes.append(tile.shape)
        return SimpleNamespace(labels=tile[:, :, 0])

    vocabulary = SimpleNamespace(names=("cat", "sofa"))
    labels = snippet("in_tiles")(segmenter, pixels, vocabulary)
    np.testing.assert_array_equal(labels, pixels[:, :, 0])
    assert labels.dtype == np.uint8
    assert max(max(shape) for shape in sizes) <= 1024 + 2 * 128


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8"])
def test_a_message_of_ros_becomes_an_image(encoding: str) -> None:
    expected = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    colours = expected if encoding == "rgb8" else expected[:, :, ::-1]
    padded = np.zeros((5, 24), np.uint8)
    padded[:, :21] = colours.reshape(5, 21)
    message = SimpleNamespace(height=5, width=7, step=24, encoding=encoding, data=padded.tobytes())
    np.testing.assert_array_equal(snippet("pixels")(message), expected)
