"""Datalists: a CSV or JSON file with a row per case.

Columns: image (or image_0, image_1, ..., or several files with ``;`` between them), label, and optionally id, patient,
split (train, test or a fold number), weight and roi. Paths are relative to the file.

An image may be a DICOM folder, zip or file, or a SeriesInstanceUID below the datalist's folder; a label may be a DICOM
SEG or RTSTRUCT, of which ``roi`` names the structures: ``GTV`` or ``GTV=1;Node=2``. A pixel of a FRACTIONAL segment
counts from ``threshold`` on, 0.5 of the maximum where it is not given.
"""

from __future__ import annotations

import csv
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import quote

from medunet.data.dicom.source import Source
from medunet.data.index import Case, Finding, Index, read_json
from medunet.data.volume import stem_of, suffix_of
from medunet.errors import DatasetError, InputError

_UID = re.compile(r"[0-9]+(\.[0-9]+){4,}")  # a SeriesInstanceUID


def read_datalist(path: Path) -> tuple[list[Case], list[Case], dict[str, Any]]:
    """Training cases, test cases, and other facts (name, labels, ...).

    Raises:
        DatasetError: it is not a datalist, or a row is not complete.
    """
    rows, facts = _rows(path)
    cases = [_case(row, number, path) for number, row in enumerate(rows)]
    test = [case for case in cases if case.split == "test"]
    training = [case for case in cases if case.split != "test"]
    if not training:
        raise DatasetError(f"{path}: has no training case; give a row per case with columns image and label")
    return training, test, {"name": path.stem, **facts}


def with_patients_checked(index: Index) -> Index:
    """The index with a finding for each patient who is in the test set too; patients have to be settled (PatientID).

    Raises:
        DatasetError: scans of one patient are given different folds, or some of them none.
    """
    folds: dict[str, set[str]] = defaultdict(set)
    for case in index.training:
        folds[case.patient].add(case.split or "(none given)")
    for patient, own in folds.items():
        if len(own) > 1:
            raise DatasetError(
                f"{index.root}: patient {patient} is in folds {' and '.join(sorted(own))}; give its scans one fold"
            )
    tested = {case.patient for case in index.test}
    told = tuple(
        Finding.of(
            case.id, "patient in test set", f"patient {case.patient} is in the test set too; split by patient", False
        )
        for case in index.training
        if case.patient in tested
    )
    return replace(index, findings=(*index.findings, *told))


def _rows(path: Path) -> tuple[list[Mapping[str, Any]], dict[str, Any]]:
    if path.suffix.lower() == ".csv":
        return _csv_rows(path), {}
    content = read_json(path)
    facts: dict[str, Any] = {}
    rows = content
    if isinstance(content, dict) and isinstance(content.get("training"), list):
        tests = [row if isinstance(row, dict) else {"image": row} for row in content.get("test", [])]
        rows = [*content["training"], *({"split": "test", **row} for row in tests)]
        facts = {key: value for key, value in content.items() if key not in ("training", "test")}
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DatasetError(f"{path}: is not a datalist; give a CSV, or a JSON list of {{image, label}}")
    return rows, facts


def _csv_rows(path: Path) -> list[Mapping[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [{k.strip(): (v or "").strip() for k, v in row.items() if k} for row in csv.DictReader(file)]
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: is not UTF-8 ({error.reason}); save it as CSV UTF-8") from error


def _case(row: Mapping[str, Any], number: int, path: Path) -> Case:
    columns = [key for key in row if re.fullmatch(r"image(_\d+)?", key) and row[key]]
    if not columns:
        raise DatasetError(f"{path}: row {number + 1} has no column image; give image (or image_0, image_1, ...)")
    files: list[str] = []
    for column in sorted(columns, key=lambda key: (len(key), key)):
        files += listed(row[column], path.parent)
    files = [f".#series={file}" if _UID.fullmatch(file) else relative(file) for file in files]
    case = str(row.get("id") or _name(files[0]))
    return Case(
        id=case,
        images=tuple(files),
        label=_label(row),
        patient=str(row.get("patient") or case),
        weight=_weight(row.get("weight"), case, path),
        split=_split(row, case, path),
    )


def _name(file: str) -> str:
    """A case's name from its first file; from the folders above for a folder of DICOM, which is often called image."""
    path = Path(file.partition("#")[0])
    folders = [part for part in path.parts if part.lower() not in ("image", "images", "dicom", ".", "..")]
    return stem_of(path) if suffix_of(path) else "_".join(folders) or file.removeprefix(".#series=")


def _label(row: Mapping[str, Any]) -> str | None:
    if not row.get("label"):
        return None
    options = [f"{key}={quote(str(row[key]), safe=' ')}" for key in ("roi", "threshold") if row.get(key)]
    return relative(str(row["label"])) + (f"#{'&'.join(options)}" if options else "")


def _weight(value: Any, case: str, path: Path) -> float:
    if value in (None, ""):
        return 1.0
    try:
        weight = float(value)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{path}: weight '{value}' of {case} is not a number; give a positive one") from error
    if not 0 < weight < float("inf"):
        raise DatasetError(f"{path}: weight {weight:g} of {case} is not positive; give a positive number")
    return weight


def _split(row: Mapping[str, Any], case: str, path: Path) -> str | None:
    """``test``, a fold number, or None for a training case whose fold follows from its patient."""
    given = [str(row[key]).strip() for key in ("split", "fold") if row.get(key) is not None]
    for text in (t for t in given if t.lower() not in ("", "train", "training")):
        if text.lower() == "test":
            return "test"
        if re.fullmatch(r"\d+(\.0*)?", text):
            return text.split(".")[0]
        raise DatasetError(f"{path}: split '{text}' of {case} is not known; give train, test or a fold number")
    return None


def listed(value: Any, root: Path) -> list[str]:
    """File names of a list, or of a text with ``;`` between them; a text that is one path below `root` is one name.

    Raises:
        InputError: one of several names has a ``;`` of its own.
    """
    if isinstance(value, list):
        return [str(v) for v in value]
    parts = [part.strip() for part in str(value).split(";")]
    if len(parts) == 1 or _is_there(str(value).strip(), root):
        return [str(value).strip()]
    for first, last in combinations(range(len(parts) + 1), 2):
        path = ";".join(parts[first:last])
        if last - first > 1 and _is_there(path, root):
            raise InputError(
                f"{value}: ';' stands between the channels of a case and the path {path} has one; rename it"
            )
    return parts


def _is_there(source: str, root: Path) -> bool:
    return os.path.exists(Source.parse(root / source).path)


def relative(path: str) -> str:
    """A path as the records keep it."""
    return path.removeprefix("./")
