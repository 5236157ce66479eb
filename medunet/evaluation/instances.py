"""How well objects were found: two maps of numbered objects, 0 the background.

Sources: F1 at an IoU of 0.5 (Caicedo et al. 2019, doi:10.1038/s41592-019-0612-7); SEG, the Cell Tracking Challenge's
measure of segmentation (Ulman et al. 2017, doi:10.1038/nmeth.4473).
"""

from __future__ import annotations

import numpy as np

from medunet.errors import InputError
from medunet.evaluation.metrics import Value
from medunet.types import FloatArray, IntArray

MATCHED = 0.5
"""Objects match above this IoU; no two can match the same one."""


def instance_scores(prediction: IntArray, reference: IntArray) -> dict[str, Value]:
    """Counts of objects, F1, precision and recall at an IoU above 0.5, and SEG.

    SEG: the mean over the reference's objects of the IoU with the object that covers more than half of it, 0 where
    none does. Nothing to find and nothing found: null; nothing to find: SEG and recall are null.

    Shapes: (*n) integers each.

    Raises:
        InputError: shapes differ.
    """
    if prediction.shape != reference.shape:
        raise InputError(
            f"prediction has shape {list(prediction.shape)}, reference {list(reference.shape)}; compare equal grids"
        )
    (mine, _), (true, _) = own, other = _sizes(prediction), _sizes(reference)
    iou, covered, places = _overlaps(prediction, reference, own, other)
    matches = int(np.count_nonzero(iou > MATCHED))
    best = np.zeros(len(true))
    best[places[covered > 0.5]] = iou[covered > 0.5]  # no two can cover more than half
    total = len(mine) + len(true)
    return {
        "instances": float(len(true)),
        "predicted_instances": float(len(mine)),
        "instance_f1": 2 * matches / total if total else None,
        "instance_precision": matches / len(mine) if len(mine) else None,
        "instance_recall": matches / len(true) if len(true) else None,
        "seg": float(best.mean()) if len(true) else None,
    }


def _sizes(labels: IntArray) -> tuple[IntArray, IntArray]:
    """Numbers of the objects, ascending, and their voxels."""
    names, sizes = np.unique(labels, return_counts=True)
    return names[names != 0], sizes[names != 0]


def _overlaps(
    prediction: IntArray,
    reference: IntArray,
    mine: tuple[IntArray, IntArray],
    true: tuple[IntArray, IntArray],
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Of every pair that overlaps: IoU, the share of the true object that is covered, and the true object's place."""
    both = (prediction != 0) & (reference != 0)
    rows, columns = np.searchsorted(mine[0], prediction[both]), np.searchsorted(true[0], reference[both])
    pairs, counts = np.unique(rows.astype(np.int64) * max(1, len(true[0])) + columns, return_counts=True)
    first, second = np.divmod(pairs, max(1, len(true[0])))
    union = mine[1][first] + true[1][second] - counts
    return np.asarray(counts / union), np.asarray(counts / true[1][second]), second
