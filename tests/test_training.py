"""Patches, sampling, losses, schedule, budget, checkpoints, and runs that are stopped, resumed or broken."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ignite.engine import Engine, Events
from torch import nn
from torch.utils.data import DataLoader, Dataset

from medunet import verbs
from medunet.bundle import read_plan
from medunet.bundle.running import load_workflow
from medunet.data.volume import read_label, write_label
from medunet.errors import BundleError, DatasetError, InputError, ResourceError, TrainingError
from medunet.inference.device import mixed_type
from medunet.networks.ensemble import joined
from medunet.training import (
    Budget,
    CaseSampler,
    CaseScores,
    Checkpoints,
    CutPatch,
    DiceCE,
    FoldCases,
    Guards,
    Schedule,
    Stopping,
    WeightAverage,
    twin,
)
from medunet.training.budget import Pace, _cases
from medunet.training.checkpoints import weights_of
from medunet.training.entry import Entry, write_entry
from medunet.training.initial import merged


def stored(folder: Path, label: np.ndarray) -> Entry:
    write_entry(folder / "x.case", np.zeros((1, *label.shape), np.float32), label, (32, 32, 32))
    return Entry(folder / "x.case")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(*[st.integers(1, 20)] * 3), st.tuples(*[st.integers(2, 12)] * 3), st.floats(0, 1), st.integers(0, 1000)
)
def test_patches_lie_inside_or_around_the_volume(
    tmp_path: Path, shape: tuple[int, int, int], size: tuple[int, int, int], foreground: float, seed: int
) -> None:
    label = np.zeros(shape, np.uint8)
    label[0, 0, 0] = label[-1, -1, -1] = 1
    cut = CutPatch(size, foreground).draw(np.random.default_rng(seed), stored(tmp_path, label))
    assert cut.size == size
    for start, patch, length in zip(cut.start, size, shape, strict=True):
        assert 0 <= start <= length - patch if length >= patch else start == -((patch - length) // 2)


def test_foreground_patches_hold_the_class_they_were_drawn_for(tmp_path: Path) -> None:
    label = np.zeros((30, 30, 30), np.uint8)
    label[3, 27, 15] = 2
    case, generator = stored(tmp_path, label), np.random.default_rng(0)

    def hits(foreground: float) -> list[bool]:
        cuts = [CutPatch((8, 8, 8), foreground).draw(generator, case) for _ in range(40)]
        return [bool((case.read(cut.box(cut.size))[1] == 2).any()) for cut in cuts]

    assert all(hits(1.0))
    assert sum(hits(0.0)) < 20


def test_classes_are_drawn_equally_often_however_large(tmp_path: Path) -> None:
    label = np.ones((30, 30, 30), np.uint8)
    label[20, 20, 20] = 2
    case, generator = stored(tmp_path, label), np.random.default_rng(0)
    cuts = [CutPatch((4, 4, 4), 1.0).draw(generator, case) for _ in range(200)]
    assert 70 < sum(cut.start == (18, 18, 18) for cut in cuts) < 130


@given(st.integers(1, 9), st.integers(1, 8), st.integers(1, 6), st.integers(1, 4))
def test_every_case_is_drawn_equally_often_over_all_passes(cases: int, batch: int, steps: int, passes: int) -> None:
    sampler = CaseSampler([{"weight": 1.0}] * cases, batch, steps)
    draws = [sample for _ in range(passes) for sample in sampler]
    counts = np.bincount([sample.case for sample in draws], minlength=cases)
    assert [sample.number for sample in draws] == list(range(batch * steps * passes))
    assert counts.max() - counts.min() <= 1


@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 5))
def test_processes_share_the_draws_of_one(cases: int, batch: int, steps: int) -> None:
    data = [{"weight": 1.0}] * cases
    whole = CaseSampler(data, 2 * batch, steps, seed=3)
    parts = [CaseSampler(data, batch, steps, seed=3) for _ in range(2)]
    for rank, part in enumerate(parts):
        part.rank, part.processes = rank, 2
    for _ in range(2):
        assert list(whole) == [n for pair in zip(*parts, strict=True) for n in pair]


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 5), st.integers(0, 8), st.booleans())
def test_a_pass_may_begin_at_any_step(cases: int, batch: int, steps: int, step: int, equal: bool) -> None:
    data = [{"weight": 1.0 if equal else 1.0 + number} for number in range(cases)]
    whole, late = CaseSampler(data, batch, steps + step), CaseSampler(data, batch, steps)
    late.begin(step)
    assert list(whole)[step * batch :] == list(late)


def test_weights_and_passes_change_the_draws() -> None:
    data = [{"weight": 9.0}, {"weight": 1.0}]
    sampler, twin = (CaseSampler(data, 100, 10, seed=1) for _ in range(2))
    first = list(sampler)
    assert 820 < sum(sample.case == 0 for sample in first) < 970
    assert list(twin) == first
    assert [sample.case for sample in sampler] != [sample.case for sample in first]
    with pytest.raises(DatasetError, match="the fold has no training case"):
        iter(CaseSampler([], 1, 1))


def test_loss_is_dice_plus_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, label = torch.randn(2, 3, 4, 4, 4), torch.randint(0, 3, (2, 1, 4, 4, 4))
    p, one_hot = logits.softmax(1), torch.nn.functional.one_hot(label[:, 0], 3).permute(0, 4, 1, 2, 3).float()
    axes = (0, 2, 3, 4)
    dice = 1 - ((2 * (p * one_hot).sum(axes) + 1e-5) / (p.sum(axes) + one_hot.sum(axes) + 1e-5))[1:].mean()
    entropy = -(one_hot * logits.log_softmax(1)).sum(1).mean()
    assert torch.allclose(DiceCE(3)(logits, label), dice + entropy, atol=1e-5)


def test_deep_supervision_weighs_each_output() -> None:
    torch.manual_seed(0)
    full, half = torch.randn(1, 2, 8, 8), torch.randn(1, 2, 4, 4)
    label = torch.randint(0, 2, (1, 1, 8, 8))
    loss = DiceCE(2)
    small = torch.nn.functional.interpolate(label.float(), scale_factor=0.5, mode="nearest-exact")
    expected = (loss(full, label) * 2 + loss(half, small)) / 3
    assert torch.allclose(loss([full, half], label), expected)


@settings(max_examples=30)
@given(st.integers(1, 2000), st.integers(0, 300), st.sampled_from(["cosine", "poly", "constant"]))
def test_the_schedule_rises_then_falls(total: int, warmup: int, decay: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = Schedule(optimizer, warmup, decay)
    factors = [schedule.factor(step, total) for step in range(total)]
    peak = min(warmup, total // 10)
    assert all(0 <= f <= 1 for f in factors)
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert factors[peak] == 1.0
    if decay != "constant" and total > 50:
        assert factors[-1] < 0.15
    engine = SimpleNamespace(state=SimpleNamespace(iteration=1, max_epochs=1, epoch_length=total))
    schedule(engine)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * factors[0])


def test_schedule_and_parts_are_named() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(BundleError, match="give constant, cosine or poly"):
        Schedule(optimizer, 1, "step")
    with pytest.raises(BundleError, match="give training, validation or test"):
        FoldCases(".", ".", 0, "all")


def test_a_trained_bundle_leaves_what_the_design_says(trained_bundle: Path) -> None:
    state = torch.load(trained_bundle / "models" / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    last = torch.load(trained_bundle / "models" / "checkpoint_last.pt", weights_only=True)
    assert last["iteration"] == 6
    fold = trained_bundle / "eval" / "fold_0"
    rows = [json.loads(line) for line in (fold / "log.jsonl").read_text().splitlines()]
    assert {row["event"] for row in rows} >= {"start", "train", "validate", "scores"}
    assert list((fold / "tensorboard").iterdir())
    assert "<svg" in (fold / "report.html").read_text()
    scores = json.loads((fold / "scores.json").read_text())
    assert scores["weights"] == "final"
    quality = json.loads((trained_bundle / "models" / "quality.json").read_text())
    assert set(quality["classes"]) == set(scores["classes"])
    for case in scores["cases"]:
        assert Path(case["prediction"]).is_file()
        assert Path(case["reference"]).is_file()


def test_resume_goes_on_where_it_stopped(trained_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(trained_bundle, tmp_path / "b"))
    last = bundle / "models" / "checkpoint_last.pt"
    state = torch.load(last, weights_only=True)
    torch.save({**state, "max_epochs": 3}, last)
    verbs.train(bundle, 0, {"quiet": True, "resume": True, "device::name": "cpu"})
    after = torch.load(last, weights_only=True)
    assert (after["iteration"], after["epoch"]) == (9, 3)
    last.unlink()
    with pytest.raises(BundleError, match="there is nothing to resume"):
        verbs.train(bundle, 0, {"quiet": True, "resume": True, "device::name": "cpu"})


def test_a_run_goes_on_with_its_optimizer_and_other_options(trained_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(trained_bundle, tmp_path / "b"))
    values = {"quiet": True, "resume": True, "device::name": "cpu", "train::trainer::max_epochs": 1, "more": True}
    other = {"_target_": "torch.optim.SGD", "params": {"_target_": "torch.nn.Module.parameters", "self": "@network"}}
    words = r"checkpoint_last\.pt: was trained with another optimizer than SGD; give the --config and --set of that run"
    with pytest.raises(BundleError, match=words):
        verbs.train(bundle, 0, {**values, "optimizer": {**other, "lr": 0.1}})
    words = r"checkpoint_last\.pt: was trained with another optimizer than Adam; give"  # of the same options
    with pytest.raises(BundleError, match=words):
        verbs.train(bundle, 0, {**values, "optimizer::_target_": "torch.optim.Adam"})
    trainer = load_workflow(bundle, "train.yaml", "train", {**values, "optimizer::weight_decay": 0.5}).parser
    optimizer = trainer.get_parsed_content("optimizer")
    trainer.get_parsed_content("train::trainer").run()
    assert optimizer.param_groups[0]["weight_decay"] == 0.5
    assert int(next(iter(optimizer.state.values()))["step"]) == 9
    path = bundle / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["authors"] = "others"  # not of the plan
    path.write_text(json.dumps(metadata))
    metadata["plan"]["network"]["channels"] = [6, 8, 16]
    path.write_text(json.dumps(metadata))
    with pytest.raises(BundleError, match=r"does not fit this plan \(.*\); train without") as told:
        verbs.train(bundle, 0, values)
    assert len(str(told.value)) < 500
    metadata["plan"]["spacing"][0] /= 2
    path.write_text(json.dumps(metadata))
    with pytest.raises(BundleError, match=r"checkpoint_last\.pt: the plan was changed since in what .* train without"):
        verbs.train(bundle, 0, values)


def test_a_run_that_goes_on_with_other_threads_says_that_its_weights_will_differ(
    trained_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """1 and 2 threads sum gradients in another order."""
    bundle = Path(shutil.copytree(trained_bundle, tmp_path / "b"))
    last = bundle / "models" / "checkpoint_last.pt"
    state = torch.load(last, weights_only=True)
    here = state["threads"]
    assert here == torch.get_num_threads()
    for threads, told in ((here, False), (here + 3, True)):
        torch.save({**state, "max_epochs": 3, "threads": threads}, last)
        verbs.train(bundle, 0, {"resume": True, "device::name": "cpu"})
        said = " ".join(capsys.readouterr().out.split())
        assert "fold 0: training on from step 6 to 9" in said
        words = f"PyTorch has {here} threads, the run so far had {threads}: sums are rounded otherwise"
        assert (words in said) == told


def test_a_run_that_goes_on_in_another_precision_says_so(
    trained_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was begun on a processor that is faster in bfloat16, and goes on on another."""
    bundle = Path(shutil.copytree(trained_bundle, tmp_path / "b"))
    last = bundle / "models" / "checkpoint_last.pt"
    state = torch.load(last, weights_only=True)
    here = "float32" if mixed_type(torch.device("cpu")) is None else "bfloat16"
    assert state["precision"] == here
    torch.save({**state, "max_epochs": 3, "precision": "float16"}, last)
    verbs.train(bundle, 0, {"resume": True, "device::name": "cpu"})
    said = " ".join(capsys.readouterr().out.split())
    assert f"the network computes in {here} here, in the run so far it did in float16: the weights will not be" in said


def test_a_checkpoint_is_resumed_for_its_own_fold_alone(trained_bundle: Path, tmp_path: Path) -> None:
    """Another fold would be validated on cases that the weights were trained on."""
    bundle = Path(shutil.copytree(trained_bundle, tmp_path / "b"))
    values = {"quiet": True, "resume": True, "device::name": "cpu", "train::trainer::max_epochs": 1}
    with pytest.raises(BundleError, match=r"is of fold 0, which was trained on cases that fold 1 holds out"):
        verbs.train(bundle, 1, values)


def test_a_run_is_not_resumed_that_would_be_validated_on_its_own_cases(trained_bundle: Path, tmp_path: Path) -> None:
    """The user corrected a column of the dataset and planned again: the folds are others now."""
    bundle = Path(shutil.copytree(trained_bundle, tmp_path / "b"))
    values = {"quiet": True, "resume": True, "device::name": "cpu"}
    path, last = bundle / "eval" / "index.json", bundle / "models" / "checkpoint_last.pt"
    held_out = [case["id"] for case in json.loads((bundle / "eval/fold_0/scores.json").read_text())["cases"]]
    index = json.loads(path.read_text())
    names = [case["id"] for case in index["training"] if case["id"] not in held_out]
    assert not [name for name in names if name.encode() in last.read_bytes()]

    def move(into: list[str]) -> None:
        cases = [{**case, "split": "0" if case["id"] in into else "1"} for case in index["training"]]
        path.write_text(json.dumps({**index, "training": cases}))

    move([*held_out, names[0]])
    with pytest.raises(BundleError, match=rf"was trained on {names[0]}, which fold 0 holds out now, since the folds"):
        verbs.train(bundle, 0, values)
    extra = held_out[:1] if len(held_out) > 1 else []
    move(held_out[len(extra) :])  # one case more to train on
    torch.save({**torch.load(last, weights_only=True), "max_epochs": 3}, last)
    verbs.train(bundle, 0, values)
    assert len(torch.load(last, weights_only=True)["trained"]) == len(names) + len(extra)


def test_a_run_killed_in_its_first_epoch_leaves_nothing_to_resume(trained_bundle: Path, tmp_path: Path) -> None:
    """Least of all the run before it; its curves are gone too."""
    bundle = Path(shutil.copytree(trained_bundle, tmp_path / "b"))
    values = {"quiet": True, "device::name": "cpu", "train::trainer::max_epochs": 2}
    trainer = load_workflow(bundle, "train.yaml", "train", values).parser.get_parsed_content("train::trainer")
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.run()
    assert len(list((bundle / "eval/fold_0/tensorboard").iterdir())) == 1
    with pytest.raises(BundleError, match="there is nothing to resume"):
        verbs.train(bundle, 0, {**values, "resume": True})


def test_while_no_dice_tells_weights_apart_the_last_are_the_best(tmp_path: Path) -> None:
    """A fold of healthy controls: no Dice is defined where nothing was found, and false positives are 0."""
    network = nn.Linear(1, 1)
    checkpoints = Checkpoints(network, network, torch.optim.SGD(network.parameters(), lr=0.1), str(tmp_path))
    (tmp_path / "models").mkdir()
    (tmp_path / "models/model.pt").write_bytes(b"of another run")
    kept = []
    for step, dice in enumerate((None, 0.0, None, 0.0, 0.4, None, 0.0, 0.3, 0.5), 1):
        nn.init.constant_(network.bias, step)
        checkpoints.offer(dice, step)
        kept.append(int(torch.load(tmp_path / "models/model.pt", weights_only=True)["bias"]))
        assert checkpoints.best["step"] == kept[-1]
    assert kept == [1, 2, 3, 4, 5, 5, 5, 5, 9]
    metric = CaseScores({"background": 0, "a": 1, "b": 2})
    metric.cases = [{"id": "x", "classes": {"a": {"dice": None}, "b": {"dice": None}}}]
    assert metric.mean() is None
    metric.cases[0]["classes"]["a"]["dice"] = 0.0
    assert metric.mean() == 0.0


@pytest.mark.parametrize("kind", ["of one", "of an ensemble", "of another network"])
def test_a_run_that_is_stopped_at_once_leaves_the_model_before(
    trained_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """What was trained to its end makes no place for a few steps; its scores go with its log."""
    bundle = Path(shutil.copytree(trained_bundle, tmp_path / "b"))
    model = bundle / "models" / "model.pt"
    state = torch.load(model, weights_only=True)
    if kind == "of an ensemble":
        torch.save(joined([state, state]), model)
    elif kind == "of another network":
        torch.save({key: value[:1] for key, value in state.items()}, model)
    before = model.read_bytes()
    values = {"device::name": "cpu", "train::trainer::max_epochs": 2}
    parser = load_workflow(bundle, "train.yaml", "train", values).parser
    trainer, validation = (parser.get_parsed_content(key) for key in ("train::trainer", "validation"))

    def stop() -> None:
        validation.stopped = True
        trainer.terminate()

    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), stop)
    trainer.run()
    told = f"no weights were validated: {model} is still that of the run before"
    assert ((model.read_bytes() == before), told in " ".join(capsys.readouterr().out.split())) == (
        (False, False) if kind == "of another network" else (True, True)
    )
    assert not [path for path in (bundle / "eval" / "fold_0").iterdir() if path.name.startswith(("scores", "report"))]


def test_a_report_that_is_made_again_shows_the_patches_too(trained_bundle: Path, tmp_path: Path) -> None:
    made = (trained_bundle / "eval" / "fold_0" / "report.html").read_text()
    again = verbs.report(trained_bundle, tmp_path / "report.html").read_text()
    assert made.count("augmented patches") == again.count("augmented patches") == 1


def test_a_finished_run_is_extended_only_when_that_is_asked(trained_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(trained_bundle, tmp_path / "b"))
    last = bundle / "models" / "checkpoint_last.pt"
    values = {"quiet": True, "resume": True, "device::name": "cpu", "train::trainer::max_epochs": 2}
    before = torch.load(last, weights_only=True)
    verbs.train(bundle, 0, values)
    again = torch.load(last, weights_only=True)
    assert (again["iteration"], again["cycle"]) == (6, 0)
    assert all(torch.equal(before["model"][key], again["model"][key]) for key in before["model"])
    workflow = load_workflow(bundle, "train.yaml", "train", {**values, "more": True})
    trainer = workflow.parser.get_parsed_content("train::trainer")
    rates: list[float] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: rates.append(trainer.optimizer.param_groups[0]["lr"]))
    trainer.run()
    after = torch.load(last, weights_only=True)
    assert (after["iteration"], after["epoch"], after["cycle"]) == (12, 4, 6)
    assert rates[0] == pytest.approx(0.5 * 0.002)
    assert rates == sorted(rates, reverse=True)
    assert json.loads((bundle / "eval" / "fold_0" / "scores.json").read_text())["cases"]
    torch.save({**after, "max_epochs": 5}, last)  # broken off in the extension: it is finished first
    verbs.train(bundle, 0, {**values, "more": True})
    assert torch.load(last, weights_only=True)["epoch"] == 5


def test_a_run_killed_between_training_and_validation_repeats_both(planned_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    values = {"quiet": True, "device::name": "cpu", "train::trainer::max_epochs": 3, "store": str(tmp_path / "store")}
    workflow = load_workflow(bundle, "train.yaml", "train", values)
    evaluator = workflow.parser.get_parsed_content("validate::evaluator")
    seen: list[int] = []

    def break_off() -> None:
        seen.append(1)
        if len(seen) == 2:
            raise ZeroDivisionError

    evaluator.add_event_handler(Events.STARTED, break_off)
    with pytest.raises(ZeroDivisionError):
        workflow.parser.get_parsed_content("train::trainer").run()
    assert torch.load(bundle / "models" / "checkpoint_last.pt", weights_only=True)["epoch"] == 1
    verbs.train(bundle, 0, {**values, "resume": True})
    rows = [json.loads(line) for line in (bundle / "eval" / "fold_0" / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows if row["event"] == "validate"] == [1, 2, 3]


def test_a_run_that_was_killed_ends_in_the_same_weights(planned_bundle: Path, tmp_path: Path) -> None:
    """One run trains four epochs; its twin breaks off in the third and goes on from the checkpoint."""
    whole, broken = (Path(shutil.copytree(planned_bundle, tmp_path / name)) for name in ("whole", "broken"))
    values = {"quiet": True, "device::name": "cpu", "train::trainer::max_epochs": 4, "store": str(tmp_path / "store")}
    verbs.train(whole, 0, values)
    workflow = load_workflow(broken, "train.yaml", "train", values)
    trainer = workflow.parser.get_parsed_content("train::trainer")
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=8), lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.run()
    assert torch.load(broken / "models" / "checkpoint_last.pt", weights_only=True)["epoch"] == 2
    verbs.train(broken, 0, {**values, "resume": True, "train::dataloader::num_workers": 1})
    first, second = (torch.load(b / "models" / "checkpoint_last.pt", weights_only=True) for b in (whole, broken))
    for part in ("model", "average"):
        assert all(torch.equal(first[part][key], second[part][key]) for key in first[part])


def test_a_run_that_was_stopped_within_an_epoch_finishes_it(planned_bundle: Path, tmp_path: Path) -> None:
    """As by Ctrl-C: no step is lost, and the weights are those of a run that was left alone."""
    whole, stopped = (Path(shutil.copytree(planned_bundle, tmp_path / name)) for name in ("whole", "stopped"))
    values = {"quiet": True, "device::name": "cpu", "train::trainer::max_epochs": 3, "store": str(tmp_path / "store")}
    verbs.train(whole, 0, values)
    parser = load_workflow(stopped, "train.yaml", "train", values).parser
    trainer, validation = (parser.get_parsed_content(key) for key in ("train::trainer", "validation"))

    def stop() -> None:
        validation.stopped = True
        trainer.terminate()

    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), stop)
    trainer.run()
    verbs.train(stopped, 0, {**values, "resume": True})
    first, second = (torch.load(b / "models" / "checkpoint_last.pt", weights_only=True) for b in (whole, stopped))
    assert (second["epoch"], second["iteration"]) == (3, 9)
    assert all(torch.equal(first["average"][key], second["average"][key]) for key in first["average"])


@given(st.integers(1, 5000), st.floats(0, 0.5))
def test_an_average_forgets_its_beginning_and_then_looks_back_over_a_share(total: int, share: float) -> None:
    average = WeightAverage(nn.Linear(1, 1), nn.Linear(1, 1), share)
    decays = [average.decay(step, total) for step in range(1, total + 1)]
    assert decays == sorted(decays)
    assert all(0 <= decay < 1 for decay in decays)
    assert decays[-1] == pytest.approx(1 - 1 / max(1.0, share * total))
    assert decays[0] < 0.2


def test_the_average_is_that_of_the_weights() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    other = twin(network, torch.device("cpu"))
    average = WeightAverage(network, other)
    first = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        for weights in network.parameters():
            weights.add_(1.0)
    network[1].num_batches_tracked.add_(3)
    average.update(0.75)
    kept = other.state_dict()
    assert torch.allclose(kept["0.weight"], first["0.weight"] + 0.25)
    assert int(kept["1.num_batches_tracked"]) == 3
    with pytest.raises(BundleError, match=r"averaged over is 1\.5; give 0 to below 1"):
        WeightAverage(network, other, 1.5)


def test_gradients_are_shortened_and_a_broken_loss_spoils_no_checkpoint(planned_bundle: Path, tmp_path: Path) -> None:
    weight = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    Guards(optimizer, 2.0).attach(Engine(lambda engine, batch: None))
    weight.grad = torch.tensor([30.0, 0.0, 40.0])
    optimizer.step()
    assert torch.allclose(weight.detach(), torch.tensor([-1.2, 0.0, -1.6]), atol=1e-4)
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    values = {"quiet": True, "device::name": "cpu", "train::trainer::max_epochs": 2}
    trainer = load_workflow(bundle, "train.yaml", "train", values).parser.get_parsed_content("train::trainer")

    def spoil() -> None:
        with torch.no_grad():
            next(trainer.network.parameters()).fill_(torch.nan)

    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), spoil)
    with pytest.raises(TrainingError, match=r"step 5: the loss is not a number, the checkpoints are from before"):
        trainer.run()
    last = torch.load(bundle / "models" / "checkpoint_last.pt", weights_only=True)
    assert last["epoch"] == 1
    assert all(bool(torch.isfinite(value).all()) for value in last["model"].values())


def test_ctrl_c_after_a_broken_step_spoils_no_checkpoint(
    planned_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU losses are not looked at before the epoch ends, and the run ends within one."""
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    monkeypatch.setattr(
        Guards, "_after_step", lambda self, engine: self._note("loss", engine.state.output["loss"].detach())
    )
    values = {"quiet": True, "device::name": "cpu", "train::trainer::max_epochs": 2}
    parser = load_workflow(bundle, "train.yaml", "train", values).parser
    trainer, validation = (parser.get_parsed_content(key) for key in ("train::trainer", "validation"))

    def spoil() -> None:
        with torch.no_grad():
            next(trainer.network.parameters()).fill_(torch.nan)

    def stop() -> None:
        validation.stopped = True
        trainer.terminate()

    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), spoil)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), stop)
    with pytest.raises(TrainingError, match=r"step 5: the loss is not a number, the checkpoints are from before"):
        trainer.run()
    last = torch.load(bundle / "models" / "checkpoint_last.pt", weights_only=True)
    assert last["epoch"] == 1
    assert all(bool(torch.isfinite(value).all()) for value in last["model"].values())


@pytest.mark.parametrize("place", [Events.STARTED, Events.ITERATION_STARTED, Events.EPOCH_COMPLETED])
def test_only_a_step_that_does_not_fit_the_memory_is_told_as_one(place: Events) -> None:
    """Not a case that is preprocessed or validated: a smaller batch would change nothing."""

    def fail() -> None:
        raise MemoryError

    engine = Engine(lambda engine, batch: None)
    engine.state.device = torch.device("cpu")
    Stopping(SimpleNamespace(), SimpleNamespace(close=lambda: None)).attach(engine)
    engine.add_event_handler(place, fail)
    step = place == Events.ITERATION_STARTED
    with pytest.raises(ResourceError if step else MemoryError) as told:
        engine.run([{"image": torch.zeros(2, 1, 4, 4)}], max_epochs=1)
    assert ("a training step with batch (2, 1, 4, 4) does not fit" in str(told.value)) == step


@pytest.mark.parametrize("clip", [0.0, 12.0])
def test_a_broken_gradient_of_the_last_step_spoils_no_checkpoint(
    planned_bundle: Path, tmp_path: Path, clip: float
) -> None:
    """The loss of the step is still a number: it was computed before the weights were spoilt."""
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    values = {"quiet": True, "device::name": "cpu", "train::trainer::max_epochs": 2, "clip": clip}
    trainer = load_workflow(bundle, "train.yaml", "train", values).parser.get_parsed_content("train::trainer")
    weight = next(trainer.network.parameters())
    weight.register_hook(lambda gradient: gradient / 0 if trainer.state.iteration == 6 else gradient)
    with pytest.raises(TrainingError, match=r"step 6: the gradient is not a number, the checkpoints are from before"):
        trainer.run()
    last = torch.load(bundle / "models" / "checkpoint_last.pt", weights_only=True)
    assert last["epoch"] == 1
    assert all(bool(torch.isfinite(value).all()) for value in last["model"].values())
    with pytest.raises(BundleError, match=r"largest norm of the gradients, is -1\.0; give 0 \(none\) or more"):
        Guards(trainer.optimizer, -1.0)


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_of_mixed_precision_are_shortened_as_they_are_unscaled(fused: bool) -> None:
    """And a step that overflows is passed over; it does not end the run."""
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=1.0, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    guards = Guards(optimizer, 2.0)
    guards.attach(Engine(lambda engine, batch: None))
    for factor in ([30.0, 40.0], [torch.inf, 1.0]):
        optimizer.zero_grad()
        scaler.scale((weight * torch.tensor(factor)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.allclose(weight.detach(), torch.tensor([-1.2, -1.6]), atol=1e-4)
    guards._require_finite(Engine(lambda engine, batch: None))
    assert scaler.get_scale() == 512.0


@pytest.mark.parametrize("fault", ["loss", "gradients", "weights"])
def test_with_a_scale_a_run_ends_only_where_nothing_is_trained(fault: str) -> None:
    """One overflow changes no weight; gradients that are never numbers, or weights that are none, end the run."""
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    guards, engine = Guards(optimizer, 2.0), Engine(lambda engine, batch: None)
    engine.scaler = scaler

    def step(factor: float) -> None:
        optimizer.zero_grad()
        loss = (weight * factor).sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        engine.state.output = {"loss": loss.detach() if fault != "gradients" else torch.tensor(1.0)}
        guards._after_step(engine)

    guards.attach(engine)
    for number in range(20):
        step(torch.inf if fault == "gradients" or number == 3 else 0.01)
    if fault == "weights":
        weight.data.fill_(torch.nan)
    if fault == "loss":
        guards._require_finite(engine)
        assert scaler.get_scale() == 512.0
        assert (weight < 1).all()
    else:
        what = "loss" if fault == "weights" else "gradient"
        with pytest.raises(TrainingError, match=f"the {what} is not a number, .* begin anew with it"):
            guards._require_finite(engine)


def test_a_scale_that_is_off_passes_over_nothing() -> None:
    """As MONAI's trainer has it without CUDA: the run ends at once."""
    weight = nn.Parameter(torch.ones(2))
    engine = Engine(lambda engine, batch: None)
    engine.scaler = torch.amp.GradScaler("cpu", enabled=False)
    engine.state.output = {"loss": torch.tensor(torch.nan)}
    with pytest.raises(TrainingError, match="the loss is not a number"):
        Guards(torch.optim.SGD([weight], lr=0.1), 2.0)._after_step(engine)


def test_options_given_on_resuming_are_there_when_the_optimiser_loads(trained_bundle: Path, tmp_path: Path) -> None:
    """A fused optimiser counts its steps on the device."""
    bundle = Path(shutil.copytree(trained_bundle, tmp_path / "b"))
    values = {"quiet": True, "device::name": "cpu", "resume": True, "more": True, "train::trainer::max_epochs": 1}
    parser = load_workflow(bundle, "train.yaml", "train", {**values, "optimizer::lr": 0.001}).parser
    trainer, seen = parser.get_parsed_content("train::trainer"), []
    load = trainer.optimizer.load_state_dict

    def noting(state: dict[str, object]) -> None:
        load(state)
        seen.extend(group["lr"] for group in trainer.optimizer.param_groups)

    trainer.optimizer.load_state_dict = noting
    trainer.run()
    assert seen == [0.001]


def test_all_folds_and_runs_share_what_was_preprocessed(planned_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    verbs.train(bundle, "all", {"quiet": True, "train::trainer::max_epochs": 1, "device::name": "cpu"})
    cases = {path: path.stat().st_mtime_ns for path in (bundle / "eval" / "store").glob("*.case")}
    assert len(cases) == 6
    verbs.train(bundle, 0, {"quiet": True, "train::trainer::max_epochs": 1, "device::name": "cpu"})
    assert cases == {path: path.stat().st_mtime_ns for path in (bundle / "eval" / "store").glob("*.case")}


def test_minutes_of_all_folds_do_not_lengthen_the_one_that_was_broken_off(planned_bundle: Path, tmp_path: Path) -> None:
    """The last fold was killed while it was scored; the command is given again with ``--resume``."""
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    values = {"quiet": True, "train::trainer::max_epochs": 1, "device::name": "cpu"}
    verbs.train(bundle, "all", values)
    record = json.loads((bundle / "eval" / "folds.json").read_text())
    record["done"].popitem()
    (bundle / "eval" / "folds.json").write_text(json.dumps(record))
    verbs.train(bundle, "all", {**values, "resume": True, "more": True})
    last = torch.load(bundle / "models" / "checkpoint_last.pt", weights_only=True)
    assert (last["epoch"], last["cycle"]) == (1, 0)
    assert len(json.loads((bundle / "eval" / "folds.json").read_text())["done"]) == len(record["done"]) + 1


def test_a_fresh_run_after_another_fold_keeps_its_own_best(trained_bundle: Path, tmp_path: Path) -> None:
    """`--fold all`: each fold's weights replace the last one's, whatever its score."""
    bundle = Path(shutil.copytree(trained_bundle, tmp_path / "b"))
    last = bundle / "models" / "checkpoint_last.pt"
    state = torch.load(last, weights_only=True)
    torch.save({**state, "best": {"dice": 1.0, "step": 6}}, last)
    values = {"quiet": True, "train::trainer::max_epochs": 1, "device::name": "cpu", "optimizer::lr": 0.0}
    verbs.train(bundle, 1, values)
    model, average = torch.load(bundle / "models/model.pt", weights_only=True), torch.load(last, weights_only=True)
    assert all(torch.equal(model[name], average["average"][name]) for name in model)
    assert not all(torch.equal(model[name], state["average"][name]) for name in model)


def test_minutes_become_as_many_steps_as_fit(planned_bundle: Path, tmp_path: Path) -> None:
    """By what was measured: the time that is left, less validations and scores, in steps; and they are trained."""
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    verbs.train(bundle, 0, {"quiet": True, "minutes": 0.1, "device::name": "cpu"})
    rows = [json.loads(line) for line in (bundle / "eval" / "fold_0" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["event"] == "scores"
    measured, start = (next(row for row in rows if row["event"] == event) for event in ("calibrate", "start"))
    step, case, left = measured["seconds_per_step"], measured["seconds_per_case"], 6.0 - measured["time"]
    cases = len(json.loads((bundle / "eval" / "fold_0" / "scores.json").read_text())["cases"])
    reserve = cases * (3 * case + 0.15)
    least, most = ((share * left - reserve) / step for share in (0.97 * 0.94, 1.0))
    assert 0.7 * least - 3 <= start["steps"] <= max(3.0, 1.05 * most)
    assert max(row["step"] for row in rows if row["event"] == "train") >= min(3, start["steps"])


def test_minutes_that_preprocessing_uses_up_leave_the_model_before(trained_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(trained_bundle, tmp_path / "b"))
    kept = {name: (bundle / name).read_bytes() for name in ("models/model.pt", "models/checkpoint_last.pt")}
    values = {"quiet": True, "device::name": "cpu", "minutes": 1e-6}
    words = r"preprocessing took .* of the 1e-06 minutes and is kept: train again, or with more minutes"
    with pytest.raises(ResourceError, match=words):
        verbs.train(bundle, 0, values)
    assert kept == {name: (bundle / name).read_bytes() for name in kept}


def test_a_short_run_looks_at_its_pace_a_few_times() -> None:
    budget = Budget(dataset=None, validator=None, log=None, minutes=10)
    state = SimpleNamespace(max_epochs=1, epoch_length=250)
    for steps, epochs, length in ((313, 4, 78), (3, 3, 1), (2500, 10, 250)):
        state.epoch_length = 250
        budget._steps = lambda engine, pace, steps=steps: steps
        budget._fit(SimpleNamespace(state=state), Pace(1.0, 1.0))
        assert (state.max_epochs, state.epoch_length) == (epochs, length)


def test_validations_that_take_longer_than_measured_are_reckoned_with() -> None:
    budget = Budget(dataset=None, validator=None, log=None, minutes=10)
    budget.validation_seconds, budget.reserve = 4.0, 10.0
    for seconds, expected in ((3.0, (4.0, 10.0)), (9.0, (9.0, 15.0))):
        budget.validated(seconds)
        assert (budget.validation_seconds, budget.reserve) == expected


def test_reading_a_case_is_part_of_what_is_timed() -> None:
    read: list[int] = []

    class Noting(Dataset[dict[str, Any]]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> dict[str, Any]:
            read.append(index)
            return {"image": torch.zeros(1)}

    validator = SimpleNamespace(
        data_loader=DataLoader(Noting()), network=nn.Identity(), inferer=lambda image, network: image,
        state=SimpleNamespace(device=torch.device("cpu")),
    )  # fmt: skip
    actions = _cases(validator)
    assert read == []
    for action in actions:
        action()
    assert read == [0, 1]


def test_a_run_is_fitted_to_a_machine_that_changes() -> None:
    budget = Budget(dataset=None, validator=None, log=None, minutes=10)
    budget._epoch_seconds, budget.validation_seconds, budget.interval = 10.0, 4.0, 4  # 11 s an epoch
    assert budget.adjusted(epoch=10, epochs=30, left=20 * 11.0 + 1) == 30  # as planned
    assert budget.adjusted(epoch=10, epochs=30, left=22 * 11.0) == 30  # a little faster: it stays
    assert budget.adjusted(epoch=10, epochs=30, left=15 * 11.0 + 1) == 25  # slower: shortened
    assert budget.adjusted(epoch=10, epochs=30, left=40 * 11.0 + 1) == 50  # much faster: lengthened
    assert budget.adjusted(epoch=10, epochs=30, left=-5.0) == 10
    budget._epoch_seconds, budget._fitted, budget._step_seconds = None, True, 1.0  # 20 epochs of 10 s are ahead
    budget.start = time.monotonic() - 600 + 20 * 10 + 150
    budget.validation_seconds, budget._epoch_started = 0.0, time.monotonic() - 30  # the first one was slow
    state = SimpleNamespace(epoch=1, max_epochs=21, epoch_length=10)
    budget._keep_pace(SimpleNamespace(state=state))
    assert state.max_epochs == 18  # 350 s for epochs of (10 + 30) / 2 s
    with pytest.raises(BundleError, match="minutes is 0; give a positive number"):
        Budget(dataset=None, validator=None, log=None, minutes=0)


def test_ctrl_c_leaves_a_usable_model(planned_bundle: Path, phantom_dataset: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    process = subprocess.Popen(
        [sys.executable, "-m", "medunet", "train", str(bundle), "--epochs", "100000", "--device", "cpu"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log = bundle / "eval" / "fold_0" / "log.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.is_file() and '"train"' in log.read_text()):
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "stopping after this step" in out
    results = verbs.predict(bundle, [phantom_dataset / "imagesTr"], tmp_path / "out", {"device::name": "cpu"})
    assert {r.state for r in results} == {"done"}


def test_ctrl_c_while_a_run_is_scored_stops_at_once(planned_bundle: Path, tmp_path: Path) -> None:
    """Behind the last step nothing is left to finish; what is trained is kept, and --resume scores it."""
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    values = {"quiet": True, "device::name": "cpu"}
    parser = load_workflow(bundle, "train.yaml", "train", values).parser
    trainer, evaluator = (parser.get_parsed_content(key) for key in ("train::trainer", "validate::evaluator"))

    def press() -> None:
        if trainer.state.iteration == 6:
            signal.raise_signal(signal.SIGINT)

    evaluator.add_event_handler(Events.ITERATION_STARTED, press)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not (bundle / "eval" / "fold_0" / "scores.json").is_file()
    before = torch.load(bundle / "models" / "checkpoint_last.pt", weights_only=True)
    assert before["iteration"] == 6
    verbs.train(bundle, 0, {**values, "resume": True})
    assert (bundle / "eval" / "fold_0" / "scores.json").is_file()
    after = torch.load(bundle / "models" / "checkpoint_last.pt", weights_only=True)
    assert all(torch.equal(after["model"][key], value) for key, value in before["model"].items())


def test_what_a_resumed_run_is_trained_with_otherwise_is_told(
    planned_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    values = {"quiet": False, "device::name": "cpu", "average_share": 0.2, "clip": 5.0}
    batch = read_plan(str(bundle))["batch_size"]
    verbs.train(bundle, 0, {**values, "train::trainer::max_epochs": 1})
    verbs.train(bundle, 0, {**values, "train::trainer::max_epochs": 1, "resume": True, "more": True})
    assert "the run so far had" not in capsys.readouterr().out
    other = {"loss": {"_target_": "medunet.training.Jaccard", "classes": "@_meta_::plan::network::out_channels"}}
    other |= {f"train::{part}::batch_size": batch + 1 for part in ("sampler", "dataloader")}
    verbs.train(bundle, 0, {"device::name": "cpu", **other, "resume": True, "more": True, "optimizer::lr": 0.001})
    assert (
        "the run so far had learning_rate 0.002 and now 0.001, loss DiceCE and now Jaccard, average_share 0.2 and now "
        f"0.3, clip 5.0 and now 12.0, patches_a_step {batch} and now {batch + 1}: give its --config and --set again "
        "where this is not meant"
    ) in capsys.readouterr().out


@pytest.mark.parametrize("part", ["imagesTr", "labelsTr"])
@pytest.mark.parametrize("side", ["training", "validation"])
def test_a_missing_file_leaves_the_run_before_as_it_was(
    trained_bundle: Path, phantom_dataset: Path, tmp_path: Path, part: str, side: str
) -> None:
    """Also of a case that is held out, which the first validation would need long after the run has begun."""
    bundle, data = (Path(shutil.copytree(path, tmp_path / path.name)) for path in (trained_bundle, phantom_dataset))
    case = FoldCases(str(bundle), str(data), 0, side)[0]["case"]
    gone = data / part / f"{case}.nii.gz"
    gone.unlink()
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=re.escape(f"{gone}: is missing; give the dataset's place with --set dataset")):
        verbs.train(bundle, 0, {"quiet": True, "device::name": "cpu", "dataset_dir": str(data)})
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("side", ["training", "validation"])
def test_a_label_that_changed_since_the_plan_is_refused(
    planned_bundle: Path, phantom_dataset: Path, tmp_path: Path, side: str
) -> None:
    """A new value would be trained on, or scored, as background."""
    bundle, data = (Path(shutil.copytree(path, tmp_path / path.name)) for path in (planned_bundle, phantom_dataset))
    label = Path(FoldCases(str(bundle), str(data), 0, side)[-1]["label"])
    volume = read_label(label)
    volume.array[0, 0, 0, 0] = 9
    write_label(label, volume.array[0], volume.grid)
    words = r"label value 9 is not declared \(background=0, .*\); declare it \(medunet plan\) or correct the label"
    values = {"quiet": True, "device::name": "cpu", "dataset_dir": str(data), "train::trainer::max_epochs": 1}
    with pytest.raises(InputError, match=f"{label.name}: {words}"):
        verbs.train(bundle, 0, values)


def test_a_store_that_is_deleted_while_a_run_trains_is_made_again(planned_bundle: Path, tmp_path: Path) -> None:
    """The steps draw what they would have drawn."""
    whole, emptied = (Path(shutil.copytree(planned_bundle, tmp_path / name)) for name in ("whole", "emptied"))
    values = {"quiet": True, "device::name": "cpu", "train::trainer::max_epochs": 3}
    verbs.train(whole, 0, {**values, "store": str(tmp_path / "a")})
    values["store"] = str(tmp_path / "b")
    trainer = load_workflow(emptied, "train.yaml", "train", values).parser.get_parsed_content("train::trainer")
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), lambda: shutil.rmtree(tmp_path / "b"))
    trainer.run()
    first, second = (torch.load(b / "models" / "checkpoint_last.pt", weights_only=True) for b in (whole, emptied))
    assert all(torch.equal(first["model"][key], second["model"][key]) for key in first["model"])


def test_early_stopping_ends_a_run(planned_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    stuck = {"optimizer::lr": 1e-12, "patience": 2, "validations": 50, "train::trainer::max_epochs": 50}
    verbs.train(bundle, 0, {"quiet": True, "device::name": "cpu", **stuck})
    rows = [json.loads(line) for line in (bundle / "eval" / "fold_0" / "log.jsonl").read_text().splitlines()]
    assert sum(row["event"] == "validate" for row in rows) <= 10
    assert rows[-1]["event"] == "scores"
    last = bundle / "models" / "checkpoint_last.pt"
    state = torch.load(last, weights_only=True)
    assert state["epoch"] == state["max_epochs"] < 50
    values = {"quiet": True, "device::name": "cpu", **stuck, "resume": True}
    verbs.train(bundle, 0, values)  # it is finished
    assert torch.load(last, weights_only=True)["epoch"] == state["epoch"]
    verbs.train(bundle, 0, {**values, "train::trainer::max_epochs": 3, "more": True})  # with patience again
    assert torch.load(last, weights_only=True)["epoch"] >= state["epoch"] + 2


def test_a_run_that_goes_on_validates_as_often_as_it_did(planned_bundle: Path, tmp_path: Path) -> None:
    """Minutes may allow fewer validations than the config asks for, and change the number of epochs."""
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    values = {"quiet": True, "device::name": "cpu", "train::trainer::max_epochs": 9, "validations": 3}
    parser = load_workflow(bundle, "train.yaml", "train", values).parser
    trainer, budget = (parser.get_parsed_content(key) for key in ("train::trainer", "budget"))
    budget.validations = 2  # as `minutes` would
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=8), lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.run()
    last = bundle / "models" / "checkpoint_last.pt"
    torch.save({**torch.load(last, weights_only=True), "max_epochs": 7}, last)
    verbs.train(bundle, 0, {**values, "resume": True})
    log = bundle / "eval" / "fold_0" / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["epoch"] for row in rows if row["event"] == "validate"] == [5, 7]
    assert [row["validate_every_epochs"] for row in rows if row["event"] == "start"] == [5, 5]
    verbs.train(bundle, 0, {**values, "resume": True, "validations": 7})
    assert json.loads(log.read_text().splitlines()[-3])["validate_every_epochs"] == 1


def test_the_scale_of_mixed_precision_is_resumed(
    planned_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    values = {"quiet": True, "device::name": "cpu", "train::trainer::max_epochs": 2, "train::trainer::amp": True}

    def trained(scale: float, resume: bool) -> float:
        monkeypatch.setattr(torch.cuda.amp, "GradScaler", lambda: torch.amp.GradScaler("cpu", init_scale=scale))
        workflow = load_workflow(bundle, "train.yaml", "train", {**values, "resume": resume})
        trainer = workflow.parser.get_parsed_content("train::trainer")
        if not resume:
            trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), lambda: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                trainer.run()
        else:
            trainer.run()
        return float(trainer.scaler.get_scale())

    assert trained(256.0, resume=False) == 256.0
    assert trained(65536.0, resume=True) == 256.0


def test_a_network_may_have_a_part_called_module() -> None:
    network = nn.Sequential()
    network.module = nn.Linear(2, 2)
    assert set(weights_of(network)) == {"module.weight", "module.bias"}


def test_a_loss_that_is_not_finite_says_what_to_change(planned_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    with pytest.raises(TrainingError, match=r"the loss is not a number, .* with --resume and a smaller learning rate"):
        verbs.train(bundle, 0, {"quiet": True, "optimizer::lr": 1e30, "device::name": "cpu"})


def test_a_vanished_dataset_says_how_to_give_its_new_place(planned_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="dataset folder is missing; give its new place with --set dataset_dir=PATH"):
        verbs.train(planned_bundle, 0, {"quiet": True, "dataset_dir": str(tmp_path / "gone"), "device::name": "cpu"})


def test_channels_of_another_bundle_that_are_others_are_told(
    planned_bundle: Path, trained_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, other = Path(shutil.copytree(planned_bundle, tmp_path / "b")), tmp_path / "other"
    path = shutil.copytree(trained_bundle, other) / "configs" / "metadata.json"
    content = json.loads(path.read_text())
    (own,) = content["plan"]["channels"]
    path.write_text(json.dumps({**content, "plan": {**content["plan"], "channels": ["FLAIR"]}}))
    verbs.train(bundle, 0, {"device::name": "cpu", "init": str(other), "train::trainer::max_epochs": 1})
    told = f"its weights were trained on the channels FLAIR in this order, this plan's are {own}; where they do not"
    assert told in " ".join(capsys.readouterr().out.split())


def test_weights_of_which_no_kernel_fits_are_refused(
    planned_bundle: Path, trained_bundle: Path, tmp_path: Path
) -> None:
    """Those of a 2D bundle: biases and norms have the same names and lengths."""
    bundle, other = (
        Path(shutil.copytree(path, tmp_path / name))
        for path, name in ((planned_bundle, "b"), (trained_bundle, "other"))
    )
    model = other / "models" / "model.pt"
    state = torch.load(model, weights_only=True)
    torch.save({key: value[..., 0] if value.ndim == 5 else value for key, value in state.items()}, model)
    with pytest.raises(BundleError, match=r"model\.pt: no kernel fits this plan's network; plan with the same network"):
        verbs.train(bundle, 0, {"quiet": True, "device::name": "cpu", "init": str(other)})
    assert not (bundle / "models").exists()


def test_weights_of_another_bundle_are_taken_over_as_far_as_they_fit(
    planned_bundle: Path, trained_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    values = {"device::name": "cpu", "init": str(trained_bundle), "train::trainer::max_epochs": 1, "optimizer::lr": 0.0}
    verbs.train(bundle, 0, {**values, "optimizer::weight_decay": 0.0})
    first, second = (torch.load(b / "models" / "model.pt", weights_only=True) for b in (trained_bundle, bundle))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert f"{len(first)} of {len(first)} tensors are those of {trained_bundle}" in capsys.readouterr().out
    with pytest.raises(BundleError, match=r"model\.pt: is missing; train the bundle first"):
        verbs.train(bundle, 0, {**values, "init": str(planned_bundle)})


def test_outputs_follow_the_names_of_classes() -> None:
    own = {"body": torch.zeros(3, 2), "heads.0.w": torch.zeros(3, 4), "heads.0.b": torch.zeros(3), "x": torch.zeros(5)}
    weight, bias = torch.arange(8.0).reshape(2, 4), torch.tensor([1.0, 2.0])
    other = {"body": torch.ones(3, 2), "heads.0.w": weight, "heads.0.b": bias}
    taken = merged(own, other, ["background", "tumour", "liver"], ["background", "liver"])
    assert set(taken) == {"body", "heads.0.w", "heads.0.b"}
    assert taken["heads.0.b"][0].tolist() == [1.0, 0.0, 2.0]
    assert taken["heads.0.w"][0].tolist() == [[0.0, 1.0, 2.0, 3.0], [0.0] * 4, [4.0, 5.0, 6.0, 7.0]]
    assert taken["heads.0.w"][1] == "only background, liver"
    swapped = merged({"heads.0.b": torch.zeros(2)}, {"heads.0.b": bias}, ["a", "b"], ["b", "a"])
    assert swapped["heads.0.b"][0].tolist() == [2.0, 1.0]
