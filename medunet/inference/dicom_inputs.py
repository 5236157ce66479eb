"""DICOM stacks of images as cases to segment, and names for their results."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from medunet.data.dicom.scan import Scan, Series, scan
from medunet.data.dicom.source import Source
from medunet.data.dicom.volumes import is_meant
from medunet.data.volume import VOLUME_SUFFIXES
from medunet.errors import InputError
from medunet.types import StrPath

Stacks = dict[tuple[str, ...], str]


def find_stacks(argument: StrPath, channels: Sequence[str], *, allow_gaps: bool = False) -> Stacks:
    """A case (a source per channel) -> the path that names its result, for every stack below `argument`.

    A refused stack is a case too: predicting it says why it was refused.

    Raises:
        InputError: a folder has neither volumes nor DICOM images, or its series do not tell which channel they are.
    """
    where = Source.parse(argument)
    if not _has_others(where.path):
        return {}
    allow_gaps = allow_gaps or "allow_gaps" in where.options
    found = scan(where.path, allow_gaps=allow_gaps)
    series = [s for s in found.series if is_meant(s, where)]
    if not series:
        _require_volumes(where.path, found)
        return {}
    if len(channels) == 1:
        return {(_source(s, where, found, allow_gaps),): _name(s, where, found) for s in series}
    return _grouped(series, channels, where, found, allow_gaps)


def _has_others(path: Path) -> bool:
    """Whether a folder has files that are not volumes by their name; so folders of NIfTI are not opened one by one."""
    if not path.is_dir():
        return True
    files = [p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")]
    return not files or any(not p.name.lower().endswith(VOLUME_SUFFIXES) for p in files)


def _require_volumes(path: Path, found: Scan) -> None:
    if path.is_dir() and any(p.name.lower().endswith(VOLUME_SUFFIXES) for p in path.rglob("*")):
        return
    known = f" ({found.aside[0].location}: {found.aside[0].reason})" if found.aside else ""
    raise InputError(
        f"{path}: has no volume and no DICOM series of images{known}; give a folder with {', '.join(VOLUME_SUFFIXES)} "
        f"files or DICOM"
    )


def _source(series: Series, where: Source, found: Scan, allow_gaps: bool) -> str:
    """The source that means this stack alone, from the folder that holds it where that is enough."""
    inside = Source(where.path) if where.path.is_file() else Source(Path(series.folder))
    neighbours = [s for s in found.series if where.path.is_file() or s.has_files_below(inside.path)]
    if len(neighbours) > 1:
        inside = inside.with_options(series=series.uid)
    if sum(s.uid == series.uid for s in neighbours) > 1:
        inside = inside.with_options(part=series.part)
    return str(inside.with_options(allow_gaps="1") if allow_gaps else inside)


def _name(series: Series, where: Source, found: Scan) -> str:
    """Its folder's path; stacks that share a folder are told apart by number and part of their series."""
    place = where.path.with_suffix("") if where.path.is_file() else Path(series.folder)
    rivals = [s for s in found.series if where.path.is_file() or s.folder == series.folder]
    if len(rivals) == 1:
        return str(place)
    alike = [s for s in rivals if (s.number, s.part) == (series.number, series.part)]
    twin = f"_{series.uid.split('.')[-1][-8:]}" if len(alike) > 1 else ""
    return str(place / "_".join(filter(None, [f"series_{series.number or '0'}{twin}", _slug(series.part)])))


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")


def _grouped(series: Sequence[Series], channels: Sequence[str], where: Source, found: Scan, allow_gaps: bool) -> Stacks:
    """Series of one patient and frame of reference, one for each channel's name."""
    groups: dict[tuple[str, str], list[Series]] = defaultdict(list)
    for one in series:
        groups[one.patient, one.frame_of_reference].append(one)
    result: Stacks = {}
    for members in groups.values():
        chosen = [_of_channel(channel, members) for channel in channels]
        sources = tuple(_source(s, where, found, allow_gaps) for s in chosen)
        result[sources] = _name(chosen[0], where, found)
    return result


def _of_channel(channel: str, members: Sequence[Series]) -> Series:
    """The one series whose modality, description or folder is the channel's name."""
    fits = [s for s in members if _slug(channel).lower() in {_slug(n).lower() for n in _names(s)}]
    if len(fits) == 1:
        return fits[0]
    there = ", ".join(s.name for s in members)
    raise InputError(
        f"{members[0].folder}: {len(fits)} series are called {channel} (there are {there}); "
        f"list the series of each case in @list.txt, its channels separated by ;"
    )


def _names(series: Series) -> set[str]:
    return {series.modality, series.description, *Path(series.folder).parts[-2:]}
