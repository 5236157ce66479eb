"""Labels that may overlap: declared by the values that belong to them, a mask each in training, a score each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import medunet
from medunet import verbs
from medunet.data.examine import examine
from medunet.data.grid import Grid
from medunet.data.index import Index, read_index
from medunet.data.labelling import declared, in_words, stored_values
from medunet.data.phantom import write_dataset
from medunet.data.transforms import Frame, LoadVolumed, Preprocess
from medunet.data.volume import read_label, write_image, write_label
from medunet.errors import DatasetError, InputError
from medunet.evaluation import metrics
from medunet.inference.saving import SaveLabeld
from medunet.planning import Budget
from medunet.training import BorderWeightsd, DiceBCE, DiceCE, DiceFocal, Tversky, WeightedCE
from medunet.training.entry import patch_centres
from medunet.training.initial import merged
from tests.conftest import TINY
from tests.test_dicom_datasets import write_case

NESTED: dict[str, Any] = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
ORGANS = {"organs": [1, 2, 3, 4], "liver": [2, 4], "lesion": [4]}
ORDER = [1, 2, 4]
"""The phantom's labels as regions: a lesion lies in the liver, the liver among the organs."""


def regions_dataset(folder: Path, extra: dict[str, Any] | None = None) -> Path:
    write_dataset(folder, 6, 0, *TINY)
    content = json.loads((folder / "dataset.json").read_text())
    content |= {"labels": {"background": 0, **ORGANS}, "regions_class_order": ORDER, **(extra or {})}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


# ---- declarations


def test_declared_as_nnunet_does() -> None:
    known = declared({**NESTED, "ignore": 4}, [1, 2, 3])
    assert known.labels == {"background": 0, "whole": 1, "core": 2, "enhancing": 3}
    assert known.regions == {"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}
    assert known.ignore == 4
    words = "background=0, whole=1+2+3 (written 1), core=2+3 (written 2), enhancing=3 (written 3), ignore=4"
    assert in_words(known) == words
    partly = declared({"background": 0, "b": [2, 3], "a": [1, 2]}, [3, 1])
    assert list(partly.labels.items()) == [("background", 0), ("b", 3), ("a", 1)]  # the order of overlay, not of values
    assert stored_values(partly.labels, partly.regions) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("labels", "order", "words"),
    [
        (NESTED, [1, 2], "labels: regions_class_order has 2 values for 3 regions (whole, core, enhancing); give the"),
        (NESTED, None, "regions_class_order has 0 values for 3 regions"),
        (NESTED, [2, 1, 3], "writes 1 for region 'core', whose values are [2, 3]; give one of them"),
        (NESTED, [2, 2, 3], "regions_class_order writes 2 twice; give each region its own value"),
        (NESTED, [1, 2, 7], "writes 7 for region 'enhancing', whose values are [3]; give one of them"),
        ({**NESTED, "ignore": 2}, [1, 2, 3], "'ignore' has value 2, which is that of 'core' too"),
        ({"bg": 0, "a": [0, 1]}, [1], "region 'a' has the background's value 0; leave it out"),
        ({"bg": 0, "a": [1, "x"]}, [1], "label 'a' has value x; give a whole number"),
        ({"bg": 0, "a": []}, [1], "label 'a' has value []; give a whole number, or a list of them for a region"),
        ({"bg": 0, "a": 1}, [1], "regions_class_order is given and no label is a region; give regions as lists"),
        (
            {"bg": 0, "heart": [1, 2, 3], "left": [1, 2], "right": 3},
            [1, 2, 3],
            "writes 1 for region 'heart', which is a value of 'left' over it, so that what is 'heart' alone would be "
            "read as 'left' too; write a value that no later region has, or leave out a region that is no more than",
        ),
        ({"bg": 0, "a": [1, 2], "b": [2, 3]}, [2, 3], "writes 2 for region 'a', which is a value of 'b' over it"),
        ({"bg": 0, "a": [1], "b": [1, 2]}, [1, 2], "region 'b' lies over 'a' and has all its values [1], so that 'a'"),
    ],
)
def test_declarations_that_contradict_themselves(labels: dict[str, Any], order: Any, words: str) -> None:
    with pytest.raises(DatasetError) as caught:
        declared(labels, order)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"labels": {"bg": 0, "all": [1, 2, 3, 4, 9]}, "regions_class_order": [1]}, "has value 9, which no label map"),
        (
            {"labels": {"bg": 0, "all": [1, 2, 3]}, "regions_class_order": [1]},
            "label value 4 is not declared (bg=0, all",
        ),
        ({"regions_class_order": [1, 2]}, "regions_class_order has 2 values for 3 regions (organs, liver, lesion)"),
    ],
)
def test_a_dataset_that_does_not_fit_is_refused(tmp_path: Path, extra: dict[str, Any], words: str) -> None:
    with pytest.raises(DatasetError) as caught:
        verbs.plan(regions_dataset(tmp_path / "d", extra), tmp_path / "b", Budget(epochs=1))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value).split("):\n")[0]
    assert not (tmp_path / "b").exists()


# ---- from a file to a loss


@pytest.fixture
def preprocessed(tmp_path: Path) -> tuple[Preprocess, np.ndarray, torch.Tensor]:
    """Values 10, 20, 30 of two regions that overlap partly, 255 not annotated; the stored map and what comes of it."""
    stored = np.random.default_rng(0).choice([0, 10, 20, 30, 255], (8, 9, 10)).astype(np.uint8)
    write_image(
        tmp_path / "i.nii.gz", np.random.default_rng(0).normal(size=stored.shape), Grid(stored.shape, np.eye(4))
    )
    write_label(tmp_path / "l.nii.gz", stored, Grid(stored.shape, np.eye(4)))
    frame = Frame("RAS", (1.0, 1.0, 1.0), [{"scheme": "zscore"}])
    preprocess = Preprocess(frame, {"bg": 0, "a": 10, "b": 30}, {"a": [10, 20], "b": [20, 30]}, 255)
    item = preprocess({"image": str(tmp_path / "i.nii.gz"), "label": str(tmp_path / "l.nii.gz")})
    return preprocess, stored, item["label"].as_tensor()


def test_targets_are_masks(preprocessed: tuple[Preprocess, np.ndarray, torch.Tensor]) -> None:
    preprocess, stored, label = preprocessed
    targets = preprocess.targets(label)
    assert targets.shape == (2, 8, 9, 10)
    assert targets.dtype == torch.uint8
    for made, values in zip(targets.numpy(), ([10, 20], [20, 30]), strict=True):
        assert np.array_equal(made, np.where(stored == 255, 2, np.isin(stored, values)))
    flat = preprocess.targets(label[..., 0])
    assert torch.equal(flat, targets[..., 0])


def test_patches_are_centred_on_regions(preprocessed: tuple[Preprocess, np.ndarray, torch.Tensor]) -> None:
    preprocess, stored, label = preprocessed
    centres = patch_centres(label[0].numpy(), preprocess.members, preprocess.ignored)
    for number, values in ((1, [10, 20]), (2, [20, 30]), (0, [0, 10, 20, 30])):
        assert centres[number].tolist() == np.argwhere(np.isin(stored, values)).tolist()


def test_the_default_loss_is_dice_and_binary_cross_entropy_of_each_region() -> None:
    torch.manual_seed(0)
    logits, masks = torch.randn(2, 3, 6, 5, 4), torch.randint(0, 2, (2, 3, 6, 5, 4)).to(torch.uint8)
    p, y = logits.sigmoid(), masks.float()
    axes = (0, 2, 3, 4)
    dice = 1 - (2 * (p * y).sum(axes) + 1e-5) / (p.sum(axes) + y.sum(axes) + 1e-5)
    entropy = F.binary_cross_entropy(p, y)
    assert float(DiceCE(3)(logits, masks)) == pytest.approx(float(dice.mean() + entropy), rel=1e-5)
    assert float(DiceBCE(3)(logits, masks)) == pytest.approx(float(dice.mean() + entropy), rel=1e-5)
    assert float(DiceCE(3, 0.0, 2.0)(logits, masks)) == pytest.approx(float(2 * entropy), rel=1e-5)
    false = [(p * (1 - y)).sum(axes), ((1 - p) * y).sum(axes)]
    index = (p * y).sum(axes) / ((p * y).sum(axes) + 0.3 * false[0] + 0.7 * false[1])
    assert float(Tversky(3)(logits, masks)) == pytest.approx(float((1 - index).mean()), rel=1e-4)
    hard = (-(y * (1 - p) ** 2 * p.log() + (1 - y) * p**2 * (1 - p).log())).mean()
    assert float(DiceFocal(3, dice_weight=0.0)(logits, masks)) == pytest.approx(float(hard), rel=1e-4)
    small = F.interpolate(y, size=(3, 3, 2), mode="nearest-exact")
    deep = DiceCE(3)([logits, logits[..., :3, :3, :2]], masks)
    expected = (2 * DiceCE(3)(logits, masks) + DiceCE(3)(logits[..., :3, :3, :2], small)) / 3
    assert float(deep) == pytest.approx(float(expected), rel=1e-5)


def test_losses_that_cannot_do_regions_name_those_that_can() -> None:
    words = r"the label has 2 regions that may overlap, .*; take DiceCE, DiceBCE, DiceFocal, Tversky, Jaccard, "
    with pytest.raises(InputError, match=words):
        BorderWeightsd()({"label": torch.zeros(2, 8, 8, dtype=torch.uint8)})
    with pytest.raises(InputError, match=words):
        WeightedCE(2)(torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8, dtype=torch.uint8))
    with pytest.raises(InputError, match="the label has 4 channels and the network 3 outputs; give classes in one"):
        DiceCE(3)(torch.zeros(1, 3, 8, 8), torch.zeros(1, 4, 8, 8))


def test_initial_weights_are_matched_by_the_names_of_outputs() -> None:
    own = {"heads.0.weight": torch.zeros(2, 4), "stem.weight": torch.zeros(3)}
    classes = {"heads.0.weight": torch.arange(12.0).reshape(3, 4), "stem.weight": torch.ones(3)}
    taken = merged(own, classes, ["bg", "core", "whole"], ["bg", "whole", "core"])
    assert taken["heads.0.weight"][0].tolist() == [[8, 9, 10, 11], [4, 5, 6, 7]]
    regions = {"heads.0.weight": torch.ones(2, 4)}
    assert merged(own, regions, ["bg", "core", "whole"], ["bg", "core", "whole"])["heads.0.weight"][1] == ""
    assert merged(own, regions, ["bg", "core", "whole"], ["bg", "x", "y"]) == {}


# ---- scores


@given(st.integers(0, 10_000))
def test_a_region_is_scored_by_its_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prediction, reference = rng.integers(0, 4, (2, 4, 3, 2))
    reference[rng.random(reference.shape) < 0.2] = 9
    labels = {"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}
    measured = metrics.measure(prediction, reference, labels, (1.0, 1.0, 1.0), ignore=9)
    right = total = 0
    both: dict[str, list[int]] = {name: [0, 0] for name in labels}
    for p, r in zip(prediction.ravel().tolist(), reference.ravel().tolist(), strict=True):
        if r == 9:
            continue
        total += 1
        right += all((p in values) == (r in values) for values in labels.values())
        for name, values in labels.items():
            both[name][0] += 2 * (p in values and r in values)
            both[name][1] += (p in values) + (r in values)
    for name, (part, whole) in both.items():
        assert measured[name]["dice"] == (None if not whole else pytest.approx(part / whole))
    assert metrics.pixel_accuracy(prediction, reference, labels, 9) == (None if not total else right / total)


# ---- the whole way


def test_index_fingerprint_and_plan(tmp_path: Path) -> None:
    folder = regions_dataset(tmp_path / "d", {"labels": {"background": 0, **ORGANS, "ignore": 255}})
    index, measured = examine(read_index(folder))
    assert Index.from_json(json.loads(json.dumps(index.as_json()))) == index
    data = verbs.fingerprint(folder)
    assert data.class_voxels["liver"] == sum(m.class_voxels[2] + m.class_voxels[4] for m in measured)
    assert data.class_cases == {"background": 6, "organs": 6, "liver": 6, "lesion": 6}
    plan = verbs.plan(folder, tmp_path / "b", Budget(epochs=1), {"base_channels": 4, "max_levels": 3})
    assert (plan.network["out_channels"], plan.regions, plan.ignore) == (3, ORGANS, 255)
    assert plan.labels == {"background": 0, "organs": 1, "liver": 2, "lesion": 4}
    assert "organs, liver, lesion, later ones on top" in plan.reasons["regions"]
    output = json.loads((tmp_path / "b/configs/metadata.json").read_text())["network_data_format"]["outputs"]["pred"]
    assert (output["num_channels"], output["channel_def"]) == (3, {"0": "organs", "1": "liver", "2": "lesion"})


def test_a_dataset_with_regions_in_another_order_is_another_one(tmp_path: Path) -> None:
    """The order decides what is written on top, and which output is whose."""
    index = read_index(regions_dataset(tmp_path / "d"))
    assert Index.from_json(json.loads(json.dumps(index.as_json()))).digest() == index.digest()
    turned = replace(index, regions=dict(reversed(index.regions.items())))
    assert turned == index  # to Python, dictionaries have no order
    assert turned.digest() != index.digest()


@pytest.mark.parametrize("names", [["background", "liver", "organs", "lesion"], ["background", *ORGANS, "spleen"]])
def test_labels_and_regions_of_an_index_are_in_one_order(tmp_path: Path, names: list[str]) -> None:
    """Outputs are named by the one and trained on masks of the other."""
    content = read_index(regions_dataset(tmp_path / "d")).as_json()
    values = {**content["labels"], "spleen": 5}
    content["labels"] = {name: values[name] for name in names}
    with pytest.raises(DatasetError) as caught:
        Index.from_json(content)
    assert f"labels are {', '.join(names)} and regions organs, liver, lesion; give the back" in str(caught.value)


def command(*words: str, cwd: Path) -> None:
    environment = {**os.environ, "MONAI_EVAL_EXPR": "0", "PYTHONPATH": str(Path(medunet.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-m", *words], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_whole_way(tmp_path: Path) -> None:
    data = regions_dataset(tmp_path / "d")
    small = ["--set", "base_channels=8", "--set", "max_levels=3", "--set", "steps_per_epoch=50"]
    command("medunet", "plan", "d", "--bundle", "b", "--device", "cpu", "--epochs", "1", *small, cwd=tmp_path)
    run = ["monai.bundle", "run", "training", "--config_file", "configs/train.yaml", "--device::name", "cpu"]
    command(*run, "--quiet", "True", cwd=tmp_path / "b")
    scores = json.loads((tmp_path / "b/eval/fold_0/scores.json").read_text())
    assert set(scores["classes"]) == set(ORGANS)
    for case in scores["cases"]:
        prediction = read_label(tmp_path / "b" / case["prediction"]).array
        reference = read_label(Path(case["reference"])).array
        assert set(np.unique(prediction).tolist()) <= {0, *ORDER}
        for name, values in ORGANS.items():
            one, other = np.isin(prediction, values), np.isin(reference, values)
            dice = 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))
            assert case["classes"][name]["dice"] == pytest.approx(dice)
    assert scores["classes"]["organs"]["dice"]["mean"] > 0.3
    assert "organs" in (tmp_path / "b/eval/fold_0/report.html").read_text()

    command("medunet", "index", "d", "--json", "index.json", cwd=tmp_path)
    command("medunet", "predict", "b", "d/imagesTr", "-o", "out", "--backend", "torch", cwd=tmp_path)
    command("medunet", "evaluate", "out", "index.json", "-o", "by_index.json", cwd=tmp_path)
    words = ",".join(f"{name}={'+'.join(map(str, values))}" for name, values in ORGANS.items())
    command("medunet", "evaluate", "out", "d/labelsTr", "-o", "by_hand.json", "--labels", words, cwd=tmp_path)
    by_index, by_hand = (json.loads((tmp_path / n).read_text()) for n in ("by_index.json", "by_hand.json"))
    assert by_index["classes"] == by_hand["classes"]
    scored = {case["id"]: case["classes"] for case in by_index["cases"]}
    assert len(scored) == 6
    command("medunet", "pack", "b", "-o", "b.zip", cwd=tmp_path)
    assert (tmp_path / "b.zip").is_file()
    assert data.is_dir()


def test_all_folds_of_regions_with_voxels_nobody_annotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDUNET_HOME", str(tmp_path / "home"))
    data = regions_dataset(tmp_path / "d", {"labels": {"background": 0, **ORGANS, "ignore": 255}})
    paths = sorted((data / "labelsTr").glob("*.nii.gz"))
    for path in paths:
        label = read_label(path)
        array = label.array[0].copy()
        array[..., : label.grid.shape[2] // 2] = 255
        array[np.isin(array, [4])] = 2 if path == paths[0] else 4  # a case without a lesion
        write_label(path, array, label.grid)
    bundle = tmp_path / "b"
    verbs.plan(data, bundle, Budget(epochs=1), {"base_channels": 4, "max_levels": 3, "steps_per_epoch": 3})
    scored = verbs.train(bundle, "all", {"quiet": True, "device::name": "cpu"})
    content = json.loads(scored[-1].read_text())
    assert set(content["classes"]) == set(ORGANS)
    assert len(content["cases"]) == 6
    for case in content["cases"]:
        prediction = read_label(bundle / case["prediction"]).array
        reference = read_label(Path(case["reference"])).array
        for name, values in ORGANS.items():
            one, other = np.isin(prediction, values) & (reference != 255), np.isin(reference, values)
            total = np.count_nonzero(one) + np.count_nonzero(other)
            dice = 2 * np.count_nonzero(one & other) / total if total else None
            assert case["classes"][name]["dice"] == (None if dice is None else pytest.approx(dice))
    components = json.loads((bundle / "models/components.json").read_text())
    assert (components["rules"], components["evidence"]) == ({}, {})  # of regions there are no rules
    assert set(json.loads((bundle / "models/quality.json").read_text())["classes"]) == set(ORGANS)
    verbs.pack(bundle, tmp_path / "b.zip", say=lambda text: None)
    found = verbs.verify(tmp_path / "b.zip")
    assert found.verified, [check for check in found.checks if check.state == "failed"]
    verbs.unpack(tmp_path / "b.zip", tmp_path / "u")
    card = (tmp_path / "u" / "docs" / "README.md").read_text()
    assert "| 2 | liver | 2, 4 |" in card
    assert "may overlap" in card
    image = sorted((data / "imagesTr").glob("*.nii.gz"))[0]
    (result,) = verbs.predict(tmp_path / "u", [image], tmp_path / "out", {"inferer::backend": "torch"})
    assert result.state == "done"
    assert list(result.quality) == list(ORGANS)


def test_dicom_objects_hold_what_is_visible_and_say_so(tmp_path: Path) -> None:
    labels = write_case(tmp_path / "p0", "x", 0)
    item = LoadVolumed()({"image": str(tmp_path / "p0" / "image"), "output": "r"})
    for file in ("models/model.pt", "configs/inference.yaml", "configs/metadata.json"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text('{"plan": {}}')
    regions, root = {"organs": [1, 2], "liver": [2]}, str(tmp_path)
    written = {"background": 0, "organs": 1, "liver": 2}
    save = SaveLabeld(str(tmp_path / "out"), written, {}, "dicom-seg", bundle_root=root, regions=regions)
    told = save({**item, "pred": torch.from_numpy(labels.copy())[None]})["warnings"]
    words = "region 'organs' is written without what lies in liver too; write nifti, which has both"
    assert [text for text in told if "region" in text] == [words]
    assert SaveLabeld(str(tmp_path / "out")).covered == {}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"labels": {"bg": 0, "all": [1, 2], "b": 2}, "regions_class_order": [1, 2]},
            "declares regions and has labels",
        ),
        (
            {"labels": {"bg": 0, "Liver": 1, "ignore": 2}},
            "declares an ignore value and has labels in DICOM objects (x)",
        ),
    ],
)
def test_label_objects_name_structures_and_not_values(tmp_path: Path, content: dict[str, Any], words: str) -> None:
    write_case(tmp_path / "p0", "x", 0)
    rows = [{"id": "x", "image": "p0/image", "label": "p0/mask/label.dcm"}]
    (tmp_path / "list.json").write_text(json.dumps({**content, "training": rows, "channels": ["CT"]}))
    with pytest.raises(DatasetError) as caught:
        read_index(tmp_path / "list.json")
    assert words in str(caught.value)
