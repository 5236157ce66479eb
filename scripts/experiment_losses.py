"""Which loss finds small, rare objects? Tiny U-Nets on synthetic pictures whose foreground is under 1% of the pixels.

Run: python scripts/experiment_losses.py [--steps 150] [--seeds 3]       (several minutes on one core)

Prints a Markdown table: over the seeds, the mean and range of Dice, sensitivity, and false-positive pixels per picture.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from medunet.networks import UNet
from medunet.training import DiceBCE, DiceCE, DiceFocal, DiceHausdorff, GeneralizedDice, Jaccard, Tversky, WeightedCE

EDGE = 64
LOSSES: dict[str, Callable[[], torch.nn.Module]] = {
    "cross-entropy": lambda: DiceCE(2, dice_weight=0.0),
    "Dice + cross-entropy (default)": lambda: DiceCE(2),
    "Dice + binary cross-entropy": lambda: DiceBCE(2),
    "focal": lambda: DiceFocal(2, dice_weight=0.0),
    "Dice + focal": lambda: DiceFocal(2),
    "Tversky 0.3 / 0.7": lambda: Tversky(2),
    "focal Tversky": lambda: Tversky(2, power=0.75),
    "Jaccard": lambda: Jaccard(2),
    "generalised Dice": lambda: GeneralizedDice(2),
    "Dice + Hausdorff": lambda: DiceHausdorff(2),
    "class-balanced cross-entropy": lambda: WeightedCE(2),
}


def pictures(count: int, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Noise with darker streaks; three in four have one or two faint discs of radius 2 to 3, the foreground."""
    y, x = np.mgrid[:EDGE, :EDGE]
    images = draw.normal(0, 0.5, (count, 1, EDGE, EDGE))
    labels = np.zeros_like(images)
    for image, label in zip(images[:, 0], labels[:, 0], strict=True):
        for _ in range(3):
            angle, offset = draw.uniform(0, np.pi), draw.uniform(0, EDGE)
            image += np.abs(np.cos(angle) * x + np.sin(angle) * y - offset) < 1.5
        for _ in range(draw.integers(1, 3) if draw.random() < 0.75 else 0):
            row, column = draw.uniform(4, EDGE - 4, 2)
            disc = np.hypot(y - row, x - column) < draw.uniform(2, 3)
            image += disc
            label[disc] = 1
    return torch.from_numpy(images).float(), torch.from_numpy(labels).float()


def weighted(label: Tensor) -> Tensor:
    """The label with balanced class weights, for a loss that reads them."""
    share = label.mean().clamp(min=1e-4)
    return torch.cat((label, torch.where(label > 0, 0.5 / share, 0.5 / (1 - share))), dim=1)


def run(make: Callable[[], torch.nn.Module], seed: int, steps: int) -> tuple[float, float, float]:
    """Train, and score 200 fresh pictures: Dice over all pixels, sensitivity, false positives a picture."""
    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    network, loss = UNet.of_depth(3, 8, 2), make()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        images, labels = pictures(16, draw)
        optimizer.zero_grad()
        loss(network(images), weighted(labels) if isinstance(loss, WeightedCE) else labels).backward()
        optimizer.step()
        schedule.step()
    images, labels = pictures(200, np.random.default_rng(1000))
    with torch.no_grad():
        found = network.eval()(images).argmax(1, keepdim=True).float()
    both, made, true = (float(t.sum()) for t in (found * labels, found, labels))
    return 2 * both / (made + true), both / true, (made - both) / len(images)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    share = float(pictures(200, np.random.default_rng(1000))[1].mean())
    print(f"foreground: {share:.2%} of the pixels; {options.steps} steps, {options.seeds} seeds\n")
    print("| loss | Dice | sensitivity | false-positive pixels a picture | seconds |")
    print("|---|---|---|---|---|")
    for name, make in LOSSES.items():
        start = time.perf_counter()
        results = np.array([run(make, seed, options.steps) for seed in range(options.seeds)])
        cells = [f"{c.mean():.2f} ({c.min():.2f} to {c.max():.2f})" for c in results.T[:2]]
        seconds = (time.perf_counter() - start) / options.seeds
        print(f"| {name} | {cells[0]} | {cells[1]} | {results[:, 2].mean():.1f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
