"""Arguments of components: which of them look code up by name, open files, fetch or unpickle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from medunet.trust.findings import Finding, Place, code, danger
from medunet.trust.inspection.documents import Item, Number
from medunet.trust.inspection.expressions import Scope, judge, parse
from medunet.trust.inspection.paths import judge_path
from medunet.trust.inspection.references import REFS, Ids, absolute, everything, substituted
from medunet.trust.inspection.targets import Component, dangerous

_READERS = {"ITKReader", "NibabelReader", "NumpyReader", "PILReader", "NrrdReader", "PydicomReader", "WSIReader",
            "NvImgCodecPydicomReader"}  # fmt: skip
_WRITERS = {"ITKWriter", "NibabelWriter", "PILWriter"}
_MERGERS = {"AvgMerger", "ZarrAvgMerger"}
NAMES = {"reader": _READERS, "writer": _WRITERS, "merger_cls": _MERGERS}
SPECIAL = ("_target_", "_disabled_", "_requires_", "_desc_", "_mode_")
_MODES = ("default", "callable")
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_TEXT_NODES = (ast.Constant, ast.BinOp, ast.Add, ast.JoinedStr, ast.FormattedValue, ast.Subscript, ast.Name, ast.Load,
               ast.Attribute, ast.Call, ast.Div)  # fmt: skip
_MAX_MEANINGS = 10_000
_MAX_PATH = 2000
_JOINS = ("os.path.join", "str", "pathlib.Path", "Path")
_PARTS_OF_NAMES = ("output_postfix", "output_ext", "postfix", "extension")
# Judged under any component and in overlays: the names that MONAI's components look code up by, or unpickle with.
EVERYWHERE = {"reader": "name", "writer": "name", "merger_cls": "name", "allow_pickle": "pickle",
              "weights_only": "pickle", "pickle_module": "pickle", "_debug_": "debug", "_mode_": "mode",
              "_args_": "positional"}  # fmt: skip


class Arguments:
    """Judges arguments within one bundle: `ids` says what references stand for, `scope` what expressions see."""

    def __init__(self, ids: Ids, scope: Scope) -> None:
        self.ids, self.scope = ids, scope
        self._rendered: dict[tuple[str, str, int], tuple[str, bool]] = {}

    def of_component(self, name: str, component: Component | None, item: Item, place: Place) -> Iterator[Finding]:
        """Every argument of a component's mapping; `component` is None where the name is not known."""
        if component is not None:
            given = {key for key, _, _ in item.pairs}
            for key, marked in component.arguments.items():
                if marked == "fetched" and key not in given:
                    what = f"{name} fetches weights unless '{key}: false' is given"
                    yield code("network", place, what, "network", "files")
        for key, line, value in item.pairs:
            if key in SPECIAL and key != "_mode_":
                continue
            here = Place(place.file, f"{place.key}::{key}" if place.key else key, line)
            kind = EVERYWHERE.get(key)
            if key == "_mode_" and value.value == "callable":
                yield from handed_on(name, component, here)
            if component is not None and kind is None:
                if key not in component.arguments:
                    yield code("argument", here, f"gives {name} the argument '{key}', which is not listed for it")
                kind = component.arguments.get(key, "")
            yield from self.one(name, key, kind or "", value, here)

    def one(self, name: str, key: str, kind: str, value: Item, place: Place) -> Iterator[Finding]:
        """One argument, by its kind."""
        if kind == "debug":
            yield danger("debug", place, f"'{key}' starts the debugger, which runs commands from files")
        elif kind == "positional":
            yield code("argument", place, f"'{key}' is no argument that MONAI hands on by itself")
        elif kind == "mode":
            if value.value not in _MODES:
                yield danger("debug", place, f"the mode {_shown(value)} is not one of {', '.join(_MODES)}")
        elif kind == "name":
            yield from self._named(name, key, value, place)
        elif kind == "pickle":
            yield from self._pickle(key, value, place)
        elif kind in ("fetch", "fetched"):
            yield from self._fetch(name, key, value, place)
        elif kind in ("path", "read"):
            yield from self._path(name, key, value, place, kind == "path")
        elif value is not None:
            yield from self._plain(name, key, value, place)

    def meanings(self, value: Item, place: Place) -> list[Item] | None:
        """The value itself, or what it refers to; lists and mappings are opened. None: it cannot be said."""
        found: list[Item] = []
        waiting = [(value, place.key)]
        for _ in range(_MAX_MEANINGS):
            if not waiting or len(waiting) > _MAX_MEANINGS:
                return None if waiting else found
            current, key = waiting.pop()
            direct = self.ids.meanings(current, key) if len(key) <= _MAX_PATH else None
            if direct is None:
                return None
            for item in direct:
                if isinstance(item.value, list):
                    waiting += [(child, f"{key}::{number}") for number, child in enumerate(item.value)][::-1]
                else:
                    found.append(item)
        return None

    def _named(self, name: str, key: str, value: Item, place: Place) -> Iterator[Finding]:
        """An argument by which a component looks code up: only the names of MONAI's own."""
        meanings = self.meanings(value, place)
        if meanings is None:
            yield danger("argument-names-code", place, f"'{key}' of {name} looks code up by a name that is not here")
            return
        allowed = NAMES[key]
        for item in meanings:
            text = item.value
            made = next((value.value for name, _, value in item.pairs if name == "_target_"), "")
            if text is None or text is False or (item.is_mapping and str(made).endswith(tuple(allowed))):
                continue
            if isinstance(text, str) and text.startswith("$"):
                tree = judge(substituted(absolute(place.key, text[1:])), text, self.scope)
                text = tree.name
            short = str(text).removeprefix("monai.data.").removeprefix("monai.inferers.")
            if short not in allowed:
                what = (
                    f"'{key}' of {name} looks code up by name: {_shown(item)}; known are {', '.join(sorted(allowed))}"
                )
                yield danger("argument-names-code", place, what)

    def _pickle(self, key: str, value: Item, place: Place) -> Iterator[Finding]:
        safe = key == "weights_only"
        for item in self.meanings(value, place) or [Item("?", value.line)]:
            if item.value is None or (isinstance(item.value, bool) and item.value is safe):
                continue
            if key == "pickle_module" and item.value == "pickle":
                yield code("argument-pickle", place, "names the module that unpickles")
                continue
            yield danger("argument-pickle", place, f"'{key}: {_shown(item)}' lets files be unpickled, which runs code")

    def _fetch(self, name: str, key: str, value: Item, place: Place) -> Iterator[Finding]:
        for item in self.meanings(value, place) or [Item("?", value.line)]:
            if item.value is None or item.value is False or item.value == "":
                continue
            yield code("network", place, f"'{key}: {_shown(item)}' lets {name} fetch weights", "network", "files")

    def _path(self, name: str, key: str, value: Item, place: Place, written: bool) -> Iterator[Finding]:
        meanings = self.meanings(value, place)
        if meanings is None and written:
            yield code("path", place, f"'{key}' of {name} writes to a path that is not here", "files")
        for item in (below for meaning in meanings or [] for below in everything(meaning)):
            if not isinstance(item.value, str) or isinstance(item.value, Number):
                continue
            text, certain = self.rendered(item.value, place.key)
            level, reason = judge_path(text, written)
            if not certain and written and level == "note":
                level, reason = "code", "writes to a path that it computes"
            elif key == "data_root_dir" and text and level == "note":
                level, reason = "code", "says from where results count their folders: they may land on the inputs"
            touches = ("network",) if "network" in reason else ("files",)
            yield Finding(level, "path", place, f"'{key}' of {name} {reason}: {_shown(item)}", touches)

    def rendered(self, text: str, key: str, depth: int = 0) -> tuple[str, bool]:
        """A path as far as it can be told without evaluating it, and whether its parts are all plain."""
        if not text.startswith("$"):
            return text, True
        if (text, key, depth) not in self._rendered:
            self._rendered[text, key, depth] = self._render(text, key, depth)
        return self._rendered[text, key, depth]

    def _render(self, text: str, key: str, depth: int) -> tuple[str, bool]:
        module = parse(substituted(absolute(key, text[1:])))
        if module is None or depth > 8:
            return "", False
        nodes = list(ast.walk(module.body[0]))[1:] if module.body else []
        calls = [ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)]
        certain = all(isinstance(node, _TEXT_NODES) for node in nodes) and all(call in _JOINS for call in calls)
        words: list[str] = []
        for node in _in_order(module):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words.append(node.value)
            elif isinstance(node, str):
                for item in (self.ids.meanings(Item("@" + node, 0), "") or [])[:1]:
                    if isinstance(item.value, str):
                        word, sure = self.rendered(item.value, node, depth + 1)
                        words.append(word)
                        certain = certain and sure
        whole = ("/" if "join" in " ".join(calls) else "").join(words)
        return (whole, certain) if len(whole) <= _MAX_PATH else ("", False)

    def _plain(self, name: str, key: str, value: Item, place: Place) -> Iterator[Finding]:
        """A value: text in it must not be the dotted name of something dangerous, nor an address."""
        for item in everything(value):
            text = item.value
            if not isinstance(text, str) or isinstance(text, Number):
                continue
            if key in _PARTS_OF_NAMES and ("/" in text or "\\" in text):
                yield danger("path", place, f"'{key}' of {name} leads to another folder: {_shown(item)}", "files")
                continue
            why = dangerous(text.split(".")) if _DOTTED.fullmatch(text) else ""
            if why:
                yield danger("argument-names-code", place, f"'{key}' of {name} is '{text}', which {why}")
            elif "://" in text and not text.startswith("$"):
                yield code("network", place, f"'{key}' of {name} is an address: {_shown(item)}", "network")


def handed_on(name: str, component: Component | None, place: Place) -> Iterator[Finding]:
    """A component that is called later: by whom, and with which arguments, is not in the config."""
    kinds = set(component.arguments.values()) - {""} if component is not None else set()
    if kinds:
        made = danger if kinds & {"name", "pickle"} else code
        yield made("argument", place, f"hands {name} on to be called with arguments that are not here", "code")


def overlay(arguments: Arguments, key: str, value: Item, place: Place) -> Iterator[Finding]:
    """An argument that a config puts into a component of another one (``a::reader``, ``+a: {reader: ...}``)."""
    kind = EVERYWHERE.get(key)
    if kind:
        yield from arguments.one("a component", key, kind, value, place)


def _in_order(node: ast.AST) -> Iterator[ast.Constant | str]:
    """Text constants and the ids of references, as they stand from left to right."""
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == REFS:
        if isinstance(node.slice, ast.Constant):
            yield str(node.slice.value)
        return
    if isinstance(node, ast.Constant):
        yield node
    for child in ast.iter_child_nodes(node):
        yield from _in_order(child)


def _shown(item: Item) -> str:
    text = repr(item.value) if not isinstance(item.value, str) else f"'{item.value}'"
    return text if len(text) <= 80 else text[:77] + "..."
