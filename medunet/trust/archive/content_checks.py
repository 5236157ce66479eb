"""Checks of what stands in a packed bundle's files: each returns what it saw in a sentence, or raises."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata as installed
from pathlib import Path
from typing import Any

import yaml

from medunet.errors import UnsafeError
from medunet.trust.archive.bundle_files import Contents
from medunet.trust.archive.names import CARD, COMPONENTS, FACTS, METADATA, MODEL, QUALITY, SCORES, TENSORS
from medunet.trust.archive.strictjson import parse
from medunet.trust.archive.weights_file import differences, read_safetensors, read_torch
from medunet.trust.findings import Finding, Level

_LEVELS: tuple[Level, ...] = ("note", "code", "danger")
_CALIBRATION = {"bias": float, "soft_dice": float, "probability": float, "cases": int, "always_present": bool}


class Failed(Exception):  # noqa: N818
    """What a check found wrong."""

    def __init__(self, what: str, findings: Sequence[Finding] = ()) -> None:
        super().__init__(what)
        self.findings = tuple(findings)


class NotRun(Exception):  # noqa: N818
    """Why a check was not made."""


def require_none(least: Level, findings: Sequence[Finding]) -> None:
    """Fail at findings of the level `least` or worse.

    Raises:
        Failed: with the first of them and the number of the others.
    """
    bad = [finding for finding in findings if _LEVELS.index(finding.level) >= _LEVELS.index(least)]
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise Failed(f"{bad[0].place}: {bad[0].what}{more}", findings)


def audit_source(source: Path) -> str:
    """The audit of the whole bundle, which has to find it safe."""
    from medunet.trust.inspection.audit import audit

    found = audit(source)
    if found.verdict != "safe":
        require_none("code", found.findings)
        raise Failed(f"the audit says '{found.verdict}'", found.findings)
    return "nothing in it runs code of its own"


def metadata(contents: Contents, manifest: Mapping[str, Any]) -> str:
    """``metadata.json`` against MONAI's schema, and the ids that MONAI looks for in the configs."""
    from medunet.trust.card.metadata import check_metadata, check_workflow_ids

    content = _metadata(contents)
    for key in ("name", "version"):
        if content.get(key) != manifest[key]:
            raise Failed(f"{METADATA}: {key} is {content.get(key)!r}, the manifest says {manifest[key]!r}; refuse it")
    configs = {
        name.removeprefix("configs/"): _yaml(name, contents.read(name))
        for name in sorted(contents.members)
        if name.startswith("configs/") and name.endswith((".yaml", ".yml"))
    }
    require_none("note", (*check_metadata(content), *check_workflow_ids({**configs, "metadata.json": content})))
    return f"{content['name']} {content['version']}"


def versions(contents: Contents) -> str:
    """The versions that the bundle was made with beside those installed here; never a failure."""
    content = _metadata(contents)
    wanted = {"monai": content.get("monai_version"), "torch": content.get("pytorch_version")}
    wanted |= {"numpy": content.get("numpy_version"), **dict(content.get("required_packages_version") or {})}
    words = []
    for name, version in wanted.items():
        here = _installed(str(name))
        if here is None:
            words.append(f"{name} {version} is not installed here")
        elif _numbers(here) < _numbers(str(version)):
            words.append(f"{name} here is {here}, older than the bundle's {version}")
    return "; ".join(words) or "what is installed is as new as what the bundle was made with"


def weights(contents: Contents) -> str:
    """``model.pt``, read without unpickling, against ``model.safetensors``, tensor by tensor."""
    ours = _named(MODEL, lambda: read_torch(contents.slice(MODEL)))
    theirs = _named(TENSORS, lambda: read_safetensors(contents.slice(TENSORS)))
    found = differences(ours, theirs)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise Failed(f"{MODEL} and {TENSORS} differ: {found[0]}{more}; refuse the bundle")
    numbers = sum(math.prod(tensor.shape) for tensor in ours.values())
    return f"{len(ours)} tensors with {numbers:,} numbers, equal in both files"


def quality(contents: Contents) -> str:
    """``quality.json``: plain numbers, of these weights."""
    if QUALITY not in contents.members:
        raise NotRun("the bundle has no calibration of its certainty")
    content = parse(QUALITY, contents.read(QUALITY))
    if not isinstance(content, dict) or set(content) != {"weights", "fold", "classes"}:
        raise Failed(f"{QUALITY}: is not a calibration; refuse the bundle")
    if content["weights"] != contents.members[MODEL].sha256:
        raise Failed(f"{QUALITY}: is of other weights than {MODEL}; pack the bundle again")
    classes = content["classes"]
    if not isinstance(classes, dict) or not all(value is None or _is_calibration(value) for value in classes.values()):
        raise Failed(f"{QUALITY}: holds what is no calibration; refuse the bundle")
    return f"a calibration for {sum(value is not None for value in classes.values())} of {len(classes)} classes"


def components(contents: Contents) -> str:
    """``components.json``: plain rules and numbers, of these weights."""
    if COMPONENTS not in contents.members:
        return "the bundle has no rules for components"
    content = parse(COMPONENTS, contents.read(COMPONENTS))
    if not isinstance(content, dict) or set(content) != {"weights", "rules", "evidence"}:
        raise Failed(f"{COMPONENTS}: is not a list of rules; refuse the bundle")
    if content["weights"] != contents.members[MODEL].sha256:
        raise Failed(f"{COMPONENTS}: is of other weights than {MODEL}; pack the bundle again")
    rules, evidence = content["rules"], content["evidence"]
    if not isinstance(rules, dict) or not all(_is_rule(rule) for rule in rules.values()):
        raise Failed(f"{COMPONENTS}: holds what is no rule; refuse the bundle")
    if not isinstance(evidence, dict) or not all(_is_evidence(value) for value in evidence.values()):
        raise Failed(f"{COMPONENTS}: holds what is no number of a proof; refuse the bundle")
    return f"a rule for {len(rules)} of {len(evidence)} classes"


def card(contents: Contents) -> str:
    """The numbers of ``docs/README.md`` against those of the files that it is made of."""
    from medunet.trust.card.model_card import check_card, facts_of

    with tempfile.TemporaryDirectory(prefix="medunet-") as folder:
        for name in FACTS:
            if name in contents.members:
                path = Path(folder) / name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(contents.read(name))
        facts = facts_of(Path(folder), None)
    require_none("danger", check_card(_text(CARD, contents.read(CARD)), facts))
    return f"its numbers are those of {SCORES} and {METADATA}"


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except ValueError as error:
        raise UnsafeError(f"{name}: is not UTF-8 text; refuse it") from error


def _metadata(contents: Contents) -> dict[str, Any]:
    content = parse(METADATA, contents.read(METADATA))
    if not isinstance(content, dict):
        raise UnsafeError(f"{METADATA}: is not a list of fields; refuse it")
    return content


def _yaml(name: str, data: bytes) -> Any:
    try:
        return yaml.safe_load(_text(name, data))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UnsafeError(f"{name}: is not plain YAML ({type(error).__name__}); refuse it") from error


def _named(name: str, read: Any) -> Any:
    """What `read` returns; its refusals name the file."""
    try:
        return read()
    except UnsafeError as error:
        words = str(error)
        raise UnsafeError(words if words.startswith(name) else f"{name}: {words}") from error


def _is_calibration(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != set(_CALIBRATION):
        return False
    return all(type(value[key]) in ((int, float) if kind is float else (kind,)) for key, kind in _CALIBRATION.items())


def _is_rule(value: Any) -> bool:
    if not isinstance(value, dict) or len(value) != 1:
        return False
    least = value.get("minimum_mm3", 0)
    return value == {"largest": True} or (type(least) in (int, float) and 0 < least < math.inf)


def _is_evidence(value: Any) -> bool:
    if not isinstance(value, dict) or not set(value) <= set(_EVIDENCE):
        return False
    return all(_EVIDENCE[key](value[key]) for key in value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


_EVIDENCE: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("cases", "tried", "dice_before", "dice_after", "difference"), _is_number),
    "interval": lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)),
    "rule": _is_rule,
}


def _installed(name: str) -> str | None:
    try:
        return installed.version(name)
    except installed.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """
    >>> _numbers("2.13.0+cpu") < _numbers("2.14")
    True
    """
    match = re.match(r"\d{1,9}(\.\d{1,9})*", version)
    return tuple(int(n) for n in match[0].split(".")) if match else ()
