"""Who signed a bundle of a name before: the key of the first time is remembered (trust on first use)."""

from __future__ import annotations

import os
import re
from pathlib import Path

from medunet.errors import InputError, UnsafeError
from medunet.trust.archive.atomic import atomic_file
from medunet.trust.archive.strictjson import canonical, parse

_FINGERPRINT = re.compile(r"SHA256:[0-9a-f]{64}")


def own_folder() -> Path:
    """Where medunet keeps what is of this user and of no bundle: ``$MEDUNET_HOME``, else ``~/.config/medunet``."""
    home = os.environ.get("MEDUNET_HOME")
    return Path(home) if home else Path.home() / ".config" / "medunet"


def senders_file() -> Path:
    """Where senders are kept."""
    return own_folder() / "senders.json"


def known_sender(name: str) -> str | None:
    """The fingerprint that bundles of this name were signed with before.

    Raises:
        InputError: the file of senders cannot be read; it is not passed over.
    """
    return _read().get(name)


def remember(name: str, fingerprint: str) -> None:
    """Note that bundles of this name come from the owner of this key.

    Raises:
        InputError: the file of senders cannot be read.
        ResourceError: it cannot be written.
    """
    known = _read()
    if known.get(name) != fingerprint:
        with atomic_file(senders_file(), 0o600) as file:
            file.write(canonical({**known, name: fingerprint}))


def changed(name: str, known: str, found: str) -> str:
    """What to say when another key signed."""
    return (
        f"'{name}' is signed by {found}, before it was {known}; ask the sender by telephone whether they have a new "
        f"key, and if they have, verify once with --key NEW.pub"
    )


def _read() -> dict[str, str]:
    path = senders_file()
    try:
        content = parse(path.name, path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, UnsafeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); mend it, or remove it to forget all senders") from error
    if not isinstance(content, dict) or not all(
        isinstance(value, str) and _FINGERPRINT.fullmatch(value) for value in content.values()
    ):
        raise InputError(f"{path}: is not a list of senders; mend it, or remove it to forget all senders")
    return content
