"""Cases from DICOM: which label object belongs to which series, and which of its structures is which class."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medunet.data.dicom.label_source import threshold_of
from medunet.data.dicom.labels import Contents, contents
from medunet.data.dicom.rtstruct import is_longer, match_roi
from medunet.data.dicom.scan import LabelObject, Scan, Series, scan
from medunet.data.dicom.source import Source, is_dicom
from medunet.data.dicom.volumes import find_series
from medunet.data.index import Case, Finding, Index
from medunet.data.labelling import Declared, require_consistent
from medunet.errors import DatasetError, InputError

_IMAGE = re.compile(r"^(image|images|img|dicom|scan)$", re.IGNORECASE)
_MOST = 0.8  # of the label objects: structures that fewer have are not taken as a class by themselves
_LONG = 32  # characters; a folder with a longer name is likely named after a UID
Kinds = dict[str, list[Case]]


def find_labelled(root: Path) -> tuple[Kinds, list[Finding]]:
    """Cases of a DICOM tree by the kind of their images: every label object with the series that it lies on.

    A label object lies on the series that it references; where that is not there, on the only one of its patient and
    frame of reference. Several series in one folder ``image`` beside a mask are the channels of a case.
    """
    found = scan(root)
    kinds: Kinds = defaultdict(list)
    modalities: Kinds = defaultdict(list)
    findings: list[Finding] = []
    taken: set[str] = set()
    for label in found.labels:
        name = _relative(label.path.parent, root)
        try:
            series = _series_of(label, contents(label.path), found)
            channels = _channels(series, root)
        except InputError as error:
            findings.append(Finding.of(name, "label object", str(error)))
            continue
        case = Case(
            id=_free(_case_name(label, series[0], root), taken),
            images=tuple(_image_source(s, found, root) for s in series),
            label=label.path.relative_to(root).as_posix(),
            patient=series[0].patient or label.patient or name,
        )
        kinds["+".join(channels)].append(case)
        modalities["+".join(_modality(s) for s in series)].append(case)
    used = {uid for cases in kinds.values() for case in cases for uid in (case.images)}
    spare = [s for s in found.series if _image_source(s, found, root) not in used]
    if kinds and spare:
        findings.append(_unused(spare))
    return modalities if _name_cases(kinds) else kinds, findings


def _name_cases(kinds: Kinds) -> bool:
    """Whether folders name visits or cases and no kinds of image: one image each, every one of another patient."""
    cases = [case for own in kinds.values() for case in own]
    patients = {case.patient for case in cases}
    return len(kinds) == len(cases) == len(patients) > 1 and all(len(case.images) == 1 for case in cases)


def _unused(spare: Sequence[Series]) -> Finding:
    message = f"{len(spare)} series without a label object are not used (first: {spare[0].patient} {spare[0].name})"
    return Finding(spare[0].patient, "no label object", message, fatal=False)


def _series_of(label: LabelObject, inside: Contents, found: Scan) -> list[Series]:
    """The series that a label object lies on, the referenced one first."""
    usable = [s for s in found.series if s.frame_of_reference == inside.frame_of_reference]
    fits = [s for s in usable if s.uid in inside.referenced_series]
    fits = fits or [s for s in usable if s.patient == inside.patient]
    if len(fits) > 1:
        near = max(_closeness(s, label) for s in fits)
        fits = [s for s in fits if _closeness(s, label) == near]
    if not fits:
        raise InputError(
            f"{label.path}: no series of its frame of reference {inside.frame_of_reference or '(none)'} is there; "
            f"add the images it was drawn on"
        )
    if len(fits) > 1:
        raise InputError(
            f"{label.path}: could lie on {' or '.join(s.name for s in fits[:3])}; "
            f"say which in a datalist (columns image, label)"
        )
    return [fits[0], *_companions(fits[0], usable)]


def _closeness(series: Series, label: LabelObject) -> int:
    """How many folders from the root down are common to both."""
    return len(Path(os.path.commonpath([series.folder, label.path.parent])).parts)


def _companions(series: Series, usable: Sequence[Series]) -> list[Series]:
    """Other series below the same folder ``image``: further channels of the case."""
    folder = next((p for p in [Path(series.folder), *Path(series.folder).parents] if _IMAGE.match(p.name)), None)
    if folder is None:
        return []
    others = [s for s in usable if s is not series and Path(s.folder).is_relative_to(folder)]
    return sorted((s for s in others if s.patient == series.patient), key=lambda s: (s.modality, s.description))


def _channels(series: Sequence[Series], root: Path) -> list[str]:
    """What kind of image each channel is, by its description where its folder does not say: no two are alike."""
    places = [_channel(one, root) for one in series]
    names = [
        place if places.count(place) == 1 else re.sub(r"[\W_]+", "_", one.description)
        for place, one in zip(places, series, strict=True)
    ]
    if len(set(names)) < len(names):
        raise InputError(
            f"{series[0].folder}: cannot tell the channels {', '.join(one.name for one in series)} apart; "
            f"say which is which in a datalist (columns image, label)"
        )
    return names


def _channel(series: Series, root: Path) -> str:
    """What kind of image it is: the folder between the patient and ``image``, else the modality.

    Dates and numbers are folders of visits.
    """
    parts = list(Path(_relative(Path(series.folder), root)).parts)
    name = ""
    if len(parts) > 2 and _IMAGE.match(parts[-1]):
        name = parts[-2]
    elif len(parts) > 2 and _IMAGE.match(parts[-2]):
        name = parts[-1]
    return name if any(map(str.isalpha, name)) else _modality(series)


def _modality(series: Series) -> str:
    return series.modality or "image"


def _case_name(label: LabelObject, series: Series, root: Path) -> str:
    common = os.path.commonpath([series.folder, label.path.parent])
    parts = [p for p in Path(_relative(Path(common), root)).parts if len(p) <= _LONG]
    return "_".join(parts) or f"{series.patient or 'case'}_{series.modality}"


def _free(name: str, taken: set[str]) -> str:
    unique, number = name, 2
    while unique in taken:
        unique, number = f"{name}_{number}", number + 1
    taken.add(unique)
    return unique


def _image_source(series: Series, found: Scan, root: Path) -> str:
    """The shortest source that means this stack alone."""
    folder = Path(series.folder)
    inside = [s for s in found.series if s.has_files_below(folder)]
    source = Source(Path(_relative(folder, root)))
    if len(inside) > 1:
        source = source.with_options(series=series.uid)
    if sum(s.uid == series.uid for s in inside) > 1:
        source = source.with_options(part=series.part)
    return str(source)


def _relative(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def resolve(index: Index, *, allow_gaps: bool = False) -> Index:
    """Settle what the DICOM sources of an index mean: patients, the structure of each class, and its value.

    Classes are those that the dataset declares, else those of the ``roi`` column, else the structures that most label
    objects have. Afterwards each label source says ``FILE#on=IMAGE&STRUCTURE=VALUE``.
    """
    index = _with_patients(_with_gaps(index, allow_gaps))
    root = Path(index.root)
    findings = list(index.findings)
    objects: dict[str, tuple[Source, Contents]] = {}
    for case in (*index.training, *index.test):
        if case.label is None or not is_dicom(root / case.label):
            continue
        try:
            objects[case.id] = _label_object(root, case)
        except InputError as error:
            findings.append(Finding.of(case.id, "label object", str(error)))
    if not objects:
        return replace(index, findings=tuple(findings))
    if index.regions or index.ignore is not None:
        raise DatasetError(
            f"{index.root}: declares {'regions' if index.regions else 'an ignore value'} and has labels in DICOM "
            f"objects ({next(iter(objects))}), which name structures and not values; give label maps such as NIfTI"
        )
    labels, notes = _classes(index, objects)
    require_consistent(Declared({"background": 0, **labels}), f"{index.root}: the classes of its DICOM objects")
    findings += notes
    settled = {}
    for name, (source, inside) in objects.items():
        try:
            structures = _structures(source, inside, labels)
            settled[name] = _settled(root, source, structures, labels)
        except InputError as error:
            findings.append(Finding.of(name, "structure", str(error)))
            continue
        findings += [
            Finding.of(name, "structure", _longer(source, wanted, found), fatal=False)
            for wanted, found in structures.items()
            if is_longer(wanted, found)
        ]
    return replace(
        index,
        labels={"background": 0, **labels},
        training=tuple(replace(c, label=settled.get(c.id, c.label)) for c in index.training),
        test=tuple(replace(c, label=settled.get(c.id, c.label)) for c in index.test),
        findings=tuple(findings),
    )


def _with_gaps(index: Index, allow_gaps: bool) -> Index:
    if not allow_gaps:
        return index
    root = Path(index.root)

    def allowed(case: Case) -> Case:
        images = tuple(
            str(Source.parse(root / i).with_options(allow_gaps="1")).removeprefix(f"{root}/")
            if is_dicom(root / i)
            else i
            for i in case.images
        )
        return replace(case, images=images)

    return replace(index, training=tuple(map(allowed, index.training)), test=tuple(map(allowed, index.test)))


def _with_patients(index: Index) -> Index:
    """PatientID where the dataset names no patient of its own."""
    root = Path(index.root)

    def known(case: Case) -> Case:
        if case.patient != case.id or not is_dicom(root / case.images[0]):
            return case
        try:
            return replace(case, patient=find_series(root / case.images[0]).patient or case.patient)
        except InputError:
            return case  # examining the case tells what is wrong with its images

    return replace(index, training=tuple(map(known, index.training)), test=tuple(map(known, index.test)))


def _label_object(root: Path, case: Case) -> tuple[Source, Contents]:
    """A case's label source with ``on``, and what its file holds."""
    source = Source.parse(root / (case.label or ""))
    if not is_dicom(root / case.images[0]):
        raise InputError(
            f"{source.path}: is a DICOM label object and the image {case.images[0]} is not; give its series"
        )
    if source.path.is_dir():
        objects = scan(source.path).labels
        if len(objects) != 1:
            raise InputError(f"{source.path}: holds {len(objects)} label objects; give the file of one")
        source = Source(objects[0].path, source.options)
    image = Source.parse(root / case.images[0])
    on = Source(Path(os.path.relpath(image.path, source.path.parent)), image.options)
    return Source(source.path, {"on": str(on), **source.options}), contents(source.path, threshold_of(source))


def _classes(index: Index, objects: Mapping[str, tuple[Source, Contents]]) -> tuple[dict[str, int], list[Finding]]:
    """Class names and values, and what is left out."""
    declared = {name: value for name, value in index.labels.items() if value != 0}
    if declared:
        return declared, []
    asked: list[Counter[str]] = []  # the spellings of each class, in the order in which they come up
    values: dict[str, int] = {}
    for source, _ in objects.values():
        for entry in _rois(source):
            name, _, value = entry.partition("=")
            own = next((spellings for spellings in asked if match_roi(name, spellings, longer=False)), None)
            if own is None:
                asked.append(Counter([name]))
            else:
                own[name] += 1
            values |= {name: int(value)} if value.isdigit() else {}
    if not asked:
        return _common_names(objects)
    labels: dict[str, int] = {}
    for spellings in asked:
        given = next((values[name] for name in spellings if name in values), max(labels.values(), default=0) + 1)
        labels[spellings.most_common(1)[0][0]] = given
    return labels, []


def _rois(source: Source) -> list[str]:
    return [part.strip() for part in source.options.get("roi", "").split(";") if part.strip()]


def _common_names(objects: Mapping[str, tuple[Source, Contents]]) -> tuple[dict[str, int], list[Finding]]:
    """The structures that most label objects have, equal names apart from case, separators and numbers.

    Numbers count where an object has several of a name: vertebrae L1 and L2 are two.
    """
    numbered = {
        key for _, inside in objects.values() for key, count in Counter(map(_plain, inside.names)).items() if count > 1
    }
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    twins: set[str] = set()
    for _, inside in objects.values():
        keys: set[str] = set()
        for name in inside.names:
            key = _plain(name) if _plain(name) not in numbered else _with_number(name)
            if key in keys:
                twins.add(name)
            else:
                spellings[key][name] += 1
            keys.add(key)
    chosen = [key for key, names in spellings.items() if sum(names.values()) >= _MOST * len(objects)]
    if not chosen:
        known = ", ".join(names.most_common(1)[0][0] for names in list(spellings.values())[:10])
        raise DatasetError(
            f"no structure occurs in most of the {len(objects)} label objects (there are {known}); "
            f"name the classes in a datalist (column roi)"
        )
    labels = {spellings[key].most_common(1)[0][0]: number + 1 for number, key in enumerate(sorted(chosen))}
    rare = [names.most_common(1)[0][0] for key, names in spellings.items() if key not in chosen]
    told = {"that few cases have": rare, "with the name of another but for case and separators": twins}
    return labels, [
        Finding(
            "dataset",
            "other structures",
            f"structures {what} are not used: {', '.join(sorted(names)[:10])}; name them in column roi",
            fatal=False,
        )
        for what, names in told.items()
        if names
    ]


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", re.sub(r"[\W_]*\d+$", "", name)).strip().lower()


def _with_number(name: str) -> str:
    """A plain name and its trailing number, of which 1 is none: GTV and gtv_01 are one, GTV 2 is another."""
    number = name[len(name.rstrip("0123456789")) :].lstrip("0")
    return f"{_plain(name)} {number}" if number not in ("", "1") else _plain(name)


def _longer(source: Source, wanted: str, found: str) -> str:
    return (
        f"class '{wanted}' is taken from structure '{found}' of {source.path}, whose name goes on; "
        f"name another in column roi if it is not meant"
    )


def _structures(source: Source, inside: Contents, labels: Mapping[str, int]) -> dict[str, str]:
    """The structure in the file of each class that is wanted of it."""
    structures: dict[str, str] = {}
    for name in [entry.partition("=")[0] for entry in _rois(source)] or list(labels):
        found = match_roi(name, inside.names)
        if found is None:
            raise InputError(
                f"{source.path}: has no structure '{name}', it has {', '.join(inside.names) or 'none'}; "
                f"add it, or remove the case"
            )
        other = next((wanted for wanted, taken in structures.items() if taken == found), None)
        if other is not None:
            raise InputError(
                f"{source.path}: '{other}' and '{name}' are both taken from its structure '{found}', it has "
                f"{', '.join(inside.names)}; name the structures of this case in column roi"
            )
        structures[name] = found
    return structures


def _settled(root: Path, source: Source, structures: Mapping[str, str], labels: Mapping[str, int]) -> str:
    """The label source with a value for each structure."""
    options = {key: source.options[key] for key in ("on", "threshold") if key in source.options}
    for name, found in structures.items():
        known = match_roi(name, labels, longer=False)
        if known is None:
            raise InputError(
                f"{source.path}: '{name}' of column roi is none of the classes {', '.join(labels)}; name one"
            )
        options[found] = str(labels[known])
    return str(Source(Path(_relative(source.path, root)), options))
