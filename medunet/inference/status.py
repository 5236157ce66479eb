"""What became of each case of a batch, on disk while the batch runs."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medunet.data.atomic import write_json

STATUS = "status.json"
_LEAST = 1.0  # seconds between two writings of the file
_SHARE = 20  # writing may take one part in so many of the time


@dataclass
class CaseResult:
    """What became of one case; `stages` are seconds: read, preprocess, network, restore, write.

    `expected_dice` is the lowest of its classes (`quality`), an expectation to sort a batch for review by; null where
    nothing is calibrated.
    """

    name: str
    state: str
    message: str = ""
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    output: str = ""
    images: list[str] = field(default_factory=list)
    geometry: dict[str, Any] | None = None
    expected_dice: float | None = None
    quality: dict[str, Any] = field(default_factory=dict)


class Status:
    """``status.json`` of an output folder; written at most every second, and once at the end.

    Cases that are missing there after a crash are computed again.
    """

    def __init__(self, output_dir: Path, digest: str) -> None:
        self.path, self.digest = output_dir / STATUS, digest
        self._known = _read(self.path, digest)
        self.before = {output: case for output, case in self._known.items() if case["state"] == "done"}
        self._next = 0.0
        self._changed = False

    def add(self, result: CaseResult) -> None:
        """Note a case."""
        if result.state == "already done":
            return
        self._known[result.output] = asdict(result)
        self._changed = True
        if time.monotonic() >= self._next:
            self.write()

    def write(self) -> None:
        """Write what is known of every case, those of earlier calls included."""
        if not self._changed:
            return
        start = time.monotonic()
        write_json(self.path, {"model": self.digest, "cases": list(self._known.values())})
        self._changed = False
        self._next = time.monotonic() + max(_LEAST, _SHARE * (time.monotonic() - start))


def _read(path: Path, digest: str) -> dict[str, Any]:
    """Cases of earlier calls with the same model, by output name; a broken status file counts as none."""
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["model"] != digest:
            return {}
        return {case["output"]: case for case in content["cases"] if case["state"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
