"""Fit a run into minutes: preprocess, time a few steps and cases, then set the number of steps and validations."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from ignite.engine import Engine, Events

from medunet.errors import BundleError, ResourceError
from medunet.inference.device import synchronize
from medunet.training.allocator import keep_freed_memory, return_freed_memory
from medunet.training.calibrating import MOST_CASES
from medunet.training.cases import StoredPatches
from medunet.training.checkpoints import plain
from medunet.training.distributed import agree
from medunet.training.events import RunEvents
from medunet.training.log import Log
from medunet.training.placing import compiled_like
from medunet.training.recipe import recipe_of
from medunet.training.schedule import first_step

_VALIDATION_SHARE = 0.06  # of the time, for validations before the last
_MARGIN = 0.97  # of what is left goes to training steps
_SCORING_SECONDS = 0.15  # per case, for surface distances, pictures and files at the end
_FEWEST_EPOCHS = 4  # of a run with minutes: after each the pace is looked at again
_WARMUP, _TIMED = 2, 6  # steps of the calibration


@dataclass(frozen=True)
class Pace:
    """Measured seconds per training step and per validated case."""

    step: float
    case: float


class Budget:
    """Preprocess the training cases when the run starts; with `minutes`, fit the number of steps to the time.

    Between the two the run is prepared (`RunEvents`), and what an earlier one left is removed by whom it concerns.

    The minutes count from the making of this handler to the end of the scores, preprocessing and validation included.
    Should the machine become slower, or over a tenth faster, than it was when measured, the number of epochs is changed
    at the end of an epoch; the learning rate follows, and the checkpoint keeps the number.
    Without `minutes` the trainer's ``max_epochs`` holds; a resumed run keeps the number of its checkpoint.

    Args:
        more: a finished run that is resumed goes on for `minutes`, or ``max_epochs``, more, in whole epochs and for one
            at least; the schedule begins anew.
        validations: how often to validate before the end of the run; fewer when they would take over 6% of the time.
    """

    def __init__(
        self,
        dataset: StoredPatches,
        validator: Any,
        log: Log,
        minutes: float | None = None,
        validations: int = 10,
        resume: bool = False,
        more: bool = False,
    ) -> None:
        if minutes is not None and minutes <= 0:
            raise BundleError(f"minutes is {minutes}; give a positive number")
        self.dataset, self.validator, self.log, self.resume, self.more = dataset, validator, log, resume, more
        self._epochs = 0  # that the config asks for
        self._fitted = False
        self.seconds = None if minutes is None else 60.0 * float(minutes)
        self.validations, self.interval = int(validations), 1
        self._asked = int(validations)
        self.start = time.monotonic()
        self.reserve = self.validation_seconds = 0.0
        self._epoch_started = self.start
        self._epoch_seconds: float | None = None
        self._step_seconds = 0.0

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        self._epochs = int(engine.state.max_epochs or 1)
        engine.register_events(*RunEvents)
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._note_time)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._keep_pace)
        engine.add_event_handler(Events.COMPLETED, _stop_loading)
        engine.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: _stop_loading(engine))

    def _start(self, engine: Engine) -> None:
        held_out = getattr(self.validator.data_loader.dataset, "data", ())
        self.dataset.store.require([item for item in held_out if "label" in item])
        self.dataset.prepare(self.log.preparing)
        self._require_time()
        engine.fire_event(RunEvents.PREPARED)
        return_freed_memory()
        keep_freed_memory()
        if self.resume and self.more:
            self._extend(engine)
        elif self.seconds is not None and not self.resume:
            self._fit(engine, self.measure(engine))
        begin = getattr(engine.data_loader.sampler, "begin", None)
        if begin is not None:  # not where an overlay put another sampler
            begin(int(engine.state.iteration))
        self.interval = self._interval(engine)
        self.log.plan(engine, self.interval, recipe_of(engine, self.dataset))
        engine.state.step_clock = (time.monotonic(), engine.state.iteration)

    def _require_time(self) -> None:
        """Refuse minutes that are over before the first step: the model that is there would make place for nothing."""
        spent = time.monotonic() - self.start
        if self.seconds is not None and not self.resume and agree(int(spent >= self.seconds))[0]:
            raise ResourceError(
                f"preprocessing took {spent / 60:.2g} of the {self.seconds / 60:.2g} minutes and is kept: train again, "
                f"or with more minutes"
            )

    def _interval(self, engine: Any) -> int:
        """Epochs from one validation to the next; a run that is resumed keeps to them unless others are asked for."""
        kept = engine.state.interval if self._asked == engine.state.asked else None
        ahead = int(engine.state.max_epochs or 1) - first_step(engine) // int(engine.state.epoch_length or 1)
        engine.state.interval = int(kept or max(1, -(-ahead // max(1, self.validations))))
        engine.state.asked = self._asked
        return int(engine.state.interval)

    def _extend(self, engine: Engine) -> None:
        """Let a finished run go on; one that is not is finished first."""
        epoch, last = int(engine.state.epoch), int(engine.state.max_epochs or 0)
        if epoch < last:
            self.log.say(f"the run is not finished: it goes on to epoch {last}; extend it after that")
            return
        engine.state.cycle, engine.state.interval = int(engine.state.iteration), None
        steps, length = self._epochs * int(engine.state.epoch_length or 1), int(engine.state.epoch_length or 1)
        if self.seconds is not None:
            steps = self._steps(engine, self.measure(engine))
        engine.state.max_epochs, self.validations = agree(epoch + max(1, round(steps / length)), self.validations)

    def measure(self, trainer: Any) -> Pace:
        """Time training steps on a copy of the network and the validation of two cases."""
        trained = plain(trainer.network)
        network = compiled_like(copy.deepcopy(trained), trained)
        step = _median_seconds(_steps(trainer, network), _WARMUP)
        case = _median_seconds(_cases(self.validator), 0)
        return Pace(step, case)

    def _fit(self, engine: Engine, pace: Pace) -> None:
        steps = self._steps(engine, pace)
        if steps < 1:
            self.log.say("the minutes are too few for a step beside validation and scores: one is trained")
        epochs = max(1, min(steps, _FEWEST_EPOCHS), round(steps / int(engine.state.epoch_length or 1)))
        length = max(1, steps // epochs)
        engine.state.max_epochs, engine.state.epoch_length, self.validations = agree(epochs, length, self.validations)

    def _steps(self, engine: Engine, pace: Pace) -> int:
        """How many training steps fit into the time that is left, beside validations and scores."""
        self._fitted, self._step_seconds = True, pace.step
        self.log.calibrated(pace, engine)
        cases = len(self.validator.data_loader)
        left = float(self.seconds or 0.0) - (time.monotonic() - self.start)
        validation = cases * pace.case
        self.validation_seconds = validation
        self.reserve = validation + cases * _SCORING_SECONDS + 2 * min(cases, MOST_CASES) * pace.case
        allowed = int(_VALIDATION_SHARE * left / validation) if validation else self.validations
        self.validations = max(0, min(self.validations, allowed))
        return int(_MARGIN * (left - self.reserve - self.validations * validation) / pace.step)

    def validated(self, seconds: float) -> None:
        """Note what a validation took: those to come, the last one included, will take no less."""
        more = max(0.0, seconds - self.validation_seconds)
        self.validation_seconds, self.reserve = self.validation_seconds + more, self.reserve + more

    def _note_time(self, engine: Engine) -> None:
        self._epoch_started = time.monotonic()

    def _keep_pace(self, engine: Engine) -> None:
        if self.seconds is None or not self._fitted or int(engine.state.epoch) >= int(engine.state.max_epochs or 0):
            return
        now = time.monotonic()
        if self._epoch_seconds is None:  # as measured: the first epoch alone may be slow for reasons of its own
            self._epoch_seconds = self._step_seconds * int(engine.state.epoch_length or 1)
        self._epoch_seconds = (self._epoch_seconds + now - self._epoch_started) / 2
        left = self.seconds - (now - self.start) - self.reserve
        engine.state.max_epochs = agree(
            self.adjusted(int(engine.state.epoch), int(engine.state.max_epochs or 0), left)
        )[0]

    def adjusted(self, epoch: int, epochs: int, left: float) -> int:
        """How many epochs there shall be when `left` seconds remain for training after `epoch` of `epochs`.

        Fewer when the time would not last, more when over a tenth more would fit; else the number stays.
        """
        pace = (self._epoch_seconds or 0.0) + self.validation_seconds / self.interval
        possible = max(0, int(left / max(pace, 1e-9)))
        planned = epochs - epoch
        return epoch + possible if possible < planned or possible > 1.1 * planned + 1 else epochs


def _stop_loading(engine: Any) -> None:
    """End the processes that load ahead; an overlay's own loader has its own ways."""
    close = getattr(engine.data_loader, "close", None)
    if close is not None:
        close()


def _steps(trainer: Any, network: torch.nn.Module) -> list[Callable[[], object]]:
    """A few real training steps whose gradients go to a copy of the network."""
    network.train()
    batches = iter(trainer.data_loader)

    def step() -> None:
        image, label = trainer.prepare_batch(next(batches), trainer.state.device, trainer.non_blocking)
        with torch.autocast("cuda", enabled=trainer.amp and trainer.state.device.type == "cuda"):
            loss = trainer.loss_function(trainer.inferer(image, network), label)
        loss.backward()
        network.zero_grad()
        synchronize(trainer.state.device)

    count = min(_WARMUP + _TIMED, len(trainer.data_loader))
    return [step] * count


def _cases(validator: Any) -> list[Callable[[], object]]:
    """Reading and segmenting two cases."""
    batches = iter(validator.data_loader)

    def run() -> None:
        with torch.no_grad():
            validator.inferer(next(batches)["image"], validator.network)
        synchronize(validator.state.device)

    validator.network.eval()
    return [run] * min(2, len(validator.data_loader))


def _median_seconds(actions: list[Callable[[], object]], warmup: int) -> float:
    times = []
    for action in actions:
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    kept = sorted(times[warmup:] or times or [0.0])
    return max(1e-6, kept[len(kept) // 2])
