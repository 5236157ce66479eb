"""From DICOM series with SEG or RTSTRUCT to an index, a bundle, training, and results as DICOM again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from monai.data import MetaTensor

from medunet import verbs
from medunet.data.datalist import read_datalist
from medunet.data.dicom.codes import generic_code
from medunet.data.dicom.labels import label_map
from medunet.data.dicom.objects import Algorithm, Segment
from medunet.data.dicom.results import write_result
from medunet.data.dicom.volumes import find_series, to_planes
from medunet.data.index import Index, read_index
from medunet.data.phantom import make_phantom
from medunet.data.transforms import LoadVolumed
from medunet.data.volume import read_label, read_volume, write_label
from medunet.errors import DatasetError, GeometryError, InputError
from medunet.inference.inputs import find_cases
from medunet.inference.saving import SaveLabeld, require_writable
from medunet.planning import Budget
from tests.dicom_phantom import make_series
from tests.test_dicom_geometry import edit
from tests.test_dicom_labels import write_seg

RealData = Callable[[str], Path]
NAMES = ("Liver", "GTV_1")


def phantom(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels (planes, rows, columns) with two classes, unlike any mirror image of themselves."""
    image, label = make_phantom(seed, (24, 20, 12), (5.0, 5.0, 8.0))
    planes = label.array[0].transpose(2, 1, 0).astype(np.int16)
    return image.array[0].transpose(2, 1, 0).astype(np.int16), np.minimum(planes, 2)


def write_case(
    folder: Path,
    patient: str,
    seed: int,
    output_format: str = "rtstruct",
    names: tuple[str, ...] = NAMES,
    **header: object,
) -> np.ndarray:
    """``folder/image`` and ``folder/mask``; the labels (x, y, z)."""
    image, label = phantom(seed)
    make_series(folder / "image", image, (2.5, 1.2, 1.0), PatientID=patient, **header)  # type: ignore[arg-type]
    series = find_series(folder / "image")
    assert series.layout.grid is not None
    segments = [Segment(n + 1, name, generic_code(name)) for n, name in enumerate(names)]
    labels = label.transpose(2, 1, 0)
    (folder / "mask").mkdir()
    write_result(
        folder / "mask" / "label.dcm",
        labels,
        series.layout.grid,
        series,
        segments,
        Algorithm("x", "1", "0"),
        output_format,
    )
    for report in (folder / "mask").glob("*_report.dcm"):
        report.unlink()
    return labels


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four patients, two of them with RTSTRUCT and two with SEG, names of structures spelt in several ways."""
    root = tmp_path_factory.mktemp("tree")
    spellings = [("Liver", "GTV_1"), ("liver", "gtv-1"), ("LIVER", "GTV1"), ("Liver", "GTV_1")]
    for number, names in enumerate(spellings):
        kind = "dicom-seg" if number % 2 else "rtstruct"
        write_case(root / f"p{number}" / "CT", f"patient {number}", number, kind, names)
    return root


def test_a_tree_of_images_and_masks(tree: Path) -> None:
    index = read_index(tree)
    assert index.layout == "DICOM"
    assert index.channels == ("CT",)
    assert index.labels == {"background": 0, "GTV_1": 1, "Liver": 2}
    assert [case.id for case in index.training] == ["p0_CT", "p1_CT", "p2_CT", "p3_CT"]
    assert [case.patient for case in index.training] == [f"patient {n}" for n in range(4)]
    assert index.training[1].label == "p1/CT/mask/label.dcm#on=../image&gtv-1=1&liver=2"
    assert not index.findings
    assert Index.from_json(json.loads(json.dumps(index.as_json()))) == index


def test_labels_lie_on_the_image_voxel_for_voxel(tree: Path) -> None:
    index = verbs.index(tree)
    for number, case in enumerate(index.training):
        images, label = index.paths(case)
        assert label is not None
        image, got = read_volume(images[0]), read_label(label)
        expected = phantom(number)[1].transpose(2, 1, 0)
        assert got.grid == image.grid
        assert np.array_equal(got.array[0], np.choose(expected, [0, 2, 1]))


def test_a_result_refers_to_the_series_whose_folder_has_a_semicolon(tmp_path: Path) -> None:
    """The folder ``A;B`` is one source and not the channels ``A`` and ``B``."""
    array = np.zeros((3, 6, 5), np.int16)
    for name in ("A", "A;B"):
        make_series(tmp_path / name, array)
    item = LoadVolumed()({"image": str(tmp_path / "A;B")})
    (tmp_path / "models").mkdir()
    (tmp_path / "configs").mkdir()
    for file in ("models/model.pt", "configs/inference.yaml"):
        (tmp_path / file).touch()
    (tmp_path / "configs/metadata.json").write_text('{"plan": {}}')
    save = SaveLabeld(
        str(tmp_path / "out"), {"background": 0, "Liver": 1}, output_format="dicom-seg", bundle_root=str(tmp_path)
    )
    save({**item, "pred": MetaTensor(np.ones((1, 5, 6, 3), np.uint8))})
    seg = pydicom.dcmread(tmp_path / "out" / "A;B_seg.dcm")
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == find_series(tmp_path / "A;B").uid


@pytest.mark.parametrize("line", ["A;B/scan.nii", "A;B"])
def test_a_line_that_is_one_path_is_one_file(tmp_path: Path, line: str) -> None:
    make_series(tmp_path / "A;B", np.zeros((3, 6, 5), np.int16))
    (tmp_path / "A;B" / "scan.nii").touch()
    (tmp_path / "list.txt").write_text(f"{line}\n")
    (tmp_path / "list.csv").write_text(f"image,label\n{line},l.nii\n")
    (case,) = find_cases([f"@{tmp_path / 'list.txt'}"])
    assert case.images == (str(tmp_path / line),)
    assert read_datalist(tmp_path / "list.csv")[0][0].images == (line,)


def test_a_path_with_a_semicolon_cannot_be_one_of_several(tmp_path: Path) -> None:
    for name in ("A;B", "A", "B"):
        make_series(tmp_path / name, np.zeros((3, 6, 5), np.int16))
    (tmp_path / "list.txt").write_text("A;B;A\n")
    words = "';' stands between the channels of a case and the path A;B has one; rename it"
    with pytest.raises(InputError, match=words):
        find_cases([f"@{tmp_path / 'list.txt'}"], channels=("a", "b"))
    (tmp_path / "list.csv").write_text("image,label\nA;B;A,l.nii\n")
    with pytest.raises(InputError, match=words):
        read_index(tmp_path / "list.csv")


def test_a_datalist_names_series_objects_and_structures(tree: Path) -> None:
    uid = find_series(tree / "p1/CT/image").uid
    (tree / "list.csv").write_text(
        "image,label,roi\n"
        "p0/CT/image,p0/CT/mask/label.dcm,GTV\n"
        f"{uid},p1/CT/mask,gtv\n"
        "p2/CT/image,p2/CT/mask/label.dcm,GTV=1\n"
    )
    index = read_index(tree / "list.csv")
    (tree / "list.csv").unlink()
    assert index.labels == {"background": 0, "GTV": 1}
    assert [case.id for case in index.training] == [uid, "p0_CT", "p2_CT"]
    assert {case.patient for case in index.training} == {"patient 0", "patient 1", "patient 2"}


@pytest.mark.parametrize(
    "rois", [("Liver=1;GTV=2", "Liver_Tumour=2;Liver=1"), ("Liver_Tumour=2;Liver=1", "GTV=2;liver=1")]
)
def test_classes_of_the_column_roi_do_not_depend_on_the_order(tmp_path: Path, rois: tuple[str, str]) -> None:
    """A name that another one begins with is a class of its own."""
    for number, roi in enumerate(rois):
        names = tuple(entry.partition("=")[0] for entry in roi.split(";"))
        write_case(tmp_path / f"p{number}", f"p{number}", number, names=names)
    rows = [f"p{number}/image,p{number}/mask/label.dcm,{roi}" for number, roi in enumerate(rois)]
    text = "\n".join(["image,label,roi", *rows])
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DatasetError, match="have the value 2; give each class its own value"):
        read_index(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text(text.replace("GTV=2", "GTV=3"))
    assert read_index(tmp_path / "list.csv").labels == {"background": 0, "Liver": 1, "Liver_Tumour": 2, "GTV": 3}


def test_one_structure_is_not_two_classes(tmp_path: Path) -> None:
    write_case(tmp_path / "p0", "p0", 0, names=("Liver_Tumour", "x"))
    content = {"labels": {"liver": 1, "liver_tumour": 2}, "training": [{"image": "p0/image", "label": "p0/mask"}]}
    (tmp_path / "list.json").write_text(json.dumps(content))
    with pytest.raises(
        DatasetError, match="'liver' and 'liver_tumour' are both taken from its structure 'Liver_Tumour'"
    ):
        verbs.index(tmp_path / "list.json")


def test_splits_of_a_list_are_checked_by_patient_id(tmp_path: Path) -> None:
    for number in range(2):
        write_case(tmp_path / f"p{number}", "one", number)
    list_of = "image,label,split\np0/image,p0/mask,{}\np1/image,p1/mask,{}\n".format
    (tmp_path / "list.csv").write_text(list_of("train", "test"))
    (finding,) = read_index(tmp_path / "list.csv").findings
    assert finding.message == "p0: patient one is in the test set too; split by patient"
    (tmp_path / "list.csv").write_text(list_of(0, 1))
    with pytest.raises(DatasetError, match="patient one is in folds 0 and 1; give its scans one fold"):
        read_index(tmp_path / "list.csv")


@pytest.mark.parametrize(
    ("visits", "patients"),
    [(("2019-01-01", "2020-02-02", "2020-02-02"), "abb"), (("first visit", "follow-up", "later"), "abc")],
)
def test_folders_of_visits_are_no_kinds_of_image(tmp_path: Path, visits: tuple[str, ...], patients: str) -> None:
    for number, (visit, patient) in enumerate(zip(visits, patients, strict=True)):
        write_case(tmp_path / f"{patient}{number}" / visit, patient, number)
    index = read_index(tmp_path)
    assert index.channels == ("CT",)
    assert "".join(case.patient for case in index.training) == patients


def test_declared_labels_are_looked_up_by_their_aliases(tree: Path) -> None:
    rows = [{"image": f"p{n}/CT/image", "label": f"p{n}/CT/mask/label.dcm"} for n in range(4)]
    path = tree / "list.json"
    path.write_text(json.dumps({"labels": {"gtv": 7}, "training": rows, "channels": ["CT"]}))
    index = read_index(path)
    path.unlink()
    assert index.labels == {"background": 0, "gtv": 7}
    assert [str(c.label).split("#")[1] for c in index.training] == [
        "on=../image&GTV_1=7", "on=../image&gtv-1=7", "on=../image&GTV1=7", "on=../image&GTV_1=7",
    ]  # fmt: skip


def test_a_structure_that_only_begins_as_its_class_is_told(tmp_path: Path) -> None:
    write_case(tmp_path / "p0", "p0", 0, names=("Liver", "GTV_Mass"))
    write_case(tmp_path / "p1", "p1", 1, names=("liver", "gtv 1"))
    rows = [{"image": f"p{n}/image", "label": f"p{n}/mask/label.dcm"} for n in range(2)]
    content = {"labels": {"Liver": 1, "GTV": 2}, "training": rows, "channels": ["CT"]}
    (tmp_path / "list.json").write_text(json.dumps(content))
    (finding,) = read_index(tmp_path / "list.json").findings
    assert not finding.fatal
    rows[1]["roi"] = "Kidney"
    (tmp_path / "other.json").write_text(json.dumps(content))
    assert "has no structure 'Kidney', it has" in read_index(tmp_path / "other.json").findings[1].message
    rows[1]["roi"] = "gtv"
    content["labels"] = {"Liver": 1}
    (tmp_path / "other.json").write_text(json.dumps(content))
    assert "'gtv' of column roi is none of the classes Liver; name one" in str(
        read_index(tmp_path / "other.json").findings
    )
    assert finding.message == (
        f"p0: class 'GTV' is taken from structure 'GTV_Mass' of {tmp_path / 'p0/mask/label.dcm'}, whose name goes on; "
        f"name another in column roi if it is not meant"
    )


def test_a_tree_of_which_no_case_can_be_used_says_why(tmp_path: Path) -> None:
    for number in range(5):
        write_case(tmp_path / f"p{number}", f"p{number}", number)
        for file in (tmp_path / f"p{number}" / "image").iterdir():
            edit(file, FrameOfReferenceUID="1.2.3")
    words = r"no case of 5 label objects can be used: p0/mask: .* no series of .*; p2/mask: .*; and 2"
    with pytest.raises(DatasetError, match=words):
        read_index(tmp_path)


def test_structures_with_numbers_are_classes_of_their_own(tmp_path: Path) -> None:
    for number, names in enumerate([("L1", "L2"), ("l_1", "L 2"), ("L01", "L2")]):
        write_case(tmp_path / f"p{number}", f"p{number}", number, names=names)
    index = read_index(tmp_path)
    assert index.labels == {"background": 0, "L1": 1, "L2": 2}
    assert not index.findings
    for case in index.training:
        label = index.paths(case)[1]
        assert label is not None
        assert np.unique(read_label(label).array).tolist() == [0, 1, 2]


@pytest.mark.parametrize("names", [("GTV", "GTV 2"), ("GTV", "gtv")])
def test_a_second_structure_of_a_name_is_told(tmp_path: Path, names: tuple[str, ...]) -> None:
    write_case(tmp_path / "p0", "p0", 0, names=names)
    for number in (1, 2, 3, 4):
        write_case(tmp_path / f"p{number}", f"p{number}", number, names=("GTV_1", "x"))
    told = [finding.message for finding in read_index(tmp_path).findings if "not used" in finding.message]
    assert len(told) == 1
    assert names[1] in told[0]


def test_a_missing_structure_is_told(tree: Path) -> None:
    path = tree / "spleen.json"
    path.write_text(
        json.dumps({"labels": {"Spleen": 1}, "training": [{"image": "p0/CT/image", "label": "p0/CT/mask"}]})
    )
    with pytest.raises(
        DatasetError, match=r"p0_CT: .*has no structure 'Spleen', it has Liver, GTV_1; add it, or remove"
    ):
        verbs.index(path)
    path.unlink()


def test_several_series_are_channels(tmp_path: Path) -> None:
    frame = {"FrameOfReferenceUID": "1.2.3.4", "StudyInstanceUID": "1.2.3.5"}
    for number in range(2):
        write_case(tmp_path / f"p{number}", f"p{number}", number, **frame)
        second = phantom(number)[0] * 2
        (tmp_path / f"p{number}/image").rename(tmp_path / f"p{number}/T1")
        (tmp_path / f"p{number}/image").mkdir()
        (tmp_path / f"p{number}/T1").rename(tmp_path / f"p{number}/image/T1")
        make_series(tmp_path / f"p{number}/image/T2", second, (2.5, 1.2, 1.0), PatientID=f"p{number}", **frame)  # type: ignore[arg-type]
    index = read_index(tmp_path)
    assert index.channels == ("T1", "T2")
    assert index.training[0].images == ("p0/image/T1", "p0/image/T2")
    assert not verbs.index(tmp_path).findings
    cases = find_cases([tmp_path], ("T1", "T2"))
    assert [case.images for case in cases] == [
        tuple(str(tmp_path / f"p{n}/image/{kind}") for kind in ("T1", "T2")) for n in range(2)
    ]
    with pytest.raises(InputError, match="0 series are called FLAIR"):
        find_cases([tmp_path], ("T1", "FLAIR"))


def test_channels_in_one_folder_are_never_mixed_up(tmp_path: Path) -> None:
    """Labels are drawn on T1 here and on T2 there, which changes the order of channels; some have no names at all."""
    for number, (first, second) in enumerate([("T1", "T2"), ("T1", "T2"), ("T2", "T1"), ("T1", "T1")]):
        frame = {"FrameOfReferenceUID": f"1.2.3.{number}", "StudyInstanceUID": "1.2.3.5"}
        patient = f"p{number}"
        write_case(tmp_path / patient, patient, number, modality="MR", SeriesDescription=first, **frame)
        other = {"PatientID": patient, "SeriesDescription": second, **frame}
        make_series(tmp_path / "x", phantom(number)[0], modality="MR", **other)  # type: ignore[arg-type]
        for file in (tmp_path / "x").iterdir():
            file.rename(tmp_path / patient / "image" / f"x{file.name}")
    index = read_index(tmp_path)
    assert index.channels == ("T1", "T2")
    assert [find_series(tmp_path / case.images[0]).description for case in index.training] == ["T1", "T1"]
    told = " ".join(finding.message for finding in index.findings)
    assert "most patients have T1+T2; give a datalist to train on T2+T1" in told
    assert "cannot tell the channels MR T1, MR T1 apart" in told


def test_a_label_of_another_frame_of_reference_is_told(tmp_path: Path) -> None:
    for number in range(2):
        write_case(tmp_path / f"p{number}", f"p{number}", number)
    for file in (tmp_path / "p1/image").iterdir():
        edit(file, FrameOfReferenceUID="1.2.3")
    with pytest.raises(DatasetError, match=r"no series of its frame of reference .* is there; add the images"):
        verbs.index(tmp_path)
    assert len(verbs.index(tmp_path, "skip").training) == 1


def test_a_refused_series_is_told_and_gaps_may_be_allowed(tmp_path: Path) -> None:
    for number in range(2):
        write_case(tmp_path / f"p{number}", f"p{number}", number)
    (tmp_path / "p0/image/IM0005.dcm").unlink()
    with pytest.raises(DatasetError, match=r"p0: .*is refused: 1 slice missing"):
        verbs.index(tmp_path)
    index = verbs.index(tmp_path, allow_gaps=True)
    assert index.training[0].images == ("p0/image#allow_gaps=1",)
    assert str(index.training[0].label).startswith("p0/mask/label.dcm#on=../image%23allow_gaps%3D1&")
    assert "p0: 1 slice missing in 1 gap" in index.findings[0].message
    assert index.findings[0].message.endswith("interpolated")


def test_a_label_object_needs_a_dicom_image(tmp_path: Path) -> None:
    write_case(tmp_path / "p0", "p0", 0)
    volume = read_volume(tmp_path / "p0/image")
    write_label(tmp_path / "image.nii.gz", volume.array[0], volume.grid)
    (tmp_path / "list.csv").write_text("image,label\nimage.nii.gz,p0/mask/label.dcm\n")
    with pytest.raises(
        DatasetError, match=r"is a DICOM label object and the image image.nii.gz is not; give its series"
    ):
        verbs.index(tmp_path / "list.csv")


def test_dicom_images_with_nifti_labels(tmp_path: Path) -> None:
    labels = write_case(tmp_path / "p0", "p0", 0)
    write_label(tmp_path / "label.nii.gz", labels, read_volume(tmp_path / "p0/image").grid)
    (tmp_path / "list.csv").write_text("image,label\np0/image,label.nii.gz\n")
    index = verbs.index(tmp_path / "list.csv")
    assert index.training[0].patient == "p0"
    assert len(index.labels) == 3


@pytest.fixture(scope="module")
def bundle(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dicom") / "bundle"
    small = {"base_channels": 4, "max_levels": 2, "steps_per_epoch": 3}
    verbs.plan(tree, folder, Budget(epochs=1), small)
    verbs.train(folder, 0, {"quiet": True, "device::name": "cpu"})
    return folder


def test_plan_and_train_straight_from_dicom(bundle: Path) -> None:
    plan = json.loads((bundle / "configs/metadata.json").read_text())["plan"]
    assert plan["codes"]["Liver"]["type"] == ["10200004", "SCT", "Liver"]
    assert plan["normalization"][0]["scheme"] == "ct"
    scores = json.loads((bundle / "eval/fold_0/scores.json").read_text())
    assert scores["cases"][0]["geometry"]["verdict"] == "accepted"
    assert "DICOM geometry" in (bundle / "eval/fold_0/report.html").read_text()


def predict(bundle: Path, source: Path, output: Path, **overrides: object) -> list[object]:
    values = {"device::name": "cpu", **{key.replace("__", "::"): value for key, value in overrides.items()}}
    return list(verbs.predict(bundle, [source], output, values, force=True))


def test_a_held_out_series_becomes_seg_report_and_rtstruct(bundle: Path, tree: Path, tmp_path: Path) -> None:
    source = tree / "p2/CT/image"
    kinds = [{}, {"save__output_format": "dicom-seg"}, {"save__output_format": "rtstruct"}]
    results = [predict(bundle, source, tmp_path, **kind)[0] for kind in kinds]
    assert [r.output for r in results] == ["image.nii.gz", "image_seg.dcm", "image_rtstruct.dcm"]  # type: ignore[attr-defined]
    assert all(r.state == "done" for r in results)  # type: ignore[attr-defined]
    assert not results[1].warnings  # type: ignore[attr-defined]
    nifti, series = read_label(tmp_path / "image.nii.gz"), find_series(source)
    assert set(np.unique(nifti.array)) == {0, 1, 2}
    for name in ("image_seg.dcm", "image_rtstruct.dcm"):
        assert series.layout.grid is not None
        got = label_map(tmp_path / name, series.layout.grid, series.frame_of_reference, {"GTV_1": 1, "Liver": 2})
        assert np.array_equal(got.array, nifti.array[0])
    headers = [pydicom.dcmread(tmp_path / f"image_{kind}.dcm") for kind in ("seg", "rtstruct", "report")]
    image = pydicom.dcmread(next(source.iterdir()))
    assert {h.StudyInstanceUID for h in headers} == {image.StudyInstanceUID}
    assert {h.PatientID for h in headers} == {"patient 2"}
    assert len({h.SOPInstanceUID for h in headers} | {h.SeriesInstanceUID for h in headers}) == 6
    seg = hd.seg.segread(tmp_path / "image_seg.dcm")
    assert {s.segment_label for s in (seg.get_segment_description(n) for n in seg.segment_numbers)} == {
        "GTV_1",
        "Liver",
    }
    verdict = json.loads((tmp_path / "image_geometry.json").read_text())
    assert verdict["verdict"] == "accepted"
    status = json.loads((tmp_path / "status.json").read_text())
    assert {case["output"] for case in status["cases"]} >= {"image_rtstruct.dcm"}
    assert predict(bundle, source, tmp_path, save__output_format="rtstruct")[0].state == "already done"  # type: ignore[attr-defined]


def test_results_on_a_tilted_series_lie_on_its_own_images(bundle: Path, tmp_path: Path) -> None:
    tilted = (1.0, 0.0, 0.0, 0.0, np.cos(0.3), np.sin(0.3))
    make_series(tmp_path / "tilted", phantom(9)[0], (2.5, 1.2, 1.0), tilted, tilt=np.degrees(0.3))
    (result,) = predict(bundle, tmp_path / "tilted", tmp_path / "out", save__output_format="dicom-seg")
    assert result.state == "done"  # type: ignore[attr-defined]
    assert result.geometry["verdict"] == "repaired"  # type: ignore[attr-defined, index]
    seg = hd.seg.segread(tmp_path / "out/tilted_seg.dcm")
    sources = {str(pydicom.dcmread(f).SOPInstanceUID) for f in (tmp_path / "tilted").iterdir()}
    assert {str(uid) for _, _, uid in seg.get_source_image_uids()} == sources
    refused = predict(bundle, tmp_path / "tilted", tmp_path / "out", save__output_format="rtstruct")[0]
    assert refused.state == "refused"  # type: ignore[attr-defined]
    assert "is not axial" in refused.message  # type: ignore[attr-defined]


def test_what_cannot_be_written_as_dicom_is_refused_before_it_is_computed(
    bundle: Path, tree: Path, tmp_path: Path
) -> None:
    volume = read_volume(tree / "p0/CT/image")
    write_label(tmp_path / "scan.nii.gz", volume.array[0], volume.grid)
    (result,) = predict(bundle, tmp_path / "scan.nii.gz", tmp_path / "out", save__output_format="dicom-seg")
    assert "is not DICOM, so dicom-seg has nothing to refer to; write nifti" in result.message  # type: ignore[attr-defined]


def test_another_modality_is_refused(bundle: Path, tmp_path: Path) -> None:
    make_series(tmp_path / "mr", phantom(0)[0], (2.5, 1.2, 1.0), modality="MR")
    (result,) = verbs.predict(bundle, [tmp_path / "mr"], tmp_path / "out", {"device::name": "cpu"})
    assert result.state == "refused"
    assert "is MR, the model's channel CT is CT" in result.message


def test_stacks_that_share_a_folder_have_names_of_their_own(tmp_path: Path) -> None:
    for number in (1, 2):
        make_series(tmp_path / "a", phantom(0)[0][: 4 * number], SeriesNumber=number)
        for file in (tmp_path / "a").glob("IM*"):
            file.rename(tmp_path / "a" / f"{number}_{file.name}")
    depths = {case.output: read_volume(case.images[0]).grid.shape[2] for case in find_cases([tmp_path / "a"])}
    assert depths == {"series_1.nii.gz": 4, "series_2.nii.gz": 8}


def test_an_input_of_one_part_is_that_part_alone(tmp_path: Path) -> None:
    image, _ = phantom(0)
    series = {"SeriesInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2.4", "modality": "MR"}
    for echo in (1, 2):
        make_series(tmp_path / "x" / str(echo), image + echo, EchoNumbers=echo, **series)  # type: ignore[arg-type]
    cases = find_cases([f"{tmp_path / 'x'}#part=echo 2"], ["MR"])
    assert [np.array_equal(read_volume(case.images[0]).array[0].T, image + 2) for case in cases] == [True]


def test_an_input_may_allow_its_gaps(tmp_path: Path) -> None:
    make_series(tmp_path / "x", phantom(0)[0], positions=np.delete(np.arange(13), 5))
    (case,) = find_cases([f"{tmp_path / 'x'}#allow_gaps=1"], ["CT"])
    assert read_volume(case.images[0]).grid.shape[2] == 13


def test_contours_on_uneven_images_fill_the_slices_that_these_become(tmp_path: Path) -> None:
    """Images 4 mm and 7 mm apart are resampled to 4 mm, where some slices have no contour of their own."""
    make_series(tmp_path / "image", np.zeros((6, 20, 16)), positions=np.array([0, 4, 8, 15, 22, 29.0]))
    series = find_series(tmp_path / "image")
    grid = series.layout.grid
    assert grid is not None
    assert grid.shape[2] == 8
    labels = np.zeros(grid.shape, np.uint8)
    labels[2:9, 3:12] = 1
    labels[4:7, 5:9, 3:6] = 2
    segments = [Segment(value, name, generic_code(name)) for value, name in ((1, "a"), (2, "b"))]
    write_result(tmp_path / "rt.dcm", labels, grid, series, segments, Algorithm("x", "1", "0"), "rtstruct")
    found = read_label(f"{tmp_path}/rt.dcm#on=image&a=1&b=2").array[0]
    assert np.array_equal(found > 0, labels > 0), "every slice between the first and the last contour"
    assert np.array_equal(to_planes(found, grid, series), to_planes(labels, grid, series))


def test_results_are_written_where_cosines_were_rounded(tmp_path: Path) -> None:
    """To three decimals, from slice to slice otherwise: reading makes unit vectors of them."""
    turned = (0.9397, 0.342, 0.0, -0.342, 0.9397, 0.0)
    files = make_series(tmp_path / "image", np.zeros((4, 300, 300)), (2.5, 1.0, 1.0), turned)
    for number, file in enumerate(files):
        edit(file, ImageOrientationPatient=[0.94, 0.342 + number % 2 * 1e-3, 0, -0.342, 0.94, 0])
    series = find_series(tmp_path / "image")
    grid = series.layout.grid
    assert grid is not None
    labels = np.zeros(grid.shape, np.uint8)
    labels[250:, 260:, 1:] = 1
    for kind in ("dicom-seg", "rtstruct"):
        require_writable(str(tmp_path / "image"), kind)
        segments = [Segment(1, "a", generic_code("a"))]
        write_result(tmp_path / f"{kind}.dcm", labels, grid, series, segments, Algorithm("x", "1", "0"), kind)
        assert np.array_equal(read_label(f"{tmp_path}/{kind}.dcm#on=image&a=1").array[0], labels)


def test_images_that_share_a_uid_cannot_be_referred_to(tmp_path: Path) -> None:
    make_series(tmp_path / "x", phantom(0)[0], SOPInstanceUID="1.2.3")
    with pytest.raises(GeometryError, match="has 12 images and 1 SOPInstanceUIDs"):
        require_writable(str(tmp_path / "x"), "dicom-seg")


def test_a_series_spread_over_folders_is_one_case(tmp_path: Path) -> None:
    image, _ = phantom(0)
    for file in make_series(tmp_path / "disc" / "a", image)[5:]:
        (tmp_path / "disc" / "b").mkdir(exist_ok=True)
        file.rename(tmp_path / "disc" / "b" / file.name)
    make_series(tmp_path / "disc" / "a" / "other", image[:3])
    cases = {case.images[0] for case in find_cases([tmp_path / "disc"], ["CT"])}
    assert sorted(len(read_volume(source).array[0, 0, 0]) for source in cases) == [3, len(image)]


def test_an_index_names_all_folders_of_a_spread_series(tmp_path: Path) -> None:
    write_case(tmp_path / "p0", "patient 0", 0)
    (tmp_path / "p0" / "image" / "A").mkdir()
    for file in sorted((tmp_path / "p0" / "image").glob("*.dcm"))[:5]:
        file.rename(tmp_path / "p0" / "image" / "A" / file.name)
    (case,) = read_index(tmp_path).training
    assert read_volume(tmp_path / case.images[0]).grid.shape[2] == 12


def test_sarcoma_is_indexed_from_dicom_and_rtstruct(real_data: RealData) -> None:
    index = read_index(real_data("sarcoma_dicom"))
    assert len(index.training) == 12
    assert index.channels == ("MR_T1",)
    assert len(index.labels) == 2
    case = index.training[0]
    assert case.label == f"{case.patient}/MR_T1/mask/RS.dcm#on=../image&GTV_Mass_MR_T1=1"


def test_the_threshold_of_fractional_segments_stands_in_the_list(tmp_path: Path) -> None:
    make_series(tmp_path / "image", phantom(0)[0], (2.5, 1.2, 1.0), PatientID="p0")
    images = [pydicom.dcmread(file) for file in sorted((tmp_path / "image").iterdir())]
    shares = np.zeros((len(images), 20, 24), np.float32)
    shares[2:8, 4:10, 3:9] = 0.3
    shares[3:6, 5:8, 4:7] = 0.9
    write_seg(tmp_path / "seg.dcm", images, shares, "FRACTIONAL", ["Tumour"])
    write_seg(tmp_path / "faint.dcm", images, np.minimum(shares, 0.3), "FRACTIONAL", ["Tumour"])
    for threshold, count, file in (("", 27, "seg"), ("0.2", 216, "seg"), ("0.2", 216, "faint")):
        (tmp_path / "list.csv").write_text(f"image,label,roi,threshold\nimage,{file}.dcm,Tumour,{threshold}\n")
        index = verbs.index(tmp_path / "list.csv")
        label = index.paths(index.training[0])[1]
        assert label is not None
        assert int(read_label(label).array.sum()) == count
    with pytest.raises(InputError, match="threshold is 'half'; give a number"):
        read_label(f"{tmp_path}/seg.dcm#on=image&threshold=half&Tumour=1")


def test_predictions_are_scored_against_label_objects(bundle: Path, tree: Path, tmp_path: Path) -> None:
    for number in (0, 3):
        predict(bundle, tree / f"p{number}/CT/image", tmp_path / f"out/p{number}")
    for references in (tree, tmp_path / "index.json"):
        if references.suffix:
            references.write_text(json.dumps(read_index(tree).as_json()))
        content = verbs.evaluate(tmp_path / "out/p3", references, tmp_path / "scores.json")
        assert [case["id"] for case in content["cases"]] == ["p3_CT"]
        assert set(content["classes"]) == {"GTV_1", "Liver"}
        assert content["cases"][0]["geometry"]["verdict"] == "accepted"
    assert "cannot be shown" not in verbs.report(tmp_path / "scores.json").read_text()
