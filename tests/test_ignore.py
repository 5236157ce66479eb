"""Voxels nobody annotated: declared once, and from then on in no loss, no statistic, no patch's middle and no score."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medunet import verbs
from medunet.data.atomic import write_json
from medunet.data.examine import examine
from medunet.data.grid import Grid
from medunet.data.index import Index, read_index
from medunet.data.labelling import declared
from medunet.data.phantom import write_dataset
from medunet.data.transforms import Frame, Preprocess
from medunet.data.volume import read_label, write_image, write_label
from medunet.errors import DatasetError
from medunet.evaluation import metrics
from medunet.planning import Budget
from medunet.training import (
    Augmentation,
    BorderWeightsd,
    CutPatch,
    DiceBCE,
    DiceCE,
    DiceFocal,
    DiceHausdorff,
    GeneralizedDice,
    Jaccard,
    Tversky,
    WeightedCE,
)
from medunet.training.entry import Entry, patch_centres, write_entry
from medunet.types import IntArray
from tests.conftest import TINY

LOSSES = [DiceCE, DiceBCE, DiceFocal, Tversky, Jaccard, GeneralizedDice, DiceHausdorff, WeightedCE]
TARGETS = ["binary", "classes", "regions"]
SMALL = {"base_channels": 8, "max_levels": 3, "steps_per_epoch": 10}


def problem(kind: type, target: str, size: tuple[int, ...]) -> tuple[Any, Tensor, Tensor, Tensor]:
    """A loss, random logits (2, outputs, *size), a label whose first 6 planes nobody annotated, and which they are."""
    torch.manual_seed(1)
    outputs = 1 if target == "binary" else 3
    masks = target == "regions"
    label = torch.randint(0, 3 if target == "classes" else 2, (2, 3 if masks else 1, *size)).float()
    ignored = torch.zeros((2, 1, *size), dtype=torch.bool)
    ignored[:, :, :6] = True
    label[ignored.expand_as(label)] = 3 if target == "classes" else 2
    if kind is WeightedCE:
        label = torch.cat((label, torch.rand(2, 1, *size)), 1)
    return kind(outputs), torch.randn(2, outputs, *size), label, ignored


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", LOSSES)
def test_no_loss_depends_on_what_nobody_annotated(kind: type, target: str) -> None:
    if kind is WeightedCE and target == "regions":
        return  # refused: tests/test_regions.py
    loss, logits, label, ignored = problem(kind, target, (10, 8, 8))
    small = torch.randn(2, logits.shape[1], 5, 4, 4)
    outputs = [logits.requires_grad_(), small.requires_grad_()]
    value = loss(outputs, label)
    value.backward()
    assert torch.isfinite(value)
    assert logits.grad is not None
    assert small.grad is not None
    below = ignored[:, :, ::2, ::2, ::2]
    for grad, mask in ((logits.grad, ignored), (small.grad, below)):
        assert torch.isfinite(grad).all()
        assert (grad.masked_select(mask) == 0).all()
        assert (grad.masked_select(~mask) != 0).any()
    others = [o.detach() + 100 * torch.randn_like(o) * m for o, m in zip(outputs, (ignored, below), strict=True)]
    assert torch.equal(loss(others, label), value.detach())
    if kind is WeightedCE:
        label[:, 1:][ignored] = 1e6
        assert torch.equal(loss(others, label), value.detach())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", [kind for kind in LOSSES if kind is not DiceHausdorff])
def test_the_loss_is_that_of_the_annotated_part_alone(kind: type, target: str) -> None:
    if kind is WeightedCE and target == "regions":
        return
    loss, logits, label, _ = problem(kind, target, (10, 8))
    alone = loss(logits[:, :, 6:], label[:, :, 6:])
    assert float(loss(logits, label)) == pytest.approx(float(alone), rel=1e-5)


def test_the_boundary_loss_counts_annotated_errors_at_their_distance() -> None:
    """One pixel is wrong; its distance to the label's boundary is not changed by a far corner nobody annotated."""
    label = torch.zeros(1, 1, 12, 12)
    label[0, 0, 2:6, 2:6] = 1
    logits = (2 * label - 1) * 100
    logits[0, 0, 4, 9] = 100.0
    whole = DiceHausdorff(1, dice_weight=0.0, hausdorff_weight=1.0)(logits, label)
    label[0, 0, 9:, :3] = 2
    part = DiceHausdorff(1, dice_weight=0.0, hausdorff_weight=1.0)(logits, label)
    assert float(torch.expm1(part)) == pytest.approx(float(torch.expm1(whole)) * 144 / 135, rel=1e-5)
    assert float(part) > 0


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", LOSSES)
def test_a_wholly_ignored_patch_costs_nothing(kind: type, target: str) -> None:
    if kind is WeightedCE and target == "regions":
        return
    loss, logits, label, _ = problem(kind, target, (8, 8))
    label[:, : (3 if target == "regions" else 1)] = 3 if target == "classes" else 2
    value = loss(logits.requires_grad_(), label)
    value.backward()
    assert float(value.detach()) == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_border_weights_take_no_ignored_voxel_for_a_cell() -> None:
    label = torch.zeros(1, 24, 24, dtype=torch.uint8)
    label[0, 4:10, 4:10] = 1
    label[0, 11:17, 4:10] = 2  # would be a second cell one pixel away
    made = BorderWeightsd(classes=2)({"label": label})["label"]
    annotated = label[0] < 2
    assert torch.equal(made[0], label[0].float())
    assert len(torch.unique(made[1][annotated])) == 2  # of background and of cells; there is no gap between cells
    assert float(made[1][annotated].mean()) == pytest.approx(1, abs=1e-5)  # balanced over what is annotated
    assert len(torch.unique(BorderWeightsd()({"label": label})["label"][1])) > 2


def test_border_weights_of_a_single_region_know_its_cells() -> None:
    """A mask of one output: 1 is a cell there, 2 was not annotated."""
    label = torch.zeros(1, 24, 24, dtype=torch.uint8)
    label[0, 4:10, 4:10] = label[0, 11:17, 4:10] = 1  # a gap of one pixel
    label[0, 4:10, 11:17] = 2
    unit = {"classes": 1, "class_weights": (1.0, 1.0)}
    weights = BorderWeightsd(**unit)({"label": label})["label"][1]
    assert float(weights[10, 6]) > 5
    assert torch.equal(weights, BorderWeightsd(**unit)({"label": label % 2})["label"][1])
    balanced = BorderWeightsd(classes=1)({"label": label})["label"][1]
    assert float(balanced[label[0] == 1].min()) > float(balanced[23, 23])  # cells are rarer


# ---- from a file to a patch


@pytest.mark.parametrize(("value", "kind"), [(255, np.uint8), (3, np.uint8), (1000, np.int16), (-1, np.int16)])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.7, 0.6, 1.3)])
def test_preprocessing_keeps_it_apart(tmp_path: Path, value: int, kind: type, spacing: tuple[float, ...]) -> None:
    label = np.zeros((12, 12, 12), kind)
    label[:6] = value
    label[:, :4, :4] = 2
    write_image(tmp_path / "i.nii.gz", np.random.default_rng(0).normal(size=label.shape), Grid(label.shape, np.eye(4)))
    write_label(tmp_path / "l.nii.gz", label, Grid(label.shape, np.eye(4)))
    frame = Frame("RAS", spacing, [{"scheme": "zscore"}])
    done = Preprocess(frame, {"background": 0, "a": 1, "b": 2}, None, value)
    made = done({"image": str(tmp_path / "i.nii.gz"), "label": str(tmp_path / "l.nii.gz")})["label"]
    assert set(torch.unique(made.as_tensor()).tolist()) == {0, 2, 3}  # 1, between them, is nowhere
    if spacing == (1.0, 1.0, 1.0):
        assert np.array_equal(made[0].numpy() == done.ignored, label == value)


def test_the_most_classes_that_fit_a_byte_leave_room_for_it(tmp_path: Path) -> None:
    from medunet.data.transforms import to_classes

    stored = torch.arange(257).reshape(1, 1, 257).short()
    for classes, kind in ((255, torch.uint8), (256, torch.int16)):
        made = to_classes(stored, list(range(classes)), ignore=256)
        assert made.dtype == kind
        assert int(made[0, 0, 256]) == classes
        assert int(made.max()) == classes


def test_patches_are_not_centred_on_it(tmp_path: Path) -> None:
    label = np.full((20, 20, 20), 2, np.uint8)
    label[12:15, 12:15, 5:15] = 0
    label[13, 13, 10] = 1
    centres = patch_centres(label, [], 2)
    assert sorted(centres) == [0, 1]
    assert centres[1].tolist() == [[13, 13, 10]]
    assert len(centres[0]) == 3 * 3 * 10
    write_entry(tmp_path / "c", np.zeros((1, *label.shape), np.float32), label, (8, 8, 8), centres)
    entry = Entry(tmp_path / "c")
    generator = np.random.default_rng(0)
    starts = {CutPatch((4, 4, 4), 0.5).draw(generator, entry).start for _ in range(200)}
    assert len(starts) > 20
    assert all(label[tuple(s + 2 for s in start)] < 2 for start in starts)
    only = {CutPatch((4, 4, 4), 1.0).draw(generator, entry).start for _ in range(20)}
    assert only == {(11, 11, 8)}
    beyond = entry.read(((-3, 1), (0, 4), (0, 4)))[1]
    assert beyond[0, :3].max() == 0  # outside is background, as ever
    assert beyond[0, 3].min() == 2


def test_draws_of_wholly_annotated_cases_are_as_before(tmp_path: Path) -> None:
    label = np.random.default_rng(0).integers(0, 3, (16, 16, 16)).astype(np.uint8)
    image = np.zeros((1, *label.shape), np.float32)
    write_entry(tmp_path / "a", image, label, (8, 8, 8))
    write_entry(tmp_path / "b", image, label, (8, 8, 8), patch_centres(label, [], 3))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_augmentation_makes_no_other_class_of_it() -> None:
    augmentation = Augmentation((12, 12, 12), 1, None, (0,), (0.5, 0.5, 0.5), {"rotation": 1.0, "zoom": 1.0})
    for seed in range(4):
        draw = augmentation.draw(np.random.default_rng(seed))
        label = torch.zeros((1, *draw.extent), dtype=torch.uint8)
        label[:, ::3] = 3
        _, made = augmentation.apply(draw, torch.zeros((1, *draw.extent)), label)
        assert set(torch.unique(made).tolist()) == {0, 3}


# ---- scores


def test_overlaps_are_those_of_the_annotated_part() -> None:
    rng = np.random.default_rng(0)
    prediction, reference = rng.integers(0, 3, (2, 12, 10, 8))
    reference[:5] = 9
    labels, spacing = {"background": 0, "a": 1, "b": 2}, (1.0, 1.0, 2.0)
    part = metrics.measure(prediction[5:], reference[5:], labels, spacing)
    whole = metrics.measure(prediction, reference, labels, spacing, ignore=9)
    for name in ("a", "b"):
        for metric in set(part[name]) - {*metrics.DISTANCES, "nsd"}:
            assert whole[name][metric] == pytest.approx(part[name][metric]), metric
    assert metrics.pixel_accuracy(prediction, reference, labels, 9) == pytest.approx(
        np.mean(prediction[5:] == reference[5:])
    )
    prediction[:5] = rng.integers(0, 3, prediction[:5].shape)
    assert metrics.measure(prediction, reference, labels, spacing, ignore=9) == whole


def box(first: int, last: int, shape: tuple[int, ...] = (20, 12, 12)) -> IntArray:
    """1 from plane `first` to before `last` in the middle, 0 elsewhere."""
    label: IntArray = np.zeros(shape, np.int64)
    label[first:last, 4:8, 4:8] = 1
    return label


def test_a_cut_through_a_structure_is_no_surface() -> None:
    """The reference ends at plane 8, where annotation ends: whether the structure does, nobody knows."""
    reference = box(4, 16)
    reference[8:] = 7
    one = {"a": 1}
    same = metrics.measure(box(4, 16), reference, one, (1.0, 1.0, 1.0), ignore=7)["a"]
    assert (same["dice"], same["hausdorff_mm"], same["nsd"]) == (1, 0, 1)
    longer = metrics.measure(box(2, 16), reference, one, (1.0, 1.0, 1.0), ignore=7)["a"]
    assert longer["hausdorff_mm"] == 2  # the far end alone
    known = metrics.surface_distances(box(2, 8) == 1, box(4, 8) == 1, (1.0, 1.0, 1.0), reference == 7)
    assert known is not None
    assert known.reference_to_prediction.size == 4 * 4 + 3 * 12  # one end, and the sides of three more planes
    ended = metrics.surface_distances(box(2, 8) == 1, box(4, 8) == 1, (1.0, 1.0, 1.0))
    assert ended is not None
    assert ended.reference_to_prediction.size == 2 * 4 * 4 + 2 * 12


def test_without_a_known_surface_distances_are_not_defined() -> None:
    reference = np.full((9, 9, 9), 7)
    reference[3:6, 3:6, 3:6] = 1
    inside = metrics.measure((reference == 1).astype(int), reference, {"a": 1}, (1.0,) * 3, ignore=7)["a"]
    assert (inside["dice"], inside["hd95_mm"], inside["nsd"]) == (1, None, None)
    missed = metrics.measure(np.zeros_like(reference), reference, {"a": 1}, (1.0,) * 3, ignore=7)["a"]
    assert (missed["dice"], missed["hd95_mm"], missed["nsd"]) == (0, None, 0)


def test_a_reference_without_an_annotated_voxel_fails_alone(tmp_path: Path) -> None:
    grid = Grid((6, 6, 6), np.eye(4))
    for name, value in (("a", 1), ("b", 9)):
        write_label(tmp_path / "p" / f"{name}.nii.gz", np.ones((6, 6, 6), np.uint8), grid)
        write_label(tmp_path / "r" / f"{name}.nii.gz", np.full((6, 6, 6), value, np.uint8), grid)
    scored = verbs.evaluate(tmp_path / "p", tmp_path / "r", tmp_path / "s.json", {"x": 1, "ignore": 9})
    assert [case["id"] for case in scored["cases"]] == ["a"]
    assert scored["ignore"] == 9
    (failed,) = scored["failed"]
    assert f"b: reference {tmp_path / 'r/b.nii.gz'} has no annotated voxel (all have value 9)" in failed["message"]


# ---- declarations


def half_annotated(source: Path, target: Path, value: int = 255) -> Path:
    """The dataset with `value` in the lower half of every other label map, in the upper half of the others."""
    shutil.copytree(source, target)
    for number, path in enumerate(sorted((target / "labelsTr").glob("*.nii.gz"))):
        label = read_label(path)
        array, middle = label.array[0].copy(), label.grid.shape[2] // 2
        array[..., slice(middle, None) if number % 2 else slice(middle)] = value
        write_label(path, array, label.grid)
    content = json.loads((target / "dataset.json").read_text())
    content["labels"] = {"background": 0, "spine": 1, "liver": 2, "kidneys": 3, "lesion": 4, "ignore": value}
    (target / "dataset.json").write_text(json.dumps(content))
    return target


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"bg": 0, "a": 1, "ignore": 1}, "labels: 'ignore' has value 1, which is that of 'a' too; give it a value"),
        ({"bg": 0, "a": 1, "ignore": 0}, "'ignore' has value 0, which is that of 'bg' too"),
        ({"bg": 0, "a": 1, "ignore": [3, 4]}, "'ignore' has values [3, 4]; give one whole number"),
        ({"bg": 0, "a": 1, "ignore": "x"}, "label 'ignore' has value x; give a whole number"),
        ({"bg": 0, "a": 1.5}, "label 'a' has value 1.5; give a whole number"),
    ],
)
def test_declarations_that_contradict_themselves(labels: dict[str, Any], words: str) -> None:
    with pytest.raises(DatasetError) as caught:
        declared(labels)
    assert words in str(caught.value)


def test_declared_in_either_direction_and_in_an_index(phantom_dataset: Path, tmp_path: Path) -> None:
    for given in ({"bg": 0, "a": 1, "ignore": 9}, {"0": "bg", "1": "a", "9": "ignore"}):
        known = declared(given)
        assert (known.labels, known.regions, known.ignore) == ({"bg": 0, "a": 1}, {}, 9)
    index = read_index(half_annotated(phantom_dataset, tmp_path / "d"))
    assert index.ignore == 255
    assert "ignore" not in index.labels
    assert Index.from_json(index.as_json()) == index
    by_hand = {**index.as_json(), "labels": {**index.labels, "ignore": 255}, "ignore": None}
    assert Index.from_json(by_hand) == index
    with pytest.raises(DatasetError, match="the index: 'ignore' has value 2, which is that of 'liver' too"):
        Index.from_json({**index.as_json(), "ignore": 2})


def test_only_the_value_may_be_declared(phantom_dataset: Path, tmp_path: Path) -> None:
    folder = half_annotated(phantom_dataset, tmp_path / "d")
    content = json.loads((folder / "dataset.json").read_text())
    content["labels"] = {"ignore": 255}
    (folder / "dataset.json").write_text(json.dumps(content))
    index, _ = examine(read_index(folder))
    assert index.labels == {"background": 0, **{f"label_{value}": value for value in (1, 2, 3, 4)}}


def test_a_case_without_an_annotated_voxel_is_told(phantom_dataset: Path, tmp_path: Path) -> None:
    folder = half_annotated(phantom_dataset, tmp_path / "d")
    path = folder / "labelsTr" / "phantom_002.nii.gz"
    label = read_label(path)
    write_label(path, np.full_like(label.array[0], 255), label.grid)
    words = "phantom_002: label map has no annotated voxel (all have value 255, 'ignore'); annotate some or remove"
    with pytest.raises(DatasetError) as caught:
        verbs.plan(folder, tmp_path / "b", Budget(epochs=1))
    assert words in str(caught.value)
    assert not (tmp_path / "b").exists()
    kept, _ = examine(read_index(folder), on_problem="skip")
    assert len(kept.training) == 5


# ---- from index to scores


def test_statistics_and_plan_do_not_use_it(phantom_dataset: Path, tmp_path: Path) -> None:
    folder = half_annotated(phantom_dataset, tmp_path / "d")
    _, full = examine(read_index(phantom_dataset))
    index, measured = examine(read_index(folder))
    data = verbs.fingerprint(folder)
    for one, (case, whole) in enumerate(zip(measured, full, strict=True)):
        label = read_label(index.paths(index.training[one])[1] or "").array[0]
        assert case.intensities[0].foreground_sample.size <= np.isin(label, [1, 2, 3, 4]).sum()
        assert case.intensities[0].foreground_sample.min() > -900  # the air in the ignored half is not foreground
        assert case.image_digest == whole.image_digest
    assert "ignore" not in data.class_voxels
    assert data.ignored_voxels == sum(m.class_voxels[255] for m in measured)
    assert set(data.class_voxels) == {"background", "spine", "liver", "kidneys", "lesion"}
    plan = verbs.plan(folder, tmp_path / "b", Budget(epochs=1), SMALL)
    assert plan.ignore == 255
    assert "50.0% of all" in plan.reasons["ignore"]
    assert plan.network["out_channels"] == 5
    metadata = json.loads((tmp_path / "b" / "configs" / "metadata.json").read_text())
    assert metadata["plan"]["labels"] == {"background": 0, "spine": 1, "liver": 2, "kidneys": 3, "lesion": 4}
    assert len(metadata["network_data_format"]["outputs"]["pred"]["channel_def"]) == 5


def one_class(folder: Path, extra: dict[str, int]) -> None:
    """Make all organs one class, and declare that and `extra`."""
    for path in sorted((folder / "labelsTr").glob("*.nii.gz")):
        label = read_label(path)
        write_label(path, np.where(label.array[0] == 255, 255, label.array[0] > 0).astype(np.uint8), label.grid)
    content = json.loads((folder / "dataset.json").read_text())
    content["labels"] = {"background": 0, "organs": 1, **extra}
    (folder / "dataset.json").write_text(json.dumps(content))


def test_half_the_annotation_trains_about_as_well(tmp_path: Path) -> None:
    """Scored on whole references. Were the other half taken for background, the sensitivity would be 0.17 lower."""
    whole = write_dataset(tmp_path / "whole", 6, 0, *TINY)
    half = half_annotated(whole, tmp_path / "half")
    one_class(whole, {})
    one_class(half, {"ignore": 255})
    found = {}
    for folder in (whole, half):
        bundle = tmp_path / f"{folder.name}_bundle"
        verbs.plan(folder, bundle, Budget(epochs=4), {**SMALL, "learning_rate": 0.01})
        (path,) = verbs.train(bundle, 0, {"quiet": True, "device::name": "cpu", "validations": 1})
        predictions = bundle / "eval" / "fold_0" / "predictions"
        scored = verbs.evaluate(predictions, whole / "labelsTr", tmp_path / "s.json", {"organs": 1})
        found[folder.name] = scored["summary"]
        for file in predictions.glob("*.nii.gz"):
            assert set(np.unique(read_label(file).array).tolist()) == {0, 1}
    assert found["whole"]["dice"]["mean"] > 0.75
    assert found["half"]["sensitivity"]["mean"] > found["whole"]["sensitivity"]["mean"] - 0.1

    # A fold is scored as anybody would score it, with an index or by hand; without the half that nobody annotated.
    own = json.loads(path.read_text())
    write_json(tmp_path / "index.json", verbs.index(half).as_json())
    by_index = verbs.evaluate(predictions, tmp_path / "index.json", tmp_path / "a.json")
    by_hand = verbs.evaluate(predictions, half / "labelsTr", tmp_path / "b.json", {"organs": 1, "ignore": 255})
    assert own["classes"] == by_index["classes"] == by_hand["classes"]
    assert own["classes"] != scored["classes"]
