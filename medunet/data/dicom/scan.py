"""What a folder of DICOM holds: stacks of images with a geometry verdict each, label objects, and what is set aside."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from medunet.data.dicom.files import DicomFile, NotRead, dicom_files, quiet
from medunet.data.dicom.frames import COLOUR, Frame, frames_of, unusable
from medunet.data.dicom.geometry import Layout, Stack, Verdict, is_even, lay_out, same_place
from medunet.data.dicom.location import one_line
from medunet.data.dicom.lost import broken_alone, refuse_incomplete, without_uid
from medunet.data.dicom.pixels import pixel_digest
from medunet.data.dicom.suv import SuvError, suv_factor
from medunet.errors import InputError
from medunet.types import FloatArray, StrPath

_SAME_DIRECTION = 2e-3  # of a cosine: scanners round them differently from slice to slice
_MOST_TEXT = 128  # characters: DICOM allows 64 (PS3.5 section 6.2)
_MOST_STACKS = 256  # of a series; more planes that differ are no volumes
_KEYS = (
    "temporal position", "echo", "b-value", "inversion time", "image type", "stack", "trigger time", "acquisition",
)  # fmt: skip
_LABELS = {"1.2.840.10008.5.1.4.1.1.66.4": "SEG", "1.2.840.10008.5.1.4.1.1.481.3": "RTSTRUCT"}
_LABEL_MODALITIES = ("SEG", "RTSTRUCT")
_NO_IMAGES = ("RTDOSE", "RTPLAN", "RTRECORD", "SR", "PR", "KO", "REG", "FID", "DOC", "PLAN", "AU", "ECG")
_VOLUMES = ("CT", "MR", "PT")
_NO_LAYOUT = np.zeros((0, 4, 4))


@dataclass(frozen=True)
class Series:
    """A stack of images: a DICOM series, or the part of one that makes a volume. `part` says what tells it apart."""

    uid: str
    part: str
    number: str
    description: str
    modality: str
    patient: str
    study: str
    frame_of_reference: str
    frames: tuple[Frame, ...] = field(repr=False)
    layout: Layout = field(repr=False)
    value_factor: float = 1.0

    @property
    def verdict(self) -> Verdict:
        """What may be done with it."""
        return self.layout.verdict

    @property
    def name(self) -> str:
        """A short name for a message."""
        label = self.description or f"series {self.number or self.uid}"
        return f"{self.modality} {label}{f' ({self.part})' if self.part else ''}"

    @property
    def folder(self) -> str:
        """Where its files are."""
        return str(self.frames[0].file.location.path.parent)

    def ordered(self) -> list[Frame]:
        """The planes that are used, ascending along the normal."""
        return [self.frames[i] for i in self.layout.order]

    def as_json(self) -> dict[str, Any]:
        """Plain values for a listing; patient and place are the reader's own."""
        grid = self.layout.grid
        return {
            "series": self.uid, "part": self.part, "number": self.number, "description": self.description,
            "modality": self.modality, "patient": self.patient, "study": self.study,
            "frame_of_reference": self.frame_of_reference, "images": len(self.frames), "folder": self.folder,
            **self.verdict.as_json(), "grid": None if grid is None else grid.as_json(),
        }  # fmt: skip


@dataclass(frozen=True)
class LabelObject:
    """A segmentation or structure set and the series that it speaks of."""

    path: Path
    kind: str
    patient: str
    frame_of_reference: str
    description: str


@dataclass(frozen=True)
class Scan:
    """Everything that was found, in the order of patient, study and series."""

    series: tuple[Series, ...]
    labels: tuple[LabelObject, ...]
    aside: tuple[NotRead, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "series": [series.as_json() for series in self.series],
            "labels": [{**vars(label), "path": str(label.path)} for label in self.labels],
            "set_aside": [vars(item) for item in self.aside],
        }


def scan(source: StrPath, *, allow_gaps: bool = False) -> Scan:
    """Read the headers of a file, folder tree, DICOMDIR or zip, and judge every stack of images.

    Raises:
        InputError: the source is missing or a broken archive.
    """
    path = Path(source)
    return _scanned(path, _signature(path), allow_gaps)


def _signature(path: Path) -> int:
    """Changes when a file below `path` does."""
    if not os.path.isdir(path):
        return path.stat().st_mtime_ns if os.path.exists(path) else 0
    parts = []
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                status = os.stat(os.path.join(folder, name))
            except OSError:
                continue
            parts.append((folder, name, status.st_size, status.st_mtime_ns))
    return hash(frozenset(parts))


@lru_cache(maxsize=4)
def _scanned(path: Path, signature: int, allow_gaps: bool) -> Scan:
    files, aside = dicom_files(path)
    groups: dict[str, list[Frame]] = defaultdict(list)
    labels: list[LabelObject] = []
    with quiet():
        for file in files:
            _sort_in(file, groups, labels, aside)
        aside += [*_colour(groups), *without_uid(groups), *broken_alone(groups)]
        series = [one for frames in groups.values() for one in _judged(frames, allow_gaps)]
    series = refuse_incomplete(series, aside)
    series.sort(key=lambda one: (one.patient, one.study, one.number.zfill(8), one.uid))
    return Scan(tuple(series), tuple(labels), tuple(aside))


def _sort_in(file: DicomFile, groups: dict[str, list[Frame]], labels: list[LabelObject], aside: list[NotRead]) -> None:
    """Add an object's planes to its series; where a series has no UID, its folder stands for it."""
    if _is_label(file):
        labels.append(_label(file))
        return
    frames: list[Frame] = []
    try:
        reason = _no_volume(file)
    except Exception as error:  # pydicom raises many kinds when it converts broken values
        reason = ""
        frames = [unusable(file, f"its header is broken ({type(error).__name__}: {one_line(error, 120)})")]
    if reason:
        aside.append(NotRead(str(file.location), reason))
        return
    groups[_text(file.header, "SeriesInstanceUID") or file.location.folder] += frames or frames_of(file)


def _colour(groups: dict[str, list[Frame]]) -> list[NotRead]:
    """Take out series of colour pictures; one picture among images of one value per voxel stays, and is refused."""
    pictures = [uid for uid, frames in groups.items() if all(frame.problem == COLOUR for frame in frames)]
    reason = "colour picture, not a volume of one value per voxel"
    return [NotRead(str(frame.file.location), reason) for uid in pictures for frame in groups.pop(uid)]


def _no_volume(file: DicomFile) -> str:
    """Why an object is no image of a volume; empty when it may be one."""
    header = file.header
    modality, kind = _text(header, "Modality"), _kind(header)
    lost = "Rows" not in header and _should_be_image(header)
    if modality in _NO_IMAGES or ("Rows" not in header and not lost):
        return f"{kind}: not an image"
    types = {str(part).upper() for part in _sequence(header.get("ImageType"))}
    if types & {"LOCALIZER", "SCOUT"}:
        return f"{modality} localiser"
    no_place = (
        not lost
        and "PerFrameFunctionalGroupsSequence" not in header
        and ("ImagePositionPatient" not in header or "ImageOrientationPatient" not in header)
    )
    if no_place and modality not in _VOLUMES:
        return f"{kind if modality else 'image'} without patient geometry"
    if no_place and _text(header, "SOPClassUID").startswith("1.2.840.10008.5.1.4.1.1.7"):
        return "secondary capture without patient geometry"
    return ""


def _should_be_image(header: Any) -> bool:
    """Whether an object without Rows has lost them: its class is one of images, or is no class at all."""
    from pydicom.uid import UID

    uid = UID(_text(header, "SOPClassUID"))
    if uid.is_valid and uid.name != uid:
        return "Image Storage" in uid.name
    return not (uid.is_valid and uid.is_private and _text(header, "Modality"))


def _is_label(file: DicomFile) -> bool:
    header = file.header
    return _text(header, "SOPClassUID") in _LABELS or _text(header, "Modality") in _LABEL_MODALITIES


def _label(file: DicomFile) -> LabelObject:
    header = file.header
    kind = _LABELS.get(_text(header, "SOPClassUID")) or _text(header, "Modality")
    return LabelObject(
        file.location.path, kind, _text(header, "PatientID"), _text(header, "FrameOfReferenceUID"),
        _text(header, "SeriesDescription"),
    )  # fmt: skip


def _judged(frames: list[Frame], allow_gaps: bool) -> list[Series]:
    """The volumes that images of one series make; what no rule foresaw is refused too."""
    try:
        return _stacks(frames, allow_gaps)
    except Exception as error:
        what = f"{type(error).__name__}: {one_line(error, 120)}"
        return [_series(frames, "", _refused(f"its headers cannot be made sense of ({what})"))]


def _stacks(frames: list[Frame], allow_gaps: bool) -> list[Series]:
    """The volumes that images of one series make."""
    patients = {_text(frame.file.header, "PatientID") for frame in frames}
    if len(patients) > 1:
        return [_series(frames, "", _refused(f"images of {len(patients)} patients share one SeriesInstanceUID"))]
    broken = [frame for frame in frames if frame.problem]
    if broken:
        first = broken[0]
        what = f"{len(broken)} of {len(frames)} images cannot be used: {first.file.location} {first.problem}"
        return [_series(frames, "", _refused(what))]
    planes = _by_plane(frames)
    if len(planes) > _MOST_STACKS:
        return [_series(frames, "", _refused(f"its images lie in more than {_MOST_STACKS} different planes"))]
    stacks = [(part, own) for part, same in planes for part, own in _by_key(part, same)]
    result = []
    for part, own in stacks:
        layout = _layout(own, allow_gaps)
        result.append(_valued(_series(own, part, layout)))
    return result


def _series(frames: Sequence[Frame], part: str, layout: Layout) -> Series:
    header = frames[0].file.header
    return Series(
        uid=_text(header, "SeriesInstanceUID"),
        part=part,
        number=_text(header, "SeriesNumber"),
        description=_text(header, "SeriesDescription").strip(),
        modality=_text(header, "Modality"),
        patient=_text(header, "PatientID"),
        study=_text(header, "StudyInstanceUID"),
        frame_of_reference=_text(header, "FrameOfReferenceUID"),
        frames=tuple(frames),
        layout=layout,
    )


def _by_plane(frames: Iterable[Frame]) -> list[tuple[str, list[Frame]]]:
    """Split by frame of reference, size, pixel spacing and direction; the name says which it is."""
    groups: list[tuple[Frame, list[Frame]]] = []
    for frame in frames:
        own = next((members for first, members in groups if _same_plane(first, frame)), None)
        if own is None:
            groups.append((frame, [frame]))
        else:
            own.append(frame)
        if len(groups) > _MOST_STACKS:
            break
    if len(groups) == 1:
        return [("", groups[0][1])]
    names = [f"{_direction(first)} {first.columns} x {first.rows}" for first, _ in groups]
    return [
        (name if names.count(name) == 1 else f"{name}, stack {number + 1}", members)
        for number, (name, (_, members)) in enumerate(zip(names, groups, strict=True))
    ]


def _same_plane(a: Frame, b: Frame) -> bool:
    return (
        (a.rows, a.columns) == (b.rows, b.columns)
        and all(abs(x - y) <= 1e-3 * y for x, y in zip(a.spacing or (), b.spacing or (), strict=True))
        and all(abs(x - y) <= _SAME_DIRECTION for x, y in zip(a.orientation or (), b.orientation or (), strict=True))
        and _text(a.file.header, "FrameOfReferenceUID") == _text(b.file.header, "FrameOfReferenceUID")
    )


def _direction(frame: Frame) -> str:
    """Axial, coronal or sagittal, oblique when no axis is within 20 degrees of the normal."""
    o = np.array(frame.orientation)
    normal = np.abs(np.cross(o[:3], o[3:]))
    return ("sagittal", "coronal", "axial")[int(np.argmax(normal))] if normal.max() > 0.94 else "oblique"


def _by_key(part: str, frames: list[Frame]) -> list[tuple[str, list[Frame]]]:
    """Split a stack in which images lie at one place by what tells them apart, so that each place has one image."""
    whole = [(part, frames)]
    along = _stack_of(frames).along()
    places = same_place(along)
    if len(places) == 1:
        return whole
    if len(places) == len(frames):
        if is_even(along) or len(frames) < 4:
            return whole
        accept: Callable[[list[list[Frame]]], bool] = _interleaved
    else:
        accept = _each_place_once
    for keys in [*((key,) for key in _KEYS), *combinations(_KEYS, 2)]:
        groups: dict[tuple[Any, ...], list[Frame]] = defaultdict(list)
        for frame in frames:
            groups[tuple(frame.keys.get(key) for key in keys)].append(frame)
        if len(groups) > 1 and accept(list(groups.values())):
            lead = f"{part}, " if part else ""
            return [(lead + _key_name(keys, values), groups[values]) for values in sorted(groups, key=_natural)]
    return whole


def _key_name(keys: Sequence[str], values: Sequence[Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in zip(keys, values, strict=True))


def _natural(values: Sequence[Any]) -> list[tuple[float, str]]:
    """Numbers in their order, then texts."""
    return [
        (float(v) if isinstance(v, str) and v.replace(".", "", 1).isdigit() else float("inf"), str(v)) for v in values
    ]


def _each_place_once(groups: Sequence[Sequence[Frame]]) -> bool:
    return all(len(group) > 1 and len(same_place(_stack_of(group).along())) == len(group) for group in groups)


def _interleaved(groups: Sequence[Sequence[Frame]]) -> bool:
    """Even stacks that lie within each other: two acquisitions of one region."""
    spans = [np.sort(_stack_of(group).along()) for group in groups]
    if not all(len(span) > 2 and is_even(span) for span in spans):
        return False
    return all(a[0] < b[-1] and b[0] < a[-1] for a, b in combinations(spans, 2))


def _stack_of(frames: Sequence[Frame]) -> Stack:
    first = frames[0]
    return Stack(
        positions=np.array([frame.position for frame in frames], dtype=np.float64),
        orientation=_orthonormal(np.array(first.orientation, dtype=np.float64)),
        rows=first.rows,
        columns=first.columns,
        pixel=first.spacing or (1.0, 1.0),
        thickness=np.array([np.nan if f.thickness is None else f.thickness for f in frames]),
    )


def _orthonormal(orientation: FloatArray) -> FloatArray:
    """Cosines that a scanner rounded, made unit vectors and orthogonal; nothing changes beyond their last digits."""
    row = orientation[:3] / np.linalg.norm(orientation[:3])
    column = orientation[3:] - row * float(orientation[3:] @ row)
    return np.concatenate([row, column / np.linalg.norm(column)])


def _layout(frames: list[Frame], allow_gaps: bool) -> Layout:
    try:
        twins = _twins(frames)
    except InputError as error:
        return _refused(str(error))
    layout = lay_out(_stack_of(frames), allow_gaps=allow_gaps, twins=twins)
    types = {_text(f.file.header, "PhotometricInterpretation") or "MONOCHROME2" for f in frames}
    if len(types) > 1:
        return _refused(f"its images mix {' and '.join(sorted(types))}")
    return layout


def _twins(frames: Sequence[Frame]) -> list[int]:
    """Images that repeat another one at their place, pixel by pixel."""
    twins = []
    for group in same_place(_stack_of(frames).along()):
        if len(group) == len(frames) and len(group) > 2:
            continue  # not a volume, and said so
        seen: set[bytes] = set()
        for index in group if len(group) > 1 else ():
            digest = pixel_digest(frames[index])
            if digest in seen:
                twins.append(index)
            seen.add(digest)
    return twins


def _valued(series: Series) -> Series:
    """PET in SUVbw, and grey values that are stored upside down."""
    layout = series.layout
    verdict, factor = layout.verdict, 1.0
    if series.modality == "PT":
        try:
            factor, words = suv_factor(series.frames)
            verdict = replace(verdict, notes=(*verdict.notes, words))
        except (SuvError, TypeError, ValueError, ArithmeticError) as error:
            verdict = replace(verdict, refusals=(*verdict.refusals, f"PET without SUV: {one_line(error)}"))
    if is_inverted(series):
        verdict = replace(verdict, repairs=(*verdict.repairs, "grey values are stored inverted (MONOCHROME1): turned"))
    elif _photometric(series) == "MONOCHROME1":
        verdict = replace(verdict, notes=(*verdict.notes, "MONOCHROME1 (shown inverted); its physical values are kept"))
    if any(_text(frame.file.header, "LossyImageCompression") == "01" for frame in series.frames):
        verdict = replace(verdict, notes=(*verdict.notes, "its images were once compressed with loss"))
    return replace(series, layout=replace(layout, verdict=verdict), value_factor=factor)


def is_inverted(series: Series) -> bool:
    """MONOCHROME1 without a physical unit: low values mean bright (PS3.3 C.7.6.3.1.2).

    CT numbers and PET activities are physical: they are what they are, however a viewer shows them.
    """
    return _photometric(series) == "MONOCHROME1" and series.modality not in ("CT", "PT")


def _photometric(series: Series) -> str:
    return _text(series.frames[0].file.header, "PhotometricInterpretation")


def _refused(reason: str) -> Layout:
    return Layout(Verdict(refusals=(reason,)), (), _NO_LAYOUT, None)


def _kind(header: Any) -> str:
    from pydicom.uid import UID

    name = UID(_text(header, "SOPClassUID")).name if _text(header, "SOPClassUID") else ""
    return name.replace(" Storage", "").replace(" Image", "") or _text(header, "Modality") or "object"


def _sequence(value: Any) -> list[Any]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _text(header: Any, keyword: str) -> str:
    try:
        return one_line(header.get(keyword) or "", _MOST_TEXT)
    except Exception:  # a value that pydicom cannot convert says nothing
        return ""
