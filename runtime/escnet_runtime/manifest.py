"""``bundle.json``: the description of a bundle, as frozen dataclasses.

Reading is strict and goes in this order: JSON, schema version, keys and types, plausible sizes,
safe paths, digest. Anything unexpected is a `BundleFormatError` that names the place.
"""

import contextlib
import dataclasses
import enum
import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from .errors import BundleFormatError
from .ppg import MAX_PIXELS, PpgConstants
from .preprocess import Preprocessing
from .strict_json import parse_object, typed

__all__ = [
    "MAX_IMAGE_SIZE",
    "MAX_TEMPLATES",
    "SCHEMA_VERSION",
    "Constants",
    "DType",
    "FileRef",
    "Golden",
    "Manifest",
    "ModelInfo",
    "Parity",
    "Postprocessing",
    "PpgConstants",
    "Precision",
    "Preprocessing",
    "Stage",
    "TensorSpec",
    "TokenizerRef",
    "check_relative_path",
    "check_sha256",
]

SCHEMA_VERSION = "3.0"
DType = Literal["float32", "float16", "bfloat16", "int32", "int8", "uint8"]

# Far above every real bundle, and low enough that nothing large is allocated for a made-up one.
_MAX_DIMENSION = 2**20
_MAX_ELEMENTS = 2**28
MAX_IMAGE_SIZE = 4096  # px
_MAX_FILE_BYTES = 2**40
_MAX_SMALL_FILE_BYTES = 64 * 2**20  # what is read whole: tokenizer, golden files
MAX_TEMPLATES = 1024
_MAX_GOLDEN_CATEGORIES = 512
_AGAIN = "Copy or export the bundle again."
# Names of devices on Windows, in every folder and with any suffix.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


class Precision(str, enum.Enum):
    """The type that a graph computes in."""

    __str__ = str.__str__  # as enum.StrEnum, which Python has from 3.11 on

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    FP8 = "fp8"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRef:
    """A file of the bundle: POSIX path relative to its root, digest, size in bytes."""

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """An input or output of a graph; a dimension is a size or the name of a dynamic axis."""

    name: str
    dtype: DType
    shape: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage(FileRef):
    """A graph."""

    precision: Precision
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """Which model it is, and its sizes: image in pixels, grids as (height, width), channels."""

    name: str
    trained: bool
    weights: str
    image_size: int
    grid: tuple[int, int]
    logits: tuple[int, int]
    embed_dim: int
    hidden_dim: int
    sam_dim: int
    blocks: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Postprocessing:
    """Resize of the logits to the image, and what confidence means."""

    resize: Literal["bilinear"]
    align_corners: bool
    confidence: Literal["softmax"]

    def __post_init__(self) -> None:
        if self.align_corners:
            raise BundleFormatError(
                "align_corners is true, expected false: this runtime resizes logits with "
                "half-pixel centres alone"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Constants:
    """What the runtime computes between the graphs; ``chunk`` and ``group`` are in categories.

    ``group`` is how many of them a graph adds up itself; ``chunk`` is how many to run at a time.
    """

    ppg: PpgConstants
    preprocessing: Preprocessing
    postprocessing: Postprocessing
    templates: tuple[str, ...]
    chunk: int
    group: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerRef(FileRef):
    """The tokenizer; longer texts are cut to ``context_length`` tokens."""

    context_length: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Golden:
    """Inputs and outputs of the fp32 PyTorch model."""

    categories: tuple[str, ...]
    files: tuple[FileRef, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """How near the graphs come to the fp32 PyTorch model; agreement is a fraction of pixels."""

    passed: bool
    gate: Literal["pixels", "stages"]
    allowed_failure: bool
    pixel_agreement: float
    prompt_flips: int
    files: tuple[FileRef, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The whole of ``bundle.json``, less the digest, which follows from the rest."""

    schema_version: str = SCHEMA_VERSION
    model: ModelInfo
    precision: Precision
    constants: Constants
    stages: dict[str, Stage]
    tokenizer: TokenizerRef
    golden: Golden
    parity: Parity
    producer: dict[str, str]

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Read and check a ``bundle.json``.

        Raises:
            BundleFormatError: it is malformed, implausible, unsafe or of another format version.
        """
        with _advising(_AGAIN):
            document = parse_object(text, "bundle.json")
        hint = _check_version(document)
        with _advising("" if hint else _AGAIN):
            if "digest" not in document:
                raise BundleFormatError("$: missing digest.")
            stored = document.pop("digest")
            manifest = typed(document, cls, hint=hint)
            _check_sizes(manifest)
        for reference in manifest.files():
            check_relative_path(reference.file)
        if stored != _digest(document):
            raise BundleFormatError(
                f"The digest of bundle.json is {stored!r:.80}; its content gives "
                f"{_digest(document)!r}. It was changed after it was written: copy or export the "
                "bundle again."
            )
        return manifest

    def to_json(self) -> str:
        """Write ``bundle.json``; the same manifest always gives the same text.

        Raises:
            BundleFormatError: `from_json` would refuse it.
        """
        document = dataclasses.asdict(self)
        version = document.pop("schema_version")
        digest = _digest({"schema_version": version, **document})
        document = {"schema_version": version, "digest": digest, **document}
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        Manifest.from_json(text)
        return text

    def files(self) -> Iterator[FileRef]:
        """Every file the manifest refers to."""
        yield from self.stages.values()
        yield self.tokenizer
        yield from self.golden.files
        yield from self.parity.files


@contextlib.contextmanager
def _advising(advice: str) -> Iterator[None]:
    """Say what to do behind what is wrong."""
    try:
        yield
    except BundleFormatError as error:
        raise BundleFormatError(f"{error} {advice}".rstrip()) from error


def check_relative_path(path: str) -> None:
    """Refuse a path that could lead out of a bundle, or that is not the same on every system.

    Raises:
        BundleFormatError: absolute, with "..", a backslash, a drive, an empty part, the name of a
            Windows device, or with control or invisible characters.
    """
    parts = path.split("/")
    unsafe = (
        any(part in {"", ".", ".."} for part in parts)
        or any(character in "\\:" for character in path)
        or any(unicodedata.category(character).startswith("C") for character in path)
        or any(_DEVICES.fullmatch(part) for part in parts)
    )
    if unsafe:
        raise BundleFormatError(
            f"Unsafe path in the bundle: {path!r:.120}. Expected a relative path with plain parts "
            'between slashes, such as "graphs/decoder.onnx". Do not use this bundle.'
        )


def check_sha256(digest: str, where: str) -> None:
    """Refuse a text that is no sha256.

    Args:
        digest: 64 lower-case hexadecimal digits.
        where: what messages call it: a file, or a JSON path.

    Raises:
        BundleFormatError: it is something else.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise BundleFormatError(
            f"{where}: expected a sha256 of 64 hexadecimal digits, got {digest!r:.80}."
        )


def _check_version(document: dict[str, Any]) -> str:
    """Refuse another major version; return what to say about unknown keys of a newer minor one."""
    version = document.get("schema_version")
    if not isinstance(version, str) or not re.fullmatch(r"[0-9]{1,6}\.[0-9]{1,6}", version):
        raise BundleFormatError(
            f'$.schema_version: expected "major.minor", got {version!r:.80}. Is this the '
            "bundle.json of an ESC-Net bundle?"
        )
    major, minor = (int(part) for part in version.split("."))
    own_major, own_minor = (int(part) for part in SCHEMA_VERSION.split("."))
    if major != own_major:
        advice = "Update escnet-runtime." if major > own_major else "Export the bundle again."
        raise BundleFormatError(
            f"The bundle has format {version}; this escnet-runtime reads {own_major}.x. {advice}"
        )
    if minor > own_minor:
        return (
            f" The bundle has the newer format {version}, this escnet-runtime knows "
            f"{SCHEMA_VERSION}: update escnet-runtime."
        )
    return ""


def _digest(document: dict[str, Any]) -> str:
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _check_sizes(manifest: Manifest) -> None:
    """Refuse sizes no bundle has, before anything is allocated for them."""
    for name, stage in manifest.stages.items():
        if not name.isidentifier():
            raise BundleFormatError(f"$.stages: the name {name!r:.80} is not an identifier.")
        for tensor in (*stage.inputs, *stage.outputs):
            _check_shape(tensor, f"$.stages.{name}")
    for reference in manifest.files():
        check_sha256(reference.sha256, f"{reference.file!r:.120}")
        _in_range(reference.bytes, 0, _MAX_FILE_BYTES, f"size of {reference.file!r:.120}")
    for reference in (manifest.tokenizer, *manifest.golden.files):
        _in_range(reference.bytes, 0, _MAX_SMALL_FILE_BYTES, f"size of {reference.file!r:.120}")
    for part in (manifest.model, manifest.constants.preprocessing):  # prompts check their own
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            for number in value if isinstance(value, tuple) else (value,):
                if type(number) is int:
                    _in_range(number, 1, _MAX_DIMENSION, field.name)
    for size in (manifest.model.image_size, manifest.constants.preprocessing.size):
        _in_range(size, 1, MAX_IMAGE_SIZE, "image size")
    _in_range(math.prod(manifest.model.grid), 1, MAX_PIXELS, "pixels of the grid")
    _in_range(max(manifest.model.logits), 1, MAX_IMAGE_SIZE, "logits")
    _in_range(len(manifest.constants.templates), 1, MAX_TEMPLATES, "number of templates")
    _in_range(
        len(manifest.golden.categories), 0, _MAX_GOLDEN_CATEGORIES, "number of golden categories"
    )
    _in_range(manifest.constants.chunk, 1, _MAX_DIMENSION, "chunk")
    _in_range(manifest.constants.group, 1, _MAX_DIMENSION, "group")
    _in_range(manifest.tokenizer.context_length, 1, _MAX_DIMENSION, "context_length")
    _in_range(manifest.parity.prompt_flips, 0, _MAX_FILE_BYTES, "prompt_flips")


def _check_shape(tensor: TensorSpec, where: str) -> None:
    what = f"{where}, tensor {tensor.name!r:.80}, shape {list(tensor.shape)!r:.120}"
    sizes = [size for size in tensor.shape if isinstance(size, int)]
    for axis in tensor.shape:
        if isinstance(axis, str) and not axis.isidentifier():
            raise BundleFormatError(f"{what}: the axis {axis!r:.80} is not an identifier.")
    for size in sizes:
        _in_range(size, 1, _MAX_DIMENSION, what)
    if math.prod(sizes) > _MAX_ELEMENTS:
        raise BundleFormatError(f"{what}: more than {_MAX_ELEMENTS:,} elements.")


def _in_range(value: int, least: int, most: int, what: str) -> None:
    if not least <= value <= most:
        raise BundleFormatError(f"{what}: expected {least} to {most:,}, got {value!r:.80}.")
