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
        self.folder = folder
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


def seen_by(inferer: WindowInferer, image: NetworkImage, network: nn.Module) -> NetworkImage:
    """All of an image's file, as far as another bundle looks at it, as that one sees it."""
    whole = image.entire
    return inferer.see(MetaTensor(whole.values, affine=torch.from_numpy(np.array(whole.native.affine))), network)
