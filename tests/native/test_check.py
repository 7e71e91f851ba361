"""What is compiled is compared with NumPy: wrong code is found before it is kept."""

import shutil
from pathlib import Path

import pytest

from escnet_runtime.native import build
from escnet_runtime.native.check import first_difference
from escnet_runtime.native.compiler import NotCompiledError, find_compiler
from escnet_runtime.native.library import NativeLibrary
from escnet_runtime.native.store import LibraryStore
from escnet_runtime.native.target import SOURCES, targets
from tests.native.compiled import SOURCE, compile_c

TEXTS = list(SOURCE.values())

MUTANTS = {
    "a tie goes to the highest pixel": ("(PIXELS - 1 - i);", "i;"),
    "the smallest distance": ("own < other;", "own <= other;"),
    "a region of two pixels": ("now.count > 0 &&", "now.count > 2 &&"),
    "no iteration": ("i < iterations &&", "i < 1 &&"),
    "strictly above the threshold": ("keys[pixel] >= lowest", "keys[pixel] > lowest"),
    "minus infinity": ("threshold > lowest ? threshold : lowest", "threshold"),
    "zeros of both signs": ("bits_of(score + 0.0f)", "bits_of(score)"),
    "an infinite peak": ("scores[i] == peak ? 0.0f : exponent", "exponent"),
    "the best pixel": ("map->key[i] > best[k]", "map->key[i] >= best[k]"),
    "unclean": ("logit > -LARGEST_LOGIT ? logit : -LARGEST_LOGIT", "logit"),
    "ties of categories": ("tied ? mask_of(value == top) & mask_of(category < label[i]) : 0", "0"),
    "no tie with what came before": ("> first;", "> first + 40;"),
    "the weight of a row": (
        "step[i] * weight + lower[i]",
        "step[i] * (weight * weight) + lower[i]",
    ),
    "fused": ("step[i] * weight + lower[i]", "__builtin_fmaf(step[i], weight, lower[i])"),
    "a wrong exp": ("0.49999225f", "0.4f"),
    "a row kept too early": ("below = last ? kept[k] : step", "below = kept[k]"),
    "rounded down": ("0xfff + ", "0 + "),
}


@pytest.mark.parametrize("flags", targets(), ids=" ".join)
@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_compilers_and_targets_agree(flags: tuple[str, ...], name: str, tmp_path: Path) -> None:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}")
    built = compile_c(TEXTS, tmp_path, compiler=found, flags=flags)
    assert first_difference(NativeLibrary(built)) is None


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_is_found(mutant: str, compiler: str, tmp_path: Path) -> None:
    old, new = MUTANTS[mutant]
    assert sum(text.count(old) for text in TEXTS) == 1
    built = compile_c(
        [text.replace(old, new) for text in TEXTS],
        tmp_path,
        compiler=compiler,
        flags=["-O1", "-Wno-unused"],
    )
    assert first_difference(NativeLibrary(built)) is not None


def test_a_library_that_differs_is_not_kept(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tmp_path / "prompts.c"
    wrong.write_text(SOURCE["prompts.c"].replace("own < other;", "own > other;"), encoding="utf-8")
    monkeypatch.setattr(build, "SOURCES", (wrong, SOURCES[1]))
    store = LibraryStore(tmp_path / "cache", "0" * 64)
    with pytest.raises(NotCompiledError, match="does not agree with NumPy: points"):
        build.build_library(store, find_compiler())
    assert store.find() is None
    assert [path.suffix for path in store.folder.iterdir()] == [".failed"]
