#!/usr/bin/env python3
"""What training takes: Dice against minutes, a step beside one without loading, compiled steps, and memory.

    python scripts/bench_training.py DATASET [--only curve,step,compile,memory] [--minutes 10] [--set KEY=VALUE]
                                     [--bundle BUNDLE]

DATASET is an MSD folder such as Task04_Hippocampus. The parts:

curve    `medunet train --minutes N --fold 0` as a program: steps, final and best mean Dice, and the curve on the way
step     the loader with its augmentation beside the same steps with batches that are in memory, in turns, for several
         rounds: for the planned patch and network, and on CUDA for 96^3 as well
compile  the planned network's step plain, with channels together, and compiled, in turns; seconds until the first
         compiled step is done, and after how many steps that is won back
memory   100 volumes of 256 x 256 x 200 (synthetic) that train for a few steps: anonymous memory of all processes

What patches cost by themselves is measured by bench_store.py, what augmentation costs by bench_augmentation.py.
``--bundle``: a bundle planned from DATASET (else one is planned). Run it on a quiet machine; it prints Markdown.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]
os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])

PARTS = ("curve", "step", "compile", "memory")
Step = Callable[[], None]


def medunet(*words: object) -> float:
    """Seconds that a verb takes as a program."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "medunet", *map(str, words)], check=True, stdout=sys.stderr)
    return time.perf_counter() - start


def loaded(bundle: Path, overrides: dict[str, Any]) -> Any:
    """The parser of a training run and its trainer, with the store complete and memory kept, as when a run begins."""
    from medunet.bundle.running import load_workflow
    from medunet.training.allocator import keep_freed_memory, return_freed_memory

    parser = load_workflow(bundle, "train.yaml", "train", {"quiet": True, **overrides}).parser
    parser.get_parsed_content("train::dataset").prepare()
    return_freed_memory()
    keep_freed_memory()
    return parser


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print Markdown."""
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


# ---- Dice against minutes


def curve(dataset: Path, bundle: Path, options: argparse.Namespace) -> None:
    """Train for real and read what the run left."""
    device = ["--device", options.device] if options.device else []
    changed = [word for pair in options.set for word in ("--set", pair)]
    seconds = medunet("train", bundle, "--minutes", options.minutes, "--fold", 0, *device, *changed)
    fold = bundle / "eval" / "fold_0"
    rows = [json.loads(line) for line in (fold / "log.jsonl").read_text().splitlines()]
    scores = json.loads((fold / "scores.json").read_text())
    points = [row for row in rows if row["event"] == "validate"]
    classes = list(scores["classes"])
    mean = scores["summary"]["dice"]["mean"]
    best = max(points, key=lambda row: row["dice"])
    print(f"\n{options.minutes:g} minutes asked for, {seconds / 60:.2f} taken; {points[-1]['step']} steps", end="")
    print(f"; mean Dice {mean:.4f} at the end, {best['dice']:.4f} at best (step {best['step']}), averaged weights")
    lines = [
        [f"{row['time'] / 60:.2f}", str(row["step"]), f"{row['dice']:.4f}"]
        + [f"{row['classes'][name]:.4f}" for name in classes]
        for row in points
    ]
    final = [f"{scores['classes'][name]['dice']['mean']:.4f}" for name in classes]
    lines.append([f"{seconds / 60:.2f}", "scores.json", f"{mean:.4f}", *final])
    table("Dice on the way", ["minutes", "step", "mean Dice", *classes], lines)
    if options.png:
        draw(points, classes, options.png)


def draw(points: Sequence[dict[str, Any]], classes: Sequence[str], path: Path) -> None:
    """The curve as a small picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 2.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    minutes = [row["time"] / 60 for row in points]
    axes.plot(minutes, [row["dice"] for row in points], "o-", color="#1c2430", label="mean")
    for name in classes:
        axes.plot(minutes, [row["classes"][name] for row in points], ".--", linewidth=1, label=name)
    axes.set(xlabel="minutes", ylabel="Dice, validation cases")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


# ---- steps


def step_of(trainer: Any, network: Any, batches: Iterator[Any]) -> Step:
    """A real training step on the next batch."""
    import torch

    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler(trainer.state.device.type, enabled=bool(trainer.amp))

    def step() -> None:
        image, label = trainer.prepare_batch(next(batches), trainer.state.device, trainer.non_blocking)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(trainer.state.device.type, enabled=bool(trainer.amp)):
            loss = trainer.loss_function(trainer.inferer(image, network), label)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if trainer.state.device.type == "cuda":
            torch.cuda.synchronize()

    return step


def in_turns(steps: dict[str, Step], rounds: int, each: int) -> dict[str, list[float]]:
    """Seconds per step of each contender, round by round; a first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(each):
                step()
            if number:
                seconds[name].append((time.perf_counter() - start) / each)
    return seconds


def endless(loader: Any) -> Iterator[Any]:
    """Pass after pass."""
    while True:
        yield from loader


def again(batches: Sequence[Any]) -> Iterator[Any]:
    """The same batches over and over."""
    while True:
        yield from batches


def pipeline(bundle: Path, options: argparse.Namespace) -> None:
    """Steps with the real loader beside steps with batches that are there already."""
    import torch

    sizes: list[dict[str, Any]] = [{}]
    if options.device != "cpu" and torch.cuda.is_available():
        plan = {"patch_size": [96, 96, 96], "batch_size": 2}
        sizes.append({f"@_meta_::plan::{key}": value for key, value in plan.items()})
    rows = []
    for size in sizes:
        parser = loaded(with_plan(bundle, size), overrides_of(options))
        trainer = parser.get_parsed_content("train::trainer")
        batches = endless(trainer.data_loader)
        first = next(batches)
        kept = [{key: value.to(trainer.state.device) for key, value in first.items()}]
        network = trainer.network
        steps = {"loader": step_of(trainer, network, batches), "in memory": step_of(trainer, network, again(kept))}
        seconds = in_turns(steps, options.rounds, options.steps)
        ratios = [a / b for a, b in zip(seconds["loader"], seconds["in memory"], strict=True)]
        medians = [statistics.median(seconds[name]) for name in steps]
        trainer.data_loader.close()
        patch = " x ".join(str(n) for n in first["image"].shape[2:])
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        rows.append([patch, str(len(first["image"])), *(f"{1e3 * m:.1f}" for m in medians),
                     f"{medians[0] / medians[1]:.3f}", spread])  # fmt: skip
    head = ["patch", "batch", "ms a step, loader and augmentation", "ms a step, in memory", "ratio", "in the rounds"]
    table("A training step", head, rows)


def with_plan(bundle: Path, changed: dict[str, Any]) -> Path:
    """The bundle, or a copy beside it whose plan has other numbers."""
    import shutil

    if not changed:
        return bundle
    other = Path(shutil.copytree(bundle, bundle.with_name(f"{bundle.name}_other"), dirs_exist_ok=True))
    path = other / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["plan"] |= {key.rsplit("::", 1)[-1]: value for key, value in changed.items()}
    path.write_text(json.dumps(metadata))
    return other


def overrides_of(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of the run."""
    return {"device::name": options.device} if options.device else {}


def compiled(bundle: Path, work: Path, options: argparse.Namespace) -> None:
    """The planned network's step in four ways; nothing that was compiled before is used."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(work / "inductor")
    from medunet.training import place

    trainer = loaded(bundle, overrides_of(options)).get_parsed_content("train::trainer")
    device, plain = trainer.state.device, trainer.network
    batch = {key: value.to(device) for key, value in next(iter(trainer.data_loader)).items()}
    trainer.data_loader.close()
    choices = {
        "plain": {},
        "channels_last": {"channels_last": True},
        "compile": {"compile": True},
        "compile, channels_last": {"compile": True, "channels_last": True},
    }
    steps, first = {}, {}
    for name, choice in choices.items():
        steps[name] = step_of(trainer, place(copy.deepcopy(plain), device, **choice), again([batch]))
        start = time.perf_counter()
        steps[name]()
        first[name] = time.perf_counter() - start
    seconds = {
        name: statistics.median(values) for name, values in in_turns(steps, options.rounds, options.steps).items()
    }
    rows = []
    for name, mean in seconds.items():
        spent, won = first[name] - mean, seconds["plain"] - mean
        pays = f"{spent / won:.0f}" if won > 0 else "never"
        words = [f"{spent:.1f}", pays] if "compile" in name else ["", ""]
        rows.append([name, f"{1e3 * mean:.1f}", f"{mean / seconds['plain']:.3f}", *words])
    columns = ["network", "ms a step", "of plain", "seconds to compile", "steps until it pays"]
    size = " x ".join(str(n) for n in batch["image"].shape)
    table(f"The planned network, batch {size}, on {device}", columns, rows)


# ---- memory


def memory(work: Path, options: argparse.Namespace) -> None:
    """Plan and train on many synthetic volumes; the largest sum of anonymous memory of all processes."""
    import psutil
    from bench_store import anonymous

    data = work / "large"
    data.mkdir()
    entries = [large_case(data, number) for number in range(options.volumes)]
    facts = {"name": "large", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "organ", "2": "lesion"}}
    (data / "dataset.json").write_text(json.dumps({**facts, "training": entries}))
    bundle = work / "large_bundle"
    medunet("plan", data, "--bundle", bundle, "--set", "steps_per_epoch=4", "--set", "base_channels=16",
            "--memory", "3GB")  # fmt: skip
    command = [sys.executable, "-m", "medunet", "train", str(bundle), "--epochs", "1", "--set", "validations=0",
               "--set", f"train::dataloader::num_workers={options.workers}",
               *(["--device", options.device] if options.device else [])]  # fmt: skip
    process = subprocess.Popen(command, stdout=sys.stderr)
    peaks = {"preparing": 0, "training": 0}
    log, done = bundle / "eval" / "fold_0" / "log.jsonl", threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            stage = "training" if log.is_file() else "preparing"
            total = 0
            for pid in tree(psutil, process.pid):
                try:
                    total += anonymous(pid)
                except OSError:
                    continue
            peaks[stage] = max(peaks[stage], total)
            if options.until_scored and log.is_file() and '"train"' in log.read_text():
                process.terminate()
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    done.set()
    watcher.join()
    if code not in (0, -15):
        raise SystemExit(f"the run failed with code {code}")
    stored = sum(path.stat().st_size for path in (bundle / "eval" / "store").glob("*.case")) / 1e9
    columns = ["volumes", "GB stored", "loading processes", "GB while preparing", "GB while training"]
    row = [
        str(options.volumes),
        f"{stored:.1f}",
        str(options.workers),
        *(f"{peak / 1e9:.2f}" for peak in peaks.values()),
    ]
    table("Anonymous memory of all processes", columns, [row])


def large_case(folder: Path, number: int) -> dict[str, str]:
    """One of four volumes with a voxel of its own: the index takes no case twice."""
    from bench_store import write_case

    from medunet.data.volume import read_volume, write_image

    source = {key: folder / f"{key}_{number % 4}.nii.gz" for key in ("image", "label")}
    if number < 4:
        write_case(folder, number)
        return {key: path.name for key, path in source.items()}
    volume = read_volume(str(source["image"]))
    changed = volume.array[0].copy()
    changed[0, 0, 0] += number
    names = {key: f"case{number:03d}_{key}.nii.gz" for key in source}
    write_image(folder / names["image"], changed, volume.grid)
    os.link(source["label"], folder / names["label"])
    return names


def tree(psutil: Any, pid: int) -> list[int]:
    """A process and its children."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the curve")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the curve's run")
    parser.add_argument("--png", type=Path, help="also draw the curve, such as docs/images/training_curve.png")
    parser.add_argument("--bundle", type=Path, help="planned from DATASET; it is trained by the curve")
    parser.add_argument("--device", help="cpu or cuda; by default what medunet picks")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=8, help="of each contender in a round")
    parser.add_argument("--volumes", type=int, default=100, help="of the memory part")
    parser.add_argument("--workers", type=int, default=2, help="loading processes of the memory part")
    parser.add_argument("--until-scored", action="store_true", help="memory: end the run before it validates")
    parser.add_argument("--work", type=Path, help="where to write; the memory part takes 8 GB with 100 volumes")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if set(chosen) - set(PARTS):
        parser.error(f"--only takes {', '.join(PARTS)}; bench_store.py and bench_augmentation.py measure the rest")
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "monai", "medunet"))
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, ", end="")
    print(f"Python {platform.python_version()}, {versions}", flush=True)
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        work = Path(name)
        bundle = options.bundle or work / "bundle"
        if options.bundle is None and set(chosen) - {"memory"}:
            device = ["--device", options.device] if options.device else []
            medunet("plan", options.dataset, "--bundle", bundle, *device)
        if "curve" in chosen:
            curve(options.dataset, bundle, options)
        if "step" in chosen:
            pipeline(bundle, options)
        if "compile" in chosen:
            compiled(bundle, work, options)
        if "memory" in chosen:
            memory(work, options)


if __name__ == "__main__":
    main()
