"""All folds of a bundle: which are done, and what they make together once they are.

Each fold leaves ``models/fold_K.pt``, its best averaged weights. Together they are ``models/model.pt``, an ensemble.
All cases, each scored by the network that was not trained on it, are its cross-validation, and what its calibration and
its rules for components come of.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medunet.data.atomic import write_json, write_with
from medunet.data.volume import read_label
from medunet.errors import BundleError
from medunet.evaluation import report, scores
from medunet.evaluation.components import Found, prove
from medunet.inference.quality import QUALITY, Calibration, Scored
from medunet.inference.weights import COMPONENTS, MODEL, file_digest, plan_digest, read_state, weights_digest
from medunet.networks.ensemble import joined, members_in
from medunet.training.calibrating import CERTAINTY
from medunet.training.cases import FoldCases
from medunet.training.checkpoints import fold_weights, told_by_checkpoint
from medunet.training.distributed import is_main_process

CROSS_VALIDATION = "eval/cross_validation.json"

_RECORD = "eval/folds.json"
_METADATA = "configs/metadata.json"
_PASSING = ("resume", "more", "device", "quiet")
"""Overrides of a single call; all others hold until the last fold is trained."""
_PLACES = {"dataset_dir", "store"}
"""Where data lie: it may change, and what is trained does not."""
_SPEED = {f"train::dataloader::{key}" for key in ("num_workers", "augment_on")} | {
    f"network::{key}" for key in ("compile", "channels_last")
}
"""How a step is computed: it may change too (docs/training.md, Speed)."""
_IN_CHECKPOINT = {"minutes", "train::trainer::max_epochs", "init"}
"""What need not be said again when a fold is resumed."""


def trained_for(bundle: Path, weights: Path) -> tuple[int | None, set[str]]:
    """The fold that these weights are of, and digests of the cases they were trained on; None where nothing tells.

    A finished run notes it beside its scores; of one that was stopped or killed the checkpoint tells.

    Raises:
        BundleError: there is none, since they are an ensemble.
    """
    if members_in(read_state(weights)):
        raise BundleError(
            f"{weights}: is an ensemble, trained on the validation cases of every fold; evaluate the test cases "
            f"(--part test), or take {CROSS_VALIDATION}"
        )
    for path in bundle.glob(f"eval/fold_*/{CERTAINTY}"):
        if noted := said_of(path, weights):
            return int(path.parent.name.removeprefix("fold_")), set(noted.get("trained", ()))
    return told_by_checkpoint(bundle) if weights.resolve() == (bundle / MODEL).resolve() else (None, set())


def begin(bundle: Path, given: Mapping[str, Any]) -> None:
    """Begin a run over all folds, with the overrides `given`: nothing is done, and what an earlier one left goes."""
    _take_apart(bundle)
    for path in (bundle / "models").glob("fold_[0-9]*.pt"):
        path.unlink()
    for folder in (bundle / "eval").glob("fold_[0-9]*"):
        forget_scores(folder)
    write_json(bundle / _RECORD, {"plan": plan_digest(bundle), "given": _lasting(given), "done": {}, "alone": None})


def forget_scores(folder: Path) -> None:
    """Remove what an earlier run said of weights that are there no longer; a bundle would be packed with it."""
    if is_main_process():
        for name in ("scores.json", "scores.csv", "report.html", report.SAMPLES, CERTAINTY):
            (folder / name).unlink(missing_ok=True)


def resume(bundle: Path, given: Mapping[str, Any]) -> tuple[set[int], dict[str, Any]]:
    """The folds that the run over all folds has finished, and the overrides of those behind them.

    Finished are those whose weights and scores are as the run left them. The overrides are those that it was begun
    with; `given` may repeat them, and say where data lie now and how this call shall run.

    Raises:
        BundleError: there is no such run, or the plan was changed since, or `given` has others.
    """
    record = _record(bundle)
    if record is None:
        raise BundleError(f"{bundle}: has no run over all folds to resume; train --fold all without --resume")
    if record["plan"] != plan_digest(bundle):
        raise BundleError(
            f"{bundle / _METADATA}: the plan was changed since the folds were begun; train without --resume"
        )
    begun = record["given"]
    others = _others(begun, given)
    if others:
        raise BundleError(
            f"{bundle}: the folds were begun with {_in_words(begun)}, and are asked to go on with {_in_words(others)}; "
            f"all are trained alike: resume without other settings, or train without --resume"
        )
    done = {int(fold) for fold, left in record["done"].items() if _left(bundle, int(fold)) == left}
    return done, {**begun, **given}


def _others(begun: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides of `given` by which something else would be trained than what was begun."""
    return {
        key: value
        for key, value in _lasting(given).items()
        if key not in _PLACES | _SPEED and (key not in begun or begun[key] != value)
    }


def _lasting(given: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides as JSON has them, without what holds for one call alone."""
    named = {key.replace("#", "::"): value for key, value in given.items()}
    kept = {key: value for key, value in named.items() if key.split("::")[0] not in _PASSING}
    content: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return content


def _in_words(given: Mapping[str, Any]) -> str:
    told = [f"{key}={value}" for key, value in given.items() if key not in _PLACES]
    return ", ".join(told) or "no settings"


def keep(bundle: Path, fold: int) -> None:
    """Keep the weights of a fold that was trained to its end."""
    write_with(fold_weights(bundle, fold), lambda part: shutil.copyfile(bundle / MODEL, part))
    record = _record(bundle) or {"plan": plan_digest(bundle), "given": {}, "done": {}, "alone": None}
    record["done"][str(fold)] = _left(bundle, fold)
    write_json(bundle / _RECORD, record)


def part_with(bundle: Path, fold: int, given: Mapping[str, Any]) -> None:
    """Before a single fold is trained: what all folds made together goes, and what is kept of this one.

    The others are left, so that ``--fold all --resume`` can take them. It is noted where this one is trained otherwise
    than they were: begun anew, or with other overrides.
    """
    fold_weights(bundle, fold).unlink(missing_ok=True)
    _take_apart(bundle)
    record = _record(bundle)
    if record is not None and not _goes_on_alike(record["given"], given):
        write_json(bundle / _RECORD, {**record, "alone": fold})


def _goes_on_alike(begun: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether a fold that is resumed by itself ends as the run over all folds would have let it end."""
    left_out = begun.keys() - _lasting(given).keys() - _PLACES - _SPEED - _IN_CHECKPOINT
    return bool(given.get("resume")) and not given.get("more") and not left_out and not _others(begun, given)


def belongs(bundle: Path, fold: int) -> bool:
    """Whether a checkpoint of this fold is one that the run over all folds may go on from."""
    record = _record(bundle)
    return record is not None and record["alone"] != fold


def take_back(bundle: Path) -> None:
    """Note that the checkpoint is of the run over all folds again."""
    record = _record(bundle)
    if record is not None and record["alone"] is not None:
        write_json(bundle / _RECORD, {**record, "alone": None})


def _take_apart(bundle: Path) -> None:
    scored = bundle / CROSS_VALIDATION
    for path in (bundle / COMPONENTS, scored, scored.with_suffix(".csv"), _report(scored)):
        path.unlink(missing_ok=True)


def assemble(bundle: Path, folds: Sequence[int], plan: Mapping[str, Any], dataset_dir: str) -> Path:
    """Make of all folds one bundle: the ensemble, its cross-validation and report, calibration, rules for components.

    Images and references are read from `dataset_dir`, which may have moved since the first folds were scored.

    Returns ``eval/cross_validation.json``.

    Raises:
        BundleError: a fold's weights are missing or cannot be read.
        DatasetError: the dataset is not there.
    """
    files = {item["case"]: item for fold in folds for item in FoldCases(str(bundle), dataset_dir, fold, "validation")}
    ensemble = joined([read_state(fold_weights(bundle, fold)) for fold in folds])
    write_with(bundle / MODEL, lambda part: torch.save(ensemble, part))
    digest, labels = weights_digest(bundle), _foreground(plan["labels"])
    found = {fold: _placed(scores.read_scores(_scores(bundle, fold)), files) for fold in folds}
    content = _pooled(found, labels, {"model": digest, "weights": "final"})
    target = bundle / CROSS_VALIDATION
    scores.write_scores(target, content)
    values = {key: value for key, value in plan.items() if key != "reasons"}
    title = f"{plan['name']}, cross-validation"
    report.write_report(content, _report(target), title=title, plan=values, reasons=plan["reasons"], base=target.parent)
    write_json(bundle / QUALITY, {"weights": digest, "fold": "all", "classes": _calibrated(bundle, folds, labels)})
    rules, evidence = ({}, {}) if plan.get("regions") else _proved(bundle, content["cases"], labels, plan.get("ignore"))
    write_json(bundle / COMPONENTS, {"weights": digest, "rules": rules, "evidence": evidence})
    return target


def is_assembled(bundle: Path) -> bool:
    """Whether all folds were made into the model that is there."""
    return bool(said_of(bundle / COMPONENTS, bundle / MODEL))  # what `assemble` writes last


def cross_validation(bundle: Path) -> Path | None:
    """The scores of a bundle's ensemble; None where its weights are others."""
    path = bundle / CROSS_VALIDATION
    if not path.is_file() or not (bundle / MODEL).is_file():
        return None
    return path if scores.read_scores(path).get("model") == weights_digest(bundle) else None


def _placed(content: dict[str, Any], files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Scores of a fold, with the files of its cases where they are now; a case that is listed no more keeps its own."""
    for case in content["cases"]:
        if (now := files.get(case["id"])) is not None:
            images = now["image"]
            case |= {"image": images if isinstance(images, list) else [images], "reference": now["label"]}
    return content


def _pooled(found: Mapping[int, Mapping[str, Any]], labels: Mapping[str, int], extra: Mapping[str, Any]) -> Any:
    """``scores.json`` of all cases, and the means of each fold."""
    cases = [{**case, "fold": fold} for fold, content in found.items() for case in content["cases"]]
    means = [
        {
            "fold": fold,
            "cases": len(content["cases"]),
            "summary": {name: values["mean"] for name, values in content["summary"].items()},
            "classes": {
                name: {metric: values["mean"] for metric, values in metrics.items()}
                for name, metrics in content["classes"].items()
            },
        }
        for fold, content in found.items()
    ]
    return scores.summarise(cases, labels, {**extra, "folds": means})


def _calibrated(bundle: Path, folds: Sequence[int], labels: Mapping[str, int]) -> dict[str, Any]:
    """A calibration per class from the certainty of each fold's network on the cases it was not trained on."""
    whole: dict[str, list[Scored]] = {name: [] for name in labels}
    worse: dict[str, list[Scored]] = {name: [] for name in labels}
    for fold in folds:
        content = said_of(bundle / "eval" / f"fold_{fold}" / CERTAINTY, fold_weights(bundle, fold))
        for name in labels:
            whole[name] += content.get("whole", {}).get(name, [])
            worse[name] += content.get("worse", {}).get(name, [])
    fitted = {name: Calibration.fit(whole[name], worse[name]) for name in labels}
    return {name: None if one is None else one.as_json() for name, one in fitted.items()}


def said_of(path: Path, weights: Path) -> dict[str, Any]:
    """What a JSON file says of these weights; nothing where it is of others."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content if content["weights"] == file_digest(weights) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _proved(
    bundle: Path, cases: Sequence[Mapping[str, Any]], labels: Mapping[str, int], ignore: int | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rules for components that the predictions of all folds prove, and the numbers behind each class.

    Not of regions: a label map has one value per voxel, and what a rule took from one it would take from others too.
    """
    found: dict[str, list[Found]] = {name: [] for name in labels}
    for case in cases:
        made = _scores(bundle, case["fold"]).with_name("predictions") / f"{case['id']}.nii.gz"
        prediction, reference = read_label(made), read_label(case["reference"])
        for name, value in labels.items():
            arrays = prediction.array[0], reference.array[0].astype(np.int64)
            found[name].append(Found.of(*arrays, value, prediction.grid.voxel_volume, ignore))
    proofs = {name: prove(of_class) for name, of_class in found.items()}
    rules = {name: dict(rule) for name, (rule, _) in proofs.items() if rule is not None}
    return rules, {name: numbers for name, (_, numbers) in proofs.items()}


def _record(bundle: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads((bundle / _RECORD).read_text(encoding="utf-8"))
        kept = {"plan": str(content["plan"]), "given": dict(content["given"]), "done": dict(content["done"])}
        return {**kept, "alone": content.get("alone")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _left(bundle: Path, fold: int) -> list[str]:
    """Digests of what a finished fold leaves."""
    files = (fold_weights(bundle, fold), _scores(bundle, fold))
    return [file_digest(path) if path.is_file() else "" for path in files]


def _scores(bundle: Path, fold: int) -> Path:
    return bundle / "eval" / f"fold_{fold}" / "scores.json"


def _report(scored: Path) -> Path:
    return scored.with_name("report.html")


def _foreground(labels: Mapping[str, int]) -> dict[str, int]:
    return {name: int(value) for number, (name, value) in enumerate(labels.items()) if number}
