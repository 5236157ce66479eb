"""Training under MONAI's and Ignite's engines: data, losses, schedule and handlers."""

from medunet.training.border import BorderWeightsd
from medunet.training.budget import Budget
from medunet.training.cases import CachedCases, CaseSampler, FoldCases, PatchPipeline
from medunet.training.checkpoints import Checkpoints
from medunet.training.distributed import distribute, leave, local_device
from medunet.training.log import Log
from medunet.training.losses import DiceCE
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
    "DiceCE",
    "FoldCases",
    "Log",
    "PatchPipeline",
    "RandMirrord",
    "Schedule",
    "ScoresWriter",
    "Stopping",
    "Validation",
    "distribute",
    "leave",
    "local_device",
]
