"""Categories: reading them, planning which texts to encode, and their embeddings."""

import json
import logging
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import VocabularyError
from .tokenizer import clean_text

__all__ = [
    "MAX_CATEGORIES",
    "TextPlan",
    "Vocabulary",
    "assemble",
    "checked_templates",
    "find_duplicates",
    "parse_classes",
    "plan_texts",
    "read_classes_file",
]

MAX_CATEGORIES = 65_535
"""Label maps are uint16 at most, and 65535 means "not labelled"."""

_MAX_FILE_BYTES = 16 * 2**20
_SYNONYMS = re.compile(r",(?:\s+|$)")  # not "1,000 yen note"
_BARE_COMMA = re.compile(r"[^\W\d_],[^\W\d_]")  # between letters, where it is hardly meant
_GATHER_ROWS = 4096  # of embeddings held in float64 while averaging: 16 MiB at D = 512
_Scalar = TypeVar("_Scalar", bound=np.generic)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TextPlan:
    """Which prompts to encode for a list of categories, and how they are averaged.

    Attributes:
        names: the N categories as given, stripped.
        templates: texts with one "{}".
        label_of: uint16 [U], for each distinct category the index in ``names`` of its first
            occurrence.
        prompts: the P distinct texts to encode, cleaned.
        members: int64 [K], indices into ``prompts``, category after category.
        starts: int64 [U], where the members of each category begin.
    """

    names: tuple[str, ...]
    templates: tuple[str, ...]
    label_of: NDArray[np.uint16]
    prompts: tuple[str, ...]
    members: NDArray[np.int64]
    starts: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Vocabulary:
    """Categories with their text embeddings, encoded once and reusable. The arrays are read-only.

    Attributes:
        names: the N categories as given, stripped; label maps are indices into them.
        embeddings: float32 [U, D], unit norm, of the distinct categories; U <= N.
        label_of: uint16 [U], the index in ``names`` of each row's first occurrence. A category that
            is a duplicate of an earlier one has no row and never appears in a label map.
        templates: the templates the embeddings are averaged over.
        model: what the embeddings were made with; a Segmenter of another model refuses them.
    """

    names: tuple[str, ...]
    embeddings: NDArray[np.float32]
    label_of: NDArray[np.uint16]
    templates: tuple[str, ...]
    model: str

    def labels(
        self, rows: NDArray[np.integer], kept: NDArray[np.intp] | None = None
    ) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """What a label map of rows of the embeddings is as one of names.

        Args:
            rows: of any shape; of those in ``kept`` where a shortlist chose some.
            kept: rows of ``embeddings``.

        Returns:
            Indices into ``names``, uint8 for up to 256 names, else uint16.
        """
        label_of = self.label_of if kept is None else self.label_of[kept]
        wide: NDArray[np.uint16] = label_of[rows]
        return wide.astype(np.uint8) if len(self.names) <= 256 else wide


def parse_classes(text: str) -> list[str]:
    """Split the categories of a command line.

    Commas separate categories: "cat, sofa". If the text holds a semicolon or a line break, those
    do, and commas separate synonyms: "cat; sofa, couch". Blank entries are dropped.

    Returns:
        Category names, synonyms separated by ", ".

    Raises:
        VocabularyError: no category is in it.
    """
    if re.search(r"[;\n]", text):
        entries = [
            ", ".join(part.strip() for part in entry.split(",") if part.strip())
            for entry in re.split(r"[;\n]", text)
        ]
    else:
        entries = [entry.strip() for entry in text.split(",")]
    names = [entry for entry in entries if entry]
    if not names:
        raise VocabularyError(f'No category in {text!r}; expected for example "cat, sofa".')
    return names


def read_classes_file(path: Path) -> list[str]:
    """Read categories from a file: a JSON list, or text with one category a line.

    Synonyms are separated by ", ". In text, blank lines and lines that begin with "#" are skipped.
    Text that begins with "[" is taken for JSON.

    Raises:
        VocabularyError: with file and line, if it cannot be read as such a list.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise VocabularyError(f"Cannot read the categories {path}: {error.strerror}.") from error
    if len(data) > _MAX_FILE_BYTES:
        raise VocabularyError(f"{path} is larger than 16 MiB: is it a list of categories?")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise VocabularyError(f"{path}, line {line}: not UTF-8 text; save it as UTF-8.") from error
    is_json = path.suffix.lower() == ".json" or text.lstrip().startswith("[")
    names = _json_names(path, text) if is_json else _text_names(path, text)
    if not names:
        raise VocabularyError(f"{path}, line 1: no category in the file; expected at least one.")
    return names


def find_duplicates(names: Iterable[str]) -> dict[int, int]:
    """The categories that repeat an earlier one: index → index of the first that is equal.

    Two are equal if they have the same synonyms, in any order, after cleaning (which lower-cases).

    Raises:
        VocabularyError: as `plan_texts`.
    """
    first_of: dict[frozenset[str], int] = {}
    found: dict[int, int] = {}
    for index, name in enumerate(_checked_names(names)):
        first = first_of.setdefault(frozenset(_synonyms(name, index)), index)
        if first != index:
            found[index] = first
    return found


def plan_texts(names: Iterable[str], templates: Iterable[str]) -> TextPlan:
    """Plan which prompts to encode: every template with every synonym of every category.

    Duplicates (`find_duplicates`) are encoded once, and a warning names them. Another one names
    categories with a comma between two letters, which separates nothing ("sofa,couch").

    Args:
        names: 1 to 65,535 categories; synonyms separated by ", ".
        templates: texts with exactly one "{}", where the synonym goes.

    Raises:
        VocabularyError: if there are too few or too many, or one cannot be used.
    """
    given = _checked_names(names)
    templates = checked_templates(templates)
    prompts: dict[str, int] = {}
    members: list[int] = []
    starts: list[int] = []
    first_of = find_duplicates(given)
    rows = [index for index in range(len(given)) if index not in first_of]
    for index in rows:
        synonyms = _synonyms(given[index], index)
        starts.append(len(members))
        for template in templates:
            for synonym in synonyms.values():
                prompt = clean_text(template.replace("{}", synonym))
                members.append(prompts.setdefault(prompt, len(prompts)))
    if first_of:
        duplicates = [f"{given[index]!r} ({index}, as {first_of[index]})" for index in first_of]
        _log.warning("Duplicate categories, which no label map will show: %s", _listed(duplicates))
    bare = [repr(name) for name in given if _BARE_COMMA.search(name)]
    if bare:
        _log.warning(
            "Categories with a comma that belongs to the name: %s; put a space behind it to "
            "separate synonyms",
            _listed(bare),
        )
    return TextPlan(
        names=given,
        templates=templates,
        label_of=_read_only(np.array(rows, dtype=np.uint16)),
        prompts=tuple(prompts),
        members=_read_only(np.array(members, dtype=np.int64)),
        starts=_read_only(np.array(starts, dtype=np.int64)),
    )


def checked_templates(templates: Iterable[str]) -> tuple[str, ...]:
    """The templates, if each can be used.

    Raises:
        VocabularyError: there is none, or one has not exactly one "{}" or is no text.
    """
    if isinstance(templates, str):
        raise VocabularyError(f"Expected a list of templates; got a text: pass [{templates!r}].")
    given = _taken(templates, "templates")
    if not given:
        raise VocabularyError('Expected at least one template, such as "A photo of a {}".')
    for template in given:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise VocabularyError(
                f'A template holds exactly one "{{}}", where the name goes; got {template!r:.80}.'
            )
        _require_text(template, "A template")
    return given


def assemble(
    plan: TextPlan, prompt_embeddings: NDArray[np.float32], *, model: str = ""
) -> Vocabulary:
    """Average the prompts' embeddings for each category and bring the mean to unit norm.

    Args:
        plan: from `plan_texts`.
        prompt_embeddings: float32 [P, D], unit norm, in the order of ``plan.prompts``.
        model: what they were made with.

    Raises:
        VocabularyError: the embeddings do not fit the plan, or are not finite unit vectors.
    """
    expected = len(plan.prompts)
    if prompt_embeddings.ndim != 2 or len(prompt_embeddings) != expected:
        raise VocabularyError(
            f"Expected prompt embeddings [{expected}, D]; got {list(prompt_embeddings.shape)}."
        )
    means, norms = _unit_sums(plan, prompt_embeddings)
    # Below this, a sum of unit vectors is nothing but rounding.
    usable = np.isfinite(norms) & (norms > 1e-6)
    if not usable.all():
        name = plan.names[plan.label_of[np.argmin(usable)]]
        raise VocabularyError(f"The embedding of {name!r} is zero or not finite: encode it again.")
    return Vocabulary(
        names=plan.names,
        embeddings=_read_only(means),
        label_of=plan.label_of,
        templates=plan.templates,
        model=model,
    )


def _unit_sums(
    plan: TextPlan, prompt_embeddings: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The sums of the prompts of each category, [U, D], brought to unit norm, and their norms.

    In float64, and rounded once: NumPy adds up in an order of its own, which then shows in no
    bit. Some categories at a time, to bound the memory.
    """
    units = np.empty((len(plan.starts), prompt_embeddings.shape[1]), np.float32)
    norms = np.empty(len(units))
    ends = np.append(plan.starts[1:], len(plan.members))
    begin = 0
    while begin < len(units):
        first = plan.starts[begin]
        end = max(begin + 1, int(np.searchsorted(ends, first + _GATHER_ROWS, side="right")))
        rows = prompt_embeddings[plan.members[first : ends[end - 1]]].astype(np.float64)
        sums = np.add.reduceat(rows, plan.starts[begin:end] - first, axis=0)
        norms[begin:end] = np.linalg.norm(sums, axis=1)
        with np.errstate(invalid="ignore"):  # the caller refuses them
            units[begin:end] = sums / norms[begin:end, None]
        begin = end
    return units, norms


def _json_names(path: Path, text: str) -> list[str]:
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise VocabularyError(
            f"{path}, line {error.lineno}: not JSON: {error.msg}; expected a list such as "
            '["cat", "sofa, couch"].'
        ) from error
    except (RecursionError, ValueError) as error:
        raise VocabularyError(f"{path}, line 1: not a JSON list of categories: {error}.") from error
    if not isinstance(entries, list):
        raise VocabularyError(
            f'{path}, line 1: expected a JSON list such as ["cat", "sofa, couch"]; got '
            f"{type(entries).__name__}."
        )
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, str) or not entry.strip():
            raise VocabularyError(
                f"{path}, entry {number}: expected the name of a category; got {entry!r:.60}. "
                'Synonyms are written in one text: "sofa, couch".'
            )
    return [entry.strip() for entry in entries]


def _text_names(path: Path, text: str) -> list[str]:
    names = []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        name = line.strip()
        if any(unicodedata.category(character) == "Cc" and character != "\t" for character in name):
            raise VocabularyError(
                f"{path}, line {number}: control characters in {name!r:.60}; expected text with "
                "one category a line."
            )
        if name and not name.startswith("#"):
            names.append(name)
    return names


def _checked_names(names: Iterable[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise VocabularyError(f"Expected a list of categories; got a text: pass [{names!r:.60}].")
    given = _taken(names, "categories")
    if not 1 <= len(given) <= MAX_CATEGORIES:
        raise VocabularyError(f"Expected 1 to {MAX_CATEGORIES:,} categories; got {len(given):,}.")
    for index, name in enumerate(given):
        if not isinstance(name, str) or not name.strip():
            raise VocabularyError(f"Category {index}: expected a name; got {name!r:.60}.")
        _require_text(name, f"Category {index}")
    return tuple(name.strip() for name in given)


def _require_text(text: str, what: str) -> None:
    """Refuse halves of surrogate pairs: Python makes them of bytes of a command line that are not
    in its encoding. They would be encoded as something else, and no strict reader of JSON takes
    them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise VocabularyError(
            f"{what}: {text!r:.60} has bytes that were read in another encoding than theirs; "
            "expected text in UTF-8. Set a locale of UTF-8 (LANG=C.UTF-8), or use a file of "
            "categories."
        ) from None


def _taken(texts: Iterable[str], what: str) -> tuple[str, ...]:
    try:
        entries = iter(texts)
    except TypeError:
        raise VocabularyError(f"Expected a list of {what}; got {type(texts).__name__}.") from None
    return tuple(entries)


def _synonyms(name: str, index: int) -> dict[str, str]:
    """Cleaned synonym -> synonym; a repeated synonym counts once."""
    synonyms: dict[str, str] = {}
    for part in _SYNONYMS.split(name):
        cleaned = clean_text(part)
        if cleaned:
            synonyms.setdefault(cleaned, part)
    if synonyms:
        return synonyms
    # "," splits into nothing and is a name all the same; a lone control character is not.
    cleaned = clean_text(name)
    if not cleaned:
        raise VocabularyError(f"Category {index}: nothing is left of {name!r} after cleaning.")
    return {cleaned: name}


def _listed(entries: list[str], most: int = 10) -> str:
    more = f" and {len(entries) - most} more" if len(entries) > most else ""
    return ", ".join(entries[:most]) + more


def _read_only(array: NDArray[_Scalar]) -> NDArray[_Scalar]:
    array.flags.writeable = False
    return array
