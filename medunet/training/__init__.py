"""Training under MONAI's and Ignite's engines: data, losses, schedule and handlers."""

from medunet.training.augment import Augmentation
from medunet.training.average import WeightAverage, twin
from medunet.training.border import BorderWeightsd
from medunet.training.budget import Budget
from medunet.training.cases import CaseSampler, FoldCases, Sample, StoredPatches
from medunet.training.checkpoints import Checkpoints
from medunet.training.distributed import distribute, leave, local_device
from medunet.training.guards import Guards
from medunet.training.initial import InitialWeights
from medunet.training.loading import PatchLoader
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
from medunet.training.patches import CutPatch
from medunet.training.placing import place
from medunet.training.precision import MixedInferer, by_trainer
from medunet.training.schedule import Schedule
from medunet.training.stopping import Attached, Stopping
from medunet.training.store import PatchStore
from medunet.training.validate import CaseScores, ScoresWriter, Validation

__all__ = [
    "Attached",
    "Augmentation",
    "BorderWeightsd",
    "Budget",
    "CaseSampler",
    "CaseScores",
    "Checkpoints",
    "CutPatch",
    "DiceBCE",
    "DiceCE",
    "DiceFocal",
    "DiceHausdorff",
    "FoldCases",
    "GeneralizedDice",
    "Guards",
    "InitialWeights",
    "Jaccard",
    "Log",
    "MixedInferer",
    "PatchLoader",
    "PatchStore",
    "Sample",
    "Schedule",
    "ScoresWriter",
    "Stopping",
    "StoredPatches",
    "Tversky",
    "Validation",
    "WeightAverage",
    "WeightedCE",
    "by_trainer",
    "distribute",
    "leave",
    "local_device",
    "place",
    "twin",
]
