"""docs/bundle.md as a program: a bundle on ONNX Runtime, without a line of escnet_runtime.

    python bundle_client.py BUNDLE                                       # the golden run
    python bundle_client.py BUNDLE IMAGE LABELS.png "cat" "sofa, couch"

For those who write a runtime of their own: what the document says, in its order, short and slow.
What every graph gives, prompts and labels are those of escnet_runtime, bit for bit
(tests/runtime/test_bundle_client.py). It checks nothing, so give it no bundle of a stranger, and
none in bf16, which NumPy does not have.
"""

import html
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import tokenizers
from PIL import Image, ImageOps

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

#: Told each stage with its outputs, those of all chunks joined.
Observer = Callable[[str, Arrays], None]


class Client:
    """A bundle: its description, and its graphs on ONNX Runtime's CPU provider."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        self.constants = self.manifest["constants"]
        golden = (folder / "golden" / "reference.json").read_text(encoding="utf-8")
        self.reference = json.loads(golden)
        self._sessions: dict[str, ort.InferenceSession] = {}

    def run(self, graph: str, inputs: Mapping[str, Array]) -> Arrays:
        """A graph's outputs by name. What it does not read of the inputs is left alone."""
        if graph not in self._sessions:
            path = self.folder / self.manifest["stages"][graph]["file"]
            self._sessions[graph] = ort.InferenceSession(
                path,
                providers=["CPUExecutionProvider"],
                # Off in escnet_runtime, too; they change last bits.
                disabled_optimizers=["SkipLayerNormFusion", "BiasGeluFusion"],
            )
        session = self._sessions[graph]
        feeds = {port.name: inputs[port.name] for port in session.get_inputs()}
        names = [port.name for port in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))

    def segment(self, pixels: Array, names: Sequence[str], *, sliding: bool = False) -> Arrays:
        """``labels`` [H,W], indices into ``names``, and ``confidence`` of pixels uint8 [H,W,3]."""
        text, name_of = self.vocabulary(names)
        if sliding:
            logits = self.window_logits(pixels, text)
        else:
            logits = self.logits(self.preprocess(pixels), text)
        labels, confidence = masks(logits, *pixels.shape[:2])
        kind = np.uint8 if len(names) <= 256 else np.uint16
        return {"labels": name_of[labels].astype(kind), "confidence": confidence}

    def preprocess(self, pixels: Array) -> Array:
        """float32 [1,3,S,S] of pixels uint8 [H,W,3]."""
        spec = self.constants["preprocessing"]
        small = resize(pixels, spec["size"], spec["size"]) / 255  # float64
        normal = (small - np.array(spec["mean"])) / np.array(spec["std"])
        return np.ascontiguousarray(normal.astype(np.float32).transpose(2, 0, 1)[None])

    def vocabulary(self, names: Sequence[str]) -> tuple[Array, Array]:
        """Embeddings float32 [N,D] of the distinct categories, and the name that each is of."""
        first: dict[frozenset[str], int] = {}
        for index, name in enumerate(names):
            first.setdefault(frozenset(map(clean, synonyms(name))), index)
        sums = []
        for index in first.values():
            texts = [
                clean(template.replace("{}", synonym))
                for template in self.constants["templates"]
                for synonym in synonyms(names[index])
            ]
            sums.append(self.embeddings(texts).sum(axis=0, dtype=np.float64))
        units = np.stack([one / np.linalg.norm(one) for one in sums])
        return units.astype(np.float32), np.array([*first.values()])

    def embeddings(self, texts: Sequence[str]) -> Array:
        """float32 [t,D] of cleaned texts, one by one."""
        file, most = (self.manifest["tokenizer"][key] for key in ("file", "context_length"))
        tokenizer = tokenizers.Tokenizer.from_file(str(self.folder / file))
        tokenizer.normalizer = None  # the texts are clean
        tokenizer.enable_truncation(most)
        rows = []
        for text in texts:
            ids = tokenizer.encode(text).ids
            ids = ids[: ids.index(ids[-1]) + 1]
            rows.append(self.run("text_encoder", {"tokens": np.array([ids], np.int32)}))
        return np.concatenate([row["embeddings"] for row in rows])

    def logits(
        self,
        image: Array,
        text: Array,
        *,
        chunk: int | None = None,
        see: Observer = lambda stage, outputs: None,
        forced: Mapping[str, Array] | None = None,
    ) -> Array:
        """float32 [N,l,l] of an image float32 [1,3,S,S] and embeddings float32 [N,D].

        ``forced`` are prompts of all blocks that take the place of those chosen here.
        """

        def keep(stage: str, outputs: Arrays) -> None:
            see(stage, outputs)
            known.update({name.removesuffix("_out"): array for name, array in outputs.items()})

        chunks = Chunks(len(text), chunk or self.constants["chunk"], self.constants["group"])
        known: Arrays = {"image": image, "text": text}
        keep("image_encoder", self.run("image_encoder", known))
        keep("correlation", chunks.run(self, "correlation", known))
        for block in range(self.manifest["model"]["blocks"]):
            chosen = prompts(known["scores"], **self.constants["ppg"])
            for name, array in (forced or {}).items():
                chosen[name] = array[block].astype(chosen[name].dtype)
            keep(f"esc{block}_prompts", chosen)
            keep(f"esc{block}_sam", chunks.run(self, f"esc{block}_sam", known))
            known["enhanced_mean"] = in_order(known["enhanced_sum"])[None]
            keep(f"esc{block}_fuse", self.run(f"esc{block}_fuse", known))
            keep(f"esc{block}_image", chunks.run(self, f"esc{block}_image", known))
            known["kv_mean"] = in_order(known["kv_sum"])
            known["k_mean"] = in_order(known["k_sum"])
            keep(f"esc{block}_text", chunks.run(self, f"esc{block}_text", known))
        keep("decoder", chunks.run(self, "decoder", known))
        return known["logits"]

    def window_logits(self, pixels: Array, text: Array) -> Array:
        """float32 [N,c,c] of the four windows and the whole image."""
        size, cells = self.manifest["model"]["image_size"], self.manifest["model"]["logits"][0]
        stride = round(cells * 2 / 3)
        step = stride * size // cells
        canvas = resize(pixels, size + step, size + step)
        corners = [(y, x) for y in (0, 1) for x in (0, 1)]
        windows = [canvas[y * step :, x * step :][:size, :size] for y, x in corners]
        places = [square(y * stride, x * stride, cells) for y, x in corners]
        cover = np.zeros((cells + stride, cells + stride), np.float32)
        for place in places:
            cover[place] += 1
        total = np.zeros((len(text), *cover.shape), np.float32)
        for place, window in zip(places, windows, strict=True):
            logits = self.logits(self.preprocess(window), text)
            total[:, *place] += np.float32(0.5) / cover[place] * logits
        whole = self.logits(self.preprocess(pixels), text)
        return total + np.float32(0.5) * np.stack([enlarge(one, *cover.shape) for one in whole])


def square(y: int, x: int, side: int) -> tuple[slice, slice]:
    """The index of a square."""
    return slice(y, y + side), slice(x, x + side)


class Chunks:
    """Categories cut at whole groups."""

    def __init__(self, categories: int, chunk: int, group: int) -> None:
        self.categories, self.group = categories, group
        length = -(-chunk // group) * group
        starts = range(0, categories, length)
        self.parts = [np.arange(start, min(start + length, categories)) for start in starts]

    def run(self, client: Client, graph: str, known: Mapping[str, Array]) -> Arrays:
        """Run a graph of categories by chunks, and join its outputs.

        Sums of groups, ``*_sum``, are joined as they are, and not added up.
        """
        ports = client.manifest["stages"][graph]["inputs"]
        by_category = [port["name"] for port in ports if port["shape"][0] == "n"]
        joined: dict[str, list[Array]] = {}
        for own in self.parts:
            # A category that is left over alone is run twice.
            rows = np.repeat(own, 2) if len(own) == 1 < self.categories else own
            inputs = {**known, "weight": self.weight(len(own))}
            inputs |= {name: known[name][rows] for name in by_category}
            for name, array in client.run(graph, inputs).items():
                kept = array if name.endswith("_sum") else array[: len(own)]
                joined.setdefault(name, []).append(kept)
        return {name: np.concatenate(arrays) for name, arrays in joined.items()}

    def weight(self, here: int) -> Array:
        """float32 [g,G] of a chunk of so many categories."""
        weight = np.zeros(-(-here // self.group) * self.group, np.float32)
        weight[:here] = np.float32(1) / np.float32(self.categories)
        return weight.reshape(-1, self.group)


def in_order(groups: Array) -> Array:
    """The sum of the first axis, one after the other."""
    total = groups[0].copy()
    for one in groups[1:]:
        total += one
    return total


def read_image(path: Path) -> Array:
    """uint8 [H,W,3] of a file."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I"):  # 16 bits
        grey = (np.asarray(image).astype(int) + 128) // 257
        return np.repeat(grey[:, :, None], 3, axis=2).astype(np.uint8)
    if not image.has_transparency_data:
        return np.array(image.convert("RGB"))
    rgba = np.array(image.convert("RGBA")).astype(int)
    alpha = rgba[:, :, 3:]
    mixed = (rgba[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return mixed.astype(np.uint8)


def resize(pixels: Array, height: int, width: int) -> Array:
    """uint8 [height,width,3] of uint8 [H,W,3]: the axis that is reduced more goes first."""
    axes = [(0, height), (1, width)]
    rows_first = pixels.shape[0] * width > pixels.shape[1] * height
    for axis, size in axes if rows_first else axes[::-1]:
        pixels = np.moveaxis(resize_rows(np.moveaxis(pixels, axis, 0), size), 0, axis)
    return pixels


def resize_rows(pixels: Array, m: int) -> Array:
    """uint8 [m,...] of uint8 [n,...]."""
    n = len(pixels)
    scale = n / m
    f = max(1.0, scale)
    rows = []
    for i in range(m):
        c = (i + 0.5) * scale
        j = np.arange(max(0, int(c - f + 0.5)), min(n, int(c + f + 0.5)))
        share = np.maximum(0, 1 - np.abs((j + 0.5 - c) / f))
        weight = np.floor(share / share.sum() * 2**22 + 0.5).astype(np.int64)
        total = np.tensordot(weight, pixels[j].astype(np.int64), 1)
        rows.append(((total + 2**21) >> 22).clip(0, 255))
    return np.stack(rows).astype(np.uint8)


def synonyms(name: str) -> list[str]:
    """Those of a category that differ once they are cleaned, in order."""
    distinct: dict[str, str] = {}
    for part in re.split(r",(?:\s+|$)", name.strip()):
        if clean(part):
            distinct.setdefault(clean(part), part)
    return list(distinct.values()) or [name]


def clean(text: str) -> str:
    """As open_clip does before it tokenises."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def prompts(
    scores: Array, *, temperature: float, alpha: float, regions: int, iterations: int
) -> Arrays:
    """Points, labels, regions and probabilities of scores float32 [N,h,w]."""
    n, h, w = scores.shape
    points = np.zeros((n, regions, 2), np.float32)
    point_labels = np.full((n, regions), -1, np.int32)
    maps = np.full((n, h * w), -1, np.int32)
    peak = scores.max(axis=(1, 2), keepdims=True)
    threshold = peak + np.float32(temperature) * np.float32(math.log(alpha))
    for k in range(n):
        pixels = np.flatnonzero(scores[k] >= threshold[k])  # y·w + x, ascending
        values = scores[k].ravel()[pixels]
        places = np.stack([pixels % w, pixels // w], axis=1)  # int64 (x, y)
        region = k_means(places, farthest(places, int(values.argmax()), regions), iterations)
        maps[k, pixels] = region
        for r in set(region.tolist()):
            inside = np.flatnonzero(region == r)
            points[k, r] = places[inside[values[inside].argmax()]]
            point_labels[k, r] = 1
    return {
        "points": points,
        "point_labels": point_labels,
        "regions": maps.reshape(n, h, w),
        "probabilities": np.exp((scores - peak) / np.float32(temperature)),
    }


def farthest(places: Array, first: int, regions: int) -> Array:
    """At most so many seeds: the first one, then always the place farthest from all of them."""
    seeds = [first]
    distance = ((places - places[first]) ** 2).sum(axis=1)
    while len(seeds) < regions and distance.max() > 0:
        seeds.append(int(distance.argmax()))  # the first of equals
        distance = np.minimum(distance, ((places - places[seeds[-1]]) ** 2).sum(axis=1))
    return places[seeds]


def k_means(places: Array, seeds: Array, iterations: int) -> Array:
    """The region of each place. A centroid is a sum of places and their count."""
    sums, counts = seeds.copy(), np.ones(len(seeds), np.int64)
    for _ in range(iterations):
        region = nearest(places, sums, counts)
        for r in set(region.tolist()):  # a region without a place keeps its centroid
            sums[r], counts[r] = places[region == r].sum(axis=0), (region == r).sum()
    return nearest(places, sums, counts)


def nearest(places: Array, sums: Array, counts: Array) -> Array:
    """The index of the nearest centroid, the lowest of equals: |p - s/c|² = |c·p - s|² / c²."""
    best = np.zeros(len(places), np.int64)
    least = ((counts[0] * places - sums[0]) ** 2).sum(axis=1)
    for r in range(1, len(counts)):
        distance = ((counts[r] * places - sums[r]) ** 2).sum(axis=1)
        nearer = distance * counts[best] ** 2 < least * counts[r] ** 2
        best, least = np.where(nearer, r, best), np.where(nearer, distance, least)
    return best


def masks(logits: Array, height: int, width: int) -> tuple[Array, Array]:
    """Labels [H,W] and confidence float16 [H,W] of logits float32 [N,l,l]."""
    best = np.full((height, width), -np.inf, np.float32)
    labels, total = np.zeros((height, width), int), np.zeros((height, width), np.float32)
    for k, one in enumerate(logits):
        values = enlarge(one, height, width)
        labels[values > best] = k
        top = np.maximum(values, best)
        total = total * np.exp(best - top) + np.exp(values - top)
        best = top
    return labels, (1 / total).astype(np.float16)


def enlarge(one: Array, height: int, width: int) -> Array:
    """float32 [height,width] of [l,l], bilinear with half-pixel centres: the width first."""
    lower, upper, share = taps(one.shape[1], width)
    wide = one[:, lower] + share * (one[:, upper] - one[:, lower])
    lower, upper, share = taps(one.shape[0], height)
    return wide[lower] + share[:, None] * (wide[upper] - wide[lower])


def taps(cells: int, pixels: int) -> tuple[Array, Array, Array]:
    """For each pixel the two cells it lies between, and the share of the second."""
    place = ((np.arange(pixels) + 0.5) * (cells / pixels) - 0.5).clip(0, cells - 1)
    lower = place.astype(int)
    return lower, np.minimum(lower + 1, cells - 1), (place - lower).astype(np.float32)


def sketch(tensor: Array) -> Array:
    """float64 [256] of a tensor, as in golden/reference.json."""
    values = tensor.astype(np.float64).ravel()
    z = np.arange(values.size, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    signed = np.where(z >> np.uint64(63), -values, values)
    return np.bincount((z % np.uint64(256)).astype(int), signed, minlength=256)


def repeat_golden(client: Client) -> tuple[dict[str, float], float]:
    """The error of each output of the golden run, and the share of pixels with the golden label."""
    folder, reference = client.folder / "golden", client.reference
    errors: dict[str, float] = {}

    def compare(stage: str, outputs: Arrays) -> None:
        for name, want in reference["stages"].get(stage, {}).items():
            off = np.linalg.norm(sketch(outputs[name]) - want) / np.linalg.norm(want)
            errors[f"{stage} {name}"] = float(off)

    tokens = np.array(reference["tokens"], np.int32)
    compare("text_encoder", client.run("text_encoder", {"tokens": tokens}))
    text, _ = client.vocabulary(reference["categories"])
    pixels = read_image(folder / "image.png")
    with np.load(folder / "prompts.npz") as forced:
        image = client.preprocess(pixels)
        logits = client.logits(image, text, chunk=len(text), see=compare, forced=forced)
    labels, _ = masks(logits, *pixels.shape[:2])
    return errors, float((labels == np.array(Image.open(folder / "labels.png"))).mean())


def main(bundle: str, image: str = "", output: str = "", *names: str) -> None:
    """See the top of this file."""
    client = Client(Path(bundle))
    if image:
        labels = client.segment(read_image(Path(image)), names)["labels"]
        Image.fromarray(labels).save(output)
    else:
        errors, agreement = repeat_golden(client)
        for name, error in errors.items():
            print(f"{error:.1e}  {name}")
        print(f"{agreement:.4%} of pixels have the golden label")


if __name__ == "__main__":
    main(*sys.argv[1:])
