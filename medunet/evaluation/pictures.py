"""Three planes of a case as small SVGs: the grey image as PNG, outlines of reference and prediction on top."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medunet.data.dicom.source import Source
from medunet.data.grid import Grid
from medunet.data.labelling import Values, mask_of
from medunet.data.volume import read_case, read_label
from medunet.errors import MedunetError
from medunet.types import AnyArray, BoolArray, IntArray

COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2")
"""Okabe and Ito's colour-blind-safe palette."""
_PLANES = ((0, 1, 2, "axial"), (0, 2, 1, "coronal"), (1, 2, 0, "sagittal"))
_AIR_HU, _SOFT_TISSUE = -500.0, (-160.0, 240.0)
_LARGEST = 512  # pixels of an embedded picture


@dataclass(frozen=True)
class Plane:
    """One SVG and its caption."""

    name: str
    svg: str


def case_planes(
    case: Mapping[str, Any], labels: Mapping[str, Values], base: Path | None, *, instances: bool = False
) -> tuple[list[Plane], str]:
    """The planes of a case through the middle of its reference, and a note where something is missing.

    With `instances` label maps number objects, all of the one class in `labels`: each is outlined.
    """
    paths = {key: _paths(case.get(key), base) for key in ("image", "reference", "prediction")}
    try:
        maps = {key: read_label(paths[key][0]) for key in ("reference", "prediction") if paths[key]}
        if not maps:
            return [], "no label map is at hand to show"
        grid = next(iter(maps.values())).grid
        image = read_case(paths["image"]).array[0] if paths["image"] else None
    except (MedunetError, OSError) as error:
        return [], f"cannot be shown: {error}"
    if image is None or image.shape != grid.shape:
        image = np.zeros(grid.shape, dtype=np.float32)
    oriented = {key: _to_ras(volume.array[0], grid) for key, volume in maps.items()}
    shown: Mapping[str, Values | None] = dict.fromkeys(labels) if instances else labels
    return _planes(_to_ras(image, grid), oriented, _ras_spacing(grid), shown), ""


def _paths(value: Any, base: Path | None) -> list[Path]:
    if not value:
        return []
    parts = value if isinstance(value, list) else [value]
    paths = [Path(p) if Path(p).is_absolute() or base is None else base / p for p in parts]
    return paths if all(Source.parse(path).path.exists() for path in paths) else []


def _to_ras(array: AnyArray, grid: Grid) -> AnyArray:
    """Flip and permute (x, y, z) so that the axes run right, anterior, superior."""
    codes = grid.axcodes
    axes = [next(v for v in range(3) if codes[v] in pair) for pair in ("RL", "AP", "SI")]
    flips = [world for world, voxel in enumerate(axes) if codes[voxel] in "LPI"]
    return np.flip(array.transpose(axes), tuple(flips)) if flips else array.transpose(axes)


def _ras_spacing(grid: Grid) -> list[float]:
    return [grid.spacing[next(v for v in range(3) if grid.axcodes[v] in pair)] for pair in ("RL", "AP", "SI")]


def _planes(
    image: AnyArray, maps: Mapping[str, IntArray], spacing: Sequence[float], labels: Mapping[str, Values | None]
) -> list[Plane]:
    """One plane for a picture (one slice), three for a volume; `labels`: values of each class, None for all objects."""
    centre = _centre(maps.get("reference"), maps.get("prediction"))
    low, high = _window(image)
    scaled = np.clip((image - low) / max(high - low, 1e-12) * 255, 0, 255).astype(np.uint8)
    planes = _PLANES[:1] if image.shape[2] == 1 else _PLANES
    picture = image.shape[2] == 1
    result = []
    for across, down, through, name in planes:
        cut: list[Any] = [slice(None)] * 3
        cut[through] = centre[through]
        size = (image.shape[across] * spacing[across], image.shape[down] * spacing[down])
        grey = _upright(scaled[tuple(cut)], picture)
        outlines = _outlines({key: _upright(m[tuple(cut)], picture) for key, m in maps.items()}, labels)
        result.append(Plane("picture" if picture else name, _svg(grey, outlines, size, 480.0 if picture else 240.0)))
    return result


def _window(image: AnyArray) -> tuple[float, float]:
    """Black and white: soft tissue (-160 to 240 HU) where values reach air, else percentiles 0.5 and 99.5."""
    if image.min() < _AIR_HU:
        return _SOFT_TISSUE
    low, high = np.percentile(image, [0.5, 99.5])
    return float(low), float(high)


def _upright(plane: AnyArray, picture: bool) -> AnyArray:
    """(across, down) -> rows from the top: superior or anterior up; the patient's right is on the left (radiology)."""
    return plane.T if picture else plane.T[::-1, ::-1]


def _centre(*maps: IntArray | None) -> list[int]:
    for labels in maps:
        if labels is not None and (labels != 0).any():
            inside = np.argwhere(labels != 0)
            return [round(float(c)) for c in inside.mean(axis=0)]
    shape = next(m.shape for m in maps if m is not None)
    return [n // 2 for n in shape]


def _outlines(maps: Mapping[str, IntArray], labels: Mapping[str, Values | None]) -> str:
    paths = []
    for kind in ("reference", "prediction"):
        for number, (name, value) in enumerate(item for item in labels.items() if item[1] != 0):
            if kind in maps:
                drawn = outline(maps[kind] if value is None else mask_of(maps[kind], value))
                colour, title = COLOURS[number % len(COLOURS)], f"{html.escape(name)}, {kind}"
                paths.append(f'<path class="{kind}" stroke="{colour}" d="{drawn}"><title>{title}</title></path>')
    return "".join(path for path in paths if 'd=""' not in path)


def outline(plane: BoolArray | IntArray) -> str:
    """SVG path along the voxel edges around a mask, or each object of a map (rows, columns), in units of pixels."""
    padded = np.pad(plane.astype(np.int64), 1)
    parts = []
    for row, column, length in _runs(np.diff(padded, axis=0)[:, 1:-1] != 0):
        parts.append(f"M{column} {row}h{length}")
    for column, row, length in _runs((np.diff(padded, axis=1)[1:-1] != 0).T):
        parts.append(f"M{column} {row}v{length}")
    return "".join(parts)


def _runs(edges: BoolArray) -> list[tuple[int, int, int]]:
    """(line, start, length) of every run of true values along the second axis."""
    steps = np.diff(np.pad(edges.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    lines, starts = np.nonzero(steps == 1)
    _, ends = np.nonzero(steps == -1)
    return [(int(line), int(s), int(e - s)) for line, s, e in zip(lines, starts, ends, strict=True)]


def _svg(grey: AnyArray, outlines: str, size: tuple[float, float], height: float) -> str:
    """`size` in mm gives the shape, `height` the pixels on the page; outlines are in pixels of `grey`."""
    rows, columns = grey.shape
    data = base64.b64encode(_png(grey)).decode()
    width = max(60.0, min(1.75 * height, height * size[0] / max(size[1], 1e-6)))
    height = width * size[1] / max(size[0], 1e-6)
    return (
        f'<svg role="img" width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {columns} {rows}" '
        f'preserveAspectRatio="none"><image width="{columns}" height="{rows}" preserveAspectRatio="none" '
        f'href="data:image/png;base64,{data}"/>{outlines}</svg>'
    )


def _png(grey: AnyArray) -> bytes:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(grey))
    if max(image.size) > _LARGEST:
        scale = _LARGEST / max(image.size)
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
