"""``logging.conf``: `logging.config.fileConfig` evaluates what stands there, so it is code unless it is a plain value.

Python evaluates ``class``, ``args`` and ``kwargs`` of handlers and, since 3.12, ``defaults`` of formatters; a class
that is not found by evaluating is imported by its name.
"""

from __future__ import annotations

import ast
import configparser
from collections.abc import Iterator

from medunet.trust.findings import Finding, Place, code, danger, note
from medunet.trust.inspection.expressions import parse
from medunet.trust.inspection.paths import judge_path

_FIELDS = ("class", "args", "kwargs", "defaults")
_PLAIN = {"StreamHandler", "NullHandler", "Formatter", "BufferingFormatter", "handlers.MemoryHandler"}
_FILES = {"FileHandler", "handlers.RotatingFileHandler", "handlers.TimedRotatingFileHandler",
          "handlers.WatchedFileHandler"}  # fmt: skip
_NETWORK = {f"handlers.{kind}Handler" for kind in ("Socket", "Datagram", "SysLog", "SMTP", "HTTP", "NTEventLog")}
_STREAMS = ("sys.stdout", "sys.stderr")


def is_logging_conf(text: str) -> bool:
    """Whether a text has the sections of a logging config."""
    return any(f"[{section}" in text for section in ("loggers]", "handlers]", "formatters]", "handler_", "formatter_"))


def examine_logging(name: str, text: str) -> Iterator[Finding]:
    """Every field that Python would evaluate or import."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")  # as Python opens the file
    parser = configparser.RawConfigParser(strict=True)
    try:
        parser.read_string(text)
    except configparser.Error as error:
        yield danger("logging", Place(name), f"is not a logging config: {str(error).splitlines()[0]}")
        return
    clean = True
    for section in parser.sections():
        fields = {option: parser.get(section, option, raw=True).strip() for option in parser.options(section)}
        for option in _FIELDS:
            if fields.get(option):
                for finding in _field(
                    fields, option, Place(name, f"{section}::{option}", _line(text, section, option))
                ):
                    clean = clean and finding.level == "note"
                    yield finding
    if clean:
        yield note("logging", Place(name), "configures logging with plain values")


def _field(fields: dict[str, str], option: str, place: Place) -> Iterator[Finding]:
    value = fields[option]
    if "%(" in value:
        yield danger("logging", place, f"is put together from other fields: {value[:80]}")
    elif option == "class":
        kind = value.removeprefix("logging.")
        if kind in _FILES:
            yield from _files(fields, place)
        elif kind in _NETWORK:
            yield danger("logging", place, f"sends what is logged over the network ({value})", "network")
        elif kind not in _PLAIN:
            yield danger("logging", place, f"'{value[:80]}' is evaluated or imported, and is no known handler")
    elif not _is_plain(value):
        yield danger("logging", place, f"'{value[:80]}' is evaluated by Python, and is no plain value")


def _files(fields: dict[str, str], place: Place) -> Iterator[Finding]:
    """A handler that writes a file: every text in its arguments might be the name."""
    for option in ("args", "kwargs"):
        tree = parse(fields.get(option, ""))
        for node in ast.walk(tree) if tree else []:
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                level, reason = judge_path(node.value, written=True)
                yield Finding(level, "logging", place, f"{reason}: '{node.value[:80]}'", ("files",))
    if not fields.get("args") and not fields.get("kwargs"):
        yield code("logging", place, "writes a file that it does not name", "files")


def _is_plain(value: str) -> bool:
    tree = parse(value)
    if tree is None or len(tree.body) != 1 or not isinstance(tree.body[0], ast.Expr):
        return False
    waiting: list[ast.AST] = [tree.body[0].value]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Attribute) and ast.unparse(node) in _STREAMS:
            continue
        if not isinstance(node, (ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.Load, ast.UnaryOp, ast.USub)):
            return False
        waiting += ast.iter_child_nodes(node)
    return True


def _line(text: str, section: str, option: str) -> int:
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip().startswith("["):
            inside = line.strip() == f"[{section}]"
        elif inside and line.split("=")[0].split(":")[0].strip().lower() == option:
            return number
    return 0
