"""The house holds together: imports point one way, targets resolve, no verb is shadowed, nothing asserts."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest
import yaml

import medunet
from medunet import verbs

PACKAGE = Path(medunet.__file__).parent
ORDER = [
    "cli",
    "verbs",
    "bundle",
    "training",
    "inference",
    "evaluation",
    "networks",
    "planning",
    "data",
    "types",
    "errors",
]
MODULES = sorted(PACKAGE.rglob("*.py"))
TEMPLATES = sorted((PACKAGE / "bundle" / "templates").glob("*.yaml"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    here = room(path)
    if here not in ORDER:
        return
    for name in imported(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] == "medunet" and len(parts) > 1 and parts[1] in ORDER:
            assert ORDER.index(parts[1]) >= ORDER.index(here), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_are_small_documented_and_do_not_assert(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert len(path.read_text().splitlines()) <= 450
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            nested = any(
                node in ast.walk(f) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and f is not node
            )
            if not nested and node.name != "forward":
                assert ast.get_docstring(node), f"{node.name} has no docstring"
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("__"):
            length = (node.end_lineno or 0) - node.lineno - (ast.get_docstring(node) or "").count("\n")
            assert length <= 60, f"{node.name} has {length} lines"


def test_arithmetic_rooms_do_not_load_torch() -> None:
    for path in MODULES:
        if room(path) in ("planning", "evaluation", "errors", "types") or path.name in (
            "index.py",
            "layouts.py",
            "examine.py",
        ):
            heavy = {name.split(".")[0] for name in imported(ast.parse(path.read_text()))} & {
                "torch",
                "monai",
                "ignite",
            }
            assert not heavy, f"{path} imports {heavy}"


def test_the_trust_room_stands_alone() -> None:
    """Standard library, PyYAML, cryptography, the errors and itself: also inside functions."""
    allowed = {"yaml", "cryptography", *sys.stdlib_module_names}
    files = [path for path in MODULES if room(path) == "trust"]
    assert len(files) > 10
    for path in files:
        for name in imported(ast.parse(path.read_text())):
            ours = name.startswith(("medunet.trust.", "medunet.errors."))
            assert ours or name.split(".")[0] in allowed, f"{path.name} imports {name}"


def targets(value: object) -> list[str]:
    if isinstance(value, dict):
        own = [value["_target_"]] if "_target_" in value else []
        return own + [t for item in value.values() for t in targets(item)]
    return [t for item in value for t in targets(item)] if isinstance(value, list) else []


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.name)
def test_every_target_resolves(path: Path) -> None:
    found = targets(yaml.safe_load(path.read_text()))
    assert found
    for target in found:
        parts = target.split(".")
        for cut in range(len(parts) - 1, 0, -1):
            try:
                value: object = importlib.import_module(".".join(parts[:cut]))
            except ModuleNotFoundError:
                continue
            for name in parts[cut:]:
                value = getattr(value, name)
            break
        assert callable(value), target


def test_templates_have_no_expression() -> None:
    for path in TEMPLATES:
        for line in path.read_text().splitlines():
            assert "$" not in line.split("#")[0], f"{path.name}: {line}"
            assert not re.search(r":\s*\d+e-?\d+\s*$", line), f"{path.name}: YAML reads {line} as text"


def test_no_module_has_the_name_of_a_verb() -> None:
    names = {p.name.removesuffix(".py") for p in PACKAGE.iterdir()}
    public = {
        n for n, v in vars(verbs).items() if callable(v) and not n.startswith("_") and v.__module__ == verbs.__name__
    }
    assert public >= {"index", "fingerprint", "plan", "train", "predict", "evaluate", "report"}
    assert not names & public


def test_the_verbs_are_the_package() -> None:
    for name in ("index", "fingerprint", "plan", "train", "predict", "evaluate", "report", "inspect"):
        assert getattr(medunet, name) is getattr(verbs, name)
    with pytest.raises(AttributeError, match="no attribute 'segment'"):
        _ = medunet.segment
