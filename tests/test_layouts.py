"""Dataset layouts as they are found in the wild, from empty files: recognising reads no voxels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from medunet.data.index import Index, read_index
from medunet.errors import DatasetError


def tree(root: Path, files: str, description: Mapping[str, Any] | None = None) -> Path:
    """Empty files, and a dataset.json."""
    for name in files.split():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    if description is not None:
        (root / "dataset.json").write_text(json.dumps(description))
    return root


def datalist(root: Path, text: str, name: str = "list.csv") -> Path:
    (root / name).write_text(text, encoding="utf-8")
    return root / name


def messages(index: Index) -> list[str]:
    return [f.message for f in index.findings]


def test_msd_with_a_file_per_channel_and_files_of_macos(tmp_path: Path) -> None:
    entries = [
        {"image": "./imagesTr/._a.nii.gz", "label": "./labelsTr/._a.nii.gz"},
        {"image": ["imagesTr/a_t1.nii.gz", "imagesTr/a_t2.nii.gz"], "label": "./labelsTr/a.nii.gz"},
    ]
    index = read_index(
        tree(tmp_path, "imagesTs/t.nii.gz", {"training": entries, "test": ["imagesTs/t.nii.gz", "gone.nii"]})
    )
    assert index.layout == "MSD"
    assert [c.images for c in index.training] == [("imagesTr/a_t1.nii.gz", "imagesTr/a_t2.nii.gz")]
    assert [(c.id, c.label) for c in index.test] == [("t", None)]


@pytest.mark.parametrize("labels", [{"0": "background", "10": "b", "2": "a"}, {"background": 0, "b": 10, "a": 2}])
def test_labels_in_either_direction(tmp_path: Path, labels: dict[str, Any]) -> None:
    content = {
        "training": [{"image": "a.nii", "label": "b.nii"}],
        "labels": labels,
        "licence": "CC0",
        "reference": "us",
    }
    index = read_index(tree(tmp_path, "a.nii", content))
    assert list(index.labels.items()) == [("background", 0), ("a", 2), ("b", 10)]
    assert (index.licence, index.reference) == ("CC0", "us")


def test_channels_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = {str(number): f"c{number}" for number in reversed(range(11))}
    index = read_index(tree(tmp_path, "imagesTr/a_0000.nii.gz labelsTr/a.nii.gz", {"channel_names": names}))
    assert index.channels == tuple(f"c{number}" for number in range(11))


def test_nnunet_of_the_first_version_is_not_taken_for_msd(tmp_path: Path) -> None:
    content = {"training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}], "modality": {"0": "CT"}}
    index = read_index(tree(tmp_path, "imagesTr/a_0000.nii.gz imagesTr/a_0001.nii.gz labelsTr/a.nii.gz", content))
    assert (index.layout, index.training[0].images) == ("nnU-Net", ("imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"))


def test_nnunet_without_description(tmp_path: Path) -> None:
    index = read_index(tree(tmp_path, "imagesTr/a_0000.nrrd labelsTr/a.nrrd labelsTr/b.nrrd imagesTs/c_0000.nrrd"))
    assert (index.layout, index.channels, index.labels) == ("nnU-Net", (), {})
    assert [c.id for c in index.test] == ["c"]
    assert messages(index) == ["b: label labelsTr/b.nrrd has no image; add it or remove the label"]


def test_bids_takes_anatomical_scans_and_prefers_segmentations(tmp_path: Path) -> None:
    index = read_index(
        tree(
            tmp_path,
            "sub-1/anat/sub-1_T1w.nii.gz sub-1/func/sub-1_bold.nii.gz sub-2/anat/sub-2_T1w.nii.gz "
            "derivatives/a/sub-1/anat/sub-1_desc-brain_mask.nii.gz derivatives/b/sub-1/anat/sub-1_dseg.nii.gz "
            "derivatives/b/sub-3/anat/sub-3_dseg.nii.gz",
        )
    )
    assert index.channels == ("T1w",)
    assert [(c.id, c.label) for c in index.training] == [("sub-1_T1w", "derivatives/b/sub-1/anat/sub-1_dseg.nii.gz")]
    assert [(f.case, f.kind, f.fatal) for f in index.findings] == [
        ("sub-2", "missing label", True),
        ("sub-3", "missing image", True),
    ]


def test_bids_contrasts_that_share_a_label_are_channels(tmp_path: Path) -> None:
    names = " ".join(
        f"sub-{n}/anat/sub-{n}_T1w.nii sub-{n}/anat/sub-{n}_FLAIR.nii derivatives/m/sub-{n}/anat/sub-{n}_dseg.nii"
        for n in (1, 2)
    )
    one = "sub-3/anat/sub-3_T1w.nii.gz derivatives/m/sub-3/anat/sub-3_dseg.nii.gz"
    index = read_index(tree(tmp_path, f"{names} {one}"))
    assert index.channels == ("FLAIR", "T1w")
    assert [(c.id, c.patient) for c in index.training] == [("sub-1", "sub-1"), ("sub-2", "sub-2")]
    assert messages(index) == [
        "sub-3_T1w: is not used, most patients have FLAIR+T1w; give a datalist to train on T1w",
    ]


def test_paired_folders_refuse_two_labels_of_an_image(tmp_path: Path) -> None:
    index = read_index(
        tree(tmp_path, "Images/a_image.png Images/x/b.png masks/a_mask.png masks/a_seg.png masks/x/b.png")
    )
    assert [(c.id, c.label) for c in index.training] == [("a", "masks/a_mask.png"), ("x_b", "masks/x/b.png")]
    assert messages(index) == ["a: has labels masks/a_mask.png and masks/a_seg.png in masks; keep one"]


@pytest.mark.parametrize(
    ("files", "patients"),
    [
        ("P1/1 P1/2 P2/a/1", ["P1", "P1", "P2"]),
        ("train/P1/1 train/P1/2 val/P2/1", ["P1", "P1", "P2"]),
        ("train/1 train/2 val/3", ["train_1", "train_2", "val_3"]),
        ("png/1 png/2", ["png_1", "png_2"]),
        ("1 2", ["1", "2"]),
    ],
)
def test_folders_of_pictures_are_patients(tmp_path: Path, files: str, patients: list[str]) -> None:
    index = read_index(
        tree(tmp_path, " ".join(f"{side}/{f}.png" for f in files.split() for side in ("images", "labels")))
    )
    assert [case.patient for case in index.training] == patients


def test_a_folder_of_instances_is_trained_on_as_cells_that_stay_apart(tmp_path: Path) -> None:
    index = read_index(tree(tmp_path, "images/a.png instances/a.png"))
    assert [(c.images, c.label) for c in index.training] == [(("images/a.png",), "instances/a.png#instances=apart")]
    assert index.labels == {"background": 0, "cell": 1}


def test_instances_and_grey_are_declared_in_a_description(tmp_path: Path) -> None:
    content = {"channels": ["grey"], "instances": "border", "labels": {"background": 0, "nucleus": 1}}
    index = read_index(tree(tmp_path, "images/a.png masks/a.png instances/a.png", content))
    assert index.training[0].images == ("images/a.png#channels=grey",)
    assert index.training[0].label == "instances/a.png#instances=border"
    assert (index.channels, index.labels) == (("grey",), {"background": 0, "nucleus": 1, "border": 2})


def test_instances_of_a_datalist(tmp_path: Path) -> None:
    rows = "image,label\na.png#channels=grey,b.png#instances=border\n"
    index = read_index(datalist(tmp_path, rows))
    assert (index.channels, index.labels) == (("grey",), {"background": 0, "cell": 1, "border": 2})
    assert index.training[0].label == "b.png#instances=border"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("a.png,b.png#instances=apart\nc.png,d.png", "some labels have #instances= and others not"),
        ("a.png,b.png#instances=apart\nc.png,d.png#instances=border", "others not, or another"),
    ],
)
def test_instances_that_contradict_each_other(tmp_path: Path, rows: str, words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        read_index(datalist(tmp_path, f"image,label\n{rows}\n"))


def test_instances_of_an_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="instances 'thin' is not known; give true, apart or border"):
        read_index(tree(tmp_path, "images/a.png masks/a.png", {"instances": "thin"}))


def test_case_folders_with_a_file_per_channel(tmp_path: Path) -> None:
    parts = ("flair", "t1", "seg")
    index = read_index(tree(tmp_path, " ".join(f"B{n}/B{n}_{part}.nii.gz" for n in range(3) for part in parts)))
    assert index.channels == ("flair", "t1")
    assert next((c.id, len(c.images), c.label) for c in index.training) == ("B0", 2, "B0/B0_seg.nii.gz")


def test_case_folders_where_files_are_called_after_the_case(tmp_path: Path) -> None:
    index = read_index(tree(tmp_path, " ".join(f"P{n}/scan{n}.nii P{n}/scan{n}_mask.nii" for n in range(3))))
    assert [(c.id, c.patient) for c in index.training] == [(f"P{n}_scan{n}", f"P{n}") for n in range(3)]
    assert (index.channels, index.findings) == ((), ())


def test_several_kinds_of_image_per_patient(tmp_path: Path) -> None:
    pairs = (
        "P1/MR_image.nii P1/MR_mask.nii P2/MR_image.nii P2/MR_mask.nii P1/CT_image.nii P1/CT_mask.nii P2/CT_mask.nii"
    )
    index = read_index(tree(tmp_path, pairs))
    assert index.channels == ("MR",)
    assert [c.id for c in index.training] == ["P1_MR", "P2_MR"]
    assert not any(f.fatal for f in index.findings)
    assert [f.case for f in index.findings] == ["P1_CT", "P2_CT"]


@pytest.mark.parametrize(
    ("split", "fold", "test"),
    [("", None, 0), ("Train", None, 0), ("3", "3", 0), ("3.0", "3", 0), (" Test ", "test", 1)],
)
def test_splits_of_a_datalist(tmp_path: Path, split: str, fold: str | None, test: int) -> None:
    rows = f"image,label,split\na.nii,b.nii,\nc.nii,d.nii,{split}\n"
    index = read_index(datalist(tmp_path, rows))
    assert len(index.test) == test
    assert [c.split for c in (*index.training, *index.test) if c.id == "c"] == [fold]


def test_channels_of_a_datalist_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    columns = [f"image_{number}" for number in (10, 2, 1, 0)]
    rows = f"{','.join(columns)},label\n{','.join(f'{c}.nii' for c in columns)},l.nii\n"
    assert [p[6:-4] for p in read_index(datalist(tmp_path, rows)).training[0].images] == ["0", "1", "2", "10"]
    joined = read_index(datalist(tmp_path, "image,label\na.nii; b.nii,l.nii\n", "joined.csv"))
    assert joined.training[0].images == ("a.nii", "b.nii")


def test_a_patient_in_the_test_set_too_is_told(tmp_path: Path) -> None:
    index = read_index(datalist(tmp_path, "image,label,split,patient\na.nii,b.nii,,p\nc.nii,d.nii,test,p\n"))
    assert messages(index) == ["a: patient p is in the test set too; split by patient"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "image,label,split\na,b,val\n", "split 'val' of a is not known; give train, test or a fold number"),
        ("a.csv", "image,label,split,patient\na,b,0,p\nc,d,1,p\n", "patient p is in folds 0 and 1"),
        ("a.csv", "image,label,split,patient\na,b,0,p\nc,d,,p\n", "patient p is in folds (none given) and 0"),
        ("a.csv", "image;label\na;b\n", "row 1 has no column image"),
        ("a.csv", "image,label,weight\na,b,-1\n", "weight -1 of a is not positive"),
        ("a.csv", "image,label\nx/a.nii,b\ny/a.nii,c\n", "case id a occurs more than once"),
        ("a.json", "[1, 2]", "is not a datalist"),
        ("a.json", "[]", "has no training case"),
        ("a.json", "{", "is not valid JSON"),
        ("a.nii.gz", "", "is not a dataset; give a folder, or a datalist"),
        ("dataset.json", '{"training": [{"img": "x"}]}', "row 1 has no column image"),
        (
            "a.json",
            '{"labels": {"liver": 1, "tumour": 1}, "training": [{"image": "a.nii", "label": "b.nii"}]}',
            "'liver' and 'tumour' have the value 1; give each class its own value",
        ),
    ],
)
def test_datalists_that_are_refused(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(DatasetError) as caught:
        read_index(datalist(tmp_path, text, name))
    assert words in str(caught.value)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("image,label,patient\na,b,Müller\n".encode("latin-1"))
    with pytest.raises(DatasetError, match="is not UTF-8"):
        read_index(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"training": [{"img": "x"}]}, "an entry has no 'image'"),
        (
            {"training": [{"image": "a.nii"}], "labels": {"bg": 0, "whole": [1, 2]}},
            "regions_class_order has 0 values for 1 region (whole)",
        ),
    ],
)
def test_descriptions_that_are_refused(tmp_path: Path, content: dict[str, Any], words: str) -> None:
    with pytest.raises(DatasetError) as caught:
        read_index(tree(tmp_path, "a.nii", content))
    assert words in str(caught.value)


def test_a_missing_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="dataset is missing; give a folder"):
        read_index(str(tmp_path / "none"))
