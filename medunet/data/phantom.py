"""Small CT-like volumes with labels: body, spine, liver, kidneys and lesions; seeded, byte for byte the same each time.

Shapes are drawn three times finer than the voxels and averaged, so that edges have partial volume; then noise. Spacing
is anisotropic and the affine oblique. No phantom is symmetric under a flip or a swap of axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medunet.data.atomic import write_json
from medunet.data.grid import Grid
from medunet.data.volume import Volume, write_image, write_label
from medunet.types import Affine, AnyArray, FloatArray, Shape, Spacing, StrPath

LABELS = {"background": 0, "spine": 1, "liver": 2, "kidneys": 3, "lesion": 4}
_FINE = 3
_NOISE = 20.0  # HU
_AIR, _FAT, _TISSUE = -1000.0, -100.0, 40.0
_ORGAN_HU = {"spine": 400.0, "liver": 110.0, "kidneys": 190.0, "lesion": 10.0}


@dataclass(frozen=True)
class Ellipsoid:
    """Centre and half axes as fractions of the volume's edges."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]

    def inside(self, points: Sequence[FloatArray]) -> AnyArray:
        """Which of the points (three broadcastable coordinate arrays in 0..1) lie inside."""
        distance = sum(((p - c) / r) ** 2 for p, c, r in zip(points, self.centre, self.radii, strict=True))
        return np.asarray(distance <= 1.0)


def make_phantom(
    seed: int, shape: Shape = (48, 48, 32), spacing: Spacing = (2.5, 2.5, 4.0), oblique: bool = True
) -> tuple[Volume, Volume]:
    """A CT image (1, x, y, z) in HU and its label map, both on one grid."""
    rng = np.random.default_rng(seed)
    organs = _anatomy(rng)
    fine = tuple(n * _FINE for n in shape)
    points = [
        ((np.arange(n) + 0.5) / n).reshape([-1 if a == axis else 1 for a in range(3)]) for axis, n in enumerate(fine)
    ]
    hounsfield = np.full(fine, _AIR, dtype=np.float32)
    classes = np.zeros(fine, dtype=np.uint8)
    for name, bodies in organs.items():
        for body in bodies:
            where = np.broadcast_to(body.inside(points), fine)
            hounsfield[where] = {"skin": _FAT, "body": _TISSUE}.get(name) or _ORGAN_HU[name]
            classes[where] = LABELS.get(name, 0)
    image = _average(hounsfield, shape) + rng.normal(0, _NOISE, shape)
    grid = Grid(shape, _affine(rng, shape, spacing, oblique))
    label = _majority(classes, shape)
    return Volume(np.round(image).astype(np.int16)[None], grid), Volume(label[None], grid)


def write_dataset(
    folder: StrPath, cases: int = 12, seed: int = 0, shape: Shape = (48, 48, 32), spacing: Spacing = (2.5, 2.5, 4.0)
) -> Path:
    """A dataset of phantoms in the layout of the Medical Segmentation Decathlon."""
    folder, entries = Path(folder), []
    for number in range(cases):
        name = f"phantom_{seed + number:03d}.nii.gz"
        varied = (spacing[0], spacing[1], spacing[2] * (1.0 + 0.1 * (number % 3)))
        image, label = make_phantom(seed + number, shape, varied)
        write_image(folder / "imagesTr" / name, image.array[0], image.grid)
        write_label(folder / "labelsTr" / name, label.array[0], label.grid)
        entries.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    content = {
        "name": "Phantom",
        "description": "Synthetic CT-like volumes made by medunet",
        "licence": "CC0-1.0",
        "modality": {"0": "CT"},
        "labels": {str(value): name for name, value in LABELS.items()},
        "numTraining": cases,
        "training": entries,
    }
    write_json(folder / "dataset.json", content)
    return folder


def _anatomy(rng: np.random.Generator) -> dict[str, list[Ellipsoid]]:
    """Organs in the order they are drawn. Axes: x to the patient's left is low (RAS), y anterior is high."""

    def near(values: tuple[float, float, float], spread: float) -> tuple[float, float, float]:
        moved = np.array(values) * (1 + rng.uniform(-spread, spread, 3))
        return float(moved[0]), float(moved[1]), float(moved[2])

    liver = Ellipsoid(near((0.66, 0.58, 0.60), 0.04), near((0.20, 0.18, 0.28), 0.12))
    return {
        "skin": [Ellipsoid((0.50, 0.50, 0.52), (0.47, 0.40, 0.95))],
        "body": [Ellipsoid((0.50, 0.51, 0.52), (0.43, 0.35, 0.90))],
        "spine": [Ellipsoid(near((0.50, 0.27, 0.45), 0.03), near((0.075, 0.085, 1.2), 0.08))],
        "liver": [liver],
        "kidneys": [
            Ellipsoid(near((0.69, 0.33, 0.36), 0.03), near((0.07, 0.08, 0.17), 0.1)),
            Ellipsoid(near((0.30, 0.33, 0.42), 0.03), near((0.07, 0.08, 0.17), 0.1)),
        ],
        "lesion": [_lesion(rng, liver) for _ in range(int(rng.integers(1, 4)))],
    }


def _lesion(rng: np.random.Generator, organ: Ellipsoid) -> Ellipsoid:
    direction = rng.normal(size=3)
    offset = 0.55 * rng.uniform(0.2, 1.0) * direction / np.linalg.norm(direction)
    centre = [c + o * r for c, o, r in zip(organ.centre, offset, organ.radii, strict=True)]
    size = rng.uniform(0.22, 0.38)
    radii = [size * r for r in organ.radii]
    return Ellipsoid((centre[0], centre[1], centre[2]), (radii[0], radii[1], radii[2]))


def _average(fine: FloatArray, shape: Shape) -> FloatArray:
    blocks = fine.reshape(shape[0], _FINE, shape[1], _FINE, shape[2], _FINE)
    result: FloatArray = blocks.mean(axis=(1, 3, 5), dtype=np.float64)
    return result


def _majority(fine: AnyArray, shape: Shape) -> AnyArray:
    """The class that fills most of each voxel."""
    votes = [_average((fine == value).astype(np.float32), shape) for value in LABELS.values()]
    winner: AnyArray = np.argmax(np.stack(votes), axis=0).astype(np.uint8)
    return winner


def _affine(rng: np.random.Generator, shape: Shape, spacing: Spacing, oblique: bool) -> Affine:
    angles = np.radians(rng.uniform(-8, 8, 3)) if oblique else np.zeros(3)
    rotation = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = [a for a in range(3) if a != axis]
        turn = np.eye(3)
        turn[[first, first, second, second], [first, second, first, second]] = [
            np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle),
        ]  # fmt: skip
        rotation = rotation @ turn
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.array(spacing)
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2 + rng.uniform(-20, 20, 3)
    stored: Affine = affine.astype(np.float32).astype(np.float64)  # what a NIfTI header holds
    return stored
