"""The verdict as one page of plain text: what it is, why, where; worst first."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from medunet.trust.findings import Audit, Finding, Level

WIDTH = 100
_MOST = {"danger": 14, "code": 14, "note": 6}
_TITLES: dict[Level, str] = {
    "danger": "REFUSED FOR",
    "code": "RUNS CODE OR REACHES OUT: a person must judge",
    "note": "HARMLESS, BUT NAMED",
}


def verdict_text(audit: Audit) -> str:
    """At most a page, 100 columns wide; ``--json`` has everything."""
    lines = [_headline(audit), ""]
    for level in _TITLES:
        found = [finding for finding in audit.findings if finding.level == level]
        if found:
            lines += [*_group(level, found), ""]
    counts = ", ".join(f"{number} {word}" for word, number in audit.inventory.items())
    lines += _wrapped(f"Examined without running anything of it: {counts or 'nothing'}.", "")
    return "\n".join(lines)


def _headline(audit: Audit) -> str:
    if audit.verdict == "safe":
        return f"SAFE TO LOAD  {_plain(audit.source)}"
    if audit.verdict == "refuse":
        return f"REFUSE  {_plain(audit.source)}"
    files = list(dict.fromkeys(finding.place.file for finding in audit.findings if finding.level == "code"))
    which = ", ".join(files[:3]) + (f" and {len(files) - 3} more files" if len(files) > 3 else "")
    return f"LOADS CODE  {_plain(audit.source)}  ({_plain(which)})"


def _group(level: Level, found: list[Finding]) -> Iterator[str]:
    yield f"{_TITLES[level]} ({len(found)})"
    rules: dict[str, list[Finding]] = {}
    for finding in found:
        rules.setdefault(finding.rule, []).append(finding)
    ordered = [finding for rule in rules.values() for finding in rule]
    shown = _spread(rules, _MOST[level]) if len(ordered) > _MOST[level] else ordered
    for finding in shown:
        touches = f"  [touches {', '.join(finding.touches)}]" if finding.touches else ""
        yield from _wrapped(_plain(f"{finding.place}: {finding.what}{touches}"), "  ")
    if len(shown) < len(found):
        yield f"  ... and {len(found) - len(shown)} more; --json FILE writes all of them"


def _spread(rules: dict[str, list[Finding]], most: int) -> list[Finding]:
    """Some of every rule, rather than all of one."""
    share = max(1, most // len(rules))
    return [finding for found in rules.values() for finding in found[:share]][:most]


def _wrapped(text: str, indent: str) -> list[str]:
    text = text if len(text) <= 400 else text[:397] + "..."
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "    ") or [""]


def _plain(text: str) -> str:
    """Nothing from a bundle may move the cursor, change colours or hide on a terminal."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
