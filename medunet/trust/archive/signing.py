"""Detached signatures of archives: Ed25519 (RFC 8032), offline, with bare keys in files.

What is signed is not the archive but a short text about it: a fixed first line, which keeps signatures of other
purposes apart, then the archive's sha256 and size, the bundle's name and version, and the fingerprint of the key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medunet.errors import InputError, ResourceError, UnsafeError
from medunet.trust.archive.strictjson import canonical, parse

SUFFIX = ".sig"
_FORMAT = "medunet-signature-1"
_DOMAIN = b"medunet signature of a bundle archive, version 1\n"
_KEYS = {"format", "archive", "key", "signature"}
_LARGEST = 64 << 10
_HOW = "pip install 'medunet[sign]'"


@dataclass(frozen=True)
class Statement:
    """What a signature says: this archive (sha256, bytes) is this version of this bundle."""

    sha256: str
    size: int
    name: str
    version: str

    def message(self, key: bytes) -> bytes:
        """The bytes that are signed with the private half of `key`."""
        return _DOMAIN + canonical({**self.as_json(), "format": _FORMAT, "key": fingerprint(key)})

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"name": self.name, "sha256": self.sha256, "size": self.size, "version": self.version}


def available() -> bool:
    """Whether the package that signs and checks is installed."""
    try:
        import cryptography  # noqa: F401
    except ImportError:
        return False
    return True


def fingerprint(key: bytes) -> str:
    """How a public key (32 bytes) is called, over the telephone if need be."""
    return "SHA256:" + hashlib.sha256(b"ed25519\n" + key).hexdigest()


def keygen(target: Path) -> str:
    """Write a private key, which only its owner can read, and the public one beside it (``.pub``); the fingerprint.

    Raises:
        InputError: one of the files is there already.
        ResourceError: cryptography is not installed, or the files cannot be written.
    """
    _require_cryptography()
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    public = target.with_name(target.name + ".pub")
    for path in (target, public):
        if path.exists() or path.is_symlink():
            raise InputError(f"{path}: is there already, a key is never written over; choose another name")
    private = Ed25519PrivateKey.generate()
    secret = private.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
    shared = private.public_key().public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo)
    _create(target, secret, 0o600)
    try:
        _create(public, shared, 0o644)
    except ResourceError:
        target.unlink()
        raise
    return fingerprint(private.public_key().public_bytes_raw())


def sign(statement: Statement, key: Path) -> bytes:
    """The content of a signature file.

    Raises:
        InputError: the key is missing or is no private Ed25519 key.
        ResourceError: cryptography is not installed.
    """
    private = _load(key, "private")
    raw = private.public_key().public_bytes_raw()
    signature = private.sign(statement.message(raw))
    return canonical(
        {"format": _FORMAT, "archive": statement.as_json(), "key": _text(raw), "signature": _text(signature)}
    )


def public_key(path: Path) -> bytes:
    """The 32 bytes of a public key file.

    Raises:
        InputError: it is missing or is no public Ed25519 key.
        ResourceError: cryptography is not installed.
    """
    raw: bytes = _load(path, "public").public_bytes_raw()
    return raw


def check_signature(data: bytes, statement: Statement, pinned: bytes | None = None) -> bytes:
    """The public key whose owner signed `statement`; it has to be `pinned` when that is given.

    Raises:
        UnsafeError: the signature is broken, of another archive, by another key, or not valid.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    signed, key, signature = _read(data)
    if pinned is not None and key != pinned:
        raise UnsafeError(
            f"the signature is by {fingerprint(key)}, the key given is {fingerprint(pinned)}; "
            f"ask the sender which key is theirs"
        )
    if signed != statement.as_json():
        wrong = next(k for k, v in statement.as_json().items() if not isinstance(signed, dict) or signed.get(k) != v)
        raise UnsafeError(f"the signature is of another archive ({wrong} differs); get archive and signature again")
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, statement.message(key))
    except (InvalidSignature, ValueError) as error:
        raise UnsafeError("the signature is not valid; get archive and signature again from the sender") from error
    return key


def _read(data: bytes) -> tuple[Any, bytes, bytes]:
    problem = "the signature file is cut short or is not one of medunet; get it again from the sender"
    try:
        content = parse("the signature", data[: _LARGEST + 1]) if len(data) <= _LARGEST else None
        if not isinstance(content, dict) or set(content) != _KEYS or content["format"] != _FORMAT:
            raise UnsafeError(problem)
        key, signature = (base64.b64decode(content[name], validate=True) for name in ("key", "signature"))
    except (binascii.Error, TypeError, ValueError, UnsafeError) as error:
        raise UnsafeError(problem) from error
    whole = _text(key) == content["key"] and _text(signature) == content["signature"]  # unused bits of base64 are 0
    if (len(key), len(signature)) != (32, 64) or not whole or canonical(content) != data:
        raise UnsafeError(problem)
    return content["archive"], key, signature


def _load(path: Path, kind: str) -> Any:
    _require_cryptography()
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric import ed25519

    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a key that medunet keygen wrote") from error
    try:
        key: Any = forms.load_pem_private_key(data, None) if kind == "private" else forms.load_pem_public_key(data)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: is not a {kind} key of medunet keygen; give the {_other(kind)}") from error
    if not isinstance(key, (ed25519.Ed25519PrivateKey, ed25519.Ed25519PublicKey)):
        raise InputError(f"{path}: is not an Ed25519 key; make one with medunet keygen")
    return key


def _other(kind: str) -> str:
    return "file without .pub" if kind == "private" else "file that ends in .pub"


def _create(path: Path, data: bytes, mode: int) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), mode)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


def _require_cryptography() -> None:
    if not available():
        raise ResourceError(f"signatures need the package cryptography, which is not installed; {_HOW}")


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
