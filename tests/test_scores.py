"""Scores files: summary, intervals, missing predictions, JSON and CSV; and the report made of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from medunet import verbs
from medunet.cli.main import app
from medunet.data.grid import Grid
from medunet.data.phantom import LABELS
from medunet.data.volume import read_label, write_label
from medunet.errors import DatasetError, InputError
from medunet.evaluation import evaluate, read_scores, summarise, write_scores
from medunet.evaluation.pictures import outline
from medunet.evaluation.report import write_report
from medunet.evaluation.scores import _draws, _statistics

CLASSES = {name: value for name, value in LABELS.items() if value}


@pytest.fixture
def predictions(phantom_dataset: Path, tmp_path: Path) -> Path:
    """Label maps that are off by a voxel, worse from case to case; the last one misses a class."""
    for number, path in enumerate(sorted((phantom_dataset / "labelsTr").glob("*.nii.gz"))):
        label = read_label(path)
        moved = np.roll(label.array[0], number, axis=1)
        if number == 5:
            moved[moved == LABELS["lesion"]] = 0
        write_label(tmp_path / "pred" / path.name, moved, label.grid)
    return tmp_path / "pred"


def fake(values: list[tuple[float | None, float | None]]) -> list[dict[str, object]]:
    return [{"id": f"c{n}", "classes": {"a": {"dice": a}, "b": {"dice": b}}} for n, (a, b) in enumerate(values)]


def test_summary_is_the_mean_of_class_means_and_says_what_was_left_out() -> None:
    scores = summarise(fake([(1.0, 0.5), (0.5, None), (0.0, None)]), {"a": 1, "b": 2}, None)
    assert scores["classes"]["a"]["dice"]["mean"] == pytest.approx(0.5)
    assert scores["classes"]["b"]["dice"]["mean"] == pytest.approx(0.5)
    assert scores["classes"]["b"]["dice"]["left_out"] == 2
    assert scores["summary"]["dice"]["mean"] == pytest.approx(0.5)
    nothing = summarise(fake([(None, None)]), {"a": 1, "b": 2}, None)
    assert nothing["summary"]["dice"]["mean"] is None


def test_intervals_cover_the_mean_and_are_the_same_each_time() -> None:
    rng = np.random.default_rng(0)
    cases = fake([(float(a), float(a)) for a in rng.normal(0.8, 0.05, 100)])
    first, second = (summarise(cases, {"a": 1, "b": 2}, None) for _ in range(2))
    assert first == second
    low, high = first["summary"]["dice"]["ci95"]
    assert low < first["summary"]["dice"]["mean"] < high
    assert 0.01 < high - low < 0.03  # 2 * 1.96 * 0.05 / sqrt(100) = 0.0196


def test_intervals_are_those_of_drawing_case_by_case() -> None:
    rng = np.random.default_rng(1)
    table = np.where(rng.random((7, 3)) < 0.3, np.nan, rng.random((7, 3)))
    drawn = table[np.random.default_rng(20260101).integers(0, 7, (2000, 7))]
    means = [np.nanmean([np.nanmean(column) for column in rows.T if np.isfinite(column).any()]) for rows in drawn]
    assert _statistics(table, _draws(7))["ci95"] == pytest.approx(np.percentile(means, [2.5, 97.5]).tolist(), rel=1e-12)


def test_evaluate_writes_json_without_nan_and_csv(phantom_dataset: Path, predictions: Path, tmp_path: Path) -> None:
    scores = evaluate(predictions, phantom_dataset / "labelsTr", CLASSES)
    path = tmp_path / "scores.json"
    write_scores(path, scores)
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == read_scores(path)
    rows = path.with_suffix(".csv").read_text().splitlines()
    assert len(rows) == 1 + 6 * 4
    assert scores["cases"][0]["classes"]["spine"]["dice"] == 1.0
    assert scores["cases"][0]["pixel_accuracy"] == 1.0
    assert scores["cases"][5]["classes"]["lesion"]["dice"] == 0.0
    assert scores["classes"]["lesion"]["hd95_mm"]["left_out"] >= 1


def test_missing_and_misplaced_predictions_are_listed(phantom_dataset: Path, predictions: Path) -> None:
    files = sorted(predictions.glob("*.nii.gz"))
    files[0].unlink()
    label = read_label(files[1])
    moved = np.array(label.grid.affine)
    moved[0, 3] += 30
    write_label(files[1], label.array[0], Grid(label.grid.shape, moved))
    scores = evaluate(predictions, phantom_dataset / "labelsTr", CLASSES)
    assert len(scores["cases"]) == 4
    messages = " ".join(f["message"] for f in scores["failed"])
    assert "phantom_000: has no prediction" in messages
    assert "phantom_001: prediction grid" in messages


def test_labels_are_found_when_nothing_names_them(phantom_dataset: Path, predictions: Path, tmp_path: Path) -> None:
    references = Path(shutil.copytree(phantom_dataset / "labelsTr", tmp_path / "alone" / "references"))
    scores = evaluate(predictions, references)
    assert set(scores["classes"]) == {"label_1", "label_2", "label_3", "label_4"}


def test_a_dataset_json_beside_the_references_names_their_values(phantom_dataset: Path, predictions: Path) -> None:
    references = phantom_dataset / "labelsTr"
    named, one = evaluate(predictions, references), evaluate(predictions, references, {"lesion": CLASSES["lesion"]})
    assert named["labels"] == CLASSES
    assert named == {**evaluate(predictions, references, CLASSES)}
    assert set(one["classes"]) == {"lesion"}


def test_ignored_voxels_and_regions_are_read_from_a_dataset_json_too(
    phantom_dataset: Path, predictions: Path, tmp_path: Path
) -> None:
    references = Path(shutil.copytree(phantom_dataset / "labelsTr", tmp_path / "labelsTr"))
    facts = {"labels": {"background": 0, "all": [1, 2, 3], "two": 2, "ignore": 4}, "regions_class_order": [1, 2]}
    (tmp_path / "dataset.json").write_text(json.dumps(facts))
    scores = evaluate(predictions, references)
    assert (scores["labels"], scores["ignore"]) == ({"all": [1, 2, 3], "two": [2]}, 4)
    del facts["regions_class_order"]
    (tmp_path / "dataset.json").write_text(json.dumps(facts))
    with pytest.raises(DatasetError, match=r"dataset\.json: regions_class_order has 0 values for 2 regions"):
        evaluate(predictions, references)


def small(path: Path, *values: int) -> None:
    """A label map of a few voxels in a row."""
    array = np.array(values, dtype=np.int16).reshape(-1, 1, 1)
    write_label(path, array, Grid(array.shape, np.eye(4)))


def test_labels_that_are_given_win_over_a_dataset_json(tmp_path: Path) -> None:
    small(tmp_path / "p/a.nii.gz", 0, 1, 4)
    small(tmp_path / "labelsTr/a.nii.gz", 0, 1, 4)
    declared = tmp_path / "dataset.json"
    declared.write_text(json.dumps({"labels": {"background": 0, "organ": 1, "ignore": 4}}))
    assert evaluate(tmp_path / "p", tmp_path / "labelsTr", {"organ": 1})["ignore"] == 4
    named = evaluate(tmp_path / "p", tmp_path / "labelsTr", {"organ": 1, "rest": 4})
    assert "ignore" not in named
    assert named["classes"]["rest"]["dice"]["mean"] == 1.0
    for text in ("{", json.dumps({"labels": {"organ": "one"}}), json.dumps({"instances": True})):
        declared.write_text(text)
        assert evaluate(tmp_path / "p", tmp_path / "labelsTr", {"organ": 1})["summary"]["dice"]["mean"] == 1.0
    with pytest.raises(DatasetError, match="labels: 'ignore' has value 4, which is that of 'rest' too"):
        evaluate(tmp_path / "p", tmp_path / "labelsTr", {"rest": [1, 4], "ignore": 4})


@pytest.mark.parametrize(("folder", "labels"), [("labels", None), ("instances", None), ("instances", {"cell": 1})])
def test_maps_of_objects_are_not_scored_as_classes(folder: str, labels: dict[str, int] | None, tmp_path: Path) -> None:
    for place in ("p", folder):
        small(tmp_path / place / "a.nii.gz", 0, 1, 2)
    (tmp_path / "dataset.json").write_text(json.dumps({"instances": folder == "labels", "labels": {"cell": 1}}))
    with pytest.raises(InputError, match=rf"{folder}: are numbered objects .*; give --instances"):
        evaluate(tmp_path / "p", tmp_path / folder, labels)
    assert evaluate(tmp_path / "p", tmp_path / folder, labels, instances=True)["instances"]


def test_a_folder_of_classes_beside_one_of_objects_is_scored(tmp_path: Path) -> None:
    for place in ("p", "labels", "instances"):
        small(tmp_path / place / "a.nii.gz", 0, 1, 1)
    (tmp_path / "dataset.json").write_text(json.dumps({"instances": True, "labels": {"background": 0, "cell": 1}}))
    assert evaluate(tmp_path / "p", tmp_path / "labels")["labels"] == {"cell": 1}


@pytest.mark.parametrize("names", [("0.nii.gz", "0.nii"), ("case_label.nii.gz", "case_gt.nii.gz")])
def test_two_files_of_one_case_are_refused(names: tuple[str, str], tmp_path: Path) -> None:
    for name in names:
        small(tmp_path / "r" / name, 0, 1)
    small(tmp_path / "p" / names[0], 0, 1)
    first, second = sorted(names)
    with pytest.raises(InputError, match=f"{first} and {second} are both the label map of case"):
        evaluate(tmp_path / "p", tmp_path / "r")


@pytest.mark.parametrize(
    ("predictions", "reference"),
    [
        (["liver_1_0000.nii.gz", "liver_2_0000.nii.gz"], "liver_1.nii.gz"),
        (["P1/MR_image.nii.gz"], "P1/MR_mask.nii.gz"),
        (["a.nii.gz"], "a_segmentation.nii.gz"),
        (["a_0001.nii.gz", "a_0000.nii.gz"], "a_0001.nii.gz"),
    ],
)
def test_predictions_have_the_names_of_their_images(predictions: list[str], reference: str, tmp_path: Path) -> None:
    for name in predictions:
        small(tmp_path / "p" / name, 0, 1)
    small(tmp_path / "r" / reference, 0, 1)
    (case,) = evaluate(tmp_path / "p", tmp_path / "r")["cases"]
    assert case["prediction"] == str(tmp_path / "p" / predictions[0])
    if reference == "liver_1.nii.gz":  # now two could be meant
        small(tmp_path / "p/liver_1_0001.nii.gz", 0, 1)
        with pytest.raises(InputError, match="liver_1: has no prediction in"):
            evaluate(tmp_path / "p", tmp_path / "r")


def test_a_broken_reference_is_listed_and_the_others_are_scored(tmp_path: Path) -> None:
    for name in "ab":
        for place in "pr":
            small(tmp_path / place / f"{name}.nii.gz", 0, 1)
    (tmp_path / "r/a.nii.gz").write_bytes(b"nothing")
    scores = evaluate(tmp_path / "p", tmp_path / "r")
    assert [case["id"] for case in scores["cases"]] == ["b"]
    assert "a.nii.gz: cannot be read" in scores["failed"][0]["message"]


def whole_dataset(folder: Path) -> Path:
    """Of nnU-Net: two training and two test cases."""
    for part in ("Tr", "Ts"):
        for number in "12":
            small(folder / f"images{part}" / f"{part}_{number}_0000.nii.gz", 0, 1)
            small(folder / f"labels{part}" / f"{part}_{number}.nii.gz", 0, 1)
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "organ": 1}}))
    return folder


@pytest.mark.parametrize(
    ("predicted", "failed", "unpredicted"),
    [("Tr_1", [], 1), ("Ts_1_0000", ["Ts_2"], 0), ("Ts_1 Ts_2", [], 0), ("Tr_1 Tr_2 Ts_2", ["Ts_1"], 0)],
)
def test_cases_of_a_dataset_that_lack_a_prediction(
    predicted: str, failed: list[str], unpredicted: int, tmp_path: Path
) -> None:
    for name in predicted.split():
        small(tmp_path / "p" / f"{name}.nii.gz", 0, 1)
    scores = evaluate(tmp_path / "p", whole_dataset(tmp_path / "d"))
    assert scores["labels"] == {"organ": 1}
    assert [case["id"] for case in scores["failed"]] == failed
    assert scores.get("unpredicted", 0) == unpredicted


def test_the_command_tells_what_it_could_not_score(tmp_path: Path) -> None:
    whole_dataset(tmp_path / "d")
    small(tmp_path / "p/Ts_1.nii.gz", 0, 1)
    target = tmp_path / "scores.json"
    command = ["evaluate", str(tmp_path / "p"), str(tmp_path / "d"), "-o", str(target)]
    result = CliRunner().invoke(app, command)
    assert str(result.exception) == f"1 of 2 cases could not be scored; see {target}"
    assert getattr(result.exception, "exit_code", None) == 1
    assert "Ts_2: has no prediction in" in result.stderr
    assert len(read_scores(target)["cases"]) == 1
    small(tmp_path / "p/Ts_2.nii.gz", 0, 1)
    small(tmp_path / "p/Tr_2.nii.gz", 0, 1)
    result = CliRunner().invoke(app, command)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "\n1 training case of the references have no prediction\n" in result.stdout


def test_scores_take_no_other_files_place(tmp_path: Path) -> None:
    for place in "pr":
        small(tmp_path / place / "a.nii.gz", 0, 1)
    listed, taken = tmp_path / "list.csv", tmp_path / "taken.csv"
    listed.write_text("image,label\np/a.nii.gz,r/a.nii.gz\n")
    taken.write_text("patient,name\n")
    for output, references, words in (
        ("scores.csv", tmp_path / "r", "is what the CSV beside the scores is called"),
        ("list.json", listed, r"list\.csv: are the references and would be overwritten"),
        ("taken.json", listed, r"taken\.csv: is no table of scores and would be overwritten"),
    ):
        with pytest.raises(InputError, match=words):
            verbs.evaluate(tmp_path / "p", references, tmp_path / output)
    for _ in range(2):  # its own table may be written again
        verbs.evaluate(tmp_path / "p", listed, tmp_path / "scores.json")
    assert (listed.read_text()[:5], taken.read_text()) == ("image", "patient,name\n")
    assert [path.name for path in tmp_path.glob("*.json")] == ["scores.json"]


def test_nothing_to_compare_is_one_sentence(tmp_path: Path, phantom_dataset: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no prediction can be compared with"):
        evaluate(tmp_path / "empty", phantom_dataset / "labelsTr")
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(InputError, match="is not a scores file"):
        read_scores(tmp_path / "x.json")
    (tmp_path / "y.json").write_text("{")
    with pytest.raises(InputError, match="is not valid JSON"):
        read_scores(tmp_path / "y.json")


@pytest.fixture
def report(phantom_dataset: Path, predictions: Path, tmp_path: Path) -> Path:
    scores = evaluate(predictions, phantom_dataset / "labelsTr", CLASSES)
    for case in scores["cases"]:
        case["image"] = str(phantom_dataset / "imagesTr" / f"{case['id']}.nii.gz")
    scores["cases"][2]["prediction"] = scores["cases"][2]["reference"] = "gone.nii.gz"
    log: list[dict[str, object]] = [{"event": "train", "step": s, "loss": 2 / s} for s in range(1, 50)]
    log += [{"event": "validate", "step": s, "dice": s / 60, "classes": {"spine": s / 55}} for s in (10, 30, 50)]
    output = tmp_path / "report.html"
    plan = {"labels": LABELS, "patch_size": [24, 24, 16], "network": {"channels": [4], "strides": [1]}}
    write_report(scores, output, title="T & co <b>", plan=plan, reasons={"patch_size": "it fits"}, log=log)
    return output


def test_a_plan_is_shown_in_words(tmp_path: Path) -> None:
    codes = {"liver": {"type": ["10200004", "SCT", "Liver"], "laterality": None}}
    plan = {"labels": {}, "codes": codes, "channels": ["CT"], "amp": False, "overlap": 0.5}
    scores = {"summary": {}, "classes": {}, "cases": []}
    write_report(scores, tmp_path / "plan.html", title="x", plan=plan, reasons=dict.fromkeys(plan, "because"))
    page = (tmp_path / "plan.html").read_text()
    for words in ("liver: Liver (SCT 10200004)", ">[CT]<", ">no<", ">0.5<"):
        assert words in page


def test_report_is_self_contained_and_sorted_worst_first(report: Path) -> None:
    page = report.read_text()
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", page)
    assert "http" not in re.sub(r"http-equiv", "", page)
    assert "<script" not in page
    assert "T &amp; co &lt;b&gt;" in page
    table = page[page.index('id="cases"') :]
    assert table.index("phantom_005") < table.index("phantom_001") < table.index("phantom_000")
    assert "no label map is at hand to show" in page
    assert "lesion missed." in page
    assert "it fits" in page
    assert page.count("data:image/png") == 3 * 5


def test_report_opens_in_a_browser(report: Path, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed to open the report with")
    picture = tmp_path / "page.png"
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1200,3600", f"--screenshot={picture}",
    ]  # fmt: skip
    subprocess.run([chromium, *options, report.as_uri()], check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    spread = pixels.max(axis=2) - pixels.min(axis=2)
    assert (pixels.sum(axis=2) < 60).mean() > 0.02  # the black of CT air in the pictures
    assert (spread > 120).sum() > 300  # contours, boxes and curves in colour
    assert (pixels.min(axis=2) > 250).mean() > 0.4  # on white paper


def test_names_of_classes_are_text_in_a_report(tmp_path: Path) -> None:
    for place in "pr":
        small(tmp_path / place / "a.nii.gz", 0, 1)
    scores = evaluate(tmp_path / "p", tmp_path / "r", {"a<b>": 1})
    write_report(scores, tmp_path / "r.html", title="x")
    page = (tmp_path / "r.html").read_text()
    assert "<title>a&lt;b&gt;, reference</title>" in page
    assert "a<b>" not in page


def test_every_object_is_outlined(tmp_path: Path) -> None:
    for place, values in (("p", (0, 3, 3, 0)), ("r", (0, 7, 8, 0))):
        small(tmp_path / place / "a.nii.gz", *values)
    write_report(evaluate(tmp_path / "p", tmp_path / "r", instances=True), tmp_path / "r.html", title="x")
    page = (tmp_path / "r.html").read_text()
    drawn = {
        kind: set(re.findall(rf'class="{kind}" stroke="[^"]*" d="([^"]*)"', page))
        for kind in ("reference", "prediction")
    }
    # one slice, the picture is upright: rows are y, columns x; 7 and 8 touch at column 2
    assert drawn["reference"] == {"M1 0h2M1 1h2M1 0v1M2 0v1M3 0v1"}
    assert drawn["prediction"] == {"M1 0h2M1 1h2M1 0v1M3 0v1"}


def test_outlines_run_along_voxel_edges() -> None:
    mask = np.zeros((4, 5), bool)
    mask[1:3, 2:4] = True
    assert sorted(re.findall(r"M\d+ \d+[hv]\d+", outline(mask))) == ["M2 1h2", "M2 1v2", "M2 3h2", "M4 1v2"]
    assert outline(np.zeros((2, 2), bool)) == ""


def test_report_of_real_cases(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder = real_data("hippocampus")
    name = sorted(p.name for p in (folder / "labelsTr").glob("*.nii.gz"))[0]
    label = read_label(folder / "labelsTr" / name)
    write_label(tmp_path / "p" / name, np.roll(label.array[0], 1, 0), label.grid)
    (tmp_path / "r").mkdir()
    shutil.copy(folder / "labelsTr" / name, tmp_path / "r" / name)
    scores = evaluate(tmp_path / "p", tmp_path / "r", {"Anterior": 1, "Posterior": 2})
    scores["cases"][0]["image"] = str(folder / "imagesTr" / name)
    write_report(scores, tmp_path / "r.html", title="hippocampus")
    assert (tmp_path / "r.html").stat().st_size < 300_000
