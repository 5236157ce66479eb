"""Open a file by its first bytes and yield what it says; tensors, voxels and pixels are passed over.

Nothing is unpickled: a pickle is read opcode by opcode. At most `LIMIT` bytes of a packed part are held.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickletools
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from medunet.trust.gate import headers
from medunet.trust.gate.pieces import Found, Piece, Remark, as_text, printable_runs, under
from medunet.trust.gate.texts import text_pieces

LIMIT = 64_000_000
DEPTH = 5
_BLOCK = 4_000_000
_TEXT = 16_000_000
_TENSOR = re.compile(r"(?:^|/)(?:data|constants|weights|tensors)/(?:\w*_)?\d+$|/storages?/\d+$")
_WEIGHT_GLOBALS = re.compile(
    r"collections OrderedDict|torch\.storage \w+|torch \w*(?:Storage|Size|float\w*|int\w*|bool|half|double|device)"
    r"|torch\._utils _rebuild_\w+|torch\.nn\.parameter \w+|torch\.serialization \w+|torch\._tensor \w+|_codecs encode"
)
_TRAINING_WORDS = {
    "optimizer", "optimizer_state", "optimizer_state_dict", "optimizer_states", "optim", "exp_avg", "exp_avg_sq",
    "momentum_buffer", "scheduler", "lr_scheduler", "lr_schedulers", "epoch", "global_step", "rng_state", "rng_states",
    "hyper_parameters", "hparams", "callbacks", "train_loss", "val_loss", "best_metric", "best_score", "best_acc",
    "state_dict", "model_state_dict", "network_weights", "args", "param_groups", "scaler", "loss",
}  # fmt: skip


def contents(name: str, stream: BinaryIO, depth: int = 0) -> Iterator[Found]:
    """Texts and remarks of the file `name`; `stream` is at its start and can seek."""
    head = stream.read(600)
    stream.seek(0)
    if depth > DEPTH:
        yield Remark("danger", "unreadable", "", "archives within archives, too deep")
        return
    try:
        yield from _by_magic(name, stream, head, depth)
    except (OSError, EOFError, ValueError, struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile,
            tarfile.TarError, RuntimeError, NotImplementedError, LookupError, OverflowError) as error:  # fmt: skip
        yield Remark("danger", "unreadable", "", f"{type(error).__name__}")


def _by_magic(name: str, stream: BinaryIO, head: bytes, depth: int) -> Iterator[Found]:
    opener = next((opener for magic, opener in _MAGIC if head.startswith(magic)), None)
    if opener is not None:
        yield from opener(stream)
    elif head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        yield from _zip(stream, depth)
    elif head[:3] in (b"\x1f\x8b\x08", b"BZh") or head[:6] == b"\xfd7zXZ\0":
        yield from _compressed(name, stream, head, depth)
    elif head[257:262] == b"ustar":
        yield from _tar(stream, depth)
    elif head[128:132] == b"DICM":
        yield Remark("danger", "dicom")
    elif headers.nifti_fields(head) is not None:
        yield from headers.nifti(stream)
    elif b"brain.Event:2" in head[:100]:
        yield Remark("danger", "event-file")
        yield from _unknown(stream)
    elif (length := _safetensors_length(head)) is not None:
        yield from headers.safetensors(stream, length)
    elif head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5":
        yield from pickle_strings(stream)
    else:
        yield from _text_or_unknown(name, stream, head, depth)


def _safetensors_length(head: bytes) -> int | None:
    length = struct.unpack("<Q", head[:8])[0] if len(head) > 9 else 0
    return length if 2 <= length <= 100_000_000 and head[8:9] == b"{" else None


def _text_or_unknown(name: str, stream: BinaryIO, head: bytes, depth: int) -> Iterator[Found]:
    if as_text(head) is None:
        yield from _unknown(stream)
        return
    data = stream.read(_TEXT) + stream.readline(_BLOCK)
    line = 0
    while data:
        text = as_text(data)
        if text is None:
            for _, run in printable_runs(data, 6):
                yield Piece("bytes", run, careful=True)
        else:
            for found in text_pieces(name, text):
                yield found if not line else _moved(found, line)
            line += text.count("\n")
        data = stream.read(_TEXT) + stream.readline(_BLOCK)


def _moved(found: Found, line: int) -> Found:
    if isinstance(found, Piece):
        return Piece(found.key, found.text, found.line + line, found.name, found.careful, found.raw)
    return found


def _unknown(stream: BinaryIO) -> Iterator[Found]:
    """Readable runs of a file of unknown kind, block by block (blocks overlap by 4 kB)."""
    start, tail = 0, b""
    while block := stream.read(_BLOCK):
        for offset, run in printable_runs(tail + block, 6):
            yield Piece(f"byte {start - len(tail) + offset}", run, careful=True)
        start += len(block)
        tail = block[-4096:] if len(block) == _BLOCK else b""


def _zip(stream: BinaryIO, depth: int) -> Iterator[Found]:
    """The members of an archive; a torch file is one, with its tensors in ``data/``."""
    with zipfile.ZipFile(stream) as archive:
        if archive.comment:
            yield from _comment("zip comment", archive.comment)
        members = archive.infolist()
        torch_root = next((m.filename[: -len("data.pkl")] for m in members if m.filename.endswith("data.pkl")), None)
        if torch_root:
            yield Piece("archive name", torch_root.strip("/"))
        for member in members:
            shown = member.filename.removeprefix(torch_root or "")
            yield Piece(f"member {shown}", shown)
            if member.comment:
                yield from _comment(f"member {shown}: zip comment", member.comment)
            for _, run in printable_runs(member.extra, 5):
                yield Piece(f"member {shown}: zip extra field", run)
            if member.flag_bits & 1:
                yield Remark("danger", "unreadable", f"member {shown}", "encrypted")
            elif shown == "docProps/core.xml":
                yield Remark("danger", "document-info", f"member {shown}", "an office document's author and dates")
            elif not member.is_dir():
                yield from _member(archive, member, shown, torch_root is not None, depth)


def _array(stream: BinaryIO) -> Iterator[Found]:
    """An array's header and texts; an array of objects is a pickle."""
    objects = False
    for found in headers.npy(stream):
        objects = objects or (found.key == "header" and isinstance(found, Piece) and "O'" in found.text)
        yield found
    if objects:
        yield from pickle_strings(stream)


def _comment(key: str, content: bytes) -> Iterator[Found]:
    text = as_text(content) or content.decode("latin-1")
    yield Remark("danger", "archive-comment", key, quoted=text)
    yield Piece(key, text)


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, shown: str, torch: bool, depth: int) -> Iterator[Found]:
    with archive.open(member) as packed:
        if torch and _TENSOR.search(shown):
            head = packed.read(4096)
            if len(head) < 64 or as_text(head) is None or head.count(head[:1]) == len(head):
                return
    with archive.open(member) as packed:
        if member.file_size > LIMIT:
            yield from _large(shown, packed, depth)
            return
        data = io.BytesIO(packed.read(LIMIT))
    prefix = "" if torch and shown == "data.pkl" else f"member {shown}"
    for found in contents(shown, data, depth + 1):
        yield under(prefix, found) if prefix else found


def _large(shown: str, packed: Any, depth: int) -> Iterator[Found]:
    """A member too large to hold: its start by its kind, its bytes for unmistakable words."""
    head = io.BytesIO(packed.read(_BLOCK))
    if head.getvalue().startswith(b"\x93NUMPY"):
        yield from (under(f"member {shown}", found) for found in headers.npy(head))
        return
    yield from (under(f"member {shown}", found) for found in _unknown(head))
    yield from (under(f"member {shown}", found) for found in _unknown(packed))


def _compressed(name: str, stream: BinaryIO, head: bytes, depth: int) -> Iterator[Found]:
    if head[:2] == b"\x1f\x8b":
        yield from _gzip_header(head)
    opener: Any = gzip.open if head[:2] == b"\x1f\x8b" else bz2.open if head[:3] == b"BZh" else lzma.open
    inner = re.sub(r"\.(gz|bz2|xz|tgz)$", "", name, flags=re.I)
    with opener(stream) as plain:
        start = plain.read(1_000_000)
        known = headers.nifti_fields(start[:600]) is not None
        data = start if known else start + plain.read(LIMIT - len(start))
        longer = not known and bool(plain.read(1))
    yield from contents(inner, io.BytesIO(data), depth + 1)
    if longer:
        yield Remark("danger", "unreadable", "", f"only the first {LIMIT // 1_000_000} MB inside were read")


def _gzip_header(head: bytes) -> Iterator[Found]:
    flags, position = head[3], 10
    if flags & 4:
        position += 2 + struct.unpack("<H", head[10:12])[0]
    for bit, key in ((8, "gzip name"), (16, "gzip comment")):
        if flags & bit:
            text, _, _ = head[position:].partition(b"\0")
            position += len(text) + 1
            yield Piece(key, text.decode("latin-1"))


def _tar(stream: BinaryIO, depth: int) -> Iterator[Found]:
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        for member in archive:
            yield Piece(f"member {member.name}", member.name)
            owners = {member.uname, member.gname} - {"", "root", "users", "staff", "wheel"}
            for owner in sorted(owners):
                yield Remark("danger", "machine", f"member {member.name}: owner", quoted=owner)
            for key, value in member.pax_headers.items():
                yield Piece(f"member {member.name}: {key}", str(value))
            packed = archive.extractfile(member) if member.isfile() else None
            if packed is not None:
                data = io.BytesIO(packed.read(LIMIT))
                yield from (under(f"member {member.name}", f) for f in contents(member.name, data, depth + 1))


class _Bounded:
    """A stream for `pickletools` that refuses to read much at once."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        """`size` bytes, or a refusal."""
        if size > LIMIT:
            raise ValueError("a pickled value is too large")
        return self._stream.read(size)

    def readline(self) -> bytes:
        """A line."""
        return self._stream.readline(LIMIT)

    def tell(self) -> int:
        """The position."""
        return self._stream.tell()


def pickle_strings(stream: BinaryIO) -> Iterator[Found]:
    """Every string of a pickle (or of those that begin an old torch file), and whether it is more than weights."""
    number, recent, strange = 0, ["", ""], ""
    try:
        for _ in range(5):
            for opcode, value, _ in pickletools.genops(cast(Any, _Bounded(stream))):
                if opcode.name in ("GLOBAL", "STACK_GLOBAL"):
                    named = str(value) if opcode.name == "GLOBAL" else " ".join(recent)
                    strange = strange or ("" if _WEIGHT_GLOBALS.fullmatch(named) else named)
                    yield Piece("pickle global", named)
                elif isinstance(value, bytes | bytearray | str) and "PROTO" not in opcode.name:
                    number += 1
                    text = value if isinstance(value, str) else as_text(bytes(value)) or ""
                    recent = [recent[1], text]
                    strange = strange or (text if _more_than_weights(text) else "")
                    yield Piece(f"pickle string {number}", text)
            strange = strange if number else ""
    except (ValueError, EOFError, IndexError, UnicodeDecodeError) as error:
        if "too large" in str(error):
            yield Remark("danger", "unreadable", f"pickle string {number + 1}", str(error))
    if strange:
        yield Remark("danger", "checkpoint", "pickle", strange[:40])


def _more_than_weights(text: str) -> bool:
    return text.lower() in _TRAINING_WORDS or bool(re.search(r"\s", text)) or len(text) > 300


_MAGIC: tuple[tuple[bytes, Any], ...] = (
    (b"\x89PNG\r\n\x1a\n", headers.png),
    (b"\xff\xd8\xff", headers.jpeg),
    (b"II*\0", lambda stream: headers.tiff(stream.read(LIMIT))),
    (b"MM\0*", lambda stream: headers.tiff(stream.read(LIMIT))),
    (b"II+\0", lambda stream: headers.tiff(stream.read(LIMIT))),
    (b"%PDF", headers.pdf),
    (b"\x93NUMPY", lambda stream: _array(stream)),
    (b"NRRD", headers.volume_text),
    (b"ObjectType", headers.volume_text),
    (b"7z\xbc\xaf\x27\x1c", lambda _: iter([Remark("danger", "unreadable", "", "7z")])),
    (b"Rar!", lambda _: iter([Remark("danger", "unreadable", "", "rar")])),
)
