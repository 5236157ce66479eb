"""The model card says what the scores say, a changed number is found, and nothing in it names a case."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from medunet.errors import BundleError, InputError
from medunet.trust.card import claim
from medunet.trust.card.model_card import check_card, facts_of, write_card
from medunet.trust.card.summary import summarise_data, summarise_scores
from medunet.trust.gate.release import examine_release


def score(mean: float | None, low: float | None, high: float | None, n: int) -> dict[str, Any]:
    return {"mean": mean, "ci95": [low, high], "std": 0.1, "median": mean, "n": n, "left_out": 0}


def scores(dice: float, cases: int) -> dict[str, Any]:
    tumour = {
        "dice": score(dice, dice - 0.05, dice + 0.04, cases),
        "hd95_mm": score(3.14159, 2.5, 4.125, cases),
        "nsd": score(0.75, 0.7, 0.8, cases),
        "volume_ml": score(55.5, 50.0, 60.0, cases),
    }
    return {
        "summary": tumour, "classes": {"tumour": tumour, "a|b <i>": {"dice": score(None, None, None, 0)}},
        "cases": [{"id": f"STS_{n:03d}", "classes": {}} for n in range(cases)],
        "weights": "final", "best": {"dice": dice, "step": 250}, "nsd_tolerance_mm": 2.0,
    }  # fmt: skip


RECIPE = {
    "optimizer": "SGD", "weight_decay": 3e-5, "loss": "Tversky", "decay": "poly", "average_share": 0.03,
    "patches_a_step": 8, "precision": "bfloat16", "augmentation": {"elastic": 0.25, "zoom": 0.0},
}  # fmt: skip


@pytest.fixture
def bundle(planned_bundle: Path, tmp_path: Path) -> Path:
    """A bundle with two scored folds, other labels, and a calibration."""
    root = tmp_path / "bundle"
    shutil.copytree(planned_bundle, root)
    for fold, dice, cases in ((0, 0.877, 12), (1, 0.81, 1234)):
        folder = root / "eval" / f"fold_{fold}"
        folder.mkdir()
        (folder / "scores.json").write_text(json.dumps(scores(dice, cases)))
        log = [{"event": "start", "recipe": RECIPE}] if fold == 1 else []
        log += [{"event": "train", "step": step, "epoch": 20, "lr": 0.5 / step, "time": 90.0} for step in (250, 500)]
        log += [{"event": "scores", "time": 150.0}]
        (folder / "log.jsonl").write_text("\n".join(map(json.dumps, log)) + "\nbroken")
    quality = {"fold": 1, "classes": {"tumour": {"cases": 12, "always_present": True}, "a|b <i>": None}}
    (root / "models").mkdir(exist_ok=True)
    (root / "models" / "quality.json").write_text(json.dumps(quality))
    return root


def card_of(root: Path) -> tuple[str, dict[str, Any]]:
    facts = facts_of(root, root / "eval")
    return write_card(facts), facts


def test_a_run_that_went_on_otherwise_tells_each_recipe(bundle: Path) -> None:
    """And its minutes are those of all calls; each counts its time from its own start."""
    steps = [{"event": "train", "step": step, "lr": rate, "time": 60.0} for step, rate in ((10, 0.5), (20, 0.25))]
    log = [
        {"event": "calibrate", "time": 3.0},
        {"event": "start", "recipe": RECIPE, "time": 4.0},
        *steps,
        {"event": "start", "recipe": RECIPE | {"loss": "Jaccard"}, "time": 2.0},  # killed before its first step
        {"event": "start", "recipe": RECIPE | {"loss": "DiceCE", "augmentation": {}}, "time": 1.0},
        {"event": "train", "step": 30, "lr": 0.125, "time": 120.0},
        {"event": "start", "recipe": RECIPE | {"loss": "DiceCE", "augmentation": {}}, "time": 1.0},
        {"event": "train", "step": 40, "lr": 0.0625, "time": 57.0},
    ]
    (bundle / "eval" / "fold_1" / "log.jsonl").write_text("\n".join(map(json.dumps, log)))
    card, facts = card_of(bundle)
    training = next(fold["training"] for fold in facts["scores"]["folds"] if fold["fold"] == 1)
    assert training["minutes"] == round((60 + 2 + 120 + 57) / 60, 2)
    assert "| what | fold 1 | fold 1, after step 20 |" in card
    assert "| loss | Tversky | DiceCE |" in card
    assert "| patches a step, of all processes | 8 | 8 |" in card
    assert "| learning rate, highest | 0.5 | 0.125 |" in card
    assert "| learning rate, at the end | 0.25 | 0.0625 |" in card
    assert "| unusual chances of augmentation | elastic 0.25, zoom 0 | none |" in card


def packed(root: Path) -> Path:
    """The bundle without ``eval/``, with its summaries."""
    (root / "docs" / "scores.json").write_text(json.dumps(summarise_scores(root / "eval")))
    (root / "docs" / "data.json").write_text(json.dumps(summarise_data(root / "eval")))
    shutil.rmtree(root / "eval")
    return root


def test_the_numbers_are_those_of_the_scores(bundle: Path) -> None:
    card, _ = card_of(bundle)
    assert "| Dice | 0.877 (0.827 to 0.917) | – | 0.877 (0.827 to 0.917) |" in card
    assert "| HD95, mm | 3.14 (2.50 to 4.12) | – | 3.14 (2.50 to 4.12) |" in card
    assert "| validation cases | 1,234 |" in card
    assert "| 0 | 500 | 20 | 2.5 | 250 |" in card
    assert "| 1 | 1,234 | 0.810 (0.760 to 0.850) | 3.14 (2.50 to 4.12) | 0.750 (0.700 to 0.800) |" in card
    assert "NSD is taken at a tolerance of 2 mm." in card
    assert "`models/model.pt` holds the best validated ones" in card
    assert "| tumour | 12 | yes |" in card
    assert "| fold of the shipped weights | 1 |" in card
    assert "a\\|b &lt;i>" in card


def test_labels_codes_data_and_plan_are_there(bundle: Path) -> None:
    card, facts = card_of(bundle)
    assert "| 2 | liver | Liver (SCT 10200004) |" in card
    assert "| patients | 6 |" in card
    assert "| spacing, mm | 5 × 5 × 8 | 5 × 5 × 8.8 | 5 × 5 × 9.6 |" in card
    assert all(f"| {key} | " in card for key in facts["plan"]["reasons"])
    assert "Licence stated by the dataset: CC0-1.0" in card
    for words in (
        "Not a medical device",
        "medunet verify BUNDLE",
        "medunet predict BUNDLE",
        "python -m monai.bundle run",
    ):
        assert words in card


def test_what_a_run_trained_with_is_that_of_its_log(bundle: Path) -> None:
    card, _ = card_of(bundle)
    training = card.split("## Training")[1].split("## Performance")[0]
    assert "| what | fold 1 |" in training
    rows = dict(re.findall(r"(?m)^\| ([^|]+) \| ([^|]+) \|$", training.split("| what | fold 1 |")[1]))
    assert rows["optimiser"] == "SGD"
    assert rows["loss"] == "Tversky"
    assert (rows["learning rate, highest"], rows["learning rate, at the end"]) == ("0.002", "0.001")
    assert rows["weight decay"] == "3e-05"
    assert rows["unusual chances of augmentation"] == "elastic 0.25, zoom 0"
    assert "AdamW" not in training


def test_scores_of_mirrored_inputs_are_said_to_be_so(bundle: Path) -> None:
    assert "means over mirrored" not in card_of(bundle)[0]
    path = bundle / "configs" / "metadata.json"
    content = json.loads(path.read_text())
    content["plan"]["predict_mirror_axes"] = [0]
    path.write_text(json.dumps(content))
    assert "means over mirrored inputs" in card_of(bundle)[0].split("## Performance")[1].split("## Expected")[0]


def test_the_sections_come_in_order(bundle: Path) -> None:
    card, _ = card_of(bundle)
    assert re.findall(r"^## (.*)$", card, re.M) == [
        "Intended use", "Out of scope", "Labels", "Data", "Training", "Performance", "Expected Dice of a prediction",
        "Connected components", "Limits", "Use", "Verify", "The plan, with its reasons", "Files", "Licences",
        "CLAIM checklist",
    ]  # fmt: skip


def test_a_written_card_passes(bundle: Path) -> None:
    card, facts = card_of(bundle)
    assert check_card(card, facts) == ()


def numbers_in_tables(card: str) -> list[tuple[int, int, int]]:
    """(line, start, end) of every number in a table's body."""
    lines = card.splitlines()
    body = [
        n
        for n, line in enumerate(lines)
        if line.startswith("|") and not "".join(lines[n + 1 : n + 2]).startswith("| ---")
    ]
    pattern = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?")
    return [(n, m.start(), m.end()) for n in body for m in pattern.finditer(lines[n])]


def test_every_changed_number_is_found(bundle: Path) -> None:
    card, facts = card_of(bundle)
    places = numbers_in_tables(card)
    assert len(places) > 100
    for line, start, end in places:
        lines = card.splitlines()
        old = lines[line][start:end]
        lines[line] = lines[line][:start] + ("7" if old[0] != "7" else "8") + old[1:] + lines[line][end:]
        found = check_card("\n".join(lines), facts)
        assert [f for f in found if f.level == "danger"], lines[line]


def test_the_finding_names_the_row(bundle: Path) -> None:
    card, facts = card_of(bundle)
    (finding,) = check_card(card.replace("| Dice | 0.877 (0.827", "| Dice | 0.977 (0.827", 1), facts)
    assert finding.place.key == "Performance / Fold 0: Dice, tumour"
    assert (
        finding.place.line == card.splitlines().index(next(x for x in card.splitlines() if "| Dice | 0.877" in x)) + 1
    )
    assert "is '0.977 (0.827 to 0.917)', but the bundle's files say '0.877 (0.827 to 0.917)'" in finding.what
    assert finding.level == "danger"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: re.sub(r"\| NSD \|.*\n", "", c, count=1), "is missing"),
        (lambda c: c.replace("| NSD |", "| AUC | 0.99 | | |\n| NSD |", 1), "do not say"),
        (lambda c: c.replace("| metric | tumour |", "| metric | liver |", 1), "do not say"),
        (lambda c: c.replace("### Fold 0", "### Fold 3"), "is missing"),
        (lambda c: c.replace("## Limits", "Dice | value\n--- | ---\nall | 0.99\n\n## Limits"), "do not say"),
        (
            lambda c: c.replace("| metric | tumour |", "| metric | tumour | tumour |", 1).replace(
                "| Dice |", "| Dice | 0.99 |", 1
            ),
            "two columns of one name",
        ),
        (lambda c: c + "\n<table><tr><td>0.99</td></tr></table>\n", "HTML table"),
        (lambda c: c.replace("–", "0.99", 9), "but the bundle's files say"),
    ],
    ids=[
        "row gone",
        "row added",
        "column renamed",
        "heading changed",
        "table added",
        "column doubled",
        "HTML",
        "a number for a dash",
    ],
)
def test_other_changes_of_numbers_are_found(bundle: Path, change: Any, words: str) -> None:
    card, facts = card_of(bundle)
    found = check_card(change(card), facts)
    assert any(f.level == "danger" and words in f.what for f in found), found


def test_an_author_may_write(bundle: Path) -> None:
    card, facts = card_of(bundle)
    card = card.replace("| structured summary | **open** |", "| structured summary | see our paper, page 3 |")
    card = card.replace("## Limits", "Trained by us.\n\n## Limits").replace("+ tumour +", "")
    assert check_card(card, facts) == ()
    own = card + "\n## Our reader study\n\n| reader | cases |\n|---|---|\n| A | 12 |\n"
    (finding,) = check_card(own, facts)
    assert finding.level == "note"
    assert "which nothing here can check" in finding.what


def test_a_packed_bundle_gives_the_same_card(bundle: Path) -> None:
    card, _ = card_of(bundle)
    facts = facts_of(packed(bundle), None)
    assert write_card(facts) == card
    assert check_card(card, facts) == ()


def test_a_packed_bundle_with_its_card_is_clean(bundle: Path) -> None:
    card, _ = card_of(bundle)
    index = json.loads((bundle / "eval" / "index.json").read_text())
    packed(bundle)
    (bundle / "docs" / "README.md").write_text(card)
    for config in bundle.glob("configs/*.yaml"):
        config.write_text(re.sub(r"(?m)^dataset_dir: .*$", 'dataset_dir: ""', config.read_text()))
    index["training"][0]["id"] = "STS_001"
    assert examine_release(bundle, index) == ()


def test_nothing_of_a_case_is_summarised(bundle: Path) -> None:
    text = json.dumps([summarise_scores(bundle / "eval"), summarise_data(bundle / "eval")])
    assert "STS_" not in text
    assert "phantom_0" not in text
    assert "imagesTr" not in text


def test_few_cases_give_counts_only(bundle: Path) -> None:
    fingerprint = bundle / "eval" / "fingerprint.json"
    content = json.loads(fingerprint.read_text())
    fingerprint.write_text(json.dumps({**content, "cases": 2}))
    (bundle / "eval" / "fold_0" / "scores.json").write_text(json.dumps(scores(0.5, 2)))
    data = summarise_data(bundle / "eval")
    assert data["cases"] == 2
    assert not {"spacing_mm", "size_voxels"} & set(data)
    first, second = summarise_scores(bundle / "eval")["folds"]
    assert "volume_ml" not in first["classes"]["tumour"]
    assert "volume_ml" in second["classes"]["tumour"]
    assert "Too few cases to give ranges" in card_of(bundle)[0]


def test_the_card_of_a_trained_bundle(trained_bundle: Path) -> None:
    card, facts = card_of(trained_bundle)
    real = json.loads((trained_bundle / "eval" / "fold_0" / "scores.json").read_text())
    assert f"| Dice | {real['classes']['spine']['dice']['mean']:.3f} |" in card
    assert "| 0 | 6 | 2 | " in card
    for row in ("optimiser | AdamW", "loss | DiceCE", "decay of the learning rate | constant", "weight decay | 0.01"):
        assert f"| {row} |" in card
    assert "| unusual chances of augmentation | none |" in card
    assert "to 0" not in card.split("## Performance")[1].split("## Expected")[0]
    assert check_card(card, facts) == ()
    assert not re.search(r"phantom_\d|\bnan\b|None|\{|\}", card.split("## The plan")[0])
    assert max(len(line) for line in card.splitlines() if not line.startswith(("|", "    "))) <= 125


def test_the_card_of_a_bundle_that_was_not_trained(planned_bundle: Path, tmp_path: Path) -> None:
    root = tmp_path / "b"
    shutil.copytree(planned_bundle, root)
    shutil.rmtree(root / "eval")
    card = write_card(facts_of(root, None))
    assert "Scores: not available" in card
    assert "Calibration: not available" in card
    assert "Counts and ranges: not available" in card


def test_the_card_of_a_bundle_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    output = {"pred": {"channel_def": {"0": "background", "1": "spleen"}}}
    metadata = {"name": "x", "network_data_format": {"outputs": output}, "monai_version": "1.3.0"}
    (tmp_path / "configs" / "metadata.json").write_text(json.dumps(metadata))
    facts = facts_of(tmp_path, None)
    assert "| 1 | spleen | – |" in write_card(facts)
    assert check_card(write_card(facts), facts) == ()


def test_claim_items_are_answered_or_open(bundle: Path) -> None:
    _, facts = card_of(bundle)
    rows = claim.rows(facts)
    assert len({(topic, item) for topic, item, _ in rows}) == len(rows)
    assert all(answer for _, _, answer in rows)
    answers = {item: answer for _, item, answer in rows}
    assert answers["external testing"] == claim.OPEN
    assert "validation cases of 2 folds" in answers["internal testing"]
    bare = copy.deepcopy(facts) | {"scores": {"folds": []}, "data": {}, "quality": None}
    assert {i: a for _, i, a in claim.rows(bare)}["internal testing"] == claim.OPEN


def test_what_is_missing_is_said(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"metadata\.json: is missing or not JSON"):
        facts_of(tmp_path / "nothing", None)
    (bundle / "eval" / "fold_0" / "scores.json").write_text("{")
    with pytest.raises(InputError, match=r"scores\.json: cannot be read .*; write it again with medunet train"):
        facts_of(bundle, bundle / "eval")
