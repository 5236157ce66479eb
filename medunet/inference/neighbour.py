"""Another bundle beside the one that runs, built from its values alone: nothing that it names is imported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import nn

from medunet.data.transforms import Frame, NetworkImage
from medunet.errors import BundleError
from medunet.inference.weights import MODEL, load_weights
from medunet.networks import FAMILY, Ensemble, member

if TYPE_CHECKING:
    from medunet.inference.windows import WindowInferer

_METADATA = "configs/metadata.json"


class Neighbour:
    """A bundle's plan, and what it takes to segment with it.

    Whoever checked the bundle that is run has not checked what this one would import: its network is one of ours.

    Args:
        folder: the other bundle.
        role: what it does here, for errors: "a bundle that ROLE has one of medunet.networks".

    Raises:
        BundleError: it has no plan, or another network.
    """

    def __init__(self, folder: Path, role: str) -> None:
        self.folder, self.role = folder, role
        path = folder / _METADATA
        try:
            self.plan: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))["plan"]
            self._network = dict(self.plan["network"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{path}: has no plan that can be read ({error}); give a bundle of medunet") from error
        self._target = str(self._network.pop("_target_", "nothing"))
        if self._target not in FAMILY:
            raise BundleError(
                f"{path}: its network is {self._target}; a bundle that {role} has one of medunet.networks"
            )

    def require_same(self, name: str, own: Any) -> None:
        """Refuse a plan that says of `name` something else than the bundle that runs, or the same in another order.

        Raises:
            BundleError: it does; null is not compared.
        """
        theirs = self.plan.get(name)
        if own is not None and (_ordered(theirs) or None) != (_ordered(own) or None):
            raise BundleError(
                f"{self.folder}: has the {name} {theirs}, the bundle that runs has {own}; a bundle that {self.role} "
                f"has the same"
            )

    def network(self) -> nn.Module:
        """Its network, or all members of it, with weights."""
        network = Ensemble(member(self._target)(**self._network)).eval()
        load_weights(network, self.folder / MODEL)
        return network

    def inferer(self, **options: Any) -> WindowInferer:
        """Its inferer, which takes all of an image unless `options` have a region."""
        from medunet.inference.windows import WindowInferer

        plan = self.plan
        frame = Frame(plan["orientation"], plan["spacing"], plan["normalization"])
        return WindowInferer(
            frame, plan["labels"], plan["patch_size"], plan["overlap"], border=plan["border"], **options
        )


def _ordered(value: Any) -> Any:
    """The same in lists alone, so that the order of a mapping counts."""
    if isinstance(value, Mapping):
        return [[key, _ordered(item)] for key, item in value.items()]
    return [_ordered(item) for item in value] if isinstance(value, (list, tuple)) else value


def seen_by(inferer: WindowInferer, image: NetworkImage, network: nn.Module) -> NetworkImage:
    """All of an image's file, as far as another bundle looks at it, as that one sees it."""
    whole = image.entire
    return inferer.see(MetaTensor(whole.values, affine=torch.from_numpy(np.array(whole.native.affine))), network)
