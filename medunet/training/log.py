"""What a run tells: JSON lines and TensorBoard on disk; a bar with the time left on a terminal, else plain lines."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from medunet.data.atomic import read_rows, remove_stale, write_text
from medunet.training.distributed import is_main_process
from medunet.training.events import on_prepared
from medunet.training.precision import precision_of
from medunet.training.schedule import total_steps

_EVERY_SECONDS = 20.0  # between two plain lines


class Log:
    """Write ``eval/fold_K/log.jsonl`` and TensorBoard events, and show progress.

    Rows: ``{"event": "start", "steps", "epochs", "recipe", "time", ...}`` (see `recipe_of`), ``{"event": "train",
    "step", "epoch", "loss", "lr", "time"}`` per epoch and ``{"event": "validate", "step", "epoch", "dice", "classes",
    "time"}``; time in seconds since the start.
    """

    def __init__(self, bundle_root: str, fold: int = 0, quiet: bool = False) -> None:
        self.fold, self.folder = int(fold), Path(bundle_root) / "eval" / f"fold_{fold}"
        self.quiet = quiet
        self.start = time.monotonic()
        self.losses: list[Tensor] = []
        self._shown = 0.0
        self._bar: Any = None
        self._board: Any = None

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        on_prepared(engine, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        engine.add_event_handler(Events.COMPLETED, self._stop_bar)

    @property
    def path(self) -> Path:
        """The JSON-lines file."""
        return self.folder / "log.jsonl"

    def rows(self) -> list[dict[str, Any]]:
        """Everything written so far."""
        return read_rows(self.path)

    def write(self, event: str, **values: Any) -> None:
        """Append a row."""
        if not is_main_process():
            return
        row = {"event": event, **values, "time": round(time.monotonic() - self.start, 2)}
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def say(self, text: str) -> None:
        """A line on the terminal."""
        if self.quiet or not is_main_process():
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            print(text, flush=True)

    def preparing(self, done: int, total: int) -> None:
        """Progress of the preprocessing."""
        now = time.monotonic()
        if done == total or now - self._shown > _EVERY_SECONDS:
            self._shown = now
            self.say(f"preprocessed {done} of {total} training cases")

    def calibrated(self, pace: Any, engine: Engine) -> None:
        """Note what a step and a validated case take."""
        self.write("calibrate", seconds_per_step=round(pace.step, 4), seconds_per_case=round(pace.case, 4))
        self.say(f"measured: {pace.step:.2f} s a step, {pace.case:.2f} s a validated case")

    def plan(self, engine: Engine, interval: int, recipe: Mapping[str, Any]) -> None:
        """Say what is ahead, and note what it is done with."""
        steps, done = total_steps(engine), engine.state.iteration
        recipes = [row["recipe"] for row in self.rows() if done and row.get("recipe")]
        self.write(
            "start", steps=steps, epochs=engine.state.max_epochs, validate_every_epochs=interval, recipe=dict(recipe)
        )
        if int(engine.state.epoch) >= int(engine.state.max_epochs or 0):
            self.say(f"the run is finished after {steps} steps; --resume with --minutes or --epochs trains more")
            return
        ahead = f"training on from step {done} to {steps}" if done else f"training {steps} steps"
        self.say(f"fold {self.fold}: {ahead}, validating every {interval * int(engine.state.epoch_length or 1)}")
        self._tell_changes(engine, recipes[-1] if recipes else {}, recipe)

    def _tell_changes(self, engine: Engine, before: Mapping[str, Any], recipe: Mapping[str, Any]) -> None:
        """What is not as it was in the run so far, so that the weights will be others."""
        threads, had = torch.get_num_threads(), engine.state.threads
        if threads != had:
            self.say(
                f"PyTorch has {threads} threads, the run so far had {had}: sums are rounded otherwise, so that the "
                f"weights will not be those of an undisturbed run (with OMP_NUM_THREADS={had} they will)"
            )
        now, was = precision_of(engine), engine.state.precision
        if now != was:
            self.say(
                f"the network computes in {now} here, in the run so far it did in {was}: the weights will not be "
                f"those of an undisturbed run"
            )
        others = [key for key in recipe if key != "precision" and key in before and before[key] != recipe[key]]
        if others:
            told = ", ".join(f"{key} {before[key]} and now {recipe[key]}" for key in others)
            self.say(f"the run so far had {told}: give its --config and --set again where this is not meant")

    def validated(self, engine: Engine, dice: float | None, classes: Mapping[str, float | None], best: bool) -> None:
        """Note a validation."""
        values = {name: value if value is None else round(value, 5) for name, value in classes.items()}
        self.write(
            "validate", step=engine.state.iteration, epoch=engine.state.epoch,
            dice=None if dice is None else round(dice, 5), classes=values, best=best,
        )  # fmt: skip
        shown = ", ".join(f"{name} {'-' if value is None else f'{value:.3f}'}" for name, value in values.items())
        mean = "-" if dice is None else f"{dice:.4f}"
        self.say(f"step {engine.state.iteration}: validation Dice {mean} ({shown}){'  best so far' if best else ''}")
        if self._board is not None and dice is not None:
            self._board.add_scalar("validation/dice", dice, engine.state.iteration)

    def _begin(self, engine: Engine) -> None:
        if not is_main_process():
            return
        curves = self.folder / "tensorboard"
        if engine.state.iteration == 0:
            self.path.unlink(missing_ok=True)
            shutil.rmtree(curves, ignore_errors=True)
        self._mend()
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(curves))
        if sys.stderr.isatty() and not self.quiet:
            self._bar = _progress_bar()
            self._bar.start()
            self._task = self._bar.add_task("training", total=None)

    def _mend(self) -> None:
        """Tidy up behind a run that was killed: a row cut short, and temporary files."""
        remove_stale(self.folder)
        if self.path.is_file() and not self.path.read_bytes().endswith(b"\n"):
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows()))

    def _step(self, engine: Engine) -> None:
        self.losses.append(engine.state.output["loss"].detach())  # stays on the device: reading it would wait for it
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, total=total_steps(engine), completed=engine.state.iteration)
        elif now - self._shown > _EVERY_SECONDS:
            self._shown = now
            step, loss = engine.state.iteration, float(self.losses[-1])
            self.say(f"step {step} of {total_steps(engine)}, loss {loss:.3f}, {self._left(engine)} left")

    def _left(self, engine: Engine) -> str:
        started, first = engine.state.step_clock
        done = max(1, engine.state.iteration - first)
        seconds = (time.monotonic() - started) / done * (total_steps(engine) - engine.state.iteration)
        return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"

    def _epoch(self, engine: Engine) -> None:
        mean, rate = float(torch.stack(self.losses).mean()), engine_rate(engine)
        self.losses = []
        self.write("train", step=engine.state.iteration, epoch=engine.state.epoch, loss=round(mean, 5), lr=rate)
        if self._board is not None:
            self._board.add_scalar("training/loss", mean, engine.state.iteration)
            self._board.add_scalar("training/learning_rate", rate, engine.state.iteration)

    def _stop_bar(self, *_: Engine) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def close(self) -> None:
        """Stop the bar and close the TensorBoard file, also after an error."""
        self._stop_bar()
        if self._board is not None:
            self._board.close()
            self._board = None


def engine_rate(engine: Any) -> float:
    """The current learning rate of the trainer."""
    return float(engine.optimizer.param_groups[0]["lr"])


def _progress_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
