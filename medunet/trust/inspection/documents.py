"""Read YAML and JSON as a parser would, but with lines, without building objects and within limits."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from medunet.trust.findings import Finding, Place, danger, note
from medunet.trust.inspection.jsontext import MAX_NAME, JsonError, JsonNumber, parse_json

MAX_DEPTH = 60
MAX_NODES = 60_000
MAX_JSON_VALUES = 150_000
MAX_SAID = 20
MAX_YAML_BYTES = 512 * 1024
MAX_JSON_BYTES = 2 * 1024 * 1024
_SCALAR_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "timestamp")}
_TRUE = ("yes", "true", "on")


@dataclass(frozen=True, eq=False)
class Item:
    """A value with its line. `value` is a scalar, a list of items, or a tuple of (key, line of the key, item).

    A number stands as its text, in a `Number`; so that none is too long to be read.
    """

    value: Any
    line: int

    @property
    def is_mapping(self) -> bool:
        """Whether it holds keys."""
        return isinstance(self.value, tuple)

    @property
    def pairs(self) -> tuple[tuple[str, int, Item], ...]:
        """Keys, their lines and values; empty for anything else."""
        return self.value if isinstance(self.value, tuple) else ()

    def children(self) -> Iterator[tuple[str, Item]]:
        """What lies directly below, named as MONAI names it."""
        if isinstance(self.value, tuple):
            yield from ((key, item) for key, _, item in self.value)
        elif isinstance(self.value, list):
            yield from ((str(number), item) for number, item in enumerate(self.value))


class Number(str):
    """The text of a number, a date or anything else that is neither text, truth nor null."""

    __slots__ = ()


class _TooMuch(yaml.YAMLError):
    """Deeper, longer or more repeated than a config is."""


class _Loader(yaml.SafeLoader):
    """The composer of PyYAML, with a bound on depth and number of nodes."""

    depth = 0
    count = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Count, then compose."""
        self.depth += 1
        self.count += 1
        if self.depth > MAX_DEPTH or self.count > MAX_NODES:
            raise _TooMuch(f"nested deeper than {MAX_DEPTH} levels or more than {MAX_NODES} values")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def decode(name: str, data: bytes) -> tuple[str, list[Finding]]:
    """The text of a config file; what a parser and a reader could see differently is a danger."""
    found = []
    place = Place(name)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or data[:4] == b"\x00\x00\xfe\xff":
        return "", [danger("encoding", place, "is UTF-16 or UTF-32; configs are UTF-8")]
    if data.startswith(b"\xef\xbb\xbf"):
        found.append(danger("encoding", place, "begins with a byte order mark, which parsers treat differently"))
        data = data[3:]
    if b"\x00" in data:
        return "", [danger("encoding", Place(name, "", _line_at(data)), "contains NUL bytes")]
    for mark, code in ((b"\xc2\x85", "0085"), (b"\xe2\x80\xa8", "2028"), (b"\xe2\x80\xa9", "2029")):
        if mark in data and not name.lower().endswith(".json"):
            line = data[: data.index(mark)].count(b"\n") + 1
            what = f"holds U+{code}, which ends a line in UTF-8 and does not in other encodings"
            found.append(danger("encoding", Place(name, "", line), what))
    try:
        return data.decode("utf-8"), found
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        return "", [*found, danger("encoding", Place(name, "", line), "is not valid UTF-8")]


def _line_at(data: bytes) -> int:
    return data[: data.index(b"\x00")].count(b"\n") + 1


def read_document(name: str, text: str, findings: list[Finding]) -> list[Item]:
    """Every document of a file as items; what is odd about its form goes to `findings`."""
    try:
        if name.lower().endswith(".json"):
            return [_JsonItems(name, text, findings).root()]
        return _YamlItems(name, findings).roots(text)
    except RecursionError:
        findings.append(danger("limits", Place(name), f"is nested deeper than {MAX_DEPTH} levels"))
    except (_TooMuch, JsonError) as error:
        rule = "limits" if isinstance(error, _TooMuch) or error.limit else "unreadable"
        findings.append(danger(rule, Place(name, "", getattr(error, "line", 0)), f"cannot be read: {error}"))
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        findings.append(danger("unreadable", Place(name, "", mark.line + 1 if mark else 0), f"is not YAML: {problem}"))
    return []


class _JsonItems:
    """JSON text as items."""

    def __init__(self, name: str, text: str, findings: list[Finding]) -> None:
        self.name, self.text, self.findings = name, text, findings
        self.breaks = [index for index, letter in enumerate(text) if letter == "\n"]

    def line(self, offset: int) -> int:
        """The line of an offset, from 1."""
        return bisect_right(self.breaks, offset - 1) + 1

    def root(self) -> Item:
        """The whole document."""
        try:
            return self.item(parse_json(self.text, MAX_DEPTH, MAX_JSON_VALUES), "")
        except JsonError as error:
            error.line = self.line(error.offset)
            raise

    def item(self, node: tuple[int, Any], key: str) -> Item:
        """A node and what is below it."""
        offset, value = node
        line = self.line(offset)
        if isinstance(value, list):
            return Item([self.item(child, _below(key, number)) for number, child in enumerate(value)], line)
        if isinstance(value, JsonNumber):
            return Item(Number(value.text), line)
        if isinstance(value, tuple):
            pairs = tuple((name, self.line(at), self.item(child, _below(key, name))) for name, at, child in value)
            _duplicates(self.name, key, pairs, self.findings)
            return Item(pairs, line)
        return Item(value, line)


class _YamlItems:
    """Composed YAML nodes as items; aliases are followed within a bound."""

    def __init__(self, name: str, findings: list[Finding]) -> None:
        self.name, self.findings = name, findings
        self.seen: dict[int, str] = {}
        self.open: set[int] = set()
        self.count = self.aliases = 0

    def roots(self, text: str) -> list[Item]:
        """Every document of the text."""
        loader = _Loader(text)
        nodes: list[Any] = []
        try:
            while loader.check_node():
                nodes.append(loader.get_node())
        finally:
            loader.dispose()
        if len(nodes) > 1:
            line = nodes[1].start_mark.line + 1
            self.findings.append(danger("documents", Place(self.name, "", line), "holds several YAML documents"))
        return [self.item(node, "") for node in nodes]

    def say(self, rule: str, node: Any, key: str, what: str) -> None:
        """Add a danger."""
        self.findings.append(danger(rule, self.place(node, key), what))

    def place(self, node: Any, key: str) -> Place:
        """Where a node stands."""
        return Place(self.name, key, node.start_mark.line + 1)

    def item(self, node: Any, key: str) -> Item:
        """A node and what is below it."""
        self.count += 1
        line = node.start_mark.line + 1
        if self.count > MAX_NODES:
            raise _TooMuch(f"its aliases expand to more than {MAX_NODES} values")
        if id(node) in self.open:
            self.say("alias", node, key, "refers to itself through an alias")
            return Item(None, line)
        if isinstance(node, yaml.ScalarNode):
            return Item(self.scalar(node, key), line)
        if id(node) in self.seen and self.aliases < MAX_SAID:
            self.aliases += 1
            what = f"repeats what stands at {self.seen[id(node)] or 'the top'} (a YAML alias)"
            self.findings.append(note("alias", self.place(node, key), what))
        self.seen.setdefault(id(node), key)
        expected = "seq" if isinstance(node, yaml.SequenceNode) else "map"
        if node.tag != f"tag:yaml.org,2002:{expected}":
            self.say("tag", node, key, f"has the tag {_shown(node.tag)}, which makes an object of its own")
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return Item([self.item(child, _below(key, number)) for number, child in enumerate(node.value)], line)
            return Item(self.mapping(node, key), line)
        finally:
            self.open.discard(id(node))

    def scalar(self, node: Any, key: str) -> Any:
        """The value of a scalar."""
        if node.tag not in _SCALAR_TAGS:
            self.say("tag", node, key, f"has the tag {_shown(node.tag)}, which makes an object of its own")
            return str(node.value)
        kind = node.tag.rsplit(":", 1)[1]
        if kind == "str":
            return str(node.value)
        if kind == "bool":
            return node.value.lower() in _TRUE
        return None if kind == "null" else Number(node.value)

    def mapping(self, node: Any, key: str) -> tuple[tuple[str, int, Item], ...]:
        """Keys and values, with those that are merged."""
        pairs: list[tuple[str, int, Item]] = []
        merged: list[tuple[str, int, Item]] = []
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.say("key", key_node, key, "has a key that is a list or a mapping")
                self.item(key_node, key)
                pairs.append(("?", line, self.item(value_node, _below(key, "?"))))
            elif key_node.tag == "tag:yaml.org,2002:merge":
                merged += self.merged(value_node, key)
            else:
                text = self.scalar(key_node, key)
                word = "None" if text is None else str(text)
                if len(word) > MAX_NAME:
                    raise _TooMuch(f"has a key of more than {MAX_NAME} characters")
                pairs.append((word, line, self.item(value_node, _below(key, word))))
        _duplicates(self.name, key, tuple(pairs), self.findings)
        own = {name for name, _, _ in pairs}
        return (*pairs, *(pair for pair in merged if pair[0] not in own))

    def merged(self, node: Any, key: str) -> list[tuple[str, int, Item]]:
        """What ``<<`` brings in."""
        self.findings.append(note("merge", self.place(node, key), "takes keys from elsewhere with the YAML merge key"))
        item = self.item(node, key)
        sources = item.value if isinstance(item.value, list) else [item]
        if not all(source.is_mapping for source in sources):
            self.say("merge", node, key, "merges something that is not a mapping")
        return [pair for source in sources for pair in source.pairs]


def _duplicates(name: str, key: str, pairs: tuple[tuple[str, int, Item], ...], findings: list[Finding]) -> None:
    seen: dict[str, int] = {}
    for word, line, _ in pairs:
        if word in seen:
            what = f"the key '{word}' is given twice (first in line {seen[word]}); readers and parsers may differ"
            findings.append(danger("duplicate-key", Place(name, _below(key, word), line), what))
        seen.setdefault(word, line)


def _below(key: str, child: object) -> str:
    return f"{key}::{child}" if key else str(child)


def _shown(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")[:80]
