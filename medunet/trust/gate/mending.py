"""What the release gate can mend in place: only what takes nothing from the bundle that anybody needs."""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import yaml

from medunet.trust.findings import Finding
from medunet.trust.gate.headers import jpeg_segments, nifti_fields
from medunet.trust.gate.texts import comment_start

_MAPPINGS = (".yaml", ".yml", ".json")
_GONE = {"hidden-file", "event-file", "training-log"}
_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME")
_DATASET_DIR = "dataset_dir"


def blank_dataset_dir(text: str) -> str:
    """YAML or JSON with an empty ``dataset_dir``, however its path is written; as it was where that cannot be read."""
    try:
        nodes = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError:
        return text
    pairs = [pair for node in nodes if isinstance(node, yaml.MappingNode) for pair in node.value]
    for key, value in reversed(pairs):
        if key.value == _DATASET_DIR and isinstance(value, yaml.ScalarNode) and value.value:
            start, end = value.start_mark.index, value.end_mark.index
            text = text[:start] + '""' + "\n" * (text[end - 1] == "\n") + text[end:]
    return text


def mend(root: Path, findings: Sequence[Finding]) -> set[Finding]:
    """Mend what is safe to mend; the findings that no longer hold. A file that resists (broken) stays as it is."""
    done: set[Finding] = set()
    files: dict[str, list[Finding]] = {}
    for finding in findings:
        files.setdefault(finding.place.file, []).append(finding)
    for name, own in files.items():
        path = root / name
        if PurePosixPath(name).parts[0] == "eval" or not path.exists() or path.is_symlink():
            continue
        if any(finding.rule in _GONE and not finding.place.key for finding in own):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            done |= {finding for finding in findings if _within(finding.place.file, name)}
        elif path.is_file():
            with contextlib.suppress(OSError, ValueError, EOFError, OverflowError, struct.error, zlib.error):
                done |= _mend_file(path, own)
    return done


def _within(file: str, name: str) -> bool:
    return file == name or file.startswith(name + "/")


def _mend_file(path: Path, findings: Sequence[Finding]) -> set[Finding]:
    """Mend one file by its kind."""
    done: set[Finding] = set()
    suffix = path.suffix.lower()
    keyed: Callable[[str], set[Finding]] = lambda start: {f for f in findings if f.place.key.startswith(start)}  # noqa: E731
    with path.open("rb") as stream:
        head = stream.read(8)
    if suffix in (*_MAPPINGS, ".conf", ".ini", ".cfg"):
        return _mend_config(path, findings)
    if head.startswith(b"\x89PNG") and (own := keyed("chunk ") | keyed("after the end")):
        _rewrite(path, _png_without_text)
        done |= own
    elif head.startswith(b"\xff\xd8\xff") and (own := keyed("EXIF") | keyed("COM") | keyed("APP") | keyed("after")):
        _rewrite(path, _jpeg_without_text)
        done |= own
    elif path.name.lower().endswith((".nii", ".nii.gz", ".hdr", ".hdr.gz")) and (
        own := keyed("header ") | keyed("gzip ")
    ):
        _rewrite(path, _nifti_gzipped if head[:2] == b"\x1f\x8b" else _nifti_without_text)
        done |= own
    return done


def _rewrite(path: Path, change: Callable[[BinaryIO, BinaryIO], None]) -> None:
    """Replace a file by its changed copy, whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as target:
        try:
            with path.open("rb") as source:
                change(source, target)  # type: ignore[arg-type]
            target.close()
            shutil.copymode(path, target.name)
            os.replace(target.name, path)
        except BaseException:
            target.close()
            Path(target.name).unlink(missing_ok=True)
            raise


def _png_without_text(source: BinaryIO, target: BinaryIO) -> None:
    target.write(source.read(8))
    while len(head := source.read(8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        rest = source.read(size + 4)
        if kind not in _PNG_TEXT and (kind[0:1].isupper() or kind in _PNG_KEPT):
            target.write(head + rest)
        if kind == b"IEND":
            return


_PNG_KEPT = (
    b"pHYs",
    b"sRGB",
    b"gAMA",
    b"cHRM",
    b"iCCP",
    b"bKGD",
    b"tRNS",
    b"sBIT",
    b"hIST",
    b"cICP",
    b"acTL",
    b"fcTL",
    b"fdAT",
)


def _jpeg_without_text(source: BinaryIO, target: BinaryIO) -> None:
    data = source.read()
    target.write(data[:2])
    position = 2
    for marker, start, end in jpeg_segments(data):
        kept = not (0xE1 <= marker <= 0xEF or marker == 0xFE) or data[start:end].startswith((b"ICC_PROFILE", b"Adobe"))
        if kept and not data[start:end].startswith(b"JFXX"):
            target.write(data[position:end])
        position = end
    last = data.rfind(b"\xff\xd9")
    target.write(data[position : last + 2 if last >= position else len(data)])


def _nifti_without_text(source: BinaryIO, target: BinaryIO) -> None:
    """Text fields to zeros, extensions too; the voxels and their place stay."""
    head = bytearray(source.read(544))
    known = nifti_fields(bytes(head))
    if known is None:
        target.write(bytes(head))
        shutil.copyfileobj(source, target)
        return
    fields, order, flag = known
    for start, size in fields.values():
        head[start : start + size] = bytes(size)
    single = head[344:347] == b"n+1" or head[4:7] == b"n+2"
    if flag and not single:
        target.write(bytes(head[:flag]) + bytes(4))
        return
    if flag:
        where = (
            struct.unpack_from(order + "q", head, 168)[0]
            if flag == 540
            else struct.unpack_from(order + "f", head, 108)[0]
        )
        head += source.read(max(0, int(where) - len(head)))
        head[flag : int(where)] = bytes(max(0, int(where) - flag))
    target.write(bytes(head))
    shutil.copyfileobj(source, target, 1 << 20)


def _nifti_gzipped(source: BinaryIO, target: BinaryIO) -> None:
    with gzip.open(source) as plain, gzip.GzipFile("", "wb", 6, target, mtime=0) as packed:
        _nifti_without_text(plain, packed)  # type: ignore[arg-type]


def _mend_config(path: Path, findings: Sequence[Finding]) -> set[Finding]:
    """Drop comments with hits and blank ``dataset_dir``; the other values must stay as they are."""
    before = path.read_text(encoding="utf-8")
    lines = before.split("\n")
    done = set()
    for finding in findings:
        number = finding.place.line - 1
        if not 0 <= number < len(lines) or _key(finding) != "comment":
            continue
        changed = _without_comment(lines[number], path.suffix.lower())
        if changed is not None:
            lines[number] = changed
            done.add(finding)
    uncommented = "\n".join(lines)
    after = blank_dataset_dir(uncommented) if path.suffix.lower() in _MAPPINGS else uncommented
    if after != uncommented:
        done |= {finding for finding in findings if _key(finding) == _DATASET_DIR}
    if not done or _values(path, before) != _values(path, after):
        return set()

    def change(source: BinaryIO, target: BinaryIO) -> None:
        target.write(after.encode("utf-8"))

    _rewrite(path, change)
    return done


def _key(finding: Finding) -> str:
    return finding.place.key.split(" (")[0]


def _without_comment(line: str, suffix: str) -> str | None:
    """The line without its comment; None where that is not safe."""
    if suffix == ".json":
        return None
    if suffix in (".conf", ".ini", ".cfg"):
        return "" if line.lstrip().startswith(("#", ";")) or not line else None
    start = comment_start(line)
    return line if start is None else line[:start].rstrip()


def _values(path: Path, text: str) -> object:
    """What a config says, but for ``dataset_dir``."""
    if path.suffix.lower() not in _MAPPINGS:
        return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith(("#", ";"))]
    try:
        nodes = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError:
        return text
    return [list(_leaves(node)) for node in nodes]


def _leaves(node: yaml.Node, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, yaml.ScalarNode):
        yield key, "" if key == f"/{_DATASET_DIR}" else node.value
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _leaves(item, f"{key}/{number}")
    elif isinstance(node, yaml.MappingNode):
        for name, item in node.value:
            yield from _leaves(item, f"{key}/{getattr(name, 'value', '?')}")
