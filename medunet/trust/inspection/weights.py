"""Weights by their content: pickles, torch archives, TorchScript, NumPy files; judged without loading anything."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import BinaryIO

from medunet.trust.findings import Finding, Place, code, danger, note
from medunet.trust.inspection.archive import ArchiveError, Directory, Member, locate, pieces, read_directory
from medunet.trust.inspection.members import name_problem
from medunet.trust.inspection.pickles import describe, looks_like_pickle, scan_pickles

NUMPY = b"\x93NUMPY"
_PICKLE_LIMIT = 256 * 1024 * 1024
_MAX_PICKLE_MEMBER = 64 * 1024 * 1024
_OBJECT = re.compile(rb"['\"][|<>=]?O\d*['\"]")
_TORCH_FILE = re.compile(
    r"(data\.pkl|version|byteorder|\.format_version|\.storage_alignment|data/\d+|\.data/serialization_id)$"
)


def examine_pickle(stream: BinaryIO, place: Place, limit: int) -> Iterator[Finding]:
    """A file that begins as a pickle: a state dict of plain tensors, or something that imports more."""
    scan = scan_pickles(stream, max(1024, min(limit * 2, _PICKLE_LIMIT)))
    problems = list(describe(scan))
    for problem in problems:
        yield danger("pickle", place, problem, "processes", "files", "network", "code")
    if not problems:
        yield note("weights", place, "is a pickle of plain values and tensors")


def examine_zip(stream: BinaryIO, place: Place) -> Iterator[Finding]:
    """A zip file within the bundle: weights of torch, TorchScript, arrays of NumPy, or something else."""
    findings: list[Finding] = []
    try:
        directory = read_directory(stream)
        members = locate(stream, directory, findings, f"{place.file}/")
        if findings:
            yield from findings
            return
        yield from _members(stream, directory, members, place)
    except ArchiveError as error:
        yield danger("weights", place, str(error))


def _members(stream: BinaryIO, directory: Directory, members: list[Member], place: Place) -> Iterator[Finding]:
    names = [member.name for member in members]
    if len(set(names)) != len(names):
        yield danger("archive-collision", place, "holds a member twice", "files")
    for name in names:
        if name_problem(name) and not name.endswith("/"):
            yield danger("archive-name", Place(f"{place.file}/{name}"), name_problem(name), "files")
    script = [name for name in names if re.match(r"[^/]+/(code/|constants\.pkl)", name)]
    pickled = [m for m in members if m.name.endswith(".pkl")]
    if script:
        yield code("torchscript", place, "is TorchScript: a program in torch's own language")
    if pickled:
        yield from _torch(stream, members, pickled, bool(script), place)
    elif names and all(name.endswith(".npy") for name in names):
        for member in members:
            yield from examine_numpy(next(pieces(stream, member), b""), Place(f"{place.file}/{member.name}"))
        yield note("weights", place, f"holds {len(names)} NumPy arrays")
    else:
        yield code("nested-archive", place, f"is an archive of {len(names)} files in the bundle, not examined further")


def _torch(
    stream: BinaryIO, members: list[Member], pickled: list[Member], script: bool, place: Place
) -> Iterator[Finding]:
    clean = True
    for member in pickled:
        here = Place(f"{place.file}/{member.name}")
        if member.size > _MAX_PICKLE_MEMBER:
            yield danger("pickle", here, "is a pickle larger than that of any state dict")
            return
        data = b"".join(pieces(stream, member))
        scan = scan_pickles(io.BytesIO(data), len(data) + 1)
        if script:
            allowed = ("__torch__.", "torch.jit._pickle.", "torch.")
            scan.globals = {name for name in scan.globals if not name.startswith(allowed)}
        for problem in describe(scan):
            clean = False
            yield danger("pickle", here, problem, "processes", "files", "network", "code")
    others = [m.name for m in members if not _TORCH_FILE.search(m.name) and not m.is_folder]
    if others and not script:
        yield code("weights", place, f"holds members that torch does not write: {', '.join(others[:3])}")
    if clean:
        yield note("weights", place, "holds plain tensors" + (" and a program" if script else ""))


def examine_numpy(head: bytes, place: Place) -> Iterator[Finding]:
    """An ``.npy`` file by its header: object arrays are pickles."""
    if not head.startswith(NUMPY) or len(head) < 12:
        yield danger("numpy", place, "is named as a NumPy array and is none")
        return
    wide = head[6] >= 2
    start = 12 if wide else 10
    length = int.from_bytes(head[8:start], "little")
    header = head[start : start + length]
    if length > 65536 or len(header) < length:
        yield danger("numpy", place, "has a header that is longer than that of any array")
    elif _OBJECT.search(header) or b"object" in header:
        yield danger("numpy", place, "is an array of objects, which is a pickle", "code")
    elif b"(" not in header or b"descr" not in header:
        yield danger("numpy", place, "has a damaged header")


__all__ = ["NUMPY", "examine_numpy", "examine_pickle", "examine_zip", "looks_like_pickle"]
