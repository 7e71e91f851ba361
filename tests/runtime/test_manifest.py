"""bundle.json is read strictly: what is wrong is refused and named."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from escnet_runtime.errors import BundleFormatError
from escnet_runtime.manifest import (
    Constants,
    FileRef,
    Golden,
    Manifest,
    ModelInfo,
    Parity,
    Postprocessing,
    PpgConstants,
    Precision,
    Preprocessing,
    Stage,
    TensorSpec,
    TokenizerRef,
    check_relative_path,
)

SHA = "0" * 64


def sample_manifest() -> Manifest:
    """A manifest as the exporter writes it for `tiny`, with two graphs."""
    image = TensorSpec(name="image", dtype="float32", shape=("b", 3, 128, 128))
    features = TensorSpec(name="features", dtype="float16", shape=("b", 128, 16, 16))

    def stage(name: str) -> Stage:
        return Stage(
            file=f"graphs/{name}.onnx",
            sha256=SHA,
            bytes=123,
            precision=Precision.FP16,
            inputs=(image,),
            outputs=(features,),
        )

    return Manifest(
        model=ModelInfo(
            name="tiny",
            trained=False,
            weights="seeded random (seed 0)",
            image_size=128,
            grid=(16, 16),
            logits=(64, 64),
            embed_dim=128,
            hidden_dim=64,
            sam_dim=64,
            blocks=4,
        ),
        precision=Precision.FP16,
        constants=Constants(
            ppg=PpgConstants(temperature=0.02, alpha=0.5, regions=5, iterations=10),
            preprocessing=Preprocessing(
                size=128, resize="pillow-bilinear", mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28)
            ),
            postprocessing=Postprocessing(
                resize="bilinear", align_corners=False, confidence="softmax"
            ),
            templates=("A photo of a {} in the scene",),
            chunk=32,
            group=16,
        ),
        stages={name: stage(name) for name in ("image_encoder", "decoder")},
        tokenizer=TokenizerRef(file="tokenizer.json", sha256=SHA, bytes=1, context_length=77),
        golden=Golden(
            categories=("cat", "sofa, couch", "Straße 猫"),
            files=(FileRef(file="golden/image.png", sha256=SHA, bytes=1),),
        ),
        parity=Parity(
            passed=True,
            gate="pixels",
            allowed_failure=False,
            pixel_agreement=0.999,
            prompt_flips=0,
            files=(FileRef(file="parity.json", sha256=SHA, bytes=1),),
        ),
        producer={"escnet": "0.1.0", "python": "3.11"},
    )


def _signed(document: dict[str, Any]) -> str:
    """Give a document the digest that fits it, so that only the intended fault is left."""
    rest = {key: value for key, value in document.items() if key != "digest"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return json.dumps({**rest, "digest": hashlib.sha256(canonical.encode()).hexdigest()})


def _changed(change: Callable[[dict[str, Any]], object]) -> str:
    document = json.loads(sample_manifest().to_json())
    change(document)
    return _signed(document)


def test_what_is_written_is_read_back() -> None:
    manifest = sample_manifest()
    text = manifest.to_json()
    assert Manifest.from_json(text) == manifest
    assert Manifest.from_json(text).to_json() == text
    assert list(json.loads(text))[:2] == ["schema_version", "digest"]
    assert list(json.loads(text)["stages"]) == ["image_encoder", "decoder"]
    assert text.startswith('{\n  "schema_version": "3.0"')


def test_all_constants_of_prompts_that_a_model_may_have_are_written() -> None:
    manifest = sample_manifest()
    for ppg in (PpgConstants(iterations=0), PpgConstants(iterations=1000, regions=16)):
        constants = dataclasses.replace(manifest.constants, ppg=ppg)
        text = dataclasses.replace(manifest, constants=constants).to_json()
        assert Manifest.from_json(text).constants.ppg == ppg


def test_the_digest_is_that_of_the_canonical_rest() -> None:
    text = sample_manifest().to_json()
    assert json.loads(_signed(json.loads(text)))["digest"] == json.loads(text)["digest"]


def test_files_lists_everything_referred_to() -> None:
    assert [reference.file for reference in sample_manifest().files()] == [
        "graphs/image_encoder.onnx",
        "graphs/decoder.onnx",
        "tokenizer.json",
        "golden/image.png",
        "parity.json",
    ]


def test_whole_numbers_stand_for_floats() -> None:
    manifest = Manifest.from_json(_changed(lambda d: d["parity"].update(pixel_agreement=1)))
    assert isinstance(manifest.parity.pixel_agreement, float)


FAULTS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda d: d.update(extra=1), r"\$: unknown key 'extra'; expected schema_version"),
    (lambda d: d["model"].update(extra=1), r"\$\.model: unknown key 'extra'"),
    (lambda d: d.pop("golden"), r"\$: missing golden"),
    (lambda d: d["model"].pop("blocks"), r"\$\.model: missing blocks"),
    (lambda d: d["model"].update(name=3), r"\$\.model\.name: expected str, got int 3"),
    (lambda d: d["model"].update(trained=1), r"\$\.model\.trained: expected bool, got int"),
    (lambda d: d["model"].update(blocks=True), r"\$\.model\.blocks: expected int, got bool"),
    (lambda d: d["model"].update(blocks=4.0), r"\$\.model\.blocks: expected int, got float"),
    (lambda d: d["model"].update(grid=[16]), r"\$\.model\.grid: expected a list of 2 .* got 1"),
    (lambda d: d["model"].update(grid="16"), r"\$\.model\.grid: expected a list, got str"),
    (lambda d: d["model"].update(blocks=0), r"blocks: expected 1 to"),
    (lambda d: d["model"].update(grid=[16, -1]), r"grid: expected 1 to"),
    (lambda d: d.update(precision="fp64"), r"\$\.precision: expected one of fp32, fp16, bf16"),
    (lambda d: d.update(precision=["fp16"]), r"\$\.precision: expected one of"),
    (lambda d: d.update(stages=[]), r"\$\.stages: expected an object, got list"),
    (lambda d: d["producer"].update(torch=2), r"\$\.producer\.torch: expected str"),
    (lambda d: d["parity"].update(gate="none"), r"\$\.parity\.gate: expected one of pixels"),
    (lambda d: d["parity"].update(pixel_agreement="1"), r"pixel_agreement: expected float"),
    (lambda d: d["constants"]["ppg"].update(alpha=10**400), r"alpha: expected float, got int"),
    (lambda d: d["tokenizer"].update(sha256="ab"), r"expected a sha256 of 64"),
    (lambda d: d["tokenizer"].update(bytes=-1), r"size of 'tokenizer.json': expected 0"),
    (lambda d: d["tokenizer"].update(bytes=2**40 + 1), r"size of 'tokenizer.json': expected 0"),
    (lambda d: d["stages"].update({"a/b": d["stages"]["decoder"]}), r"'a/b' is not an identifier"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_faults_are_named(change: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(BundleFormatError, match=message):
        Manifest.from_json(_changed(change))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([2**20 + 1], "expected 1 to"),
        ([0], "expected 1 to"),
        ([-1, 3], "expected 1 to"),
        ([2**14, 2**15], "more than 268,435,456 elements"),
        (["n", 2**11, 2**11, 2**11], "elements"),
        (["not an axis"], "not an identifier"),
        ([1.5], r"shape\[0\]: expected int or str, got float"),
    ],
)
def test_implausible_shapes_are_refused(shape: list[Any], message: str) -> None:
    def change(document: dict[str, Any]) -> None:
        document["stages"]["decoder"]["inputs"][0]["shape"] = shape

    with pytest.raises(BundleFormatError, match=message):
        Manifest.from_json(_changed(change))


def test_the_largest_plausible_shape_is_read() -> None:
    def change(document: dict[str, Any]) -> None:
        document["stages"]["decoder"]["inputs"][0]["shape"] = ["n", 2**20, 2**8]

    assert Manifest.from_json(_changed(change)).stages["decoder"].inputs[0].shape[1] == 2**20


UNSAFE = [
    "../outside",
    "graphs/../../outside",
    "/etc/passwd",
    "graphs\\decoder.onnx",
    "C:/decoder.onnx",
    "C:decoder.onnx",
    "graphs//decoder.onnx",
    "graphs/",
    "./graphs",
    "",
    "a\nb",
    "a\0b",
    "a\u202eb",
    "NUL",
    "graphs/con.onnx",
    "graphs/Com1",
]


@pytest.mark.parametrize("path", UNSAFE)
def test_unsafe_paths_are_refused_wherever_they_stand(path: str) -> None:
    def in_golden(document: dict[str, Any]) -> None:
        document["golden"]["files"][0]["file"] = path

    def in_stage(document: dict[str, Any]) -> None:
        document["stages"]["decoder"]["file"] = path

    for change in (in_golden, in_stage):
        with pytest.raises(BundleFormatError, match="Unsafe path"):
            Manifest.from_json(_changed(change))


@pytest.mark.parametrize(
    "path", ["a", "graphs/esc0_sam.onnx", "golden/ä b.png", "..a/b..", "icon/null"]
)
def test_plain_paths_are_fine(path: str) -> None:
    check_relative_path(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "expected an object, got list"),
        ("null", "expected an object"),
        ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
        ('{"a": {"b": 1, "b": 1}}', "the key 'b' is there twice"),
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": -Infinity}', "-Infinity is not a number"),
        ('{"a": 1e999}', "1e999 is too large"),
        ('{"a": "\\ud800"}', "not valid JSON"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        ("[" * 200_000, "nested too deeply"),
    ],
)
def test_what_is_not_plain_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(BundleFormatError, match=message):
        Manifest.from_json(text)


def test_a_newer_major_version_is_refused_before_its_keys() -> None:
    text = json.dumps({"schema_version": "4.0", "unheard_of": 1})
    with pytest.raises(BundleFormatError, match=r"format 4\.0.*reads 3\.x\. Update escnet-runtime"):
        Manifest.from_json(text)


def test_an_older_major_version_is_refused() -> None:
    with pytest.raises(BundleFormatError, match="Export the bundle again"):
        Manifest.from_json('{"schema_version": "2.0"}')


def test_a_newer_minor_version_is_read() -> None:
    text = _changed(lambda d: d.update(schema_version="3.7"))
    assert Manifest.from_json(text).schema_version == "3.7"


def test_an_unknown_key_of_a_newer_minor_version_says_to_update() -> None:
    text = _changed(lambda d: d.update(schema_version="3.7", extra=1))
    with pytest.raises(BundleFormatError, match=r"'extra'.*newer format 3\.7.*update"):
        Manifest.from_json(text)


@pytest.mark.parametrize("version", [None, 1, 1.0, "1", "1.0.0", "v1.0", "1.-1", "", "١.٠"])
def test_malformed_versions_are_refused(version: object) -> None:
    with pytest.raises(BundleFormatError, match=r'schema_version: expected "major.minor"'):
        Manifest.from_json(_changed(lambda d: d.update(schema_version=version)))


@pytest.mark.parametrize("digest", [SHA, None, 5])
def test_a_digest_that_does_not_fit_is_refused(digest: object) -> None:
    document = json.loads(sample_manifest().to_json())
    document["digest"] = digest
    with pytest.raises(BundleFormatError, match=r"digest of bundle\.json"):
        Manifest.from_json(json.dumps(document))
    del document["digest"]
    with pytest.raises(BundleFormatError, match="missing digest"):
        Manifest.from_json(json.dumps(document))


def test_an_edit_without_a_new_digest_is_noticed() -> None:
    text = sample_manifest().to_json().replace('"blocks": 4', '"blocks": 5')
    with pytest.raises(BundleFormatError, match="changed after it was written"):
        Manifest.from_json(text)


def test_nothing_unreadable_is_written() -> None:
    manifest = dataclasses.replace(
        sample_manifest(),
        tokenizer=TokenizerRef(file="../t.json", sha256=SHA, bytes=1, context_length=77),
    )
    with pytest.raises(BundleFormatError, match="Unsafe path"):
        manifest.to_json()


@settings(deadline=None)
@given(st.text())
def test_no_text_raises_anything_else(text: str) -> None:
    with pytest.raises(BundleFormatError):
        Manifest.from_json(text)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(value=_JSON, data=st.data())
def test_any_value_anywhere_is_read_or_refused(value: object, data: st.DataObject) -> None:
    document = json.loads(sample_manifest().to_json())
    place = document
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(list(keys)))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = value
    try:
        text = _signed(document)
    except UnicodeEncodeError:  # half a surrogate pair has no digest
        text = json.dumps(document)
    try:
        manifest = Manifest.from_json(text)
    except BundleFormatError:
        return
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_resize_that_the_runtime_does_not_do_is_refused() -> None:
    with pytest.raises(BundleFormatError, match="align_corners is true, expected false"):
        Postprocessing(resize="bilinear", align_corners=True, confidence="softmax")
