"""The model card: collected from a bundle's own files, written as Markdown, and checked number by number.

A card is checked by writing it again from the facts and comparing the tables: a cell is found by its section, its
column's title and its row's first cell, so that prose may be edited freely while a changed number is named.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medunet.errors import BundleError
from medunet.trust.card import claim
from medunet.trust.card.page import sections
from medunet.trust.card.summary import summarise_data, summarise_scores
from medunet.trust.findings import Finding, Place

FILE = "docs/README.md"
_NUMBER = re.compile(r"(?<![\w.])[-−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?", re.I)

_RULE = re.compile(r"\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*")
Cell = tuple[str, str, str, int]
"""Section, first cell of the row, column title, and which of several equal rows."""


def facts_of(root: Path, eval_dir: Path | None) -> dict[str, Any]:
    """What a card is made of, as plain values.

    From ``configs/metadata.json``, ``docs/data_license.txt``, ``models/quality.json``, ``models/components.json`` and
    the scores and fingerprint in `eval_dir`; without that, from the shipped summaries ``docs/scores.json`` and
    ``docs/data.json``.

    Raises:
        BundleError: there are no readable metadata.
        InputError: a scores file or fingerprint cannot be read.
    """
    metadata = _json(root / "configs" / "metadata.json")
    if metadata is None:
        raise BundleError(f"{root / 'configs' / 'metadata.json'}: is missing or not JSON; give a bundle's folder")
    plan = metadata.get("plan") if isinstance(metadata.get("plan"), dict) else {}
    if eval_dir is not None:
        scores, data = summarise_scores(eval_dir), summarise_data(eval_dir)
    else:
        scores, data = _json(root / "docs" / "scores.json") or {}, _json(root / "docs" / "data.json") or {}
    licence = root / "docs" / "data_license.txt"
    return {
        **{key: str(metadata.get(key) or "") for key in ("version", "intended_use", "authors", "copyright")},
        "name": str(metadata.get("name") or root.resolve().name),
        "plan": plan,
        "labels": _labels(metadata, plan or {}),
        "software": _software(metadata),
        "data": data,
        "scores": {"folds": scores.get("folds", []), "pooled": scores.get("pooled")},
        "quality": _json(root / "models" / "quality.json"),
        "components": _json(root / "models" / "components.json"),
        "licence": licence.read_text(encoding="utf-8").splitlines() if licence.is_file() else [],
    }


def write_card(facts: Mapping[str, Any]) -> str:
    """The model card as Markdown, from what `facts_of` gives."""
    return "\n\n".join(sections(facts)) + "\n"


def check_card(card: str, facts: Mapping[str, Any]) -> tuple[Finding, ...]:
    """Where a number in a table of the card is not that of the facts, or a row of it is gone.

    Open items of the CLAIM table are the author's to fill in; tables in sections of the author's own are only noted.
    """
    expected, found = dict(_cells(write_card(facts))), list(_cells(card))
    stated = dict(found)
    known = {cell[0] for cell in expected}
    twice = {cell for cell, count in Counter(cell for cell, _ in found).items() if count > 1 and cell[0] in known}
    findings = [
        _finding("danger", cell, stated[cell][1], "stands in two columns of one name") for cell in sorted(twice)
    ]
    if re.search(r"<t(able|r|d)\b", card, re.I):
        findings.append(
            Finding("danger", "card-number", Place(FILE), "has an HTML table, which is not checked; remove it")
        )
    for cell, (text, line) in stated.items():
        if cell[0] not in known:
            if _numbers(text):
                findings.append(_finding("note", cell, line, f"is '{text}', which nothing here can check"))
        elif cell not in expected:
            if _numbers(text):
                findings.append(_finding("danger", cell, line, f"is '{text}', which the bundle's files do not say"))
        elif claim.OPEN not in expected[cell][0] and _numbers(text) != _numbers(expected[cell][0]):
            remedy = f"is '{text}', but the bundle's files say '{expected[cell][0]}'"
            findings.append(_finding("danger", cell, line, remedy))
    for cell, (text, _) in expected.items():
        if cell not in stated and _numbers(text):
            findings.append(_finding("danger", cell, 0, f"is missing; the bundle's files say '{text}'"))
    return tuple(findings)


def _finding(level: Any, cell: Cell, line: int, words: str) -> Finding:
    section, row, column, _ = cell
    key = f"{section}: {row}, {column}"
    return Finding(level, "card-number", Place(FILE, key, line), f"{key} {words}; write the card again")


def _cells(card: str) -> Iterator[tuple[Cell, tuple[str, int]]]:
    """Every cell of every table with its place: a table is what has a row of dashes under its header."""
    lines = card.splitlines()
    headings: list[str] = []
    header: list[str] = []
    seen: Counter[tuple[str, str]] = Counter()
    for line, text in enumerate(lines, 1):
        heading = re.match(r" {0,3}(#{1,6})\s+(.*)", text)
        if heading:
            headings = [*headings[: len(heading.group(1)) - 1], heading.group(2).strip(" #")]
        if _RULE.fullmatch(text) and line > 1:
            header = _split(lines[line - 2])
        elif not text.strip() or heading:
            header = []
        elif header:
            cells = _split(text)
            section = " / ".join(headings[1:])
            first = cells[0] if section != "CLAIM checklist" else ", ".join(cells[:2])
            seen[section, first] += 1
            for number, cell in enumerate(cells):
                column = header[number] if number < len(header) else f"column {number + 1}"
                yield (section, first, column, seen[section, first]), (cell, line)


def _split(row: str) -> list[str]:
    """The cells of a table's row; outer bars may be missing."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip().removeprefix("|").removesuffix("|"))]


def _numbers(text: str) -> list[float]:
    """The numbers of a cell, in order."""
    return [float(found.replace(",", "").replace("−", "-")) for found in _NUMBER.findall(text)]


def _labels(metadata: Mapping[str, Any], plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Value, name, code and a region's values of each label: from the plan, else from the format of the output."""
    labels = plan.get("labels")
    if not isinstance(labels, dict):
        output = (metadata.get("network_data_format") or {}).get("outputs", {}).get("pred", {})
        named = output.get("channel_def", {}) if isinstance(output, dict) else {}
        labels = {str(name): int(value) for value, name in named.items() if str(value).isdigit()}
    codes, regions = plan.get("codes") or {}, plan.get("regions")
    return [
        {"value": value, "name": name, "code": _code(codes.get(name)), "members": _members(regions, name)}
        for name, value in labels.items()
    ]


def _members(regions: Any, name: str) -> list[str]:
    """The values of a region; none of a class."""
    values = regions.get(name) if isinstance(regions, Mapping) else None
    return [str(value) for value in values] if isinstance(values, list) else []


def _code(code: Any) -> str:
    """``Liver (SCT 10200004)``, and the side."""
    if not isinstance(code, Mapping) or not code.get("type"):
        return ""
    value, scheme, meaning = code["type"]
    side = f", {code['laterality'][2]}" if code.get("laterality") else ""
    return f"{meaning} ({scheme} {value}){side}"


def _software(metadata: Mapping[str, Any]) -> dict[str, str]:
    named = {"MONAI": "monai_version", "PyTorch": "pytorch_version", "NumPy": "numpy_version"}
    software = {name: str(metadata[key]) for name, key in named.items() if key in metadata}
    more = metadata.get("required_packages_version")
    return {**software, **{str(k): str(v) for k, v in (more if isinstance(more, dict) else {}).items()}}


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
