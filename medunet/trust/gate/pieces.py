"""What a file is cut into for the release gate: pieces of text with their keys, and remarks about what it is."""

from __future__ import annotations

import base64
import binascii
import html
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import unquote

from medunet.trust.findings import Level

_BASE64 = re.compile(r"(?<![\w+/=-])[A-Za-z0-9+/_-]{8,}={0,2}(?![\w+/=-])")
WRAPPED = re.compile(r"(?:^[ \t]*[A-Za-z0-9+/]{40,76}[ \t]*\r?\n)+[ \t]*[A-Za-z0-9+/]*={0,2}[ \t]*$", re.M)
_HEX = re.compile(r"(?<![0-9A-Za-z])(?:0x)?((?:[0-9a-f]{2}){6,}|(?:[0-9A-F]{2}){6,})(?![0-9A-Za-z])")
_HEX_BYTES = re.compile(r"(?:\b[0-9A-Fa-f]{2}[ :]){5,}[0-9A-Fa-f]{2}\b")
_ODD = ("Cc", "Cn", "Co", "Cs")
_ESCAPE = re.compile(r"\\u\{?([0-9A-Fa-f]{4})\}?|\\x([0-9A-Fa-f]{2})|\\U([0-9A-Fa-f]{8})|\\([0-7]{3})")


@dataclass(frozen=True)
class Piece:
    """A text found in a file: its key there, the line where it starts (0: no lines), and the key's last name.

    `careful`: cut out of unknown bytes, so that only unmistakable words count.
    """

    key: str
    text: str
    line: int = 0
    name: str = ""
    careful: bool = False
    raw: bool = False


@dataclass(frozen=True)
class Remark:
    """Something about a file that is not a word in it; `quoted` is text of the file, to be shown shortened."""

    level: Level
    rule: str
    key: str = ""
    what: str = ""
    quoted: str = ""


Found: TypeAlias = Piece | Remark


def under(prefix: str, found: Found) -> Found:
    """The same, found in the part `prefix` of a container."""
    key = f"{prefix}: {found.key}" if found.key else prefix
    if isinstance(found, Piece):
        return Piece(key, found.text, found.line, found.name, found.careful, found.raw)
    return Remark(found.level, found.rule, key, found.what, found.quoted)


def as_text(data: bytes) -> str | None:
    """`data` as text in UTF-8, UTF-16, UTF-32 or Latin-1; None where it is not text."""
    for mark, encoding in ((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"),
                           (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig")):  # fmt: skip
        if data.startswith(mark):
            return data.decode(encoding, "replace")
    sample = data[:4096]
    if sample.count(0) == 0:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
        return text if _readable(text[:4096]) else None
    for encoding, step in (("utf-16-le", 2), ("utf-16-be", 2), ("utf-32-le", 4), ("utf-32-be", 4)):
        try:
            text = data[: len(data) // step * step].decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text[:2048] and _readable(text[:2048]) and _western(text[:2048]):
            return text
    return None


def _readable(text: str) -> bool:
    """Few control characters."""
    odd = sum(unicodedata.category(character) in _ODD and character not in "\t\r\n\f\x1b" for character in text)
    return odd <= len(text) * 0.02


def _western(text: str) -> bool:
    return sum(ord(character) < 0x250 for character in text) >= 0.7 * len(text)


def printable_runs(data: bytes, shortest: int = 10) -> Iterator[tuple[int, str]]:
    """(offset, text) of the readable runs in unknown bytes, one or two bytes per character."""
    for match in re.finditer(rb"[\x20-\x7e]{%d,}" % shortest, data):
        yield match.start(), match.group().decode("ascii")
    for match in re.finditer(rb"(?:[\x20-\x7e]\0){%d,}" % shortest, data):
        yield match.start(), match.group().decode("utf-16-le")


def decoded(text: str) -> Iterator[tuple[int, str, bytes | str]]:
    """(position, encoding, content) of what stands in `text` in another encoding."""
    if "%" in text and (plain := unquote(text)) != text:
        yield 0, "percent-encoded", plain
    if "&" in text and (plain := html.unescape(text)) != text:
        yield 0, "HTML entities", plain
    if "\\" in text and (plain := _ESCAPE.sub(_character, text)) != text:
        yield 0, "escaped", plain
    for match in _HEX.finditer(text):
        yield match.start(), "hex", bytes.fromhex(match.group(1))
    for match in _HEX_BYTES.finditer(text):
        yield match.start(), "hex", bytes.fromhex(re.sub("[ :]", "", match.group()))
    for match in _BASE64.finditer(text):
        yield from _base64(match.start(), match.group())


def _base64(start: int, token: str) -> Iterator[tuple[int, str, bytes]]:
    plain = token.rstrip("=").replace("-", "+").replace("_", "/")
    if len(plain) % 4 == 1:
        return
    try:
        yield start, "base64", base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        return


def _character(match: re.Match[str]) -> str:
    digits = match.group(1) or match.group(2) or match.group(3)
    number = int(digits, 16) if digits else int(match.group(4), 8)
    return chr(number) if number < 0x110000 else match.group()
