"""JSON that is read one way only: no key twice, no NaN, no depth without end, bounded; and one text per content."""

from __future__ import annotations

import json
from typing import Any

from medunet.errors import UnsafeError

LARGEST = 16 << 20
"""Bytes that a JSON file of a bundle may have."""


def parse(name: str, data: bytes) -> Any:
    """The content of a JSON file.

    Raises:
        UnsafeError: it is not UTF-8, not JSON, too large, too deep, or has a key twice, a NaN or an infinity.
    """
    if len(data) > LARGEST:
        raise UnsafeError(f"{name}: has {len(data):,} bytes, more than the {LARGEST:,} that are read; refuse it")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise UnsafeError(f"{name}: is not plain JSON ({error or 'too deep'}); refuse it") from error


def canonical(content: Any) -> bytes:
    """The one text of a content: sorted keys, ASCII, one space of indentation, a newline at the end.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return (text + "\n").encode("ascii")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} stands twice")
    return content


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is too large for a number")
    return value
