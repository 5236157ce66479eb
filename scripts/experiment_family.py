"""Train members of the family on one dataset, with the same data, schedule and time each, and compare them.

Run: python scripts/experiment_family.py DATASET WORK [--members NAME ...] [--minutes M | --steps N]
           [--device cpu|cuda]
           [--dims 2|3] [--fold K] [--memory 8GB] [--set KEY=VALUE ...]

DATASET is a folder of labelled volumes, for example Task04_Hippocampus of the Medical Segmentation Decathlon. Each
member gets a bundle in WORK; what is finished is not done again and what was stopped is resumed. A member's plan keeps
its own network and takes patch size, batch size and spacing of the plain U-Net where its sizes allow. Prints a Markdown
table: mean Dice of the fold's validation cases with the weights of the end, and per class; parameters; steps; seconds
per step.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from medunet import networks, verbs
from medunet.errors import PlanError
from medunet.planning import Budget, Plan

ROOT = Path(__file__).resolve().parents[1]
MEMBERS = ("plain", "noskip", "sumskip", "attention", "residual", "resenc", "mednext", "unetplusplus")
STEPS = 25  # an epoch
RESULT = "family.json"


def overlay_of(member: str) -> dict[str, Any]:
    """The plan settings of a member."""
    if member == "plain":
        return {}
    overlay: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "plan" / f"{member}.yaml").read_text())
    return overlay


def planned(member: str, options: argparse.Namespace, common: Mapping[str, Any]) -> tuple[Path, Plan]:
    """A member's bundle; `common` is what all share as far as its sizes allow."""
    bundle = options.work / member
    budget = Budget(memory=options.memory, device=options.device, minutes=options.minutes, epochs=options.epochs)
    settings = {"steps_per_epoch": STEPS, **options.settings, **common, **overlay_of(member)}
    try:
        return bundle, verbs.plan(options.dataset, bundle, budget, settings)
    except PlanError as error:
        if "patch_size" not in common or "patch_size" not in str(error):
            raise
        print(f"{member}: {error}; its own patch is taken", flush=True)
        del settings["patch_size"]
        return bundle, verbs.plan(options.dataset, bundle, budget, settings)


def run(member: str, options: argparse.Namespace, common: Mapping[str, Any]) -> dict[str, Any]:
    """Train a member, or read what was found before."""
    bundle = options.work / member
    kept = bundle / RESULT
    asked = {"minutes": options.minutes, "epochs": options.epochs, "fold": options.fold, "settings": options.settings}
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text())
        if found["asked"] == json.loads(json.dumps(asked)):
            return found
    begun = (bundle / "models" / "checkpoint_last.pt").is_file() and not kept.is_file()
    plan = verbs_plan(bundle) if begun else planned(member, options, common)[1].as_json()
    kept.unlink(missing_ok=True)
    verbs.train(bundle, options.fold, {"quiet": True, "device::name": options.device, "resume": begun})
    scores = json.loads((bundle / "eval" / f"fold_{options.fold}" / "scores.json").read_text())
    definition = dict(plan["network"])
    network = networks.member(definition.pop("_target_", "medunet.networks.UNet"))(**definition)
    result = {
        "asked": asked,
        "dice": scores["summary"]["dice"]["mean"],
        "classes": {name: values["dice"]["mean"] for name, values in scores["classes"].items()},
        "parameters": sum(p.numel() for p in network.parameters()),
        "patch": plan["patch_size"],
        "batch": plan["batch_size"],
        **pace(bundle / "eval" / f"fold_{options.fold}" / "log.jsonl"),
    }
    kept.write_text(json.dumps(result, indent=1))
    return result


def verbs_plan(bundle: Path) -> dict[str, Any]:
    """The plan of a bundle that was begun."""
    plan: dict[str, Any] = json.loads((bundle / "configs" / "metadata.json").read_text())["plan"]
    return plan


def pace(log: Path) -> dict[str, Any]:
    """Steps, and seconds per step in the fastest epoch: others have validations in them."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    marks = [(row["step"], row["time"]) for row in rows if row["event"] == "train"]
    paces = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(marks) if b[0] > a[0] and b[1] > a[1]]
    return {"steps": marks[-1][0] if marks else 0, "seconds": min(paces, default=None)}


def main() -> None:
    """Plan, train and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--members", nargs="+", default=list(MEMBERS))
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dims", type=int, choices=(2, 3))
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--memory", default="8GB")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    if options.steps is None and options.minutes is None:
        parser.error("give --minutes or --steps")
    options.memory = int(float(options.memory.removesuffix("GB")) * 1e9)
    options.epochs = None if options.steps is None else max(1, options.steps // STEPS)
    options.settings = {key: yaml.safe_load(value) for key, _, value in (item.partition("=") for item in options.set)}
    if options.dims:
        options.settings["dims"] = options.dims
    options.work.mkdir(parents=True, exist_ok=True)
    _, plain = planned("plain", options, {}) if not (options.work / "plain").exists() else (None, None)
    block = plain.as_json() if plain else verbs_plan(options.work / "plain")
    common = {key: block[key] for key in ("patch_size", "batch_size", "spacing", "orientation")}
    results = {}
    for member in options.members:
        results[member] = run(member, options, common)
        print(f"{member}: Dice {results[member]['dice']:.3f}", flush=True)
    print("\n" + table(results))


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, a line per member."""
    names = list(next(iter(results.values()))["classes"])
    lines = ["| network | Dice | " + " | ".join(names) + " | parameters, M | patch x batch | steps | s a step |"]
    lines.append("|---" * (6 + len(names)) + "|")
    for member, found in results.items():
        pace = "" if found["seconds"] is None else f"{found['seconds']:.2f}"
        cells = [f"{found['dice']:.3f}", *(f"{found['classes'][name]:.3f}" for name in names)]
        size = " x ".join(map(str, found["patch"])) + f", {found['batch']}"
        cells += [f"{found['parameters'] / 1e6:.2f}", size, str(found["steps"]), pace]
        lines.append(f"| {member} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
