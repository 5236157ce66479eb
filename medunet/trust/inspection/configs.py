"""All configs of a bundle together: every component, expression, reference and macro, with its place."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from medunet.trust.findings import Finding, Place, code, danger, note
from medunet.trust.inspection.arguments import EVERYWHERE, SPECIAL, Arguments, handed_on, overlay
from medunet.trust.inspection.characters import looks_special, odd_characters
from medunet.trust.inspection.documents import Item, Number
from medunet.trust.inspection.expressions import Judgement, Scope, imports, judge
from medunet.trust.inspection.references import (
    SEPARATOR,
    Ids,
    absolute,
    everything,
    has_relative,
    macro_parts,
    normal,
    reference_of,
    substituted,
)
from medunet.trust.inspection.targets import judge_name, table

_MAX_LETTERS = 400_000
_CODE_LETTERS = re.compile(r"['\"()\[\]{}=;\\`]")
_WORKFLOW_KEYS = ("workflow_name", "logging_file", "meta_file", "config_file", "args_file", "tracking",
                  "properties_path")  # fmt: skip


@dataclass(frozen=True)
class Config:
    """A config file that was read: its path below the bundle's root, and its documents."""

    file: str
    path: str
    roots: tuple[Item, ...]


@dataclass
class Counts:
    """What the configs hold."""

    components: int = 0
    expressions: int = 0
    references: int = 0
    macros: int = 0


@dataclass
class ConfigAudit:
    """Walks configs that may be merged with each other in any order."""

    configs: Sequence[Config]
    local_modules: Mapping[str, str]
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self.ids, self.letters = Ids(), 0
        self.modules: dict[str, bool] = {}
        for config in self.configs:
            for root in config.roots:
                self.ids.add(root)
                if config.path.rsplit("/", 1)[-1].lower().startswith("metadata"):
                    self.ids.add(root, "_meta_")
        self.paths = {config.path for config in self.configs}
        self.scope = Scope(self._aliases(), self.local_modules)
        self.arguments = Arguments(self.ids, self.scope)
        self.relative_code = any(self._is_relative_code(item) for config in self.configs for item in _all(config))

    @staticmethod
    def _is_relative_code(item: Item) -> bool:
        return isinstance(item.value, str) and item.value.startswith("$") and has_relative(item.value)

    def _aliases(self) -> dict[str, frozenset[str]]:
        """What ``$import`` expressions bind, all together: MONAI shares one table among them."""
        found: dict[str, set[str]] = {}
        for config in self.configs:
            for item in _all(config):
                if isinstance(item.value, str) and item.value.startswith("$") and "import" in item.value:
                    bound = imports(substituted(normal(item.value[1:])))
                    if bound:
                        found.setdefault(bound[0], set()).add(bound[1])
        return {name: frozenset(what) for name, what in found.items()}

    def findings(self) -> Iterator[Finding]:
        """Everything about all configs."""
        for config in self.configs:
            for root in config.roots:
                if not root.is_mapping and root.value is not None and "/configs/" in f"/{config.path}":
                    yield code("config", Place(config.file, "", root.line), "is a config that is not a mapping")
                yield from self._walk(config, root, "", "")
                yield from self._overlays(config, root)
        for item_id, problem in self.ids.problems.items():
            yield danger("limits", Place("configs", item_id), f"'{item_id}' {problem}")

    def _walk(self, config: Config, item: Item, key: str, item_id: str) -> Iterator[Finding]:
        place = Place(config.file, key, item.line)
        if isinstance(item.value, str) and not isinstance(item.value, Number):
            yield from self._text(item.value, place, item_id)
        if item.is_mapping and any(name == "_target_" for name, _, _ in item.pairs):
            self.counts.components += 1
            yield from self._component(item, place, item_id)
        for name, line, child in item.pairs:
            here = Place(config.file, _join(key, name), line)
            yield from self._key(name, here)
            yield from self._walk(
                config, child, here.key, _join(item_id, name if key else normal(name.removeprefix("+")))
            )
        if isinstance(item.value, list):
            for number, child in enumerate(item.value):
                yield from self._walk(config, child, _join(key, str(number)), _join(item_id, str(number)))

    def _key(self, name: str, place: Place) -> Iterator[Finding]:
        odd, special = odd_characters(name), looks_special(name)
        if odd:
            yield danger("characters", place, f"the key holds {odd}")
        elif special:
            yield danger("characters", place, f"the key looks like '{special}' but is written in other letters")
        elif name != "_target_" and name.strip().lower() == "_target_":
            yield danger("characters", place, "the key looks like '_target_' but is another one")
        if self.relative_code and _CODE_LETTERS.search(name):
            yield danger("key", place, "the key would become part of an expression through a relative reference")
        if name in _WORKFLOW_KEYS and "::" not in place.key:
            yield code("arguments-file", place, f"sets '{name}' of a run: which workflow or files MONAI would load")
        if name == "large_files" and "::" not in place.key:
            yield code(
                "network", place, "lists files that MONAI would download; they are not here to be judged", "network"
            )

    def _text(self, text: str, place: Place, item_id: str) -> Iterator[Finding]:
        odd, special = odd_characters(text), looks_special(text[:40])
        if special in ("$", "@", "%"):
            yield danger("characters", place, f"begins with a letter that looks like '{special}'")
        if odd:
            made = danger if text[:1] in "$@%" else note
            yield made("characters", place, f"the text holds {odd}")
        final = absolute(item_id, text)
        if final.startswith("$"):
            self.counts.expressions += 1
            yield from self._expression(text, final, place)
        elif final.startswith("%"):
            self.counts.macros += 1
            yield from self._macro(final, place)
        elif (reference := reference_of(final)) is not None:
            self.counts.references += 1
            if self._reaches_module(reference):
                yield danger("module", place, f"hands an imported module on ({final}), with all it can do")

    def _expression(self, original: str, final: str, place: Place) -> Iterator[Finding]:
        self.letters += len(final)
        if self.letters > _MAX_LETTERS:
            yield danger("limits", place, f"there are expressions of more than {_MAX_LETTERS} characters in all")
            return
        found = judge(substituted(final[1:]), original, self.scope)
        for reference in found.references:
            if self._reaches_module(reference):
                found.say("danger", f"works with the module behind '@{reference}', with all it can do")
        yield from self._calls(found, place)
        shown = original if len(original) <= 120 else original[:117] + "..."
        touches = tuple(sorted(found.touches))
        if found.level == "note":
            yield Finding("note", "expression", place, f"harmless: {shown}", touches)
        else:
            what = f"{'; '.join(found.reasons[:4])}: {shown}"
            yield Finding(found.level, "expression", place, what, (*touches, "code"))

    def _reaches_module(self, reference: str) -> bool:
        """Whether an id stands for an imported module, or for something that holds one."""
        if reference not in self.modules:
            self.modules[reference] = any(self._is_import(item) for item in self.ids.below(reference))
        return self.modules[reference]

    @staticmethod
    def _is_import(item: Item) -> bool:
        return (
            isinstance(item.value, str) and item.value.startswith("$") and imports(normal(item.value[1:])) is not None
        )

    def _calls(self, found: Judgement, place: Place) -> Iterator[Finding]:
        """Listed components that an expression calls: their keyword arguments are judged as in a component."""
        for called, call in found.calls:
            component = table().get(called)
            if component is None:
                continue
            names = list(component.arguments)
            risky = any(component.arguments.values())
            given = list(zip(names, call.args, strict=False)) + [(k.arg or "?", k.value) for k in call.keywords]
            if any(isinstance(value, ast.Starred) for value in call.args):
                yield from handed_on(called, component, place)
            if risky and (len(call.args) > len(names) or any(name not in names for name, _ in given)):
                yield code("argument", place, f"gives {called} arguments that are not listed for it")
            for name, value in given:
                kind = EVERYWHERE.get(name) or component.arguments.get(name, "")
                text = value.value if isinstance(value, ast.Constant) else "$" + ast.unparse(value)
                if kind and isinstance(text, (str, bool, type(None))):
                    item = Item(text, place.line)
                    yield from self.arguments.one(called, name, kind, item, place)

    def _macro(self, text: str, place: Place) -> Iterator[Finding]:
        path, target = macro_parts(text)
        if self._reaches_module(target):
            yield danger("module", place, f"copies an import ({text}), which hands a module on")
        if not path:
            yield note("macro", place, f"copies '{target}' (a macro)")
        elif path.removeprefix("./") in self.paths or f"configs/{path.removeprefix('./')}" in self.paths:
            yield note("macro", place, f"copies '{target}' from {path}, which is examined too", "files")
        else:
            yield danger("macro", place, f"reads {path}, which is not a config of this bundle", "files", "code")

    def _component(self, item: Item, place: Place, item_id: str) -> Iterator[Finding]:
        for name, line, value in item.pairs:
            if name == "_target_":
                here = Place(place.file, _join(place.key, "_target_"), line)
                yield from self._target(value, here, item, place, item_id)

    def _target(self, value: Item, here: Place, item: Item, place: Place, item_id: str) -> Iterator[Finding]:
        """A ``_target_`` with the arguments in `item`."""
        text = value.value
        if not isinstance(text, str) or isinstance(text, Number):
            yield danger("target", here, "the name of the component is not a text")
            return
        if text.startswith("$"):
            yield from self._computed(text, here, item_id)
            return
        if text[:1] in ("@", "%"):
            meant = [str(found.value) for found in self.ids.meanings(value, item_id) or []]
            shown = f" ({', '.join(meant[:3])})" if meant else ""
            yield danger("target-computed", here, f"the name of the component comes from elsewhere: {text}{shown}")
            return
        target = judge_name(text, self.local_modules)
        if target.kind == "danger":
            yield danger("target", here, f"'{text[:100]}' {target.words}", "processes", "files", "network", "code")
        elif target.kind in ("bundle", "unknown"):
            rule = "bundle-code" if target.kind == "bundle" else "unknown-component"
            yield code(rule, here, f"'{text[:100]}' {target.words}")
        yield from self.arguments.of_component(text[:100], target.component, item, place)

    def _computed(self, text: str, here: Place, item_id: str) -> Iterator[Finding]:
        found = judge(substituted(absolute(item_id, text)[1:]), text, self.scope)
        if found.name and table().get(found.name):
            return
        if found.references and found.level != "danger":
            yield code("target-computed", here, f"calls what an expression yields: {text[:100]}")
        else:
            yield danger("target-computed", here, f"the component is computed: {text[:100]}")

    def _overlays(self, config: Config, root: Item) -> Iterator[Finding]:
        """Top-level keys that reach into another config: ``a::b: value`` and ``+a: {...}``."""
        for key, line, value in root.pairs:
            name = normal(key)
            place = Place(config.file, key, line)
            parts = name.removeprefix("+").split(SEPARATOR)
            if len(parts) > 1:
                yield from self._overlay(parts[-1], SEPARATOR.join(parts[:-1]), value, place)
            if name.startswith("+"):
                for below, below_line, child in value.pairs:
                    here = Place(config.file, _join(key, below), below_line)
                    yield from self._overlay(below, SEPARATOR.join(parts), child, here)

    def _overlay(self, last: str, base: str, value: Item, place: Place) -> Iterator[Finding]:
        if last == "_target_":
            bases = [item for item in self.ids.at(base) if item.is_mapping] or [Item((), place.line)]
            seen: set[Finding] = set()
            for item in bases:
                for finding in self._target(value, place, item, Place(place.file, base, place.line), base):
                    if finding not in seen:
                        seen.add(finding)
                        yield finding
            return
        yield from overlay(self.arguments, last, value, place)
        names = dict.fromkeys(str(target.value) for target in self.ids.at(f"{base}{SEPARATOR}_target_"))
        known = {name: component for name in names if (component := table().get(name))}
        for name, component in known.items():
            if last == "_mode_" and value.value == "callable":
                yield from handed_on(name, component, place)
            elif kind := component.arguments.get(last, ""):
                yield from self.arguments.one(name, last, kind, value, place)
        listed = last in SPECIAL or last in EVERYWHERE or any(last in made.arguments for made in known.values())
        if known and not listed:
            what = f"gives {' or '.join(known)} the argument '{last}', which is not listed for it"
            yield code("argument", place, what)


def _join(key: str, child: str) -> str:
    return f"{key}{SEPARATOR}{child}" if key else child


def _all(config: Config) -> Iterator[Item]:
    for root in config.roots:
        yield from everything(root)
