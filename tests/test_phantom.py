"""Phantoms: seeded, asymmetric, CT-like."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np

from medunet.data.phantom import LABELS, make_phantom, write_dataset


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_dataset(tmp_path / name, 2, 5, (16, 16, 12))
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 5
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_every_class_is_there_and_intensities_are_like_ct() -> None:
    image, label = make_phantom(1)
    assert set(np.unique(label.array)) == set(LABELS.values())
    spine, air = image.array[label.array == LABELS["spine"]].mean(), image.array[0, 0, 0].mean()
    assert 300 < spine < 450
    assert -1050 < air < -950


def test_no_flip_or_axis_swap_maps_a_phantom_onto_itself() -> None:
    label = make_phantom(2, (24, 24, 24), (3.0, 3.0, 3.0))[1].array[0]
    for axes, flips in product(permutations(range(3)), product([1, -1], repeat=3)):
        moved = label.transpose(axes)[:: flips[0], :: flips[1], :: flips[2]]
        if axes != (0, 1, 2) or flips != (1, 1, 1):
            assert not np.array_equal(moved, label)


def test_grids_are_oblique_and_vary() -> None:
    a, b = make_phantom(0)[0].grid, make_phantom(1)[0].grid
    assert a != b
    assert np.count_nonzero(np.abs(a.affine[:3, :3]) > 1e-3) == 9
