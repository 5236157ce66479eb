"""Which prediction belongs to which reference: by the image that it was made from, or by their names."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medunet.data.dicom.source import Source
from medunet.data.index import Case, Index, read_index, read_json
from medunet.data.labelling import Declared, declared
from medunet.data.layouts import INSTANCES, image_name, is_dataset, label_name
from medunet.data.volume import stem_of, suffix_of
from medunet.errors import InputError


@dataclass
class Pairs:
    """`found`: case -> prediction and reference; `failed`: what has no partner, as in ``scores.json``.

    `unpredicted` counts the training cases of a dataset that nobody predicted.
    """

    found: dict[str, tuple[Path, Path]]
    failed: list[dict[str, str]] = field(default_factory=list)
    unpredicted: int = 0


def pairs_of(predictions: Path, references: Path, dataset: Index | None, images: Mapping[str, Any]) -> Pairs:
    """Every reference with its prediction; `images`: what `predicted_images` told.

    A label map without a prediction is listed, and so is a test case once another test case has one. A training case is
    counted only: predictions of a fold are never of all.

    Raises:
        InputError: a folder is missing, or two files of it have one name.
    """
    if dataset is None:
        return _pairs(predictions, references)
    made_from = {Source.parse(known["image"][0]).stack(): Path(output) for output, known in images.items()}
    sides = [[case for case in side if case.label] for side in (dataset.training, dataset.test)]
    named = _by_name([case.id for side in sides for case in side], label_files(predictions))

    def prediction_of(case: Case) -> Path | None:
        found = made_from.get(Source.parse(dataset.paths(case)[0][0]).stack(), named.get(case.id))
        return found if found is not None and found.is_file() else None

    training, test = ({case.id: (prediction_of(case), dataset.paths(case)[1]) for case in side} for side in sides)
    pairs = Pairs({case: (mine, true) for case, (mine, true) in {**training, **test}.items() if mine and true})
    if training.keys() & pairs.found.keys():
        pairs.failed = [{"id": told.case, "message": told.message} for told in dataset.findings if told.fatal]
        pairs.unpredicted = len(training.keys() - pairs.found.keys())
    if test.keys() & pairs.found.keys():
        pairs.failed += [_unpredicted(case, predictions) for case in test if case not in pairs.found]
    return pairs


def _pairs(predictions: Path, references: Path) -> Pairs:
    if predictions.is_file() and references.is_file():
        return Pairs({stem_of(references): (predictions, references)})
    true = label_files(references)
    predicted = _by_name(true, label_files(predictions))
    return Pairs(
        {case: (predicted[case], path) for case, path in true.items() if case in predicted},
        [_unpredicted(case, predictions) for case in true if case not in predicted],
    )


def _unpredicted(case: str, predictions: Path) -> dict[str, str]:
    message = f"{case}: has no prediction in {predictions}; predict it or remove the reference"
    return {"id": case, "message": message}


def _by_name(cases: Collection[str], predicted: Mapping[str, Path]) -> dict[str, Path]:
    """The prediction with a case's name, or with ``_0000`` or ``_image`` after it where only one file is so called.

    A result has the name of the image that it was made from: ``liver_1_0000`` where the reference is ``liver_1``.
    """
    found = {case: predicted[case] for case in cases if case in predicted}
    others: dict[str, list[Path]] = defaultdict(list)
    for name, path in predicted.items():
        if name not in found:
            others[image_name(name)].append(path)
    return found | {case: others[case][0] for case in cases if case not in found and len(others.get(case, ())) == 1}


def label_files(place: Path) -> dict[str, Path]:
    """Files of label maps by the name of their case: ``_mask``, ``_seg`` and the like at the end are no part of it.

    Raises:
        InputError: the folder is missing, or two files have one name.
    """
    if place.is_file():
        return {label_name(stem_of(place)): place}
    found: dict[str, Path] = {}
    for path in _readable(place):
        name = "/".join((*path.relative_to(place).parent.parts, label_name(stem_of(path))))
        if name in found:
            raise InputError(
                f"{place}: {found[name].name} and {path.name} are both the label map of case {name}; keep one of them"
            )
        found[name] = path
    return found


def _readable(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: is missing; give a folder of label maps")
    return sorted(p for p in folder.rglob("*") if p.is_file() and suffix_of(p) and not p.name.startswith("."))


def dataset_of(references: Path) -> Index | None:
    """The dataset that references stand in; None for a folder of label maps or a single one."""
    if references.is_file() and references.suffix.lower() in (".json", ".csv"):
        return read_index(references)
    if references.is_dir() and any(references.iterdir()) and (is_dataset(references) or not _readable(references)):
        return read_index(references)
    return None


def declared_beside(references: Path) -> Declared:
    """What the ``dataset.json`` of an MSD or nnU-Net folder says of the values in its folder of label maps.

    Raises:
        DatasetError: it is not JSON, or contradicts itself.
        InputError: it declares that the values number objects.
    """
    path = _folder(references).parent / "dataset.json"
    content = read_json(path)
    if not isinstance(content, dict):
        return Declared()
    beside = {folder.name.lower() for folder in path.parent.iterdir() if folder.is_dir()}
    if content.get("instances") and not beside & {*INSTANCES}:
        raise _objects(references, f"{path} declares instances")
    return declared(content.get("labels"), content.get("regions_class_order"), str(path))


def refuse_objects(references: Path) -> None:
    """Refuse a folder whose name says that its values number objects, unless they are scored as objects.

    Raises:
        InputError: its name says so.
    """
    if _folder(references).name.lower() in INSTANCES:
        raise _objects(references, "by the folder's name")


def _objects(references: Path, reason: str) -> InputError:
    return InputError(f"{references}: are numbered objects ({reason}), not classes; give --instances")


def _folder(references: Path) -> Path:
    return (references if references.is_dir() else references.parent).resolve()


def predicted_images(predictions: Path) -> dict[str, dict[str, Any]]:
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
