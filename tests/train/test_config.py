"""Configurations: read strictly, overridden, written, compared."""

import dataclasses
import os
import tomllib
from pathlib import Path

import pytest

from escnet.train.augment import NO_AUGMENTATION, Augmentation
from escnet.train.config import (
    TrainConfig,
    changed_keys,
    find_config,
    read_config,
    shipped_configs,
    to_toml,
)
from escnet_runtime.errors import InputError

LEAST = """
[model]
preset = "tiny"
[data]
train = "folder"
[training]
steps = 10
batch = 2
"""


def read(tmp_path: Path, text: str, *overrides: str) -> TrainConfig:
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    return read_config(path, overrides)


def test_the_least_that_is_needed_has_the_papers_rates(tmp_path: Path) -> None:
    config = read(tmp_path, LEAST)
    assert (config.rates.small, config.rates.large) == (2e-6, 2e-4)
    assert config.categories.per_image is None
    assert config.augmentation == Augmentation()
    assert config.training.accumulate == 1


def test_the_built_in_world_is_not_augmented_unless_asked(tmp_path: Path) -> None:
    shapes = LEAST.replace('"folder"', '"shapes:train"')
    assert read(tmp_path, shapes).augmentation == NO_AUGMENTATION
    asked = read(tmp_path, shapes + "[augmentation]\nflip = 0.25\n")
    assert asked.augmentation == Augmentation(flip=0.25)


@pytest.mark.parametrize("name", ["vit-b-16-coco-stuff", "vit-l-14-336-coco-stuff", "own-folder"])
def test_shipped_configurations_are_read(name: str) -> None:
    config = read_config(find_config(name))
    assert set(shipped_configs()) >= {name}
    if name != "own-folder":
        assert config.model.preset == name.removesuffix("-coco-stuff")
        assert (config.rates.small, config.rates.large) == (2e-6, 2e-4)
        assert config.training.steps == 80_000
        assert config.training.batch * config.training.accumulate == 4
        assert config.categories.per_image is None


def test_a_path_goes_before_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config("own-folder").is_relative_to(Path(__file__).resolve().parents[2])
    Path("own-folder").write_text(LEAST, encoding="utf-8")
    assert find_config("own-folder") == Path("own-folder")
    with pytest.raises(InputError, match="there is no configuration 'none'"):
        find_config("none")


def test_overrides_replace_values(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        LEAST,
        "training.steps=100",
        "training.precision=bf16",
        "data.train=my/other folder",
        "augmentation.scale=[0.5, 2]",
        "rates.small=1e-5",
        "output='runs/x'",
    )
    assert config.training.steps == 100
    assert config.training.precision == "bf16"
    assert config.data.train == "my/other folder"
    assert config.augmentation.scale == (0.5, 2.0)
    assert config.rates.small == 1e-5
    assert config.output == "runs/x"


@pytest.mark.parametrize(
    "text", ["2024", "1.5", "true", "inf", "2024-11-27", "[1, 2]", "{a = 1}", "0x1f", "2024 # 3"]
)
def test_a_value_of_a_key_that_holds_text_is_text(tmp_path: Path, text: str) -> None:
    overrides = (f"data.train= {text} ", f"data.validation={text}", f"output={text}")
    config = read(tmp_path, LEAST, *overrides)
    assert (config.data.train, config.data.validation, config.output) == (text, text, text)
    config = read(tmp_path, LEAST, f"data.train='{text}'", f'output="{text}"')
    assert (config.data.train, config.output) == (text, text)
    for key in ("training.steps", "training.seed"):
        with pytest.raises(InputError, match=rf"{key}: expected int, got str"):
            read(tmp_path, LEAST, f"{key}='{text}'")


def test_an_override_without_a_value_takes_the_key_away(tmp_path: Path) -> None:
    overrides = ("data.limit=3", "model.preset=", "model.checkpoint=a.safetensors", "data.limit= ")
    config = read(tmp_path, LEAST, *overrides)
    assert (config.model.preset, config.model.checkpoint) == (None, "a.safetensors")
    assert config.data.limit is None
    with pytest.raises(InputError, match=r"got both: leave one out .*--set model\.preset="):
        read(tmp_path, LEAST, "model.checkpoint=a.safetensors")
    with pytest.raises(InputError, match="got none of them"):
        read(tmp_path, LEAST, "model.preset=")
    with pytest.raises(InputError, match="missing steps"):
        read(tmp_path, LEAST, "training.steps=")
    with pytest.raises(InputError, match="unknown key 'stepz'"):
        read(tmp_path, LEAST, "training.stepz=")


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell expands none in a file or behind a key, and a folder called "~" is a trap."""
    monkeypatch.setenv("HOME", str(tmp_path))
    text = 'output = "~/runs"\n' + LEAST.replace('"tiny"', '"tiny"\nsam = "~/s.pth"')
    config = read(tmp_path, text, "data.train=~/my/train", "model.clip=openai")
    assert (config.output, config.model.sam) == (f"{tmp_path}/runs", f"{tmp_path}/s.pth")
    assert (config.data.train, config.model.clip) == (f"{tmp_path}/my/train", "openai")


def test_names_that_toml_cannot_keep(tmp_path: Path) -> None:
    config = read(tmp_path, LEAST, "data.train=a\x7fb")
    assert read(tmp_path, to_toml(config)).data.train == "a\x7fb"
    with pytest.raises(InputError, match=r"data\.train is 'b\\udcff', which is"):
        read(tmp_path, LEAST, f"data.train={os.fsdecode(b'b' + bytes([255]))}")


@pytest.mark.parametrize("override", ["steps", "=3", "training.=3", ".steps=3", "data.train.x=1"])
def test_overrides_of_another_form_are_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(InputError, match="override"):
        read(tmp_path, LEAST, override)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("[training]\nstepz = 3", "training: unknown key 'stepz'; expected steps, batch"),
        ("[trainin]\nx = 1", "unknown key 'trainin'; expected model, data, training"),
        ("[training]\nsteps = 1.5", "training.steps: expected int, got float 1.5"),
        ("[training]\nsteps = true", "training.steps: expected int, got bool True"),
        ("[training]\nsteps = 0", "training: steps is 0; expected at least 1"),
        ("[training]\nwarmup = 10", "training: warmup is 10 of 10 steps"),
        ('[training]\nprecision = "fp8"', "training.precision: expected one of no, bf16, fp16"),
        ("[training]\nseed = -1", "training: seed is -1"),
        ("[training]\nclip_norm = nan", "training: clip_norm is nan"),
        ("[rates]\nsmall = -1e-6", "rates: small is -1e-06; expected 0 or more"),
        ("[rates]\nlarge = inf", "rates: large is inf"),
        ("[categories]\nper_image = 1", "categories: per_image is 1"),
        ("[categories]\nhard = 1.5", "categories: hard is 1.5"),
        ("[augmentation]\nscale = [2.0, 1.0]", "augmentation: scale is"),
        ("[augmentation]\nscale = [1.0]", "augmentation.scale: expected a list of 2 entries"),
        ("[augmentation]\nflip = 2", "augmentation: flip is 2.0; expected 0 to 1"),
        ("[augmentation]\nhue = 0.6", "augmentation: hue is 0.6; expected 0 to 0.5"),
        ("[data]\nlimit = 0", "data: limit is 0; expected at least 1"),
        ('[data]\nvalidation_limit = "x"', "data.validation_limit: expected int, got str 'x'"),
        ('[model]\npreset = "large"', "model: preset is 'large'; expected one of tiny"),
        ('[model]\ncheckpoint = "x"', "model: expected either preset or checkpoint"),
        ("model = 3", "model: expected an object, got int 3"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: str, message: str) -> None:
    data = tomllib.loads(LEAST)
    for section, values in tomllib.loads(change).items():
        if isinstance(values, dict):
            data[section] = {**data.get(section, {}), **values}
        else:
            data[section] = values
    overrides = [
        f"{section}.{key}={_toml(value)}"
        for section, values in data.items()
        if isinstance(values, dict)
        for key, value in values.items()
    ]
    plain = [f"{name}={value}" for name, value in data.items() if not isinstance(value, dict)]
    with pytest.raises(InputError) as caught:
        read(tmp_path, "", *overrides, *plain)
    assert f"config.toml: {message}" in str(caught.value)


def _toml(value: object) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


def test_in_a_file_text_is_written_as_text(tmp_path: Path) -> None:
    """Unlike an override, whose quotes a shell takes away."""
    with pytest.raises(InputError, match=r"config\.toml: data\.train: expected str, got int 3"):
        read(tmp_path, LEAST.replace('"folder"', "3"))


@pytest.mark.parametrize("section", ["model", "data", "training"])
def test_sections_that_have_to_be_there(tmp_path: Path, section: str) -> None:
    text = "\n".join(
        f"[{name}]\n" + "\n".join(f"{key} = {value!r}" for key, value in values.items())
        for name, values in tomllib.loads(LEAST).items()
        if name != section
    )
    with pytest.raises(InputError, match=f"missing {section}"):
        read(tmp_path, text)


def test_a_checkpoint_goes_without_foundations(tmp_path: Path) -> None:
    text = LEAST.replace('preset = "tiny"', 'checkpoint = "a.safetensors"\nclip = "openai"')
    with pytest.raises(InputError, match="clip goes with preset"):
        read(tmp_path, text)


@pytest.mark.parametrize("content", [b"[model", b"\xff\xfe", b"a = 1\na = 2"])
def test_what_is_not_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not TOML"):
        read_config(path)


def test_toml_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.toml is nested too deeply"):
        read(tmp_path, "a = " + "[" * 100_000)


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the configuration"):
        read_config(tmp_path / "none.toml")


@pytest.mark.parametrize("name", shipped_configs())
def test_what_is_written_is_read_again(tmp_path: Path, name: str) -> None:
    config = read_config(shipped_configs()[name], ['data.train="folder «a\\"b»\\t"'])
    assert read(tmp_path, to_toml(config)) == config


def test_differences_that_matter_are_named(tmp_path: Path) -> None:
    config = read(tmp_path, LEAST)
    free = dataclasses.replace(
        config,
        output="elsewhere",
        training=dataclasses.replace(config.training, workers=3, save_every=7, log_every=1),
    )
    assert changed_keys(config, free) == []
    other = read(tmp_path, LEAST, "training.batch=8", "data.validation=x", "rates.small=1e-5")
    assert changed_keys(config, other) == [
        'data.validation: not set, now "x"',
        "training.batch: 2, now 8",
        "rates.small: 2e-06, now 1e-05",
    ]
