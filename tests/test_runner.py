"""Batches of cases: hard inputs leave the others unharmed, and a killed run leaves nothing broken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medunet import verbs
from medunet.bundle.running import load_workflow
from medunet.bundle.segmenting import load_segmenter
from medunet.data.atomic import remove_stale
from medunet.data.grid import Grid
from medunet.data.marks import Marks
from medunet.data.transforms import LoadVolumed
from medunet.data.volume import read_label, read_volume, write_image
from medunet.errors import DiskFullError, InputError, root_cause
from medunet.inference.inputs import find_cases
from medunet.inference.quality import Calibration, read_calibrations
from medunet.inference.queues import ahead, behind
from medunet.inference.runner import segment_cases
from medunet.inference.status import CaseResult, Status
from medunet.inference.weights import model_digest, weights_digest
from medunet.networks import UNet
from tests.dicom_phantom import make_series

KILLED_AT_RANDOM = """
import os, random, signal, sys, time
from pathlib import Path
import monai.bundle, monai.engines
import medunet.inference.windows, medunet.inference.runner
from medunet import verbs
from medunet.data.volume import read_label

bundle, images, out, rounds = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
def written():
    return [p for p in out.rglob("*.nii.gz") if not p.name.startswith(".part-")]

random.seed(0)
killed = 0
for _ in range(rounds):
    wanted = len(written()) + random.randrange(4)
    child = os.fork()
    if child == 0:
        verbs.predict(bundle, [images], out, {"device::name": "cpu", "inferer::backend": "torch"}, probabilities=True)
        os._exit(0)
    ended = False
    while not ended and len(written()) < wanted:  # however fast the machine is
        time.sleep(0.005)
        ended = os.waitpid(child, os.WNOHANG) != (0, 0)
    time.sleep(random.uniform(0, 0.1))
    if not ended and os.waitpid(child, os.WNOHANG) == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        killed += 1
    for path in written():
        read_label(path)
print(killed, len(written()))
verbs.predict(bundle, [images], out, {"device::name": "cpu", "inferer::backend": "torch"}, probabilities=True)
"""


def test_a_batch_killed_at_random_moments_finishes_with_the_same_voxels(
    trained_bundle: Path, phantom_dataset: Path, tmp_path: Path
) -> None:
    images = Path(shutil.copytree(phantom_dataset / "imagesTr", tmp_path / "in"))
    for number in range(3):
        for path in sorted(images.glob("phantom_00?.nii.gz")):
            shutil.copy(path, images / f"copy{number}_{path.name}")
    clean = verbs.predict(
        trained_bundle, [images], tmp_path / "clean", {"inferer::backend": "torch"}, probabilities=True
    )
    assert {result.state for result in clean} == {"done"}
    arguments = [str(trained_bundle), str(images), str(tmp_path / "out"), "20"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_RANDOM, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    killed, finished = map(int, done.stdout.split()[-2:])
    assert killed >= 5
    assert finished > 0
    for result in clean:
        expected = read_label(tmp_path / "clean" / result.output).array
        assert np.array_equal(read_label(tmp_path / "out" / result.output).array, expected)
        name = result.output.replace(".nii.gz", "_probabilities.npy")
        assert np.array_equal(np.load(tmp_path / "out" / name), np.load(tmp_path / "clean" / name))
    content = json.loads((tmp_path / "out" / "status.json").read_text())
    assert [case["state"] for case in content["cases"]] == ["done"] * len(clean)


def test_hard_inputs_are_told_and_leave_the_others_unharmed(
    trained_bundle: Path, phantom_dataset: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    source = read_volume(sorted((phantom_dataset / "imagesTr").glob("*.nii.gz"))[0])
    plain, grid = source.array[0], source.grid
    write_image(folder / "good.nii.gz", plain, grid)
    write_image(folder / "one_slice.nii.gz", plain[..., :1], Grid((*plain.shape[:2], 1), grid.affine))
    write_image(folder / "tiny.nii.gz", plain[8:13, 8:12, 8:11], Grid((5, 4, 3), grid.affine))
    broken = plain.astype(np.float32)
    broken[3, 3, 3] = np.nan
    write_image(folder / "nan.nii.gz", broken, grid)
    write_image(folder / "four_d.nii.gz", np.stack([plain, plain]), grid)
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 30, 3)).astype(np.uint8)).save(folder / "rgb.png")
    (folder / "cut.nii.gz").write_bytes((folder / "good.nii.gz").read_bytes()[:100])
    results = {r.name: r for r in verbs.predict(trained_bundle, [folder], tmp_path / "out")}
    words = {
        "one_slice": "is a single slice, the model was trained on volumes",
        "nan": "1 of 9216 voxels are NaN or infinite",
        "four_d": "has 2 channels, the model takes 1; give one per channel",
        "rgb": "is a single slice",
        "cut": "cannot be read",
    }
    for name, message in words.items():
        assert message in results[name].message
        assert not (tmp_path / "out" / results[name].output).exists()
    assert results["good"].state == "done"
    small = {r.name: r for r in verbs.predict(trained_bundle, [folder / "tiny.nii.gz"], tmp_path / "out2", force=True)}
    assert small["tiny"].state == "done"  # smaller than a window
    assert read_label(tmp_path / "out2" / "tiny.nii.gz").array.shape == (1, 5, 4, 3)


def test_results_say_how_long_each_stage_took_and_what_to_expect(
    trained_bundle: Path, phantom_dataset: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(trained_bundle, tmp_path / "b"))
    classes = json.loads((bundle / "models" / "quality.json").read_text())["classes"]
    values = Calibration(0.1, 0.5, 0.5, 9, True).as_json()
    content = {"weights": weights_digest(bundle), "fold": 0, "classes": dict.fromkeys(classes, values)}
    (bundle / "models" / "quality.json").write_text(json.dumps(content))
    said: list[str] = []
    images = sorted((phantom_dataset / "imagesTr").glob("*.nii.gz"))[:3]
    results = verbs.predict(bundle, images, tmp_path / "out", say=said.append)
    assert len(said) == 1
    assert said[0].startswith("torch:")
    status = json.loads((tmp_path / "out" / "status.json").read_text())["cases"]
    for result, kept in zip(results, status, strict=True):
        assert set(result.stages) == {"read", "preprocess", "network", "restore", "write"}
        assert 0 <= result.expected_dice <= 1
        assert result.expected_dice == min(q["expected_dice"] for q in result.quality.values())
        assert kept["expected_dice"] == result.expected_dice
    again = verbs.predict(bundle, images, tmp_path / "out")
    assert [r.expected_dice for r in again] == [r.expected_dice for r in results]
    assert read_calibrations(bundle, "other weights") == {}
    for broken in (float("nan"), float("inf"), "0.1"):
        content["classes"] = {name: {**values, "bias": broken} for name in classes}
        (bundle / "models" / "quality.json").write_text(json.dumps(content))
        assert read_calibrations(bundle, weights_digest(bundle)) == {}


def test_the_status_file_is_not_written_for_every_case(tmp_path: Path) -> None:
    status = Status(tmp_path, "digest")
    written = []
    for number in range(200):
        status.add(CaseResult(str(number), "done", output=f"{number}.nii.gz"))
        written.append((tmp_path / "status.json").stat().st_mtime_ns)
    assert len(set(written)) < 20
    status.write()
    assert len(Status(tmp_path, "digest").before) == 200
    assert Status(tmp_path, "another model").before == {}


TORCH = {"device::name": "cpu", "inferer::backend": "torch"}


def states(bundle: Path, inputs: Any, out: Path, overrides: dict[str, Any] | None = None, **options: Any) -> list[str]:
    inputs = inputs if isinstance(inputs, list) else [inputs]
    return [r.state for r in verbs.predict(bundle, inputs, out, TORCH | (overrides or {}), **options)]


def rows(out: Path) -> dict[str, dict[str, Any]]:
    return {case["name"]: case for case in json.loads((out / "status.json").read_text())["cases"]}


def scans(dataset: Path) -> list[Path]:
    return sorted((dataset / "imagesTr").glob("*.nii.gz"))


def test_a_result_is_made_again_when_any_file_of_its_input_changed(
    trained_bundle: Path, phantom_dataset: Path, tmp_path: Path
) -> None:
    """Also by what has the times of long ago; and results that lie below the input are no inputs."""
    folder, out = tmp_path / "in", tmp_path / "in" / "out"
    first, second = (read_volume(path) for path in scans(phantom_dataset)[:2])
    planes = [volume.array[0].T.astype(np.int16) for volume in (first, second)]
    uids = {"SeriesInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2.4", "StudyInstanceUID": "1.2.5"}
    files = make_series(folder / "ct", planes[0], (8.0, 5.0, 5.0), **uids)
    shutil.copy(scans(phantom_dataset)[0], folder / "a.nii.gz")
    assert states(trained_bundle, folder, out) == ["done"] * 2
    assert states(trained_bundle, folder, out) == ["already done"] * 2
    before = read_label(out / "ct.nii.gz").array
    times = {path: path.stat().st_mtime for path in (*files, folder / "a.nii.gz")}
    shutil.copy(scans(phantom_dataset)[1], folder / "a.nii.gz")
    make_series(folder / "ct", planes[1], (8.0, 5.0, 5.0), **uids)
    for path, time in times.items():
        os.utime(path, (time - 1e6, time - 1e6))
    assert states(trained_bundle, folder, out) == ["done"] * 2
    assert not np.array_equal(read_label(out / "ct.nii.gz").array, before)
    (folder / "out" / "mine.nii.gz").write_bytes((folder / "a.nii.gz").read_bytes())
    assert states(trained_bundle, folder, out) == ["already done"] * 2


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("scan.nii.gz", "scan.nii.gz"), ("a.hdr", "a.img"), ("b.mhd", "voxels.raw"), ("disc/DICOMDIR", "disc/d/1"),
        ("folder#series=1.2", "folder/sub/1.dcm"), ("all.zip", "all.zip"),
    ],
)  # fmt: skip
def test_a_mark_is_of_all_files_of_a_source(source: str, part: str, tmp_path: Path) -> None:
    for name in (
        "scan.nii.gz",
        "a.hdr",
        "a.img",
        "voxels.raw",
        "disc/DICOMDIR",
        "disc/d/1",
        "folder/sub/1.dcm",
        "all.zip",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"one")
    (tmp_path / "b.mhd").write_text("ElementDataFile = voxels.raw\n")
    others = [f"{tmp_path / 'folder'}#series=1.2", tmp_path / "scan.nii.gz"]
    mark, other = (Marks(tmp_path / "folder" / "out").of(s) for s in ([tmp_path / source], others))
    path, state = tmp_path / part, (tmp_path / part).stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    changed = Marks(tmp_path / "folder" / "out").of([tmp_path / source])
    assert mark
    assert mark != changed
    assert (Marks(tmp_path / "folder" / "out").of(others) == other) == ("folder" not in part and "scan" not in part)
    (tmp_path / "folder" / "out").mkdir()
    (tmp_path / "folder" / "out" / "result.nii.gz").write_bytes(b"result")
    assert Marks(tmp_path / "folder" / "out").of([tmp_path / source]) == changed
    assert Marks(tmp_path).of([tmp_path / "nowhere.nii"]) == ""


def test_results_of_other_inputs_are_not_replaced(trained_bundle: Path, phantom_dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for patient, scan in zip("pq", scans(phantom_dataset), strict=False):
        (tmp_path / patient).mkdir()
        shutil.copy(scan, tmp_path / patient / "image.nii.gz")
    p, q = tmp_path / "p" / "image.nii.gz", tmp_path / "q" / "image.nii.gz"
    assert states(trained_bundle, p, out) == ["done"]
    first = (out / "image.nii.gz").read_bytes()
    for _ in "ab":
        (refused,) = verbs.predict(trained_bundle, [q], out, TORCH)
        assert refused.state == "refused"
        assert f"{q}: the result would replace {out / 'image.nii.gz'}, which is of another input" in refused.message
    assert (out / "image.nii.gz").read_bytes() == first
    assert states(trained_bundle, p, out) == ["already done"]
    assert states(trained_bundle, p, out, {"inferer::overlap": 0.25}) == ["done"]  # another way for the same input
    assert states(trained_bundle, p, out) == ["done"]
    assert states(trained_bundle, q, out, force=True) == ["done"]
    assert states(trained_bundle, p, out) == ["refused"]
    assert states(trained_bundle, q, out) == ["already done"]
    (out / "status.json").unlink()  # nothing says whose it is
    assert states(trained_bundle, q, out) == ["refused"]
    assert states(trained_bundle, q, out) == ["refused"]


def test_a_result_is_never_written_over_its_image(trained_bundle: Path, phantom_dataset: Path, tmp_path: Path) -> None:
    scan = Path(shutil.copy(scans(phantom_dataset)[0], tmp_path / "scan.nii.gz"))
    content = scan.read_bytes()
    for _ in "ab":
        (result,) = verbs.predict(trained_bundle, [scan], tmp_path, TORCH, force=True)
        assert f"{scan}: the result would be written over it; give another output folder" in result.message
    values = {"dataset_dir": str(tmp_path), "output_dir": str(tmp_path), **TORCH}
    with pytest.raises(RuntimeError) as caught:  # MONAI's own
        load_workflow(trained_bundle, "inference.yaml", "infer", values).run()
    assert "the result would be written over it" in str(root_cause(caught.value))
    assert scan.read_bytes() == content


def test_what_an_earlier_call_left_is_said_or_goes(trained_bundle: Path, phantom_dataset: Path, tmp_path: Path) -> None:
    """Probabilities are those of the label map beside them; a label map that could not be made again is told."""
    scan, out = Path(shutil.copy(scans(phantom_dataset)[0], tmp_path / "scan.nii.gz")), tmp_path / "out"
    kept, other = out / "scan_probabilities.npy", {"inferer::overlap": 0.25}
    assert states(trained_bundle, scan, out, probabilities=True) == ["done"]
    assert states(trained_bundle, scan, out) == ["already done"]
    assert kept.is_file()
    assert states(trained_bundle, scan, out, other) == ["done"]
    assert not kept.exists()
    assert states(trained_bundle, scan, out, other, probabilities=True) == ["done"]
    assert kept.is_file()
    content = scan.read_bytes()
    scan.write_bytes(content[:200])
    (result,) = verbs.predict(trained_bundle, [scan], out, TORCH)
    assert result.state == "failed"
    assert result.message.endswith("(scan.nii.gz is of an earlier call)")
    assert rows(out)["scan"]["earlier"]
    scan.write_bytes(content)
    assert states(trained_bundle, scan, out) == ["done"]
    assert not rows(out)["scan"]["earlier"]


def test_an_output_that_is_no_number_fails_its_case_alone(
    trained_bundle: Path, phantom_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = UNet.forward, []

    def broken(network: UNet, windows: torch.Tensor) -> Any:
        calls.append(len(windows))
        logits = forward(network, windows)
        return logits.index_fill(2, torch.tensor(3), torch.nan) if len(calls) == 1 else logits

    monkeypatch.setattr(UNet, "forward", broken)
    results = verbs.predict(trained_bundle, scans(phantom_dataset)[:3], tmp_path / "out", TORCH)
    assert [r.state for r in results] == ["failed", "done", "done"]
    assert f"{scans(phantom_dataset)[0]}: the network's output is not a number; predict with" in results[0].message
    assert not (tmp_path / "out" / results[0].output).exists()
    assert [case["state"] for case in rows(tmp_path / "out").values()] == ["failed", "done", "done"]


def test_a_case_cannot_spoil_the_status_file(tmp_path: Path) -> None:
    status = Status(tmp_path, "digest")
    quality = {"liver": {"soft_dice": float("nan"), "voxels": 3.0}}
    status.add(CaseResult("a", "done", output="a.nii.gz", quality=quality, geometry={"steps": [1.0, float("inf")]}))
    status.add(CaseResult("b", "done", output="b.nii.gz"))
    status.write()
    assert rows(tmp_path)["a"]["quality"] == {"liver": {"soft_dice": None, "voxels": 3.0}}
    assert rows(tmp_path)["a"]["geometry"] == {"steps": [1.0, None]}
    assert set(Status(tmp_path, "digest").before) == {"a.nii.gz", "b.nii.gz"}


def test_a_run_that_was_killed_before_its_status_knows_its_results(tmp_path: Path) -> None:
    def waiting(name: str) -> CaseResult:
        return CaseResult(name, "waiting", output=f"{name}.nii.gz", images=[f"/in/{name}.mha"])

    assert Status(tmp_path, "digest").claim([waiting("a")], force=False) == set()
    (tmp_path / "a.nii.gz").write_bytes(b"written, and then killed")
    (tmp_path / "b.nii.gz").write_bytes(b"of somebody")
    again = Status(tmp_path, "digest")
    assert again.before == {}
    assert again.claim([waiting("a"), waiting("b")], force=False) == {"b.nii.gz"}
    failed = waiting("a")
    failed.state, failed.earlier = "failed", False
    again.add(failed)
    again.write()
    assert Status(tmp_path, "digest").claim([waiting("a")], force=False) == {"a.nii.gz"}  # drawn by hand since


def test_folders_and_disks_that_take_no_results(
    trained_bundle: Path, phantom_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output folder's ends the batch; another that is full, as the one for temporary files, fails a case."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"sub: cannot be written \(Not a directory\); give another folder with -o"):
        verbs.predict(trained_bundle, [phantom_dataset / "imagesTr"], tmp_path / "file" / "sub", TORCH)
    place, load = [Path("/full/temporary")], LoadVolumed.__call__

    def full(self: LoadVolumed, data: Any) -> Any:
        if str(data["image"]).endswith("phantom_001.nii.gz"):
            raise DiskFullError(f"{place[0]}: cannot be written, the disk is full", place[0])
        return load(self, data)

    monkeypatch.setattr(LoadVolumed, "__call__", full)
    images = scans(phantom_dataset)[:3]
    assert states(trained_bundle, images, tmp_path / "out") == ["done", "failed", "done"]
    place[0] = tmp_path / "out2" / "x.npy"
    with pytest.raises(DiskFullError, match="the disk is full"):
        states(trained_bundle, images, tmp_path / "out2")
    assert {case["state"] for case in rows(tmp_path / "out2").values()} == {"done", "waiting"}


def test_probabilities_of_a_network_that_does_not_say_its_outputs(
    trained_bundle: Path, phantom_dataset: Path, tmp_path: Path
) -> None:
    segmenter = load_segmenter(trained_bundle, {"output_dir": str(tmp_path), **TORCH})
    assert isinstance(segmenter.plan, dict)
    del segmenter.plan["network"]["out_channels"]
    (case,) = find_cases([scans(phantom_dataset)[0]])
    (result,) = segment_cases(segmenter, [case], tmp_path, keep_probabilities=True)
    assert result.state == "done", result.message
    assert len(np.load(tmp_path / f"{case.name}_probabilities.npy")) == len(segmenter.plan["labels"])


def test_results_name_the_weights_that_made_them(trained_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(trained_bundle, tmp_path / "b"))
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    torch.save({key: value * 2 for key, value in state.items()}, bundle / "models" / "other.pt")
    digests = []
    for name in ("models/model.pt", "models/other.pt", str(bundle / "models" / "other.pt")):
        save = load_workflow(bundle, "inference.yaml", "infer", {"weights::path": name}).parser.get_parsed_content(
            "save"
        )
        digests.append(save._digest)
    assert digests[0] == model_digest(bundle, {})
    assert digests[1] == digests[2] == model_digest(bundle, {}, bundle / "models" / "other.pt")
    assert digests[0] != digests[1]


def test_a_digest_is_of_all_that_labels_depend_on(trained_bundle: Path, tmp_path: Path) -> None:
    bundle, partner, coarse = (Path(shutil.copytree(trained_bundle, tmp_path / name)) for name in "abc")
    path = partner / "configs" / "metadata.json"
    content = json.loads(path.read_text())
    content["plan"]["region"] = {"bundle": "../c", "margin": 5}
    path.write_text(json.dumps(content))
    assert model_digest(bundle, {"device::name": "cpu"}) == model_digest(bundle, {})
    assert model_digest(bundle, {"inferer::overlap": 0.1}) != model_digest(bundle, {})
    partners = {"inferer::partners": ["../b"]}
    before = model_digest(bundle, partners)
    (coarse / "models" / "model.pt").write_bytes(b"trained again")
    assert model_digest(bundle, partners) != before
    path.write_text("broken")
    assert model_digest(bundle, partners)


def test_one_item_is_computed_ahead() -> None:
    from concurrent.futures import ThreadPoolExecutor

    started: list[int] = []

    def square(number: int) -> int:
        started.append(number)
        return number * number

    with ThreadPoolExecutor(1) as executor:
        results = ahead(executor, square, range(5))
        assert next(results) == 0
        assert max(started) <= 1
        assert list(results) == [1, 4, 9, 16]
        started.clear()
        results = ahead(executor, square, range(6), 3, 4, lambda square: square)
        assert next(results) == 0  # 0 and 1 leave room, 4 does not
        assert max(started) <= 2  # which waits, and nothing is made meanwhile
        assert list(results) == [1, 4, 9, 16, 25]
        started.clear()
        results = ahead(executor, square, range(9), 5)
        assert next(results) == 0
        results.close()  # the executor would wait for ever for one that waits
    assert max(started) <= 2


def test_small_items_are_left_behind_and_large_ones_waited_for() -> None:
    from concurrent.futures import ThreadPoolExecutor
    from threading import Event

    drawn: list[int] = []
    seen: list[int] = []
    all_drawn = Event()

    def numbers() -> Iterator[int]:
        for number in range(4):
            drawn.append(number)
            yield number
        all_drawn.set()

    def late(number: int) -> int:
        assert all_drawn.wait(20)
        return number

    def noted(number: int) -> int:
        seen.append(len(drawn))
        return number

    with ThreadPoolExecutor(1) as executor:
        assert list(behind(executor, late, numbers(), 4, 5)) == [0, 1, 2, 3]
        drawn.clear()
        assert list(behind(executor, noted, numbers(), 4, 5, lambda number: 5 if number == 1 else 1)) == [0, 1, 2, 3]
        assert all(count <= number + 4 for number, count in enumerate(seen))
        drawn.clear()
        seen.clear()
        assert list(behind(executor, noted, numbers(), 4)) == [0, 1, 2, 3]
        assert all(count <= number + 2 for number, count in enumerate(seen))


def test_small_images_share_forward_passes(trained_bundle: Path, phantom_dataset: Path, tmp_path: Path) -> None:
    """As many as fill a pass; the labels are those of one after the other, and a broken case harms no other."""
    images = sorted((phantom_dataset / "imagesTr").glob("*.nii.gz"))
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(images[0].read_bytes()[:300])
    inputs = [*images[:3], broken, *images[3:]]
    sizes: list[int] = []
    forward = UNet.forward

    def counted(network: UNet, windows: torch.Tensor) -> object:
        sizes.append(len(windows))
        return forward(network, windows)

    plain = verbs.predict(trained_bundle, inputs, tmp_path / "one", {"inferer::backend": "torch"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UNet, "forward", counted)
        options = {"inferer::backend": "torch", "inferer::batch_size": 8}
        together = verbs.predict(trained_bundle, inputs, tmp_path / "many", options)
    assert max(sizes) > 1
    assert [r.state for r in together] == [r.state for r in plain] == ["done"] * 3 + ["failed"] + ["done"] * 3
    for result in (r for r in plain if r.state == "done"):
        first, second = (read_label(tmp_path / folder / result.output).array for folder in ("one", "many"))
        assert (first == second).mean() > 0.9999  # a batch may sum in another order


def test_what_a_killed_run_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    import os
    import time

    old, young = tmp_path / "a" / ".part-old.nii.gz", tmp_path / ".part-young.npy"
    old.parent.mkdir()
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 7200,) * 2)
    remove_stale(tmp_path)
    assert not old.exists()
    assert young.exists()
