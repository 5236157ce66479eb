"""Grids as values, and files that appear whole or not at all."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medunet.data.atomic import atomic_path, write_json
from medunet.data.grid import Grid
from medunet.errors import GeometryError


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    shape = tuple(draw(st.integers(1, 40)) for _ in range(3))
    spacing = [draw(st.floats(0.3, 8)) for _ in range(3)]
    angles = np.array([draw(st.floats(-0.6, 0.6)) for _ in range(3)])
    order, signs = draw(st.permutations(range(3))), [draw(st.sampled_from([-1, 1])) for _ in range(3)]
    rotation = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = [i for i in range(3) if i != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        rotation = rotation @ turn
    affine = np.eye(4)
    affine[:3, :3] = (rotation[:, order] * signs) * spacing
    affine[:3, 3] = [draw(st.floats(-200, 200)) for _ in range(3)]
    return Grid(shape, affine)


@given(grids())
def test_world_and_back(grid: Grid) -> None:
    voxels = np.array([[0, 0, 0], np.array(grid.shape) - 1, [0.5, 1.25, -3]])
    assert np.allclose(grid.to_voxel(grid.to_world(voxels)), voxels, atol=1e-6)


@given(grids())
def test_axcodes_name_each_axis_once(grid: Grid) -> None:
    assert sorted("RLAPSI".index(c) // 2 for c in grid.axcodes) == [0, 1, 2]


@given(grids(), st.floats(0.2, 3))
def test_a_shift_is_noticed(grid: Grid, voxels: float) -> None:
    moved = np.array(grid.affine)
    moved[:3, 3] += grid.affine[:3, 0] * voxels
    assert not grid.agrees_with(Grid(grid.shape, moved))
    assert grid.agrees_with(Grid(grid.shape, grid.affine))
    assert grid == Grid(grid.shape, np.array(grid.affine))


@pytest.mark.parametrize(
    ("shape", "affine", "words"),
    [
        ((0, 2, 2), np.eye(4), "three positive numbers"),
        ((2, 2), np.eye(4), "three positive numbers"),
        ((2, 2, 2), np.full((4, 4), np.nan), "finite 4x4"),
        ((2, 2, 2), np.diag([1, 0, 1, 1]), "singular"),
        ((2, 2, 2), [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "singular"),
    ],
)
def test_impossible_grids_are_refused(shape: tuple[int, ...], affine: np.ndarray, words: str) -> None:
    with pytest.raises(GeometryError, match=words):
        Grid(shape, affine)


def test_voxels_of_an_electron_microscope_make_a_grid() -> None:
    assert Grid.from_spacing((9, 9, 2), (7e-7, 7e-7, 5e-5)).axcodes == "RAS"


def test_require_names_both_grids() -> None:
    a, b = Grid.from_spacing((35, 51, 35)), Grid.from_spacing((35, 51, 36))
    with pytest.raises(GeometryError, match=r"label grid \(35, 51, 36\).*differs from image \(35, 51, 35\)"):
        a.require(b, "image", "label")


def test_atomic_path_leaves_nothing_after_an_error(tmp_path: Path) -> None:
    target = tmp_path / "a" / "x.nii.gz"

    def fail() -> None:
        with atomic_path(target) as path:
            path.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(target.parent.iterdir()) == []


def test_atomic_path_keeps_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    write_json(target, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(target, {"a": float("nan")})
    assert target.read_text() == '{\n "a": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.skipif(sys.platform != "linux", reason="file-size limits are set with Linux's RLIMIT_FSIZE")
def test_a_full_disk_is_one_sentence_and_no_file(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np\n"
        "from medunet.data.volume import write_image\n"
        "from medunet.data.grid import Grid\n"
        "from medunet.errors import ResourceError\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "array = np.random.default_rng(0).normal(size=(40, 40, 40)).astype('f4')\n"
        "try: write_image(sys.argv[1], array, Grid.from_spacing((40, 40, 40)))\n"
        "except ResourceError as error: print(error); sys.exit(7)\n"
    )
    limit = 20_000
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.nii.gz")],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 7, done.stderr
    assert "x.nii.gz: cannot be written, the disk is full" in done.stdout
    assert list(tmp_path.iterdir()) == []
