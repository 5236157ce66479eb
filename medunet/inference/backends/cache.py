"""Converted networks and measured choices, kept between runs in a folder.

A model is one zip file, uncompressed: it appears whole or not at all, and its checksums tell a broken one. Whatever is
wrong with the folder, callers do without it. Which conversions were made here and found right is noted apart from it,
in the user's own folder: a bundle can come with conversions of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from torch import nn

from medunet.data.atomic import atomic_path, write_json
from medunet.errors import ResourceError
from medunet.inference.weights import file_digest
from medunet.trust.archive.senders import own_folder

_MOST_KEPT = 4  # converted networks: those of earlier weights go

Files: TypeAlias = dict[str, bytes]
_Session = TypeVar("_Session")
_UNUSABLE = (OSError, ResourceError, zipfile.BadZipFile, zlib.error, ValueError, RuntimeError, EOFError)


def network_digest(network: nn.Module) -> str:
    """SHA-256 over the class, the structure (``repr``) and every name, shape, type and byte of the state dict."""
    digest = hashlib.sha256(f"{type(network).__module__}.{type(network).__qualname__}\n{network!r}\n".encode())
    for name, value in network.state_dict().items():
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(f"{name} {value!r}\n".encode())
    return digest.hexdigest()


def version(package: str) -> str:
    """The installed version of a package; empty where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def key_of(digest: str, window: Sequence[int], channels: int, parts: Iterable[object]) -> str:
    """A file name for what depends on the network, its input and `parts` (versions, threads, processor)."""
    text = json.dumps([digest, [int(n) for n in window], int(channels), [str(part) for part in parts]])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def model_path(cache: Path | None, backend: str, key: str) -> Path | None:
    """Where the converted network of a backend lies."""
    return None if cache is None else Path(cache) / f"{backend}-{key}.zip"


def is_kept(path: Path | None) -> bool:
    """Whether there is a file that can be looked at."""
    try:
        return path is not None and path.is_file()
    except OSError:
        return False


def open_cached(
    path: Path | None, convert: Callable[[], Files], start: Callable[[Files], _Session]
) -> tuple[_Session, bool]:
    """Start a session from the files at `path`, or convert and keep them there; whether they were converted now.

    A file that is missing, broken, or not understood is made again; one that cannot be written is done without.

    Args:
        path: the zip file, or None for no cache.
        convert: makes the files; its errors are passed on.
        start: makes a session of the files.
    """
    kept = _read(path)
    if kept is not None:
        try:
            return start(kept), False
        except Exception:  # whatever a foreign library makes of a foreign file: convert again
            kept = None
    files = convert()
    session = start(files)
    _write(path, files)
    return session, True


def is_proved(path: Path | None, mixed: bool = False) -> bool:
    """Whether these very bytes were converted by this user's medunet and found to compute what PyTorch does.

    A file's name tells of which network, window and versions it is; `mixed`: computing in bfloat16.
    """
    try:
        return path is not None and _line(path, mixed) in _proved().read_text(encoding="utf-8").splitlines()
    except _UNUSABLE:
        return False


def note_proved(path: Path | None, mixed: bool = False) -> None:
    """Note that the conversion at `path` was made here and compared, if there is such a file and it can be noted."""
    try:
        if path is not None and not is_proved(path, mixed):
            _proved().parent.mkdir(parents=True, exist_ok=True)
            with _proved().open("a", encoding="utf-8") as file:
                file.write(_line(path, mixed) + "\n")
    except _UNUSABLE:
        return


def _proved() -> Path:
    return own_folder() / "conversions"


def _line(path: Path, mixed: bool) -> str:
    return f"{file_digest(path)} {path.name}" + (" bfloat16" if mixed else "")


def read_choice(path: Path | None) -> dict[str, Any]:
    """A remembered choice; empty where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except _UNUSABLE:
        return {}
    return content if isinstance(content, dict) else {}


def write_choice(path: Path | None, content: dict[str, Any]) -> None:
    """Remember a choice, if the folder can be written."""
    try:
        if path is not None:
            write_json(path, content)
    except _UNUSABLE:
        return


def processor() -> str:
    """The processor's model and how many of its cores this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.lower().startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.processor() or platform.machine()}, {cores} cores"


def _read(path: Path | None) -> Files | None:
    if path is None:
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    except _UNUSABLE:
        return None


def _write(path: Path | None, files: Files) -> None:
    if path is None:
        return
    try:
        with atomic_path(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        kept = sorted(path.parent.glob("*.zip"), key=lambda file: file.stat().st_mtime, reverse=True)
        for old in kept[_MOST_KEPT:]:
            old.unlink()
    except _UNUSABLE:
        return
