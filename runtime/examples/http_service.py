"""A web service over a bundle, with nothing but Python's own library; see docs/deploy.md.

    python http_service.py BUNDLE --port 8000
    curl --data-binary @photo.jpg "localhost:8000/segment?classes=cat,sofa,wall" --output labels.png

POST /segment?classes=...  an image in; its label map out, a PNG of indices into the categories
POST /area?classes=...     an image in; the fraction of each category that is there out, as JSON
GET  /health               what runs, as JSON
SIGHUP                     opens the bundle anew, warms it up, and changes over

Requests are segmented one after the other, whatever their number; beyond MOST_AT_ONCE they are sent
away. Images may be anybody's: bytes, pixels and categories are limited. It is meant for a network
that is trusted all the same: nothing is encrypted, nobody has to say who they are, and who sends
slowly keeps a place. Before an open network, put a proxy in front that sees to these.
"""

import argparse
import io
import json
import logging
import signal
import threading
from collections.abc import Sequence
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image

from escnet_runtime import (
    BundleError,
    EscNetError,
    ImageError,
    InputError,
    Segmentation,
    Segmenter,
    VocabularyError,
)
from escnet_runtime.vocabulary import Vocabulary, parse_classes

MOST_BYTES = 32 * 2**20
MOST_PIXELS = 50_000_000  # a gigabyte while it is segmented
MOST_CATEGORIES = 200  # time grows with them, and a new one is encoded first
MOST_AT_ONCE = 16  # requests that are held in memory
KEPT_VOCABULARIES = 32
log = logging.getLogger("http_service")


class Model:
    """A Segmenter, warm, and the vocabularies that it was asked for lately."""

    def __init__(self, bundle: Path) -> None:
        self.segmenter = Segmenter(bundle)
        self.vocabulary = lru_cache(KEPT_VOCABULARIES)(self._vocabulary)
        for _ in range(2):  # the first call loads; on a GPU with engines the second one captures
            self.segmenter(np.zeros((480, 640, 3), np.uint8), self.vocabulary("wall, floor"))

    def _vocabulary(self, classes: str) -> Vocabulary:
        names = parse_classes(classes)
        if len(names) > MOST_CATEGORIES:
            raise VocabularyError(
                f"got {len(names):,} categories; at most {MOST_CATEGORIES} are taken"
            )
        return self.segmenter.vocabulary(names)


class Service(ThreadingHTTPServer):
    """Serves the bundle at a path; after :meth:`reload`, the one that is there then."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], bundle: Path) -> None:
        self.bundle = bundle
        self.model = Model(bundle)
        self.places = threading.BoundedSemaphore(MOST_AT_ONCE)
        self.turn = threading.Lock()  # for decoding too: a small file may be a large image
        super().__init__(address, Handler)

    def reload(self) -> None:
        """Change over to the bundle that is there now; one that cannot be used changes nothing."""
        try:
            self.model = Model(self.bundle)  # who still works with the old one finishes with it
        except EscNetError as error:
            log.error("the bundle is not changed: %s", error)
        else:
            log.info("%s is served anew", self.bundle)


class Handler(BaseHTTPRequestHandler):
    """A request."""

    server: Service
    timeout = 30  # seconds, for who sends nothing

    def do_GET(self) -> None:
        """/health."""
        if urlsplit(self.path).path != "/health":
            self._refuse(HTTPStatus.NOT_FOUND, "there is /health, /segment and /area")
            return
        segmenter = self.server.model.segmenter
        self._answer({"backend": segmenter.backend, "note": segmenter.note})

    def do_POST(self) -> None:
        """/segment and /area."""
        parts = urlsplit(self.path)
        if parts.path not in ("/segment", "/area"):
            self._refuse(HTTPStatus.NOT_FOUND, "there is /health, /segment and /area")
            return
        length = self.headers.get("Content-Length", "")
        size = int(length) if length.isdecimal() and len(length) < 16 else 0
        if not 0 < size <= MOST_BYTES:
            self._skip(min(size, 4 * MOST_BYTES))  # who still sends would not read the answer
            self.close_connection = True
            self._refuse(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"got {size:,} bytes, expected an image of 1 to {MOST_BYTES:,}",
            )
            return
        if not self.server.places.acquire(blocking=False):
            self._skip(size)
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests at once: ask again")
            return
        try:
            self._work(parts.path, parse_qs(parts.query).get("classes", [""])[0], size)
        finally:
            self.server.places.release()

    def _work(self, path: str, classes: str, size: int) -> None:
        content = self.rfile.read(size)
        try:
            result = self._segmented(content, classes)
        except Exception as error:  # whatever it is, who asked gets an answer
            if isinstance(error, InputError) and not isinstance(error, BundleError):
                self._refuse(HTTPStatus.BAD_REQUEST, str(error))
                return
            log.exception("a request failed")  # what it says of this machine is not for everybody
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "the service failed; its log says why")
        else:
            self._answer(result.area() if path == "/area" else result.label_image())

    def _skip(self, size: int) -> None:
        while size > 0 and (part := self.rfile.read(min(size, 2**16))):
            size -= len(part)

    def _segmented(self, content: bytes, classes: str) -> Segmentation:
        model = self.server.model  # the same one to the end of the request
        vocabulary = model.vocabulary(classes)
        try:
            image = Image.open(io.BytesIO(content))
        except Exception as error:  # decoders raise nearly anything
            raise ImageError("the body is no image that can be read") from error
        if image.width * image.height > MOST_PIXELS:
            raise ImageError(
                f"the image has {image.width}×{image.height} pixels; at most {MOST_PIXELS:,} are "
                "taken"
            )
        with self.server.turn:
            return model.segmenter(image, vocabulary)

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._answer({"error": why}, status)

    def _answer(self, what: object, status: HTTPStatus = HTTPStatus.OK) -> None:
        body = io.BytesIO()
        if isinstance(what, Image.Image):
            what.save(body, "PNG")
        else:
            body.write(json.dumps(what).encode())
        self.send_response(status)
        kind = "image/png" if isinstance(what, Image.Image) else "application/json"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(body.tell()))
        self.end_headers()
        self.wfile.write(body.getvalue())


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description="A web service over a bundle.")
    parser.add_argument("bundle", type=Path, help="folder of the bundle, or a link to one")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (this machine)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen at (8000)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO)
    with Service((arguments.host, arguments.port), arguments.bundle) as service:
        if hasattr(signal, "SIGHUP"):
            # In a thread: a handler that opens a bundle would hold up who knocks meanwhile.
            signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=service.reload).start())
        log.info("%s at http://%s:%d", service.model.segmenter.backend, *service.server_address[:2])
        try:
            service.serve_forever()
        except KeyboardInterrupt:
            log.info("ended")


if __name__ == "__main__":
    main()
