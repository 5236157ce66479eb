"""Compare an input with what the model was trained on, before time is spent on a meaningless result."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medunet.data.grid import Grid

_WARN, _REFUSE = 2.0, 4.0  # factors outside the training range
_MODALITIES = {
    "CT": {"CT"},
    "PT": {"PT", "PET"},
    "MR": {"MR", "MRI", "T1", "T1W", "T1GD", "T1C", "T1CE", "T2", "T2W", "FLAIR", "DWI", "ADC", "PD", "SWI"},
}


@dataclass(frozen=True)
class Concern:
    """Something about an input that the model was not trained for; `fatal` ones need ``--force``."""

    message: str
    fatal: bool


def compare_grid(grid: Grid, plan: Mapping[str, Any]) -> list[Concern]:
    """Compare spacing, field of view and dimensions with the plan's ``seen`` ranges."""
    seen, orientation = plan["seen"], plan["orientation"]
    spacing, extent = _ordered(grid.spacing, grid, orientation), _ordered(grid.extent, grid, orientation)
    if plan["dims"] == 3 and min(grid.shape) == 1:
        return [Concern("is a single slice, the model was trained on volumes; give the whole volume", True)]
    concerns = []
    if seen["pictures"]:
        if grid.shape[2] > 1:
            concerns.append(Concern(f"has {grid.shape[2]} slices, the model was trained on single pictures", False))
        return concerns
    concerns += _spacing(spacing, seen)
    typical = [n * s for n, s in zip(seen["median_shape"], plan["spacing"], strict=True)]
    return concerns + _field_of_view(extent, typical)


def compare_intensity(ranges: Sequence[tuple[float, float]], plan: Mapping[str, Any]) -> list[Concern]:
    """Compare (minimum, maximum) per channel with the training data: constant images, CT that is not in HU."""
    concerns = []
    names, schemes = plan["channels"], plan["normalization"]
    for name, scheme, (low, high), seen in zip(names, schemes, ranges, plan["seen"]["intensity"], strict=True):
        if low == high:
            concerns.append(Concern(f"channel {name} is constant ({low:g}), there is nothing to segment", True))
        elif scheme["scheme"] == "ct" and seen["minimum"] < -200 and low >= 0:
            concerns.append(
                Concern(
                    f"channel {name} spans {low:g} to {high:g}, the training CT {seen['minimum']:g} to "
                    f"{seen['maximum']:g} HU; store it in Hounsfield units",
                    True,
                )
            )
    return concerns


def compare_modality(verdict: Mapping[str, Any] | None, channel: str) -> list[Concern]:
    """Compare the modality of a DICOM series with what the channel's name says it is (``CT``, ``MR_T1``, ``FLAIR``)."""
    words = {word.upper() for word in re.split(r"[^A-Za-z0-9]+", channel)}
    expected = next((modality for modality, names in _MODALITIES.items() if words & names), None)
    got = (verdict or {}).get("modality")
    if not got or expected in (None, got):
        return []
    return [Concern(f"is {got}, the model's channel {channel} is {expected}; give a series of that modality", True)]


def _spacing(spacing: Sequence[float], seen: Mapping[str, Any]) -> list[Concern]:
    low, high = seen["spacing_min"], seen["spacing_max"]
    factor = max(max(a / s, s / b) for s, a, b in zip(spacing, low, high, strict=True))
    if factor <= _WARN:
        return []
    message = (
        f"has spacing {_mm(spacing)}, the training data {_mm(low)} to {_mm(high)}; "
        f"check that the header's spacing is right"
    )
    return [Concern(message, factor > _REFUSE)]


def _field_of_view(extent: Sequence[float], typical: Sequence[float]) -> list[Concern]:
    factor = max(max(e / t, t / e) for e, t in zip(extent, typical, strict=True))
    if factor <= _WARN:
        return []
    message = f"covers {_mm(extent)}, a training case typically {_mm(typical)}; crop it as the training data were"
    return [Concern(message, factor > _REFUSE)]


def _ordered(values: Sequence[float], grid: Grid, orientation: str) -> list[float]:
    """Values per voxel axis of `grid` in the order of the plan's `orientation`."""
    own = ["RLAPSI".index(code) // 2 for code in grid.axcodes]
    return [values[own.index("RLAPSI".index(code) // 2)] for code in orientation]


def _mm(values: Sequence[float]) -> str:
    return " x ".join(f"{v:.3g}" for v in values) + " mm"
