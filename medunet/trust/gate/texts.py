"""Texts by their kind: JSON, YAML, INI, CSV, Markdown, notebooks, HTML - keys, lines, comments, and lists of cases."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml

from medunet.trust.gate.pieces import WRAPPED, Found, Piece, Remark

LARGE = 4_000_000
"""Characters above which a text is only read line by line, without keys."""

_CASE_KEYS = {
    "id", "case", "case_id", "caseid", "patient", "patient_id", "patientid", "subject", "subject_id",
    "participant_id", "image", "images", "img", "label", "scan", "scan_id", "study", "file", "filename", "file_name",
    "path", "image_path", "label_path", "image_id", "series", "name_of_case",
}  # fmt: skip
_LISTS = {
    "cases", "training", "validation", "test", "testing", "train", "val", "patients", "subjects", "scans", "studies",
    "case_ids", "patient_ids", "train_cases", "val_cases", "test_cases", "per_case", "files", "images", "splits",
}  # fmt: skip
_SCORES = {"dice", "hd95", "hd95_mm", "hausdorff_mm", "nsd", "iou", "assd_mm", "jaccard", "dsc"}
_LOG_LINE = re.compile(r"\b(?:epoch|iteration|iter|step)\b[^\n]{0,80}?\b(?:loss|dice|lr|metric)\b", re.I)
_JSON_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|[{}\[\]:,\n]|[^\s{}\[\]:,"]+', re.S)


def text_pieces(name: str, text: str) -> Iterator[Found]:
    """Keys and values, then every line, of a text file called `name`."""
    suffix = PurePosixPath(name.lower()).suffix
    if len(text) <= LARGE:
        if suffix in (".json", ".jsonl", ".ipynb", ".geojson"):
            yield from json_pieces(text)
        elif suffix in (".yaml", ".yml"):
            yield from _yaml_pieces(text)
        elif suffix in (".ini", ".conf", ".cfg", ".toml"):
            yield from _ini_pieces(text)
        elif suffix in (".csv", ".tsv"):
            yield from _csv_pieces(text, "\t" if suffix == ".tsv" else ",")
        elif text.lstrip()[:1] in ("{", "["):
            yield from json_pieces(text)
    elif text.lstrip()[:1] in ("{", "["):
        yield from _structure(text)
    yield from _log(name, text)
    yield from _lines(suffix, text)


def _lines(suffix: str, text: str) -> Iterator[Found]:
    """Every line as it stands, comments apart, and blocks of base64 joined."""
    for match in WRAPPED.finditer(text):
        joined = re.sub(r"\s", "", match.group())
        yield Piece("lines of base64", joined, text.count("\n", 0, match.start()) + 1)
    marked = suffix in (".html", ".htm", ".svg", ".xml", ".md")
    comment = False
    for number, line in enumerate(text.splitlines(), 1):
        comment = comment or (marked and "<!--" in line)
        start = len(line) if comment or marked else _comment_of(suffix, line)
        if line[:start].strip():
            yield Piece("comment" if comment else "", line[:start], number, raw=True)
        if line[start:].strip():
            yield Piece("comment", line[start:], number, raw=True)
        if comment and "-->" in line:
            comment = False


def _comment_of(suffix: str, line: str) -> int:
    """Where the comment of a line starts; the line's length without one."""
    if suffix in (".yaml", ".yml", ".toml", ".py", ".sh"):
        start = comment_start(line)
        return len(line) if start is None else start
    return 0 if suffix in (".ini", ".conf", ".cfg") and line.lstrip().startswith(("#", ";")) else len(line)


def comment_start(line: str) -> int | None:
    """Where a comment begins in a line of YAML; None without one."""
    quote = ""
    for position, character in enumerate(line):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'" and (position == 0 or line[position - 1] in " \t[{,:"):
            quote = character
        elif character == "#" and (position == 0 or line[position - 1] in " \t"):
            return position
    return None


def json_pieces(text: str) -> Iterator[Found]:
    """Every key and string of a JSON text, with repeated keys, its lines, and lists of cases. Also JSON lines."""
    tokens = _json_tokens(text)
    path: list[Any] = []
    kinds: list[str] = []
    name: str | None = None
    for token, string, line in tokens:
        if token in "{[" and string is None:
            kinds.append(token)
            path.append(0 if token == "[" else "")
            name = None
        elif token in "}]" and string is None:
            if kinds:
                kinds.pop()
                path.pop()
        elif token == "," and string is None:
            if kinds and kinds[-1] == "[" and isinstance(path[-1], int):
                path[-1] += 1
            name = None
        elif token == ":" and string is None:
            if kinds and kinds[-1] == "{" and name is not None:
                path[-1] = name
                yield Piece(_key(path), name, line)
        elif string is not None or (kinds and kinds[-1] == "{"):
            name = token
            yield Piece(_key(path), token, line, str(path[-1]) if path and isinstance(path[-1], str) else "")
    yield from _structure(text)


def _json_tokens(text: str) -> Iterator[tuple[str, str | None, int]]:
    line = 1
    for match in _JSON_TOKEN.finditer(text):
        token, string = match.group(), match.group(1)
        if token == "\n":
            line += 1
        elif string is None:
            yield token, None, line
        else:
            try:
                yield json.loads(token, strict=False), string, line
            except ValueError:
                yield string, string, line
            line += token.count("\n")


def _structure(text: str) -> Iterator[Found]:
    try:
        yield from case_lists(json.loads(text))
    except (ValueError, RecursionError):
        rows = [row for row in text.splitlines() if row.strip()][:2000]
        try:
            yield from case_lists([json.loads(row) for row in rows])
        except (ValueError, RecursionError):
            return


def _key(path: Sequence[Any]) -> str:
    return "::".join(str(part) for part in path if part != "")


def case_lists(value: Any, path: tuple[Any, ...] = ()) -> Iterator[Remark]:
    """Lists of single cases in plain values: entries that name a case, an image or scores of one."""
    name = str(path[-1]).lower() if path else ""
    items = list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, list) else []
    if isinstance(value, Mapping | list) and items and _lists_cases(name, value, items):
        yield Remark("danger", "case-list", _key(path), f"{len(items)} entries")
        return
    pairs = value.items() if isinstance(value, Mapping) else enumerate(items)
    for key, item in pairs:
        yield from case_lists(item, (*path, key))


def _lists_cases(name: str, value: Any, items: Sequence[Any]) -> bool:
    if isinstance(value, list):
        entries = [item for item in items if isinstance(item, Mapping) and "_target_" not in item]
        named = sum(bool({str(key).lower() for key in entry} & _CASE_KEYS) for entry in entries)
        scored = sum(bool({str(key).lower() for key in entry} & _SCORES) for entry in entries)
        if entries and all(
            "fold" in entry and not {str(key).lower() for key in entry} & _CASE_KEYS for entry in entries
        ):
            return False
        listed = name in _LISTS and all(isinstance(item, str) and not item.startswith("@") for item in items)
        return listed or (bool(entries) and (named >= 1 or scored >= 2))
    inner = [item for item in items if isinstance(item, Mapping)]
    return name in ("cases", "per_case", "patients", "subjects") and len(inner) == len(items)


def _yaml_pieces(text: str) -> Iterator[Found]:
    try:
        for document in yaml.compose_all(text, Loader=yaml.SafeLoader):
            yield from _yaml_nodes(document, (), set())
            yield from case_lists(_plain(document, set()))
    except (yaml.YAMLError, RecursionError):
        return


def _yaml_nodes(node: Any, path: tuple[Any, ...], seen: set[int]) -> Iterator[Found]:
    """Each node once, however many aliases point to it."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    line = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode):
        named = path[-1] if path and isinstance(path[-1], str) else ""
        yield Piece(_key(path), node.value, line + (node.style in ("|", ">")), named)
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _yaml_nodes(item, (*path, number), seen)
    elif isinstance(node, yaml.MappingNode):
        for key, item in node.value:
            inner = (*path, str(key.value) if isinstance(key, yaml.ScalarNode) else "?")
            yield Piece(_key(inner), str(inner[-1]), key.start_mark.line + 1)
            yield from _yaml_nodes(item, inner, seen)


def _plain(node: Any, seen: set[int]) -> Any:
    """A node's content without tags; what an alias repeats is left out."""
    if node is None or id(node) in seen:
        return None
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): _plain(item, seen) for key, item in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, seen) for item in node.value]
    return node.value


def _ini_pieces(text: str) -> Iterator[Found]:
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("["):
            section = line.strip(" []")
        elif (match := re.match(r"\s*([\w.-]+)\s*[=:]\s*(.*)", line)) is not None:
            yield Piece(f"{section}::{match.group(1)}", match.group(2), number, match.group(1))


def _csv_pieces(text: str, delimiter: str) -> Iterator[Found]:
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    except csv.Error:
        return
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if len(rows) > 1 and (set(header) & _CASE_KEYS):
        yield Remark(
            "danger", "case-list", f"column {next(h for h in header if h in _CASE_KEYS)}", f"{len(rows) - 1} rows"
        )
    for number, row in enumerate(rows, 1):
        for column, cell in enumerate(row):
            name = header[column] if column < len(header) else ""
            if cell:
                yield Piece(f"column {name or column + 1}", cell, number, name if number > 1 else "")


def _log(name: str, text: str) -> Iterator[Found]:
    base = PurePosixPath(name.lower()).name
    if base.endswith((".log", ".log.txt", "log.jsonl", "log.txt", ".out", ".err")) or base in ("stdout", "stderr"):
        yield Remark("danger", "training-log")
    elif base.endswith((".json", ".jsonl", ".txt", ".csv", ".md", "log")) or "." not in base:
        telling = sum(bool(_LOG_LINE.search(line)) for line in text[:200_000].splitlines())
        if telling >= 4 and not base.endswith(".md"):
            yield Remark("danger", "training-log")
