"""The golden run of a bundle: reading what float32 torch gave, and repeating it on this device.

It is repeated with the golden prompts: a prompt that flips on a near-tie would make every later
stage differ without anything being wrong. It is run in one piece, all categories in one chunk, as
the reference was made; so differences add up along the stages.
"""

import math
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .bundle import Bundle
from .errors import BundleFormatError, BundleIntegrityError, EscNetError
from .images import ImageArray, load_image
from .manifest import Manifest
from .pictures import Labels, read_label_png
from .pipeline import Pipeline
from .postprocess import UpsampleArgmax
from .ppg import Prompts, pseudo_prompts
from .preprocess import preprocess
from .sketch import sketch
from .strict_json import parse_object, typed
from .text_embedding import TEXT_BATCH
from .vocabulary import assemble, plan_texts

__all__ = ["Golden", "GoldenRun", "Reference", "repeat_golden"]

_MAX_BYTES: Final = 16 * 2**20
_MAX_PIXELS: Final = 2**24


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """``golden/reference.json``, as the exporter writes it.

    ``stages`` and ``preprocessed`` are sketches, see :mod:`escnet_runtime.sketch`.
    ``stage_tolerance`` is the largest relative L2 of a stage, ``pixel_agreement`` the smallest
    share of equal labels that a device may show.
    """

    categories: tuple[str, ...]
    prompts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    stage_tolerance: float
    pixel_agreement: float
    preprocessed: tuple[float, ...]
    stages: dict[str, dict[str, tuple[float, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Golden:
    """What a bundle's golden files hold.

    ``tokens`` is int32 [t,l] of ``reference.prompts``; ``image`` uint8 [H,W,3]; ``labels`` [H,W].
    Of each block and category ``points`` are [blocks, N, K, 2], ``point_labels`` [blocks, N, K] and
    ``regions`` [blocks, N, h, w], integers.
    """

    reference: Reference
    tokens: npt.NDArray[np.int32]
    image: ImageArray
    labels: Labels
    points: npt.NDArray[np.integer[Any]]
    point_labels: npt.NDArray[np.integer[Any]]
    regions: npt.NDArray[np.integer[Any]]

    @classmethod
    def load(cls, bundle: Bundle) -> "Golden":
        """Read and check the golden files.

        Raises:
            BundleFormatError: one of them is not what an exporter writes.
            EscNetError: one is missing or cannot be read.
        """
        files = {
            PurePosixPath(entry.file).name: entry.file for entry in bundle.manifest.golden.files
        }
        needed = ("image.png", "labels.png", "prompts.npz", "reference.json")
        missing = [name for name in needed if name not in files]
        if missing:
            raise BundleFormatError(f"bundle.json lists no golden file {', '.join(missing)}")
        text = bundle.text(files["reference.json"], most=_MAX_BYTES)
        reference = typed(parse_object(text, "reference.json"), Reference)
        tokens = _tokens(reference, bundle.manifest)
        _check_texts(reference, bundle.manifest)
        shapes = _prompt_shapes(bundle.manifest, len(reference.categories))
        arrays = _read_integers(bundle.file(files["prompts.npz"]), shapes)
        paths = [bundle.file(files[name]) for name in ("labels.png", "image.png")]
        for path in paths:
            _require_small_png(path)
        labels, _ = read_label_png(paths[0])
        image = load_image(paths[1])
        if image.shape[:2] != labels.shape:
            raise BundleFormatError(
                f"image.png has {list(image.shape[:2])} pixels, labels.png {list(labels.shape)}"
            )
        return cls(reference=reference, tokens=tokens, image=image, labels=labels, **arrays)


@dataclass(slots=True, kw_only=True)
class GoldenRun:
    """What this device gave. ``failure`` says why the run ended early, if it did.

    ``stages`` are sketches by stage and output; ``flips`` counts the prompts, of ``prompts``, that
    the device alone would have chosen otherwise; ``agreement`` is the share of equal labels.
    """

    stages: dict[str, dict[str, npt.NDArray[np.float64]]] = field(default_factory=dict)
    flips: int = 0
    prompts: int = 0
    agreement: float | None = None
    failure: str | None = None


def repeat_golden(pipeline: Pipeline, golden: Golden, manifest: Manifest) -> GoldenRun:
    """Run the golden image with the golden prompts; a failing graph ends it early."""
    run = GoldenRun()
    try:
        text = _encode_text(pipeline, golden, manifest, run)
        image = preprocess(golden.image, manifest.constants.preprocessing)
        logits = _logits(pipeline, golden, image, text, run)
    except EscNetError as error:
        run.failure = str(error)
        return run
    except MemoryError as error:
        run.failure = f"not enough memory: {error}"
        return run
    height, width = golden.image.shape[:2]
    reduced = UpsampleArgmax(height, width, (logits.shape[1], logits.shape[2]), len(logits))
    reduced.add(0, logits)
    run.agreement = float((reduced.result()[0] == golden.labels).mean())
    return run


def _encode_text(
    pipeline: Pipeline, golden: Golden, manifest: Manifest, run: GoldenRun
) -> npt.NDArray[np.float32]:
    """float32 [N, D], from the golden tokens: a tokenizer that differs is another check."""
    batches = range(0, len(golden.tokens), TEXT_BATCH)
    embeddings = np.concatenate(
        [pipeline.encode_text(golden.tokens[start : start + TEXT_BATCH]) for start in batches]
    )
    run.stages["text_encoder"] = {"embeddings": sketch(embeddings)}
    pipeline.backend.release("text_encoder")
    plan = plan_texts(golden.reference.categories, manifest.constants.templates)
    known = dict(zip(golden.reference.prompts, embeddings, strict=True))
    return assemble(plan, np.stack([known[prompt] for prompt in plan.prompts])).embeddings


def _logits(
    pipeline: Pipeline,
    golden: Golden,
    image: npt.NDArray[np.float32],
    text: npt.NDArray[np.float32],
    run: GoldenRun,
) -> npt.NDArray[np.float32]:
    """Logits float32 [N, l, l]; sketches of all outputs on the way go into ``run``."""

    def observe(stage: str, _: slice, outputs: Mapping[str, Any]) -> None:
        if not stage.endswith("_prompts"):
            host = {name: pipeline.backend.to_host(value) for name, value in outputs.items()}
            run.stages[stage] = {name: sketch(array) for name, array in host.items()}

    def prompts(block: int, scores: npt.NDArray[np.float32]) -> Prompts:
        own = pseudo_prompts(scores, pipeline.ppg)
        forced = replace(
            own,
            points=golden.points[block].astype(np.float32),
            point_labels=golden.point_labels[block].astype(np.int32),
            regions=golden.regions[block].astype(np.int32),
        )
        moved = (own.points != forced.points).any(axis=-1)
        run.flips += int((moved | (own.point_labels != forced.point_labels)).sum())
        run.prompts += own.point_labels.size
        return forced

    encoded = pipeline.encode_image(image, observe)
    parts = pipeline.logits(encoded, text, chunk=len(text), observer=observe, prompts=prompts)
    return np.concatenate([logits for _, logits in parts])


def _tokens(reference: Reference, manifest: Manifest) -> npt.NDArray[np.int32]:
    """int32 [t, l] of the texts."""
    longest = manifest.tokenizer.context_length
    try:
        tokens = np.array(reference.tokens, np.int32)
    except (ValueError, OverflowError) as error:
        raise BundleFormatError(f"the tokens of reference.json are unusable: {error}") from error
    if tokens.ndim != 2 or len(tokens) != len(reference.prompts) or not tokens.size:
        raise BundleFormatError(
            f"reference.json has tokens {list(tokens.shape)} for {len(reference.prompts)} texts"
        )
    if tokens.min() < 0 or tokens.shape[1] > longest:
        raise BundleFormatError(
            f"reference.json has texts of {tokens.shape[1]} tokens from {tokens.min()}; expected "
            f"at most {longest} from 0"
        )
    return tokens


def _check_texts(reference: Reference, manifest: Manifest) -> None:
    """Refuse other categories than the bundle's, and texts that are not theirs."""
    if reference.categories != manifest.golden.categories:
        raise BundleFormatError(
            f"reference.json has {len(reference.categories)} categories, which are not the "
            f"{len(manifest.golden.categories)} of bundle.json"
        )
    plan = plan_texts(reference.categories, manifest.constants.templates)
    if len(plan.starts) != len(reference.categories) or set(plan.prompts) != {*reference.prompts}:
        raise BundleFormatError("the golden texts are not those of the golden categories")


def _prompt_shapes(manifest: Manifest, categories: int) -> dict[str, tuple[int, ...]]:
    points = (manifest.model.blocks, categories, manifest.constants.ppg.regions)
    return {
        "points": (*points, 2),
        "point_labels": points,
        "regions": (*points[:2], *manifest.model.grid),
    }


def _read_integers(
    path: Path, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, npt.NDArray[np.integer[Any]]]:
    """Arrays of integers of an .npz, of these shapes; others are refused before they are read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                name: _read_array(archive, name, shape, path.name) for name, shape in shapes.items()
            }
    except BundleFormatError:
        raise
    except Exception as error:  # zipfile and NumPy raise nearly anything for damaged files
        raise BundleFormatError(f"{path.name} is unusable: {error}") from error


def _read_array(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], file: str
) -> npt.NDArray[np.integer[Any]]:
    with archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        if version != (1, 0):
            raise BundleFormatError(f"{file} has {name} in format {version}, expected (1, 0)")
        got, by_column, dtype = np.lib.format.read_array_header_1_0(member)
        if got != shape or dtype.kind != "i" or (by_column and len(shape) > 1):
            raise BundleFormatError(
                f"{file} has {name} {dtype} {list(got)!s:.80}, expected integers {list(shape)}"
            )
        size = math.prod(shape) * dtype.itemsize
        data = member.read(size + 1)
    if len(data) != size:
        raise BundleFormatError(f"{file} has {len(data):,} bytes of {name}, expected {size:,}")
    return np.frombuffer(data, dtype).reshape(shape)


def _require_small_png(path: Path) -> None:
    """Refuse what is no PNG, and one that declares more pixels than a golden image has."""
    try:
        with path.open("rb") as file:
            head = file.read(24)
    except OSError as error:
        raise BundleIntegrityError(f"Cannot read {path}: {error.strerror}.") from error
    if len(head) < 24 or not head.startswith(b"\x89PNG\r\n\x1a\n"):
        raise BundleFormatError(f"{path.name} is not a PNG")
    width, height = struct.unpack(">II", head[16:24])
    if width * height > _MAX_PIXELS:
        raise BundleFormatError(
            f"{path.name} declares {width:,} × {height:,} pixels; at most {_MAX_PIXELS:,} are read"
        )
