"""Whole volumes through a trained network, back onto each input's own grid."""

from medunet.inference.batches import OnHost
from medunet.inference.components import KeepComponentsd
from medunet.inference.device import pick_device
from medunet.inference.folder import FolderInputs
from medunet.inference.saving import SaveLabeld
from medunet.inference.weights import Weights
from medunet.inference.windows import WindowInferer

__all__ = ["FolderInputs", "KeepComponentsd", "OnHost", "SaveLabeld", "Weights", "WindowInferer", "pick_device"]
