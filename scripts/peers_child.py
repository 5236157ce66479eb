"""What the child processes of bench_inference.py share: the job they are given, the network's clock, their report.

A child is called ``python peers_NAME.py JOB.json``. It imports, notes the time, works, and writes its report.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class NetworkClock:
    """Seconds and calls of a network class, by a wrapper around its ``forward``.

    Calls of two threads at once are counted as wall time, not twice.
    """

    def __init__(self) -> None:
        self.seconds, self.calls, self._running, self._since = 0.0, 0, 0, 0.0
        self._lock = threading.Lock()

    def watch(self, kind: type) -> None:
        """Time every eager call of `kind`'s forward; tracing and compiling see the plain one."""
        import torch

        plain = kind.forward

        def forward(network: Any, *args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or torch.jit.is_tracing():
                return plain(network, *args, **kwargs)
            self._enter()
            try:
                return plain(network, *args, **kwargs)
            finally:
                self._leave()

        kind.forward = forward

    def _enter(self) -> None:
        with self._lock:
            if not self._running:
                self._since = time.perf_counter()
            self._running += 1
            self.calls += 1

    def _leave(self) -> None:
        with self._lock:
            self._running -= 1
            if not self._running:
                self.seconds += time.perf_counter() - self._since


def memory_of(pid: int | str = "self") -> dict[str, int]:
    """VmHWM, VmRSS, RssAnon and RssShmem in bytes (not ru_maxrss: that counts the parent); empty when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    rows = (line.split() for line in text.splitlines())
    return {row[0][:-1]: int(row[1]) * 1024 for row in rows if row[0] in ("VmHWM:", "VmRSS:", "RssAnon:", "RssShmem:")}


def run_child(load: Callable[[], Any], work: Callable[[dict[str, Any], Any], None]) -> None:
    """Import (`load`), then `work` on the job; write ``imported`` and ``finished`` in seconds since the epoch."""
    job = json.loads(Path(sys.argv[1]).read_text())
    loaded = load()
    clock = NetworkClock()
    from medunet.networks import UNet

    clock.watch(UNet)
    base = memory_of()["VmRSS"]
    imported = time.time()
    work(job, loaded)
    report = {
        "imported": imported,
        "finished": time.time(),
        "network_seconds": clock.seconds,
        "network_calls": clock.calls,
        "imports_bytes": base,
        "own_peak_bytes": memory_of()["VmHWM"],
    }
    Path(job["report"]).write_text(json.dumps(report))


def build_network(job: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The bundle's network with its weights, in evaluation mode, and its state dict; needs torch alone."""
    import torch

    from medunet.networks import UNet

    arguments = {key: value for key, value in job["plan"]["network"].items() if key != "_target_"}
    network = UNet(**arguments).eval()
    state = torch.load(Path(job["bundle"]) / "models" / "model.pt", map_location="cpu", weights_only=True)
    network.load_state_dict(state)
    return network, state
