"""Values of a plan for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def in_words(key: str, value: Any) -> str:
    """A value of a plan for people: lists and mappings without quotes, codes as their meaning and number."""
    if key == "codes":
        return "; ".join(
            f"{name}: {code['type'][2]} ({code['type'][1]} {code['type'][0]})" for name, code in value.items()
        )
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {in_words('', item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(in_words("", item) for item in value) + "]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)
