"""From an archive to a folder: verified first, then member by member, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from medunet.errors import InputError, ResourceError, UnsafeError
from medunet.trust.archive.bundle_files import Contents
from medunet.trust.archive.verifying import Verification, settled, verified_contents

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)


def unpack(source: Path, target: Path, key: Path | None = None) -> Verification:
    """Verify an archive without running it and unpack it to a folder that is new or empty.

    Raises:
        InputError: the archive is missing, or the folder is not empty.
        UnsafeError: a check failed; nothing is written then.
        ResourceError: the disk is full or not writable; nothing is left behind.
    """
    _require_empty(target)
    if source.is_dir():
        raise InputError(f"{source}: is a folder already; give an archive that medunet pack wrote")
    with verified_contents(source, key) as (result, contents):
        if not result.verified or contents is None:
            raise UnsafeError(f"{source}: is refused, nothing was unpacked: {result.failure}")
        unpack_contents(contents, target)
    return settled(result, key is not None)


def unpack_contents(contents: Contents, target: Path) -> None:
    """Write files to a folder beside `target`, compare each with its sha256, then give the folder its name.

    Raises:
        UnsafeError: a file changed since it was verified.
        ResourceError: the disk is full or not writable.
    """
    staging = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".part-", dir=target.parent))
        for name in sorted(contents.members):
            _write(contents, name, staging)
        staging.chmod(0o777 & ~_umask())
        if target.exists():
            target.rmdir()
        staging.rename(target)
    except OSError as error:
        raise ResourceError(f"{target}: cannot be written ({error.strerror}); choose another folder") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _write(contents: Contents, name: str, folder: Path) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with os.fdopen(os.open(path, _CREATE, 0o666), "wb") as file:
        for chunk in contents.slice(name).stream():
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != contents.members[name].sha256:
        raise UnsafeError(f"{name}: changed while it was unpacked; nothing was kept, try again")


def _require_empty(target: Path) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InputError(f"{target}: is there already and is no folder; choose another")
    if target.is_dir() and any(target.iterdir()):
        raise InputError(f"{target}: is not empty, nothing is written over; choose another folder")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
