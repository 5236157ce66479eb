"""The one pass over the voxels: each thing that can be wrong with a case, in words, and what is measured."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medunet.data.examine import examine
from medunet.data.grid import Grid
from medunet.data.index import Index, read_index
from medunet.data.volume import read_volume, write_image, write_label
from medunet.errors import DatasetError

CASE = "phantom_002"


@pytest.fixture
def dataset(phantom_dataset: Path, tmp_path: Path) -> Path:
    shutil.copytree(phantom_dataset, tmp_path / "data")
    return tmp_path / "data"


def image_of(root: Path, case: str = CASE) -> Path:
    return root / "imagesTr" / f"{case}.nii.gz"


def label_of(root: Path, case: str = CASE) -> Path:
    return root / "labelsTr" / f"{case}.nii.gz"


def label_of_another_shape(root: Path) -> None:
    write_label(
        label_of(root), np.zeros((24, 24, 17), np.uint8), Grid((24, 24, 17), read_volume(image_of(root)).grid.affine)
    )


def label_at_another_place(root: Path) -> None:
    volume = read_volume(label_of(root))
    affine = volume.grid.affine + np.array([[0, 0, 0, 3.0], [0] * 4, [0] * 4, [0] * 4])
    write_label(label_of(root), volume.array[0], Grid(volume.grid.shape, affine))


def truncated_image(root: Path) -> None:
    image_of(root).write_bytes(image_of(root).read_bytes()[:-300])


def missing_image(root: Path) -> None:
    image_of(root).unlink()


def undeclared_value(root: Path) -> None:
    volume = read_volume(label_of(root))
    write_label(label_of(root), np.where(volume.array[0] == 2, 9, volume.array[0]), volume.grid)


def nan_voxels(root: Path) -> None:
    volume = read_volume(image_of(root))
    array = volume.array.astype(np.float32)
    array[0, 3, 3, :4] = np.nan
    write_image(image_of(root), array, volume.grid)


def more_channels(root: Path) -> None:
    volume = read_volume(image_of(root))
    write_image(image_of(root), np.concatenate([volume.array] * 2), volume.grid)


def label_with_fractions(root: Path) -> None:
    volume = read_volume(label_of(root))
    write_image(label_of(root), volume.array[0] * 0.5, volume.grid)


def same_image_twice(root: Path) -> None:
    shutil.copy(image_of(root, "phantom_001"), image_of(root))
    shutil.copy(label_of(root, "phantom_001"), label_of(root))


def same_image_with_another_label(root: Path) -> None:
    same_image_twice(root)
    volume = read_volume(label_of(root))
    write_label(label_of(root), (volume.array[0] > 0).astype(np.uint8), volume.grid)


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (label_of_another_shape, "grid", "label grid (24, 24, 17) differs from image (24, 24, 16); resample the label"),
        (label_at_another_place, "grid", "resample the label or remove the case"),
        (truncated_image, "unreadable", "phantom_002.nii.gz: cannot be read, the file is truncated or corrupt"),
        (missing_image, "unreadable", "phantom_002.nii.gz: is missing"),
        (undeclared_value, "label value", "label value 9 is not declared (background=0, spine=1"),
        (nan_voxels, "not finite", "image has 4 NaN or infinite voxels"),
        (more_channels, "channels", "has 2 channels, the dataset 1 (CT); give one per channel"),
        (label_with_fractions, "unreadable", "label value 1.5 is not a whole number"),
        (same_image_twice, "duplicate", "has the same image as phantom_001, with the same label; remove one"),
        (same_image_with_another_label, "duplicate", "has the same image as phantom_001, with another label"),
    ],
)
def test_a_bad_case_stops_or_is_left_out(dataset: Path, spoil: Callable[[Path], None], kind: str, words: str) -> None:
    spoil(dataset)
    index = read_index(dataset)
    with pytest.raises(DatasetError) as caught:
        examine(index)
    assert "1 case cannot be used (medunet index --on-problem skip leaves them out):\n  phantom_002: " in str(
        caught.value
    )
    assert words in str(caught.value)
    kept, measured = examine(index, "skip")
    assert [c.id for c in kept.training] == [m.id for m in measured]
    assert CASE not in {m.id for m in measured}
    assert len(measured) == 5
    told = [(f.case, f.kind, f.fatal) for f in kept.findings]
    assert told == [(CASE, kind, False), ("dataset", "patients", False)]
    assert kept.findings[0].message.endswith("(left out)")


def test_what_a_header_leaves_open_is_told(dataset: Path) -> None:
    for name, codes in ((CASE, (0, 0)), ("phantom_003", (0, 0)), ("phantom_004", (1, 1))):
        for path in (image_of(dataset, name), label_of(dataset, name)):
            image = nib.load(path)
            affine = image.affine @ np.diag([-1, 1, 1, 1]) if codes == (0, 0) else image.affine
            changed = nib.Nifti1Image(np.asarray(image.dataobj), affine)
            changed.set_sform(affine, code=codes[1])
            moved = np.array(affine)
            moved[0, 3] += 30
            changed.set_qform(moved, code=codes[0])
            nib.save(changed, path)
    index, _ = examine(read_index(dataset))
    assert [f.message for f in index.findings if f.kind == "orientation"] == [
        f"{CASE}: does not say which way its axes run (no qform, no sform): LAS here, as in all such files",
        "phantom_004: phantom_004.nii.gz has a qform and an sform that are up to 30 mm apart; "
        "its sform is taken, check it",
    ]


def test_a_background_of_another_value_is_no_foreground(dataset: Path) -> None:
    index = read_index(dataset)
    case = index.training[0]
    label = read_volume(label_of(dataset, case.id))
    ones = label.array[0] == label.array[0].max()
    write_label(label_of(dataset, case.id), np.where(ones, 2, 1).astype(np.uint8), label.grid)
    index = replace(index, labels={"background": 1, "a": 2}, training=(case,))
    checked, (measured,) = examine(index)
    inside = read_volume(image_of(dataset, case.id)).array[0][ones]
    assert len(measured.intensities[0].foreground_sample) == min(ones.sum(), -(-ones.sum() // -(-ones.sum() // 1000)))
    assert set(measured.intensities[0].foreground_sample) <= set(inside.astype(np.float32))
    assert not checked.findings


def test_empty_labels_and_constant_images_are_told_and_kept(dataset: Path) -> None:
    grid = read_volume(image_of(dataset)).grid
    write_label(label_of(dataset), np.zeros(grid.shape, np.uint8), grid)
    write_image(image_of(dataset), np.full(grid.shape, 5, np.int16), grid)
    index, measured = examine(read_index(dataset))
    assert len(measured) == 6
    assert {f.kind: f.message for f in index.findings} == {
        "empty label": "phantom_002: label map is empty (background only); check that this is meant",
        "constant image": "phantom_002: channel 0 is constant (5); check the file",
        "patients": "every case counts as a patient of its own; where a patient has several, "
        "say so in a datalist (column patient), or scores of a fold are too good",
    }


def test_nothing_left_is_an_error_even_when_cases_may_be_skipped(dataset: Path) -> None:
    for path in (dataset / "imagesTr").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"(?s)no case can be used; .*6 cases cannot be used"):
        examine(read_index(dataset), "skip")


def test_what_is_measured(phantom_dataset: Path) -> None:
    index, measured = examine(read_index(phantom_dataset))
    again = examine(index)[1]
    for case, one, two in zip(index.training, measured, again, strict=True):
        paths, label_path = index.paths(case)
        image, label = nib.load(paths[0]), nib.load(label_path)
        voxels, classes = image.get_fdata(), np.asarray(label.dataobj)
        channel = one.intensities[0]
        assert one.shape == image.shape
        assert np.allclose(one.spacing, nib.affines.voxel_sizes(image.affine), atol=1e-4)
        assert one.axcodes == "".join(nib.aff2axcodes(image.affine))
        assert one.class_voxels == {int(v): int((classes == v).sum()) for v in np.unique(classes)}
        assert np.allclose((channel.mean, channel.std), (voxels.mean(), voxels.std()))
        assert np.allclose((channel.p00_5, channel.p50, channel.p99_5), np.percentile(voxels, [0.5, 50, 99.5]))
        assert 0 < channel.foreground_sample.size <= 1000
        assert set(channel.foreground_sample) <= set(voxels[classes > 0].astype(np.float32))
        assert np.array_equal(channel.foreground_sample, two.intensities[0].foreground_sample)
        assert (one.image_digest, one.label_digest) == (two.image_digest, two.label_digest)


def test_labels_that_are_not_declared_are_named_after_their_values(phantom_dataset: Path) -> None:
    index = examine(replace(read_index(phantom_dataset), labels={}))[0]
    assert index.labels == {"background": 0, "label_1": 1, "label_2": 2, "label_3": 3, "label_4": 4}


def test_channels_that_are_not_declared_are_those_of_most_cases(dataset: Path) -> None:
    for number in (0, 1, 3, 4, 5):
        path = image_of(dataset, f"phantom_00{number}")
        volume = read_volume(path)
        write_image(path, np.concatenate([volume.array, -volume.array]), volume.grid)
    index = replace(read_index(dataset), channels=())
    with pytest.raises(DatasetError, match=r"phantom_002: has 1 channel, the dataset 2 \(image_0, image_1\)"):
        examine(index)
    assert examine(index, "skip")[0].channels == ("image_0", "image_1")


def test_progress_counts_cases(phantom_dataset: Path) -> None:
    calls: list[tuple[int, int]] = []
    examine(read_index(phantom_dataset), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(n, 6) for n in range(1, 7)]


def test_indexing_imports_neither_torch_nor_monai() -> None:
    code = "import sys, medunet.data.examine, medunet.data.layouts; print({'torch', 'monai'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_hippocampus(real_data: Callable[[str], Path]) -> None:
    index, measured = examine(read_index(real_data("hippocampus")))
    assert isinstance(index, Index)
    assert (len(measured), index.channels, [f.kind for f in index.findings]) == (208, ("MRI",), ["patients"])
    assert max(m.intensities[0].maximum for m in measured) > 1000 * min(m.intensities[0].maximum for m in measured)


def test_a_patient_who_lacks_a_channel_does_not_name_those_of_all(tmp_path: Path) -> None:
    """Also the first, by whom channels without names were counted."""
    rows = ["id,image_0,image_1,image_2,label"]
    for number, case in enumerate("abc"):
        array = np.random.default_rng(number).normal(size=(4, 6, 6, 6)).astype(np.float32)
        names = [f"{case}{channel}.nii" for channel in range(3)]
        for channel, name in enumerate(names):
            write_image(tmp_path / name, array[channel], Grid((6, 6, 6), np.eye(4)))
        write_label(tmp_path / f"{case}_label.nii", (array[3] > 0).astype(np.uint8), Grid((6, 6, 6), np.eye(4)))
        rows.append(",".join([case, *(names if number else [*names[:2], ""]), f"{case}_label.nii"]))
    (tmp_path / "list.csv").write_text("\n".join(rows))
    with pytest.raises(DatasetError, match=r"a: has 2 channels, the dataset 3 \(image_0, image_1, image_2\)"):
        examine(read_index(tmp_path / "list.csv"))
    index, _ = examine(read_index(tmp_path / "list.csv"), "skip")
    assert index.channels == ("image_0", "image_1", "image_2")
    assert [case.id for case in index.training] == ["b", "c"]
