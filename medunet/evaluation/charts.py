"""Box plots, curves and scatter plots as plain SVG text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from medunet.evaluation.pictures import COLOURS

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 34
Scale = Callable[[float], float]


def box_plots(values: Mapping[str, Sequence[tuple[str, float]]], width: int = 520, height: int = 240) -> str:
    """A box (quartiles), whiskers (1.5 IQR) and a point per case for each class; (case, Dice) pairs."""
    y = _scale(0, 1, height - _BOTTOM, _TOP)
    step = (width - _LEFT - _RIGHT) / max(1, len(values))
    parts = [_y_axis(y, [0, 0.25, 0.5, 0.75, 1], width, "Dice")]
    for number, (name, pairs) in enumerate(values.items()):
        centre = _LEFT + step * (number + 0.5)
        parts.append(_text(centre, height - 12, name, "middle"))
        if pairs:
            parts.append(_box(pairs, centre, min(46.0, step * 0.4), y, COLOURS[number % len(COLOURS)]))
    return _frame(width, height, parts, "Dice per class")


def _box(pairs: Sequence[tuple[str, float]], centre: float, width: float, y: Scale, colour: str) -> str:
    numbers = np.array([value for _, value in pairs])
    q1, middle, q3 = np.percentile(numbers, [25, 50, 75])
    inside = numbers[(numbers >= q1 - 1.5 * (q3 - q1)) & (numbers <= q3 + 1.5 * (q3 - q1))]
    low, high = inside.min(), inside.max()
    left, right = centre - width / 2, centre + width / 2
    parts = [
        f'<line x1="{centre:.1f}" x2="{centre:.1f}" y1="{y(low):.1f}" y2="{y(high):.1f}" class="whisker"/>',
        f'<rect x="{left:.1f}" y="{y(q3):.1f}" width="{width:.1f}" height="{max(1.0, y(q1) - y(q3)):.1f}" '
        f'fill="{colour}" fill-opacity="0.35" stroke="{colour}"/>',
        f'<line x1="{left:.1f}" x2="{right:.1f}" y1="{y(middle):.1f}" y2="{y(middle):.1f}" class="median"/>',
    ]
    for number, (case, value) in enumerate(pairs):
        x = right + 8 + (number * 7 % 17)
        parts.append(_dot(x, y(value), "#444", f"{case}: {value:.3f}"))
    return "".join(parts)


def curves(
    lines: Mapping[str, Sequence[tuple[float, float]]], label: str, unit: bool, width: int = 520, height: int = 240
) -> str:
    """Lines over training steps, the last one in ink; `unit` fixes the y axis to 0..1."""
    points = [point for line in lines.values() for point in line]
    if not points:
        return ""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    top, bottom = (1.0, 0.0) if unit else _padded(min(ys), max(ys))
    x, y = _scale(0, max(xs) or 1, _LEFT, width - _RIGHT), _scale(bottom, top, height - _BOTTOM, _TOP)
    parts = [_y_axis(y, _ticks(bottom, top), width, label), _x_axis(x, _ticks(0, max(xs)), height, "step")]
    for number, (name, line) in enumerate(lines.items()):
        colour = "#1c2430" if number == len(lines) - 1 else COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line)
        parts.append(
            f'<polyline points="{path}" stroke="{colour}" class="curve"><title>{escape(name)}</title></polyline>'
        )
        if len(lines) > 1 and line:
            parts.append(_text(width - _RIGHT - 4, _TOP + 130 + 15 * number, name, "end", colour))
            parts += [_dot(x(a), y(b), colour, f"{name}, step {a:g}: {b:.3f}") for a, b in line]
    return _frame(width, height, parts, label)


def volume_scatter(
    values: Mapping[str, Sequence[tuple[str, float, float]]], width: int = 520, height: int = 320
) -> str:
    """Predicted against reference volume (ml) of each case and class, with the line of equality."""
    points = [v for pairs in values.values() for _, *v in pairs]
    if not points:
        return ""
    top = max(max(p) for p in points) * 1.05 or 1.0
    x, y = _scale(0, top, _LEFT, width - _RIGHT), _scale(0, top, height - _BOTTOM, _TOP)
    ticks = _ticks(0, top)
    parts = [_y_axis(y, ticks, width, "predicted ml"), _x_axis(x, ticks, height, "reference ml")]
    parts.append(f'<line x1="{x(0):.1f}" y1="{y(0):.1f}" x2="{x(top):.1f}" y2="{y(top):.1f}" class="equal"/>')
    for number, (name, pairs) in enumerate(values.items()):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(_text(_LEFT + 12, _TOP + 14 + 15 * number, name, "start", colour))
        parts += [_dot(x(true), y(found), colour, f"{case}, {name}: {found:.3g} of {true:.3g} ml")
                  for case, true, found in pairs]  # fmt: skip
    return _frame(width, height, parts, "Volumes")


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _padded(low: float, high: float) -> tuple[float, float]:
    room = 0.05 * ((high - low) or 1.0)
    return high + room, low - room


def _ticks(low: float, high: float) -> list[float]:
    span = (high - low) or 1.0
    power = 10.0 ** np.floor(np.log10(span / 4))
    step = float(power * min((m for m in (1, 2, 2.5, 5, 10) if m * power >= span / 5), default=10))
    first = np.ceil(low / step - 1e-9) * step + 0.0  # no minus zero
    return [float(v) for v in np.arange(first, high + step * 1e-6, step)]


def _y_axis(y: Scale, ticks: Sequence[float], width: int, label: str) -> str:
    lines = "".join(
        f'<line x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}" class="grid"/>'
        + _text(_LEFT - 6, y(t) + 4, f"{t:g}", "end")
        for t in ticks
    )
    middle = (y(ticks[0]) + y(ticks[-1])) / 2
    return lines + f'<text class="label" transform="translate(12 {middle:.0f}) rotate(-90)">{escape(label)}</text>'


def _x_axis(x: Scale, ticks: Sequence[float], height: int, label: str) -> str:
    marks = "".join(_text(x(t), height - _BOTTOM + 15, f"{t:g}", "middle") for t in ticks)
    middle = (x(ticks[0]) + x(ticks[-1])) / 2
    return marks + f'<text class="label" x="{middle:.0f}" y="{height - 4}">{escape(label)}</text>'


def _dot(x: float, y: float, colour: str, title: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"><title>{escape(title)}</title></circle>'


def _text(x: float, y: float, content: Any, anchor: str, colour: str = "") -> str:
    fill = f' style="fill:{colour};font-weight:600"' if colour else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{fill}>{escape(str(content))}</text>'


def _frame(width: int, height: int, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg class="chart" role="img" aria-label="{escape(title)}" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">{"".join(parts)}</svg>'
    )
