"""Train all folds of a bundle one after the other, and make one model of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    from medunet.training.checkpoints import fold_of_checkpoint

    resumed = bool(values.get("resume"))
    if not resumed or fold_of_checkpoint(root) == fold:  # else the run refuses, and all stays as it is
        room.part_with(root, fold, resumed)
    train_bundle(root, {**values, "fold": fold})
    return [_scores(root, fold)]


def train_folds(root: Path, values: Mapping[str, Any], folds: Sequence[int]) -> list[Path]:
    """Train `folds` in turn and assemble them; with ``resume`` go on where such a run ended.

    Returns the scores of the folds and, when all are done, of their cross-validation. A run that is stopped ends with
    the fold it is in.

    Raises:
        BundleError: there is nothing to resume.
        MedunetError: with one sentence, whatever went wrong.
    """
    from medunet.training import folds as room
    from medunet.training.checkpoints import fold_of_checkpoint

    resumed = bool(values.get("resume"))
    done = room.resume(root) if resumed else room.begin(root)
    if values.get("more") and done >= set(folds):
        raise BundleError(
            f"{root}: all folds are finished, and no more than one keeps what it takes to train on; train --fold all "
            f"without --resume, or a single fold with it"
        )
    for fold in folds:
        if fold not in done:
            goes_on = resumed and fold_of_checkpoint(root) == fold
            train_bundle(root, {**values, "fold": fold, **(_FINISH if goes_on else _AFRESH)})
            if not _scores(root, fold).is_file():  # stopped by hand
                return [path for path in (_scores(root, k) for k in folds) if path.is_file()]
            room.keep(root, fold)
    paths = [_scores(root, fold) for fold in folds]
    if len(folds) == 1:
        return paths
    with explained(root / "configs" / "train.yaml"):
        return [*paths, room.assemble(root, folds, read_plan(str(root)))]


def _scores(root: Path, fold: int) -> Path:
    return root / "eval" / f"fold_{fold}" / "scores.json"
