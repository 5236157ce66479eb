"""The bundles of bench_inference.py, planned and trained with medunet's own commands on phantoms; kept between runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from body_phantom import body_phantom, write_training_set

SPACING = (1.5, 1.5, 1.5)  # mm, the network's
WINDOW = "normalization=[{scheme: ct, low: -300, high: 700, mean: 100, std: 200}]"  # HU; keeps fat apart from air
_ENOUGH = 0.8  # Dice, so that there is foreground to compare
CLASSES = 4  # of the trained networks
TINY = ("base_channels=2", "max_levels=1", "patch_size=[96,96,96]", "batch_size=1")  # next to no time in the network


def medunet(*words: object) -> None:
    """A verb as a command."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-m", "medunet", *map(str, words)], check=True, env=environment, stdout=sys.stderr)


def plan(dataset: Path, bundle: Path, settings: Sequence[str]) -> None:
    """`medunet plan` on the CPU."""
    pairs = [word for setting in settings for word in ("--set", setting)]
    medunet("plan", dataset, "--bundle", bundle, "--device", "cpu", "--memory", "64GB", *pairs)


def trained_bundle(work: Path, minutes: float) -> Path:
    """32 channels, four levels: trained with patches of 32^3, planned again for windows of 96^3 with those weights."""
    learner, bundle = work / "body_32", work / "body_96"
    if not (bundle / "models" / "model.pt").is_file():
        dataset = write_training_set(work / "bodies", 16, (64, 64, 48), SPACING, CLASSES)
        shared = ("base_channels=32", "max_levels=4", "batch_size=2", "warmup_steps=10", "learning_rate=0.004", WINDOW)
        plan(dataset, learner, (*shared, "patch_size=[32,32,32]"))
        medunet("train", learner, "--minutes", minutes, "--device", "cpu", "--set", "validations=1")
        dice = json.loads((learner / "eval" / "fold_0" / "scores.json").read_text())["summary"]["dice"]["mean"]
        if dice < _ENOUGH:
            print(f"Dice {dice:.2f}: delete {learner} and {bundle} and give more --minutes", file=sys.stderr)
        plan(dataset, bundle, (*shared, "patch_size=[96,96,96]"))
        (bundle / "models").mkdir(exist_ok=True)
        shutil.copy(learner / "models" / "model.pt", bundle / "models" / "model.pt")
    return bundle


def tiny_bundle(work: Path, classes: int) -> Path:
    """Two convolutions and a head with random weights, the same each time."""
    import torch

    from medunet.networks import UNet

    bundle = work / f"tiny_{classes}"
    weights = bundle / "models" / "model.pt"
    if not weights.is_file():
        dataset = write_training_set(work / f"bodies_{classes}", 2, (64, 64, 64), SPACING, classes)
        plan(dataset, bundle, TINY)
        arguments = json.loads((bundle / "configs" / "metadata.json").read_text())["plan"]["network"]
        torch.manual_seed(0)
        network = UNet(**{key: value for key, value in arguments.items() if key != "_target_"})
        weights.parent.mkdir(exist_ok=True)
        torch.save(network.state_dict(), weights)
    return bundle


def picture_bundle(work: Path, minutes: float) -> Path:
    """A 2D network of 16 channels for PNG pictures of 256 x 256, trained for some minutes."""
    bundle = work / f"pictures_2d_{minutes:g}_minutes"
    if not (bundle / "models" / "model.pt").is_file():
        dataset = work / "pictures"
        images, labels = write_pictures(dataset, 12, seed=0)
        entries = [
            {"image": str(i.relative_to(dataset)), "label": str(m.relative_to(dataset))}
            for i, m in zip(images, labels, strict=True)
        ]
        names = {str(n): f"organ_{n}" if n else "background" for n in range(CLASSES)}
        facts = {"name": "Pictures", "modality": {"0": "CT"}, "labels": names, "training": entries}
        (dataset / "dataset.json").write_text(json.dumps(facts))
        scheme = "normalization=[{scheme: ct, low: 0, high: 255, mean: 90, std: 50}]"
        plan(dataset, bundle, ("base_channels=16", "patch_size=[256,256]", "batch_size=4", scheme))
        medunet("train", bundle, "--minutes", minutes, "--device", "cpu")
    return bundle


def write_pictures(folder: Path, count: int, seed: int) -> tuple[list[Path], list[Path]]:
    """Slices of a phantom as 8-bit PNG files (-200 to 650 HU), and their label maps."""
    from PIL import Image

    places = [[folder / kind / f"picture_{n:04d}.png" for n in range(count)] for kind in ("images", "labels")]
    if not all(path.is_file() for path in places[0] + places[1]):
        image, label = body_phantom((256, 256, 8 * count), SPACING, seed, 0.2)
        grey = np.clip((image[:, :, ::8].astype(np.float32) + 200) * 255 / 850, 0, 255).astype(np.uint8)
        for volume, paths in zip((grey, label[:, :, ::8]), places, strict=True):
            paths[0].parent.mkdir(parents=True, exist_ok=True)
            for number, path in enumerate(paths):
                Image.fromarray(np.ascontiguousarray(volume[:, :, number].T)).save(path)
    return places[0], places[1]
