"""Paths that a config gives to a component: inside the bundle, elsewhere, or where a file would run as code."""

from __future__ import annotations

import re

from medunet.trust.findings import Level

_URL = re.compile(r"^\s*[A-Za-z][A-Za-z0-9+.-]+://")
_DRIVE = re.compile(r"^[A-Za-z]:")
_SYSTEM = ("etc", "usr", "bin", "sbin", "lib", "lib64", "boot", "dev", "proc", "sys", "root", "opt", "var", "run")
RUNNABLE = (
    ".py", ".pyc", ".pyo", ".pyd", ".pyw", ".pth", ".so", ".dll", ".dylib", ".sh", ".bash", ".zsh", ".bat", ".cmd",
    ".ps1", ".exe", ".com", ".vbs", ".js", ".desktop", ".service", ".conf", ".cfg", ".ini", ".yaml", ".yml",
    ".ipynb", ".egg", ".whl", ".rc",
)  # fmt: skip


def judge_path(text: str, written: bool) -> tuple[Level, str]:
    """How bad a path is that a component reads, or `written`; with the reason."""
    if _URL.match(text) or text.startswith(("\\\\", "//")):
        return "code", "reaches over the network"
    parts = [part for part in re.split(r"[\\/]+", text) if part not in ("", ".")]
    if not written:
        return "note", "reads files"
    if any(part.startswith(".") and part != ".." for part in parts):
        return "danger", "writes to a hidden file or folder"
    if any(part.rstrip(" .").lower().endswith(RUNNABLE) for part in parts[-1:]) and not text.endswith("/"):
        return "danger", "writes a file that a program would run or read as settings"
    if parts and "configs" in parts[:-1] and parts[-1].lower().endswith(".json"):
        return "danger", "writes over a config"
    if text.startswith("~") or ".." in parts or "$" in text:
        return "danger", "writes outside of the folder that it runs in"
    if (text.startswith(("/", "\\")) and parts and parts[0].lower() in _SYSTEM) or _DRIVE.match(text):
        return "danger", "writes to a folder of the system"
    if text.startswith(("/", "\\")):
        return "code", "writes to a fixed folder of the machine"
    return "note", "writes files"
