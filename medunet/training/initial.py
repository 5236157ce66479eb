"""Begin with the weights of another bundle: to correct a model with new cases, or to fine-tune it for others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from torch import Tensor, nn

from medunet.errors import BundleError
from medunet.inference.weights import MODEL, read_state
from medunet.networks.ensemble import member_of, members_in
from medunet.training.checkpoints import plain
from medunet.training.log import Log

_OUTPUTS = "heads."  # of our U-Nets; those of other networks are taken over whole or not at all
_NAMED = 4  # tensors that are named one by one


class InitialWeights:
    """Take over what fits of another bundle's weights when a run starts; a run that is resumed has its own.

    Tensors of the same name and shape are taken as they are. Where the classes of both bundles differ, the outputs of
    those with the same name are taken over and the others keep their random beginning. That holds for our U-Nets, whose
    outputs are known by their tensors' names; other networks' are taken in their order, or not at all where they are of
    another number. Of an ensemble the first network is taken.

    Args:
        bundle: folder of the other bundle; null or empty: begin at random. Not the one that is trained.
        labels: this plan's labels, in the order of the outputs; regions have no output for the first, the background.
        channels: this plan's channels; it is told where the other bundle's have other names or another order.

    Raises:
        BundleError: it is the bundle that is trained; (when the run starts) it has no weights, or none of them fits.
    """

    def __init__(
        self,
        network: nn.Module,
        average: nn.Module,
        log: Log,
        labels: Mapping[str, int],
        bundle: str | None = None,
        resume: bool = False,
        channels: Sequence[str] = (),
    ) -> None:
        self.network, self.average, self.log, self.labels = network, average, log, list(labels)
        self.channels = list(channels)
        self.folder = Path(bundle) if bundle and not resume else None
        self.passed_over = bundle if resume else None
        if self.folder is not None and self.folder.is_file():
            raise BundleError(f"{self.folder}: is a file, a bundle is a folder; unpack it first (medunet unpack)")
        if self.folder is not None and self.folder.resolve() == log.folder.parents[1].resolve():
            raise BundleError(
                f"{self.folder}: is the bundle itself, whose weights may be trained on this fold's validation cases; "
                f"begin with those of another bundle, or go on with --resume"
            )

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self._start)

    def _start(self, engine: Engine) -> None:
        if self.folder is None:
            if self.passed_over:
                self.log.say(f"the run goes on with its own weights; {self.passed_over} is what it may have begun with")
            return
        own, other = plain(self.network).state_dict(), read_state(self.folder / MODEL)
        members = members_in(other)
        if members:
            other = member_of(other, 0)
        plan = _plan_of(self.folder)
        taken = merged(own, other, self.labels, list(plan["labels"]))
        if not any(values.ndim > 1 for values, _ in taken.values()):  # kernels; of 2D and 3D the rest may be as long
            raise BundleError(f"{self.folder / MODEL}: no kernel fits this plan's network; plan with the same network")
        for network in (plain(self.network), self.average):
            network.load_state_dict({**own, **{name: values for name, (values, _) in taken.items()}})
        source = f"the first of the {members} networks of {self.folder}" if members else str(self.folder)
        self.log.say(_told(source, own, taken))
        theirs = list(plan["channels"])
        if self.channels and theirs != self.channels:
            self.log.say(
                f"its weights were trained on the channels {', '.join(theirs)} in this order, this plan's are "
                f"{', '.join(self.channels)}; where they do not mean the same, begin without --init"
            )


Taken = dict[str, tuple[Tensor, str]]
"""Tensors by name, and what is to be said of those that were taken in part."""


def merged(own: Mapping[str, Tensor], other: Mapping[str, Tensor], labels: list[str], others: list[str]) -> Taken:
    """What can be taken over of `other` into a network with the tensors `own`; `labels` name the outputs of both."""
    taken: Taken = {}
    for name, values in own.items():
        found = other.get(name)
        if found is None:
            continue
        named, known = _outputs(name, values, labels), _outputs(name, found, others)
        if found.shape == values.shape and (named == known or not (named and known)):
            taken[name] = (found, "")
        elif named and known and found.shape[1:] == values.shape[1:]:
            shared = [label for label in named if label in known]
            rows = values.clone()
            for label in shared:
                rows[named.index(label)] = found[known.index(label)].to(rows.dtype)
            if shared:
                taken[name] = (rows, "only " + ", ".join(shared))
    return taken


def _outputs(name: str, values: Tensor, labels: list[str]) -> list[str]:
    """The labels that the rows of a tensor stand for, if it makes the outputs."""
    spare = len(labels) - len(values)
    return labels[spare:] if name.startswith(_OUTPUTS) and spare in (0, 1) else []


def _plan_of(folder: Path) -> dict[str, Any]:
    path = folder / "configs" / "metadata.json"
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        return {key: list(content["plan"][key]) for key in ("labels", "channels")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{path}: does not tell the labels and channels of its weights ({error}); give a medunet bundle"
        ) from error


def _told(source: str, own: Mapping[str, Tensor], taken: Taken) -> str:
    new = [name for name in own if name not in taken]
    parts = {words for _, words in taken.values() if words}
    told = [f"{len(taken)} of {len(own)} tensors are those of {source}"]
    told += [f"of the outputs {words}" for words in sorted(parts)]
    if new:
        more = f" and {len(new) - _NAMED} more" if len(new) > _NAMED else ""
        told.append(f"new: {', '.join(new[:_NAMED])}{more}")
    return "; ".join(told)
