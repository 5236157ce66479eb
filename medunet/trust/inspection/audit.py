"""The static audit of a bundle: nothing is executed, imported or unpickled."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from medunet.errors import InputError
from medunet.trust.findings import Audit, Finding, Place, danger, note
from medunet.trust.inspection.archive import ArchiveError
from medunet.trust.inspection.configs import Config, ConfigAudit
from medunet.trust.inspection.contents import CONFIG_SUFFIXES, examine_file, local_modules, shadowing
from medunet.trust.inspection.documents import MAX_JSON_BYTES, MAX_YAML_BYTES, decode, read_document
from medunet.trust.inspection.members import examine_members
from medunet.trust.inspection.sources import Entry, entries

_MAX_COST = 4 * 1024 * 1024  # bytes of JSON; YAML takes four times as long
_VALUE_COST = 20  # of a value, beside its bytes
_MAX_FINDINGS = 20_000
_OVERLAY_KEY = re.compile(rb'"[^"\n]{0,200}(?:::|#)[^"\n]{0,200}"\s{0,8}:')


def audit(source: Path) -> Audit:
    """Examine a bundle folder or archive without running anything of it.

    Raises:
        InputError: it is not there, cannot be read, or holds no file.
    """
    source = Path(source)
    findings = list(examine_members(source))
    try:
        files = list(entries(source))
        if not files and not findings:
            raise InputError(f"{source}: holds no files; give a bundle folder or a zip file")
        return _Run(source, files, findings).audit()
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror or error})") from error


class _Run:
    """One audit: configs are read first, since they are judged together."""

    def __init__(self, source: Path, files: Sequence[Entry], findings: list[Finding]) -> None:
        self.source, self.files, self.findings = source, files, findings
        self.roots = sorted(_roots([entry.name for entry in files]), key=len, reverse=True)
        self.cost = 0

    def audit(self) -> Audit:
        """All findings and counts."""
        paths = [self.below_root(entry.name) for entry in self.files]
        modules = local_modules(paths)
        self.findings += shadowing(paths, modules)
        configs = []
        for entry in self.files:
            try:
                if entry.name.lower().endswith(CONFIG_SUFFIXES):
                    configs += self.config(entry)
                else:
                    self.findings += examine_file(entry)
            except ArchiveError as error:
                self.findings.append(danger("archive-data", Place(entry.name), str(error), "files"))
        walk = ConfigAudit(configs, modules)
        self.findings += _bounded(walk.findings())
        counts = {
            "files": len(self.files),
            "configs": len(configs),
            "components": walk.counts.components,
            "expressions": walk.counts.expressions,
            "references": walk.counts.references,
            "macros": walk.counts.macros,
            "weights": len({f.place.file for f in self.findings if f.rule in ("weights", "torchscript", "pickle")}),
        }
        unique = tuple(dict.fromkeys(self.findings))
        return Audit(str(self.source), unique, counts)

    def below_root(self, name: str) -> str:
        """The path as a run in the bundle's folder sees it."""
        root = next((root for root in self.roots if name.startswith(root)), "")
        return name[len(root) :]

    def config(self, entry: Entry) -> list[Config]:
        """The documents of a config file; too large ones are searched for anything active only."""
        is_json = entry.name.lower().endswith(".json")
        limit = MAX_JSON_BYTES if is_json else MAX_YAML_BYTES
        self.cost += min(entry.size, limit) * (1 if is_json else 4)
        data = b""
        if entry.size <= limit and self.cost <= _MAX_COST:
            with entry.open() as stream:
                data = stream.read(limit + 1)
            self.cost += _VALUE_COST * data.count(b",")
        if entry.size > limit or self.cost > _MAX_COST:
            self.findings.append(_large(entry, "/configs/" in f"/{self.below_root(entry.name)}"))
            return []
        if data[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK") or data[:1] == b"c":
            self.findings += examine_file(entry)
        text, found = decode(entry.name, data)
        self.findings += found
        roots = read_document(entry.name, text, self.findings) if text.strip() else []
        return [Config(entry.name, self.below_root(entry.name), tuple(roots))]


def _large(entry: Entry, is_config: bool) -> Finding:
    """A data file in JSON may be large, as long as nothing in it can be a component or an expression."""
    tail = b""
    with entry.open() as stream:
        while piece := stream.read(1 << 20):
            text = tail + piece
            if any(
                mark in text for mark in (b"_target_", b'"$', b'"%', b"\\u", b"'$", b"'%", b'"+')
            ) or _OVERLAY_KEY.search(text):
                return danger(
                    "limits", Place(entry.name), "is too large to be read and may hold components or expressions"
                )
            tail = text[-1024:]
    if entry.name.lower().endswith(".json") and not is_config:
        return note("limits", Place(entry.name), "is large data without components or expressions; it was not read")
    return danger("limits", Place(entry.name), "is larger than any config")


def _bounded(found: Iterator[Finding]) -> Iterator[Finding]:
    for number, finding in enumerate(found):
        if number == _MAX_FINDINGS:
            yield danger(
                "limits", finding.place, f"there are more than {_MAX_FINDINGS} findings; the rest was not judged"
            )
            return
        yield finding


def _roots(names: Sequence[str]) -> set[str]:
    """The folders that hold a ``configs`` folder: from there a bundle runs."""
    found = {name[: name.index("configs/")] for name in names if name.startswith("configs/") or "/configs/" in name}
    return found | {""}
