"""Ids as MONAI's ConfigParser reads them: ``@`` references, ``%`` macros, relative ids, and what they may mean.

The rules are those of monai 1.6.1, ``bundle/config_parser.py`` and ``bundle/reference_resolver.py``: every ``#`` of a
text becomes ``::``, relative ids are replaced by the keys above, and in an expression ``@id`` becomes
``__local_refs['id']`` wherever it stands, also inside quotes. Only the text after that is what Python evaluates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from medunet.trust.inspection.documents import Item

SEPARATOR = "::"
REFS = "__local_refs"
ID_PATTERN = re.compile(r"@(?:\w*)(?:::\w*)*")
_RELATIVE = re.compile(r"(?:@|%)(?:::)+")
_FILE_PART = re.compile(r"(.*\.(json|yaml|yml)(?=(?:::.*)|$))", re.IGNORECASE)
_MAX_STEPS = 200
_MAX_ALL_STEPS = 300_000
_MAX_CANDIDATES = 50
_MAX_ID = 500


def normal(text: str) -> str:
    """The older separator ``#`` is ``::``."""
    return text.replace("#", SEPARATOR)


def absolute(item_id: str, text: str) -> str:
    """Relative ids in `text` (``@##a``, ``%#b``) made absolute for an item with this id."""
    text = normal(text)
    here = item_id.split(SEPARATOR)
    for prefix in sorted(set(_RELATIVE.findall(text)), reverse=True):
        up = prefix[1:].count(SEPARATOR)
        above = SEPARATOR.join(here[:-up]) + SEPARATOR if up < len(here) else ""
        text = text.replace(prefix, prefix[0] + above)
    return text


def has_relative(text: str) -> bool:
    """Whether what the text means depends on where it stands."""
    return bool(_RELATIVE.search(normal(text)))


def substituted(text: str) -> str:
    """An expression as Python gets it: every reference is a look-up."""
    found = sorted(ID_PATTERN.findall(text), key=len, reverse=True)
    for reference in found:
        text = text.replace(reference, f"{REFS}['{reference[1:]}']")
    return text


def reference_of(text: str) -> str | None:
    """The id, when the whole text is a reference."""
    text = normal(text)
    match = ID_PATTERN.fullmatch(text)
    return match.group()[1:] if match else None


def macro_parts(text: str) -> tuple[str, str]:
    """(file, id) of a macro; either may be empty."""
    text = normal(text[1:])
    match = _FILE_PART.findall(text)
    if not match:
        return "", text
    path = match[0][0]
    rest = text.rsplit(path, 1)[1]
    return path, rest.removeprefix(SEPARATOR)


class Ids:
    """What an id may stand for: the items of all configs of a bundle, since any of them may be merged."""

    def __init__(self) -> None:
        self._items: dict[str, list[Item]] = {}
        self._steps = 0
        self.problems: dict[str, str] = {}

    def add(self, root: Item, prefix: str = "") -> None:
        """Know every item below `root`; ``+`` and ``a::b`` at the top are how one config changes another."""
        for key, _, item in root.pairs:
            self._add(item, SEPARATOR.join(part for part in (prefix, normal(key.removeprefix("+"))) if part))

    def _add(self, item: Item, item_id: str) -> None:
        if len(item_id) > _MAX_ID:
            self.problems[item_id[:60]] = f"begins an id of more than {_MAX_ID} characters; it was not judged"
            return
        self._items.setdefault(item_id, []).append(item)
        for key, child in item.children():
            self._add(child, f"{item_id}{SEPARATOR}{key}")

    def at(self, item_id: str) -> list[Item]:
        """All items with this id; where there are too many, that is noted as a problem."""
        found = self._items.get(item_id, [])
        if len(found) > _MAX_CANDIDATES:
            self.problems[item_id] = f"is given in more than {_MAX_CANDIDATES} places; not all were judged"
        return found[:_MAX_CANDIDATES]

    def below(self, item_id: str) -> Iterator[Item]:
        """All items with this id and everything below them."""
        for item in self.at(item_id):
            yield from everything(item)

    def meanings(self, item: Item, item_id: str) -> list[Item] | None:
        """What stands in the end where this item refers or is a macro; None where that cannot be said."""
        found: list[Item] = []
        waiting, seen = [(item, item_id)], set()
        for _ in range(_MAX_STEPS):
            if not waiting:
                return found
            self._steps += 1
            if self._steps > _MAX_ALL_STEPS:
                return None
            current, here = waiting.pop()
            target = self._target(current, here)
            if target is None:
                found.append(current)
                continue
            if target in seen:
                continue
            seen.add(target)
            candidates = self.at(target)
            if not candidates:
                return None
            waiting += [(candidate, target) for candidate in candidates]
        return None

    @staticmethod
    def _target(item: Item, item_id: str) -> str | None:
        if not isinstance(item.value, str):
            return None
        text = absolute(item_id, item.value)
        if text.startswith("%"):
            return macro_parts(text)[1]
        return reference_of(text)


def everything(item: Item) -> Iterable[Item]:
    """An item and all below it."""
    yield item
    for _, child in item.children():
        yield from everything(child)
