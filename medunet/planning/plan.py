"""From a Fingerprint and a Budget to every number of a training run, each with its reason.

Rules after nnU-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z, suppl. note 2). Where ours differ, the rule's
docstring says so. A plan is arithmetic: the same fingerprint, budget and settings give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from medunet.data.dicom.codes import find_code, generic_code, parse_code
from medunet.errors import PlanError
from medunet.planning import geometry, memory, rules, settings
from medunet.planning.fingerprint import Fingerprint
from medunet.planning.memory import NetworkShape
from medunet.planning.record import Budget, Plan, short
from medunet.planning.surveyed import PLAIN, Survey, Surveyed, kind_of

_BASE_CHANNELS = {"cpu": 16, "cuda": 32}
_PATCH_VOXELS = {("cpu", 3): 64**3, ("cuda", 3): 128**3, ("cpu", 2): 256**2, ("cuda", 2): 512**2}
_MAX_CHANNELS = {2: 512, 3: 320}
_MAX_LEVELS = {"cpu": 5, "cuda": 7}
_BATCH = {("cpu", 3): 4, ("cuda", 3): 4, ("cpu", 2): 12, ("cuda", 2): 32}
_EPOCHS = {"cpu": 100, "cuda": 250}
_STEPS = {"cpu": 25, "cuda": 250}
_STRUCTURE = (
    "spatial_dims", "in_channels", "out_channels", "channels", "strides", "kernel_sizes", "deep_supervision"
)  # fmt: skip
"""The numbers that a plan gives to any network whose signature names them."""

Network = NetworkShape | Surveyed


def plan(
    fingerprint: Fingerprint,
    budget: Budget,
    chosen: Mapping[str, Any] | None = None,
    survey: Survey | None = None,
) -> Plan:
    """Make a Plan; values in `chosen` are kept as they are and everything else follows from them.

    `survey` (`medunet.networks.survey`) looks at networks other than the plain U-Net.

    Raises:
        PlanError: a chosen value is unknown or does not fit, or nothing fits the memory.
        NetworkError: the chosen network cannot be built.
    """
    chosen = settings.validate(chosen or {})
    draft = _Draft(fingerprint, budget, dict(chosen), survey)
    frame = draft.frame()
    network, patch, batch = draft.fit(frame)
    return draft.finish(frame, network, patch, batch)


class _Draft:
    """The state while a plan is being made: what was chosen, and the reason of each number so far."""

    def __init__(
        self, fingerprint: Fingerprint, budget: Budget, chosen: dict[str, Any], survey: Survey | None = None
    ) -> None:
        self.data, self.budget, self.chosen, self.survey = fingerprint, budget, chosen, survey
        self.reasons: dict[str, str] = {}

    def take(self, key: str, value: Any, reason: str) -> Any:
        """The chosen value of `key` if there is one, else `value`; note the reason."""
        if key in self.chosen:
            self.reasons[key] = f"chosen by the user (the rule would give {short(value)})"
            return self.chosen[key]
        self.reasons[key] = reason
        return value

    def frame(self) -> geometry.Frame:
        """Dimensions, orientation and spacing."""
        dims, reason = geometry.choose_dims(self.data)
        dims = self.take("dims", dims, reason)
        spacing_ras, spacing_reason = geometry.target_spacing(self.data)
        orientation, reason = geometry.choose_orientation(self.data, spacing_ras, dims)
        orientation = self.take("orientation", orientation, reason)
        spacing = geometry.in_frame(spacing_ras, orientation)
        spacing = tuple(float(s) for s in self.take("spacing", spacing, spacing_reason))
        shape = geometry.in_frame(self.data.median_shape_at(geometry.in_world(spacing, orientation)), orientation)
        return geometry.Frame(dims, orientation, spacing, shape)

    def fit(self, frame: geometry.Frame) -> tuple[Network, tuple[int, ...], int]:
        """Shrink the patch until a batch of at least two (one, if the patch was chosen) fits the memory.

        Before the patch shrinks, activations are recomputed (`checkpointing`), which takes less memory and more time.
        """
        patch = self._first_patch(frame)
        wanted = self.chosen.get("batch_size", 1 if "patch_size" in self.chosen else 2)
        while True:
            network, patch = self._network(frame, patch)
            network = self._checkpointed(network, patch, wanted)
            batch = self._batch(frame, network, patch)
            if self._fits(network, patch, wanted):
                break
            smaller = geometry.shrink(patch, frame, [axis.tiling for axis in network.axes])
            if smaller is not None and math.prod(self._network(frame, smaller)[1]) >= math.prod(patch):
                smaller = None  # without padding, no smaller one passes
            if "patch_size" in self.chosen or smaller is None:
                need = memory.training_bytes(network, patch, wanted, self.budget.device)
                raise PlanError(
                    f"a step with patch {list(patch)} and batch {wanted} takes about {need / 1e9:.1f} GB, "
                    f"the budget is {self.budget.memory / 1e9:.1f} GB; "
                    f"give more memory, {self._less(network)}"
                )
            patch = smaller
            self.reasons["patch_size"] = f"the largest in the data's proportions that fits {self._gigabytes()}"
        return network, patch, batch

    def _less(self, network: Network) -> str:
        """What takes less memory: a smaller patch, and fewer channels where the network can have them."""
        narrower = isinstance(network, NetworkShape) or bool(network.accepts & {"base_channels", "channels"})
        return "a smaller patch_size or fewer base_channels" if narrower else "a smaller patch_size or another network"

    def _fits(self, network: Network, patch: tuple[int, ...], batch: int) -> bool:
        return memory.training_bytes(network, patch, batch, self.budget.device) <= self.budget.memory

    def _checkpointed(self, network: Network, patch: tuple[int, ...], batch: int) -> Network:
        """The network as it is where a step fits, or else with recomputed activations; as the user says, if at all.

        Networks but the plain U-Net keep what they were measured with.
        """
        if "checkpointing" in self.chosen:
            self.reasons["checkpointing"] = "chosen by the user"
            return network
        self.reasons.pop("checkpointing", None)
        if isinstance(network, Surveyed) or self._fits(network, patch, batch):
            return network
        need = memory.training_bytes(network, patch, batch, self.budget.device)
        self.reasons["checkpointing"] = (
            f"activations are computed again in the backward pass, about a third more time: a step with this patch and "
            f"a batch of {batch} would take {need / 1e9:.1f} GB without"
        )
        return replace(network, checkpointing=True)

    def _gigabytes(self) -> str:
        return f"{self.budget.memory / 1e9:g} GB of memory"

    def _first_patch(self, frame: geometry.Frame) -> tuple[int, ...]:
        limit = _PATCH_VOXELS[self.budget.device, frame.dims]
        patch = geometry.first_patch(frame, limit)
        reason = (
            f"the median case, {short(tuple(round(n) for n in frame.shape[: frame.dims]))} voxels at this spacing, "
            f"kept to {limit:,} voxels on {self.budget.device} and rounded up to what the strides divide"
        )
        taken = tuple(self.take("patch_size", patch, reason))
        settings.require_dims(taken, frame.dims)
        return taken

    def _network(self, frame: geometry.Frame, patch: tuple[int, ...]) -> tuple[Network, tuple[int, ...]]:
        """Levels, strides and kernels after nnU-Net; sizes rounded up to the divisor unless chosen."""
        levels = self.take("max_levels", _MAX_LEVELS[self.budget.device], "")
        strides, kernels = geometry.pooling(patch, frame.spacing[: frame.dims], int(levels))
        self.reasons.pop("max_levels")
        base = self.take("base_channels", _BASE_CHANNELS[self.budget.device], "")
        self.reasons.pop("base_channels")
        most = self.chosen.get("max_channels", _MAX_CHANNELS[frame.dims])
        channels = tuple(min(base * 2**level, most) for level in range(len(strides)))
        valid = self.chosen.get("padding", "same") == "valid"
        supervision = self.take("deep_supervision", 0 if valid else max(0, min(2, len(strides) - 2)), "")
        self.reasons.pop("deep_supervision")
        if supervision > max(0, len(strides) - 2):
            raise PlanError(f"deep_supervision={supervision} needs more than the plan's {len(strides)} levels")
        shape = NetworkShape(
            in_channels=len(self.data.channels),
            out_channels=len(self.data.regions) or len(self.data.labels),
            channels=channels,
            strides=strides,
            kernel_sizes=kernels,
            deep_supervision=supervision,
            dropout=float(self.chosen.get("dropout", 0.0)),
            checkpointing=bool(self.chosen.get("checkpointing", False)),
            norm=self.chosen.get("norm", "batch" if valid else "instance"),
            downsample=self.chosen.get("downsample", "pooled" if valid else "strided"),
            padding="valid" if valid else "same",
        )
        network = self._descendant(shape, frame, patch)
        norm = network.definition.get("norm", "") if isinstance(network, Surveyed) else network.norm
        settings.require_local(network.padding, str(norm))
        return network, self._fitted(patch, network)

    def _descendant(self, shape: NetworkShape, frame: geometry.Frame, patch: tuple[int, ...]) -> Network:
        """The plain U-Net as it is; any other network is built and looked at."""
        definition = dict(self.chosen.get("network", {"_target_": PLAIN}))
        facts = {"spatial_dims": frame.dims, **asdict(shape)}
        given = {key: self.chosen[key] for key in settings.ARGUMENTS if key in self.chosen}
        if definition["_target_"] == PLAIN:
            special = {
                k: settings.levels_taken(k, v, len(shape.channels)) for k, v in given.items() if k in settings.SURVEYED
            }
            if not special and len(definition) == 1:
                return shape
            definition = {"_target_": PLAIN, **self._arguments(shape, frame), **special, **definition}
        if self.survey is None:
            raise PlanError(f"a plan with {definition['_target_']} needs a survey; give medunet.networks.survey")
        structure = {key: facts[key] for key in _STRUCTURE}
        found = self.survey(definition, {**structure, **given}, patch)
        settings.require_place(self.chosen, found.accepts, str(definition["_target_"]))
        return found

    def _fitted(self, patch: tuple[int, ...], network: Network) -> tuple[int, ...]:
        """The patch rounded up to what passes the network and tiles an image; a chosen one must do so as it is."""
        axes = [axis.tiling for axis in network.axes]
        if "patch_size" in self.chosen and network.padding == "valid":
            settings.require_passes(patch, axes)
        elif "patch_size" in self.chosen and isinstance(network, Surveyed):
            settings.require_near(patch, axes, network.name)
        elif "patch_size" in self.chosen:
            settings.require_divisible(patch, [axis.step for axis in network.axes], levels=len(network.strides))
        return tuple(axis.above(n) for axis, n in zip(axes, patch, strict=True))

    def _batch(self, frame: geometry.Frame, network: Network, patch: tuple[int, ...]) -> int:
        """As many patches as the memory takes, at most 5% of the training voxels (nnU-Net) and a cap per device."""
        free = self.budget.memory - memory.fixed_bytes(network, self.budget.device)
        by_memory = int(free // memory.sample_bytes(network, patch))
        total = math.prod(frame.shape) * self.data.cases
        by_data = max(2, int(0.05 * total / math.prod(patch)))
        cap = _BATCH[self.budget.device, frame.dims]
        least = min(by_memory, by_data, cap)
        reason = f"the least of memory ({by_memory}), 5% of the training voxels ({by_data}) and {cap} on this device"
        return int(self.take("batch_size", max(1, least), reason if least >= 1 else "the smallest possible"))

    def finish(self, frame: geometry.Frame, network: Network, patch: tuple[int, ...], batch: int) -> Plan:
        """Everything that follows once network, patch and batch are settled."""
        normalization = self.take("normalization", *rules.normalization(self.data))
        settings.require_schemes(normalization, [c.name for c in self.data.channels])
        axes, mirror_reason = rules.mirror_axes(self.data, frame)
        rotation, rotation_reason = rules.rotation(patch, frame)
        axes = tuple(self.take("mirror_axes", axes, mirror_reason))
        rotation = tuple(self.take("rotation", rotation, rotation_reason))
        predicted = tuple(self.take("predict_mirror_axes", (), "mirrored inputs as well take twice the time per axis"))
        settings.require_axes(axes, predicted, rotation, frame.dims)
        epochs, minutes = self._duration()
        low, high = self.data.spacing_range
        self.reasons["channels"] = "as declared by the dataset"
        self._label_reasons()
        return Plan(
            name=self.data.name,
            dataset_digest=self.data.digest,
            dims=frame.dims,
            channels=tuple(c.name for c in self.data.channels),
            labels=dict(self.data.labels),
            codes=self._codes(),
            orientation=frame.orientation,
            spacing=frame.spacing,
            normalization=tuple(normalization),
            patch_size=patch,
            batch_size=batch,
            network=self._network_arguments(network, frame),
            learning_rate=self.take("learning_rate", 0.002, "a usual value for AdamW with warm-up"),
            weight_decay=self.take("weight_decay", 0.01, "AdamW's usual value (Loshchilov and Hutter 2019)"),
            warmup_steps=self.take("warmup_steps", 50, "enough for AdamW's second moments to settle"),
            steps_per_epoch=self.take("steps_per_epoch", _STEPS[self.budget.device], "an epoch is a bookkeeping unit"),
            epochs=epochs,
            minutes=minutes,
            foreground_fraction=self.take(
                "foreground_fraction", 0.5, "every other patch is centred on a labelled voxel (nnU-Net: a third)"
            ),
            mirror_axes=axes,
            rotation=rotation,
            overlap=self.take("overlap", 0.5, "half a window, as nnU-Net, with Gaussian weights"),
            region=self._region(normalization),
            partners=tuple(self.take("partners", (), "one bundle alone")),
            amp=self.take(
                "amp", True, "mixed precision where the hardware has it: CUDA, processors that multiply bfloat16"
            ),
            memory_estimate=self._memory(network, patch, batch),
            seen={
                "cases": self.data.cases,
                "spacing_min": list(geometry.in_frame(low, frame.orientation)),
                "spacing_max": list(geometry.in_frame(high, frame.orientation)),
                "median_shape": [round(n) for n in frame.shape],
                "pictures": self.data.pictures,
                "intensity": [{"minimum": c.minimum, "maximum": c.maximum} for c in self.data.channels],
            },
            reasons=dict(sorted(self.reasons.items())),
            regions=dict(self.data.regions),
            ignore=self.data.ignore,
            predict_mirror_axes=predicted,
            margin=(*(axis.margin for axis in network.axes), *(0,) * (3 - frame.dims)),
        )

    def _label_reasons(self) -> None:
        """What the dataset declares beyond classes that exclude each other."""
        if self.data.regions:
            self.reasons["regions"] = (
                "labels of the dataset that may overlap: an output with a sigmoid each, "
                f"written in the order {', '.join(self.data.regions)}, later ones on top"
            )
        if self.data.ignore is not None:
            voxels = self.data.ignored_voxels
            share = voxels / max(1, sum(math.prod(shape) for shape in self.data.shapes))
            self.reasons["ignore"] = (
                f"the value that the dataset gives to voxels nobody annotated, {share:.1%} of all: "
                f"they count in no loss and no score, and no output stands for them"
            )

    def _region(self, normalization: Sequence[Mapping[str, Any]]) -> Any:
        """The air around a body need not be looked at; nnU-Net crops to non-zero voxels likewise."""
        if any(scheme["scheme"] == "ct" for scheme in normalization):
            return self.take("region", "body", "CT tells a body from the air around it, which is background")
        region = self.take("region", "all", "only CT tells a body from what lies around it")
        if region == "body":
            raise PlanError("plan setting region=body does not fit; it needs a channel with normalization scheme ct")
        return region

    def _codes(self) -> dict[str, Any]:
        """A code for every class but the background: chosen, from the shipped table, or the honest generic one."""
        names = [name for name, value in self.data.labels.items() if value != next(iter(self.data.labels.values()))]
        own = dict(self.chosen.get("codes", {}))
        unknown = sorted(set(own) - set(names))
        if unknown:
            raise PlanError(f"plan setting codes names class '{unknown[0]}'; the classes are {', '.join(names)}")
        codes = {n: parse_code(own[n], n) if n in own else find_code(n) or generic_code(n) for n in names}
        generic = [n for n in names if codes[n] == generic_code(n)]
        self.reasons["codes"] = (
            f"no standard code is known for {', '.join(generic)}: {codes[generic[0]].type.meaning}; "
            f"give one with --set 'codes={{{generic[0]}: {{type: [VALUE, SCT, MEANING]}}}}'"
            if generic
            else "SNOMED CT codes of the classes' names"
            if not own
            else "chosen by the user"
        )
        return {name: code.as_json() for name, code in codes.items()}

    def _memory(self, network: Network, patch: tuple[int, ...], batch: int) -> int:
        need = memory.training_bytes(network, patch, batch, self.budget.device)
        self.reasons["memory_estimate"] = f"{need / 1e9:.2f} GB for a training step, of {self._gigabytes()}"
        return need

    def _network_arguments(self, network: Network, frame: geometry.Frame) -> dict[str, Any]:
        """The keyword arguments of `medunet.networks.UNet`; of another network with its ``_target_``."""
        if isinstance(network, Surveyed):
            axes = network.axes
            self.reasons["network"] = (
                f"{kind_of(network.definition)} as chosen; inputs of multiples of {[axis.step for axis in axes]} from "
                f"{[axis.smallest for axis in axes]} on; {network.parameters:,} parameters"
            )
            return {k: v for k, v in network.definition.items() if (k, v) != ("_target_", PLAIN)}
        levels = len(network.channels)
        self.reasons["network"] = (
            f"{levels} levels: an axis is halved while at least 4 voxels remain and while it is not more than twice as "
            f"coarse as the finest (nnU-Net); {memory.parameter_count(network):,} parameters"
        )
        return self._arguments(network, frame)

    def _arguments(self, network: NetworkShape, frame: geometry.Frame) -> dict[str, Any]:
        """The arguments of a plain U-Net."""
        arguments = asdict(network)
        arguments["spatial_dims"] = frame.dims
        for key, default in (("activation", "leaky_relu"), ("upsample", "transposed")):
            arguments[key] = self.chosen.get(key, default)
        arguments["dropout_in"] = self.chosen.get("dropout_in", "all")
        return arguments

    def _duration(self) -> tuple[int, float | None]:
        if self.budget.minutes is not None:
            self.reasons["minutes"] = "given; the number of steps is measured when training starts"
            return _EPOCHS[self.budget.device], float(self.budget.minutes)
        epochs = self.budget.epochs
        self.reasons["epochs"] = "given" if epochs else f"the default on {self.budget.device}"
        return epochs or _EPOCHS[self.budget.device], None
