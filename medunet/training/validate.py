"""Validation on whole volumes: the same windows, restoring and metrics that everyone else uses."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator

from medunet.data.atomic import write_json, write_with
from medunet.data.grid import Grid
from medunet.data.labelling import Declared, members
from medunet.data.reader import geometry_of, sources_of
from medunet.data.transforms import grid_of, require_declared
from medunet.data.volume import write_label
from medunet.errors import BundleError
from medunet.evaluation import metrics, report, scores
from medunet.inference.weights import MODEL
from medunet.training.allocator import return_freed_memory
from medunet.training.budget import Budget
from medunet.training.calibrating import calibrate
from medunet.training.cases import FoldCases
from medunet.training.checkpoints import Checkpoints, first_seen, plain
from medunet.training.distributed import agree, is_main_process
from medunet.training.folds import forget_scores, trained_for
from medunet.training.log import Log
from medunet.training.samples import page_of
from medunet.training.schedule import first_step


class CaseScores:
    """Key metric of a validation: mean over classes of the mean Dice over cases; attaches like an Ignite metric.

    With `full` set every case gets all metrics of `medunet.evaluation`, kept in ``cases``, and its prediction is
    written to `folder`; otherwise Dice alone is computed.

    Args:
        labels: the value written for each class or region, background first.
        regions: the values of each region: both label maps show it where they have any of them.
        ignore: the references' value of voxels nobody annotated; predictions there are neither right nor wrong.
    """

    def __init__(
        self,
        labels: Mapping[str, int],
        folder: str | None = None,
        full: bool = False,
        regions: Mapping[str, Sequence[int]] | None = None,
        ignore: int | None = None,
    ) -> None:
        self.labels = members(labels, regions or {})
        self.declared = Declared(dict(labels), {name: list(values) for name, values in (regions or {}).items()}, ignore)
        self.folder, self.full, self.ignore = None if folder is None else Path(folder), full, ignore
        self.cases: list[dict[str, Any]] = []

    def attach(self, engine: Engine, name: str) -> None:
        """Register with an evaluator under `name`."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._update)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._compute, name)

    def _reset(self, engine: Engine) -> None:
        self.cases = []

    def _update(self, engine: Engine) -> None:
        for batch, output in zip(engine.state.batch, engine.state.output, strict=True):
            prediction, reference = output["pred"][0].cpu().numpy(), output["label"][0].cpu().numpy().astype(np.int64)
            files: dict[str, Any] = {
                "image": sources_of(output["image"]), "reference": sources_of(output["label"])[0],
            }  # fmt: skip
            require_declared(reference, self.declared, files["reference"])
            geometry = geometry_of(output["image"])
            files |= {} if geometry is None else {"geometry": geometry}
            self.cases.append(self._measure(batch, grid_of(output["image"]), prediction, reference, files))
        engine.state.batch = engine.state.output = None

    def _measure(
        self, batch: Any, grid: Grid, prediction: Any, reference: Any, files: Mapping[str, Any]
    ) -> dict[str, Any]:
        case, paths = str(batch.get("case", "case")), dict(files)
        if not self.full:
            masks = metrics.masks(prediction, reference, self.labels, self.ignore)
            classes = {name: {"dice": metrics.dice(*pair)} for name, pair in masks}
            return {"id": case, "classes": classes}
        if self.folder is not None:
            target = self.folder / f"{case}.nii.gz"
            write_label(target, prediction, grid)
            paths["prediction"] = str(target)
        return scores.case_scores(case, prediction, reference, self.labels, grid, paths, ignore=self.ignore)

    def _compute(self, engine: Engine, name: str) -> None:
        engine.state.metrics[name] = self.mean() or 0.0  # MONAI compares numbers

    def mean(self) -> float | None:
        """The key metric; None where no case of any class has a Dice, since nothing is to be found and nothing was."""
        values = [value for value in self.class_means().values() if value is not None]
        return float(np.mean(values)) if values else None

    def class_means(self) -> dict[str, float | None]:
        """Mean Dice per class over the cases where it is defined."""
        result: dict[str, float | None] = {}
        for name in self.labels:
            values = [case["classes"][name]["dice"] for case in self.cases]
            defined = [value for value in values if value is not None]
            result[name] = float(np.mean(defined)) if defined else None
        return result


class Validation:
    """Validate while training, keep the best weights, and score the final weights at the end.

    Leaves ``eval/fold_K/scores.json`` and ``report.html``, made with the weights of the last step, and
    ``models/quality.json``, made with those of ``models/model.pt``.

    Args:
        patience: stop after this many validations without a new best; 0 never stops. The run is finished then.
    """

    def __init__(
        self,
        validator: SupervisedEvaluator,
        metric: CaseScores,
        budget: Budget,
        checkpoints: Checkpoints,
        log: Log,
        plan: Mapping[str, Any],
        patience: int = 0,
    ) -> None:
        self.validator, self.metric, self.budget = validator, metric, budget
        self.checkpoints, self.log, self.plan, self.patience = checkpoints, log, plan, int(patience)
        self.stopped = False

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._between)
        engine.add_event_handler(Events.COMPLETED, self._final)

    def _start(self, engine: Engine) -> None:
        if engine.state.iteration == first_step(engine):  # of a run, or of its extension, which has patience again
            self.checkpoints.since_best = 0

    def _between(self, engine: Engine) -> None:
        forget_scores(self.log.folder)
        epoch, last = int(engine.state.epoch), int(engine.state.max_epochs or 0)
        if epoch >= last or epoch % self.budget.interval:
            return
        if is_main_process():
            self._run(engine)
        if self.patience and agree(self.checkpoints.since_best)[0] >= self.patience:
            self.log.say(f"no new best in {self.patience} validations: stopped early")
            engine.state.max_epochs = epoch

    def _run(self, engine: Engine) -> None:
        start = time.monotonic()
        self.validator.run(int(engine.state.epoch))
        self.budget.validated(time.monotonic() - start)
        dice = self.metric.mean()
        best = self.checkpoints.offer(dice, engine.state.iteration)
        self.log.validated(engine, dice, self.metric.class_means(), best)
        return_freed_memory()

    def _final(self, engine: Engine) -> None:
        if not is_main_process():
            return
        if self.stopped or not len(self.validator.data_loader):
            if self.checkpoints.save_if_none():
                self.log.say(f"no weights were validated: {self.checkpoints.model} is still that of the run before")
            self.checkpoints.save_last(engine)
            forget_scores(self.log.folder)
            return
        self.metric.full, self.metric.folder = True, self.log.folder / "predictions"
        self._run(engine)
        self.checkpoints.save_last(engine)
        facts = {"weights": "final", "best": dict(self.checkpoints.best)}
        write_fold(self.log, self.metric, self.plan, facts, page_of(self.budget.dataset))
        network, cases = plain(self.checkpoints.network), self.validator.data_loader.dataset
        model, metric = self.checkpoints.model, self.metric
        trained = self.checkpoints.trained()
        calibrate(self.validator.inferer, network, cases, metric.labels, model, self.log.fold, trained, metric.ignore)


def write_fold(
    log: Log, metric: CaseScores, plan: Mapping[str, Any], extra: Mapping[str, Any], samples: bytes | None
) -> None:
    """Write ``scores.json`` and ``report.html`` of a fold; `samples`: a PNG of augmented patches, kept beside them."""
    content = scores.summarise(metric.cases, metric.labels, dict(extra))
    scores.write_scores(log.folder / "scores.json", content)
    log.write("scores", dice=content["summary"]["dice"]["mean"])
    if samples is None:
        (log.folder / report.SAMPLES).unlink(missing_ok=True)
    else:
        write_with(log.folder / report.SAMPLES, lambda path: path.write_bytes(samples))
    title = f"{plan['name']}, {log.folder.name.replace('_', ' ')}"
    values = {key: value for key, value in plan.items() if key != "reasons"}
    report.write_report(
        content, log.folder / "report.html",
        title=title, plan=values, reasons=plan["reasons"], log=log.rows(), samples=samples,
    )  # fmt: skip


class ScoresWriter:
    """Write the scores of an evaluation run (``evaluate.yaml``) to `path` when it is done.

    Args:
        cases: what is scored; validation cases of another fold than the weights were trained for are refused.
        weights: what predicts, below `bundle_root` or absolute.

    Raises:
        BundleError: (when the run starts) the weights were trained on the cases.
    """

    def __init__(
        self, metric: CaseScores, bundle_root: str, path: str, cases: Any = None, weights: str = MODEL
    ) -> None:
        self.metric, self.bundle, self.path = metric, Path(bundle_root), Path(bundle_root) / path
        self.cases, self.weights = cases, self.bundle / weights

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.STARTED, self._require_unseen)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _require_unseen(self, engine: Engine) -> None:
        if not isinstance(self.cases, FoldCases) or self.cases.part != "validation":
            return
        fold, trained = trained_for(self.bundle, self.weights)
        if fold not in (None, self.cases.fold):
            raise BundleError(
                f"{self.weights}: is of fold {fold}, which was trained on cases that fold {self.cases.fold} holds out; "
                f"evaluate fold {fold} (--fold {fold}) or the test cases (--part test)"
            )
        if name := first_seen(self.cases, self.cases.others(), trained):
            raise BundleError(
                f"{self.weights}: was trained on {name}, which fold {self.cases.fold} holds out now, since the folds "
                f"were changed; train again, or evaluate the test cases (--part test)"
            )

    def _write(self, engine: Engine) -> None:
        if self.metric.cases:
            scores.write_scores(self.path, scores.summarise(self.metric.cases, self.metric.labels, None))
        else:
            write_json(self.path, {"summary": {}, "classes": {}, "cases": []})
