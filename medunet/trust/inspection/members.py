"""The members of an archive, or the files of a folder: names, links, sizes; nothing is written anywhere."""

from __future__ import annotations

import stat
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from medunet.errors import InputError
from medunet.trust.findings import Finding, Place, danger
from medunet.trust.inspection.archive import ArchiveError, Member, comments, locate, pieces, read_directory

MAX_TOTAL = 64 * 1024**3
MAX_RATIO = 120
_RATIO_FROM = 4 * 1024 * 1024
MAX_FILES = 100_000
_RESERVED = {
    "con",
    "prn",
    "aux",
    "nul",
    "conin$",
    "conout$",
    *(f"{d}{n}" for d in ("com", "lpt") for n in range(1, 10)),
}
_TAR_NAMES = (".tar", ".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz", ".tar.zst", ".7z", ".rar")


def examine_members(path: Path) -> tuple[Finding, ...]:
    """The dangers of an archive's members, or of a folder's files, as far as names, links and sizes go.

    Every member is unpacked in memory, a megabyte at a time, and counted.

    Raises:
        InputError: it is not there or cannot be read.
    """
    try:
        if path.is_dir():
            return tuple(_folder(path))
        if not path.exists():
            raise InputError(f"{path}: is not there; give a bundle folder or a zip file")
        return tuple(_archive(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def _archive(path: Path) -> Iterator[Finding]:
    place = Place(path.name)
    with path.open("rb") as stream:
        head = stream.read(512)
        if path.name.lower().endswith(_TAR_NAMES) or head[257:262] == b"ustar" or head[:2] == b"\x1f\x8b":
            yield danger("archive-kind", place, "is not a zip file (tar, 7z and rar are not unpacked safely)", "files")
            return
        try:
            directory = read_directory(stream)
        except ArchiveError as error:
            yield danger("archive", place, str(error), "files")
            return
        found: list[Finding] = []
        located = locate(stream, directory, found)
        yield from found
        yield from comments(directory, path.name)
        yield from names([member.name for member in directory.members])
        total = 0
        for member in located:
            problems = list(_member(member))
            yield from problems
            total += member.size
            if problems:
                continue
            if total > MAX_TOTAL:
                yield danger("archive-bomb", place, f"unpacks to more than {MAX_TOTAL // 1024**3} GiB", "files")
                return
            try:
                for _ in pieces(stream, member):
                    pass
            except ArchiveError as error:
                yield danger("archive-data", Place(member.name), str(error), "files")


def _member(member: Member) -> Iterator[Finding]:
    place = Place(member.name)
    mode = member.attributes >> 16
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFLNK:
        yield danger("archive-link", place, "is a link, which may lead out of the bundle", "files")
    elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        yield danger("archive-device", place, "is a device, a pipe or a socket", "files")
    elif kind == stat.S_IFDIR and not member.is_folder:
        yield danger("archive-name", place, "is a folder by its mode and a file by its name", "files")
    if mode & (stat.S_ISUID | stat.S_ISGID):
        yield danger("archive-mode", place, "would run with another user's rights", "files", "processes")
    if member.flags & 0x2041:
        yield danger("archive-encrypted", place, "is encrypted and cannot be examined", "files")
    if member.method not in (0, 8):
        yield danger("archive-method", place, f"is packed by method {member.method}; only 0 and 8 are read", "files")
    elif member.method == 0 and member.packed != member.size:
        yield danger("archive-header", place, "is stored but has two different sizes", "files")
    if member.size > _RATIO_FROM and member.size > MAX_RATIO * max(1, member.packed):
        what = f"unpacks to {member.size} bytes from {member.packed}: a decompression bomb"
        yield danger("archive-bomb", place, what, "files")
    if member.is_folder and member.size:
        yield danger("archive-name", place, "is a folder that holds data", "files")


def names(found: Sequence[str]) -> Iterator[Finding]:
    """Names that leave the folder, or that a file system takes for another one."""
    seen: dict[str, str] = {}
    files = {name.rstrip("/") for name in found if not name.endswith("/")}
    for name in found:
        place = Place(name)
        problem = name_problem(name)
        if problem:
            yield danger("archive-name", place, problem, "files")
        key = unicodedata.normalize("NFKC", name).casefold().rstrip("/")
        other = seen.get(key)
        if other is not None:
            same = "stands in the archive twice" if other == name else f"is the same as '{other}' on many file systems"
            yield danger("archive-collision", place, same, "files")
        seen[key] = name
        parts = name.rstrip("/").split("/")
        if any("/".join(parts[:cut]) in files for cut in range(1, len(parts))):
            yield danger("archive-collision", place, "lies below something that is a file", "files")


def name_problem(name: str) -> str:
    """Why a member's name is refused; empty if it is not."""
    if not name or "\x00" in name:
        return "has an empty name or one with NUL"
    if name.startswith("/") or "\\" in name or (len(name) > 1 and name[1] == ":"):
        return "has an absolute path, a drive letter or a backslash"
    parts = name.rstrip("/").split("/")
    if ".." in parts or "." in parts or "" in parts:
        return "has a path with '..', '.' or nothing between slashes, which may leave the bundle"
    for part in parts:
        stem = part.split(".")[0].strip().lower()
        if stem in _RESERVED:
            return f"has a name that Windows keeps for a device ('{part}')"
        if part != part.rstrip(" .") or part != part.lstrip(" "):
            return "has a name that begins or ends with a space, or ends with a dot"
        if any(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in part):
            return "has invisible or broken characters in its name"
        if any(letter in '<>:"|?*' for letter in part) or len(part.encode("utf-8", "replace")) > 255:
            return "has a name that not every system can hold"
    return "is nested too deeply" if len(parts) > 40 or len(name) > 2000 else ""


def _folder(root: Path) -> Iterator[Finding]:
    real = root.resolve()
    count = 0
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        for entry in sorted(folder.iterdir()):
            count += 1
            if count > MAX_FILES:
                yield danger("files", Place(root.name), f"holds more than {MAX_FILES} files", "files")
                return
            name = entry.relative_to(root).as_posix()
            mode = entry.lstat().st_mode
            if stat.S_ISLNK(mode):
                try:
                    inside = entry.resolve().is_relative_to(real)
                except (OSError, RuntimeError):
                    inside = False
                where = "within" if inside else "out of"
                yield danger(
                    "link", Place(name), f"is a link that leads {where} the bundle; bundles hold none", "files"
                )
            elif stat.S_ISDIR(mode):
                waiting.append(entry)
            elif not stat.S_ISREG(mode):
                yield danger("device", Place(name), "is a device, a pipe or a socket", "files")
