"""The static audit of a bundle: nothing is executed, imported or unpickled."""

from __future__ import annotations

from pathlib import Path

from medunet.trust.findings import Audit


def audit(source: Path) -> Audit:
    """Examine a bundle folder or archive without running anything of it."""
    raise NotImplementedError
