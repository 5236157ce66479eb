"""What a run leaves behind: the best weights, the last state, and how to go on from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from medunet.data.atomic import write_with
from medunet.errors import BundleError
from medunet.inference.weights import MODEL, plan_digest, read_state
from medunet.networks.ensemble import members_in

LAST = "models/checkpoint_last.pt"
_MEANING = ("channels", "orientation", "spacing", "normalization", "labels", "regions", "ignore")


class Checkpoints:
    """Keep ``models/model.pt`` (averaged weights, best so far) and ``models/checkpoint_last.pt`` (to resume from).

    Files are replaced whole: one that was cut while being written never takes the place of a good one. Both load with
    ``weights_only=True``. An epoch's checkpoint is written after its validation, so that a run that is killed between
    them repeats both.
    """

    def __init__(
        self,
        network: nn.Module,
        average: nn.Module,
        optimizer: Optimizer,
        bundle_root: str,
        fold: int = 0,
        resume: bool = False,
    ) -> None:
        self.network, self.average, self.optimizer = network, average, optimizer
        self.fold, self.resume = int(fold), resume
        self.bundle = Path(bundle_root)
        self.model, self.last = self.bundle / MODEL, self.bundle / LAST
        self.best: dict[str, Any] = {"dice": None, "step": 0}
        self.since_best = 0
        """Validations since the best."""

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self.save_last)

    def _start(self, engine: Engine) -> None:
        engine.state.cycle, engine.state.asked, engine.state.interval = 0, None, None
        engine.state.threads = torch.get_num_threads()
        if is_main_process():
            for half in self.last.parent.glob(".part-*.pt"):  # of a run that was killed
                half.unlink(missing_ok=True)
        if self.resume:
            self._restore(engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save_last)  # behind all others

    def save_last(self, engine: Engine) -> None:
        """Write the state to resume from."""
        if not is_main_process():
            return
        content = {
            "model": weights_of(self.network),
            "average": weights_of(self.average),
            "optimizer": self.optimizer.state_dict(),
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "max_epochs": engine.state.max_epochs,
            "epoch_length": engine.state.epoch_length,
            "cycle": engine.state.cycle,
            "asked": engine.state.asked,
            "interval": engine.state.interval,
            "fold": self.fold,
            "plan": plan_digest(self.bundle, _MEANING),
            "best": self.best,
            "since_best": self.since_best,
            "threads": torch.get_num_threads(),
            **_chances(engine),
        }
        write_with(self.last, lambda path: torch.save(content, path))

    def offer(self, dice: float | None, step: int) -> bool:
        """Write ``model.pt`` when `dice` is the best so far (or none is there yet); tell whether it was."""
        best = self.best["dice"]
        better = dice is not None and (best is None or dice > best)
        if (better or not self.model.is_file()) and is_main_process():
            write_with(self.model, lambda path: torch.save(weights_of(self.average), path))
        self.since_best = 0 if better else self.since_best + 1
        if better:
            self.best = {"dice": dice, "step": step}
        return better

    def save_if_none(self) -> None:
        """Leave a usable model when a run ends before its first validation."""
        if self.best["dice"] is None and is_main_process():
            write_with(self.model, lambda path: torch.save(weights_of(self.average), path))

    def _restore(self, engine: Engine) -> None:
        state = _last_state(self.last)
        if state.get("fold") != self.fold:
            raise BundleError(
                f"{self.last}: is of fold {state.get('fold')}, which was trained on cases that fold {self.fold} holds "
                f"out; resume with --fold {state.get('fold')} or train without --resume"
            )
        if state.get("plan") != plan_digest(self.bundle, _MEANING):
            raise BundleError(
                f"{self.last}: the plan was changed since in what the network sees or says ({', '.join(_MEANING)}); "
                f"train without --resume, or with --init"
            )
        try:
            plain(self.network).load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self._restore_optimizer(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            first = " ".join(" ".join(str(error).splitlines()[:2]).split())[:200]
            raise BundleError(f"{self.last}: does not fit this plan ({first}); train without --resume") from error
        engine.state.max_epochs, engine.state.epoch_length = state["max_epochs"], state["epoch_length"]
        engine.state.iteration = state["iteration"]
        engine.state.epoch = state["iteration"] // state["epoch_length"]  # one that was stopped within is finished
        engine.state.cycle, self.best, self.since_best = state["cycle"], state["best"], state["since_best"]
        engine.state.asked, engine.state.interval = state["asked"], state["interval"]
        engine.state.threads = state.get("threads", engine.state.threads)
        _take_chances(engine, state)
        if members_in(read_state(self.model)) if self.model.is_file() else False:
            self.best = {"dice": None, "step": 0}  # what was best went into an ensemble; the next validated is

    def _restore_optimizer(self, state: dict[str, Any]) -> None:
        """Take over what the optimiser has learnt; its options are those of the config, which may have others now."""
        options = [{key: value for key, value in g.items() if key != "params"} for g in self.optimizer.param_groups]
        if [set(group) - {"params"} for group in state["param_groups"]] != [set(group) for group in options]:
            raise BundleError(
                f"{self.last}: was trained with another optimizer than {type(self.optimizer).__name__}; give the "
                f"--config and --set of that run again, or train without --resume"
            )
        self.optimizer.load_state_dict(state)
        for group, own in zip(self.optimizer.param_groups, options, strict=True):
            group.update(own)


def _chances(engine: Any) -> dict[str, Any]:
    """The state of chance, and of mixed precision's scale, which the next steps depend on."""
    device, scaler = engine.state.device, engine.scaler
    return {
        "rng": torch.get_rng_state(),
        "device_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "scaler": None if scaler is None else scaler.state_dict(),
    }


def _take_chances(engine: Any, state: dict[str, Any]) -> None:
    """The inverse; what another device or precision has no use for is left."""
    device, scaler = engine.state.device, engine.scaler
    torch.set_rng_state(state["rng"])
    if device.type == "cuda" and state["device_rng"] is not None:
        torch.cuda.set_rng_state(state["device_rng"], device)
    if scaler is not None and state["scaler"]:
        scaler.load_state_dict(state["scaler"])


def fold_of_checkpoint(bundle: Path) -> int:
    """The fold whose run a bundle's last checkpoint is of.

    Raises:
        BundleError: there is none, or it cannot be read.
    """
    return int(_last_state(bundle / LAST)["fold"])


def _last_state(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BundleError(f"{path}: is missing, there is nothing to resume; train without --resume")
    return read_state(path)


def plain(network: nn.Module) -> nn.Module:
    """The network inside a distributed wrapper."""
    inner: Any = network.module if isinstance(network, (DistributedDataParallel, nn.DataParallel)) else network
    return cast(nn.Module, inner)


def weights_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """A plain state dict on the CPU, the weights in their usual order."""
    usual = torch.contiguous_format
    return {key: value.detach().cpu().clone(memory_format=usual) for key, value in plain(network).state_dict().items()}


def is_main_process() -> bool:
    """Whether this process is the one that writes."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not distributed or torch.distributed.get_rank() == 0
