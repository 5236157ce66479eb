"""Seconds of a training step on the CPU with and without `medunet.training.allocator`, a process each, in turns.

    python scripts/bench_allocator.py [--rounds 3] [--steps 10]

The network, patch and batch are those of bundles/hippocampus_mri_3d; patches are random numbers in memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PLAN = Path(__file__).parents[1] / "bundles" / "hippocampus_mri_3d" / "configs" / "metadata.json"


def measure(kept: bool, steps: int) -> dict[str, Any]:
    """Median seconds and page faults of a step, the loss of the last, and the most memory that was held."""
    import torch

    from medunet.networks import UNet
    from medunet.training import DiceCE
    from medunet.training.allocator import keep_freed_memory

    if kept:
        keep_freed_memory()
    plan = json.loads(PLAN.read_text())["plan"]
    torch.manual_seed(0)
    network = UNet(**{key: value for key, value in plan["network"].items() if key != "_target_"}).train()
    optimizer, loss = torch.optim.AdamW(network.parameters(), 0.001), DiceCE(len(plan["labels"]))
    size = (plan["batch_size"], 1, *plan["patch_size"])
    image, label = torch.randn(size), torch.randint(0, len(plan["labels"]), size)
    seconds: list[float] = []
    for step in range(3 + steps):
        if step == 3:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        start = time.perf_counter()
        optimizer.zero_grad()
        value = loss(network(image), label)
        value.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": statistics.median(seconds[3:]), "faults": (usage.ru_minflt - before) // steps,
        "loss": float(value.detach()), "megabytes": usage.ru_maxrss // 1024,
    }  # fmt: skip


def main() -> None:
    """Print a row per process, and the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--child", choices=["given back", "kept"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child == "kept", options.steps)))
        return
    found: dict[str, list[float]] = {"given back": [], "kept": []}
    for _ in range(options.rounds):
        for kind, seconds in found.items():
            command = [sys.executable, __file__, "--steps", str(options.steps), "--child", kind]
            row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            seconds.append(row["seconds"])
            words = "{seconds:.3f} s a step, {faults} page faults, {megabytes} MB at most, loss {loss!r}"
            print(f"{kind:>10}: {words.format(**row)}", flush=True)
    medians = {kind: statistics.median(seconds) for kind, seconds in found.items()}
    print(f"a step takes {medians['kept'] / medians['given back']:.3f} of what it took")


if __name__ == "__main__":
    main()
