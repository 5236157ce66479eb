"""The dataset layouts that medunet recognises: one function each, tried in order."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medunet.data.datalist import listed, read_datalist, relative, with_patients_checked
from medunet.data.declared import settle
from medunet.data.dicom.source import Source
from medunet.data.index import Case, Finding, Index, read_json
from medunet.data.labelling import declared
from medunet.data.volume import VOLUME_SUFFIXES, stem_of
from medunet.errors import DatasetError

KNOWN = (
    "a CSV or JSON datalist, MSD (dataset.json with a list 'training'), nnU-Net raw (imagesTr/NAME_0000.nii.gz, "
    "labelsTr), BIDS derivatives, images/ + labels/, one folder per case with *image* and *mask* files, "
    "or DICOM series with SEG or RTSTRUCT objects"
)
_LABEL_WORDS = re.compile(r"mask|label|seg|^gt$|^roi$", re.IGNORECASE)
_LABEL_SUFFIX = re.compile(r"[_-](mask|masks|label|labels|seg|segmentation|gt|roi|instances)$", re.IGNORECASE)
_IMAGE_SUFFIX = re.compile(r"[_-](image|img|0000)$", re.IGNORECASE)
_BIDS_LABEL = re.compile(r"_(dseg|mask|seg)$|_label-")
_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")
_SPLITS = re.compile(r"^(train|training|val|valid|validation|test|testing|fold_?\d+)$", re.IGNORECASE)
_UNNAMED = "image"
_TOLD = 3  # reasons that a message gives
_IMAGES, _LABELS = (
    ("images", "image", "img", "imgs", "raw", "imagestr"),
    ("labels", "label", "masks", "mask", "segmentations", "annotations", "gt", "ground_truth", "labelstr"),
)
INSTANCES = ("instances", "instance_maps", "instance_masks")
"""Names of folders whose label files number objects."""


def is_dataset(folder: Path) -> bool:
    """Whether a folder shows that it is a dataset, not one of label maps: by dataset.json, or images beside labels."""
    names = {path.name.lower() for path in folder.iterdir() if path.is_dir()}
    if names & {*_IMAGES} and names & {*_LABELS, *INSTANCES}:
        return True
    try:
        content = read_json(folder / "dataset.json")
    except DatasetError:
        return False
    return isinstance(content, dict) and isinstance(content.get("training"), list)


def label_name(stem: str) -> str:
    """A label file's name without what says that it is one.

    >>> label_name("liver_1_mask")
    'liver_1'
    """
    return _LABEL_SUFFIX.sub("", stem)


def image_name(stem: str) -> str:
    """An image file's name without the number of its channel, or what says that it is an image.

    >>> image_name("liver_1_0000"), image_name("MR_image")
    ('liver_1', 'MR')
    """
    match = _CHANNEL.match(stem)
    return match["case"] if match else _IMAGE_SUFFIX.sub("", stem)


def recognise(dataset: Path, *, allow_gaps: bool = False) -> Index:
    """The index of a folder or datalist; what its DICOM sources mean is settled.

    Raises:
        DatasetError: nothing is recognised; the message lists the layouts.
    """
    index = _recognised(dataset)
    if not any(
        _may_be_dicom(source) for case in (*index.training, *index.test) for source in (*case.images, case.label)
    ):
        return with_patients_checked(index)
    from medunet.data.dicom.dataset import resolve

    return with_patients_checked(resolve(index, allow_gaps=allow_gaps))


def _may_be_dicom(source: str | None) -> bool:
    return source is not None and not Source.parse(source).path.name.lower().endswith(VOLUME_SUFFIXES)


def _recognised(dataset: Path) -> Index:
    if dataset.is_file():
        if dataset.suffix.lower() not in (".csv", ".json"):
            raise DatasetError(f"{dataset}: is not a dataset; give a folder, or a datalist (.csv, .json)")
        return _datalist(dataset)
    for name in ("datalist.json", "datalist.csv"):
        if (dataset / name).is_file():
            return _datalist(dataset / name)
    for layout in (_msd, _nnunet, _bids, _paired, _case_folders, _dicom_tree):
        found = layout(dataset)
        if found is not None:
            return found
    raise DatasetError(f"{dataset}: no cases were recognised; known layouts are {KNOWN}")


def _datalist(path: Path) -> Index:
    training, test, facts = read_datalist(path)
    return _index(path.parent, "datalist", facts, tuple(training), tuple(test))


def _msd(root: Path) -> Index | None:
    """Medical Segmentation Decathlon: dataset.json lists image and label of each case."""
    content = read_json(root / "dataset.json")
    if not isinstance(content, dict) or not isinstance(content.get("training"), list):
        return None
    entries = [e for e in content["training"] if isinstance(e, dict) and not _is_hidden(e, root)]
    if not entries or _is_numbered(root, entries[0]):
        return None
    tests = [entry if isinstance(entry, dict) else {"image": entry} for entry in content.get("test", [])]
    test = tuple(_msd_case(entry, root) for entry in tests if not _is_hidden(entry, root))
    present = tuple(case for case in test if all((root / image).is_file() for image in case.images))
    return _index(root, "MSD", content, tuple(_msd_case(entry, root) for entry in entries), present)


def _msd_case(entry: Mapping[str, Any], root: Path) -> Case:
    if not entry.get("image"):
        raise DatasetError(
            f"{root / 'dataset.json'}: an entry has no 'image' ({entry}); give image and label of each case"
        )
    images = tuple(relative(file) for file in listed(entry["image"], root))
    label = entry.get("label")
    case = re.sub(r"_0000$", "", stem_of(images[0]))
    return Case(case, images, None if label is None else relative(str(label)), case)


def _is_hidden(entry: Mapping[str, Any], root: Path) -> bool:
    """Whether it lists what macOS leaves beside a file (``._name``)."""
    return any(Path(file).name.startswith("._") for file in listed(entry.get("image", ""), root))


def _is_numbered(root: Path, entry: Mapping[str, Any]) -> bool:
    """nnU-Net v1 lists ``NAME.nii.gz`` for the files ``NAME_0000.nii.gz``, ..."""
    image = root / listed(entry.get("image") or "", root)[0]
    return not image.is_file() and any(image.parent.glob(f"{stem_of(image)}_0000.*"))


def _nnunet(root: Path) -> Index | None:
    """nnU-Net raw: imagesTr/NAME_0000.ext per channel, labelsTr/NAME.ext; imagesTs/labelsTs are the test set."""
    if not (root / "imagesTr").is_dir():
        return None
    content = read_json(root / "dataset.json")
    training, findings = _numbered(root, "imagesTr", "labelsTr")
    test, _ = _numbered(root, "imagesTs", "labelsTs")
    if not training and not findings:
        return None
    return _index(root, "nnU-Net", content if isinstance(content, dict) else {}, training, test, findings)


def _numbered(root: Path, images: str, labels: str) -> tuple[tuple[Case, ...], list[Finding]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for path in _volumes(root / images):
        match = _CHANNEL.match(stem_of(path))
        groups[match["case"] if match else stem_of(path)].append(path.relative_to(root).as_posix())
    known: dict[str, list[str]] = defaultdict(list)
    for path in _volumes(root / labels):
        known[stem_of(path)].append(path.relative_to(root).as_posix())
    return _matched(groups, known, labels)


def _matched(
    groups: Mapping[str, Sequence[str]], labels: Mapping[str, Sequence[str]], folder: str
) -> tuple[tuple[Case, ...], list[Finding]]:
    """Cases of image and label files with equal names, and what has no partner or two."""
    cases, findings = [], []
    for name in sorted({*groups, *labels}):
        own = labels.get(name, ())
        if name not in groups:
            findings.append(_no_image(name, own[0]))
        else:
            cases.append(Case(name, tuple(groups[name]), own[0] if own else None, name))
        if len(own) > 1:
            findings.append(Finding.of(name, "two labels", f"has labels {' and '.join(own)} in {folder}; keep one"))
    return tuple(cases), findings


def _bids(root: Path) -> Index | None:
    """BIDS: sub-X[/ses-Y]/anat/*.nii.gz with label maps below derivatives/, matched by their entities."""
    labels = _by_entities(p for p in _volumes(root / "derivatives") if _BIDS_LABEL.search(stem_of(p)))
    images = _by_entities(p for subject in sorted(root.glob("sub-*")) for p in _scans(subject))
    kinds: dict[str, list[Case]] = defaultdict(list)
    findings = []
    for entities in sorted({*images, *labels}):
        name = "_".join(entities)
        if entities not in images:
            findings.append(_no_image(name, labels[entities][0].relative_to(root).as_posix()))
        elif entities not in labels:
            findings.append(
                Finding.of(name, "missing label", "has no label map in derivatives/; add it or remove the scan")
            )
        else:
            for case in _bids_cases(root, name, images[entities], labels[entities]):
                kinds["+".join(_contrast(image) for image in case.images)].append(case)
    content = read_json(root / "dataset_description.json") or {}
    facts = {"name": content.get("Name", root.name), "licence": content.get("License", "")}
    return _of_most(root, "BIDS", facts, kinds, findings)


def _bids_cases(root: Path, name: str, images: Sequence[Path], labels: Sequence[Path]) -> list[Case]:
    """A case per label map that fits best; a label that several contrasts share has a channel per contrast."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        best = min(labels, key=lambda p: (stem_of(image) not in p.name, not stem_of(p).endswith("_dseg"), p))
        groups[best.relative_to(root).as_posix()].append(image)
    patient = name.split("_")[0]
    return [
        Case(
            stem_of(group[0]) if len(group) == 1 else name,
            tuple(p.relative_to(root).as_posix() for p in group),
            label,
            patient,
        )
        for label, group in sorted(groups.items())
    ]


def _scans(subject: Path) -> list[Path]:
    """The anatomical scans of a BIDS subject; all its scans where none is called so."""
    volumes = _volumes(subject)
    return [p for p in volumes if p.parent.name == "anat"] or volumes


def _contrast(image: str) -> str:
    """The last part of a BIDS name, such as T1w."""
    return stem_of(image).split("_")[-1]


def _by_entities(paths: Iterable[Path]) -> dict[tuple[str, ...], list[Path]]:
    groups: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for path in paths:
        groups[_entities(path)].append(path)
    return dict(groups)


def _entities(path: Path) -> tuple[str, ...]:
    return tuple(part for part in stem_of(path).split("_") if part.startswith(("sub-", "ses-", "run-")))


def _paired(root: Path) -> Index | None:
    """images/ + labels/ (or instances/) with equal names; _image, _mask, _seg and _label at their ends are overlooked.

    A ``dataset.json`` beside them may declare name, channels, labels and instances. A folder in images/ is a patient
    (images/P01/001.png), unless it is the only one or is called after a side of a split (images/train/001.png).
    """
    folders = {p.name.lower(): p for p in root.iterdir() if p.is_dir()}
    content = read_json(root / "dataset.json")
    facts = dict(content) if isinstance(content, dict) else {}
    known_as = (*INSTANCES, *_LABELS) if facts.get("instances") else (*_LABELS, *INSTANCES)
    images = next((folders[name] for name in _IMAGES if name in folders), None)
    labels = next((folders[name] for name in known_as if name in folders), None)
    if images is None or labels is None:
        return None
    if labels.name.lower() in INSTANCES:
        facts.setdefault("instances", True)
    groups: dict[str, list[str]] = defaultdict(list)
    patients: dict[str, str] = {}
    for path in _volumes(images):
        name = _IMAGE_SUFFIX.sub("", _key(path, images))
        groups[name].append(path.relative_to(root).as_posix())
        folders_of = [part for part in path.relative_to(images).parent.parts if not _SPLITS.match(part)]
        patients |= {name: folders_of[0]} if folders_of else {}
    known: dict[str, list[str]] = defaultdict(list)
    for path in _volumes(labels):
        known[label_name(_key(path, labels))].append(path.relative_to(root).as_posix())
    cases, findings = _matched(groups, known, labels.name)
    if len(set(patients.values())) > 1:
        cases = tuple(replace(case, patient=patients.get(case.id, case.id)) for case in cases)
    return _index(root, "paired folders", facts, cases, (), findings) if cases else None


def _key(path: Path, folder: Path) -> str:
    return "_".join((*path.relative_to(folder).parent.parts, stem_of(path)))


def _case_folders(root: Path) -> Index | None:
    """PATIENT/*image* + PATIENT/*mask*; files that share a prefix (MR_T1_image, MR_T1_mask) belong together.

    A folder with one label and no such pair is one case with a channel per image (NAME_flair, NAME_t1, NAME_seg).
    """
    kinds: dict[str, list[Case]] = defaultdict(list)
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        for prefix, (images, label) in _by_prefix(folder).items():
            name = "_".join([folder.name, *([prefix] if prefix else [])])
            files = tuple(p.relative_to(root).as_posix() for p in images)
            relative = label.relative_to(root).as_posix() if label else None
            names = [_IMAGE_SUFFIX.sub("", stem_of(p)) for p in images] or [prefix]
            kind = "+".join(_channel_name(stem, folder.name) for stem in names)
            kinds[kind].append(Case(name, files, relative, folder.name))
    if not any(case.images and case.label for cases in kinds.values() for case in cases):
        return None
    if len(kinds) > 1 and all(len(cases) == len(cases[0].images) == 1 for cases in kinds.values()):
        kinds = {_UNNAMED: [case for cases in kinds.values() for case in cases]}  # names of cases, not of kinds
    return _of_most(root, "case folders", {}, kinds, [])


def _dicom_tree(root: Path) -> Index | None:
    """DICOM in folders of any depth: every SEG or RTSTRUCT with the series that it was drawn on."""
    from medunet.data.dicom.dataset import find_labelled

    kinds, findings = find_labelled(root)
    if findings and not kinds:
        told = "; ".join(finding.message for finding in findings[:_TOLD])
        more = f"; and {len(findings) - _TOLD} more" if len(findings) > _TOLD else ""
        raise DatasetError(f"{root}: no case of {len(findings)} label objects can be used: {told}{more}")
    return _of_most(root, "DICOM", {}, kinds, findings)


def _by_prefix(folder: Path) -> dict[str, tuple[list[Path], Path | None]]:
    """Images and label of each prefix in a folder; one label without a pair belongs to all images."""
    files = _volumes(folder)
    labels = [p for p in files if _LABEL_WORDS.search(stem_of(p).split("_")[-1])]
    images = {p: _prefix(p, _IMAGE_SUFFIX) or stem_of(p) for p in files if p not in labels}
    if len(labels) == 1 and images and _prefix(labels[0], _LABEL_SUFFIX) not in images.values():
        return {"": (list(images), labels[0])}
    groups: dict[str, tuple[list[Path], Path | None]] = {}
    for path in labels:
        prefix = _prefix(path, _LABEL_SUFFIX)
        groups[prefix] = ([p for p, own in images.items() if own == prefix], path)
    for path, own in images.items():
        if own not in groups:
            groups.setdefault(_prefix(path, _IMAGE_SUFFIX), ([], None))[0].append(path)
    return groups


def _prefix(path: Path, suffix: re.Pattern[str]) -> str:
    """What stands before ``_image`` or ``_mask``; empty when the name does not end so."""
    stem = stem_of(path)
    return suffix.sub("", stem) if suffix.search(stem) else ""


def _channel_name(stem: str, folder: str) -> str:
    """What a file name says beyond the patient: MR_T1 of MR_T1_image, flair of PATIENT_flair."""
    return stem.removeprefix(folder).strip("_-.") or _UNNAMED


def _no_image(case: str, label: str) -> Finding:
    return Finding.of(case, "missing image", f"label {label} has no image; add it or remove the label")


def _of_most(
    root: Path, layout: str, facts: Mapping[str, Any], kinds: Mapping[str, Sequence[Case]], findings: Sequence[Finding]
) -> Index | None:
    """The cases with the kind of image that most labelled cases have; the others are told."""
    if not kinds:
        return None
    taken = max(kinds, key=lambda kind: sum(bool(case.images and case.label) for case in kinds[kind]))
    told = [*findings]
    for kind, cases in kinds.items():
        known = any(case.images for case in cases)
        for case in cases:
            if not case.images and (kind == taken or not known):
                told.append(_no_image(case.id, str(case.label)))
            elif kind != taken:
                message = f"is not used, most patients have {taken}; give a datalist to train on {kind}"
                told.append(Finding.of(case.id, "other image", message, fatal=False))
    kept = tuple(case for case in kinds[taken] if case.images)
    channels = [] if taken == _UNNAMED else taken.split("+")
    return _index(root, layout, {"channels": channels, **facts}, kept, (), told)


def _index(
    root: Path,
    layout: str,
    facts: Mapping[str, Any],
    training: tuple[Case, ...],
    test: tuple[Case, ...] = (),
    findings: Sequence[Finding] = (),
) -> Index:
    doubled = sorted(name for name, count in Counter(case.id for case in training).items() if count > 1)
    if doubled:
        raise DatasetError(f"{root}: case id {doubled[0]} occurs more than once; give each case its own id or name")
    known = declared(facts.get("labels"), facts.get("regions_class_order"), str(root))
    channels = facts.get("channel_names") or facts.get("modality") or facts.get("channels")
    found = Index(
        root=str(root),
        name=str(facts.get("name") or root.name),
        layout=layout,
        channels=_channels(channels, {len(case.images) for case in training}),
        labels=known.labels,
        training=tuple(sorted(training, key=lambda case: case.id)),
        test=test,
        findings=tuple(findings),
        licence=str(facts.get("licence") or facts.get("license") or ""),
        reference=str(facts.get("reference") or ""),
        regions=known.regions,
        ignore=known.ignore,
    )
    return settle(found, facts)


def _channels(declared: Any, files: set[int]) -> tuple[str, ...]:
    """Names as declared; empty for single files, and where cases have not the same number: what is read names them."""
    if isinstance(declared, Mapping) and declared:
        return tuple(str(declared[key]) for key in sorted(declared, key=lambda key: (len(key), key)))
    if isinstance(declared, list) and declared:
        return tuple(str(name) for name in declared)
    return tuple(f"image_{number}" for number in range(max(files))) if len(files) == 1 and files != {1} else ()


def _volumes(folder: Path) -> list[Path]:
    """Readable files below a folder, sorted; hidden ones and the data half of an Analyze pair left out."""
    if not folder.is_dir():
        return []
    return sorted(
        p for p in folder.rglob("*")
        if p.name.lower().endswith(VOLUME_SUFFIXES)
        and not p.name.startswith(".")
        and not p.name.lower().endswith((".img", ".img.gz"))
        and p.is_file()
    )  # fmt: skip
