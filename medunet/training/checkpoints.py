"""What a run leaves behind: the best weights, the last state, and how to go on from it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Container, Iterable, Mapping, Sequence
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
from medunet.networks.ensemble import member_of, members_in
from medunet.planning.record import MEANING
from medunet.training.distributed import is_main_process
from medunet.training.events import on_prepared
from medunet.training.precision import precision_of

LAST = "models/checkpoint_last.pt"


class Checkpoints:
    """Keep ``models/model.pt`` (averaged weights, best so far) and ``models/checkpoint_last.pt`` (to resume from).

    Files are replaced whole: one that was cut while being written never takes the place of a good one. Both load with
    ``weights_only=True``. An epoch's checkpoint is written after its validation, so that a run that is killed between
    them repeats both.

    Args:
        training: items of `FoldCases` that are trained on; the checkpoint keeps a digest of each case's name.
        validation: items that are held out; a run that is resumed refuses those that it was trained on.
    """

    def __init__(
        self,
        network: nn.Module,
        average: nn.Module,
        optimizer: Optimizer,
        bundle_root: str,
        fold: int = 0,
        resume: bool = False,
        training: Sequence[Any] = (),
        validation: Sequence[Any] = (),
    ) -> None:
        self.network, self.average, self.optimizer = network, average, optimizer
        self.fold, self.resume = int(fold), resume
        self.training, self.validation = training, validation
        self.bundle = Path(bundle_root)
        self.model, self.last = self.bundle / MODEL, self.bundle / LAST
        self.best: dict[str, Any] = {"dice": None, "step": 0}
        self.since_best = 0
        """Validations since the best."""
        self._own: Path | None = None  # weights of this fold, to be taken back out of an ensemble
        self._written = False  # whether models/model.pt is of this run
        self._trained: set[str] = set()  # digests of cases, also of those that were trained on before they were moved

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self.save_last)
        on_prepared(engine, self._begin)

    def _start(self, engine: Engine) -> None:
        engine.state.cycle, engine.state.asked, engine.state.interval = 0, None, None
        engine.state.threads, engine.state.precision = torch.get_num_threads(), precision_of(engine)
        if self.resume:
            self._restore(engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save_last)  # behind all others

    def _begin(self, engine: Engine) -> None:
        """Remove what an earlier run is resumed from: this one, killed before its first epoch ends, has nothing."""
        if not is_main_process():
            return
        for half in self.last.parent.glob(".part-*.pt"):  # of a run that was killed
            half.unlink(missing_ok=True)
        if not self.resume:
            self.last.unlink(missing_ok=True)
        elif self._own is not None:
            own = self._own
            write_with(self.model, lambda part: shutil.copyfile(own, part))

    def save_last(self, engine: Engine) -> None:
        """Write the state to resume from."""
        if not is_main_process():
            return
        content = {
            "model": weights_of(self.network),
            "average": weights_of(self.average),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_kind": type(self.optimizer).__name__,
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "max_epochs": engine.state.max_epochs,
            "epoch_length": engine.state.epoch_length,
            "cycle": engine.state.cycle,
            "asked": engine.state.asked,
            "interval": engine.state.interval,
            "fold": self.fold,
            "trained": self.trained(),
            "written": self._written,
            "plan": plan_digest(self.bundle, MEANING),
            "best": self.best,
            "since_best": self.since_best,
            "threads": torch.get_num_threads(),
            "precision": precision_of(engine),
            **_chances(engine),
        }
        write_with(self.last, lambda path: torch.save(content, path))

    def offer(self, dice: float | None, step: int) -> bool:
        """Write ``model.pt`` when `dice` is the best so far, or none was above 0 yet; tell whether it was the best.

        Where no Dice tells weights apart (none is defined where nothing is to be found), the last are kept.
        """
        best = self.best["dice"]
        better = dice is not None and (best is None or dice > best)
        if better or not best:
            self._write_model()
            self.best = {"dice": dice if better else best, "step": step}
        self.since_best = 0 if better else self.since_best + 1
        return better

    def save_if_none(self) -> bool:
        """Leave a usable model when a run ends before its first validation; tell whether an earlier one is left.

        That is one of another run that fits the plan: what was trained to its end makes no place for a few steps.
        """
        left = not self._written and self._fits()
        if self.best["dice"] is None and not left:
            self._write_model()
        return left

    def _fits(self) -> bool:
        """Whether the model that is there, or each network of an ensemble, has this network's tensors."""
        if not self.model.is_file():
            return False
        try:
            there = read_state(self.model)
        except BundleError:
            return False
        first = member_of(there, 0) if members_in(there) else there
        own = plain(self.average).state_dict()
        return {key: value.shape for key, value in first.items()} == {key: value.shape for key, value in own.items()}

    def _write_model(self) -> None:
        if is_main_process():
            write_with(self.model, lambda path: torch.save(weights_of(self.average), path))
        self._written = True

    def trained(self) -> list[str]:
        """Digests of all cases that the run was trained on so far."""
        self._trained |= {_digest(item) for item in self.training}
        return sorted(self._trained)

    def _require_unseen(self, state: Mapping[str, Any]) -> None:
        """Refuse validation cases of today that were trained on."""
        self._trained = set(state.get("trained", ()))
        if name := first_seen(self.validation, self.training, self._trained):
            raise BundleError(
                f"{self.last}: was trained on {name}, which fold {self.fold} holds out now, since the folds were "
                f"changed; train without --resume"
            )

    def _restore(self, engine: Engine) -> None:
        state = _last_state(self.last)
        if state.get("fold") != self.fold:
            raise BundleError(
                f"{self.last}: is of fold {state.get('fold')}, which was trained on cases that fold {self.fold} holds "
                f"out; resume with --fold {state.get('fold')} or train without --resume"
            )
        if state.get("plan") != plan_digest(self.bundle, MEANING):
            raise BundleError(
                f"{self.last}: the plan was changed since in what the network sees or says ({', '.join(MEANING)}); "
                f"train without --resume, or with --init"
            )
        self._require_unseen(state)
        try:
            plain(self.network).load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self._restore_optimizer(state)
        except (RuntimeError, ValueError, KeyError) as error:
            first = " ".join(" ".join(str(error).splitlines()[:2]).split())[:200]
            raise BundleError(f"{self.last}: does not fit this plan ({first}); train without --resume") from error
        engine.state.max_epochs, engine.state.epoch_length = state["max_epochs"], state["epoch_length"]
        engine.state.iteration = state["iteration"]
        engine.state.epoch = state["iteration"] // state["epoch_length"]  # one that was stopped within is finished
        engine.state.cycle, self.best, self.since_best = state["cycle"], state["best"], state["since_best"]
        engine.state.asked, engine.state.interval = state["asked"], state["interval"]
        self._written = bool(state.get("written"))
        engine.state.threads = state.get("threads", engine.state.threads)
        engine.state.precision = state.get("precision", engine.state.precision)
        _take_chances(engine, state)
        if members_in(read_state(self.model)) if self.model.is_file() else False:
            self._own = fold_weights(self.bundle, self.fold)
            if not self._own.is_file():  # what was best went into the ensemble alone; the next validated is
                self._own, self._written, self.best = None, False, {"dice": None, "step": 0}

    def _restore_optimizer(self, content: Mapping[str, Any]) -> None:
        """Take over what the optimiser has learnt; its options are those of the config, which may have others now."""
        kind, state = type(self.optimizer).__name__, content["optimizer"]
        options = [{key: value for key, value in g.items() if key != "params"} for g in self.optimizer.param_groups]
        same = [set(group) - {"params"} for group in state["param_groups"]] == [set(group) for group in options]
        if content.get("optimizer_kind", kind) != kind or not same:
            raise BundleError(
                f"{self.last}: was trained with another optimizer than {kind}; give the --config and --set of that run "
                f"again, or train without --resume"
            )
        groups = [{**group, **own} for group, own in zip(state["param_groups"], options, strict=True)]
        self.optimizer.load_state_dict({**state, "param_groups": groups})


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


def fold_weights(bundle: Path, fold: int) -> Path:
    """Where a fold's best weights are kept."""
    return bundle / "models" / f"fold_{fold}.pt"


def fold_of_checkpoint(bundle: Path) -> int | None:
    """The fold whose run a bundle's last checkpoint is of; None where there is none.

    Raises:
        BundleError: it cannot be read.
    """
    return int(_last_state(bundle / LAST)["fold"]) if (bundle / LAST).is_file() else None


def told_by_checkpoint(bundle: Path) -> tuple[int | None, set[str]]:
    """The fold whose run wrote ``models/model.pt`` and digests of its cases; None and none where nothing tells.

    Raises:
        BundleError: the checkpoint cannot be read.
    """
    state = _last_state(bundle / LAST) if (bundle / LAST).is_file() else {}
    return (int(state["fold"]), set(state.get("trained", ()))) if state.get("written") else (None, set())


def first_seen(validation: Iterable[Any], training: Iterable[Any], trained: Container[str]) -> str | None:
    """The name of the first validation case whose digest is among those `trained` on; None where none is.

    A single patient, who is trained on and held out at all times, does not count.
    """
    present = {_digest(item) for item in training}
    seen = (_name(item) for item in validation if (digest := _digest(item)) in trained and digest not in present)
    return next(seen, None)


def _name(item: Any) -> str:
    """A case's name, or its images where it has none, as in a list from elsewhere."""
    return str(item.get("case", item["image"]))


def _digest(item: Any) -> str:
    return hashlib.sha256(_name(item).encode()).hexdigest()


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
