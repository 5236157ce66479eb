"""Train all folds of a bundle one after the other, and make one model of them."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from medunet.bundle.running import explained, train_bundle
from medunet.bundle.writer import read_plan
from medunet.errors import BundleError

_AFRESH = {"resume": False, "more": False}
_FINISH = {"more": False}
"""A fold that goes on, or was broken off while it was scored: minutes are for the folds behind it."""


def train_fold(root: Path, values: Mapping[str, Any], fold: int) -> list[Path]:
    """Train a single fold; ``models/model.pt`` is of it alone then. The path of its scores.

    Raises:
        MedunetError: with one sentence, whatever went wrong.
    """
    from medunet.training import folds as room

    train_bundle(root, {**values, "fold": fold}, lambda: room.part_with(root, fold, values))
    return [_scores(root, fold)]


def train_folds(root: Path, values: Mapping[str, Any]) -> list[Path]:
    """Train all folds that have patients of their own and assemble them; with ``resume`` go on where such a run ended.

    Returns the scores of the folds and, when all are done, of their cross-validation. A run that is stopped ends with
    the fold it is in. What an earlier run left goes when the first fold begins.

    Raises:
        BundleError: there is nothing to resume, or other settings are given than it was begun with.
        MedunetError: with one sentence, whatever went wrong.
    """
    from medunet.training import folds as room
    from medunet.training.cases import load_index
    from medunet.training.checkpoints import fold_of_checkpoint

    resumed, done, chosen = bool(values.get("resume")), set[int](), dict(values)
    if resumed:
        done, chosen = room.resume(root, values)
    dataset_dir = str(chosen.get("dataset_dir") or _dataset_dir(root))
    folds = load_index(str(root), dataset_dir).filled_folds()
    if values.get("more") and done >= set(folds) and (len(folds) == 1 or room.is_assembled(root)):
        raise BundleError(
            f"{root}: all folds are finished, and no more than one keeps what it takes to train on; train a single "
            f"fold with --resume, or --fold all without it, which begins all of them anew"
        )
    for number, fold in enumerate(folds):
        if fold not in done:
            gc.collect()  # the fold before refers to itself in circles, and holds the device's memory
            goes_on = resumed and fold_of_checkpoint(root) == fold and room.belongs(root, fold)
            first = number == 0 and not resumed
            begun = (lambda: room.begin(root, values)) if first else (lambda: room.take_back(root))
            train_bundle(root, {**chosen, "fold": fold, **(_FINISH if goes_on else _AFRESH)}, begun)
            if not _scores(root, fold).is_file():  # stopped by hand
                return [_scores(root, k) for k in folds if k == fold or _scores(root, k).is_file()]
            with explained(root / "configs" / "train.yaml"):
                room.keep(root, fold)
    paths = [_scores(root, fold) for fold in folds]
    if len(folds) == 1:
        return paths
    with explained(root / "configs" / "train.yaml"):
        return [*paths, room.assemble(root, folds, read_plan(str(root)), dataset_dir)]


def _scores(root: Path, fold: int) -> Path:
    return root / "eval" / f"fold_{fold}" / "scores.json"


def _dataset_dir(root: Path) -> str:
    path = root / "configs" / "train.yaml"
    return str(yaml.safe_load(path.read_text(encoding="utf-8"))["dataset_dir"])
