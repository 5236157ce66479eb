"""Every direction x patient position x kind of object: written by medunet, read by others at the same places."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from medunet.errors import GeometryError
from tests import dicom_round_trip as trip


def test_the_phantom_has_no_symmetry() -> None:
    """No flip and no exchange of axes gives the same labels back, so that no mistake can cancel out."""
    labels = np.zeros((20, 20, 20), np.int16)
    labels[2:18, :, 7:12] = trip.phantom((16, 20, 5))
    images = [np.flip(labels.transpose(axes), flips) for axes in _permutations() for flips in _flips()]
    assert sum(np.array_equal(_cropped(labels), _cropped(image)) for image in images) == 1


def _permutations() -> list[tuple[int, ...]]:
    return [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]


def _flips() -> list[tuple[int, ...]]:
    return [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]


def _cropped(labels: np.ndarray) -> np.ndarray:
    box = [slice(index.min(), index.max() + 1) for index in np.nonzero(labels)]
    return labels[tuple(box)]


@pytest.mark.parametrize("position", trip.POSITIONS)
@pytest.mark.parametrize("stack", trip.STACKS)
def test_objects_are_read_where_they_were_written(tmp_path: Path, stack: str, position: str) -> None:
    series = trip.make(tmp_path / "images", stack, position)
    assert series.verdict.state == ("repaired" if stack == "tilted" else "accepted")
    for kind in ("BINARY", "LABELMAP"):
        expected = trip.write(tmp_path / f"{kind}.dcm", series, kind)
        assert min(len(points) for points in expected.values()) > 20
        assert trip.equal(trip.with_highdicom(tmp_path / f"{kind}.dcm", series), expected)
        assert trip.equal(trip.with_frames(tmp_path / f"{kind}.dcm", series), expected)
    if stack != "tilted":  # an ITK image cannot be a sheared stack
        assert trip.equal(trip.with_simpleitk(tmp_path / "BINARY.dcm", series), expected)
    if stack == "axial":
        expected = trip.write(tmp_path / "rtstruct.dcm", series, "RTSTRUCT")
        assert trip.equal(trip.with_images(tmp_path / "rtstruct.dcm", series), expected)
    else:
        with pytest.raises(GeometryError, match="axial"):
            trip.write(tmp_path / "rtstruct.dcm", series, "RTSTRUCT")


@pytest.mark.skipif(shutil.which("plastimatch") is None, reason="plastimatch is not installed")
@pytest.mark.parametrize("position", ["HFS", "FFDL"])
def test_plastimatch_reads_the_structures(tmp_path: Path, position: str) -> None:
    series = trip.make(tmp_path / "images", "axial", position)
    expected = trip.write(tmp_path / "rtstruct.dcm", series, "RTSTRUCT")
    assert trip.equal(trip.with_plastimatch("plastimatch")(tmp_path / "rtstruct.dcm", series), expected)
