"""``MANIFEST.json``: the size and sha256 of every other file of a packed bundle, and no file beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from medunet.errors import UnsafeError
from medunet.trust.archive.names import MANIFEST, REQUIRED, name_problem, purpose
from medunet.trust.archive.strictjson import canonical, parse
from medunet.trust.archive.zipform import Member
from medunet.trust.findings import Finding, Place

FORMAT = "medunet-bundle-1"
_KEYS = {"format", "name", "version", "files"}
_DIGEST = re.compile(r"[0-9a-f]{64}")


def manifest(name: str, version: str, members: Iterable[Member]) -> bytes:
    """The text of the manifest of a bundle's other files."""
    files = {member.name: {"sha256": member.sha256, "size": member.size} for member in members}
    return canonical({"format": FORMAT, "name": name, "version": version, "files": files})


def read_manifest(data: bytes) -> dict[str, Any]:
    """The content of a manifest.

    Raises:
        UnsafeError: it is not one that `manifest` could have written.
    """
    content = parse(MANIFEST, data)
    if not isinstance(content, dict) or set(content) != _KEYS or content["format"] != FORMAT:
        raise UnsafeError(f"{MANIFEST}: is not a manifest of the format {FORMAT}; get the bundle again, or pack again")
    if not all(isinstance(content[key], str) for key in ("name", "version")) or not isinstance(content["files"], dict):
        raise UnsafeError(f"{MANIFEST}: name, version or files are not what they should be; refuse it")
    if any(not content[key].isprintable() or content[key] != content[key].strip() for key in ("name", "version")):
        raise UnsafeError(f"{MANIFEST}: name or version holds what cannot be seen, and may pass for another; refuse it")
    for name, facts in content["files"].items():
        problem = "lists itself" if name == MANIFEST else name_problem(name)
        if problem:
            words = problem if name == MANIFEST else f"names {name!r}, which {problem}"
            raise UnsafeError(f"{MANIFEST}: {words}; refuse the bundle")
        if not _is_entry(facts):
            raise UnsafeError(f"{MANIFEST}: the entry of {name} is not a size and a sha256; refuse the bundle")
    if canonical(content) != data:
        raise UnsafeError(f"{MANIFEST}: is not written as medunet writes it; the bundle was changed, get it again")
    return content


def compare_manifest(content: Mapping[str, Any], members: Mapping[str, Member]) -> tuple[Finding, ...]:
    """What is missing, changed or too much, and what has no place in a packed bundle."""
    files = content["files"]
    findings = []
    for name in sorted((set(files) | set(members) | set(REQUIRED)) - {MANIFEST}):
        problem = _difference(name, files.get(name), members.get(name))
        if problem:
            findings.append(Finding("danger", "manifest", Place(name), problem))
    if not any(name.startswith("reference/input") for name in files):
        findings.append(Finding("danger", "manifest", Place("reference"), "the reference image is missing; pack again"))
    return tuple(findings)


def _difference(name: str, listed: Mapping[str, Any] | None, found: Member | None) -> str:
    if listed is None and found is None:
        return "is missing; every packed bundle has it, pack again"
    if found is None or listed is None:
        return _missing_or_extra(name, found)
    if purpose(name) is None:
        return "has no place in a packed bundle; refuse it"
    if listed["size"] != found.size:
        return f"has {found.size:,} bytes, the manifest says {listed['size']:,}; it was changed, get the bundle again"
    if listed["sha256"] != found.sha256:
        return "its sha256 is not the manifest's; it was changed, get the bundle again"
    return ""


def _missing_or_extra(name: str, found: Member | None) -> str:
    if found is None:
        return "is in the manifest and missing here; get the bundle again"
    if name.startswith("models/compiled/"):
        return "is not in the manifest; remove models/compiled, predict makes it again"
    return "is not in the manifest; it was added after packing, remove it or get the bundle again"


def _is_entry(facts: Any) -> bool:
    return (
        isinstance(facts, dict)
        and set(facts) == {"sha256", "size"}
        and type(facts["size"]) is int
        and facts["size"] >= 0
        and isinstance(facts["sha256"], str)
        and _DIGEST.fullmatch(facts["sha256"]) is not None
    )
