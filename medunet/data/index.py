"""The cases of a dataset, their channels, labels, patients and folds; plain records, no voxels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from medunet.data.labelling import IGNORE, Declared, declared, require_consistent
from medunet.errors import DatasetError
from medunet.types import StrPath

FOLDS = 5


@dataclass(frozen=True)
class Case:
    """One scan: a file per channel (or one file with all) and its label map, relative to the dataset's root."""

    id: str
    images: tuple[str, ...]
    label: str | None
    patient: str
    weight: float = 1.0
    split: str | None = None


@dataclass(frozen=True)
class Finding:
    """Something noticed about a case; a fatal one means that it cannot be trained on."""

    case: str
    kind: str
    message: str
    fatal: bool

    @classmethod
    def of(cls, case: str, kind: str, message: str, fatal: bool = True) -> Finding:
        """A finding whose message starts with the case."""
        return cls(case, kind, f"{case}: {message}", fatal)


@dataclass(frozen=True)
class Index:
    """A dataset as medunet sees it. `labels` maps names to stored values, background first.

    Of `regions`, which may overlap, `labels` holds the value that is written for each, and `regions` the values of
    label maps that belong to it. Voxels with the value `ignore` are not annotated.

    Channels and labels that the dataset does not declare are empty until `examine` has seen what is there.
    """

    root: str
    name: str
    layout: str
    channels: tuple[str, ...]
    labels: dict[str, int]
    training: tuple[Case, ...]
    test: tuple[Case, ...] = ()
    findings: tuple[Finding, ...] = field(default=(), repr=False)
    licence: str = ""
    reference: str = ""
    regions: dict[str, list[int]] = field(default_factory=dict)
    ignore: int | None = None

    def paths(self, case: Case) -> tuple[list[Path], Path | None]:
        """Absolute paths of a case's images and label."""
        root = Path(self.root)
        return [root / image for image in case.images], None if case.label is None else root / case.label

    def fold_of(self, case: Case, folds: int = FOLDS) -> int:
        """The fold of a case: a fold number from the datalist, else by its patient.

        Patients are placed by rendezvous hashing (Thaler and Ravishankar 1998): the fold depends on the patient's name
        alone, so that old cases keep their fold when cases are added.
        """
        if case.split is not None and case.split.isdigit():
            return int(case.split) % folds
        return max(range(folds), key=lambda fold: _score(case.patient, fold))

    def split(self, fold: int, folds: int = FOLDS) -> tuple[list[Case], list[Case]]:
        """Training and validation cases of a fold; scans of one patient never stand on both sides.

        A fold that drew no patient borrows the one that scores highest for it; a fold that drew all keeps only its
        highest. A single patient is trained and validated on: such a score is not independent.
        """
        own = {case.patient for case in self.training if self.fold_of(case, folds) == fold}
        everyone = {case.patient for case in self.training}
        if not own or (own == everyone and len(everyone) > 1):
            own = {max(sorted(everyone), key=lambda patient: _score(patient, fold))} if everyone else set()
        validation = [case for case in self.training if case.patient in own]
        training = [case for case in self.training if case.patient not in own]
        return training or validation, validation

    def filled_folds(self, folds: int = FOLDS) -> list[int]:
        """The folds that patients of their own fell into."""
        return sorted({self.fold_of(case, folds) for case in self.training})

    def without(self, ids: set[str]) -> Index:
        """The index without some training cases."""
        return replace(self, training=tuple(case for case in self.training if case.id not in ids))

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {"format": "medunet index", **content}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Index:
        """The inverse of `as_json`.

        Raises:
            DatasetError: it is not an index.
        """
        try:
            values = {key: value for key, value in content.items() if key != "format"}
            for side in ("training", "test"):
                values[side] = tuple(Case(**{**case, "images": tuple(case["images"])}) for case in values[side])
            values["findings"] = tuple(Finding(**finding) for finding in values["findings"])
            values["channels"] = tuple(values["channels"])
            if IGNORE in values["labels"] or "regions_class_order" in values:
                order = values.pop("regions_class_order", None)
                values |= vars(declared(values["labels"], order, "the index"))
            index = cls(**values)
        except (KeyError, TypeError) as error:
            raise DatasetError(f"the index cannot be read ({error}); write it again with medunet index") from error
        require_consistent(Declared(index.labels, index.regions, index.ignore), "the index")
        return index

    def digest(self) -> str:
        """sha256 over everything but the place of the dataset; the order of labels and regions counts."""
        content = json.dumps({**self.as_json(), "root": "", "findings": []})
        return hashlib.sha256(content.encode()).hexdigest()


def read_index(dataset: StrPath, *, allow_gaps: bool = False) -> Index:
    """Recognise a dataset folder, a datalist file, or an index written before; voxels are not read.

    With `allow_gaps`, missing DICOM slices are interpolated instead of refused.

    Raises:
        DatasetError: it is missing or nothing is recognised.
    """
    from medunet.data.layouts import recognise

    dataset = Path(dataset)
    if not dataset.exists():
        raise DatasetError(f"{dataset}: dataset is missing; give a folder, a datalist (.csv, .json) or an index JSON")
    if dataset.suffix == ".json" and dataset.is_file():
        content = read_json(dataset)
        if isinstance(content, dict) and content.get("format") == "medunet index":
            return Index.from_json(content)
    return recognise(dataset.resolve(), allow_gaps=allow_gaps)


def read_json(path: Path) -> Any:
    """The content of a JSON file; None where there is no file.

    Raises:
        DatasetError: it is not JSON.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetError(f"{path}: is not valid JSON ({error}); mend it") from error


def _score(patient: str, fold: int) -> bytes:
    return hashlib.sha256(f"{patient}:{fold}".encode()).digest()
