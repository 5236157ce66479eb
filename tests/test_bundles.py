"""The bundles that the project ships: whole, safe, attributed, and as good as their scores say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from medunet import verbs
from medunet.data.phantom import make_phantom
from medunet.data.volume import read_label, read_volume, write_image

SHIPPED = sorted(path.parent.parent for path in (Path(__file__).parents[1] / "bundles").glob("*/configs/metadata.json"))
MOST_BYTES = 12_000_000


def dice_of(bundle: Path) -> float:
    """What its scores say: of one fold."""
    (fold,) = json.loads((bundle / "docs" / "scores.json").read_text())["folds"]
    return float(fold["summary"]["dice"]["mean"])


def test_there_are_some() -> None:
    assert [bundle.name for bundle in SHIPPED] == ["hippocampus_mri_2d", "hippocampus_mri_3d"]


@pytest.mark.parametrize("bundle", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_bundle_passes_every_check_of_its_receiver(bundle: Path, tmp_path: Path) -> None:
    found = verbs.verify(shutil.copytree(bundle, tmp_path / "b", ignore=shutil.ignore_patterns("compiled", "eval")))
    states = {check.name: (check.state, check.what) for check in found.checks}
    others = {name: state for name, state in states.items() if state[0] != "passed"}
    assert {name: state for name, (state, _) in others.items()} == {"form": "not run", "signature": "not run"}, others
    assert {"manifest", "audit", "card", "network", "reference"} <= states.keys()
    assert sum(path.stat().st_size for path in (bundle / "models").iterdir() if path.is_file()) <= MOST_BYTES


@pytest.mark.parametrize("bundle", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_bundle_names_its_terms_and_how_its_scores_came_about(bundle: Path) -> None:
    data, terms = ((bundle / name).read_text() for name in ("docs/data_license.txt", "LICENSE"))
    assert "CC-BY-SA 4.0" in data
    assert "Vanderbilt University Medical Center" in data
    assert "Attribution-ShareAlike 4.0" in terms
    assert "Apache License" in terms
    card = (bundle / "docs" / "README.md").read_text()
    assert "| Dice |" in card
    assert f"{dice_of(bundle):.3f} (" in card
    assert "Not a medical device" in card


@pytest.mark.parametrize("bundle", SHIPPED, ids=lambda path: path.name)
def test_a_new_user_can_predict_at_once(bundle: Path, tmp_path: Path) -> None:
    image, _ = make_phantom(1, (36, 50, 35), (1.0, 1.0, 1.0))
    write_image(tmp_path / "scan.nii.gz", image.array[0], image.grid)
    (result,) = verbs.predict(bundle, [str(tmp_path / "scan.nii.gz")], tmp_path / "out", {"inferer::backend": "torch"})
    assert result.state == "done"
    assert read_label(tmp_path / "out" / "scan.nii.gz").grid == read_volume(tmp_path / "scan.nii.gz").grid


@pytest.mark.parametrize("bundle", SHIPPED, ids=lambda path: path.name)
def test_cases_that_were_held_out_are_segmented_as_the_scores_say(
    bundle: Path, real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    """The first of fold 0's validation cases."""
    data = real_data("hippocampus")
    index = verbs.index(data)
    held_out = index.split(0)[1][:6]
    images = [str(index.paths(case)[0][0]) for case in held_out]
    verbs.predict(bundle, images, tmp_path / "out", {"inferer::backend": "torch"})
    dice = verbs.evaluate(tmp_path / "out", data / "labelsTr", tmp_path / "scores.json")["summary"]["dice"]["mean"]
    assert dice > dice_of(bundle) - 0.03
