"""What a run trains with, read off the objects that do it, whoever set them: for its log and the model card."""

from __future__ import annotations

from typing import Any

from medunet.training.augment import PROBABILITIES, Augmentation
from medunet.training.distributed import rank_and_size
from medunet.training.precision import precision_of


def recipe_of(trainer: Any, dataset: Any) -> dict[str, Any]:
    """Names of optimiser and loss, their main values, and the chances of augmentation that are not the usual ones.

    Args:
        trainer: a MONAI `SupervisedTrainer`, its handlers attached.
        dataset: what it draws patches from; `augmentation` is left out where that has none of ours.
    """
    recipe = {
        "optimizer": type(trainer.optimizer).__name__,
        "learning_rate": getattr(trainer.state, "learning_rate", None),
        "weight_decay": trainer.optimizer.param_groups[0].get("weight_decay"),
        "loss": getattr(trainer.loss_function, "__name__", type(trainer.loss_function).__name__),
        "decay": getattr(trainer.state, "decay", None),
        "average_share": getattr(trainer.state, "average_share", None),
        "clip": getattr(trainer.state, "clip", None),
        "patches_a_step": _patches_a_step(trainer.data_loader),
        "precision": precision_of(trainer),
    }
    augment = getattr(dataset, "augment", None)
    if isinstance(augment, Augmentation):
        recipe["augmentation"] = {kind: p for kind, p in augment.chance.items() if p != PROBABILITIES[kind]}
    return recipe


def _patches_a_step(loader: Any) -> int | None:
    """Of all processes together; None where the loader draws its batches another way."""
    size = getattr(loader, "batch_size", None)
    return None if size is None else size * rank_and_size()[1]
