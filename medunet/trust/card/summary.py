"""What may leave the house of a bundle's private ``eval/``: counts, ranges and means; nothing of a single case.

The packer writes them to ``docs/scores.json`` and ``docs/data.json``; the model card is made of them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medunet.errors import InputError
from medunet.trust.card.recipe import recipes_in

FEWEST = 3
"""Cases below which a range or a mean volume would describe a person."""

_OF_THE_PATIENT = ("volume_ml", "reference_volume_ml", "volume_error_ml", "lesions")


def summarise_scores(eval_dir: Path) -> dict[str, Any]:
    """``{"folds": [{"fold", "cases", "weights", "summary", "classes", "training"}]}`` of ``fold_*/scores.json``.

    An ensemble has ``"pooled"`` beside it: all cases of ``cross_validation.json``, where that is of the bundle's
    ``models/model.pt``, and the folds that it rests on. Volumes and counts of lesions are left out where there are
    fewer than `FEWEST` cases.

    Raises:
        InputError: a scores file cannot be read.
    """
    folds = []
    for path in sorted(eval_dir.glob("fold_*/scores.json"), key=lambda path: _number(path.parent.name)):
        scores = _read(path)
        fold = {"fold": _number(path.parent.name), **_means(scores)}
        folds.append({**fold, "training": _training(path.parent / "log.jsonl", scores.get("best"))})
    path, model = eval_dir / "cross_validation.json", eval_dir.parent / "models" / "model.pt"
    pooled = _read(path) if path.is_file() and model.is_file() else {}
    if not pooled or pooled.get("model") != _sha256(model):
        return {"folds": folds}
    return {"folds": folds, "pooled": {"of": [fold["fold"] for fold in pooled["folds"]], **_means(pooled)}}


def _means(scores: Mapping[str, Any]) -> dict[str, Any]:
    """What a scores file says, without its cases."""
    cases = len(scores.get("cases", ()))
    means = {
        "cases": cases,
        "weights": scores.get("weights", "unknown"),
        "summary": _metrics(scores.get("summary", {}), cases),
        "classes": {name: _metrics(values, cases) for name, values in scores.get("classes", {}).items()},
    }
    return {**means, **({"nsd_tolerance_mm": scores["nsd_tolerance_mm"]} if "nsd_tolerance_mm" in scores else {})}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def summarise_data(eval_dir: Path) -> dict[str, Any]:
    """Counts of cases and patients, and with `FEWEST` cases or more the ranges of spacing (mm) and size (voxels).

    From ``fingerprint.json`` and ``index.json``; axes run left-right, back-front, foot-head.

    Raises:
        InputError: a file cannot be read.
    """
    fingerprint, index = (
        _read(eval_dir / name) if (eval_dir / name).is_file() else {} for name in ("fingerprint.json", "index.json")
    )
    if not fingerprint and not index:
        return {}
    training = index.get("training", ())
    cases = int(fingerprint.get("cases", len(training)))
    facts: dict[str, Any] = {"cases": cases}
    if training:
        facts["patients"] = len({case.get("patient", case["id"]) for case in training})
        facts["test_cases"] = len(index.get("test", ()))
    facts["modalities"] = [channel["name"] for channel in fingerprint.get("channels", ())] or index.get("channels", [])
    facts["class_cases"] = fingerprint.get("class_cases", {})
    if cases >= FEWEST:
        facts["spacing_mm"] = _ranges(fingerprint.get("spacings", ()))
        facts["size_voxels"] = _ranges(fingerprint.get("shapes", ()))
    return facts


def _metrics(values: Mapping[str, Any], cases: int) -> dict[str, Any]:
    """Mean, interval, spread and counts of each metric."""
    kept = ("mean", "ci95", "std", "n", "left_out")
    return {
        name: {key: metric[key] for key in kept if key in metric}
        for name, metric in values.items()
        if isinstance(metric, Mapping) and not (cases < FEWEST and name in _OF_THE_PATIENT)
    }


def _training(log: Path, best: Any) -> dict[str, Any]:
    """Steps, epochs, minutes and recipe of a run from its log; what is not known is left out."""
    facts: dict[str, Any] = {}
    rows = []
    if log.is_file():
        for line in log.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    steps = [row for row in rows if isinstance(row, dict) and row.get("event") == "train"]
    if steps:
        facts |= {key: steps[-1][key] for key in ("step", "epoch") if key in steps[-1]}
    *earlier, recipe = recipes_in(rows) or [{}]
    if recipe:
        facts |= {"recipe": recipe, "earlier_recipes": earlier} if earlier else {"recipe": recipe}
    times = [row["time"] for row in rows if isinstance(row, dict) and isinstance(row.get("time"), int | float)]
    if times:  # they begin anew with each call that goes on with the run
        ends = [time for time, after in itertools.pairwise([*times, 0.0]) if after < time]
        facts["minutes"] = round(sum(ends) / 60, 2)
    if isinstance(best, Mapping):
        facts["best"] = {key: best[key] for key in ("dice", "step") if key in best}
    return facts


def _ranges(rows: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """Smallest, middle and largest of each axis."""
    columns = list(zip(*rows, strict=False))
    if not columns:
        return {}
    return {
        "min": [min(column) for column in columns],
        "median": [statistics.median(column) for column in columns],
        "max": [max(column) for column in columns],
    }


def _number(name: str) -> int:
    digits = name.rpartition("_")[2]
    return int(digits) if digits.isdigit() else -1


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); write it again with medunet train or plan") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: is not an object; write it again with medunet train or plan")
    return content
