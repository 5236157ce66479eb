"""What the values of label maps mean: classes that exclude each other, regions that may overlap, and "not annotated".

Declared as in nnU-Net's ``dataset.json`` (docs/labels.md): ``"labels": {"background": 0, "liver": 1, "ignore": 9}``;
``{"background": 0, "whole": [1, 2], "core": 2}`` with ``"regions_class_order": [1, 2]``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from medunet.errors import DatasetError
from medunet.types import BoolArray, IntArray

IGNORE = "ignore"
"""The name that declares the value of voxels nobody annotated."""

Values: TypeAlias = int | Sequence[int]
"""The value of a class, or all values of a region."""


@dataclass(frozen=True)
class Declared:
    """`labels`: name -> the value that is written for it, background first; of regions in the order of overlay.

    `regions`: name -> the values in label maps that belong to it; empty where labels exclude each other.
    `ignore`: the value in label maps of voxels that nobody annotated.
    """

    labels: dict[str, int] = field(default_factory=dict)
    regions: dict[str, list[int]] = field(default_factory=dict)
    ignore: int | None = None


def declared(given: Any, order: Any = None, where: str = "labels") -> Declared:
    """What a dataset declares: name -> value (or list of values), or value -> name; `order` is regions_class_order.

    Raises:
        DatasetError: it contradicts itself; `where` stands before the sentence.
    """
    if not isinstance(given, Mapping) or not given:
        return Declared()
    if all(str(key).lstrip("-").isdigit() for key in given):
        given = {str(name): int(key) for key, name in given.items()}
    named = {str(name): _values(name, value, where) for name, value in given.items()}
    ignore = named.pop(IGNORE, None)
    if isinstance(ignore, list):
        raise DatasetError(f"{where}: '{IGNORE}' has values {ignore}; give one whole number")
    if not named:
        return Declared(ignore=ignore)
    if any(isinstance(value, list) for value in named.values()):
        result = _with_regions(named, order, ignore, where)
    elif order is not None:
        raise DatasetError(
            f"{where}: regions_class_order is given and no label is a region; "
            f"give regions as lists of values such as [1, 2], or remove it"
        )
    else:
        pairs = {name: value for name, value in named.items() if isinstance(value, int)}
        pairs = pairs if 0 in pairs.values() else {"background": 0, **pairs}
        result = Declared(dict(sorted(pairs.items(), key=lambda item: (item[1] != 0, item[1]))), {}, ignore)
    require_consistent(result, where)
    return result


def _values(name: Any, value: Any, where: str) -> int | list[int]:
    if isinstance(value, (list, tuple)):
        whole = [_values(name, item, where) for item in value]
        if whole and all(isinstance(item, int) for item in whole):
            return sorted({item for item in whole if isinstance(item, int)})
    elif isinstance(value, (int, float, str)):
        text = str(value).strip().removesuffix(".0")
        if text.removeprefix("-").isdigit():
            return int(text)
    raise DatasetError(
        f"{where}: label '{name}' has value {value}; give a whole number, or a list of them for a region"
    )


def _with_regions(named: Mapping[str, int | list[int]], order: Any, ignore: int | None, where: str) -> Declared:
    background = next((name for name, value in named.items() if value in (0, [0])), "background")
    regions = {
        name: [value] if isinstance(value, int) else value for name, value in named.items() if name != background
    }
    written = [_values("regions_class_order", value, where) for value in order] if isinstance(order, list) else []
    if len(written) != len(regions):
        plural = "s" * (len(regions) != 1)
        raise DatasetError(
            f"{where}: regions_class_order has {len(written)} values for {len(regions)} region{plural} "
            f"({', '.join(regions)}); give the value to be written for each region, in their order"
        )
    values = [value for value in written if isinstance(value, int)]
    return Declared({background: 0, **dict(zip(regions, values, strict=True))}, regions, ignore)


def require_consistent(known: Declared, where: str) -> None:
    """Refuse labels that cannot be told apart, in training or in what is written.

    Raises:
        DatasetError: with what, where, got and do.
    """
    background = next(iter(known.labels.items()), ("background", 0))
    require_apart(known.ignore, {background[0]: background[1], **members(known.labels, known.regions)}, where)
    doubled = [value for value, count in Counter(known.labels.values()).items() if count > 1]
    if not known.regions:
        if doubled:
            names = " and ".join(f"'{name}'" for name, value in known.labels.items() if value == doubled[0])
            raise DatasetError(f"{where}: {names} have the value {doubled[0]}; give each class its own value")
        return
    if doubled and doubled[0] != background[1]:
        raise DatasetError(f"{where}: regions_class_order writes {doubled[0]} twice; give each region its own value")
    for name, values in known.regions.items():
        if background[1] in values:
            raise DatasetError(f"{where}: region '{name}' has the background's value {background[1]}; leave it out")
        if known.labels.get(name) not in values:
            raise DatasetError(
                f"{where}: regions_class_order writes {known.labels.get(name)} for region '{name}', whose values are "
                f"{list(values)}; give one of them"
            )
    if list(known.labels)[1:] != list(known.regions):
        raise DatasetError(
            f"{where}: labels are {', '.join(known.labels)} and regions {', '.join(known.regions)}; give the "
            f"background and then all regions, in one order"
        )
    _require_visible(known.regions, where)
    _require_readable(known, where)


def require_apart(ignore: int | None, named: dict[str, Values], where: str) -> None:
    """Refuse a value of voxels that nobody annotated which is that of a class or region too.

    Raises:
        DatasetError: with what, where, got and do.
    """
    for name, values in reversed(named.items()):  # of regions in each other, the smallest
        if ignore in _listed(values):
            raise DatasetError(
                f"{where}: '{IGNORE}' has value {ignore}, which is that of '{name}' too; give it a value of its own"
            )


def _require_visible(regions: Mapping[str, Sequence[int]], where: str) -> None:
    """Later regions lie on top: none may hide an earlier one altogether."""
    names = list(regions)
    for place, below in enumerate(names):
        for above in names[place + 1 :]:
            if set(regions[below]) <= set(regions[above]):
                raise DatasetError(
                    f"{where}: region '{above}' lies over '{below}' and has all its values {list(regions[below])}, so "
                    f"that '{below}' would never be seen; declare larger regions first"
                )


def _require_readable(known: Declared, where: str) -> None:
    """What is written for a region alone must not read as a region on top of it, which it does not show."""
    names = list(known.regions)
    for place, below in enumerate(names):
        for above in names[place + 1 :]:
            if known.labels[below] in known.regions[above]:
                raise DatasetError(
                    f"{where}: regions_class_order writes {known.labels[below]} for region '{below}', which is a value "
                    f"of '{above}' over it, so that what is '{below}' alone would be read as '{above}' too; write a "
                    f"value that no later region has, or leave out a region that is no more than its parts"
                )


def stored_values(labels: Mapping[str, int], regions: Mapping[str, Sequence[int]]) -> list[int]:
    """The values of label maps that training tells apart, background first; a value's place is its number.

    >>> stored_values({"background": 0, "whole": 1, "core": 4}, {"whole": [1, 2, 4], "core": [2, 4]})
    [0, 1, 2, 4]
    """
    if not regions:
        return list(labels.values())
    return [next(iter(labels.values())), *sorted({value for values in regions.values() for value in values})]


def members(labels: Mapping[str, int], regions: Mapping[str, Sequence[int]]) -> dict[str, Values]:
    """Every class but the background with its value in label maps, or every region with its values."""
    if regions:
        return {name: list(values) for name, values in regions.items()}
    return {name: value for number, (name, value) in enumerate(labels.items()) if number}


def mask_of(label: IntArray, values: Values) -> BoolArray:
    """Where a label map shows a class, or any value of a region."""
    mask: BoolArray = label == values if isinstance(values, int) else np.isin(label, list(values))
    return mask


def in_words(known: Declared) -> str:
    """``background=0, whole=1+2 (written 1), core=2 (written 2), ignore=9``."""
    words = []
    for name, value in known.labels.items():
        own = known.regions.get(name)
        words.append(f"{name}={value}" if own is None else f"{name}={'+'.join(map(str, own))} (written {value})")
    return ", ".join(words + ([] if known.ignore is None else [f"{IGNORE}={known.ignore}"]))


def _listed(values: Values) -> list[int]:
    return [values] if isinstance(values, int) else list(values)
