"""The parent's side of bench_inference.py: start a child, watch the memory of its whole tree, gather its figures."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from peers_child import memory_of

SCRIPTS = Path(__file__).parent
_INTERVAL = 0.05  # s between two samples
_RELIST = 4  # samples between two looks for new children


@dataclass
class Run:
    """Figures of one child. Seconds and bytes; `state` is ``done``, or what went wrong.

    wall: from the start of the process to the file on disk; seconds: the same after the imports.
    peak: largest sum of resident memory (RSS) over the child and its own children, sampled; pages that two of them
    share count twice. allocated: the same of RssAnon + RssShmem, without mapped files such as libraries.
    own_peak: VmHWM of the child alone, exact. imports: its RSS before the work.
    """

    peer: str
    state: str = "done"
    wall: float = 0.0
    seconds: float = 0.0
    network: float = 0.0
    calls: int = 0
    peak: int = 0
    allocated: int = 0
    own_peak: int = 0
    imports: int = 0
    output: str = ""

    @property
    def overhead(self) -> float:
        """Seconds after the imports that were not spent in the network."""
        return self.seconds - self.network


@dataclass(frozen=True)
class Peers:
    """Which Python runs which peer, what is passed on to medunet, and when a child takes too much memory (bytes)."""

    nnunet: str | None
    overrides: dict[str, Any]
    limit: int

    def run(self, peer: str, bundle: Path, inputs: Sequence[Path], folder: Path, **options: Any) -> Run:
        """Run `peer` (monai, nnunet or medunet) in a fresh process; its label maps are left in `folder`/out."""
        if peer == "nnunet" and self.nnunet is None:
            return Run(peer, "not installed (--nnunet)")
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "out").mkdir(parents=True)
        job = {
            "bundle": str(bundle),
            "inputs": [str(path) for path in inputs],
            "output": str(folder / "out"),
            "report": str(folder / "report.json"),
            "plan": json.loads((bundle / "configs" / "metadata.json").read_text())["plan"],
            "overrides": self.overrides,
            **options,
        }
        (folder / "job.json").write_text(json.dumps(job))
        python = self.nnunet if peer == "nnunet" else sys.executable
        print(f"running {peer} in {folder}", file=sys.stderr)
        return self._watched(peer, [str(python), str(SCRIPTS / f"peers_{peer}.py"), str(folder / "job.json")], folder)

    def _watched(self, peer: str, command: Sequence[str], folder: Path) -> Run:
        run = Run(peer, output=str(folder / "out"))
        environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent)}
        with (folder / "log.txt").open("w") as log:
            start = time.time()
            child = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
            try:
                self._sample(child, run)
            finally:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
        if child.returncode and run.state == "done":
            run.state = f"failed: {_last_line(folder / 'log.txt')}"
        if run.state == "done":
            _read_report(run, json.loads((folder / "report.json").read_text()), start)
        return run

    def _sample(self, child: subprocess.Popen[bytes], run: Run) -> None:
        """Keep the largest sums until the child ends; end it when it takes more than the limit."""
        count, members = 0, [child.pid]
        while child.poll() is None:
            if count % _RELIST == 0:
                members = _tree(child.pid)
            rows = [memory_of(pid) for pid in members]
            run.peak = max(run.peak, sum(row.get("VmRSS", 0) for row in rows))
            allocated = sum(row.get("RssAnon", 0) + row.get("RssShmem", 0) for row in rows)
            run.allocated = max(run.allocated, allocated)
            if allocated > self.limit:
                run.state = f"over {self.limit / 1e9:.1f} GB, ended"
                return
            count += 1
            time.sleep(_INTERVAL)


def _tree(pid: int) -> list[int]:
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return [pid]


def _read_report(run: Run, report: dict[str, Any], start: float) -> None:
    run.wall, run.seconds = report["finished"] - start, report["finished"] - report["imported"]
    run.network, run.calls = report["network_seconds"], report["network_calls"]
    run.own_peak, run.imports = report["own_peak_bytes"], report["imports_bytes"]
    run.peak = max(run.peak, run.own_peak)


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no message"


def as_json(run: Run) -> dict[str, Any]:
    """Plain values, the output's folder left out."""
    return {key: value for key, value in asdict(run).items() if key != "output"}
