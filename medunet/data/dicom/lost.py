"""Images that may be missing without a trace: a file that cannot be read leaves no gap when it was the last slice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING

from medunet.data.dicom.files import NotRead
from medunet.data.dicom.header import text

if TYPE_CHECKING:
    from medunet.data.dicom.frames import Frame
    from medunet.data.dicom.scan import Series


def without_uid(groups: dict[str, list[Frame]]) -> list[NotRead]:
    """Take out images without SeriesInstanceUID that lie among others that have one: they belong to one of those."""
    named = {f.file.location.folder for uid, frames in groups.items() for f in frames if uid != f.file.location.folder}
    lost = [frame for uid in list(groups) if uid in named for frame in groups.pop(uid)]
    reason = "is without SeriesInstanceUID among images that have one"
    return [NotRead(str(location), reason, True) for location in dict.fromkeys(f.file.location for f in lost)]


def broken_alone(groups: dict[str, list[Frame]]) -> list[NotRead]:
    """Take out images that cannot be used and are alone in their series, beside images of another one.

    What broke the image may have broken the UID of its series too.
    """
    places = Counter(_place(str(f.file.location)) for frames in groups.values() for f in frames)
    alone = [
        uid
        for uid, frames in groups.items()
        if len(frames) == 1 and frames[0].problem and places[_place(str(frames[0].file.location))] > 1
    ]
    lost = [groups.pop(uid)[0] for uid in alone]
    return [NotRead(str(frame.file.location), frame.problem, True) for frame in lost]


def refuse_incomplete(series: Sequence[Series], aside: Sequence[NotRead]) -> list[Series]:
    """Refuse every stack beside whose files lies a damaged one of the same suffix, which may have been its slice."""
    damaged: dict[tuple[str, str], list[NotRead]] = {}
    for item in aside:
        if item.damaged:
            damaged.setdefault(_place(item.location), []).append(item)
    return [_judged(one, damaged) for one in series] if damaged else list(series)


def missing_parts(frames: Sequence[Frame]) -> str:
    """What is missing of an object that was stored in parts; empty where nothing is (PS3.3 C.7.6.16.2.2.4)."""
    there: dict[str, set[int]] = {}
    totals: dict[str, int] = {}
    for header in (frame.file.header for frame in frames):
        uid = text(header, "ConcatenationUID")
        if uid:
            number = int(header.get("InConcatenationNumber") or 0)
            there.setdefault(uid, set()).add(number)
            totals[uid] = max(totals.get(uid, 0), number, int(header.get("InConcatenationTotalNumber") or 0))
    for uid, total in totals.items():
        lost = [str(number) for number in range(1, total + 1) if number not in there[uid]]
        if lost:
            parts = f"part {lost[0]}" if len(lost) == 1 else f"parts {', '.join(lost[:10])}"
            are, them = ("is", "it") if len(lost) == 1 else ("are", "them")
            return f"{parts} of {total} of an object in several files {are} missing; add {them}"
    return ""


def _judged(series: Series, damaged: dict[tuple[str, str], list[NotRead]]) -> Series:
    places = Counter(_place(str(frame.file.location)) for frame in series.frames)
    lost = [item for place in places for item in damaged.get(place, [])]
    if not lost:
        return series
    words = (
        f"{len(lost)} file{'s' * (len(lost) != 1)} beside its images may be of it and cannot be used: "
        f"{lost[0].location} {lost[0].reason}; copy it again, or take it (or the DICOMDIR that lists it) away"
    )
    layout = series.layout
    verdict = replace(layout.verdict, refusals=(*layout.verdict.refusals, words))
    return replace(series, layout=replace(layout, verdict=verdict, grid=None))


def _place(location: str) -> tuple[str, str]:
    """Folder and suffix, in one case (a DICOMDIR has upper case); a number behind a dot is part of a name or a UID."""
    path = PurePath(location.lower())
    return str(path.parent), "" if path.suffix[1:].isdigit() else path.suffix
