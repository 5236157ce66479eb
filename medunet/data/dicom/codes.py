"""What a segment is, in standard codes: category, type and laterality (PS3.3 C.8.20.2, PS3.16 CID 7150, 7151, 244).

The table ``codes.csv`` holds common anatomy and lesions with SNOMED CT codes, worded as in DICOM's context groups.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from medunet.errors import PlanError

_KEYS = {"type", "category", "laterality"}
_SIDES = dict.fromkeys(("left", "l", "lt", "lh", "links"), "left") | dict.fromkeys(
    ("right", "r", "rt", "rh", "rechts"), "right"
)


@dataclass(frozen=True)
class Code:
    """A coded concept: value (at most 16 characters), scheme such as ``SCT`` (16), meaning (64); PS3.3 table 8.8-1."""

    value: str
    scheme: str
    meaning: str

    def as_json(self) -> list[str]:
        """``[value, scheme, meaning]``."""
        return [self.value, self.scheme, self.meaning]

    @classmethod
    def from_json(cls, content: Any, where: str = "code") -> Code:
        """The code in a list of three strings.

        Raises:
            PlanError: it is not such a list, or a string is empty, too long for DICOM or not printable.
        """
        if not isinstance(content, (list, tuple)) or len(content) != 3 or not all(isinstance(c, str) for c in content):
            raise PlanError(f"{where} is {content!r}; write it as three strings, [value, scheme, meaning]")
        for name, text, limit in zip(("value", "scheme", "meaning"), content, (16, 16, 64), strict=True):
            if not text.strip() or len(text) > limit or "\\" in text or not text.isprintable():
                rule = f"1 to {limit} printable characters without backslash"
                raise PlanError(f"{where} has the {name} {text!r}; DICOM allows {rule}")
        return cls(*(text.strip() for text in content))


@dataclass(frozen=True)
class SegmentCode:
    """Category, type, and the type's modifier: a side (CID 244), or for hippocampi anterior or posterior (CID 2)."""

    category: Code
    type: Code
    laterality: Code | None = None

    def as_json(self) -> dict[str, list[str] | None]:
        """Plain values for a plan."""
        side = self.laterality.as_json() if self.laterality else None
        return {"category": self.category.as_json(), "type": self.type.as_json(), "laterality": side}

    @classmethod
    def from_json(cls, content: Any) -> SegmentCode:
        """The inverse of `as_json`.

        Raises:
            PlanError: a part is missing or is not a code.
        """
        return parse_code(content, "plan")


LEFT = Code("7771000", "SCT", "Left")
RIGHT = Code("24028007", "SCT", "Right")
_MODIFIERS = {
    "left": LEFT,
    "right": RIGHT,
    "anterior": Code("255549009", "SCT", "Anterior"),
    "posterior": Code("255551008", "SCT", "Posterior"),
}
_TISSUE = Code("85756007", "SCT", "Tissue")
CATEGORIES = {
    "structure": Code("91723000", "SCT", "Anatomical Structure"),
    "abnormality": Code("49755003", "SCT", "Morphologically Abnormal Structure"),
    "tissue": _TISSUE,
    "substance": Code("91720002", "SCT", "Body Substance"),
}
"""The categories of PS3.16 CID 7150 that the table uses, by the table's word for them."""


@dataclass(frozen=True)
class _Row:
    code: SegmentCode
    paired: bool
    abnormal: bool


def find_code(name: str) -> SegmentCode | None:
    """The standard code of a class name such as ``Kidney_left``, ``left kidney`` or ``kidney-L``; None when unknown.

    Case, ``_``, ``-`` and spaces do not matter. A side becomes the laterality of structures that have sides; a side on
    another structure (``left liver``) is no match. ``liver tumour`` (a structure, then an abnormality) gets the
    abnormality's code, since that is what the segment is.
    """
    words = _words(name)
    row = _table().get(" ".join(words))
    if row is not None:
        return row.code
    rest, side = _take_side(words)
    row = _table().get(" ".join(rest)) or _abnormality_of_structure(rest) or _numbered_abnormality(rest)
    if row is None or (side is not None and not row.paired):
        return None
    return SegmentCode(row.code.category, row.code.type, side or row.code.laterality)


def first_sided(names: Iterable[str]) -> str | None:
    """The first of some class names that tells left from right: by a word, or by an l where another name has an r.

    >>> [first_sided(names) for names in (["fat", "Lung_L"], ["rkid", "lkid"], ["liver", "L1 vertebra"])]
    ['Lung_L', 'rkid', None]
    """
    parts = {name: tuple(re.findall("[^\\W_]+", _spaced(name).lower())) for name in names}
    known = set(parts.values())
    for name, words in parts.items():
        named = any(word in _SIDES or "left" in word or "right" in word for word in words)
        if named or not known.isdisjoint(_opposites(words)):
            return name
    return None


def _opposites(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The words with a leading or trailing l of one of them for an r, or the other way round."""
    other = {"l": "r", "r": "l"}
    for place, word in enumerate(words):
        for swapped in (other.get(word[0], "") + word[1:], word[:-1] + other.get(word[-1], "")):
            if len(swapped) == len(word):
                yield (*words[:place], swapped, *words[place + 1 :])


def generic_code(name: str) -> SegmentCode:
    """The code for a class whose meaning is not known, whatever its `name`: category and type *Tissue*.

    SCT 85756007 is the widest concept that stands both in CID 7150 (categories) and in CID 7151 (types, through
    CID 7166), and what 3D Slicer and dcmqi write for an unnamed segment: it claims some part of a body and no more.
    What the class is called stays in the Segment Label.
    """
    return SegmentCode(_TISSUE, _TISSUE)


def parse_code(value: Any, label: str) -> SegmentCode:
    """The code that a config states for the class `label`.

    `value` is ``{"type": [value, scheme, meaning], "category": [...], "laterality": "left" | "right" | [...]}``.
    Without a category it is *Anatomical Structure*.

    Raises:
        PlanError: anything else.
    """
    where = f"code of class {label!r}"
    if not isinstance(value, Mapping):
        raise PlanError(f"{where} is {value!r}; write a mapping with type and, if wanted, category and laterality")
    unknown = sorted(str(key) for key in value if key not in _KEYS)
    if unknown:
        raise PlanError(f"{where} has the key {unknown[0]!r}; use type, category and laterality only")
    if value.get("type") is None:
        raise PlanError(f"{where} has no type; add type: [value, scheme, meaning]")
    category = value.get("category")
    return SegmentCode(
        CATEGORIES["structure"] if category is None else Code.from_json(category, f"{where}: category"),
        Code.from_json(value["type"], f"{where}: type"),
        _parse_side(value.get("laterality"), where),
    )


def _parse_side(value: Any, where: str) -> Code | None:
    if value is None:
        return None
    if isinstance(value, str):
        if value.lower() not in ("left", "right"):
            raise PlanError(f"{where} has the laterality {value!r}; write left, right or [value, scheme, meaning]")
        return _MODIFIERS[value.lower()]
    return Code.from_json(value, f"{where}: laterality")


def _spaced(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)


def _words(name: str) -> list[str]:
    return re.sub(r"[\s_\-]+", " ", _spaced(name)).strip().lower().split()


def _take_side(words: list[str]) -> tuple[list[str], Code | None]:
    """Words without the one that names a side: spelled out anywhere, or abbreviated first or last."""
    ends = (0, len(words) - 1)
    places = [i for i, w in enumerate(words) if w in ("left", "right") or (w in _SIDES and i in ends)]
    if len(places) != 1:
        return words, None
    place = places[0]
    return words[:place] + words[place + 1 :], _MODIFIERS[_SIDES[words[place]]]


def _abnormality_of_structure(words: list[str]) -> _Row | None:
    table = _table()
    for cut in range(1, len(words)):
        where, what = table.get(" ".join(words[:cut])), table.get(" ".join(words[cut:]))
        if where is not None and what is not None and what.abnormal and not where.abnormal:
            return what
    return None


def _numbered_abnormality(words: list[str]) -> _Row | None:
    """``GTV 1`` is a GTV; numbers of structures (vertebrae, ribs) mean something and stay."""
    row = _table().get(" ".join(words[:-1])) if words and words[-1].isdigit() else None
    return row if row is not None and row.abnormal else None


@lru_cache(maxsize=1)
def _table() -> dict[str, _Row]:
    found: dict[str, _Row] = {}
    text = resources.files("medunet.data.dicom").joinpath("codes.csv").read_text(encoding="utf-8")
    for line in csv.DictReader(text.splitlines()):
        scheme, value, meaning = line["type"].split(" ", 2)
        code = SegmentCode(
            CATEGORIES[line["category"]], Code(value, scheme, meaning), _MODIFIERS.get(line["laterality"])
        )
        row = _Row(code, line["laterality"] == "paired", line["category"] == "abnormality")
        for name in [line["name"], *filter(None, line["synonyms"].split("|"))]:
            found[" ".join(_words(name))] = row
    return found
