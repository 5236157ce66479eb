"""Everything that can be known of a packed bundle without running it: a list of checks, each passed, failed or not run.

A check that cannot be made is never a check that passed: what goes wrong inside one makes it fail.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

from medunet.errors import InputError, MedunetError, UnsafeError
from medunet.trust.archive import content_checks, senders, signing
from medunet.trust.archive.bundle_files import Contents, archive_contents, folder_contents, opened
from medunet.trust.archive.content_checks import Failed, NotRun
from medunet.trust.archive.manifest import compare_manifest, read_manifest
from medunet.trust.archive.names import MANIFEST
from medunet.trust.findings import Finding

State = Literal["passed", "failed", "not run"]

STATIC = (
    "members",
    "form",
    "manifest",
    "signature",
    "audit",
    "metadata",
    "versions",
    "weights",
    "quality",
    "components",
    "card",
)
"""The checks of this room, in their order."""

_GATES = ("members", "form", "manifest", "audit")  # after a failure of one of these nothing further is read

RUNNING = ("network", "reference")
"""The checks that need torch and monai; they are only made when the others passed."""


@dataclass(frozen=True)
class Check:
    """One check: what came of it, in a sentence, and what was found."""

    name: str
    state: State
    what: str = ""
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Verification:
    """All checks of one archive or folder."""

    source: str
    checks: tuple[Check, ...]
    name: str = ""
    version: str = ""
    signer: str = ""
    """The fingerprint of the key that signed; empty without a valid signature."""

    @property
    def verified(self) -> bool:
        """Whether no check failed; those that were not run say so themselves."""
        return all(check.state != "failed" for check in self.checks)

    @property
    def exit_code(self) -> int:
        """0 verified, 3 refused."""
        return 0 if self.verified else 3

    @property
    def failure(self) -> str:
        """The sentence of the first check that failed."""
        return next((f"{c.name}: {c.what}" for c in self.checks if c.state == "failed"), "")

    def extended(self, checks: Sequence[Check]) -> Verification:
        """The same with further checks at the end."""
        return replace(self, checks=(*self.checks, *checks))

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**asdict(self), "verified": self.verified, "checks": [asdict(check) for check in self.checks]}


@dataclass
class _Bundle:
    """What the checks share: the open archive or folder, and what is known of it so far."""

    source: Path
    file: BinaryIO | None
    before: os.stat_result | None = None
    """Of the archive when it was opened."""
    contents: Contents | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    signer: str = ""
    problem: str = ""


@contextmanager
def verified_contents(source: Path, key: Path | None = None) -> Iterator[tuple[Verification, Contents | None]]:
    """The static checks of an archive or folder, and its files, held open until the block ends.

    `key`: the public key that must have signed; it is remembered for the bundle's name when everything else is right.

    Raises:
        InputError: there is no such archive, folder or key.
    """
    pinned = _pinned(key)
    with ExitStack() as stack:
        bundle = _Bundle(source, stack.enter_context(opened(source)))
        if bundle.file is not None:
            bundle.before = os.fstat(bundle.file.fileno())
        else:
            try:
                bundle.contents = stack.enter_context(folder_contents(source))
            except UnsafeError as error:
                bundle.problem = str(error)
        yield _run(bundle, key, pinned), bundle.contents


def verify_static(source: Path, key: Path | None = None) -> Verification:
    """The static checks alone."""
    with verified_contents(source, key) as (result, _):
        return result


def settled(result: Verification, key_given: bool) -> Verification:
    """Remember the sender of a bundle that was verified; the same result.

    Raises:
        ResourceError: the file of senders cannot be written.
    """
    if not (result.verified and result.signer):
        return result
    if key_given or senders.known_sender(result.name) is None:
        senders.remember(result.name, result.signer)
    return result


def _run(bundle: _Bundle, key: Path | None, pinned: bytes | None) -> Verification:
    steps: dict[str, Callable[[], str]] = {
        "members": lambda: _members(bundle),
        "form": lambda: _form(bundle),
        "manifest": lambda: _manifest(bundle),
        "signature": lambda: _signature(bundle, key, pinned),
        "audit": lambda: content_checks.audit_source(bundle.source),
        "metadata": lambda: content_checks.metadata(_contents(bundle), bundle.manifest),
        "versions": lambda: content_checks.versions(_contents(bundle)),
        "weights": lambda: content_checks.weights(_contents(bundle)),
        "quality": lambda: content_checks.quality(_contents(bundle)),
        "components": lambda: content_checks.components(_contents(bundle)),
        "card": lambda: content_checks.card(_contents(bundle)),
    }
    checks: list[Check] = []
    for name, step in steps.items():
        if any(check.state == "failed" and check.name in _GATES for check in checks):
            checks += _blocked(STATIC[len(checks) :], checks)
            break
        checks.append(attempt(name, step))
    _require_unchanged(bundle, checks)
    facts = {key: str(bundle.manifest.get(key, "")) for key in ("name", "version")}
    return Verification(str(bundle.source), tuple(checks), **facts, signer=bundle.signer)


def attempt(name: str, step: Callable[[], str]) -> Check:
    """Make a check; whatever goes wrong inside makes it fail."""
    try:
        return Check(name, "passed", step())
    except NotRun as reason:
        return Check(name, "not run", str(reason))
    except Failed as error:
        return Check(name, "failed", str(error), error.findings)
    except MedunetError as error:
        return Check(name, "failed", str(error))
    except Exception as error:
        return Check(name, "failed", f"could not be examined ({type(error).__name__}: {error}); refuse the bundle")


def _blocked(names: Sequence[str], checks: Sequence[Check]) -> list[Check]:
    first = next(check.name for check in checks if check.state == "failed" and check.name in _GATES)
    return [Check(name, "not run", f"the check '{first}' failed") for name in names]


def _contents(bundle: _Bundle) -> Contents:
    if bundle.contents is None:
        raise Failed("the archive could not be opened")
    return bundle.contents


def _members(bundle: _Bundle) -> str:
    if bundle.problem:
        raise Failed(bundle.problem)
    if bundle.file is None:
        return f"{len(_contents(bundle).members)} plain files"
    from medunet.trust.inspection.members import examine_members

    content_checks.require_none("danger", examine_members(bundle.source))
    return "names and types are plain"


def _form(bundle: _Bundle) -> str:
    if bundle.file is None:
        raise NotRun("a folder has no archive's form")
    bundle.contents = archive_contents(bundle.file)
    return f"the archive is what medunet pack writes, byte for byte ({len(bundle.contents.members)} files)"


def _manifest(bundle: _Bundle) -> str:
    contents = _contents(bundle)
    if MANIFEST not in contents.members:
        raise Failed(f"{MANIFEST} is missing: this is not a packed bundle; pack it with medunet pack")
    bundle.manifest = read_manifest(contents.read(MANIFEST))
    content_checks.require_none("danger", compare_manifest(bundle.manifest, contents.members))
    return f"{len(bundle.manifest['files'])} files have their size and sha256"


def _signature(bundle: _Bundle, key: Path | None, pinned: bytes | None) -> str:
    name = bundle.manifest["name"]
    listing = _contents(bundle).listing
    if listing is None:
        if key is not None:
            raise Failed("a folder cannot be signed; give the archive that was signed")
        raise NotRun("a folder is not signed; verify the archive that it came from")
    known = senders.known_sender(name)
    path = bundle.source.with_name(bundle.source.name + signing.SUFFIX)
    if not path.is_file():
        if key is not None or known is not None:
            wanted = "the key was given" if key is not None else f"'{name}' was signed by {known} before"
            raise Failed(f"{path.name} is missing, and {wanted}; get the signature from the sender")
        raise NotRun(f"there is no {path.name}; the sender is not known")
    if not signing.available():
        words = f"{path.name} cannot be checked without the package cryptography; pip install 'medunet[sign]'"
        if key is not None or known is not None:
            raise Failed(words)
        raise NotRun(f"{words}. THE SENDER IS NOT VERIFIED")
    statement = signing.Statement(listing.sha256, listing.size, name, bundle.manifest["version"])
    with path.open("rb") as file:
        found = signing.fingerprint(signing.check_signature(file.read(1 << 20), statement, pinned))
    if pinned is None and known not in (None, found):
        raise Failed(senders.changed(name, known or "", found))
    bundle.signer = found
    if pinned is not None:
        return f"signed with the key given, {found}"
    return f"signed by {found}, " + ("as before" if known else "seen for the first time: compare it with the sender")


def _pinned(key: Path | None) -> bytes | None:
    """The key that must have signed; None where it was not given or cannot be used for want of cryptography."""
    if key is None:
        return None
    if not signing.available():
        if not key.is_file():
            raise InputError(f"{key}: is missing; give the public key of the sender")
        return None
    return signing.public_key(key)


def _require_unchanged(bundle: _Bundle, checks: list[Check]) -> None:
    """Some checks opened the archive by its name: it has to be the file that is held open."""
    if bundle.file is None or bundle.before is None:
        return
    try:
        same = _state(os.stat(bundle.source)) == _state(os.fstat(bundle.file.fileno())) == _state(bundle.before)
    except OSError:
        same = False
    if not same:
        what = "the archive was replaced while it was examined, or written to; verify it again"
        checks[0] = Check("members", "failed", what)


def _state(found: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is replaced or written to."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
