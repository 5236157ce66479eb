"""One pass over the voxels of every training case: what is wrong with it, and what a fingerprint needs of it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from medunet.data.directions import orientation_doubt
from medunet.data.grid import label_differs
from medunet.data.index import Case, Finding, Index
from medunet.data.labelling import IGNORE, Declared, in_words, stored_values
from medunet.data.volume import Volume, aligned, read_case, read_label
from medunet.errors import DatasetError, MedunetError
from medunet.types import AnyArray, FloatArray, IntArray

_SAMPLE = 1000  # foreground voxels kept per case and channel
_LISTED = 10  # findings that a message shows
_WITHOUT_PATIENTS = ("MSD", "nnU-Net", "paired folders", "datalist")  # layouts that may name cases alone


@dataclass(frozen=True)
class ChannelMeasure:
    """Intensities of one channel of one case; percentiles 0.5, 50 and 99.5 over all voxels."""

    minimum: float
    maximum: float
    mean: float
    std: float
    p00_5: float
    p50: float
    p99_5: float
    foreground_sample: FloatArray = field(repr=False)


@dataclass(frozen=True)
class Measurement:
    """What one case contributes to a fingerprint. Shape, spacing (mm) and axcodes are per voxel axis."""

    id: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    axcodes: str
    intensities: tuple[ChannelMeasure, ...]
    class_voxels: dict[int, int]
    image_digest: str
    label_digest: str


def examine(
    index: Index, on_problem: str = "stop", progress: Callable[[int, int], None] | None = None
) -> tuple[Index, tuple[Measurement, ...]]:
    """Read every training case once; one case is in memory at a time.

    Labels that the dataset does not declare are named ``label_VALUE`` after the values found; channels that it does not
    declare are as many as most cases have.

    Raises:
        DatasetError: cases have problems and `on_problem` is ``stop``, or no case is left.
    """
    findings = list(index.findings)
    measured: list[Measurement] = []
    seen: dict[str, Measurement] = {}
    for number, case in enumerate(index.training):
        measurement = _examine_case(index, case, findings)
        if measurement is not None:
            twin = seen.setdefault(measurement.image_digest, measurement)
            if twin is measurement:
                measured.append(measurement)
            else:
                findings.append(_duplicate(measurement, twin))
        if progress:
            progress(number + 1, len(index.training))
    index = _with_labels(_with_channels(index, measured), measured)
    findings += [_other_channels(m, index) for m in measured if len(m.intensities) != len(index.channels)]
    bad = {finding.case for finding in findings if finding.fatal}
    fatal = [finding for finding in findings if finding.fatal]
    if fatal and on_problem == "stop":
        raise DatasetError(_listing(index, fatal))
    if not any(m.id not in bad for m in measured):
        raise DatasetError(f"{index.root}: no case can be used; {_listing(index, fatal)}")
    _require_values(index, [m for m in measured if m.id not in bad])
    findings += _of_patients(index.without(bad))
    settled = tuple(replace(f, fatal=False, message=f"{f.message} (left out)") if f.fatal else f for f in findings)
    kept = replace(index.without(bad), findings=settled)
    return kept, tuple(m for m in measured if m.id not in bad)


def _examine_case(index: Index, case: Case, findings: list[Finding]) -> Measurement | None:
    """Measure a case, or note why it cannot be used."""

    def note(kind: str, message: str, fatal: bool = True) -> None:
        findings.append(Finding.of(case.id, kind, message, fatal))

    images, label_path = index.paths(case)
    if label_path is None:
        note("missing label", "has no label map; add it or remove the case")
        return None
    try:
        image = read_case(images)
        label = aligned(read_label(label_path), image)
    except MedunetError as error:
        note("unreadable", str(error))
        return None
    classes = _class_voxels(label.array)
    problem = _problem(index, image, label, classes)
    if problem:
        note(*problem)
        return None
    if not image.stated and not any(finding.kind == "pixel size" for finding in findings):
        note("pixel size", "does not say how large its pixels are: 1 mm here, as in all such pictures", fatal=False)
    for text in (label.verdict or {}).get("label_notes", []):
        note("label note", text, fatal=False)
    for text in (image.verdict or {}).get("reasons", []):
        note("geometry", text, fatal=False)
    for text in dict.fromkeys(filter(None, map(orientation_doubt, (*images, label_path)))):
        if not any(finding.message.endswith(text) for finding in findings):
            note("orientation", text, fatal=False)
    foreground = label.array[0] != next(iter(index.labels.values()), 0)
    if index.ignore is not None:
        foreground &= label.array[0] != index.ignore
    if not foreground.any():
        note("empty label", "label map is empty (background only); check that this is meant", fatal=False)
    for number, channel in enumerate(image.array):
        if channel.min() == channel.max():
            note("constant image", f"channel {number} is constant ({channel.min():g}); check the file", fatal=False)
    return _measure(case.id, image, label, classes, foreground)


def _problem(index: Index, image: Volume, label: Volume, classes: Iterable[int]) -> tuple[str, str] | None:
    """Kind and words of what makes a case unusable."""
    if not np.isfinite(image.array).all():
        count = int(image.array.size - np.count_nonzero(np.isfinite(image.array)))
        return "not finite", f"image has {count} NaN or infinite voxels; replace them or remove the case"
    if words := label_differs(image.grid, label.grid):
        return "grid", f"{words}; resample the label or remove the case"
    if set(classes) == {index.ignore}:
        return "not annotated", (
            f"label map has no annotated voxel (all have value {index.ignore}, '{IGNORE}'); "
            f"annotate some or remove the case"
        )
    known = {*stored_values(index.labels, index.regions), index.ignore}
    unknown = sorted(set(classes) - known) if index.labels else []
    if unknown:
        declared = in_words(Declared(index.labels, index.regions, index.ignore))
        return "label value", f"label value {unknown[0]} is not declared ({declared}); declare it or correct the label"
    return None


def _class_voxels(label: IntArray) -> dict[int, int]:
    """How often each value occurs, in ascending order; counted slice by slice, since a sort takes copies and time."""
    counts: Counter[int] = Counter()
    for plane in _slices(label[0]):
        values, numbers = np.unique(plane, return_counts=True)
        counts.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
    return dict(sorted(counts.items()))


def _measure(case: str, image: Volume, label: Volume, classes: dict[int, int], foreground: AnyArray) -> Measurement:
    return Measurement(
        id=case,
        shape=image.grid.shape,
        spacing=image.grid.spacing,
        axcodes=image.grid.axcodes,
        intensities=tuple(_intensity(channel, foreground) for channel in image.array),
        class_voxels=classes,
        image_digest=_digest(image),
        label_digest=_digest(label),
    )


def _intensity(channel: AnyArray, foreground: AnyArray) -> ChannelMeasure:
    flat = channel.reshape(-1, order="F")
    mean, std = _moments(channel)
    low, middle, high = np.percentile(flat[:: max(1, flat.size // 1_000_000)], [0.5, 50, 99.5])
    inside = channel[foreground]
    step = -(-inside.size // _SAMPLE) or 1
    return ChannelMeasure(
        minimum=float(flat.min()),
        maximum=float(flat.max()),
        mean=mean,
        std=std,
        p00_5=float(low),
        p50=float(middle),
        p99_5=float(high),
        foreground_sample=inside[::step].astype(np.float32),
    )


def _moments(channel: AnyArray) -> tuple[float, float]:
    """Mean and standard deviation in double precision, without a copy of the volume in it."""
    mean = sum(float(plane.sum(dtype=np.float64)) for plane in _slices(channel)) / channel.size
    squares = sum(float(np.square(plane - mean, dtype=np.float64).sum()) for plane in _slices(channel))
    return mean, float(np.sqrt(squares / channel.size))


def _slices(array: AnyArray) -> AnyArray:
    """Slices along the last axis, the slowest in memory of what the readers give."""
    return np.moveaxis(array, -1, 0)


def _digest(volume: Volume) -> str:
    """sha256 over shape and voxels; the same for the same voxels in another file format."""
    digest = hashlib.sha256(repr(volume.array.shape).encode())
    for plane in _slices(volume.array):
        digest.update(np.ascontiguousarray(plane, dtype=np.float32).data)
    return digest.hexdigest()


def _duplicate(second: Measurement, first: Measurement) -> Finding:
    labels = "with the same label" if second.label_digest == first.label_digest else "with another label"
    return Finding.of(second.id, "duplicate", f"has the same image as {first.id}, {labels}; remove one of them")


def _with_channels(index: Index, measured: Sequence[Measurement]) -> Index:
    """Name undeclared channels after what most cases have: one image, the colours of a picture, or numbers."""
    if index.channels or not measured:
        return index
    most, flat = Counter((len(m.intensities), m.shape[2] == 1) for m in measured).most_common(1)[0][0]
    if most == 1:
        return replace(index, channels=("image",))
    colours = ("red", "green", "blue") if most == 3 and flat else ()
    return replace(index, channels=colours or tuple(f"image_{number}" for number in range(most)))


def _other_channels(measurement: Measurement, index: Index) -> Finding:
    got, want = len(measurement.intensities), len(index.channels)
    plural = "s" * (got != 1)
    message = f"has {got} channel{plural}, the dataset {want} ({', '.join(index.channels)}); give one per channel"
    if measurement.shape[2] == 1 and {got, want} == {1, 3}:
        message += ', or declare "channels": ["grey"] to train on the luma of all'
    return Finding.of(measurement.id, "channels", message)


def _with_labels(index: Index, measured: Iterable[Measurement]) -> Index:
    """Name undeclared labels after their values; value 0 is the background, or the smallest where there is no 0."""
    if index.labels:
        return index
    values = sorted({value for m in measured for value in m.class_voxels} - {index.ignore})
    background = 0 if 0 in values or not values else values[0]
    named = {f"label_{value}": value for value in values if value != background}
    return replace(index, labels={"background": background, **named})


def _of_patients(index: Index) -> list[Finding]:
    """What folds by patient cannot be relied on for: a dataset of one patient, or one that names none."""
    cases, known = index.training, {finding.kind for finding in index.findings}
    if len(cases) > 1 and len({case.patient for case in cases}) == 1 and "one patient" not in known:
        message = (
            f"all {len(cases)} cases are of one patient, '{cases[0].patient}', so that every fold is validated on its "
            f"own training cases; give the true patients in a datalist (column patient)"
        )
        return [Finding("dataset", "one patient", message, fatal=False)]
    nameless = len(cases) > 1 and all(case.patient == case.id for case in cases)
    if nameless and index.layout in _WITHOUT_PATIENTS and "patients" not in known:
        message = (
            "every case counts as a patient of its own; where a patient has several, "
            "say so in a datalist (column patient), or scores of a fold are too good"
        )
        return [Finding("dataset", "patients", message, fatal=False)]
    return []


def _require_values(index: Index, measured: Sequence[Measurement]) -> None:
    """Refuse a region with a value that no label map has: it is a slip, or one that cannot be learnt."""
    found = {value for m in measured for value in m.class_voxels}
    for name, values in index.regions.items():
        if missing := sorted(set(values) - found):
            raise DatasetError(
                f"{index.root}: region '{name}' has value {missing[0]}, which no label map holds (they hold "
                f"{', '.join(map(str, sorted(found)))}); correct the region's values {list(values)}"
            )


def _listing(index: Index, fatal: Sequence[Finding]) -> str:
    shown = "\n  ".join(finding.message for finding in fatal[:_LISTED])
    more = f"\n  ... and {len(fatal) - _LISTED} more" if len(fatal) > _LISTED else ""
    cases = len({finding.case for finding in fatal})
    return (
        f"{Path(index.root).name}: {cases} case{'s' * (cases != 1)} cannot be used "
        f"(medunet index --on-problem skip leaves them out):\n  {shown}{more}"
    )
