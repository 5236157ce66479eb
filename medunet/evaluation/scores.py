"""From metrics per case to ``scores.json``: per case, per class, and a summary with bootstrap intervals."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medunet.data.atomic import write_json, write_text
from medunet.data.dicom.source import Source
from medunet.data.grid import Grid
from medunet.data.index import Index, read_index, read_json
from medunet.data.labelling import IGNORE, Declared, Values, declared, members
from medunet.data.volume import aligned, read_label, stem_of, suffix_of
from medunet.errors import InputError, MedunetError
from medunet.evaluation.instances import instance_scores
from medunet.evaluation.metrics import Value, measure, pixel_accuracy
from medunet.types import FloatArray, IntArray

RESAMPLES, SEED = 2000, 20260101
NSD_TOLERANCE = 1.0
_LABEL_ENDS = ("_mask", "_label", "_labels", "_seg")


def case_scores(
    case: str,
    prediction: IntArray,
    reference: IntArray,
    labels: Mapping[str, Values],
    grid: Grid,
    paths: Mapping[str, Any] | None = None,
    nsd_tolerance: float = NSD_TOLERANCE,
    ignore: int | None = None,
) -> dict[str, Any]:
    """The entry of one case in ``scores.json``; label maps are (x, y, z) on `grid`.

    `labels`: the value of each class, or the values of each region; `ignore`: of voxels nobody annotated.
    """
    return {
        "id": case,
        "pixel_accuracy": pixel_accuracy(prediction, reference, labels, ignore),
        "classes": measure(prediction, reference, labels, grid.spacing, nsd_tolerance, grid.voxel_volume, ignore),
        **(paths or {}),
    }


def summarise(
    cases: Sequence[Mapping[str, Any]], labels: Mapping[str, Values], extra: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The content of ``scores.json``.

    A class's mean is over the cases where the metric is defined; ``left_out`` counts the others. The summary's mean is
    the mean of the class means; its interval is the percentile bootstrap over cases (Efron and Tibshirani 1993).
    """
    names = [name for name, value in labels.items() if value != 0]
    metrics = list(dict.fromkeys(metric for case in cases for name in names for metric in case["classes"][name]))
    tables = {metric: _table(cases, names, metric) for metric in metrics}
    draws = np.random.default_rng(SEED).integers(0, max(1, len(cases)), (RESAMPLES, len(cases)))
    classes: dict[str, Any] = {name: {} for name in names}
    summary: dict[str, Any] = {}
    for metric, table in tables.items():
        for column, name in enumerate(names):
            classes[name][metric] = _statistics(table[:, column : column + 1], draws)
        summary[metric] = _statistics(table, draws)
    accuracies = [[_number(case["pixel_accuracy"])] for case in cases if "pixel_accuracy" in case]
    if accuracies and len(accuracies) == len(cases):
        summary["pixel_accuracy"] = _statistics(np.array(accuracies), draws)
    return {"summary": summary, "classes": classes, "cases": list(cases), **(extra or {})}


def _table(cases: Sequence[Mapping[str, Any]], names: Sequence[str], metric: str) -> FloatArray:
    rows = [[_number(case["classes"][name].get(metric)) for name in names] for case in cases]
    return np.array(rows, dtype=np.float64).reshape(len(cases), len(names))


def _number(value: Value) -> float:
    return float("nan") if value is None else float(value)


def _statistics(table: FloatArray, draws: IntArray) -> dict[str, Any]:
    """Mean of the class means with its interval, spread over cases, and how many values went in."""
    defined = ~np.isnan(table)
    if not defined.any():
        return {"mean": None, "ci95": [None, None], "std": None, "median": None, "n": 0, "left_out": int(table.size)}
    filled = np.where(defined, table, 0.0)
    sums, counts = filled[draws].sum(axis=1), defined[draws].sum(axis=1)
    with np.errstate(invalid="ignore"):
        means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    usable = means[~np.isnan(means).all(axis=1)]
    resampled = np.nanmean(usable, axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    values = table[defined]
    columns = defined.any(axis=0)
    mean = float(np.mean(filled.sum(axis=0)[columns] / defined.sum(axis=0)[columns]))
    return {
        "mean": mean,
        "ci95": [float(low), float(high)],
        "std": float(values.std(ddof=1)) if values.size > 1 else 0.0,
        "median": float(np.median(values)),
        "n": int(defined.sum()),
        "left_out": int(table.size - defined.sum()),
    }


def evaluate(
    predictions: Path,
    references: Path,
    labels: Mapping[str, Values] | None = None,
    nsd_tolerance: float = NSD_TOLERANCE,
    *,
    instances: bool = False,
) -> dict[str, Any]:
    """Score a folder (or file) of label maps against references.

    References are label maps of the same names, or a dataset: a datalist, an index JSON, or a folder of DICOM with
    label objects; its cases belong to the predictions that were made from their images. Where `labels` are not given
    they are those of the dataset, or of a ``dataset.json`` beside the folder of label maps. A reference without a
    prediction, and a pair that cannot be compared, is listed under ``failed``. Voxels with the value that `labels`
    gives for ``ignore``, or else the dataset, count nowhere. With `instances` both number objects: the one class is all
    of them, under the first name of `labels` (``cell``), with `instance_scores` beside it.

    Raises:
        InputError: a folder is missing, or no pair can be compared.
    """
    images = _predicted_images(predictions)
    dataset = _dataset(references)
    pairs, failed = _pairs(predictions, references) if dataset is None else _pairs_of(dataset, predictions, images)
    known = _declared_beside(references) if dataset is None else dataset
    scored = dict(labels or members(known.labels, known.regions))
    ignore = _ignored(scored.pop(IGNORE, known.ignore))
    if instances:
        scored, ignore = {next(iter(labels or {"cell": 1})): 1}, None
    scored = scored or _found_labels(pairs, ignore)
    cases = []
    for case, (prediction_path, reference_path) in pairs.items():
        try:
            if instances:
                entry = _score_objects(case, prediction_path, reference_path, scored, nsd_tolerance)
            else:
                entry = _score_pair(case, prediction_path, reference_path, scored, nsd_tolerance, ignore)
            cases.append({**entry, **images.get(str(prediction_path), {})})
        except MedunetError as error:
            failed.append({"id": case, "message": str(error)})
    if not cases:
        first = failed[0]["message"] if failed else "no files"
        raise InputError(
            f"{predictions}: no prediction can be compared with {references} ({first}); give equal file names"
        )
    extra = {"labels": scored, "nsd_tolerance_mm": nsd_tolerance, "failed": failed}
    extra |= {} if ignore is None else {"ignore": ignore}
    return summarise(cases, scored, extra)


def _ignored(value: Values | None) -> int | None:
    if value is None or isinstance(value, int):
        return value
    raise InputError(f"labels: '{IGNORE}' has values {list(value)}; give one whole number")


def _dataset(references: Path) -> Index | None:
    """The dataset that references stand in; None for a folder of label maps or a single one."""
    if references.is_file() and references.suffix.lower() in (".json", ".csv"):
        return read_index(references)
    if references.is_dir() and not _label_files(references) and any(references.iterdir()):
        return read_index(references)
    return None


def _declared_beside(references: Path) -> Declared:
    """What the ``dataset.json`` of an MSD or nnU-Net folder says of the values in its folder of label maps."""
    place = references if references.is_dir() else references.parent
    path = place.resolve().parent / "dataset.json"
    content = read_json(path)
    if not isinstance(content, dict):
        return Declared()
    return declared(content.get("labels"), content.get("regions_class_order"), str(path))


def _pairs_of(
    dataset: Index, predictions: Path, images: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, tuple[Path, Path]], list[dict[str, str]]]:
    """The label of every case whose image a prediction was made from, or which has its name."""
    made_from = {Source.parse(known["image"][0]).stack(): Path(output) for output, known in images.items()}
    named = _label_files(predictions)
    pairs: dict[str, tuple[Path, Path]] = {}
    failed = [{"id": finding.case, "message": finding.message} for finding in dataset.findings if finding.fatal]
    for case in (*dataset.training, *dataset.test):
        paths, label = dataset.paths(case)
        prediction = made_from.get(Source.parse(paths[0]).stack(), named.get(case.id))
        if prediction is not None and prediction.is_file() and label is not None:
            pairs[case.id] = (prediction, label)
    return pairs, failed


def _score_pair(
    case: str,
    prediction_path: Path,
    reference_path: Path,
    labels: Mapping[str, Values],
    tolerance: float,
    ignore: int | None,
) -> dict[str, Any]:
    mine, true, grid, paths = _read_pair(case, prediction_path, reference_path)
    if ignore is not None and (true == ignore).all():
        raise InputError(
            f"{case}: reference {reference_path} has no annotated voxel (all have value {ignore}); leave it out"
        )
    return case_scores(case, mine, true, labels, grid, paths, tolerance, ignore)


def _score_objects(
    case: str, prediction_path: Path, reference_path: Path, labels: Mapping[str, Values], tolerance: float
) -> dict[str, Any]:
    reference_path = Source.parse(reference_path).path  # the objects, not the classes that are made of them
    mine, true, grid, paths = _read_pair(case, prediction_path, reference_path)
    masks = (mine != 0).astype(np.int64), (true != 0).astype(np.int64)
    scored = case_scores(case, *masks, labels, grid, paths, tolerance)
    scored["classes"][next(iter(labels))].update(instance_scores(mine, true))
    return scored


def _read_pair(
    case: str, prediction_path: Path, reference_path: Path
) -> tuple[IntArray, IntArray, Grid, dict[str, str]]:
    """Both label maps on one grid, that grid, and where they lie."""
    prediction = read_label(prediction_path)
    reference = aligned(read_label(reference_path), prediction)
    prediction = aligned(prediction, reference)
    prediction.grid.require(reference.grid, f"reference {reference_path}", f"{case}: prediction")
    paths = {"prediction": str(prediction_path.resolve()), "reference": str(Source.parse(reference_path).absolute())}
    return prediction.array[0].astype(np.int64), reference.array[0].astype(np.int64), reference.grid, paths


def _predicted_images(predictions: Path) -> dict[str, dict[str, Any]]:
    """Images that label maps were made from, and geometry verdicts, from the status file of ``medunet predict``."""
    try:
        content = json.loads((predictions / "status.json").read_text(encoding="utf-8"))
        return {
            str(predictions / case["output"]): {
                "image": case["images"], **({"geometry": case["geometry"]} if case.get("geometry") else {}),
                **({"expected_dice": case["expected_dice"]} if case.get("expected_dice") is not None else {}),
            }
            for case in content["cases"]
        }  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _pairs(predictions: Path, references: Path) -> tuple[dict[str, tuple[Path, Path]], list[dict[str, str]]]:
    predicted, true = _label_files(predictions), _label_files(references)
    if predictions.is_file() and references.is_file():
        return {stem_of(references): (predictions, references)}, []
    pairs = {case: (predicted[case], path) for case, path in true.items() if case in predicted}
    missing = [
        {"id": case, "message": f"{case}: has no prediction in {predictions}; predict it or remove the reference"}
        for case in true
        if case not in predicted
    ]
    return pairs, missing


def _label_files(place: Path) -> dict[str, Path]:
    if place.is_file():
        return {_case_name(place): place}
    if not place.is_dir():
        raise InputError(f"{place}: is missing; give a folder of label maps")
    files = sorted(p for p in place.rglob("*") if p.is_file() and suffix_of(p) and not p.name.startswith("."))
    return {"/".join((*p.relative_to(place).parent.parts, _case_name(p))): p for p in files}


def _case_name(path: Path) -> str:
    stem = stem_of(path)
    return next((stem.removesuffix(end) for end in _LABEL_ENDS if stem.endswith(end)), stem)


def _found_labels(pairs: Mapping[str, tuple[Path, Path]], ignore: int | None) -> dict[str, Values]:
    values: set[int] = set()
    for _, reference in pairs.values():
        values |= {int(value) for value in np.unique(read_label(reference).array)}
    return {f"label_{value}": value for value in sorted(values - {0, ignore})}


def write_scores(path: Path, scores: Mapping[str, Any]) -> None:
    """Write ``scores.json`` and, beside it, a CSV with a row per case and class."""
    write_json(path, scores)
    write_text(path.with_suffix(".csv"), _csv(scores))


def _csv(scores: Mapping[str, Any]) -> str:
    metrics = list(dict.fromkeys(m for case in scores["cases"] for values in case["classes"].values() for m in values))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "class", *metrics])
    for case in scores["cases"]:
        for name, values in case["classes"].items():
            writer.writerow([case["id"], name, *("" if values.get(m) is None else f"{values[m]:.6g}" for m in metrics)])
    return text.getvalue()


def read_scores(path: Path) -> dict[str, Any]:
    """Read ``scores.json``.

    Raises:
        InputError: it is missing or is not a scores file.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: is missing; write it with medunet evaluate or medunet train") from error
    except ValueError as error:
        raise InputError(f"{path}: is not valid JSON ({error}); write it again with medunet evaluate") from error
    if not isinstance(content, dict) or not {"summary", "classes", "cases"} <= set(content):
        raise InputError(f"{path}: is not a scores file (no summary, classes, cases); write it with medunet evaluate")
    return content
