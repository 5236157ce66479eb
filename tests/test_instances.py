"""Maps of objects: as targets, as results, and their scores, by hand and on real cells."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy import ndimage
from typer.testing import CliRunner

from medunet import verbs
from medunet.cli.main import app
from medunet.cli.printing import Printer
from medunet.data.grid import Grid
from medunet.data.instances import bordered, classes_of, numbered, separate
from medunet.data.volume import read_label, write_label
from medunet.errors import InputError
from medunet.evaluation.instances import instance_scores
from medunet.inference import SaveLabeld
from medunet.planning import Budget

Data = Callable[[str], Path]
maps = arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(1)), elements=st.integers(0, 4))


def drawn(*rows: str) -> np.ndarray:
    """Digits are objects, '.' is background."""
    return np.array([[0 if letter == "." else int(letter) for letter in row] for row in rows])


def test_borders_by_hand() -> None:
    assert bordered(drawn("1112222")).tolist() == [[1, 1, 2, 2, 1, 1, 1]]
    assert bordered(drawn("111.222")).tolist() == [[1, 1, 1, 2, 1, 1, 1]]  # the gap sees both, the cells one
    assert bordered(drawn("11..22")).tolist() == [[1, 1, 0, 0, 1, 1]]
    assert bordered(drawn("11..", "..22")).tolist() == [[1, 2, 2, 0], [0, 2, 2, 1]]  # they touch at a corner


@settings(max_examples=100)
@given(maps)
def test_objects_stay_apart_whatever_touches(instances: np.ndarray) -> None:
    for kind in ("apart", "border"):
        cells = classes_of(instances, kind) == 1
        parts, _ = ndimage.label(cells[..., 0], np.ones((3, 3)))
        for part in range(1, int(parts.max()) + 1):
            assert len(set(instances[..., 0][parts == part].tolist())) == 1
        assert not (cells & (instances == 0)).any()


@settings(max_examples=50)
@given(maps)
def test_objects_that_do_not_touch_come_back(instances: np.ndarray) -> None:
    parts, _ = ndimage.label(instances[..., 0] > 0, np.ones((3, 3)))
    single = parts[..., None].astype(np.uint16)
    assert np.array_equal(separate(single), single > 0)
    back = numbered(separate(single), 1)
    assert np.array_equal(back > 0, single > 0)


def test_borders_go_to_the_nearest_object() -> None:
    labels = np.array([[1, 1, 2, 2, 1, 1, 0, 2, 2, 2, 2]])[..., None]
    assert numbered(labels, 1, 2)[..., 0].tolist() == [[1, 1, 1, 2, 2, 2, 0, 2, 0, 0, 0]]
    assert numbered(labels, 1)[..., 0].tolist() == [[1, 1, 0, 0, 2, 2, 0, 0, 0, 0, 0]]
    assert numbered(labels, 1).dtype == np.uint32


def test_maps_that_are_refused() -> None:
    with pytest.raises(InputError, match=r"a\.png: instances=thin is not known; give apart or border"):
        classes_of(drawn("1"), "thin", "a.png")
    with pytest.raises(InputError, match="holds -1; give 0 for background"):
        classes_of(-drawn("1"), "apart")


def test_scores_by_hand() -> None:
    # 1: 3 of 4 pixels covered, IoU 3/4; 2: half covered by 7, which is not more than half; 7 itself: IoU 2/5
    reference = drawn("1111", "2222", "....")
    prediction = drawn("555.", "77..", ".7..")
    scores = instance_scores(prediction, reference)
    assert scores["instance_f1"] == pytest.approx(2 * 1 / 4)
    assert (scores["instance_precision"], scores["instance_recall"]) == (0.5, 0.5)
    assert scores["seg"] == pytest.approx((3 / 4 + 0) / 2)
    assert (scores["instances"], scores["predicted_instances"]) == (2, 2)


def test_memory_does_not_grow_with_pairs_of_objects() -> None:
    many = np.kron(np.arange(1, 90_001).reshape(300, 300), np.array([[1, 0], [1, 0]]))[..., None]
    tracemalloc.start()
    scores = instance_scores(many, many)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (scores["instance_f1"], scores["seg"], scores["instances"]) == (1.0, 1.0, 90_000)
    assert peak < 100 * many.size  # a table of all pairs would have 65 GB


def test_seg_counts_below_an_iou_of_one_half() -> None:
    # 5 covers all of 1 (3 pixels) and has 8: SEG is 3/8 where F1 has no match
    scores = instance_scores(drawn("5555", "5555"), drawn("111.", "...."))
    assert scores["seg"] == pytest.approx(3 / 8)
    assert scores["instance_f1"] == 0.0


@pytest.mark.parametrize(
    ("prediction", "reference", "f1", "seg"),
    [("..", "..", None, None), ("1.", "..", 0.0, None), ("..", "1.", 0.0, 0.0), ("21", "12", 1.0, 1.0)],
)
def test_scores_where_there_is_nothing(prediction: str, reference: str, f1: float | None, seg: float | None) -> None:
    scores = instance_scores(drawn(prediction), drawn(reference))
    assert (scores["instance_f1"], scores["seg"]) == (f1, seg)


@settings(max_examples=50)
@given(maps)
def test_a_map_agrees_with_itself_under_other_numbers(instances: np.ndarray) -> None:
    scores = instance_scores(np.array([0, 9, 3, 7, 2])[instances], instances)
    assert (scores["instance_f1"], scores["seg"]) == ((1.0, 1.0) if instances.any() else (None, None))


def test_scores_of_other_shapes_are_refused() -> None:
    with pytest.raises(InputError, match=r"prediction has shape \[1, 2\], reference \[1, 3\]"):
        instance_scores(drawn(".."), drawn("..."))


@pytest.mark.parametrize("name", ["cells_phc_u373", "cells_dic_hela", "nuclei"])
def test_real_cells_stay_apart(real_data: Data, name: str) -> None:
    for path in sorted((real_data(name) / "instances").glob("*.png"))[:6]:
        whole = read_label(path).array[0]
        apart = read_label(f"{path}#instances=apart").array[0]
        back = numbered(apart, 1)
        lost = set(np.unique(whole).tolist()) - set(np.unique(whole[back > 0]).tolist()) - {0}
        assert not lost
        owners = ndimage.labeled_comprehension(whole, back, np.arange(1, back.max() + 1), lambda v: len(set(v)), int, 0)
        assert (owners == 1).all()
        grown = numbered(read_label(f"{path}#instances=border").array[0], 1, 2)
        scores = instance_scores(grown.astype(np.int64), whole.astype(np.int64))
        assert (scores["seg"] or 0) > 0.95


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs of touching squares in each of four bright pictures, and their map of objects."""
    root = tmp_path_factory.mktemp("cells")
    for folder in ("images", "instances"):
        (root / folder).mkdir()
    draw = np.random.default_rng(0)
    for number in range(4):
        ids = np.zeros((64, 64), np.uint16)
        for place, (row, column) in enumerate([(8, 8), (8, 20), (40, 30), (40, 42)]):
            ids[row : row + 12, column : column + 12] = 300 + place
        image = (ids > 0) * 150 + draw.integers(0, 40, ids.shape)
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{number}.png")
        Image.fromarray(ids).save(root / "instances" / f"{number}.png")
    return root


@pytest.mark.parametrize("kind", ["apart", "border"])
def test_from_instances_to_instances(cells: Path, tmp_path: Path, kind: str) -> None:
    (cells / "dataset.json").write_text(json.dumps({"instances": kind, "labels": {"background": 0, "nucleus": 1}}))
    settings = {"dims": 2, "base_channels": 4, "max_levels": 2, "patch_size": [32, 32], "steps_per_epoch": 2}
    planned = verbs.plan(cells, tmp_path / "b", Budget(epochs=1), settings)
    assert list(planned.labels) == ["background", "nucleus", *(["border"] if kind == "border" else [])]
    verbs.train(tmp_path / "b", 0, {"quiet": True, "device::name": "cpu"})
    options = ["--format", "png", "--instances", "nucleus", "--backend", "torch"]
    command = ["predict", str(tmp_path / "b"), str(cells / "images"), "-o", str(tmp_path / "out"), *options]
    result = CliRunner().invoke(app, command)
    assert (result.exit_code, len(list((tmp_path / "out").glob("*.png")))) == (0, 4), result.output
    scores = verbs.evaluate(tmp_path / "out", cells / "instances", tmp_path / "s.json", instances=True)
    assert scores["classes"]["cell"]["instances"]["mean"] == 4
    assert 0 <= scores["summary"]["instance_f1"]["mean"] <= 1
    assert json.loads((tmp_path / "s.json").read_text())["cases"][0]["classes"]["cell"]["seg"] is not None


def test_what_cannot_be_numbered() -> None:
    labels = {"background": 0, "cell": 1}
    with pytest.raises(InputError, match="instances 'nucleus' cannot be numbered in nifti; give one of the classes"):
        SaveLabeld("out", labels, instances="nucleus")
    with pytest.raises(InputError, match="instances 'cell' cannot be numbered in dicom-seg"):
        SaveLabeld("out", labels, output_format="dicom-seg", instances="cell")


def test_a_perfect_map_of_objects_scores_one(cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = read_label(cells / "instances" / "0.png")
    write_label(tmp_path / "p" / "0.nii.gz", numbered(ids.array[0], 300) + 2 * (ids.array[0] > 300), ids.grid)
    assert nib.load(tmp_path / "p" / "0.nii.gz").shape == (64, 64, 1)
    perfect = tmp_path / "q" / "0.nii.gz"
    write_label(perfect, ids.array[0].astype(np.int64) % 300 + (ids.array[0] > 0), Grid.from_spacing((64, 64, 1)))
    scores = verbs.evaluate(perfect.parent, cells / "instances", tmp_path / "s.json", {"nucleus": 1}, instances=True)
    assert scores["classes"]["nucleus"]["seg"]["mean"] == 1.0
    merged = verbs.evaluate(tmp_path / "p", cells / "instances", tmp_path / "s.json", instances=True)
    # one found, three as one: 144 pixels of it in 432, matched by none
    assert merged["classes"]["cell"]["seg"]["mean"] == pytest.approx((1 + 3 * 144 / 432) / 4)
    assert merged["classes"]["cell"]["instance_f1"]["mean"] == pytest.approx(2 / 6)
    Printer().scores(tmp_path / "s.json")
    assert "\n    objects: F1 0.3333, SEG 0.5000\n" in capsys.readouterr().out
    page = verbs.report(tmp_path / "s.json").read_text(encoding="utf-8")
    assert "F1 of objects" in page
    assert "SEG" in page
