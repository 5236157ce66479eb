"""What an examination of a bundle says: findings with their places, and one verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Level = Literal["note", "code", "danger"]
"""``note``: harmless, but named. ``code``: runs code that a person must judge. ``danger``: refused."""

Verdict = Literal["safe", "code", "refuse"]

_VERDICTS: dict[Level, Verdict] = {"note": "safe", "code": "code", "danger": "refuse"}
_EXIT_CODES: dict[Verdict, int] = {"safe": 0, "code": 1, "refuse": 3}


@dataclass(frozen=True)
class Place:
    """Where something stands: a file of the bundle, a key in it (``train::loss``), a line (1-based; 0: no line)."""

    file: str
    key: str = ""
    line: int = 0

    def __str__(self) -> str:
        words = [self.file, f"line {self.line}" if self.line else "", f"({self.key})" if self.key else ""]
        return " ".join(word for word in words if word)


@dataclass(frozen=True)
class Finding:
    """One thing that was seen: how bad, which rule, where, what in one sentence, and what it would touch.

    `touches` holds any of ``files``, ``network``, ``processes``, ``code``.
    """

    level: Level
    rule: str
    place: Place
    what: str
    touches: tuple[str, ...] = ()


def note(rule: str, place: Place, what: str, *touches: str) -> Finding:
    """A harmless thing that is named."""
    return Finding("note", rule, place, what, touches)


def code(rule: str, place: Place, what: str, *touches: str) -> Finding:
    """Something that runs code, or reaches out, and that a person must judge."""
    return Finding("code", rule, place, what, touches or ("code",))


def danger(rule: str, place: Place, what: str, *touches: str) -> Finding:
    """Something for which a bundle is refused."""
    return Finding("danger", rule, place, what, touches or ("code",))


@dataclass(frozen=True)
class Audit:
    """All findings about one bundle folder or archive; the worst one makes the verdict.

    `inventory` counts what was looked at: ``files``, ``configs``, ``components``, ``expressions``, ``references``,
    ``weights``.
    """

    source: str
    findings: tuple[Finding, ...]
    inventory: Mapping[str, int] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """``safe``: safe to load; ``code``: loads code that a person must judge; ``refuse``."""
        levels = {finding.level for finding in self.findings}
        return _VERDICTS["danger" if "danger" in levels else "code" if "code" in levels else "note"]

    @property
    def exit_code(self) -> int:
        """0 safe, 1 loads code, 3 refused."""
        return _EXIT_CODES[self.verdict]

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "source": self.source,
            "verdict": self.verdict,
            "inventory": dict(self.inventory),
            "findings": [asdict(finding) for finding in self.findings],
        }
