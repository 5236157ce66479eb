"""Which cases an input means, and an output name for each that cannot collide."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medunet.data.datalist import listed
from medunet.data.declared import as_grey
from medunet.data.dicom.source import Source, is_dicom
from medunet.data.pictures import GREY
from medunet.data.volume import VOLUME_SUFFIXES, stem_of
from medunet.errors import InputError
from medunet.inference.status import results_in
from medunet.types import StrPath

_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")  # nnU-Net's NAME_0000


@dataclass(frozen=True)
class InputCase:
    """One case to segment: a file per channel (or one file with all), and the output's path below the output folder."""

    images: tuple[str, ...]
    output: str

    @property
    def name(self) -> str:
        """What messages call the case."""
        return self.output.removesuffix(".nii.gz")


def find_cases(
    arguments: Iterable[StrPath],
    channels: Sequence[str] = ("image",),
    *,
    allow_gaps: bool = False,
    output_dir: StrPath | None = None,
) -> list[InputCase]:
    """The cases that files, folders and ``@list.txt`` arguments mean.

    A folder means every volume and every DICOM stack of images below it. With several channels, files ``NAME_0000``,
    ``NAME_0001`` of one folder belong together, and DICOM series of one patient and frame of reference that bear the
    channels' names. A line of a list file is one case, its channels separated by ``;``, relative to the list's folder;
    a line that is one path is one file. Where the model's only channel is ``grey``, pictures are read as their luma.
    Results of earlier calls in `output_dir` are no inputs, unless they are named.

    Raises:
        InputError: nothing is there, or a case has other files than the model has channels.
    """
    groups: list[tuple[str, ...]] = []
    names: dict[tuple[str, ...], str] = {}
    for argument in arguments:
        text = os.fspath(argument)
        if text.startswith("@"):
            groups += _from_list(Path(text[1:]))
            continue
        groups += _from_path(Path(text), len(channels), output_dir)
        if is_dicom(text):
            from medunet.inference.dicom_inputs import find_stacks

            stacks = find_stacks(text, channels, allow_gaps=allow_gaps)
            names.update(stacks)
            groups += stacks
    if not groups:
        raise InputError(
            "no input: give volume files, DICOM folders, folders of volumes, or @list.txt with one case per line"
        )
    _require_channels(groups, len(channels))
    if tuple(channels) == GREY:
        groups = [tuple(as_grey(image) for image in group) for group in groups]
    return name_outputs(list(dict.fromkeys(groups)), names)


def name_outputs(
    groups: Sequence[tuple[str, ...]], names: Mapping[tuple[str, ...], str] | None = None
) -> list[InputCase]:
    """Keep each input's path below the deepest folder that all share; equal names get their suffix or a number.

    `names` are paths that stand for inputs that are no files.
    """
    named = names or {}
    absolute = [Path(os.path.abspath(named.get(group, Source.parse(group[0]).path))) for group in groups]
    common = Path(os.path.commonpath([path.parent for path in absolute])) if absolute else Path()
    stems = [
        path.relative_to(common).as_posix()
        if group in named or path.is_dir()
        else _output_stem(path.relative_to(common), len(group) > 1)
        for path, group in zip(absolute, groups, strict=True)
    ]
    twins = Counter(stem.lower() for stem in stems)
    taken: set[str] = set()
    cases = []
    for stem, path, group in zip(stems, absolute, groups, strict=True):
        name = (
            stem if twins[stem.lower()] == 1 else f"{stem}_{''.join(path.suffixes[-2:]).strip('.').replace('.', '_')}"
        )
        unique, number = name, 2
        while unique.lower() in taken:
            unique, number = f"{name}_{number}", number + 1
        taken.add(unique.lower())
        cases.append(InputCase(group, f"{unique}.nii.gz"))
    return cases


def _output_stem(relative: Path, grouped: bool) -> str:
    stem = stem_of(relative)
    match = _CHANNEL.match(stem) if grouped else None
    return (relative.parent / (match["case"] if match else stem)).as_posix()


def _from_list(path: Path) -> list[tuple[str, ...]]:
    if not path.is_file():
        raise InputError(f"{path}: list file is missing; give a text file with one case per line")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [listed(line, path.parent) for line in lines if line and not line.startswith("#")]
    return [tuple(str(path.parent / part) for part in row) for row in rows]


def _from_path(path: Path, channels: int, output_dir: StrPath | None) -> list[tuple[str, ...]]:
    if path.is_dir():
        return _from_folder(path, channels, output_dir)
    if is_dicom(path):
        return []
    if not path.exists():
        raise InputError(f"{path}: is missing; give a volume file, a folder of volumes or DICOM, or @list.txt")
    if not _is_volume(path):
        raise InputError(f"{path}: is not a volume that can be read; give one of {', '.join(VOLUME_SUFFIXES)}")
    return [(str(path),)]


def _from_folder(folder: Path, channels: int, output_dir: StrPath | None) -> list[tuple[str, ...]]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and _is_volume(p))
    if output_dir is not None:
        files = _without_results(files, folder.resolve(), Path(output_dir).resolve())
    if channels == 1:
        return [(str(path),) for path in files]
    groups: dict[Path, list[Path]] = defaultdict(list)
    for path in files:
        match = _CHANNEL.match(stem_of(path))
        groups[path.parent / match["case"] if match else path].append(path)
    for group in groups.values():
        _require_numbers(group, channels)
    return [tuple(map(str, group)) for group in groups.values()]


def _without_results(files: Sequence[Path], folder: Path, output: Path) -> list[Path]:
    """Volumes of a folder but for all that lies in an output folder below it, and for what earlier calls left there."""
    inside = output != folder and output.is_relative_to(folder)
    results = {output / name for name in results_in(output)}
    real = ((path, path.resolve()) for path in files)
    return [path for path, at in real if at not in results and not (inside and at.is_relative_to(output))]


def _require_numbers(files: Sequence[Path], channels: int) -> None:
    """Refuse as many files as channels whose numbers are not those of the channels."""
    numbers = [stem_of(path)[-4:] for path in files]
    if len(files) == channels and numbers != [f"{number:04d}" for number in range(channels)]:
        raise InputError(
            f"{files[0]}: the case has the channels {', '.join(numbers)}, the model takes 0000 to {channels - 1:04d}; "
            f"name them so, or list them in @list.txt"
        )


def _is_volume(path: Path) -> bool:
    name = path.name.lower()
    return not name.startswith(".") and name.endswith(tuple(VOLUME_SUFFIXES)) and not name.endswith((".img", ".img.gz"))


def _require_channels(groups: Sequence[tuple[str, ...]], channels: int) -> None:
    for group in groups:
        if len(group) not in (1, channels):
            raise InputError(
                f"{group[0]}: the case has {len(group)} files, the model takes {channels} "
                f"channel{'s' * (channels != 1)}; name them NAME_0000, NAME_0001, ... or list them in @list.txt"
            )
