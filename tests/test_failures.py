"""Runs that are killed, and disks, memories, stores and losses that fail: `medunet train` as a program of its own."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from medunet import verbs

LAST, BEST = "models/checkpoint_last.pt", "models/model.pt"

LIMITED = """
import resource, signal, sys
kind, limit = sys.argv[1], int(sys.argv[2])
from medunet.cli.main import main
import torch, monai.bundle, medunet.bundle.running, torch.utils.tensorboard
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
limit += used if kind == 'RLIMIT_AS' else 0
resource.setrlimit(getattr(resource, kind), (limit, limit))
sys.argv = ['medunet', *sys.argv[3:]]
main()
"""


def words_of(bundle: Path, *more: str) -> list[str]:
    return ["train", str(bundle), "--device", "cpu", *more]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def training(bundle: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "medunet", *words_of(bundle, *more)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True
    )


def limited(kind: str, limit: int, bundle: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """A run under a limit of the system."""
    command = [sys.executable, "-c", LIMITED, kind, str(limit), *words_of(bundle, *more)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=250)


def state(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


# ---- killed


def require_whole(bundle: Path) -> None:
    """Every file that a killed run left loads; temporary ones do not count."""
    for path in (bundle / "models").glob("*.pt"):
        if not path.name.startswith(".part-"):
            assert state(path)
    for path in bundle.rglob("*.json"):
        if not path.name.startswith(".part-"):
            json.loads(path.read_text())
    for path in bundle.rglob("*.nii.gz"):
        if not path.name.startswith(".part-"):
            gzip.decompress(path.read_bytes())


def epochs_done(bundle: Path) -> int:
    log = bundle / "eval/fold_0/log.jsonl"
    return log.read_text().count('"train"') if log.is_file() else 0


def begun_or_resumed(bundle: Path, epochs: int) -> subprocess.Popen[str]:
    return training(bundle, *(["--resume"] if (bundle / LAST).is_file() else ["--epochs", str(epochs)]))


def killed_and_resumed(bundle: Path, kills: int, epochs: int) -> int:
    """Train with SIGKILLs at random moments until the run ends; how many met a running process.

    A process is killed after up to two further epochs and a while, or while it starts: however fast the machine is.
    """
    chance, met = random.Random(kills), 0
    for _ in range(kills):
        process, more = begun_or_resumed(bundle, epochs), chance.randrange(3)
        wanted = epochs_done(bundle) + more
        while process.poll() is None and epochs_done(bundle) < wanted:
            time.sleep(0.01)
        try:
            process.wait(chance.uniform(0, 0.3 if more else 6))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            met += 1
        process.communicate()
        require_whole(bundle)
    process = begun_or_resumed(bundle, epochs)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return met


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_weights(
    planned_bundle: Path, tmp_path: Path, kills: int
) -> None:
    whole, broken = (Path(shutil.copytree(planned_bundle, tmp_path / name)) for name in ("whole", "broken"))
    epochs = 6 * kills
    process = training(whole, "--epochs", str(epochs))
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert killed_and_resumed(broken, kills, epochs) >= 0.6 * kills
    first, second = state(whole / LAST), state(broken / LAST)
    assert second["iteration"] == 3 * epochs
    assert equal(first["model"], second["model"])
    assert equal(first["average"], second["average"])
    assert equal(state(whole / BEST), state(broken / BEST))
    means = [json.loads((b / "eval/fold_0/scores.json").read_text())["summary"]["dice"] for b in (whole, broken)]
    assert means[0] == means[1]
    assert (broken / "eval/fold_0/report.html").is_file()
    assert not list((broken / "models").glob(".part-*"))


def test_a_run_killed_behind_its_last_checkpoint_is_scored_when_it_is_resumed(
    trained_bundle: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(trained_bundle, tmp_path / "b"))
    for name in ("eval/fold_0/scores.json", "eval/fold_0/report.html", "models/quality.json"):
        (bundle / name).unlink()
    with (bundle / "eval/fold_0/log.jsonl").open("a") as log:
        log.write('{"event": "validate", "st')  # the line in hand
    (bundle / "models/.part-old.pt").write_bytes(b"half a checkpoint")
    os.utime(bundle / "models/.part-old.pt", (0, 0))
    verbs.train(bundle, 0, {"quiet": True, "resume": True, "device::name": "cpu"})
    assert json.loads((bundle / "eval/fold_0/scores.json").read_text())["cases"]
    assert (bundle / "models/quality.json").is_file()
    assert all(json.loads(line) for line in (bundle / "eval/fold_0/log.jsonl").read_text().splitlines())
    assert not (bundle / "models/.part-old.pt").exists()
    assert verbs.report(bundle, tmp_path / "report.html").is_file()


# ---- a full disk, too little memory


def test_a_disk_that_is_full_while_cases_are_stored_is_one_sentence(planned_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    done = limited("RLIMIT_FSIZE", 20_000, bundle)
    assert done.returncode == 2, done.stderr
    assert "cannot be written, the disk is full" in done.stderr
    assert "free some space and run again" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not list((bundle / "eval").rglob("*.case"))
    assert not list(bundle.rglob(".part-*"))


def test_a_disk_that_is_full_at_a_checkpoint_leaves_the_one_before(trained_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(trained_bundle, tmp_path / "b"))
    before = {name: (bundle / name).read_bytes() for name in (LAST, BEST)}
    again = {**state(bundle / LAST), "max_epochs": 3}
    torch.save(again, bundle / LAST)
    before[LAST] = (bundle / LAST).read_bytes()
    done = limited("RLIMIT_FSIZE", len(before[LAST]) - 1000, bundle, "--resume")
    assert done.returncode == 2, done.stderr
    told = " ".join(done.stderr.split())
    assert f"{LAST}: cannot be written, the disk is full" in told
    assert "free some space and train on with --resume" in told
    assert "Traceback" not in told
    assert (bundle / LAST).read_bytes() == before[LAST]
    assert state(bundle / BEST)
    assert not list((bundle / "models").glob(".part-*"))
    verbs.train(bundle, 0, {"quiet": True, "resume": True, "device::name": "cpu"})
    assert state(bundle / LAST)["iteration"] == 9


def test_too_little_memory_says_what_to_change(trained_bundle: Path, tmp_path: Path) -> None:
    """A real refusal of the allocator: the process may take 150 MB more than it has."""
    bundle = Path(shutil.copytree(trained_bundle, tmp_path / "b"))
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    metadata["plan"]["batch_size"] = 400
    (bundle / "configs/metadata.json").write_text(json.dumps(metadata))
    torch.save({**state(bundle / LAST), "max_epochs": 3}, bundle / LAST)
    before = (bundle / LAST).read_bytes()
    done = limited("RLIMIT_AS", 150_000_000, bundle, "--resume")
    assert done.returncode == 2, done.stderr
    told = " ".join(done.stderr.split())
    assert "does not fit the memory" in told
    assert "medunet plan ... --memory" in told
    assert "Traceback" not in told
    assert (bundle / LAST).read_bytes() == before


# ---- stores and datasets


def moved_dataset(bundle: Path, phantom: Path, folder: Path) -> Path:
    """The bundle's dataset as a copy that a test may spoil."""
    data = Path(shutil.copytree(phantom, folder / "data"))
    path = bundle / "configs/train.yaml"
    path.write_text(path.read_text().replace(json.dumps(str(phantom)), json.dumps(str(data))))
    assert str(data) in path.read_text()
    return data


def test_images_that_vanish_are_missed_only_where_the_store_lacks_them(
    planned_bundle: Path, phantom_dataset: Path, tmp_path: Path
) -> None:
    """The files of the training cases are gone while a run trains: it goes on; a damaged case cannot be made again."""
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    data = moved_dataset(bundle, phantom_dataset, tmp_path)
    from medunet.bundle.running import load_workflow

    values = {"quiet": True, "device::name": "cpu", "train::trainer::max_epochs": 4}
    parser = load_workflow(bundle, "train.yaml", "train", values).parser
    trainer, cases = (parser.get_parsed_content(key) for key in ("train::trainer", "train::dataset::data"))

    def remove() -> None:
        for item in cases:
            Path(item["image"]).unlink()
            Path(item["label"]).unlink()

    from ignite.engine import Events

    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), remove)
    trainer.run()
    assert state(bundle / LAST)["iteration"] == 12
    assert json.loads((bundle / "eval/fold_0/scores.json").read_text())["cases"]
    shutil.rmtree(bundle / "eval/store")
    process = training(bundle)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 2
    told = " ".join(err.split())
    assert "is missing; give the dataset's place" in told
    assert "Traceback" not in told
    shutil.rmtree(data)
    process = training(bundle)
    told = " ".join(process.communicate(timeout=240)[1].split())
    assert "dataset folder is missing; give its new place with --set dataset_dir=PATH" in told


def test_a_stored_case_that_rots_while_training_is_made_again_and_said(planned_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    verbs.train(bundle, 0, {"quiet": True, "device::name": "cpu"})
    stored = sorted((bundle / "eval/store").glob("*.case"))
    good = stored[0].read_bytes()
    stored[0].write_bytes(good[:-50])
    process = training(bundle)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    told = " ".join((out + err).split())
    assert f"{stored[0]}: the stored case is damaged, it has another size than its header says" in told
    assert "it is made again" in told
    assert stored[0].read_bytes() == good
