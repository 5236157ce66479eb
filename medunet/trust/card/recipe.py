"""What each run trained with, from the facts of its log; a run that went on otherwise has a part for each recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_ROWS = (
    ("optimiser", "optimizer"),
    ("loss", "loss"),
    ("learning rate, highest", "highest_rate"),
    ("learning rate, at the end", "last_rate"),
    ("decay of the learning rate", "decay"),
    ("weight decay", "weight_decay"),
    ("weights averaged over, of the run", "average_share"),
    ("largest norm of the gradients", "clip"),
    ("patches a step, of all processes", "patches_a_step"),
    ("precision", "precision"),
)


def recipes_in(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """What the steps of a log were trained with, one after the other, with the highest and the last learning rate.

    All but the first have ``after_step``.
    """
    recipes: list[dict[str, Any]] = []
    ahead: dict[str, Any] = {}  # said when a call began, true when it made a step
    step = 0
    for row in rows:
        if not isinstance(row, dict):
            continue
        if isinstance(row.get("recipe"), dict):
            ahead = row["recipe"]
        elif row.get("event") == "train":
            last = recipes[-1] if recipes else {}
            if ahead and (not last or any(key in last and last[key] != value for key, value in ahead.items())):
                recipes.append(ahead | ({"after_step": step} if recipes else {}))
            rate = row.get("lr")
            if recipes and isinstance(rate, int | float):
                recipes[-1] |= {"highest_rate": max(rate, recipes[-1].get("highest_rate", rate)), "last_rate": rate}
            step = row.get("step", step)
    return recipes or ([ahead] if ahead else [])


def recipe_rows(folds: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The heads of the columns, and a row per value; no column where no log tells."""
    told = [fold for fold in folds if fold.get("training", {}).get("recipe")]
    parts = [
        (fold["fold"], recipe)
        for fold in told
        for recipe in (*fold["training"].get("earlier_recipes", ()), fold["training"]["recipe"])
    ]
    names = [f"fold {fold}" + (f", after step {r['after_step']}" if "after_step" in r else "") for fold, r in parts]
    rows = [(label, *(recipe.get(key) for _, recipe in parts)) for label, key in _ROWS]
    chances = ("unusual chances of augmentation", *(_chances(recipe.get("augmentation")) for _, recipe in parts))
    return names, [*rows, chances]


def _chances(changed: Any) -> str | None:
    """``elastic 0.2, zoom 0.35``."""
    if not isinstance(changed, Mapping):
        return None
    return ", ".join(f"{kind} {chance:g}" for kind, chance in changed.items()) or "none"
