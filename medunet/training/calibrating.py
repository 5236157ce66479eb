"""What a trained network's certainty has meant on the validation cases, for the bundle that is shared."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from medunet.data.atomic import write_json
from medunet.data.labelling import Values
from medunet.data.transforms import WholeImage
from medunet.evaluation.metrics import dice, masks
from medunet.inference.quality import QUALITY, Calibration, Scored, degrade
from medunet.inference.weights import load_weights, weights_digest
from medunet.inference.windows import WindowInferer

MOST_CASES = 40
CERTAINTY = "certainty.json"
"""What was seen of a fold's validation cases, beside its scores: all folds together are calibrated from it."""


def calibrate(
    inferer: WindowInferer,
    network: torch.nn.Module,
    cases: Any,
    labels: Mapping[str, Values],
    model: Path,
    fold: int,
    trained: Sequence[str],
    ignore: int | None = None,
) -> None:
    """Write ``models/quality.json``: a calibration per class of the weights that `model` holds, null for too few cases.

    Up to 40 validation cases are segmented, whole and degraded. The file holds numbers alone, no case. What they rest
    on is kept in the fold's private folder.

    Args:
        cases: dataset of ``{"image", "label"}`` on the files' own grids.
        labels: stored value per class, or values per region, without the background.
        model: the bundle's ``models/model.pt``.
        trained: digests of the cases that it was trained on; they are kept in the private folder.
        ignore: the references' value of voxels nobody annotated.
    """
    plain = copy.deepcopy(network).eval()
    load_weights(plain, model)
    whole: dict[str, list[Scored]] = {name: [] for name in labels}
    worse: dict[str, list[Scored]] = {name: [] for name in labels}
    for number in range(min(len(cases), MOST_CASES)):
        item = cases[number]
        image = inferer.see(item["image"], plain)
        spoilt = WholeImage(degrade(image.whole(), number), image)
        reference = item["label"].as_tensor()[0].numpy()
        for seen, scored in ((image, whole), (spoilt, worse)):
            (made,) = inferer.segment([seen], plain)
            pairs = masks(made.labels, reference, labels, ignore)
            for (name, pair), certainty in zip(pairs, made.certainty, strict=True):
                scored[name].append((certainty, dice(*pair), bool(pair[1].any())))
    fitted = {name: Calibration.fit(whole[name], worse[name]) for name in labels}
    classes = {name: None if found is None else found.as_json() for name, found in fitted.items()}
    bundle = model.parents[1]
    digest = weights_digest(bundle)
    noted = {"weights": digest, "trained": list(trained), "whole": whole, "worse": worse}
    write_json(bundle / "eval" / f"fold_{fold}" / CERTAINTY, noted)
    write_json(bundle / QUALITY, {"weights": digest, "fold": fold, "classes": classes})
