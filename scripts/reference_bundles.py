#!/usr/bin/env python3
"""Train the bundles that the project ships, and put them into bundles/ as their receivers would unpack them.

    python scripts/reference_bundles.py DATASET WORK [--only NAME ...] [--minutes M]

DATASET is Task04_Hippocampus of the Medical Segmentation Decathlon. WORK keeps the bundles as they are planned, trained
and packed, with everything private; a run that was stopped is resumed, one that is finished is only packed again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from medunet import verbs
from medunet.cli.options import train_options
from medunet.data.atomic import write_json
from medunet.data.dicom.codes import find_code
from medunet.planning import Budget

ROOT = Path(__file__).resolve().parents[1]
SETTINGS: dict[str, dict[str, Any]] = {
    "hippocampus_mri_3d": {"dims": 3, "predict_mirror_axes": [0]},
    "hippocampus_mri_2d": {"dims": 2},
}
MINUTES = {"hippocampus_mri_3d": 45.0, "hippocampus_mri_2d": 10.0}
OVERLAYS = {"hippocampus_mri_3d": ["long_run"], "hippocampus_mri_2d": ["cosine"]}
"""What differs from the defaults of a plan and of a run (docs/experiments.md)."""
CLASSES = ("Anterior", "Posterior")
DATA_LICENCE = """Hippocampus (Task04) of the Medical Segmentation Decathlon

Licence of the data: CC-BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/
Attribution: Vanderbilt University Medical Center; A. L. Simpson et al. 2019, "A large annotated medical image dataset
for the development and evaluation of segmentation algorithms", arXiv:1902.09063; M. Antonelli et al. 2022, "The Medical
Segmentation Decathlon", Nature Communications 13, 4128, doi:10.1038/s41467-022-30695-9.
Changes: none of the images is in this bundle; its weights were trained on them, and are under the same licence.
"""
LICENCE = """The weights of this bundle (models/, reference/expected.safetensors) were trained on data under the licence
Creative Commons Attribution-ShareAlike 4.0 International and are under the same licence:
https://creativecommons.org/licenses/by-sa/4.0/legalcode
docs/data_license.txt names the authors of the data. Everything else is under the Apache License 2.0, as follows.

"""


def planned(name: str, options: argparse.Namespace) -> Path:
    """The bundle in WORK, planned with the present code; weights that are there stay."""
    bundle: Path = options.work / name
    codes = {label: code.as_json() for label in CLASSES if (code := find_code(f"{label} hippocampus"))}
    budget = Budget(device="cpu", minutes=options.minutes or MINUTES[name])
    verbs.plan(options.dataset, bundle, budget, {**SETTINGS[name], "codes": codes})
    return bundle


def describe(bundle: Path, dims: int) -> None:
    """Say what it is, of what it was made and under which terms it may be used."""
    path = bundle / "configs" / "metadata.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    content |= {
        "name": f"Hippocampus in MRI, {dims}D",
        "version": "1.0.0",
        "changelog": {"1.0.0": "trained on Task04 of the Medical Segmentation Decathlon"},
        "authors": "the authors of medunet",
        "copyright": "weights CC-BY-SA 4.0, as the data; all else Apache-2.0",
        "description": f"A {dims}D U-Net that segments the anterior and posterior hippocampus in T1-weighted MR images "
        "that were cropped around one hippocampus, as those of the Medical Segmentation Decathlon. Research only.",
        "intended_use": "Research, and trying medunet. Whole heads must be cropped first. Not a medical device.",
        "data_source": "Medical Segmentation Decathlon, Task04_Hippocampus, http://medicaldecathlon.com",
        "references": [
            "Antonelli et al. 2022, The Medical Segmentation Decathlon, doi:10.1038/s41467-022-30695-9",
            "Isensee et al. 2021, nnU-Net, doi:10.1038/s41592-020-01008-z",
        ],
    }
    write_json(path, content)
    (bundle / "docs" / "data_license.txt").write_text(DATA_LICENCE, encoding="utf-8")
    terms = bundle / "LICENSE"
    terms.write_text(LICENCE + terms.read_text(encoding="utf-8"), encoding="utf-8")  # planned anew before


def make(name: str, options: argparse.Namespace) -> Path:
    """Plan, train, pack, and unpack into bundles/."""
    bundle = planned(name, options)
    scores = bundle / "eval" / "fold_0" / "scores.json"
    if not scores.is_file():
        begun = (bundle / "models" / "checkpoint_last.pt").is_file()
        verbs.train(bundle, 0, train_options((None, None), begun, "cpu", OVERLAYS.get(name, []), []))
    if not scores.is_file():
        raise SystemExit(f"{bundle}: the run was stopped; run again to go on")
    describe(bundle, SETTINGS[name]["dims"])
    archive: Path = options.work / f"{name}.zip"
    verbs.pack(bundle, archive, say=print)
    target = ROOT / "bundles" / name
    shutil.rmtree(target, ignore_errors=True)
    verbs.unpack(archive, target)
    return target


def main() -> None:
    """Make them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", nargs="*", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--minutes", type=float, help=f"by default {MINUTES}")
    options = parser.parse_args()
    for name in options.only:
        print(f"made {make(name, options)}")


if __name__ == "__main__":
    main()
