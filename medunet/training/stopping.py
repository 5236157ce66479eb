"""Ctrl-C ends a run after the step in hand and leaves a usable model; errors get a sentence."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from ignite.engine import Engine, Events

from medunet.errors import ResourceError
from medunet.inference.windows import is_out_of_memory
from medunet.training.distributed import any_asks
from medunet.training.loading import refuse_lost_worker
from medunet.training.log import Log
from medunet.training.schedule import total_steps
from medunet.training.validate import Validation


class Stopping:
    """Stop cleanly on Ctrl-C and say what to change when memory runs out.

    A second Ctrl-C stops at once, and so does the first behind the last step, while a run is scored.
    """

    def __init__(self, validation: Validation, log: Log) -> None:
        self.validation, self.log = validation, log
        self._asked = self._in_step = False
        self._previous: Any = None
        self._ahead: Callable[[], bool] = lambda: True  # whether a step is

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self._install)
        engine.add_event_handler(Events.ITERATION_STARTED, self._note)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._check)
        engine.add_event_handler(Events.COMPLETED, self._close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._explain)

    def _install(self, engine: Engine) -> None:
        self._ahead = lambda: engine.state.iteration < total_steps(engine)
        try:
            self._previous = signal.signal(signal.SIGINT, self._ask)
        except ValueError:  # not in the main thread: the caller deals with signals
            self._previous = None

    def _ask(self, number: int, frame: object) -> None:
        self._restore(None)
        if not self._ahead():
            raise KeyboardInterrupt
        self._asked = True
        self.log.say("stopping after this step (Ctrl-C again stops at once)")

    def _note(self, engine: Engine) -> None:
        self._in_step = True

    def _check(self, engine: Engine) -> None:
        self._in_step = False
        if any_asks(self._asked):
            self.validation.stopped = True
            engine.terminate()

    def _restore(self, engine: Engine | None) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def _close(self, engine: Engine) -> None:
        self._restore(engine)
        self.log.close()

    def _explain(self, engine: Engine, error: Exception) -> None:
        self._restore(None)
        self.log.close()
        refuse_lost_worker(error)
        if is_out_of_memory(error) and self._in_step:  # else preprocessing or validation, which have no batch
            size = tuple(engine.state.batch["image"].shape) if isinstance(engine.state.batch, dict) else "?"
            raise ResourceError(
                f"a training step with batch {size} does not fit the memory of {engine.state.device}; plan again with "
                f"less (medunet plan ... --memory 4GB) or a smaller batch_size"
            ) from error
        raise error


class Attached:
    """A handler that is defined elsewhere in the config, at its place in the order of ``train::handlers``.

    MONAI's property check reads ``_target_`` of every entry there, so that a bare reference would fail.
    """

    def __init__(self, handler: Any) -> None:
        self.handler = handler

    def attach(self, engine: Engine) -> None:
        """Register the handler."""
        self.handler.attach(engine)
