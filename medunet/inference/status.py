"""What became of each case of a batch, on disk while the batch runs."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medunet.data.atomic import write_text

STATUS = "status.json"
_LEAST = 1.0  # seconds between two writings of the file
_SHARE = 20  # writing may take one part in so many of the time


@dataclass
class CaseResult:
    """What became of one case; `stages` are seconds: read, preprocess, network, restore, write.

    `state` is ``done``, ``already done``, ``failed``, ``refused``, or ``waiting`` where a run ended before it.
    `expected_dice` is the lowest of its classes (`quality`), an expectation to sort a batch for review by; null where
    nothing is calibrated. `mark` is of the files that `images` were read from (`medunet.data.marks`), `probabilities`
    says that they were kept, and `earlier` that what lies at `output` is of an earlier call: made by another model, or
    before the case failed.
    """

    name: str
    state: str
    message: str = ""
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    output: str = ""
    images: list[str] = field(default_factory=list)
    mark: str = ""
    probabilities: bool = False
    earlier: bool = False
    geometry: dict[str, Any] | None = None
    expected_dice: float | None = None
    quality: dict[str, Any] = field(default_factory=dict)


class Status:
    """``status.json`` of an output folder; written at most every second, and once at the end.

    Cases that are missing there after a crash are computed again.
    """

    def __init__(self, output_dir: Path, digest: str) -> None:
        self.path, self.digest = output_dir / STATUS, digest
        model, self._known = _read(self.path)
        self._changed = model != digest and bool(self._known)
        if self._changed:
            self._known = {output: {**case, "earlier": True} for output, case in self._known.items()}
        self.before = {o: case for o, case in self._known.items() if case["state"] == "done" and not case["earlier"]}
        """What this model has done and is as it was."""
        self.kept: set[str] = set()
        """Results of earlier calls that cases of this one may replace."""
        self._next = 0.0

    def claim(self, cases: Iterable[CaseResult], force: bool) -> set[str]:
        """Note whose each result will be, before any is written; gives those that are there and are not the case's own.

        So a run that is killed between a result and the next writing of this file knows its results again.

        Args:
            cases: those that wait.
            force: take all.
        """
        foreign: set[str] = set()
        for case in cases:
            there = os.path.lexists(self.path.parent / case.output)
            if _is_of(self._known.get(case.output, {}), case.images):
                self.kept |= {case.output} if there else set()
            elif there and not force:
                foreign.add(case.output)
            else:
                self._known[case.output] = asdict(case)
                self._changed = True
        self.write()
        return foreign

    def add(self, result: CaseResult) -> None:
        """Note a case."""
        if result.state == "already done":
            return
        self._known[result.output or result.name] = _plain(asdict(result))
        self._changed = True
        if time.monotonic() >= self._next:
            self.write()

    def write(self) -> None:
        """Write what is known of every case, those of earlier calls included."""
        if not self._changed:
            return
        start = time.monotonic()
        head = json.dumps({"model": self.digest})[:-1]
        rows = (json.dumps(case, allow_nan=False, ensure_ascii=False) for case in self._known.values())
        write_text(self.path, head + ', "cases": [\n' + ",\n".join(rows) + "\n]}\n")  # indents take many times as long
        self._changed = False
        self._next = time.monotonic() + max(_LEAST, _SHARE * (time.monotonic() - start))


def results_in(folder: Path) -> set[str]:
    """The results that earlier calls left in a folder, as its status file names them."""
    return {output for output, case in _read(folder / STATUS)[1].items() if case["state"] == "done" or case["earlier"]}


def _is_of(case: Mapping[str, Any], images: list[str]) -> bool:
    """Whether what lies at the output of a known case is a result of these images."""
    return case.get("images") == images and (case["state"] in ("done", "waiting") or case["earlier"])


def _plain(value: Any) -> Any:
    """The same with null for numbers that JSON has not, so that one case cannot spoil the file for all."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    """The model and the cases of earlier calls, by output; a broken status file counts as none."""
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        cases = {case["output"]: {"earlier": False, **case} for case in content["cases"] if case["state"]}
        return str(content["model"]), {output: case for output, case in cases.items() if output}
    except (OSError, ValueError, KeyError, TypeError):
        return "", {}
