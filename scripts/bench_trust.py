#!/usr/bin/env python
"""Time packing, verifying and unpacking of a bundle, and the memory of verifying.

    python scripts/bench_trust.py [--channels 4 32 64]

Bundles are planned on small phantoms and have the weights of a fresh network, of `--channels` at the first of its five
levels. The reference run is timed apart, since it is the network's own work. Each verification is a process of its own;
"without torch" is one that finds neither torch nor monai, so that nothing is run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from medunet import verbs
from medunet.bundle import packing
from medunet.bundle.running import load_workflow
from medunet.data.phantom import write_dataset
from medunet.planning import Budget

CHILD = """
import sys, time
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
start = time.perf_counter()
from medunet import verbs
result = verbs.{verb}
assert result.verified, result.failure
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(time.perf_counter() - start, int(peak.split()[1]) / 1024)
"""
HEAVY = ("torch", "monai")


def main() -> None:
    """Make, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, nargs="+", default=[4, 32, 64])
    options = parser.parse_args()
    print(
        "| model.pt, MB | archive, MB | pack, s | reference, s | verify, s | without torch, s | peak, MB | unpack, s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MEDUNET_HOME"] = folder
        data = write_dataset(Path(folder) / "data", 6, 0, (64, 64, 64), (2.0, 2.0, 2.0))
        for channels in options.channels:
            print(row(data, Path(folder) / f"bundle_{channels}", channels), flush=True)


def row(data: Path, bundle: Path, channels: int) -> str:
    """All figures of one bundle."""
    settings = {"base_channels": channels, "patch_size": [64, 64, 64], "batch_size": 1}
    verbs.plan(data, bundle, Budget(memory=100_000_000_000), settings)
    network = load_workflow(bundle, "inference.yaml", "infer", {"device::name": "cpu"}).parser.get_parsed_content(
        "network"
    )
    (bundle / "models").mkdir()
    torch.save(network.state_dict(), bundle / "models" / "model.pt")
    archive = bundle.with_suffix(".zip")
    whole, reference = pack(bundle, archive)
    verified, _ = child(f"verify({str(archive)!r})", ())
    static, peak = child(f"verify({str(archive)!r})", HEAVY)
    unpacked, _ = child(f"unpack({str(archive)!r}, {str(bundle) + '_out'!r})", HEAVY)
    sizes = [(bundle / "models" / "model.pt").stat().st_size / 1e6, archive.stat().st_size / 1e6]
    figures = [whole - reference, reference, verified, static, peak, unpacked]
    return "| " + " | ".join(f"{value:.1f}" for value in sizes) + " | " + " | ".join(f"{v:.2f}" for v in figures) + " |"


def pack(bundle: Path, archive: Path) -> tuple[float, float]:
    """Seconds of packing, and of these of the reference run."""
    spent = []
    prove = packing._prove

    def timed(staging: Path) -> None:
        start = time.perf_counter()
        prove(staging)
        spent.append(time.perf_counter() - start)

    packing._prove = timed
    start = time.perf_counter()
    verbs.pack(bundle, archive)
    whole = time.perf_counter() - start
    packing._prove = prove
    return whole, spent[0]


def child(verb: str, absent: tuple[str, ...]) -> tuple[float, float]:
    """Seconds and peak megabytes of a verb in a process of its own, the start of Python not counted."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    code = CHILD.format(absent=absent, verb=verb)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    seconds, peak = done.stdout.split()
    return float(seconds), float(peak)


if __name__ == "__main__":
    main()
