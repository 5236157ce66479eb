"""The figures of docs/benchmarks.md: help, memory, training and prediction on an MSD dataset, one after the other.

    python scripts/bench_journey.py DATASET [--minutes 10]

Run it on a quiet machine; it prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PEAK = """
import sys
from dataclasses import replace
from pathlib import Path
from medunet.data.examine import examine
from medunet.data.index import read_index
from medunet.planning import fingerprint
index, count = read_index(Path(sys.argv[1])), int(sys.argv[2])
fingerprint(*examine(replace(index, training=index.training[:count])))
print(int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]))  # not ru_maxrss: that counts the parent
"""


def medunet(*words: object) -> float:
    """Seconds that a verb takes as a command."""
    start = time.perf_counter()
    subprocess.run([Path(sys.executable).parent / "medunet", *map(str, words)], check=True, capture_output=True)
    return time.perf_counter() - start


def repeated(dataset: Path, folder: Path, count: int) -> Path:
    """The dataset with its cases copied (each slightly changed, so that none is a duplicate) up to `count`."""
    import numpy as np

    from medunet.data.index import read_index
    from medunet.data.volume import read_volume, write_image, write_label

    index, entries = read_index(dataset), []
    for number in range(count):
        case = index.training[number % len(index.training)]
        images, label = index.paths(case)
        volume = read_volume(images[0])
        changed = volume.array[0].astype(np.float32)
        changed[0, 0, 0] += number
        name = f"{number:04d}.nii.gz"
        write_image(folder / "i" / name, changed, volume.grid)
        write_label(folder / "l" / name, read_volume(str(label)).array[0], volume.grid)
        entries.append({"image": f"i/{name}", "label": f"l/{name}"})
    labels = {str(value): name for name, value in index.labels.items()}
    facts = {"name": "repeated", "modality": {"0": index.channels[0]}, "labels": labels, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    rows = [("`medunet --help`", f"{min(medunet('--help') for _ in range(5)):.2f} s")]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        many = repeated(options.dataset, work / "many", 400)
        peaks = [
            int(subprocess.run([sys.executable, "-c", PEAK, many, str(n)], check=True, capture_output=True).stdout)
            for n in (40, 400)
        ]
        rows.append(("fingerprint memory, 400 cases minus 40", f"{(peaks[1] - peaks[0]) * 1024 / 1e6:.1f} MB"))
        rows.append(("`medunet plan`", f"{medunet('plan', options.dataset, '--bundle', work / 'b'):.1f} s"))
        seconds = medunet("train", work / "b", "--minutes", options.minutes, "--fold", 0)
        scores = json.loads((work / "b" / "eval" / "fold_0" / "scores.json").read_text())
        dice = scores["summary"]["dice"]
        classes = ", ".join(f"{name} {values['dice']['mean']:.4f}" for name, values in scores["classes"].items())
        interval = "{:.4f} to {:.4f}".format(*dice["ci95"])
        rows.append(
            (f"`medunet train --minutes {options.minutes:g} --fold 0`, wall time of the command", f"{seconds:.0f} s")
        )
        rows.append(("mean Dice, final weights", f"{dice['mean']:.4f} (95% CI {interval}; {classes})"))
        images = sorted((options.dataset / "imagesTr").glob("*.nii.gz"))[:51]
        (work / "list.txt").write_text("\n".join(str(path.resolve()) for path in images))
        medunet("predict", work / "b", f"@{work / 'list.txt'}", "-o", work / "out")
        times = [case["seconds"] for case in json.loads((work / "out" / "status.json").read_text())["cases"]]
        rows.append(("`medunet predict`, first case", f"{times[0]:.2f} s"))
        rows.append(
            (f"`medunet predict`, mean of the next {len(times) - 1}", f"{sum(times[1:]) / len(times[1:]):.2f} s")
        )
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| what | figure |\n|---|---|")
    for what, figure in rows:
        print(f"| {what} | {figure} |")


if __name__ == "__main__":
    main()
