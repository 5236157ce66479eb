"""What a run trains with, read off the objects that do it, whoever set them: for its log and the model card."""

from __future__ import annotations

from typing import Any

from medunet.training.augment import PROBABILITIES
from medunet.training.precision import precision_of


def recipe_of(trainer: Any, dataset: Any) -> dict[str, Any]:
    """Names of optimiser and loss, their main values, and the chances of augmentation that are not the usual ones.

    Args:
        trainer: a MONAI `SupervisedTrainer`, its handlers attached.
        dataset: what it draws patches from; `augmentation` is left out where that has none of ours.
    """
    recipe = {
        "optimizer": type(trainer.optimizer).__name__,
        "weight_decay": trainer.optimizer.param_groups[0].get("weight_decay"),
        "loss": getattr(trainer.loss_function, "__name__", type(trainer.loss_function).__name__),
        "decay": getattr(trainer.state, "decay", None),
        "average_share": getattr(trainer.state, "average_share", None),
        "precision": precision_of(trainer),
    }
    chances = getattr(getattr(dataset, "augment", None), "chance", None)
    if chances is not None:
        recipe["augmentation"] = {kind: chance for kind, chance in chances.items() if chance != PROBABILITIES.get(kind)}
    return recipe
