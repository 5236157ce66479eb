"""Inference against its peers on the CPU: same weights, same volumes, same windows, each in a fresh process.

    python scripts/bench_inference.py --work DIR [--nnunet PYTHON] [--only speed,memory] [--quick]

Peers: `monai`, the plain MONAI pipeline; `nnunet`, nnU-Net's predictor from file to file, in an environment of its own
(a virtual environment with torch and nnunetv2; PYTHON is its interpreter); `medunet`, `medunet.predict` on a bundle.
DIR keeps the phantoms, the bundles and what was trained (4 minutes, once); results are written there as JSON.
Run it on a quiet machine; it prints Markdown tables.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from body_phantom import write_case
from peers_bundles import CLASSES, SPACING, picture_bundle, tiny_bundle, trained_bundle, write_pictures
from peers_run import Peers, Run, as_json
from peers_tables import show

SIZES = ((25, 100), (25, 200), (25, 400), (25, 800), (117, 400))  # classes, slices
SMALL_SIZES = ((25, 100), (25, 200), (117, 100))
ALL = ("monai", "nnunet", "medunet")
FLOAT32, MIXED = {"inferer::amp": False}, {"inferer::amp": True}  # the latter is what plans say


@dataclass(frozen=True)
class Bench:
    """Where everything lies, who runs, and whether sizes are those of a smoke test."""

    work: Path
    peers: Peers
    quick: bool
    softmax: bool
    sizes: tuple[tuple[int, int], ...]
    spacing: tuple[float, ...]
    rounds: int = 1

    def pick(self, full: Any, small: Any) -> Any:
        """`full`, or `small` in a smoke test."""
        return small if self.quick else full

    def volume(self, name: str, shape: Sequence[int], spacing: Sequence[float] = SPACING, air: float = 0.1) -> Path:
        """A body that training did not see."""
        size = "x".join(map(str, shape))
        return write_case(self.work / "cases", f"{name}_{size}", shape, spacing, 1000, air, CLASSES)[0]

    def run(
        self, peer: str, bundle: Path, inputs: Sequence[Path], name: str, overrides: dict[str, Any] | None = None
    ) -> Run:
        """One peer on some files; its results stay in DIR/runs/NAME_PEER. `overrides` are medunet's."""
        options = {"softmax": self.softmax} if peer == "monai" else {}
        peers = replace(self.peers, overrides={**self.peers.overrides, **(overrides or {})})
        return peers.run(peer, bundle, inputs, self.work / "runs" / f"{name}_{peer}", **options)


# ---- cases


def speed(bench: Bench, minutes: float) -> dict[str, Any]:
    """256 x 256 x 200 at the network's spacing, and agreement there and on a case with another spacing."""
    bundle = trained_bundle(bench.work, minutes)
    shutil.rmtree(bundle / "models" / "compiled", ignore_errors=True)  # the first call measures and converts
    same = bench.volume("speed", bench.pick((256, 256, 200), (128, 128, 112)))
    other = bench.volume("spacing", bench.pick((200, 200, 96), (120, 120, 64)), (1.0, 1.0, 2.0))
    everywhere = {"inferer::region": "all", **FLOAT32}  # the windows and the precision of the others
    order = [*ALL, "medunet", *ALL * (bench.rounds - 1)]
    runs = [bench.run(peer, bundle, [same], "speed", everywhere) for peer in order]
    further = [bench.run(peer, bundle, [other], "spacing", everywhere) for peer in ALL]
    return {
        "runs": runs,
        "spacing": further,
        "agreement": [
            *compare(runs, same, "network's grid"),
            *compare(further, other, "original grid, other spacing"),
        ],
    }


def air(bench: Bench, minutes: float) -> dict[str, Any]:
    """A body in a field of view of which half is air: windows everywhere, or over the body as plans say."""
    bundle = trained_bundle(bench.work, minutes)
    image = bench.volume("air", bench.pick((384, 384, 96), (224, 224, 96)), air=0.5)
    everywhere, body = {"inferer::region": "all"}, {"inferer::region": "body"}
    jobs = {
        "MONAI": ("monai", {}),
        "everywhere, float32": ("medunet", everywhere | FLOAT32),
        "over the body, float32": ("medunet", body | FLOAT32),
        "everywhere": ("medunet", everywhere | MIXED),
        "over the body": ("medunet", body | MIXED),
    }
    runs, maps = {}, {}
    for name, (peer, overrides) in jobs.items():
        runs[name] = bench.run(peer, bundle, [image], "air", overrides)
        maps[name] = labels_of(runs[name])
    maps["phantom"] = np.asarray(nibabel().load(image.parents[1] / "labels" / image.name).dataobj)
    pairs = [("over the body", "everywhere"), ("everywhere, float32", "MONAI"), ("everywhere", "MONAI")]
    pairs += [(name, "phantom") for name in jobs]
    return {
        "runs": list(runs.values()),
        "names": list(runs),
        "windows": air_windows(image, 96, 48),
        "agreement": [{"where": "half air", "of": a, "with": b, **agreement(maps[a], maps[b])} for a, b in pairs],
    }


def memory(bench: Bench, _: float) -> dict[str, Any]:
    """25 and 117 classes at 512 x 512 with more and more slices and hardly any network."""
    edge = bench.pick(512, 128)
    rows, runs = [], []
    for classes, slices in bench.sizes or bench.pick(SIZES, SMALL_SIZES):
        image = bench.volume("memory" + _tag(bench.spacing), (edge, edge, slices), bench.spacing)
        for peer in ALL if (classes, slices) == (25, 100) else ("medunet",):
            run = bench.run(peer, tiny_bundle(bench.work, classes), [image], f"memory_{classes}_{slices}")
            runs.append(run)
            rows.append({"classes": classes, "shape": [edge, edge, slices], "voxels": edge * edge * slices})
    return {"runs": runs, "sizes": rows, "spacing_mm": list(bench.spacing)}


def _tag(spacing: Sequence[float]) -> str:
    """Part of a volume's name when it does not have the network's spacing."""
    return "" if tuple(spacing) == SPACING else "_" + "_".join(f"{value:g}" for value in spacing)


def small(bench: Bench, _: float) -> dict[str, Any]:
    """Many PNG pictures in one call; medunet in float32, and as plans say."""
    count = bench.pick(500, 20)
    bundle = picture_bundle(bench.work, bench.pick(2.0, 0.3))
    images, _labels = write_pictures(bench.work / f"unseen_{count}", count, seed=7)
    jobs = [("nnunet", {}), ("medunet", FLOAT32), ("medunet", MIXED), ("medunet", MIXED)]
    return {"runs": [bench.run(peer, bundle, images, "small", given) for peer, given in jobs], "images": count}


def overhead(bench: Bench, minutes: float) -> dict[str, Any]:
    """Everything but the network, as a share of the network's time, from the figures of `speed`."""
    path = bench.work / "results.json"
    known = json.loads(path.read_text()).get(_key("speed", bench)) if path.is_file() else None
    runs = [Run(**run) for run in known["runs"]] if known else speed(bench, minutes)["runs"]
    return {"runs": runs}


def precision(bench: Bench, minutes: float) -> dict[str, Any]:
    """The network in mixed precision beside PyTorch in float32: labels of one volume, and seconds of each."""
    load_segmenter = importlib.import_module("medunet.bundle.segmenting").load_segmenter
    bundle, image = trained_bundle(bench.work, minutes), bench.volume("speed", (128, 128, 112))
    jobs = {
        "torch, float32": {"inferer::backend": "torch", **FLOAT32},
        "torch, mixed": {"inferer::backend": "torch", **MIXED},
        "openvino, float32": {"inferer::backend": "openvino", **FLOAT32},
        "openvino, mixed": {"inferer::backend": "openvino", **MIXED},
    }
    maps, seconds = {}, {}
    for name, overrides in jobs.items():
        parts = load_segmenter(bundle, {"inferer::region": "all", **overrides})
        item = parts.preprocessing({"image": str(image)})
        seen = parts.inferer.see(item["image"], parts.network)
        parts.inferer.prepare(seen, parts.network)
        start = time.perf_counter()
        maps[name] = parts.inferer.segment([seen], parts.network)[0].labels
        seconds[name] = time.perf_counter() - start
    first, *others = jobs
    rows = [{"where": "network's grid", "of": n, "with": first, **agreement(maps[n], maps[first])} for n in others]
    return {"runs": [], "seconds": seconds, "agreement": rows}


def window(bench: Bench, minutes: float) -> dict[str, Any]:
    """Seconds of one window in every way that this machine can run the network: the fastest of some, in turns."""
    torch = importlib.import_module("torch")
    backends = importlib.import_module("medunet.inference.backends")
    ways = importlib.import_module("medunet.inference.backends.pytorch").WAYS
    load_segmenter = importlib.import_module("medunet.bundle.segmenting").load_segmenter
    parts = load_segmenter(trained_bundle(bench.work, minutes), {"inferer::backend": "torch"})
    edges, device = parts.inferer.patch, next(parts.network.parameters()).device
    example = torch.randn((1, 1, *edges), generator=torch.Generator().manual_seed(0)).to(device)
    made: dict[str, Any] = {}
    first: dict[str, float] = {}
    makers = {
        way: partial(backends.TorchBackend, copy.deepcopy(parts.network), device, device.type == "cuda", way)
        for way in ways
    }
    if device.type == "cpu":
        for name in backends.NAMES[1:]:
            makers[name] = partial(backends.make_backend, name, parts.network, device, edges, 1)
    for name, maker in makers.items():
        start = time.perf_counter()
        made[name] = maker()
        made[name](example)
        first[name] = time.perf_counter() - start
    best = dict.fromkeys(made, float("inf"))
    for _ in range(bench.pick(4, 1)):
        for name, backend in made.items():
            start = time.perf_counter()
            float(backend(example).flatten()[0])  # waits for the device
            best[name] = min(best[name], time.perf_counter() - start)
    return {"runs": [], "seconds": best, "first": first}


CASES: dict[str, Callable[[Bench, float], dict[str, Any]]] = {
    "speed": speed, "air": air, "memory": memory, "small": small, "overhead": overhead,
    "precision": precision, "window": window,
}  # fmt: skip


# ---- comparing


def nibabel() -> Any:
    """Imported when needed."""
    return importlib.import_module("nibabel")


def labels_of(run: Run) -> np.ndarray | None:
    """The label map that a run left."""
    found = sorted(Path(run.output).glob("*.nii.gz")) if run.state == "done" else []
    return np.asarray(nibabel().load(found[0]).dataobj).astype(np.uint8) if found else None


def compare(runs: Sequence[Run], image: Path, where: str) -> list[dict[str, Any]]:
    """Each peer with `monai`, and with the phantom's own labels."""
    truth = np.asarray(nibabel().load(image.parents[1] / "labels" / image.name).dataobj)
    maps = {run.peer: labels_of(run) for run in runs}
    pairs = [("medunet", "monai"), ("nnunet", "monai"), *((peer, "phantom") for peer in ALL)]
    maps["phantom"] = truth
    return [
        {"where": where, "of": a, "with": b, **agreement(maps[a], maps[b])}
        for a, b in pairs
        if maps.get(a) is not None and maps.get(b) is not None
    ]


def agreement(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Share of equal voxels where either has foreground, and the Dice of every class."""
    union = (first > 0) | (second > 0)
    dice = {}
    for value in np.union1d(np.unique(first), np.unique(second))[1:]:
        one, two = first == value, second == value
        dice[int(value)] = round(float(2 * (one & two).sum() / (one.sum() + two.sum())), 6)
    return {
        "equal": round(float((first == second)[union].mean()), 6),
        "different_voxels": int((first != second).sum()),
        "share": float((first != second).mean()),
        "dice": dice,
    }


def air_windows(path: Path, window: int, step: int) -> float:
    """Share of the windows that hold nothing but air."""
    tissue = np.asarray(nibabel().load(path).dataobj) > -500
    starts = [sorted({min(s, n - window) for s in range(0, n, step)}) for n in tissue.shape]
    empty = [
        not tissue[x : x + window, y : y + window, z : z + window].any()
        for x in starts[0] for y in starts[1] for z in starts[2]
    ]  # fmt: skip
    return sum(empty) / len(empty)


# ---- running


def machine() -> str:
    """A line on the machine."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        found = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = found[0].split(":")[1].strip() if found else model
    memory_gb, load = psutil.virtual_memory().total / 1e9, os.getloadavg()[0]
    return f"{model}, {os.cpu_count()} cores, {memory_gb:.0f} GB, Python {platform.python_version()}; load {load:.1f}"


def _key(name: str, bench: Bench) -> str:
    return f"{name}, quick" if bench.quick else name


def keep(bench: Bench, name: str, result: dict[str, Any]) -> None:
    """Add a case to DIR/results.json."""
    path = bench.work / "results.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    plain = {k: [as_json(r) for r in v] if k in ("runs", "spacing") else v for k, v in result.items()}
    known[_key(name, bench)] = {"machine": machine(), **plain}
    path.write_text(json.dumps(known, indent=2))


def _sizes(text: str) -> tuple[tuple[int, int], ...]:
    """``25:100,25:200`` -> ((25, 100), (25, 200))."""
    pairs = (pair.split(":") for pair in text.split(","))
    return tuple((int(classes), int(slices)) for classes, slices in pairs)


def _spacing(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in text.split(","))


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="phantoms, bundles and results; kept between runs")
    parser.add_argument(
        "--nnunet", help="interpreter of an environment with nnunetv2; without it that peer is left out"
    )
    parser.add_argument("--only", help=f"some of {','.join(CASES)}")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--minutes", type=float, default=4.0, help="to train the 3D network, once")
    parser.add_argument("--backend", help="passed on to medunet; network seconds are those of torch alone")
    parser.add_argument("--softmax", action="store_true", help="the MONAI pipeline restores probabilities, not logits")
    parser.add_argument("--sizes", type=_sizes, default=(), help="of memory, as CLASSES:SLICES,...; peers run 25:100")
    parser.add_argument("--spacing", type=_spacing, default=SPACING, help="of memory's volumes, in mm: X,Y,Z")
    parser.add_argument("--rounds", type=int, default=1, help="of speed: on machines that are not always equally fast")
    parser.add_argument("--limit", type=float, help="GB at which a child is ended; 80%% of what is free when not given")
    return parser.parse_args()


def main() -> None:
    """Run the cases one after the other, and print and keep each as soon as it is there."""
    chosen = options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that a child is ended too
    limit = chosen.limit * 1e9 if chosen.limit else 0.8 * psutil.virtual_memory().available
    overrides = {"inferer::backend": chosen.backend} if chosen.backend else {}
    chosen.work.mkdir(parents=True, exist_ok=True)
    peers = Peers(chosen.nnunet, overrides, int(limit))
    bench = Bench(
        chosen.work.resolve(), peers, chosen.quick, chosen.softmax, chosen.sizes, chosen.spacing, chosen.rounds
    )
    print(machine() + "\n")
    for name in chosen.only.split(",") if chosen.only else CASES:
        result = CASES[name](bench, chosen.minutes)
        keep(bench, name, result)
        print(f"## {_key(name, bench)}\n\n{CASES[name].__doc__}\n\n{show(name, result)}", flush=True)


if __name__ == "__main__":
    main()
