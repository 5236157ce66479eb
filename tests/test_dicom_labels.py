"""Labels out of DICOM: structure sets and segmentations land on the voxels that they were drawn on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from matplotlib.path import Path as Outline
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

from medunet.data.dicom.labels import is_label_object, label_map, names_in
from medunet.data.dicom.rtstruct import match_roi, rasterize, read_structures
from medunet.data.dicom.segmentation import place, read_segments
from medunet.data.grid import Grid
from medunet.data.volume import read_volume
from medunet.errors import GeometryError, InputError

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
CT = "1.2.840.10008.5.1.4.1.1.2"
SIZE = (11, 13, 7)
"""Columns, rows, slices: a frame of 143 bits does not end on a byte."""


# --- structure sets: real ones -----------------------------------------------------------------------------------


def _sarcoma() -> list[str]:
    root = Path(os.environ.get("MEDUNET_TEST_DATA", "/nowhere")) / "sarcoma_dicom"
    return sorted(f"{p.parent.name}/{p.name}" for p in root.glob("*/*") if (p / "mask").is_dir()) or ["none/here"]


@pytest.mark.parametrize("series", _sarcoma())
def test_real_contours_make_the_reference_mask(series: str, real_data: Callable[[str], Path]) -> None:
    patient, kind = series.split("/")
    (path,) = (real_data("sarcoma_dicom") / series / "mask").iterdir()
    reference = read_volume(real_data("sarcoma_nifti") / patient / f"{kind}_mask.nii.gz")
    image = dcmread(next((path.parent.parent / "image").iterdir()), stop_before_pixels=True)
    structures = read_structures(path)
    assert structures.patient_id == patient
    assert structures.referenced_series == (image.SeriesInstanceUID,)
    assert names_in(path) == (f"GTV_Mass_{kind}",)
    done = label_map(path, reference.grid, image.FrameOfReferenceUID, {"GTV": 1})
    assert np.array_equal(done.array, reference.array[0])
    assert done.notes == (f"{path}: GTV is GTV_Mass_{kind}",)


# --- structure sets: painting ------------------------------------------------------------------------------------


def on_slice(points: Sequence[Sequence[float]], z: float = 0) -> np.ndarray:
    return np.column_stack([np.asarray(points, float), np.full(len(points), z)])


def box(low: float, high: float, z: float = 0) -> np.ndarray:
    return on_slice([(low, low), (high, low), (high, high), (low, high)], z)


FLAT = Grid.from_spacing((24, 20, 1))
point = st.tuples(*(st.floats(-5, high).map(lambda v: round(v, 4)) for high in (28, 25)))


@given(st.lists(st.lists(point, min_size=3, max_size=12), min_size=1, max_size=3))
@example([[(1, 1), (9, 1), (9, 9), (1, 9)]])
def test_painting_is_point_in_polygon(polygons: list[list[tuple[float, float]]]) -> None:
    mask = rasterize([on_slice(points) for points in polygons], FLAT).mask[:, :, 0]
    centres = np.argwhere(np.ones(mask.shape, bool)).astype(float)
    expected = np.zeros(len(centres), bool)
    near = np.zeros(len(centres), bool)
    for points in {tuple(p) for p in polygons}:
        expected ^= parity(np.array(points), centres)
        near |= distance_to_edges(np.array(points), centres) < 1e-5
    assert np.array_equal(mask.ravel()[~near], expected[~near])


def parity(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Even-odd by hand for one point at a time; simple polygons are checked against matplotlib below."""
    inside = np.zeros(len(centres), bool)
    for a, b in zip(points, np.roll(points, -1, 0), strict=True):
        spans = (a[1] > centres[:, 1]) != (b[1] > centres[:, 1])
        with np.errstate(all="ignore"):
            crossing = a[0] + (centres[:, 1] - a[1]) * (b[0] - a[0]) / (b[1] - a[1])
        inside ^= spans & (centres[:, 0] < crossing)
    return inside


def distance_to_edges(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    best = np.full(len(centres), np.inf)
    for a, b in zip(points, np.roll(points, -1, 0), strict=True):
        along = b - a
        share = np.clip((centres - a) @ along / max(along @ along, 1e-300), 0, 1)
        best = np.minimum(best, np.linalg.norm(centres - a - share[:, None] * along, axis=1))
    return best


@given(st.lists(st.floats(2, 11), min_size=5, max_size=40), st.floats(-3, 28), st.floats(-3, 25))
def test_painting_a_star_agrees_with_matplotlib(radii: list[float], x: float, y: float) -> None:
    angles = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    points = np.column_stack([x + np.array(radii) * np.cos(angles), y + np.array(radii) * np.sin(angles)])
    mask = rasterize([on_slice(points)], FLAT).mask.ravel()
    centres = np.argwhere(np.ones(FLAT.shape[:2], bool)).astype(float)
    sure = distance_to_edges(points, centres) > 1e-5
    assert np.array_equal(mask[sure], Outline(points).contains_points(centres)[sure])


def test_holes_key_holes_and_islands() -> None:
    nested = rasterize([box(0.5, 15.5), box(2.5, 13.5), box(5.5, 10.5), box(7.5, 8.5)], FLAT).mask[:, :, 0]
    assert nested.sum() == 15**2 - 11**2 + 5**2 - 1
    assert not nested[8, 8]
    assert nested[6, 6]
    outer, inner = box(0.5, 15.5), box(2.5, 13.5)[::-1]
    key_hole = np.concatenate([outer, outer[:1], inner, inner[:1]])
    assert rasterize([key_hole], FLAT).mask.sum() == 15**2 - 11**2
    apart = rasterize([box(0.5, 3.5), box(5.5, 7.5)], FLAT).mask
    assert apart.sum() == 9 + 4


@pytest.mark.parametrize("turn", [np.eye(3), np.diag([-1, -1, 1]), np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]])])
def test_areas_that_share_an_edge_on_centres_neither_overlap_nor_leave_a_gap(turn: np.ndarray) -> None:
    affine = np.eye(4)
    affine[:3, :3] = turn * 0.7
    grid = Grid((20, 20, 1), affine)
    cut = [(3, 3), (12, 12)]
    halves = [[*cut, (3, 12)], [*cut, (12, 3)]]
    a, b = (rasterize([grid.to_world(on_slice(half))], grid).mask for half in halves)
    whole = rasterize([grid.to_world(box(3, 12))], grid).mask
    assert whole.sum() == 81
    assert not (a & b).any()
    assert np.array_equal(a | b, whole)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_slice_axis_is_the_one_normal_to_the_contours(axis: int) -> None:
    rng = np.random.default_rng(axis)
    basis, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = basis * (0.8, 1.3, 2.9), (-40, 7, 300)
    grid = Grid((14, 15, 16), affine)
    voxels = np.insert(box(2.5, 9.5, 0)[:, :2], axis, 5, axis=1)
    mask = np.zeros(grid.shape, bool)
    window = [slice(3, 10)] * 3
    window[axis] = slice(5, 6)
    mask[tuple(window)] = True
    assert np.array_equal(rasterize([grid.to_world(voxels)], grid).mask, mask)


def test_contours_outside_between_and_crowded_are_told() -> None:
    grid = Grid.from_spacing((20, 20, 5), (1, 1, 3))
    crowded = rasterize([box(2.5, 9.5, z) for z in np.arange(-6.0, 20)], grid, "GTV")
    assert crowded.outside == 5 + 6
    assert (crowded.mask.sum((0, 1)) == 49).all()
    assert "11 of 26 contours lie outside" in " ".join(crowded.notes)
    assert "contours are left out, another plane is nearer" in " ".join(crowded.notes)
    sparse = rasterize([box(2.5, 9.5, 1), box(2.5, 29.5, 10)], grid, "GTV")
    words = " ".join(sparse.notes)
    assert "0.33 slices from the slice" in words
    assert "2 slices between" in words
    assert "1 contours reach beyond" in words
    assert sparse.mask.any((0, 1)).tolist() == [True, False, False, True, False]
    twice = rasterize([box(2.5, 9.5), box(2.5, 9.5)], grid, "GTV")
    assert twice.mask.sum() == 49
    assert "stored twice" in twice.notes[0]
    assert rasterize([box(50, 60)], grid).outside == 1
    assert "no contour" in rasterize([], grid).notes[0]


def test_contours_that_leave_their_plane_are_refused() -> None:
    points = box(2.5, 9.5)
    points[1, 2] = 1.5
    with pytest.raises(GeometryError, match=r"GTV: contour 2 strays 0.75 mm .* parallel.* 0.3 mm are allowed; give"):
        rasterize([box(1, 3), points], Grid.from_spacing((20, 20, 5), (1, 1, 3)), "GTV")


@pytest.mark.parametrize(
    ("wanted", "names", "found"),
    [
        ("GTV", ["GTV", "gtv", "GTV_1"], "GTV"),
        ("gtv", ["GTV", "GTV_Mass"], "GTV"),
        ("GTV", ["Lung", "gtv_1"], "gtv_1"),
        ("GTV", ["GTV-1", "GTV_Mass"], "GTV-1"),
        ("GTV", ["GTV_Mass_CT", "PTV"], "GTV_Mass_CT"),
        ("gtv 01", ["GTV-1", "GTV-2"], "GTV-1"),
        ("GTV_1", ["GTV"], "GTV"),
        ("GTV_2", ["GTV", "GTV_1"], None),
        ("Bladder", ["BladderWall"], None),
        ("Lung L", ["lung_l", "lung_r"], "lung_l"),
        ("GTV", ["GTVp"], None),
        ("Kidney", ["Kidney_R_PRV"], None),
        ("Kidney_R", ["Kidney_R_PRV05"], None),
        ("Lung", ["Lung_L"], None),
        ("Lung", ["Lung rt"], None),
        ("Lungs", ["Lungs-GTV"], None),
        ("PTV", ["PTV_Opt", "PTV ring 2"], None),
        ("Cord", ["Cord_5mm", "cord 0.5 cm"], None),
        ("GTV", ["GTV_PRV", "GTV_Mass"], "GTV_Mass"),
    ],
)
def test_names_match_as_people_spell_them(wanted: str, names: list[str], found: str | None) -> None:
    assert match_roi(wanted, names) == found


@pytest.mark.parametrize("names", [["GTV_1", "GTV_2"], ["gtv_mass", "GTV edema"]])
def test_names_that_could_be_several_are_refused(names: list[str]) -> None:
    with pytest.raises(InputError, match=f"could be '{names[0]}', '{names[1]}'; give one"):
        match_roi("GTV", names)


# --- structure sets: files ---------------------------------------------------------------------------------------


def write_rtstruct(path: Path, rois: Sequence[tuple[str, str, Sequence[np.ndarray]]], frame: str = "1.2.3") -> Path:
    """A minimal structure set of (name, geometric type, contours in RAS mm)."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    dataset.SOPInstanceUID, dataset.PatientID = generate_uid(), "P1"
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, kind, contours) in enumerate(rois, 1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, frame
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for points in contours:
            item = Dataset()
            item.ContourGeometricType, item.NumberOfContourPoints = kind, len(points)
            item.ContourData = [f"{v:.6g}" for v in (np.asarray(points) * (-1, -1, 1)).ravel()]
            drawn.ContourSequence.append(item)
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.insert(0, drawn)
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_structures_without_area_are_set_aside(tmp_path: Path) -> None:
    path = write_rtstruct(
        tmp_path / "s.dcm",
        [
            ("GTV", "CLOSED_PLANAR", [box(2.5, 9.5), box(1, 2)[:2]]),
            ("ring", "CLOSEDPLANAR_XOR", [box(2.5, 9.5), box(4.5, 6.5)]),
            ("isocentre", "POINT", [box(1, 2)[:1]]),
            ("empty", "CLOSED_PLANAR", []),
            ("GTV", "CLOSED_PLANAR", []),
        ],
    )
    structures = read_structures(path)
    assert (structures.patient_id, structures.frame_of_reference) == ("P1", "1.2.3")
    assert names_in(path) == ("GTV", "ring")
    assert np.allclose(structures.contours("GTV")[0], box(2.5, 9.5))
    assert "set aside (1 POINT)" in structures.skipped["isocentre"]
    assert "no contour" in structures.skipped["empty"]
    done = label_map(path, FLAT, "1.2.3", {"GTV": 1, "ring": 300})
    assert (done.array == 300).sum() == 45
    assert (done.array == 1).sum() == 4
    assert "GTV: contours without area are set aside (1 CLOSED_PLANAR of fewer than 3 points)" in done.notes[0]
    assert "ring overwrites 45 voxels" in done.notes[1]
    with pytest.raises(InputError, match=r"s.dcm: has no region 'isocentre' \(contours .*1 POINT.*it has GTV, ring"):
        label_map(path, FLAT, "1.2.3", {"isocentre": 1})


def test_label_objects_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = write_rtstruct(
        tmp_path / "s.dcm",
        [
            ("GTV", "CLOSED_PLANAR", [box(2.5, 9.5)]),
            ("liver", "CLOSED_PLANAR", [box(2.5, 9.5)]),
            ("liver", "CLOSED_PLANAR", [box(3.5, 9.5)]),
            ("far", "CLOSED_PLANAR", [box(3.5, 9.5, 700)]),
        ],
    )
    assert label_map(path, FLAT, "1.2.3", {"GTV": 1}).array.sum() == 49
    for frame, error, classes, words in [
        ("1.2.4", GeometryError, {"GTV": 1}, "frame of reference 1.2.3, the series is in 1.2.4; give"),
        ("", GeometryError, {"GTV": 1}, r"the series is in \(none\)"),
        ("1.2.3", InputError, {"liver": 1}, "several ROIs with contours have this name"),
        ("1.2.3", InputError, {"spleen": 1}, "has no region 'spleen', it has GTV, liver, far"),
        ("1.2.3", InputError, {"GTV": 1, "gtv": 2}, "'GTV' and 'gtv' both mean 'GTV'"),
        ("1.2.3", InputError, {"GTV": 0}, "value of 1 to 65535"),
        ("1.2.3", InputError, {}, "value of 1 to 65535"),
        ("1.2.3", GeometryError, {"far": 1}, "no voxel of far lies on the grid"),
    ]:
        with pytest.raises(error, match=words):
            label_map(path, FLAT, frame, classes)
    with pytest.raises(InputError, match="threshold 0 is not a share"):
        label_map(path, FLAT, "1.2.3", {"GTV": 1}, threshold=0)


def test_files_of_another_kind_are_one_sentence(tmp_path: Path) -> None:
    other = tmp_path / "x.dcm"
    with pytest.raises(InputError, match="is not a file; give"):
        names_in(other)
    other.write_bytes(b"no DICOM at all" * 30)
    with pytest.raises(InputError, match=r"x.dcm: (is not a DICOM object|cannot be read as DICOM)"):
        names_in(other)
    image = source_images()[0][0]
    assert not is_label_object(image)
    image.save_as(other, enforce_file_format=True)
    for read in (names_in, read_structures, read_segments):
        with pytest.raises(InputError, match=r"x.dcm: is CT Image Storage, .*; give"):
            read(other)
    broken = dcmread(write_rtstruct(tmp_path / "b.dcm", [("GTV", "CLOSED_PLANAR", [box(1, 2)])]))
    assert is_label_object(broken)
    broken.ROIContourSequence[0].ContourSequence[0].ContourData = [1, 2, 3, 4]
    broken.save_as(tmp_path / "b.dcm")
    with pytest.raises(InputError, match=r"ROI 'GTV': contour 1: its data is not x, y, z triplets"):
        read_structures(tmp_path / "b.dcm")


# --- segmentations -----------------------------------------------------------------------------------------------


def source_images(size: tuple[int, ...] = SIZE) -> tuple[list[Dataset], Grid]:
    """An oblique CT series with unequal spacings, and its grid (columns, rows, slices)."""
    turn = np.linalg.qr(np.array([[1, 0.2, 0.1], [-0.15, 1, 0.3], [0.05, -0.25, 1]]))[0]
    turn *= np.sign(np.diag(turn))
    lps = np.eye(4)
    lps[:3, :3], lps[:3, 3] = turn * (0.7, 1.1, 2.5), (-31.5, 12.25, 140)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    images = []
    for k in range(size[2]):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID, image.SOPInstanceUID, image.Modality = CT, generate_uid(), "CT"
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
        image.PatientID, image.PatientName, image.PatientBirthDate, image.PatientSex = "P1", "A^B", "", "O"
        image.StudyID, image.StudyDate, image.StudyTime, image.AccessionNumber = "1", "", "", ""
        image.ReferringPhysicianName, image.InstanceNumber, image.PositionReferenceIndicator = "", k + 1, ""
        image.ImageOrientationPatient = [f"{v:.12f}" for v in turn[:, :2].T.ravel()]
        image.ImagePositionPatient = [f"{v:.10f}" for v in lps[:3] @ (0, 0, k, 1)]
        image.PixelSpacing, image.SliceThickness, image.SpacingBetweenSlices = [1.1, 0.7], 2.5, 2.5
        image.Rows, image.Columns, image.SamplesPerPixel, image.PixelRepresentation = size[1], size[0], 1, 0
        image.PhotometricInterpretation, image.BitsAllocated, image.BitsStored, image.HighBit = (
            "MONOCHROME2",
            16,
            16,
            15,
        )
        image.PixelData = bytes(2 * size[0] * size[1])
        images.append(image)
    return images, Grid(size, LPS @ lps)


def phantom(seed: int = 0, size: tuple[int, ...] = SIZE) -> np.ndarray:
    """Three overlapping irregular segments (x, y, z, 3) with empty slices and no symmetry."""
    rng = np.random.default_rng(seed)
    x, y, z = np.indices(size)
    masks = [
        (x / 4 + y / 7 + z / 3 < 3) & (z > 0),
        (x > 3) & (y < 8) & (z % 3 != 0) & (rng.random(size) < 0.8),
        (y > x) & (z == 2),
    ]
    return np.stack(masks, -1)


def describe(labels: Sequence[str]) -> list[object]:
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    return [
        SegmentDescription(n, label, codes.SCT.Tissue, codes.SCT.Organ, "MANUAL") for n, label in enumerate(labels, 1)
    ]


def write_seg(
    path: Path, images: Sequence[Dataset], pixels: object, kind: str, labels: Sequence[str], **more: object
) -> Path:
    """A DICOM SEG from pixels (slices, rows, columns[, segments]) or a highdicom Volume."""
    hd = pytest.importorskip("highdicom")
    seg = hd.seg.Segmentation(
        images, pixels, kind, describe(labels), generate_uid(), 9, generate_uid(), 1, "m", "m", "1", "1", **more
    )
    seg.save_as(path)
    return path


def slices_first(array: np.ndarray) -> np.ndarray:
    """(x, y, z, ...) -> (slices, rows, columns, ...)."""
    return np.ascontiguousarray(np.moveaxis(array, (2, 1, 0), (0, 1, 2)))


def shuffle_frames(path: Path, seed: int = 0) -> None:
    """Write the frames of a native SEG in another order."""
    dataset = dcmread(path)
    order = np.random.default_rng(seed).permutation(int(dataset.NumberOfFrames))
    pixels = dataset.pixel_array[order]
    flat = np.packbits(pixels.ravel(), bitorder="little") if dataset.BitsAllocated == 1 else pixels.ravel()
    dataset.PixelData = flat.tobytes() + b"\0" * (flat.nbytes % 2)
    dataset.PerFrameFunctionalGroupsSequence = [dataset.PerFrameFunctionalGroupsSequence[i] for i in order]
    dataset.save_as(path)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_segments_come_back_voxel_for_voxel(kind: str, shuffled: bool, tmp_path: Path) -> None:
    images, grid = source_images()
    masks = phantom()
    if kind == "LABELMAP":
        masks[..., 1] &= ~masks[..., 0]
        masks[..., 2] &= ~masks[..., :2].any(-1)
    pixels = slices_first(masks).astype(np.float32 if kind == "FRACTIONAL" else np.uint8)
    if kind == "FRACTIONAL":
        pixels = np.where(pixels > 0, 0.6, 0.4).astype(np.float32)
    path = write_seg(tmp_path / "s.dcm", images, pixels, kind, ["a", "b", "a"])
    if shuffled:
        shuffle_frames(path)
    segments = read_segments(path)
    assert segments.labels == {"a 1": 1, "b": 2, "a 3": 3}
    assert segments.kind == kind
    assert segments.frame_of_reference == images[0].FrameOfReferenceUID
    assert segments.referenced_series == (images[0].SeriesInstanceUID,)
    assert segments.patient_id == "P1"
    placed = place(segments, [3, 1, 2], grid)
    assert list(placed) == [3, 1, 2]
    for number, layer in placed.items():
        assert np.array_equal(layer.mask, masks[..., number - 1])
        assert (layer.outside, layer.notes) == (0, ())
    assert set(names_in(path)) == {n for n, i in segments.labels.items() if masks[..., i - 1].any()}


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("order", [(2, 1, 0), (2, 0, 1), (0, 1, 2), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(), (0,), (1, 2), (0, 1, 2)])
def test_other_directions_and_crops_are_exact(
    kind: str, order: tuple[int, ...], flips: tuple[int, ...], tmp_path: Path
) -> None:
    hd = pytest.importorskip("highdicom")
    images, grid = source_images()
    mask = phantom()[..., 0]
    affine = LPS @ grid.affine
    volume = hd.Volume(mask.astype(np.uint8), affine, "PATIENT", images[0].FrameOfReferenceUID)
    volume = volume[2:, :9, 1:].permute_spatial_axes(order)
    for axis in flips:
        volume = volume.flip_spatial(axis)
    path = write_seg(tmp_path / "s.dcm", images, volume, kind, ["a"])
    expected = np.zeros_like(mask)
    expected[2:, :9, 1:] = mask[2:, :9, 1:]
    (layer,) = place(read_segments(path), [1], grid).values()
    assert np.array_equal(layer.mask, expected)
    assert layer.notes == ()


def test_a_crop_of_the_grid_tells_what_is_left_out(tmp_path: Path) -> None:
    images, grid = source_images()
    mask = phantom()[..., 0]
    path = write_seg(tmp_path / "s.dcm", images, slices_first(mask).astype(np.uint8), "BINARY", ["a"])
    crop = np.array(grid.affine)
    crop[:3, 3] = grid.to_world(np.array([[2, 3, 3]]))[0]
    (layer,) = place(read_segments(path), [1], Grid((5, 4, 3), crop)).values()
    assert np.array_equal(layer.mask, mask[2:7, 3:7, 3:6])
    assert layer.outside == int(mask.any((0, 1))[[0, 1, 2, 6]].sum())
    assert f"{layer.outside} frames lie outside" in layer.notes[0]
    assert "reach beyond" in layer.notes[1]


@pytest.mark.parametrize("scale", [(2, 2, 2), (1, 1, 3), (0.5, 0.5, 1), (1, 1, 0.5), (1.3, 0.8, 0.6)])
def test_another_grid_takes_the_nearest_pixel_and_says_so(scale: tuple[float, ...], tmp_path: Path) -> None:
    images, grid = source_images()
    mask = phantom()[..., 0]
    path = write_seg(tmp_path / "s.dcm", images, slices_first(mask).astype(np.uint8), "BINARY", ["a"])
    affine = grid.affine @ np.diag([*scale, 1.0])
    affine[:3, 3] += grid.affine[:3, :3] @ (0.03, -0.04, 0.13)
    other = Grid((14, 15, 16), affine)
    (layer,) = place(read_segments(path), [1], other).values()
    index = np.rint(grid.to_voxel(other.to_world(np.argwhere(np.ones(other.shape))))).astype(int)
    inside = ((index >= 0) & (index < mask.shape)).all(1)
    expected = inside & mask[tuple(np.clip(index, 0, np.array(mask.shape) - 1).T)]
    assert np.array_equal(layer.mask.ravel(), expected)
    assert "is another; voxels take the nearest pixel" in layer.notes[0]


def test_slices_between_frames_are_filled(tmp_path: Path) -> None:
    images, grid = source_images()
    mask = np.ones(SIZE, bool)
    path = write_seg(tmp_path / "s.dcm", images, slices_first(mask).astype(np.uint8), "BINARY", ["a"])
    finer = Grid((11, 13, 19), grid.affine @ np.diag([1, 1, 1 / 3, 1]))
    (layer,) = place(read_segments(path), [1], finer).values()
    assert layer.mask.all()


def test_overlap_frames_and_thresholds_through_the_label_map(tmp_path: Path) -> None:
    images, grid = source_images()
    masks = phantom()
    pixels = slices_first(masks * np.array([0.9, 0.6, 0.3])).astype(np.float32)
    path = write_seg(tmp_path / "s.dcm", images, pixels, "FRACTIONAL", ["liver", "Tumour-1", "faint"])
    frame = images[0].FrameOfReferenceUID
    assert is_label_object(dcmread(path))
    assert names_in(path) == ("liver", "Tumour-1")
    done = label_map(path, grid, frame, {"liver": 4, "tumour": 2})
    expected = np.where(masks[..., 1], 2, np.where(masks[..., 0], 4, 0))
    assert np.array_equal(done.array, expected)
    assert done.notes == (
        f"{path}: tumour is Tumour-1",
        f"{path}: tumour overwrites {(masks[..., 0] & masks[..., 1]).sum()} voxels of earlier classes",
    )
    low = label_map(path, grid, frame, {"faint": 1}, threshold=0.25)
    assert np.array_equal(low.array, masks[..., 2])
    with pytest.raises(GeometryError, match="no voxel of faint lies on"):
        label_map(path, grid, frame, {"faint": 1})
    with pytest.raises(InputError, match="has no region 'spleen', it has liver, Tumour-1, faint"):
        label_map(path, grid, frame, {"spleen": 1})
    with pytest.raises(GeometryError, match=r"the series is in 1\.2\.3"):
        label_map(path, grid, "1.2.3", {"liver": 1})


@pytest.mark.parametrize("step", [None, 7.5])
def test_a_frame_on_a_plane_of_overlapping_slices_is_on_that_plane_alone(tmp_path: Path, step: float | None) -> None:
    """Slices may be thicker than they are apart; only a stated distance of frames says that one stands for several."""
    images, grid = source_images()
    for image in images:
        image.SliceThickness = 5.5
    pixels = np.zeros(grid.shape[::-1], np.uint8)
    pixels[3, 2:9, 1:8] = 1
    dataset = dcmread(write_seg(tmp_path / "s.dcm", images, pixels, "BINARY", ["a"]))
    assert dataset.NumberOfFrames == 1
    (measures,) = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    if step is None:
        measures.pop("SpacingBetweenSlices", None)
    else:
        measures.SpacingBetweenSlices = step
    dataset.save_as(tmp_path / "s.dcm")
    mask = place(read_segments(tmp_path / "s.dcm"), [1], grid)[1].mask
    assert np.flatnonzero(mask.any((0, 1))).tolist() == ([3] if step is None else [2, 3, 4])
    assert np.array_equal(mask[:, :, 3], pixels[3].T)


def test_frames_on_some_slices_say_nothing_of_those_between(tmp_path: Path) -> None:
    """Empty frames are left out, and slices may overlap."""
    images, grid = source_images()
    for image in images:
        image.SliceThickness = 5.5
    pixels = np.zeros(grid.shape[::-1], np.uint8)
    pixels[[0, 3], 2:9, 1:8] = 1
    dataset = dcmread(write_seg(tmp_path / "s.dcm", images, pixels, "BINARY", ["a"]))
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].pop("SpacingBetweenSlices", None)
    dataset.save_as(tmp_path / "s.dcm")
    assert np.array_equal(place(read_segments(tmp_path / "s.dcm"), [1], grid)[1].mask, pixels.transpose(2, 1, 0))


def test_a_distance_that_would_make_a_million_slices_is_a_slip(tmp_path: Path) -> None:
    images, grid = source_images()
    other = Grid(grid.shape, grid.affine @ np.diag([0.9, 1, 1, 1]))
    dataset = dcmread(
        write_seg(tmp_path / "s.dcm", images, slices_first(phantom()[..., 0]).astype(np.uint8), "BINARY", ["a"])
    )
    expected = place(read_segments(tmp_path / "s.dcm"), [1], other)[1].mask
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = 0.00001
    dataset.save_as(tmp_path / "s.dcm")
    assert np.array_equal(place(read_segments(tmp_path / "s.dcm"), [1], other)[1].mask, expected)


def test_segmentations_that_cannot_be_placed_are_one_sentence(tmp_path: Path) -> None:
    images, grid = source_images()
    path = write_seg(tmp_path / "s.dcm", images, slices_first(phantom()).astype(np.uint8), "BINARY", ["a", "b", "c"])
    far = Grid((3, 3, 3), grid.affine @ np.diag([0.9, 1, 1, 1]))
    uneven = dcmread(path)
    position = uneven.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence[0].ImagePositionPatient
    uneven.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence[0].ImagePositionPatient = [
        position[0], position[1], float(position[2]) + 0.9
    ]  # fmt: skip
    uneven.save_as(tmp_path / "uneven.dcm")
    with pytest.raises(GeometryError, match="not parallel and evenly spaced"):
        place(read_segments(tmp_path / "uneven.dcm"), [1], far)
    with pytest.raises(InputError, match=r"segments \[7\]: are not there; give some of"):
        place(read_segments(path), [7], grid)
    lost = dcmread(path)
    del lost.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence
    lost.save_as(tmp_path / "lost.dcm")
    with pytest.raises(InputError, match=r"lost.dcm: frame 1: has no ImagePositionPatient; give a SEG whose frames"):
        read_segments(tmp_path / "lost.dcm")
    bent = dcmread(path)
    del bent.SegmentSequence[1].SegmentNumber
    bent.save_as(tmp_path / "bent.dcm")
    with pytest.raises(InputError, match=r"bent.dcm: is not a whole segmentation \(.*SegmentNumber"):
        read_segments(tmp_path / "bent.dcm")
    short = dcmread(path)
    short.PixelData = short.PixelData[:20]
    short.save_as(tmp_path / "short.dcm")
    with pytest.raises(InputError, match=r"short\.dcm: .*cannot be decoded"):
        label_map(tmp_path / "short.dcm", grid, images[0].FrameOfReferenceUID, {"a": 1})


def test_run_length_encoded_segments_are_read(tmp_path: Path) -> None:
    images, grid = source_images()
    mask = phantom()[..., 0]
    path = write_seg(tmp_path / "s.dcm", images, slices_first(mask).astype(np.uint8), "LABELMAP", ["a"])
    dataset = dcmread(path)
    dataset.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    dataset.save_as(path)
    (layer,) = place(read_segments(path), [1], grid).values()
    assert np.array_equal(layer.mask, mask)
