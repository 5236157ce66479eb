"""What a packed bundle says of itself: scores without cases, where it comes from, the software it was packed with."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from importlib import metadata as installed
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement

from medunet.data.atomic import json_text
from medunet.errors import InputError
from medunet.evaluation.scores import read_scores
from medunet.trust.archive.names import DATA, MODEL, PROVENANCE, QUALITY, SCORES
from medunet.trust.archive.slices import Slice
from medunet.trust.archive.strictjson import canonical


def weights_fold(bundle: Path) -> int | str | None:
    """The fold that was held out when ``models/model.pt`` was trained, or ``all`` in turn; None where nothing tells.

    The calibration names its weights; without one, a single scored fold is the one.
    """
    try:
        content = json.loads((bundle / QUALITY).read_text(encoding="utf-8"))
        with (bundle / MODEL).open("rb") as file:
            if content["weights"] == Slice.whole(file).sha256():
                return "all" if content["fold"] == "all" else int(content["fold"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    folds = [int(path.parent.name.removeprefix("fold_")) for path in bundle.glob("eval/fold_[0-9]/scores.json")]
    return folds[0] if len(folds) == 1 else None


def summaries(bundle: Path) -> dict[str, bytes]:
    """``docs/scores.json`` and ``docs/data.json``: means, intervals, ranges and counts, and nothing of a single case.

    Where the bundle has no ``eval/``, what an earlier packing left stays.
    """
    from medunet.trust.card.summary import summarise_data, summarise_scores

    private = bundle / "eval"
    if private.is_dir():
        made = {SCORES: summarise_scores(private), DATA: summarise_data(private)}
        return {name: json_text(content).encode("utf-8") for name, content in made.items()}
    return {name: (bundle / name).read_bytes() for name in (SCORES, DATA) if (bundle / name).is_file()}


def provenance(bundle: Path, content: Mapping[str, Any], fold: int | str | None) -> bytes:
    """``provenance.json``: digests of plan and dataset, versions, seed, fold and steps; no names and no dates.

    `commit` is medunet's own where it runs from a checkout, else null.
    `content`: that of ``metadata.json``. Where the bundle has no ``eval/``, what an earlier packing left stays.
    """
    earlier = bundle / PROVENANCE
    if earlier.is_file() and not (bundle / "eval").is_dir():
        return earlier.read_bytes()
    path = bundle / "eval" / f"fold_{fold}" / "scores.json"
    best = (read_scores(path) if path.is_file() else {}).get("best") or {}
    plan = content["plan"]
    return canonical(
        {
            "commit": commit_of(Path(__file__).parents[2]),
            "dataset_sha256": plan.get("dataset_digest"),
            "fold": fold,
            "medunet": dict(content.get("required_packages_version") or {}).get("medunet"),
            "plan_sha256": hashlib.sha256(canonical(plan)).hexdigest(),
            "seed": _seed(bundle),
            "steps": best.get("step"),
        }
    )


def commit_of(checkout: Path) -> str | None:
    """The commit that is checked out in a folder, as git keeps it; None where there is none."""
    git = checkout / ".git"
    try:
        if git.is_file():  # of a linked work tree
            git = checkout / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        name = head.removeprefix("ref:").strip()
        if name == head:
            return head
        shared = git / "commondir"
        common = git / shared.read_text(encoding="utf-8").strip() if shared.is_file() else git
        if (common / name).is_file():
            return (common / name).read_text(encoding="utf-8").strip()
        packed = (common / "packed-refs").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return next((line.split()[0] for line in packed if line.endswith(f" {name}")), None)


def sbom(name: str, version: str) -> bytes:
    """``sbom.json`` (CycloneDX 1.5): medunet and what it needs, as installed where the bundle is packed."""
    components = [_component(dependency) for dependency in _dependencies("medunet")]
    return canonical(
        {
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            "metadata": {"component": {"type": "machine-learning-model", "name": name, "version": version}},
            "components": components,
        }
    )


def _seed(bundle: Path) -> Any:
    try:
        return yaml.safe_load((bundle / "configs" / "train.yaml").read_text(encoding="utf-8")).get("seed")
    except (OSError, yaml.YAMLError, AttributeError) as error:
        raise InputError(f"{bundle}: configs/train.yaml cannot be read ({error}); mend it or plan again") from error


def _dependencies(root: str) -> list[installed.Distribution]:
    """The distributions that `root` needs, itself among them, by name."""
    found: dict[str, installed.Distribution] = {}
    waiting = [root]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = installed.distribution(name)
        except installed.PackageNotFoundError:
            continue
        required = map(Requirement, found[name].requires or [])
        waiting += [one.name for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [found[name] for name in sorted(found)]


def _component(dependency: installed.Distribution) -> dict[str, Any]:
    name = re.sub(r"[-_.]+", "-", dependency.metadata["Name"]).lower()
    version = dependency.version
    content: dict[str, Any] = {
        "type": "library", "name": name, "version": version, "purl": f"pkg:pypi/{name}@{version.replace('+', '%2B')}"
    }  # fmt: skip
    licence = _licence(dependency)
    return {**content, "licenses": [licence]} if licence else content


def _licence(dependency: installed.Distribution) -> dict[str, Any] | None:
    facts = dependency.metadata.json
    expression = facts.get("license_expression")
    if expression:
        return {"expression": expression}
    named = [text.split(" :: ")[-1] for text in facts.get("classifier") or [] if text.startswith("License :: ")]
    stated = str(facts.get("license") or "").strip()
    words = stated if stated and len(stated) <= 64 and "\n" not in stated else ", ".join(named)
    return {"license": {"name": words}} if words else None
