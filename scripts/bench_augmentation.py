"""Augmented patches per second and core: nnU-Net's pipeline, MONAI's stock dictionary transforms, and medunet's.

    python scripts/bench_augmentation.py --nnunet PYTHON [--rounds 5] [--patches 100]

PYTHON is an interpreter with nnunetv2 and batchgeneratorsv2; without it nnU-Net is left out. Each contender is a
process of its own with one thread. It holds the same kind of volume in memory, cuts what it needs around a random place
and augments it. The contenders take turns, round by round; a figure is the median over the rounds.

What is drawn is the same for all: rotation 0.2 (30 degrees; 180 in 2D), zoom 0.2, noise 0.1, blur 0.2 x 0.5 per
channel, brightness 0.15, contrast 0.15, low resolution 0.25 x 0.5 per channel, inverted gamma 0.1, gamma 0.3, mirroring
0.5 per axis; in the second table elastic deformation 0.2. Where a contender differs, it is to its advantage: MONAI has
one affine transform for rotation and zoom (chance 0.36), which gets a patch without a margin, and its blur and low
resolution act on all channels at once with half the chance; nnU-Net makes no lower resolutions of the label.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CASES = [((40, 56, 40), 1), ((40, 56, 40), 4), ((96, 96, 96), 1), ((96, 96, 96), 4), ((512, 512), 1)]
ELASTIC = 0.2
WORK = 40 * 56 * 40  # voxels of a patch that is made --patches times in a round; larger ones fewer times
Maker = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nnunet", help="an interpreter with nnunetv2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patches", type=int, default=100, help="of the smallest size, per round and contender")
    parser.add_argument("--child", choices=list(MAKERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        serve(MAKERS[arguments.child])
        return
    peers = {"monai": sys.executable, "medunet": sys.executable}
    peers = {"nnunet": arguments.nnunet, **peers} if arguments.nnunet else peers
    children = {name: start(name, python) for name, python in peers.items()}
    try:
        for elastic in (0.0, ELASTIC):
            print(f"\nElastic deformation: chance {elastic:g}\n\n{header(list(children))}", flush=True)
            for shape, channels in CASES:
                print(row(children, {"shape": shape, "channels": channels, "elastic": elastic}, arguments), flush=True)
    finally:
        for child in children.values():
            child.kill()


def start(name: str, python: str) -> subprocess.Popen[str]:
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    root = str(Path(__file__).resolve().parents[1])
    places = {"nnUNet_raw": root, "nnUNet_preprocessed": root, "nnUNet_results": root}
    path = {} if name == "nnunet" else {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    command = [python, __file__, "--child", name]
    environment = {**os.environ, **one, **places, **path}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def ask(child: subprocess.Popen[str], job: dict[str, Any]) -> float:
    """Seconds per patch."""
    assert child.stdin
    assert child.stdout
    child.stdin.write(json.dumps(job) + "\n")
    child.stdin.flush()
    for line in child.stdout:
        if line.startswith("seconds "):
            return float(line.split()[1])
    raise SystemExit("a contender ended early; its messages are above")


def header(names: Sequence[str]) -> str:
    peers = [name for name in names if name != "medunet"]
    columns = ["patch", "channels", *(f"{n} patches/s" for n in names), *(f"medunet / {n}" for n in peers)]
    return "| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|"


def row(children: dict[str, subprocess.Popen[str]], job: dict[str, Any], arguments: argparse.Namespace) -> str:
    count = max(30, round(arguments.patches * WORK / math.prod(job["shape"]) / math.sqrt(job["channels"])))
    for child in children.values():
        ask(child, {**job, "patches": max(10, count // 3)})  # nnU-Net times its kinds of blur at first
    seconds: dict[str, list[float]] = {name: [] for name in children}
    for _ in range(arguments.rounds):
        for name, child in children.items():
            seconds[name].append(ask(child, {**job, "patches": count}))
    rate = {name: 1 / statistics.median(values) for name, values in seconds.items()}
    ratios = [f"{rate['medunet'] / rate[name]:.2f}" for name in rate if name != "medunet"]
    rates = [f"{value:.1f}" for value in rate.values()]
    size = " x ".join(map(str, job["shape"]))
    return "| " + " | ".join([f"{size}", str(job["channels"]), *rates, *ratios]) + " |"


def serve(make: Callable[..., Maker]) -> None:
    """Answer each line of JSON with the seconds per patch."""
    import torch

    torch.set_num_threads(1)
    made: tuple[str, Maker] | None = None
    for line in sys.stdin:
        job = json.loads(line)
        count, key = job.pop("patches"), json.dumps(job)
        if made is None or made[0] != key:
            made = (key, make(Volume(job["shape"], job["channels"]), tuple(job["shape"]), job["elastic"]))
        since = time.perf_counter()
        for _ in range(count):
            made[1]()
        print(f"seconds {(time.perf_counter() - since) / count}", flush=True)


class Volume:
    """Noise and three round classes in memory; boxes around random places, padded where the volume ends."""

    def __init__(self, shape: Sequence[int], channels: int) -> None:
        import numpy as np
        import torch

        self.random = np.random.default_rng(0)
        size = (200,) * 3 if len(shape) == 3 else (900, 900)
        self.image = torch.randn(channels, *size, generator=torch.Generator().manual_seed(0))
        axes = [torch.linspace(-1, 1, n) for n in size]
        away = sum((axis**2).view(-1, *(1,) * (len(size) - 1 - i)) for i, axis in enumerate(axes))
        self.label = ((away < 0.7).to(torch.int16) + (away < 0.4) + (away < 0.1)).to(torch.int16)[None]
        self.patch = tuple(shape)

    def place(self) -> list[int]:
        """First voxel of a random patch inside."""
        return [int(self.random.integers(n - p + 1)) for n, p in zip(self.label.shape[1:], self.patch, strict=True)]

    def box(self, extent: Sequence[int], fill: int = 0) -> tuple[Any, Any]:
        """Views (copies where padded) of `extent` voxels around a random patch."""
        from torch.nn.functional import pad

        begin = [s - (e - p) // 2 for s, e, p in zip(self.place(), extent, self.patch, strict=True)]
        cut = [(max(0, b), min(n, b + e)) for b, e, n in zip(begin, extent, self.label.shape[1:], strict=True)]
        lacks = [(low - b, b + e - high) for (low, high), b, e in zip(cut, begin, extent, strict=True)]
        inside = (slice(None), *(slice(low, high) for low, high in cut))
        image, label = self.image[inside], self.label[inside]
        if any(n for pair in lacks for n in pair):
            margin = [n for pair in reversed(lacks) for n in pair]
            return pad(image, margin), pad(label, margin, value=fill)
        return image, label


def nnunet(volume: Volume, shape: tuple[int, ...], elastic: float) -> Maker:
    """The transforms of nnUNetTrainer 2.8."""
    import numpy as np
    from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    np.random.seed(0)
    most = math.pi / 6 if len(shape) == 3 else math.pi
    span = (-most, most)
    transforms = nnUNetTrainer.get_training_transforms(
        np.array(shape), span, None, tuple(range(len(shape))), False, use_mask_for_norm=[False]
    )
    transforms.transforms[0].p_elastic_deform = elastic
    transforms.transforms[0].elastic_deform_magnitude = (0, 5)
    extent = [int(n) for n in get_patch_size(np.array(shape), span, span, span, (0.85, 1.25))]

    def one() -> Any:
        image, label = volume.box(extent, fill=-1)
        return transforms(image=image.clone(), segmentation=label.clone())

    return one


def monai(volume: Volume, shape: tuple[int, ...], elastic: float) -> Maker:
    """Stock dictionary transforms of the same kinds."""
    from monai import transforms as mt

    both, modes = ["image", "label"], ("bilinear", "nearest")
    up = "trilinear" if len(shape) == 3 else "bilinear"
    most = math.pi / 6 if len(shape) == 3 else math.pi
    spatial = [
        mt.RandAffined(
            both,
            prob=0.36,
            rotate_range=(most,) * (3 if len(shape) == 3 else 1),
            scale_range=((-0.3, 0.4),) * len(shape),
            mode=modes,
            padding_mode="border",
        )
    ]
    if elastic and len(shape) == 3:
        spatial.append(mt.Rand3DElasticd(both, (5, 7), (50, 150), prob=elastic, mode=modes, padding_mode="border"))
    elif elastic:
        spatial.append(mt.Rand2DElasticd(both, (100, 100), (1, 3), prob=elastic, mode=modes, padding_mode="border"))
    sigma = {f"sigma_{axis}": (0.5, 1.0) for axis in "xyz"}
    transforms = mt.Compose(
        [
            *spatial,
            mt.RandGaussianNoised("image", prob=0.1, std=0.1),
            mt.RandGaussianSmoothd("image", prob=0.2 * 0.5, **sigma),
            mt.RandScaleIntensityd("image", prob=0.15, factors=0.25),
            mt.RandScaleIntensityFixedMeand("image", prob=0.15, factors=0.25, preserve_range=True, fixed_mean=True),
            mt.RandSimulateLowResolutiond("image", prob=0.25 * 0.5, zoom_range=(0.5, 1.0), upsample_mode=up),
            mt.RandAdjustContrastd("image", prob=0.1, gamma=(0.7, 1.5), invert_image=True, retain_stats=True),
            mt.RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
            *(mt.RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(len(shape))),
        ]
    ).set_random_state(0)

    def one() -> Any:
        image, label = volume.box(shape)
        return transforms({"image": image.clone(), "label": label.clone()})

    return one


def medunet(volume: Volume, shape: tuple[int, ...], elastic: float) -> Maker:
    """Ours."""
    import numpy as np

    from medunet.training.augment import Augmentation

    most = math.pi / 6 if len(shape) == 3 else math.pi
    augmentation = Augmentation(
        shape,
        channels=len(volume.image),
        mirror_axes=range(len(shape)),
        rotation=(most,) * (3 if len(shape) == 3 else 1),
        probabilities={"elastic": elastic},
    )
    generator = np.random.default_rng(0)

    def one() -> Any:
        draw = augmentation.draw(generator)
        return augmentation.apply(draw, *volume.box(draw.extent))

    return one


MAKERS: dict[str, Callable[..., Maker]] = {"nnunet": nnunet, "monai": monai, "medunet": medunet}


if __name__ == "__main__":
    main()
