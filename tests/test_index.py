"""Layouts, folds, and the one pass over the voxels."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medunet import verbs
from medunet.data.atomic import write_json
from medunet.data.examine import examine
from medunet.data.grid import Grid
from medunet.data.index import Case, Index, read_index
from medunet.data.phantom import make_phantom
from medunet.data.volume import write_image, write_label
from medunet.errors import DatasetError
from medunet.planning import fingerprint
from medunet.training.cases import FoldCases

names = st.text("abcdefghij0123456789_-", min_size=1, max_size=12)


def make_index(patients: list[str]) -> Index:
    cases = tuple(Case(f"c{n}", (f"{n}.nii",), f"l{n}.nii", patient) for n, patient in enumerate(patients))
    return Index("/x", "t", "MSD", ("CT",), {"background": 0, "a": 1}, cases)


@given(st.lists(names, min_size=2, max_size=40))
def test_a_patient_never_stands_on_both_sides(patients: list[str]) -> None:
    index = make_index(patients)
    for fold in range(5):
        training, validation = index.split(fold)
        assert training
        assert validation
        if len(set(patients)) > 1:
            assert not {c.patient for c in training} & {c.patient for c in validation}
            assert len(training) + len(validation) == len(patients)


@given(st.lists(names, min_size=1, max_size=20, unique=True), st.lists(names, min_size=1, max_size=20))
def test_old_cases_keep_their_fold_when_cases_are_added(old: list[str], new: list[str]) -> None:
    before, after = make_index(old), make_index([*old, *new])
    assert [before.fold_of(c) for c in before.training] == [after.fold_of(c) for c in after.training[: len(old)]]


@given(st.lists(names, min_size=1, max_size=20, unique=True))
def test_filled_folds_score_every_patient_once(patients: list[str]) -> None:
    index = make_index(patients)
    if len(index.filled_folds()) > 1:
        validated = [c.id for fold in index.filled_folds() for c in index.split(fold)[1]]
        assert sorted(validated) == sorted(c.id for c in index.training)


def test_a_datalist_may_name_the_fold() -> None:
    case = Case("a", ("a.nii",), "l.nii", "p", split="3")
    assert make_index(["p"]).fold_of(case) == 3


def test_json_round_trip() -> None:
    index = make_index(["a", "b"])
    assert Index.from_json(json.loads(json.dumps(index.as_json()))) == index
    assert replace(index, root="/elsewhere").digest() == index.digest()
    with pytest.raises(DatasetError, match="the index cannot be read"):
        Index.from_json({"root": 1})


def write_pair(image: Path, label: Path, seed: int) -> None:
    volume, classes = make_phantom(seed, (10, 9, 8), (5.0, 5.0, 9.0))
    write_image(image, volume.array[0], volume.grid)
    write_label(label, classes.array[0], classes.grid)


def nnunet(root: Path) -> None:
    for n in range(3):
        write_pair(root / "imagesTr" / f"case_{n}_0000.nii.gz", root / "labelsTr" / f"case_{n}.nii.gz", n)
        shutil.copy(root / "imagesTr" / f"case_{n}_0000.nii.gz", root / "imagesTr" / f"case_{n}_0001.nii.gz")
    write_pair(root / "imagesTs" / "t_0_0000.nii.gz", root / "labelsTs" / "t_0.nii.gz", 9)
    names = {"0": "T1", "1": "T2"}
    labels = {"background": 0, "spine": 1, "liver": 2, "kidneys": 3, "lesion": 4}
    (root / "dataset.json").write_text(json.dumps({"channel_names": names, "labels": labels, "numTraining": 3}))


def bids(root: Path) -> None:
    for n, (subject, session) in enumerate([("01", "a"), ("01", "b"), ("02", "a")]):
        stem = f"sub-{subject}_ses-{session}"
        folder = f"sub-{subject}/ses-{session}/anat"
        write_pair(root / folder / f"{stem}_T1w.nii.gz", root / "derivatives/m" / folder / f"{stem}_dseg.nii.gz", n)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "B", "License": "CC0"}))


def paired(root: Path) -> None:
    for n in range(3):
        write_pair(root / "images" / f"c{n}.nii.gz", root / "masks" / f"c{n}_mask.nii.gz", n)


def case_folders(root: Path) -> None:
    for n in range(3):
        write_pair(root / f"P{n}" / "MR_image.nii.gz", root / f"P{n}" / "MR_mask.nii.gz", n)


def datalist_csv(root: Path) -> None:
    rows = []
    for n in range(3):
        write_pair(root / "x" / f"i{n}.nii.gz", root / "y" / f"l{n}.nii.gz", n)
        split = "test" if n == 2 else ""
        rows.append(
            {"image": f"x/i{n}.nii.gz", "label": f"y/l{n}.nii.gz", "patient": "same", "weight": n + 1, "split": split}
        )
    with (root / "datalist.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def datalist_json(root: Path) -> None:
    for n in range(3):
        write_pair(root / f"i{n}.nii.gz", root / f"l{n}.nii.gz", n)
    rows = [{"image": [f"i{n}.nii.gz"], "label": f"l{n}.nii.gz", "id": f"case{n}"} for n in range(3)]
    (root / "datalist.json").write_text(json.dumps({"name": "J", "training": rows}))


@pytest.mark.parametrize(
    ("build", "layout", "ids", "channels", "test"),
    [
        (nnunet, "nnU-Net", ["case_0", "case_1", "case_2"], ("T1", "T2"), 1),
        (bids, "BIDS", ["sub-01_ses-a_T1w", "sub-01_ses-b_T1w", "sub-02_ses-a_T1w"], ("T1w",), 0),
        (paired, "paired folders", ["c0", "c1", "c2"], ("image",), 0),
        (case_folders, "case folders", ["P0_MR", "P1_MR", "P2_MR"], ("MR",), 0),
        (datalist_csv, "datalist", ["i0", "i1"], ("image",), 1),
        (datalist_json, "datalist", ["case0", "case1", "case2"], ("image",), 0),
    ],
)
def test_layouts(
    tmp_path: Path, build: Callable[[Path], None], layout: str, ids: list[str], channels: tuple[str, ...], test: int
) -> None:
    tmp_path = tmp_path / "data"
    tmp_path.mkdir()
    build(tmp_path)
    index = read_index(tmp_path)
    assert (index.layout, [c.id for c in index.training]) == (layout, ids)
    assert len(index.test) == test
    checked, measured = examine(index)
    assert checked.channels == channels
    assert len(measured) == len(ids)
    assert sorted(checked.labels.values())[0] == 0
    assert len(checked.labels) >= 4


def test_patients_come_from_bids_subjects_and_csv_columns(tmp_path: Path) -> None:
    bids(tmp_path / "b")
    assert [c.patient for c in read_index(tmp_path / "b").training] == ["sub-01", "sub-01", "sub-02"]
    (tmp_path / "c").mkdir()
    datalist_csv(tmp_path / "c")
    index = read_index(tmp_path / "c")
    assert {c.patient for c in index.training} == {"same"}
    assert [c.weight for c in index.training] == [1.0, 2.0]


def test_a_label_without_image_and_an_image_without_label(tmp_path: Path) -> None:
    paired(tmp_path)
    (tmp_path / "images" / "c0.nii.gz").unlink()
    (tmp_path / "masks" / "c1_mask.nii.gz").unlink()
    with pytest.raises(DatasetError) as caught:
        verbs.index(tmp_path)
    assert "c0: label masks/c0_mask.nii.gz has no image" in str(caught.value)
    assert "c1: has no label map" in str(caught.value)
    kept = verbs.index(tmp_path, "skip")
    assert [c.id for c in kept.training] == ["c2"]
    assert len(kept.findings) == 2


def test_a_dataset_of_one_patient_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As when all PatientIDs were replaced by one word."""
    rows = []
    for n in range(2):
        write_pair(tmp_path / f"i{n}.nii.gz", tmp_path / f"l{n}.nii.gz", n)
        rows.append(f"i{n}.nii.gz,l{n}.nii.gz,ANON")
    (tmp_path / "list.csv").write_text("\n".join(["image,label,patient", *rows]))
    index = verbs.index(tmp_path / "list.csv")
    words = "all 2 cases are of one patient, 'ANON', so that every fold is validated on its own training cases"
    assert [f.message.startswith(words) for f in index.findings] == [True]
    assert verbs.index(tmp_path / "list.csv").findings == examine(index)[0].findings, "told once"
    write_json(tmp_path / "eval/index.json", index.as_json())
    assert len(FoldCases(str(tmp_path), str(tmp_path), 0, "validation")) == 2
    assert "all 2 cases are of one patient: they are trained on and scored alike" in caplog.text


def test_case_folders_tell_missing_partners(tmp_path: Path) -> None:
    case_folders(tmp_path)
    (tmp_path / "P0" / "MR_image.nii.gz").unlink()
    (tmp_path / "P1" / "MR_mask.nii.gz").unlink()
    with pytest.raises(DatasetError) as caught:
        verbs.index(tmp_path)
    assert "P0_MR: label P0/MR_mask.nii.gz has no image" in str(caught.value)
    assert "P1_MR: has no label map" in str(caught.value)


def test_pictures_with_rgb_and_an_empty_label(tmp_path: Path) -> None:
    for n in range(2):
        pixels = np.random.default_rng(n).integers(0, 255, (20, 30, 3), dtype=np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "labels").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{n}.png")
        mask = np.zeros((20, 30), np.uint8)
        mask[3:9, 4:8] = 255 * n
        Image.fromarray(mask).save(tmp_path / "labels" / f"{n}.png")
    checked, measured = examine(read_index(tmp_path))
    assert checked.channels == ("red", "green", "blue")
    assert checked.labels == {"background": 0, "label_255": 255}
    assert measured[0].shape == (30, 20, 1)
    assert [f.kind for f in checked.findings] == ["pixel size", "empty label", "patients"]
    assert fingerprint(checked, measured).pictures


def test_a_single_slice_of_a_volume_file_is_no_picture(tmp_path: Path) -> None:
    """Its axes are a patient's."""
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    sagittal = Grid((16, 20, 1), np.array([[0, 0, 1.0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]))
    write_image(tmp_path / "images" / "a.nii.gz", np.random.default_rng(0).random((16, 20, 1), np.float32), sagittal)
    write_label(tmp_path / "labels" / "a.nii.gz", np.ones((16, 20, 1), np.uint8), sagittal)
    found = fingerprint(*examine(read_index(tmp_path)))
    assert (found.pictures, found.shapes) == (False, ((1, 16, 20),))


def test_nothing_recognised_lists_the_layouts(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no cases were recognised; known layouts are .*MSD.*nnU-Net.*BIDS"):
        read_index(tmp_path)
    (tmp_path / "dataset.json").write_text("{broken")
    with pytest.raises(DatasetError, match=r"dataset\.json: is not valid JSON"):
        read_index(tmp_path)


def test_real_folders(real_data: Callable[[str], Path]) -> None:
    sarcoma = verbs.index(real_data("sarcoma_nifti"), "skip")
    assert sarcoma.layout == "case folders"
    assert sarcoma.channels == ("MR_T1",)
    assert len({c.patient for c in sarcoma.training}) == len(sarcoma.training) == 12
    assert sum("is not used, most patients have MR_T1" in f.message for f in sarcoma.findings) == 5
    membranes = verbs.index(real_data("em_membranes"))
    assert membranes.labels == {"background": 0, "label_255": 255}
    assert len(membranes.training) == 20


MEMORY = """
import sys
from dataclasses import replace
from medunet.data.index import read_index, Case
from medunet.data.examine import examine
from medunet.planning import fingerprint
from pathlib import Path
index, count = read_index(Path(sys.argv[1])), int(sys.argv[2])
fingerprint(*examine(replace(index, training=index.training[:count])))
print(int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in Linux's units")
def test_fingerprinting_does_not_grow_with_the_number_of_cases(tmp_path: Path) -> None:
    """400 cases take less than 20 MB more than 40."""
    entries = []
    for n in range(400):
        rng = np.random.default_rng(n)
        image = rng.integers(0, 1000, (35, 50, 35), dtype=np.int16)
        label = np.zeros((35, 50, 35), np.uint8)
        label[10:20, 10:30, 10:20] = 1
        from medunet.data.grid import Grid

        grid = Grid.from_spacing((35, 50, 35))
        write_image(tmp_path / "i" / f"{n:03d}.nii", image, grid)
        write_label(tmp_path / "l" / f"{n:03d}.nii", label, grid)
        entries.append({"image": f"i/{n:03d}.nii", "label": f"l/{n:03d}.nii"})
    facts = {"name": "m", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "a"}}
    (tmp_path / "dataset.json").write_text(json.dumps({**facts, "training": entries}))
    peaks = [
        int(
            subprocess.run(
                [sys.executable, "-c", MEMORY, str(tmp_path), str(n)], capture_output=True, check=True
            ).stdout
        )
        for n in (40, 400)
    ]
    assert peaks[1] - peaks[0] < 20_000_000
