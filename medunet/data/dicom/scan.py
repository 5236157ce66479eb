"""What a folder of DICOM holds: stacks of images with a geometry verdict each, label objects, and what is set aside."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from medunet.data.dicom.files import DicomFile, NotRead, dicom_files, quiet
from medunet.data.dicom.frames import COLOUR, Frame, frames_of, unusable
from medunet.data.dicom.geometry import Layout, Verdict, refused
from medunet.data.dicom.header import text
from medunet.data.dicom.location import file_state, one_line
from medunet.data.dicom.lost import broken_alone, missing_parts, refuse_incomplete, without_uid
from medunet.data.dicom.stacks import MOST_STACKS, by_key, by_plane, layout_of
from medunet.data.dicom.suv import SuvError, suv_factor
from medunet.types import StrPath

_LABELS = {"1.2.840.10008.5.1.4.1.1.66.4": "SEG", "1.2.840.10008.5.1.4.1.1.481.3": "RTSTRUCT"}
_LABEL_MODALITIES = ("SEG", "RTSTRUCT")
_NO_IMAGES = ("RTDOSE", "RTPLAN", "RTRECORD", "SR", "PR", "KO", "REG", "FID", "DOC", "PLAN", "AU", "ECG")
_VOLUMES = ("CT", "MR", "PT")


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

    @cached_property
    def folders(self) -> frozenset[Path]:
        """Every folder that holds a file of it; exports from media and archives spread one series over several."""
        return frozenset(frame.file.location.path.parent for frame in self.frames)

    @cached_property
    def folder(self) -> str:
        """The deepest folder that holds all of its files."""
        return str(Path(os.path.commonpath(self.folders)))

    def has_files_below(self, folder: Path) -> bool:
        """Whether scanning `folder` finds images of it."""
        return any(own.is_relative_to(folder) for own in self.folders)

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
    """Changes when a file below `path` does, or another takes its place: copies may keep size and time of the first."""
    if not os.path.isdir(path) and path.name.upper() != "DICOMDIR":
        return hash((os.path.abspath(path), file_state(path))) if os.path.exists(path) else 0
    top = path if os.path.isdir(path) else path.parent
    parts: list[object] = [os.path.abspath(path)]
    for folder, _, names in os.walk(top):
        for name in names:
            with suppress(OSError):
                parts.append((folder, name, file_state(os.path.join(folder, name))))
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
    groups[text(file.header, "SeriesInstanceUID") or file.location.folder] += frames or frames_of(file)


def _colour(groups: dict[str, list[Frame]]) -> list[NotRead]:
    """Take out series of colour pictures; one picture among images of one value per voxel stays, and is refused."""
    pictures = [uid for uid, frames in groups.items() if all(frame.problem == COLOUR for frame in frames)]
    reason = "colour picture, not a volume of one value per voxel"
    return [NotRead(str(frame.file.location), reason) for uid in pictures for frame in groups.pop(uid)]


def _no_volume(file: DicomFile) -> str:
    """Why an object is no image of a volume; empty when it may be one."""
    header = file.header
    modality, kind = text(header, "Modality"), _kind(header)
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
    if no_place and text(header, "SOPClassUID").startswith("1.2.840.10008.5.1.4.1.1.7"):
        return "secondary capture without patient geometry"
    return ""


def _should_be_image(header: Any) -> bool:
    """Whether an object without Rows has lost them: its class is one of images, or is no class at all."""
    from pydicom.uid import UID

    uid = UID(text(header, "SOPClassUID"))
    if uid.is_valid and uid.name != uid:
        return "Image Storage" in uid.name
    return not (uid.is_valid and uid.is_private and text(header, "Modality"))


def _is_label(file: DicomFile) -> bool:
    header = file.header
    return text(header, "SOPClassUID") in _LABELS or text(header, "Modality") in _LABEL_MODALITIES


def _label(file: DicomFile) -> LabelObject:
    header = file.header
    kind = _LABELS.get(text(header, "SOPClassUID")) or text(header, "Modality")
    return LabelObject(
        file.location.path, kind, text(header, "PatientID"), text(header, "FrameOfReferenceUID"),
        text(header, "SeriesDescription"),
    )  # fmt: skip


def _judged(frames: list[Frame], allow_gaps: bool) -> list[Series]:
    """The volumes that images of one series make; what no rule foresaw is refused too."""
    try:
        return _stacks(frames, allow_gaps)
    except Exception as error:
        what = f"{type(error).__name__}: {one_line(error, 120)}"
        return [_series(frames, "", refused(f"its headers cannot be made sense of ({what})"))]


def _stacks(frames: list[Frame], allow_gaps: bool) -> list[Series]:
    """The volumes that images of one series make."""
    patients = {text(frame.file.header, "PatientID") for frame in frames}
    if len(patients) > 1:
        return [_series(frames, "", refused(f"images of {len(patients)} patients share one SeriesInstanceUID"))]
    broken = [frame for frame in frames if frame.problem]
    if broken:
        first = broken[0]
        what = f"{len(broken)} of {len(frames)} images cannot be used: {first.file.location} {first.problem}"
        return [_series(frames, "", refused(what))]
    lost = missing_parts(frames)
    if lost:
        return [_series(frames, "", refused(lost))]
    planes = by_plane(frames)
    if len(planes) > MOST_STACKS:
        return [_series(frames, "", refused(f"its images lie in more than {MOST_STACKS} different planes"))]
    stacks = [(part, own) for part, same in planes for part, own in by_key(part, same)]
    result = []
    for part, own in stacks:
        layout = layout_of(own, allow_gaps)
        result.append(_valued(_series(own, part, layout)))
    return result


def _series(frames: Sequence[Frame], part: str, layout: Layout) -> Series:
    header = frames[0].file.header
    return Series(
        uid=text(header, "SeriesInstanceUID"),
        part=part,
        number=text(header, "SeriesNumber"),
        description=text(header, "SeriesDescription").strip(),
        modality=text(header, "Modality"),
        patient=text(header, "PatientID"),
        study=text(header, "StudyInstanceUID"),
        frame_of_reference=text(header, "FrameOfReferenceUID"),
        frames=tuple(frames),
        layout=layout,
    )


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
    if any(text(frame.file.header, "LossyImageCompression") == "01" for frame in series.frames):
        verdict = replace(verdict, notes=(*verdict.notes, "its images were once compressed with loss"))
    return replace(series, layout=replace(layout, verdict=verdict), value_factor=factor)


def is_inverted(series: Series) -> bool:
    """MONOCHROME1 without a physical unit: low values mean bright (PS3.3 C.7.6.3.1.2).

    CT numbers and PET activities are physical: they are what they are, however a viewer shows them.
    """
    return _photometric(series) == "MONOCHROME1" and series.modality not in ("CT", "PT")


def _photometric(series: Series) -> str:
    return text(series.frames[0].file.header, "PhotometricInterpretation")


def _kind(header: Any) -> str:
    from pydicom.uid import UID

    name = UID(text(header, "SOPClassUID")).name if text(header, "SOPClassUID") else ""
    return name.replace(" Storage", "").replace(" Image", "") or text(header, "Modality") or "object"


def _sequence(value: Any) -> list[Any]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)
