#!/usr/bin/env python
"""Does the expected Dice find bad segmentations? Measured on held-out cases and on the same cases spoilt.

    python scripts/bench_quality.py DATASET BUNDLE [--fold 0] [--rows rows.json]

Every second validation case of the fold calibrates: whole, and once degraded by `medunet.inference.quality.degrade`
(noise or a quarter of the resolution, on the normalised image). The other half tests: whole, and with each spoiling of
`SPOILINGS`, done to the volume before it is preprocessed. Calibration has met Gaussian noise and low resolution in
place; blur, crops, wrong spacing, missing slices, bias field, inverted contrast and wrong orientation it has not.

Prints a Markdown table: AUROC for Dice < 0.7, Spearman's rank correlation and the mean absolute error of the expected
Dice; then how each spoiling fared, its AUROC against the unspoilt test cases.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from scipy import ndimage
from scipy.stats import rankdata, spearmanr

from medunet.bundle.running import load_workflow
from medunet.data.grid import Grid
from medunet.data.index import Case, Index
from medunet.data.transforms import NetworkImage, WholeImage
from medunet.data.volume import read_label, read_volume, write_image
from medunet.evaluation.metrics import dice
from medunet.inference.quality import Calibration, degrade
from medunet.training.cases import load_index

BAD = 0.7
Sample = tuple[np.ndarray, np.ndarray, Grid]  # image (x, y, z), label (x, y, z) with stored values, their grid


@dataclass
class Row:
    """One class in one prediction."""

    case: str
    kind: str
    name: str
    dice: float | None
    features: dict[str, float]
    expected: float | None = None


def noise(sample: Sample, rng: np.random.Generator, deviations: float) -> Sample:
    """Rician noise of so many standard deviations of the image."""
    image, label, grid = sample
    real, imaginary = deviations * image.std() * rng.standard_normal((2, *image.shape))
    return np.hypot(image - image.min() + real, imaginary), label, grid


def blur(sample: Sample, rng: np.random.Generator, sigma: float) -> Sample:
    """Gaussian of `sigma` voxels."""
    image, label, grid = sample
    return ndimage.gaussian_filter(image, sigma), label, grid


def crop(sample: Sample, rng: np.random.Generator, share: float) -> Sample:
    """Keep a share of one axis, at one end."""
    axis, length = int(rng.integers(3)), sample[0].shape
    kept = max(4, round(length[axis] * share))
    start = (length[axis] - kept) * int(rng.integers(2))
    return _cut(sample, axis, slice(start, start + kept))


def thick(sample: Sample, rng: np.random.Generator, step: int) -> Sample:
    """Every n-th slice along one axis, with the right spacing."""
    return _cut(sample, int(rng.integers(3)), slice(0, None, step))


def _cut(sample: Sample, axis: int, part: slice) -> Sample:
    image, label, grid = sample
    cut = tuple(part if a == axis else slice(None) for a in range(3))
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, axis] * part.start
    affine[:3, axis] *= part.step or 1
    return image[cut], label[cut], Grid(image[cut].shape, affine)


def spacing(sample: Sample, rng: np.random.Generator, factors: Sequence[float]) -> Sample:
    """The header lies about the spacing."""
    image, label, grid = sample
    affine = grid.affine.copy()
    affine[:3, :3] *= np.array(factors)
    return image, label, Grid(grid.shape, affine)


def bias(sample: Sample, rng: np.random.Generator, strength: float) -> Sample:
    """A smooth multiplicative field."""
    image, label, grid = sample
    at = np.meshgrid(*(np.linspace(0, 2, n) for n in image.shape), indexing="ij")
    field = ndimage.map_coordinates(rng.standard_normal((3, 3, 3)), at, order=1)
    return image * np.exp(strength * field), label, grid


def invert(sample: Sample, rng: np.random.Generator, _: None) -> Sample:
    """Another contrast: bright becomes dark."""
    image, label, grid = sample
    return image.max() - image, label, grid


def flip(sample: Sample, rng: np.random.Generator, axis: int) -> Sample:
    """The header lies about a direction."""
    image, label, grid = sample
    return np.flip(image, axis), np.flip(label, axis), grid


Spoiling = Callable[[Sample, np.random.Generator, Any], Sample]
SPOILINGS: tuple[tuple[Spoiling, Any], ...] = (
    (noise, 0.5), (noise, 1.2), (blur, 1.2), (blur, 2.5), (crop, 0.65), (crop, 0.4), (thick, 4), (bias, 0.8),
    (spacing, (1.6, 1.6, 1.6)), (spacing, (0.6, 0.6, 0.6)), (spacing, (1, 1, 2.2)), (invert, None), (flip, 1),
)  # fmt: skip


class Model:
    """A bundle's network with its own preprocessing and windows."""

    def __init__(self, bundle: Path, labels: dict[str, int]) -> None:
        parser = load_workflow(bundle.resolve(), "inference.yaml", "infer", {}).parser
        parser.get_parsed_content("weights").load()
        self.network = parser.get_parsed_content("network").eval()
        self.inferer, self.preprocessing = (parser.get_parsed_content(k) for k in ("inferer", "preprocessing"))
        self.labels = labels

    def load(self, sample: Sample, folder: Path) -> NetworkImage:
        """A sample as `medunet predict` would read it from a file."""
        write_image(folder / "image.nii.gz", np.ascontiguousarray(sample[0], dtype=np.float32), sample[2])
        return self.inferer.frame.see(self.preprocessing({"image": str(folder / "image.nii.gz")})["image"])

    def rows(self, case: str, kind: str, image: NetworkImage | WholeImage, reference: np.ndarray) -> Iterator[Row]:
        """Predict an image and compare on the grid of the file."""
        (made,) = self.inferer.segment([image], self.network)
        foreground = list(self.labels.items())[1:]
        for (name, value), features in zip(foreground, made.certainty, strict=True):
            yield Row(case, kind, name, dice(made.labels == value, reference == value), features)


def read_sample(index: Index, case: Case) -> Sample:
    """The first channel of a case and its label."""
    images, label = index.paths(case)
    volume = read_volume(images[0])
    return volume.array[0].astype(np.float64), read_label(str(label)).array[0], volume.grid


def measure(model: Model, index: Index, fold: int) -> tuple[list[Row], list[Row], list[Row]]:
    """Rows of the calibration half, whole and degraded, and of the test half."""
    whole: list[Row] = []
    degraded: list[Row] = []
    test: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        for number, case in enumerate(index.split(fold)[1]):
            sample = read_sample(index, case)
            image = model.load(sample, Path(name))
            kept = test if number % 2 else whole
            kept += model.rows(case.id, "none", image, sample[1])
            if number % 2:
                test += spoilt(model, case.id, sample, number, Path(name))
            else:
                worse = WholeImage(degrade(image.whole(), number // 2), image)
                degraded += model.rows(case.id, "degraded", worse, sample[1])
    return whole, degraded, test


def spoilt(model: Model, case: str, sample: Sample, number: int, folder: Path) -> Iterator[Row]:
    """One test case with every spoiling."""
    for order, (spoiling, how) in enumerate(SPOILINGS):
        changed = spoiling(sample, np.random.default_rng([2026, number, order]), how)
        image = model.load(changed, folder)
        kind = f"{spoiling.__name__} {how}".removesuffix(" None")
        yield from model.rows(case, kind, image, changed[1])


def calibrate(name: str, whole: Sequence[Row], degraded: Sequence[Row]) -> Calibration:
    """The calibration of one class."""
    seen = [[(row.features, row.dice, True) for row in rows if row.name == name] for rows in (whole, degraded)]
    fitted = Calibration.fit(*seen)
    if fitted is None:
        sys.exit(f"{name}: too few calibration cases")
    return fitted


def auroc(rows: Sequence[Row]) -> float:
    """Chance that a bad row is expected worse than a good one (Mann-Whitney); NaN without both."""
    bad = np.array([row.dice < BAD for row in rows])
    ranks = rankdata([-row.expected for row in rows])
    pairs = bad.sum() * (~bad).sum()
    return float((ranks[bad].sum() - bad.sum() * (bad.sum() + 1) / 2) / pairs) if pairs else float("nan")


def print_table(title: str, groups: dict[str, list[Row]], against: Sequence[Row] = ()) -> None:
    """AUROC (with `against` added), rank correlation and error of each group."""
    print(f"\n| {title} | rows | Dice | below {BAD} | expected | AUROC | rank corr. | mean abs. error |")
    print("|---|---|---|---|---|---|---|---|")
    for name, rows in groups.items():
        real, expected = np.array([[row.dice, row.expected] for row in rows]).T
        rank, error = spearmanr(real, expected)[0], np.abs(real - expected).mean()
        print(
            f"| {name} | {len(rows)} | {real.mean():.2f} | {(real < BAD).mean():.2f} | {expected.mean():.2f} "
            f"| {auroc([*rows, *against]):.3f} | {rank:.2f} | {error:.3f} |"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--rows", type=Path, help="also write every row as JSON")
    options = parser.parse_args()
    index = load_index(str(options.bundle), str(options.dataset))
    whole, degraded, test = measure(Model(options.bundle, index.labels), index, options.fold)
    names = list(index.labels)[1:]
    for name in names:
        fitted, alone = calibrate(name, whole, degraded), calibrate(name, whole, [])
        print(f"{name}: {fitted}; from whole cases alone {alone}")
        for row in test:
            row.expected = fitted.expected_dice(row.features) if row.name == name else row.expected
    if options.rows:
        parts = {"whole": whole, "degraded": degraded, "test": test}
        options.rows.write_text(json.dumps({key: [asdict(row) for row in rows] for key, rows in parts.items()}))
    scored = [row for row in test if row.dice is not None and row.expected is not None]
    unspoilt = [row for row in scored if row.kind == "none"]
    unseen = [row for row in scored if row.kind == "none" or row.kind.split()[0] not in ("noise", "blur")]
    groups = {name: [row for row in scored if row.name == name] for name in names}
    print_table("test", {**groups, "all": scored, "all but noise and blur": unseen, "unspoilt": unspoilt})
    kinds = {kind: [row for row in scored if row.kind == kind] for kind in dict.fromkeys(row.kind for row in scored)}
    print_table("spoiling", {kind: rows for kind, rows in kinds.items() if kind != "none"}, unspoilt)


if __name__ == "__main__":
    main()
