"""Matches the names in a user's file with a data set's own names of its classes.

A file may give the classes better names than the data set does; then its order has to be the data
set's. Or it may list the data set's own names in another order (lists of PASCAL-Context-59 are
often alphabetical, the data set's is not). The names tell which it is: they are compared without
case, blanks, hyphens and underscores, and synonyms, separated by ", ", one by one.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from escnet_runtime.dataset import listed
from escnet_runtime.errors import InputError

__all__ = ["match_names", "match_synonyms", "positions", "squeezed", "terms"]

_DROPPED: Final = re.compile(r"[\s_-]+")
_SYNONYMS: Final = re.compile(r",(?:\s+|$)")  # as a vocabulary separates them


def squeezed(name: str) -> str:
    """A name in lower case without blanks, hyphens and underscores, in which lists differ."""
    return _DROPPED.sub("", name).casefold()


def terms(name: str) -> tuple[str, ...]:
    """The squeezed synonyms of a name, its main one first; none of a blank name."""
    found = (squeezed(part) for part in _SYNONYMS.split(name))
    return tuple(dict.fromkeys(part for part in found if part))


def match_names(
    given: Sequence[str], own: Sequence[str], aliases: Mapping[str, str] | None = None
) -> list[int | None]:
    """For each given name the index of the own name that it means; None if that is not clear.

    Whole names are compared first, then main names, then all synonyms. It is not clear if at one of
    these steps a given name fits several own names, or two given names fit the same own name.

    Args:
        given: names of a file.
        own: names of the data set.
        aliases: squeezed name → squeezed own name, for names that differ by more than squeezing.
    """
    other = aliases or {}
    wholes, mains, anyhow = _places(own)
    found: list[int | None] = []
    for name in given:
        parts = [other.get(part, part) if part not in anyhow else part for part in terms(name)]
        places = (
            wholes.get(frozenset(parts), set()),
            mains.get(parts[0], set()) if parts else set(),
            set[int]().union(*(anyhow.get(part, set()) for part in parts)),
        )
        fitting = next((place for place in places if place), set())
        found.append(next(iter(fitting)) if len(fitting) == 1 else None)
    times = Counter(found)
    return [place if times[place] == 1 else None for place in found]


def match_synonyms(given: Sequence[str], found: Iterable[str]) -> dict[str, int]:
    """For names ``found`` in a data set the index of the given name that each of them means.

    A name is first looked up with all of its synonyms. Of those left over on both sides, two belong
    together if they share a synonym ("building", "building, edifice") and no other name does, or no
    other with the same main word.
    """
    exact = {frozenset(terms(name)): index for index, name in enumerate(given)}
    names = {name: frozenset(terms(name)) for name in found}
    result = {name: exact[words] for name, words in names.items() if words in exact}
    taken = set(result.values())
    rest = {name: words for name, words in names.items() if words and name not in result}
    fits: dict[str, set[int]] = {name: set() for name in rest}
    for words, index in exact.items():
        if index not in taken:
            for name, others in rest.items():
                if words and (words <= others or others <= words):
                    fits[name].add(index)
    back: dict[int, set[str]] = {}
    for name, indices in fits.items():
        for index in indices:
            back.setdefault(index, set()).add(name)

    def main(name: str, index: int) -> bool:
        return terms(name)[0] == terms(given[index])[0]

    for name, indices in fits.items():
        nearest = [i for i in indices if main(name, i)] or list(indices)
        if len(nearest) == 1:
            rivals = back[nearest[0]]
            closest = [other for other in rivals if main(other, nearest[0])] or list(rivals)
            if closest == [name]:
                result[name] = nearest[0]
    return result


def positions(
    given: Sequence[str], own: Sequence[str], file: Path | str, own_file: str
) -> tuple[int, ...]:
    """For each given name the index of the data set's class that it stands for.

    If the names follow the data set's order, its own names or others, the result is 0, 1, 2, …. If
    they are the data set's own names in another order, it says where each belongs.

    Args:
        given: names of ``file``.
        own: as many names, of ``own_file``, in the data set's order.
        file: for messages.
        own_file: for messages.

    Raises:
        InputError: some names belong to classes at other places, and others match no class.
    """
    _, mains, anyhow = _places(own)
    here = [
        # Matched by its main word, or by a word that no other class has.
        place in mains.get((*terms(name), "")[0], ())
        or any(anyhow.get(part) == {place} for part in terms(name))
        for place, name in enumerate(given)
    ]
    if all(here):
        return tuple(range(len(given)))
    matched = match_names(given, own)
    clear = tuple(place for place in matched if place is not None)
    if len(clear) == len(own):
        return clear
    elsewhere = _elsewhere(given, own, here, mains)
    if elsewhere:
        lost = [repr(name) for name, place in zip(given, matched, strict=True) if place is None]
        raise InputError(
            f"{file} is not in the order of {own_file}: {listed(elsewhere)}; and it cannot be put "
            f"in order by its names, as these are not clearly one of {own_file}: {listed(lost)}. "
            f"Write the names in the order of {own_file}, or use its names; if a better word for a "
            "class is the name of another class, add its own name after it: 'monitor, crt screen'"
        )
    return tuple(range(len(given)))


def _elsewhere(
    given: Sequence[str],
    own: Sequence[str],
    here: Sequence[bool],
    mains: Mapping[str, Collection[int]],
) -> list[str]:
    """Names whose main word belongs to another class than the one at their place."""
    found = []
    for place, name in enumerate(given):
        main = (*terms(name), "")[0]
        if not here[place] and main in mains:
            other = min(mains[main])
            found.append(f"{name!r} is entry {place + 1}, class {other + 1} there ({own[other]!r})")
    return found


def _places(
    own: Sequence[str],
) -> tuple[dict[frozenset[str], set[int]], dict[str, set[int]], dict[str, set[int]]]:
    """Indices of own names: by all of their words, by their main word, and by any word."""
    wholes: dict[frozenset[str], set[int]] = {}
    mains: dict[str, set[int]] = {}
    anyhow: dict[str, set[int]] = {}
    for index, name in enumerate(own):
        parts = terms(name)
        wholes.setdefault(frozenset(parts), set()).add(index)
        for part in parts[:1]:
            mains.setdefault(part, set()).add(index)
        for part in parts:
            anyhow.setdefault(part, set()).add(index)
    return wholes, mains, anyhow
