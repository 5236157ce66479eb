"""Make archives as somebody would who wants them to be believed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from medunet.trust.archive.bundle_files import archive_contents
from medunet.trust.archive.manifest import manifest
from medunet.trust.archive.zipform import measure, write_archive

Changes = Mapping[str, bytes | None]


def files_of(archive: Path) -> dict[str, bytes]:
    """The members of a packed bundle by their names."""
    with archive.open("rb") as file:
        contents = archive_contents(file)
        return {name: contents.slice(name).read() for name in contents.members}


def write_form(target: Path, files: Mapping[str, bytes]) -> Path:
    """An archive in the canonical form, whatever is in it."""
    with target.open("wb") as file:
        write_archive(file, dict(files), [measure(name, data) for name, data in files.items()])
    return target


def forged(archive: Path, target: Path, changes: Changes, manifest_too: bool = True) -> Path:
    """`archive` with changed members (None: without it); with `manifest_too` its manifest lists the changes."""
    files = {name: data for name, data in {**files_of(archive), **changes}.items() if data is not None}
    if manifest_too:
        old = json.loads(files.pop("MANIFEST.json"))
        members = [measure(name, data) for name, data in files.items()]
        files["MANIFEST.json"] = manifest(old["name"], old["version"], members)
    return write_form(target, files)


def sha256(data: bytes) -> str:
    """Of bytes."""
    return hashlib.sha256(data).hexdigest()


def pickled_call(function: str, argument: str) -> bytes:
    """The pickle of a dictionary with a call in it, as an attacker would put it into data.pkl."""
    module, name = function.rsplit(".", 1)
    text = argument.encode()
    call = b"c" + module.encode() + b"\n" + name.encode() + b"\n"
    call += b"X" + len(text).to_bytes(4, "little") + text + b"\x85R"
    return b"\x80\x02}X\x01\x00\x00\x00w" + call + b"s."
