"""The dataset layouts that medunet recognises: one function each, tried in order."""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medunet.data.index import Case, Finding, Index
from medunet.data.volume import VOLUME_SUFFIXES, stem_of
from medunet.errors import DatasetError

KNOWN = (
    "a CSV or JSON datalist, MSD (dataset.json with a list 'training'), nnU-Net raw (imagesTr/NAME_0000.nii.gz, "
    "labelsTr), BIDS derivatives, images/ + labels/, or one folder per case with *image* and *mask* files"
)
_LABEL_WORDS = re.compile(r"(mask|label|labels|seg|segmentation|gt|roi)", re.IGNORECASE)
_LABEL_SUFFIX = re.compile(r"[_-](mask|label|labels|seg|segmentation|gt|roi)$", re.IGNORECASE)
_IMAGE_SUFFIX = re.compile(r"[_-](image|img|0000)$", re.IGNORECASE)
_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")
_IMAGES, _LABELS = (
    ("images", "image", "img", "imagesTr"),
    ("labels", "label", "masks", "mask", "segmentations", "labelsTr"),
)


def recognise(dataset: Path) -> Index:
    """The index of a folder or datalist.

    Raises:
        DatasetError: nothing is recognised; the message lists the layouts.
    """
    if dataset.is_file():
        return _datalist(dataset)
    for name in ("datalist.json", "datalist.csv"):
        if (dataset / name).is_file():
            return _datalist(dataset / name)
    for layout in (_msd, _nnunet, _bids, _paired, _case_folders):
        found = layout(dataset)
        if found is not None:
            return found
    raise DatasetError(f"{dataset}: no cases were recognised; known layouts are {KNOWN}")


def _msd(root: Path) -> Index | None:
    """Medical Segmentation Decathlon: dataset.json lists image and label of each case."""
    content = _read_json(root / "dataset.json")
    if not isinstance(content, dict) or not isinstance(content.get("training"), list):
        return None
    if not content["training"] or not isinstance(content["training"][0], dict):
        return None
    training = tuple(_msd_case(entry, root) for entry in content["training"])
    tests = [entry if isinstance(entry, dict) else {"image": entry} for entry in content.get("test", [])]
    return _index(
        root, "MSD", content, training, tuple(_msd_case(entry, root) for entry in tests if _exists(root, entry))
    )


def _msd_case(entry: Mapping[str, Any], root: Path) -> Case:
    image = _relative(str(entry["image"]))
    label = entry.get("label")
    case = re.sub(r"_0000$", "", stem_of(image))
    return Case(case, (image,), None if label is None else _relative(str(label)), case)


def _exists(root: Path, entry: Mapping[str, Any]) -> bool:
    return (root / str(entry.get("image", ""))).is_file()


def _nnunet(root: Path) -> Index | None:
    """nnU-Net raw: imagesTr/NAME_0000.ext per channel, labelsTr/NAME.ext; imagesTs/labelsTs are the test set."""
    if not (root / "imagesTr").is_dir():
        return None
    content = _read_json(root / "dataset.json")
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
    known = {stem_of(p): p.relative_to(root).as_posix() for p in _volumes(root / labels)}
    return _matched(groups, known, labels)


def _matched(
    groups: Mapping[str, Sequence[str]], labels: Mapping[str, str], folder: str
) -> tuple[tuple[Case, ...], list[Finding]]:
    cases = tuple(Case(name, tuple(files), labels.get(name), name) for name, files in sorted(groups.items()))
    findings = [
        Finding(name, "missing image", f"{name}: label {labels[name]} has no image; add it or remove the label", True)
        for name in sorted(set(labels) - set(groups))
    ]
    return cases, findings


def _bids(root: Path) -> Index | None:
    """BIDS: sub-X[/ses-Y]/anat/*.nii.gz with label maps below derivatives/."""
    if not (root / "derivatives").is_dir():
        return None
    labels = [p for p in _volumes(root / "derivatives") if re.search(r"_(dseg|mask|seg)$|_label-", stem_of(p))]
    images = [p for subject in sorted(root.glob("sub-*")) for p in _volumes(subject)]
    cases = []
    for image in images:
        stem = stem_of(image)
        own = [p for p in labels if _entities(p) == _entities(image)]
        label = next((p for p in own if stem in p.name), own[0] if own else None)
        subject = re.match(r"(sub-[^_]+)", stem)
        if label is not None:
            relative = label.relative_to(root).as_posix()
            cases.append(Case(stem, (image.relative_to(root).as_posix(),), relative, subject[1] if subject else stem))
    cases = _one_image_per_label(cases)
    content = _read_json(root / "dataset_description.json")
    facts = {"name": content.get("Name", root.name), "licence": content.get("License", "")} if content else {}
    return _index(root, "BIDS", facts, tuple(cases)) if cases else None


def _one_image_per_label(cases: Iterable[Case]) -> list[Case]:
    """A label that several contrasts share becomes one case with a channel per contrast."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[str(case.label)].append(case)
    return [
        group[0] if len(group) == 1 else Case(
            "_".join(_entities(Path(group[0].images[0]))), tuple(c.images[0] for c in group), label, group[0].patient
        )
        for label, group in sorted(groups.items())
    ]  # fmt: skip


def _entities(path: Path) -> tuple[str, ...]:
    return tuple(part for part in stem_of(path).split("_") if part.startswith(("sub-", "ses-", "run-")))


def _paired(root: Path) -> Index | None:
    """images/ + labels/ with equal names; _image, _mask, _seg and _label at their ends are overlooked."""
    folders = {p.name.lower(): p for p in root.iterdir() if p.is_dir()}
    images = next((folders[name] for name in _IMAGES if name in folders), None)
    labels = next((folders[name] for name in _LABELS if name in folders), None)
    if images is None or labels is None:
        return None
    groups: dict[str, list[str]] = defaultdict(list)
    for path in _volumes(images):
        groups[_IMAGE_SUFFIX.sub("", _key(path, images))].append(path.relative_to(root).as_posix())
    known = {_LABEL_SUFFIX.sub("", _key(p, labels)): p.relative_to(root).as_posix() for p in _volumes(labels)}
    cases, findings = _matched(groups, known, labels.name)
    return _index(root, "paired folders", {}, cases, (), findings) if cases else None


def _key(path: Path, folder: Path) -> str:
    return "_".join((*path.relative_to(folder).parent.parts, stem_of(path)))


def _case_folders(root: Path) -> Index | None:
    """PATIENT/*image* + PATIENT/*mask*; files that share a prefix (MR_T1_image, MR_T1_mask) belong together.

    Where there are several kinds of image, the one that most patients have is taken and the others are told.
    """
    kinds: dict[str, list[Case]] = defaultdict(list)
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        for prefix, (images, label) in _by_prefix(folder).items():
            name = "_".join([folder.name, *([prefix] if prefix else [])])
            files = tuple(p.relative_to(root).as_posix() for p in images)
            relative = label.relative_to(root).as_posix() if label else None
            kinds[prefix].append(Case(name, files, relative, folder.name))
    whole = {kind: sum(bool(c.images and c.label) for c in cases) for kind, cases in kinds.items()}
    if not any(whole.values()):
        return None
    kind = max(whole, key=lambda name: whole[name])
    cases = tuple(case for case in kinds[kind] if case.images)
    findings = [*_without_image(kinds[kind]), *_other_kinds(kinds, kind)]
    facts = {"channels": [kind]} if kind and len(cases[0].images) == 1 else {}
    return _index(root, "case folders", facts, cases, (), findings)


def _by_prefix(folder: Path) -> dict[str, tuple[list[Path], Path | None]]:
    """Images and label of each prefix in a folder; images without a prefix belong to the label without one."""
    files = _volumes(folder)
    labels = {p: _LABEL_SUFFIX.sub("", stem_of(p)) for p in files if _LABEL_WORDS.search(stem_of(p).split("_")[-1])}
    labels = {p: "" if prefix == stem_of(p) else prefix for p, prefix in labels.items()}
    images = {p: _IMAGE_SUFFIX.sub("", stem_of(p)) for p in files if p not in labels}
    alone = list(labels.values()) == [""]
    groups: dict[str, tuple[list[Path], Path | None]] = {}
    for path, prefix in labels.items():
        groups[prefix] = ([p for p, own in images.items() if alone or own == prefix], path)
    for path, prefix in images.items():
        if prefix not in groups and not alone and prefix != stem_of(path):
            groups[prefix] = ([path], None)
    return groups


def _without_image(cases: Sequence[Case]) -> list[Finding]:
    return [
        Finding(c.id, "missing image", f"{c.id}: label {c.label} has no image; add it or remove the label", True)
        for c in cases
        if not c.images
    ]


def _other_kinds(kinds: Mapping[str, Sequence[Case]], taken: str) -> list[Finding]:
    return [
        Finding(
            case.id,
            "other image",
            f"{case.id}: is not used, most patients have {taken}; give a datalist to train on {kind or 'it'}",
            False,
        )
        for kind, cases in kinds.items()
        if kind != taken
        for case in cases
    ]


def _datalist(path: Path) -> Index:
    """A CSV or JSON list: image (or image_0, image_1, ...), label, and optionally id, patient, split, weight."""
    rows, facts = _datalist_rows(path)
    cases = [_datalist_case(row, number, path) for number, row in enumerate(rows)]
    test = tuple(case for case in cases if case.split == "test")
    training = tuple(case for case in cases if case.split != "test")
    if not training:
        raise DatasetError(f"{path}: has no training case; give a row per case with columns image and label")
    return _index(path.parent, "datalist", {"name": path.stem, **facts}, training, test)


def _datalist_rows(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    if path.suffix.lower() == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [{k.strip(): (v or "").strip() for k, v in row.items() if k} for row in csv.DictReader(file)], {}
    content = _read_json(path)
    if isinstance(content, list):
        return content, {}
    if isinstance(content, dict) and isinstance(content.get("training"), list):
        rows = [*content["training"], *({"split": "test", **row} for row in content.get("test", []))]
        return rows, {key: value for key, value in content.items() if key not in ("training", "test")}
    raise DatasetError(f"{path}: is not a datalist; give a CSV, or a JSON list of {{image, label}}")


def _datalist_case(row: Mapping[str, Any], number: int, path: Path) -> Case:
    columns = sorted(key for key in row if re.fullmatch(r"image(_\d+)?", key) and row[key])
    if not columns:
        raise DatasetError(f"{path}: row {number + 1} has no column image; give image (or image_0, image_1, ...)")
    files: list[str] = []
    for column in columns:
        value = row[column]
        files += list(value) if isinstance(value, list) else [part.strip() for part in str(value).split(";")]
    case = str(row.get("id") or stem_of(files[0]))
    return Case(
        id=case,
        images=tuple(_relative(file) for file in files),
        label=_relative(str(row["label"])) if row.get("label") else None,
        patient=str(row.get("patient") or case),
        weight=_weight(row.get("weight"), case, path),
        split=str(row["split"]) if row.get("split") not in (None, "", "train") else _fold(row),
    )


def _fold(row: Mapping[str, Any]) -> str | None:
    return str(row["fold"]) if row.get("fold") not in (None, "") else None


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


def _index(
    root: Path,
    layout: str,
    facts: Mapping[str, Any],
    training: tuple[Case, ...],
    test: tuple[Case, ...] = (),
    findings: Sequence[Finding] = (),
) -> Index:
    doubled = sorted({case.id for case in training if sum(other.id == case.id for other in training) > 1})
    if doubled:
        raise DatasetError(f"{root}: case id {doubled[0]} occurs more than once; give each case its own id or name")
    channels = facts.get("channel_names") or facts.get("modality") or facts.get("channels")
    return Index(
        root=str(root),
        name=str(facts.get("name") or root.name),
        layout=layout,
        channels=_channels(channels, len(training[0].images) if training else 1),
        labels=_labels(facts.get("labels")),
        training=tuple(sorted(training, key=lambda case: case.id)),
        test=test,
        findings=tuple(findings),
        licence=str(facts.get("licence") or facts.get("license") or ""),
        reference=str(facts.get("reference") or ""),
    )


def _channels(declared: Any, files: int) -> tuple[str, ...]:
    if isinstance(declared, Mapping) and declared:
        return tuple(str(declared[key]) for key in sorted(declared, key=lambda key: int(key)))
    if isinstance(declared, list) and declared:
        return tuple(str(name) for name in declared)
    return ("image",) if files == 1 else tuple(f"image_{number}" for number in range(files))


def _labels(declared: Any) -> dict[str, int]:
    """Name -> value with the background first, from either direction; empty when nothing is declared."""
    if not isinstance(declared, Mapping) or not declared:
        return {}
    if all(str(key).lstrip("-").isdigit() for key in declared):
        pairs = {str(name): int(key) for key, name in declared.items()}
    else:
        pairs = {str(name): int(value) for name, value in declared.items() if not isinstance(value, list)}
    if 0 not in pairs.values():
        pairs = {"background": 0, **pairs}
    return dict(sorted(pairs.items(), key=lambda item: (item[1] != 0, item[1])))


def _relative(path: str) -> str:
    return path[2:] if path.startswith("./") else path


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


def _read_json(path: Path) -> Any:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetError(f"{path}: is not valid JSON ({error}); mend it") from error
