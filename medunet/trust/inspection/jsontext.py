"""JSON text to nested values with their offsets; every pair of an object is kept, also the second of a name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from json import JSONDecodeError, decoder
from typing import Any

MAX_NAME = 500
_scanstring: Any = decoder.scanstring  # type: ignore[attr-defined]
_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?", re.ASCII)
_WORDS = {"true": True, "false": False, "null": None}
_CONSTANTS = ("NaN", "Infinity", "-Infinity")


class JsonError(ValueError):
    """Not JSON, or too deep or too long (`limit`); `offset` says where."""

    def __init__(self, message: str, offset: int, limit: bool = False) -> None:
        super().__init__(message)
        self.offset, self.limit, self.line = offset, limit, 0


@dataclass(frozen=True)
class JsonNumber:
    """A number as it is written."""

    text: str


def parse_json(text: str, max_depth: int, max_values: int) -> tuple[int, Any]:
    """(offset, value). An object is a tuple of (name, offset, node), a number its text in a `JsonNumber`.

    Raises:
        JsonError: it is not JSON, is nested deeper than `max_depth` or has more than `max_values` values.
    """
    parser = _Parser(text, max_depth, max_values)
    node = parser.value(parser.skip(0), 0)
    end = parser.skip(parser.end)
    if end != len(text):
        raise JsonError("text after the end of the JSON value", end)
    return node


class _Parser:
    """A recursive reader that knows how deep it is."""

    def __init__(self, text: str, max_depth: int, max_values: int) -> None:
        self.text, self.max_depth, self.left = text, max_depth, max_values
        self.end = 0

    def skip(self, at: int) -> int:
        """Past white space."""
        match = _SPACE.match(self.text, at)
        return match.end() if match else at

    def value(self, at: int, depth: int) -> tuple[int, Any]:
        """Any value."""
        self.left -= 1
        if depth > self.max_depth:
            raise JsonError(f"nested deeper than {self.max_depth} levels", at, limit=True)
        if self.left < 0:
            raise JsonError("more values than a config has", at, limit=True)
        letter = self.text[at : at + 1]
        if letter == '"':
            return at, self.string(at)
        if letter == "{":
            return at, self.object(at, depth)
        if letter == "[":
            return at, self.array(at, depth)
        return at, self.plain(at)

    def string(self, at: int) -> str:
        """A text in quotes."""
        try:
            text, self.end = _scanstring(self.text, at + 1, True)
        except JSONDecodeError as error:
            raise JsonError(error.msg, at) from None
        return str(text)

    def plain(self, at: int) -> Any:
        """A word or a number."""
        for word, meaning in _WORDS.items():
            if self.text.startswith(word, at):
                self.end = at + len(word)
                return meaning
        for word in _CONSTANTS:
            if self.text.startswith(word, at):
                self.end = at + len(word)
                return JsonNumber(word)
        match = _NUMBER.match(self.text, at)
        if not match:
            raise JsonError("a value is expected", at)
        self.end = match.end()
        return JsonNumber(match.group())

    def array(self, at: int, depth: int) -> list[tuple[int, Any]]:
        """A list."""
        values: list[tuple[int, Any]] = []
        at = self.skip(at + 1)
        if self.text[at : at + 1] == "]":
            self.end = at + 1
            return values
        while True:
            values.append(self.value(at, depth + 1))
            at = self.skip(self.end)
            letter = self.text[at : at + 1]
            if letter == "]":
                self.end = at + 1
                return values
            if letter != ",":
                raise JsonError("',' or ']' is expected", at)
            at = self.skip(at + 1)

    def object(self, at: int, depth: int) -> tuple[tuple[str, int, Any], ...]:
        """An object, with all its pairs."""
        pairs: list[tuple[str, int, Any]] = []
        at = self.skip(at + 1)
        if self.text[at : at + 1] == "}":
            self.end = at + 1
            return ()
        while True:
            start = at
            if self.text[at : at + 1] != '"':
                raise JsonError("a name in quotes is expected", at)
            name = self.string(at)
            if len(name) > MAX_NAME:
                raise JsonError(f"a name longer than {MAX_NAME} characters", at, limit=True)
            at = self.skip(self.end)
            if self.text[at : at + 1] != ":":
                raise JsonError("':' is expected", at)
            pairs.append((name, start, self.value(self.skip(at + 1), depth + 1)))
            at = self.skip(self.end)
            letter = self.text[at : at + 1]
            if letter == "}":
                self.end = at + 1
                return tuple(pairs)
            if letter != ",":
                raise JsonError("',' or '}' is expected", at)
            at = self.skip(at + 1)
