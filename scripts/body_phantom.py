"""CT-like bodies of any size for benchmarks: soft tissue in air, with organs of several HU levels as classes.

Lengths of organs are in mm and their number follows the volume, so that a network trained on small volumes knows what
it sees in large ones. Everything is drawn slab by slab: 512 x 512 x 800 voxels take no more memory than the result.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medunet.data.grid import Grid
from medunet.data.volume import write_image, write_label

AIR, TISSUE = -1000.0, 40.0  # HU
_AIR_NOISE, _BODY_NOISE = 4.0, 15.0  # standard deviation, HU
_WIDER = 1.5  # the body's width over its depth
_RADII = (10.0, 24.0)  # mm
_DENSITY = 1.0 / 40.0**3  # organs per mm3 of the volume
_SLAB = 16  # slices


def organ_levels(classes: int) -> list[float]:
    """HU of the classes 1 to `classes` - 1: -120, then evenly from 330 to 650."""
    return [-120.0, *np.linspace(330.0, 650.0, classes - 2).tolist()] if classes > 2 else [330.0]


def body_phantom(
    shape: Sequence[int], spacing: Sequence[float], seed: int, air_fraction: float = 0.1, classes: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """An int16 image in HU and its uint8 label map.

    The body is an elliptic cylinder along z, wider than deep and lying low in the field of view as on a table;
    `air_fraction` of the voxels are outside of it.
    """
    rng = np.random.default_rng(seed)
    body = _body(shape, spacing, air_fraction)
    image, label = np.empty(shape, np.int16), np.zeros(shape, np.uint8)
    organs = _organs(rng, shape, spacing, classes)
    _draw(label, organs, spacing, body)
    levels = np.array([TISSUE, *organ_levels(classes)], np.float32)
    for start in range(0, shape[2], _SLAB):
        part = np.s_[:, :, start : start + _SLAB]
        noise = rng.standard_normal(label[part].shape, dtype=np.float32)
        inside = body[:, :, None]
        clean = np.where(inside, levels[label[part]], np.float32(AIR))
        image[part] = np.rint(clean + noise * np.where(inside, np.float32(_BODY_NOISE), np.float32(_AIR_NOISE)))
    return image, label


def write_case(
    folder: Path,
    name: str,
    shape: Sequence[int],
    spacing: Sequence[float],
    seed: int,
    air_fraction: float,
    classes: int,
) -> tuple[Path, Path]:
    """Write image and label map as ``.nii.gz`` unless they are there; their paths."""
    image_path, label_path = folder / "images" / f"{name}.nii.gz", folder / "labels" / f"{name}.nii.gz"
    if not (image_path.is_file() and label_path.is_file()):
        image, label = body_phantom(shape, spacing, seed, air_fraction, classes)
        affine = np.diag([*map(float, spacing), 1.0])
        affine[:3, 3] = -np.array(spacing) * np.array(shape) / 2
        grid = Grid(tuple(shape), affine)
        write_image(image_path, image, grid)
        write_label(label_path, label, grid)
    return image_path, label_path


def write_training_set(folder: Path, cases: int, shape: Sequence[int], spacing: Sequence[float], classes: int) -> Path:
    """A dataset in the layout of the Medical Segmentation Decathlon, with 5 to 50% of air."""
    entries = []
    for number in range(cases):
        air = 0.05 + 0.45 * number / max(cases - 1, 1)
        image, label = write_case(folder, f"body_{number:02d}", shape, spacing, number, air, classes)
        entries.append({"image": str(image.relative_to(folder)), "label": str(label.relative_to(folder))})
    names = {"0": "background", **{str(n): f"organ_{n:03d}" for n in range(1, classes)}}
    facts = {"name": "Bodies", "licence": "CC0-1.0", "modality": {"0": "CT"}, "labels": names, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(facts, indent=2))
    return folder


def _body(shape: Sequence[int], spacing: Sequence[float], air_fraction: float) -> np.ndarray:
    """Which (x, y) lie inside: an ellipse as large as `air_fraction` allows, moved down as far as it goes."""
    width, depth = shape[0] * spacing[0], shape[1] * spacing[1]
    x = ((np.arange(shape[0]) + 0.5) * spacing[0] - width / 2) / _WIDER
    y = (np.arange(shape[1]) + 0.5) * spacing[1]
    radius = np.sqrt((1 - air_fraction) * width * depth / (np.pi * _WIDER))
    for _ in range(50):
        centre = min(radius + 0.02 * depth, depth / 2)
        distance = np.sqrt(x[:, None] ** 2 + (y[None] - centre) ** 2)
        new = float(np.quantile(distance, 1 - air_fraction))
        if abs(new - radius) < 1e-3:
            break
        radius = (radius + new) / 2
    return distance <= radius


def _organs(
    rng: np.random.Generator, shape: Sequence[int], spacing: Sequence[float], classes: int
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(class, centre, half axes) in mm; at least one of each class."""
    extent = np.array(shape) * np.array(spacing)
    count = max(classes - 1, round(float(extent.prod()) * _DENSITY))
    largest = np.minimum(_RADII[1], extent / 4)
    kinds = [1 + number % (classes - 1) for number in range(count)]
    sizes = [rng.uniform(np.minimum(_RADII[0], largest / 2), largest) for _ in kinds]
    return [(kind, rng.uniform(0.1, 0.9, 3) * extent, size) for kind, size in zip(kinds, sizes, strict=True)]


def _draw(
    label: np.ndarray,
    organs: Sequence[tuple[int, np.ndarray, np.ndarray]],
    spacing: Sequence[float],
    body: np.ndarray,
) -> None:
    """Fill the ellipsoids that lie inside the body, each within its own box."""
    for kind, centre, radii in organs:
        low = np.maximum(np.floor((centre - radii) / spacing).astype(int), 0)
        high = np.minimum(np.ceil((centre + radii) / spacing).astype(int) + 1, label.shape)
        axes = [
            ((np.arange(a, b) + 0.5) * s - c) / r
            for a, b, s, c, r in zip(low, high, spacing, centre, radii, strict=True)
        ]
        inside = axes[0][:, None, None] ** 2 + axes[1][None, :, None] ** 2 + axes[2][None, None] ** 2 <= 1.0
        inside &= body[low[0] : high[0], low[1] : high[1], None]
        label[low[0] : high[0], low[1] : high[1], low[2] : high[2]][inside] = kind
