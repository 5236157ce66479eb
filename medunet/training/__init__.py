"""Training under MONAI's and Ignite's engines: data, losses, schedule and handlers."""

from medunet.training.border import BorderWeightsd
from medunet.training.budget import Budget
from medunet.training.cases import CachedCases, CaseSampler, FoldCases, PatchPipeline
from medunet.training.checkpoints import Checkpoints
from medunet.training.distributed import distribute, leave, local_device
from medunet.training.log import Log
from medunet.training.losses import (
    DiceBCE,
    DiceCE,
    DiceFocal,
    DiceHausdorff,
    GeneralizedDice,
    Jaccard,
    Tversky,
    WeightedCE,
)
from medunet.training.patches import ClassLocations, CutPatch, RandMirrord
from medunet.training.schedule import Schedule
from medunet.training.stopping import Attached, Stopping
from medunet.training.validate import CaseScores, ScoresWriter, Validation

__all__ = [
    "Attached",
    "BorderWeightsd",
    "Budget",
    "CachedCases",
    "CaseSampler",
    "CaseScores",
    "Checkpoints",
    "ClassLocations",
    "CutPatch",
    "DiceBCE",
    "DiceCE",
    "DiceFocal",
    "DiceHausdorff",
    "FoldCases",
    "GeneralizedDice",
    "Jaccard",
    "Log",
    "PatchPipeline",
    "RandMirrord",
    "Schedule",
    "ScoresWriter",
    "Stopping",
    "Tversky",
    "Validation",
    "WeightedCE",
    "distribute",
    "leave",
    "local_device",
]
