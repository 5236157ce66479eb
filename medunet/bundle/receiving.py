"""Verify a packed bundle as its receiver does: first all that needs no running, then, if that is clean, the network."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path

from medunet.trust.archive.bundle_files import Contents
from medunet.trust.archive.unpacking import unpack_contents
from medunet.trust.archive.verifying import RUNNING, Check, Verification, attempt, settled, verified_contents


def verify(source: Path, key: Path | None = None) -> Verification:
    """All checks of an archive or folder; the sender of a bundle that passes is remembered.

    Raises:
        InputError: there is no such archive, folder or key.
        ResourceError: the file of senders cannot be written.
    """
    with verified_contents(source, key) as (static, contents):
        if not static.verified or contents is None:
            result = static.extended(_not_run("a check before it failed"))
        elif missing := [name for name in ("torch", "monai") if not _is_installed(name)]:
            words = f"{' and '.join(missing)} is not installed: THE WEIGHTS WERE NOT RUN"
            result = static.extended(_not_run(words))
        else:
            result = static.extended(_run(source, contents))
    return settled(result, key is not None)


def _run(source: Path, contents: Contents) -> list[Check]:
    """Run what was verified: an unpacked copy of it, not what the name may stand for by now."""
    from medunet.bundle.reference import check_network, check_reference

    with tempfile.TemporaryDirectory(prefix="medunet-") as folder:
        copy = Path(folder) / "bundle"
        unpack_contents(contents, copy)
        network = attempt("network", lambda: check_network(copy))
        if network.state == "failed":
            return [network, *_not_run("the check 'network' failed")[1:]]
        return [network, attempt("reference", lambda: check_reference(copy))]


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ImportError:
        return False


def _not_run(reason: str) -> list[Check]:
    return [Check(name, "not run", reason) for name in RUNNING]
