"""From metrics per case to ``scores.json``: per case, per class, and a summary with bootstrap intervals."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from medunet.data.atomic import write_json, write_text
from medunet.data.dicom.source import Source
from medunet.data.grid import Grid
from medunet.data.index import Index
from medunet.data.labelling import IGNORE, Declared, Values, members, require_apart
from medunet.data.volume import aligned, read_label
from medunet.errors import InputError, MedunetError
from medunet.evaluation.instances import instance_scores
from medunet.evaluation.metrics import Value, measure, pixel_accuracy
from medunet.evaluation.pairs import dataset_of, declared_beside, pairs_of, predicted_images, refuse_objects
from medunet.types import AnyArray, FloatArray, IntArray

RESAMPLES, SEED = 2000, 20260101
NSD_TOLERANCE = 1.0
_HEADER = "case,class"


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
    draws = _draws(len(cases))
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


def _draws(cases: int) -> FloatArray:
    """How often each resample (a row) drew each case (a column)."""
    drawn = np.random.default_rng(SEED).integers(0, max(1, cases), (RESAMPLES, cases))
    places = (drawn + cases * np.arange(RESAMPLES)[:, None]).ravel()
    return np.bincount(places, minlength=RESAMPLES * cases).reshape(RESAMPLES, cases).astype(np.float64)


def _statistics(table: FloatArray, draws: FloatArray) -> dict[str, Any]:
    """Mean of the class means with its interval, spread over cases, and how many values went in; `draws`: of `_draws`.

    Shapes: (cases, classes), (resamples, cases).
    """
    defined = ~np.isnan(table)
    if not defined.any():
        return {"mean": None, "ci95": [None, None], "std": None, "median": None, "n": 0, "left_out": int(table.size)}
    filled = np.where(defined, table, 0.0)
    sums, counts = draws @ filled, draws @ defined
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

    References are label maps of the same names, or a dataset: a datalist, an index JSON, a folder of images and labels,
    or one of DICOM with label objects; its cases belong to the predictions that were made from their images. Where
    `labels` are not given they are those of the dataset, or of a ``dataset.json`` beside the folder of label maps. What
    `pairs_of` finds without a prediction, and a pair that cannot be compared, is listed under ``failed``. Voxels with
    the value that `labels` gives for ``ignore``, or else the dataset unless `labels` names it, count nowhere. With
    `instances` both number objects: the one class is all of them, under the first name of `labels` (``cell``), with
    `instance_scores` beside it.

    Raises:
        InputError: a folder is missing, values number objects or contradict each other, or no pair can be compared.
    """
    images, dataset = predicted_images(predictions), dataset_of(references)
    pairs = pairs_of(predictions, references, dataset, images)
    failed = pairs.failed
    if instances:
        scored: dict[str, Values] = {next(iter(labels or {"cell": 1})): 1}
        ignore = None
    else:
        scored, ignore = _classes(references, dataset, labels)
        scored = scored or _found_labels(pairs.found, ignore)
    cases = []
    for case, (prediction_path, reference_path) in pairs.found.items():
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
    extra |= {"instances": True} if instances else {}
    extra |= {"unpredicted": pairs.unpredicted} if pairs.unpredicted else {}
    return summarise(cases, scored, extra)


def _classes(
    references: Path, dataset: Index | None, labels: Mapping[str, Values] | None
) -> tuple[dict[str, Values], int | None]:
    """The classes to score, and the value to ignore: as given, else as the dataset or ``dataset.json`` declares."""
    given = dict(labels or {})
    ignore = _ignored(given.pop(IGNORE, None))
    known: Index | Declared = dataset or Declared()
    if dataset is None:
        refuse_objects(references)
        try:
            known = declared_beside(references)
        except InputError:
            if not given:
                raise
    scored = given or members(known.labels, known.regions)
    named = {value for own in scored.values() for value in ([own] if isinstance(own, int) else own)}
    if ignore is None and known.ignore not in named:
        ignore = known.ignore
    require_apart(ignore, {"background": 0, **scored}, "labels")
    return scored, ignore


def _ignored(value: Values | None) -> int | None:
    if value is None or isinstance(value, int):
        return value
    raise InputError(f"labels: '{IGNORE}' has values {list(value)}; give one whole number")


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
    masks = (mine != 0).astype(np.uint8), (true != 0).astype(np.uint8)
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
    return _whole(prediction.array[0]), _whole(reference.array[0]), reference.grid, paths


def _whole(array: AnyArray) -> IntArray:
    """The numbers as they are stored, where all of them fit a signed type."""
    return array if array.dtype.kind in "iu" and np.can_cast(array.dtype, np.int64) else array.astype(np.int64)


def _found_labels(pairs: Mapping[str, tuple[Path, Path]], ignore: int | None) -> dict[str, Values]:
    values: set[int] = set()
    for _, reference in pairs.values():
        with suppress(MedunetError):  # a broken one is told when its turn comes
            values |= {int(value) for value in np.unique(read_label(reference).array)}
    return {f"label_{value}": value for value in sorted(values - {0, ignore})}


def require_target(path: Path, references: Path) -> None:
    """Refuse to write scores to `path` where that, or the CSV beside it, would take the place of something else.

    Raises:
        InputError: it ends in .csv, is the references, or another kind of CSV lies beside it.
    """
    table = path.with_suffix(".csv")
    if path.suffix.lower() == ".csv":
        raise InputError(f"{path}: is what the CSV beside the scores is called; give a name such as {path.stem}.json")
    for target in (path, table):
        if target.resolve() == references.resolve():
            raise InputError(f"{target}: are the references and would be overwritten; give another name for the scores")
    if table.is_file() and table.stat().st_size and not table.read_bytes().startswith(_HEADER.encode()):
        raise InputError(f"{table}: is no table of scores and would be overwritten; give another name for the scores")


def write_scores(path: Path, scores: Mapping[str, Any]) -> None:
    """Write ``scores.json`` and, beside it, a CSV with a row per case and class."""
    write_json(path, scores)
    write_text(path.with_suffix(".csv"), _csv(scores))


def _csv(scores: Mapping[str, Any]) -> str:
    metrics = list(dict.fromkeys(m for case in scores["cases"] for values in case["classes"].values() for m in values))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_HEADER.split(","), *metrics])
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
