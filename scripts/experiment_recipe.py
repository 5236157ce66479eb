#!/usr/bin/env python3
"""Train with one choice of the recipe changed at a time, and compare.

    python scripts/experiment_recipe.py WORK DATASET [DATASET ...] --steps 400 [--recipes NAME ...] [--folds 0 2]
           [--set KEY=VALUE ...]

A dataset is a folder, or `phantom`: 40 phantoms that are written into WORK. Every run has the same number of steps, so
that other programs on the machine make it slower and not worse. Each gets a bundle in WORK; what is finished is not
done again and what was stopped is resumed. `--set` changes the plan. Prints a Markdown table: mean Dice over the
validation cases of the folds with the weights of the end, a line per recipe, and how it differs from the defaults case
by case.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from medunet import verbs
from medunet.cli.options import parse_settings, train_options
from medunet.data.phantom import write_dataset
from medunet.planning import Budget

RECIPES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "defaults": ({}, []),
    "SGD with Nesterov momentum, polynomial decay": ({}, ["sgd_poly"]),
    "cosine decay, short average": ({}, ["cosine"]),
    "cosine decay, no average": ({}, ["no_average"]),
    "gradients not clipped": ({}, ["no_clip"]),
    "no deep supervision": ({"deep_supervision": 0}, []),
    "no augmentation": ({}, ["no_augmentation"]),
    "strong augmentation": ({}, ["strong_augmentation"]),
}
"""What differs from the defaults: settings of the plan, and overlays of the run."""
STEPS = 25  # an epoch
PHANTOMS = 40


def case_dices(dataset: Path, work: Path, recipe: str, options: argparse.Namespace) -> dict[str, float]:
    """Train where that was not done, and read the mean Dice of each validation case."""
    settings, overlays = RECIPES[recipe]
    found = {}
    for fold in options.folds:
        name = f"{dataset.name}_{recipe.replace(' ', '_').replace(',', '')}_{options.steps}_steps_fold_{fold}"
        bundle = work / name
        done = bundle / "eval" / f"fold_{fold}" / "scores.json"
        if not done.is_file():
            begun = (bundle / "models" / "checkpoint_last.pt").is_file()
            if not begun:
                budget = Budget(device="cpu", epochs=max(1, options.steps // STEPS))
                verbs.plan(dataset, bundle, budget, {"steps_per_epoch": STEPS, **options.settings, **settings})
            overrides = train_options((None, None), begun, "cpu", overlays, [])
            store = {"store": str((work / f"{dataset.name}_store").resolve()), "quiet": True}
            verbs.train(bundle, fold, {**overrides, **store})
        for case in json.loads(done.read_text())["cases"]:
            dices = [values["dice"] for values in case["classes"].values() if values["dice"] is not None]
            found[case["id"]] = float(np.mean(dices))
    return found


def line(recipe: str, found: dict[str, float], usual: dict[str, float]) -> str:
    """Mean Dice, and the mean difference from the defaults with its standard error over cases."""
    difference = np.array([found[case] - usual[case] for case in usual])
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    against = "" if found is usual else f"{difference.mean():+.4f} (standard error {error:.4f})"
    return f"| {recipe} | {np.mean(list(found.values())):.4f} | {against} |"


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("datasets", type=Path, nargs="+")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--folds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    options.settings = parse_settings(options.set)
    options.work.mkdir(parents=True, exist_ok=True)
    for dataset in options.datasets:
        if str(dataset) == "phantom":
            dataset = options.work / "phantom"
            if not dataset.is_dir():
                write_dataset(dataset, PHANTOMS)
        print(
            f"\n{dataset.name}, {options.steps} steps\n\n| recipe | mean Dice | against the defaults |\n|---|---|---|"
        )
        usual = case_dices(dataset, options.work, "defaults", options)
        for recipe in dict.fromkeys(["defaults", *options.recipes]):
            found = usual if recipe == "defaults" else case_dices(dataset, options.work, recipe, options)
            print(line(recipe, found, usual), flush=True)


if __name__ == "__main__":
    main()
