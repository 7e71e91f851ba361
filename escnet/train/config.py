"""The configuration of a training: a TOML file, read strictly.

Every key is known, of its type and in its range, or the file is refused with a message that names
it. ``docs/training.md`` lists the keys; the attributes below are the same.
"""

import dataclasses
import json
import os
import tomllib
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from escnet.presets import PRESETS
from escnet_runtime.errors import BundleFormatError, InputError
from escnet_runtime.strict_json import typed

from .augment import NO_AUGMENTATION, Augmentation
from .categories import CategorySampling
from .groups import Rates
from .loss import LossWeights
from .settings import LoopSettings

__all__ = [
    "DataSection",
    "ModelSection",
    "TrainConfig",
    "TrainingSection",
    "changed_keys",
    "find_config",
    "parse_config",
    "read_config",
    "require_utf8",
    "shipped_configs",
    "to_toml",
]

_SHIPPED: Final = Path(__file__).resolve().parent.parent / "configs"
_SUFFIX: Final = ".toml"
_Section = TypeVar("_Section", "ModelSection", "DataSection", "TrainConfig")
#: Keys that a resumed run may change, because the weights do not depend on them.
_CHANGEABLE: Final = frozenset(
    {
        "output",
        "training.workers",
        "training.log_every",
        "training.save_every",
        "training.evaluate_every",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSection:
    """``[model]``: what is trained, and from which weights.

    Attributes:
        preset: one of the presets; ``tiny`` alone has trained weights, which it starts from unless
            ``clip``, ``sam`` or ``seed`` are given.
        checkpoint: in place of a preset, a checkpoint of this project.
        clip: with a preset, CLIP's weights: one of open_clip's tags, or a file.
        sam: with a preset, SAM's weights for the blocks: a file.
        seed: with a preset, of what no file gives (0).
        image_size: px a side of the image that the model sees, in place of the preset's or the
            checkpoint's; CLIP's positions are resized.
    """

    preset: str | None = None
    checkpoint: str | None = None
    clip: str | None = None
    sam: str | None = None
    seed: int | None = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        if self.preset is None and self.checkpoint is None:
            raise InputError("expected either preset or checkpoint, got none of them")
        if self.preset is not None and self.checkpoint is not None:
            raise InputError(
                "expected either preset or checkpoint, got both: leave one out (on the command "
                "line by --set model.preset=)"
            )
        if self.preset is not None and self.preset not in PRESETS:
            raise InputError(f"preset is {self.preset!r}; expected one of {', '.join(PRESETS)}")
        parts = [name for name in ("clip", "sam", "seed") if getattr(self, name) is not None]
        if self.checkpoint is not None and parts:
            raise InputError(f"{parts[0]} goes with preset: a checkpoint has its own weights")
        _check_seed(self.seed or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSection:
    """``[data]``: dataset folders, or built-in data sets such as ``shapes:train``.

    Attributes:
        train: what is trained on.
        validation: what the figures are measured on; without it there are none, and no best
            checkpoint.
        limit: the first so many images of ``train`` alone.
        validation_limit: the same of ``validation``.
    """

    train: str
    validation: str | None = None
    limit: int | None = None
    validation_limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("limit", "validation_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; expected at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSection(LoopSettings):
    """``[training]``: :class:`LoopSettings`, and

    Attributes:
        seed: of the order of images, their augmentation and their categories.
        checkpoint_activations: compute what is inside the blocks a second time instead of keeping
            it: less memory, a third more time.
    """

    seed: int = 0
    checkpoint_activations: bool = False

    def __post_init__(self) -> None:
        # Without arguments, super() does not work in a dataclass with slots.
        LoopSettings.__post_init__(self)
        _check_seed(self.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """A whole configuration.

    ``output`` is the run's folder. ``augmentation`` is by default CAT-Seg's for a folder and none
    for a built-in data set.
    """

    model: ModelSection
    data: DataSection
    training: TrainingSection
    output: str | None = None
    rates: Rates = field(default_factory=Rates)
    loss: LossWeights = field(default_factory=LossWeights)
    categories: CategorySampling = field(default_factory=CategorySampling)
    augmentation: Augmentation = field(default_factory=Augmentation)


def shipped_configs() -> dict[str, Path]:
    """Name → file of the configurations that come with the package."""
    return {path.stem: path for path in sorted(_SHIPPED.glob(f"*{_SUFFIX}"))}


def find_config(name: str) -> Path:
    """A file by its path, or a shipped one by its name.

    Raises:
        InputError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_configs()
    if name in shipped:
        return shipped[name]
    raise InputError(
        f"there is no configuration {name!r}: expected a file, or one that comes with the package: "
        f"{', '.join(shipped)}"
    )


def read_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a file; overrides such as ``training.steps=100`` replace single values.

    The value of an override is read as TOML, and as plain text where it is none, or where the key
    holds text: the folder of ``data.train=2024`` is called 2024. Without a value, as in
    ``model.preset=``, it takes the key away.

    Raises:
        InputError: the file cannot be read, or a key is unknown, missing, of another type, or out
            of its range.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read the configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not TOML: {error}") from error
    return parse_config(text, str(path), overrides)


def parse_config(text: str, source: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """The same of the text of a file, which messages call ``source``."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{source} is not TOML: {error}") from error
    except RecursionError:
        raise InputError(f"{source} is nested too deeply to be a configuration") from None
    for override in overrides:
        _override(data, override)
    _default_augmentation(data)
    try:
        config = typed(_with_defaults(data, TrainConfig), TrainConfig)
    except BundleFormatError as error:
        message = str(error).removeprefix("$: ").removeprefix("$.").replace(" or NoneType", "")
        raise InputError(f"{source}: {message}") from error
    config = _from_home(config)
    require_utf8(config)
    return config


def _from_home(config: TrainConfig) -> TrainConfig:
    """``~`` in front of a path as a shell reads it, which sees none in a file or behind a key."""

    def expanded(section: _Section, *names: str) -> _Section:
        values = {name: getattr(section, name) for name in names}
        given: dict[str, Any] = {name: os.path.expanduser(v) for name, v in values.items() if v}
        return dataclasses.replace(section, **given)

    return dataclasses.replace(
        expanded(config, "output"),
        model=expanded(config.model, "checkpoint", "clip", "sam"),
        data=expanded(config.data, "train", "validation"),
    )


def require_utf8(config: TrainConfig) -> None:
    """Raise InputError for a name that a TOML file cannot keep, as those of files may be any bytes.

    A run writes its configuration down, and resumes by what it has written.
    """
    for name, value in _flat(dataclasses.asdict(config)).items():
        try:
            str(value).encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{name} is {value!r}, which is not UTF-8, and config.toml could not keep it: "
                "rename the folder or file, or reach it by a link"
            ) from error


def to_toml(config: TrainConfig) -> str:
    """The whole configuration, defaults included, as :func:`read_config` reads it."""
    plain = dataclasses.asdict(config)
    sections = {name: value for name, value in plain.items() if isinstance(value, dict)}
    lines = list(_lines(item for item in plain.items() if item[0] not in sections))
    for name, section in sections.items():
        lines += ["", f"[{name}]", *_lines(section.items())]
    return "\n".join(lines).lstrip("\n") + "\n"


def changed_keys(before: TrainConfig, now: TrainConfig) -> list[str]:
    """The keys that differ and that the weights depend on, such as "training.batch: 4, now 8"."""
    old, new = _flat(dataclasses.asdict(before)), _flat(dataclasses.asdict(now))
    return [
        f"{name}: {_shown(old[name])}, now {_shown(new[name])}"
        for name in old
        if name not in _CHANGEABLE and old[name] != new[name]
    ]


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise InputError(f"seed is {seed}; expected 0 or more, below 2**63")


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *sections, name = key.strip().split(".")
    if not equals or not all((*sections, name)):
        raise InputError(f"got the override {override!r}; expected for example training.steps=100")
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        parsed = {}
    kind: Any = TrainConfig
    for section in sections:
        kind = _kind(kind, section)
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise InputError(f"the override {override!r} goes into {section}, which is no section")
    known = _kind(kind, name)
    if known is not None and not text.strip():
        data.pop(name, None)
        return
    is_toml = parsed.keys() == {"value"}
    if is_toml and not isinstance(parsed["value"], str) and _is_text(known):
        is_toml = False
    data[name] = parsed["value"] if is_toml else text.strip()


def _kind(kind: Any, name: str) -> Any:
    """The declared type of a key of a dataclass; None where there is no such key."""
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    return next((one.type for one in fields if one.name == name), None)


def _is_text(kind: Any) -> bool:
    """Whether it is ``str``, or ``str`` or nothing."""
    return kind is str or set(typing.get_args(kind)) == {str, type(None)}


def _default_augmentation(data: dict[str, Any]) -> None:
    """None for pictures that are drawn: they are as varied as they should be, and exact."""
    section = data.get("data")
    train = section.get("train") if isinstance(section, dict) else None
    if "augmentation" not in data and isinstance(train, str) and train.startswith("shapes:"):
        data["augmentation"] = _plain(NO_AUGMENTATION)


def _with_defaults(data: Any, kind: Any) -> Any:
    """Parsed TOML with what it leaves out, as far as there are defaults, for ``typed``."""
    if not isinstance(data, Mapping):
        return data  # to be refused with its path
    result = dict(data)
    for one in dataclasses.fields(kind):
        if one.name in result:
            if dataclasses.is_dataclass(one.type):
                result[one.name] = _with_defaults(result[one.name], one.type)
        elif one.default is not dataclasses.MISSING:
            result[one.name] = _plain(one.default)
        elif one.default_factory is not dataclasses.MISSING:
            result[one.name] = _plain(one.default_factory())
    return result


def _plain(value: Any) -> Any:
    """As a parser gives it: no dataclasses, no tuples."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return json.loads(json.dumps(value))


def _lines(items: Iterable[tuple[str, Any]]) -> Iterable[str]:
    # JSON's numbers, texts and lists are TOML's; nothing stands for None but leaving it out.
    for name, value in items:
        if value is not None:
            text = json.dumps(value, ensure_ascii=False)
            yield f"{name} = {text}".replace("\x7f", "\\u007f")  # a control character to TOML alone


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _shown(value: Any) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)
