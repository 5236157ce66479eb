"""The release gate: is there anything private in a folder that is about to be shipped?

Everything is looked at but the numbers of tensors, voxels and pixels: text in raw weights would be chance. What is
encoded (base64, hex, percent, escapes, UTF-16, archives) is decoded first. Nothing is run, imported or unpickled.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from medunet.trust.findings import Finding, Place
from medunet.trust.gate.contents import contents
from medunet.trust.gate.leaks import Private, masked, sentence
from medunet.trust.gate.mending import mend
from medunet.trust.gate.pieces import Piece, Remark, as_text, decoded, under

MOST = 25
"""Findings of one rule in one file that are listed one by one."""

_APACHE = "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4"
_PACKED = (
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"PK\x03\x04",
    b"\x1f\x8b\x08",
    b"BZh9",
    b"%PDF",
    b"\x93NUMPY",
    b"\x80\x02",
    b"\x80\x04",
)
_BACKUP = re.compile(r".*(?:~|\.(?:swp|swo|bak|orig|old|tmp|rej|part|save|autosave))|#.*#", re.I)
_CACHES = {"__pycache__", "__macosx", "thumbs.db", "desktop.ini", "ehthumbs.db", "node_modules", ".ds_store"}
_ALL_OF_A_FIELD = {"header-text", "image-text", "document-info", "archive-comment"}
_BY_KEY = {"identifier", "date", "absolute-path"}


def examine_release(root: Path, index: Mapping[str, Any] | None = None) -> tuple[Finding, ...]:
    """Everything private in the folder `root`, which holds what would be shipped and nothing else.

    `index` is the private ``eval/index.json`` of the bundle; with it, its cases, patients and files are recognised.
    Findings of level ``danger`` must not leave the house; a ``note`` names what a person may want to look at.
    """
    private = Private.of(index)
    findings: list[Finding] = []
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root).as_posix()
        findings += _names(relative, path, private)
        if path.is_symlink():
            findings.append(Finding("danger", "link", Place(relative), sentence("link")))
        elif path.is_file() and not _is_licence(path):
            with path.open("rb") as stream:
                findings += _limited(_inside(relative, stream, private))
    return tuple(dict.fromkeys(findings))


def fix_release(root: Path, findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Mend in place what can be mended without loss, and return the findings that remain.

    Mended: a ``dataset_dir`` with a path, comments in YAML and INI files, free text in NIfTI headers, text in PNG and
    JPEG, hidden files, backups, caches, logs and event files. Weights and ``eval/`` are never touched.
    """
    mended = mend(root, findings)
    return tuple(finding for finding in findings if finding not in mended)


def _is_licence(path: Path) -> bool:
    """The Apache licence as it is shipped: its words are no secret, whatever a user or case is called."""
    return path.name == "LICENSE" and path.stat().st_size < 20_000 and _digest(path) == _APACHE


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def _names(relative: str, path: Path, private: Private) -> Iterator[Finding]:
    """The name of a file or folder, and what the name says about it."""
    name = path.name
    kind = "folder name" if path.is_dir() and not path.is_symlink() else "file name"
    for hit in private.hits(name):
        yield Finding("danger", hit.rule, Place(relative, kind), sentence(hit.rule, hit.found))
    for _, encoding, content in decoded(name):
        text = content if isinstance(content, str) else _certain_text(content)
        for hit in private.hits(text) if text else ():
            yield Finding("danger", hit.rule, Place(relative, f"{kind} ({encoding})"), sentence(hit.rule, hit.found))
    if name.startswith(".") or _BACKUP.fullmatch(name) or name.lower() in _CACHES or name.endswith(".pyc"):
        yield Finding("danger", "hidden-file", Place(relative), sentence("hidden-file"))
    if PurePosixPath(relative).parts[0] == "eval" and not path.is_dir():
        yield Finding("danger", "private-folder", Place(relative), sentence("private-folder"))
    if "tfevents" in name:
        yield Finding("danger", "event-file", Place(relative), sentence("event-file"))


def _inside(relative: str, stream: io.BufferedReader, private: Private) -> Iterator[Finding]:
    """Findings in a file; what stands in a key or value is not said again of its line."""
    said: set[tuple[str, int]] = set()
    fields: set[str] = set()
    remarks: list[Remark] = []
    for found in contents(PurePosixPath(relative).name, stream):
        if isinstance(found, Remark):
            remarks.append(found)
            continue
        for level, rule, key, line, what in _hits(found, private, 0):
            if found.raw and key != "comment" and (rule, line) in said:
                continue
            if not found.raw:
                said.add((rule, line))
            fields.add(key)
            yield Finding(level, rule, Place(relative, key, line), what)
    for remark in remarks:
        if remark.rule not in _ALL_OF_A_FIELD or remark.key not in fields or remark.level == "note":
            yield Finding(remark.level, remark.rule, Place(relative, remark.key), _said(remark))


def _said(remark: Remark) -> str:
    more = f" ({remark.what})" if remark.what else ""
    what, _, do = sentence(remark.rule, remark.quoted).partition("; ")
    return f"{what}{more}; {do}"


def _hits(piece: Piece, private: Private, depth: int) -> Iterator[tuple[Any, str, str, int, str]]:
    """(level, rule, key, line, sentence) of every hit in a piece and in what is encoded in it."""
    plain = private.hits(piece.text, piece.name, piece.careful)
    for hit in plain:
        line = piece.line + piece.text.count("\n", 0, hit.start) if piece.line else 0
        yield "danger", hit.rule, piece.key, line, sentence(hit.rule, hit.found)
    if depth >= 3 or (piece.careful and len(piece.text) < 16):
        return
    known = {(hit.rule, hit.found) for hit in plain}
    for position, encoding, content in decoded(piece.text):
        line = piece.line + piece.text.count("\n", 0, position) if piece.line else 0
        key = f"{piece.key} ({encoding})" if piece.key else encoding
        if isinstance(content, bytes) and content.startswith(_PACKED):
            yield from _packed(content, key, line, private, depth)
            continue
        text = content if isinstance(content, str) else _certain_text(content)
        if text:
            inner = Piece(key, text, line, piece.name if isinstance(content, str) else "", piece.careful)
            for level, rule, at, _, what in _hits(inner, private, depth + 1):
                if not any(rule == seen and masked(found) in what for seen, found in known):
                    yield level, rule, at, line, what


def _packed(
    content: bytes, key: str, line: int, private: Private, depth: int
) -> Iterator[tuple[Any, str, str, int, str]]:
    """A picture or archive that stands as base64 or hex in a text."""
    for found in contents("", io.BytesIO(content), depth + 1):
        inner = under(key, found)
        if isinstance(inner, Piece):
            yield from ((level, rule, at, line, what) for level, rule, at, _, what in _hits(inner, private, depth + 1))
        elif inner.level == "danger" and inner.rule != "unreadable":
            yield inner.level, inner.rule, inner.key, line, _said(inner)


def _certain_text(content: bytes) -> str:
    """Decoded bytes that are text beyond doubt; "" otherwise."""
    if content.count(0):
        return as_text(content) or ""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return ""
    return text if all(character.isprintable() or character in "\t\r\n" for character in text) else ""


def _limited(findings: Iterator[Finding]) -> Iterator[Finding]:
    """At most `MOST` findings of a rule in a file, then one that counts the others."""
    counts: Counter[str] = Counter()
    last: dict[str, Finding] = {}
    for finding in dict.fromkeys(findings):
        counts[finding.rule] += 1
        last[finding.rule] = finding
        if counts[finding.rule] <= MOST:
            yield finding
    for rule, count in counts.items():
        if count > MOST:
            place = Place(last[rule].place.file)
            yield Finding(last[rule].level, rule, place, f"{count - MOST} more of these: {sentence(rule)}")
