"""The command line: exit codes, one sentence per problem, nothing half-written."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import medunet.cli.main as cli
from medunet import verbs
from medunet.cli import options
from medunet.cli.printing import Printer
from medunet.data.volume import read_label, read_volume, write_image, write_label
from medunet.errors import MedunetError
from tests.dicom_phantom import make_series

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``run("plan", folder)`` -> (exit code, stdout, stderr)."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["medunet", *map(str, words)])
        monkeypatch.setattr(cli.state, "debug", False)
        monkeypatch.setattr(cli.state, "quiet", False)
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def dataset(phantom_dataset: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(phantom_dataset, tmp_path / "data"))


def first(folder: Path) -> Path:
    return sorted(folder.glob("*.nii.gz"))[0]


def test_help_lists_the_verbs_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['medunet', '--help']\n"
        "from medunet.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'monai', 'numpy', 'nibabel', 'SimpleITK', 'scipy'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for verb in ("index", "plan", "train", "predict", "evaluate", "report", "demo"):
        assert f"\n  {verb} " in done.stdout
    assert "heavy: []" in done.stdout


def break_missing(data: Path) -> None:
    first(data / "imagesTr").unlink()


def break_shape(data: Path) -> None:
    volume = read_label(first(data / "labelsTr"))
    from medunet.data.grid import Grid

    smaller = volume.array[0, :, :, :-1]
    write_label(first(data / "labelsTr"), smaller, Grid(smaller.shape, volume.grid.affine))


def break_truncated(data: Path) -> None:
    path = first(data / "imagesTr")
    path.write_bytes(path.read_bytes()[:-500])


def break_label_value(data: Path) -> None:
    volume = read_label(first(data / "labelsTr"))
    array = volume.array[0].copy()
    array[0, 0, 0] = 77
    write_label(first(data / "labelsTr"), array, volume.grid)


def break_nan(data: Path) -> None:
    volume = read_volume(first(data / "imagesTr"))
    array = volume.array[0].astype(np.float32)
    array[1, 2, 3] = np.nan
    write_image(first(data / "imagesTr"), array, volume.grid)


def break_duplicate(data: Path) -> None:
    files = sorted((data / "imagesTr").glob("*.nii.gz"))
    shutil.copy(files[1], files[0])
    labels = sorted((data / "labelsTr").glob("*.nii.gz"))
    shutil.copy(labels[1], labels[0])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_missing, "imagesTr/phantom_000.nii.gz: is missing"),
        (break_shape, "phantom_000: label grid (24, 24, 15) differs from image (24, 24, 16)"),
        (break_truncated, "phantom_000.nii.gz: cannot be read, the file is truncated or corrupt"),
        (break_label_value, "phantom_000: label value 77 is not declared"),
        (break_nan, "phantom_000: image has 1 NaN or infinite voxels"),
        (break_duplicate, "phantom_001: has the same image as phantom_000, with the same label"),
    ],
)
def test_a_bad_case_stops_the_plan_and_can_be_skipped(
    run: Run, dataset: Path, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(dataset)
    code, _, err = run("plan", dataset, "--bundle", tmp_path / "bundle", "--device", "cpu")
    assert code == 2
    assert words in err
    assert "Traceback" not in err
    assert not (tmp_path / "bundle").exists()
    code, out, _ = run("index", dataset, "--on-problem", "skip", "--json", tmp_path / "index.json")
    assert code == 0
    assert "5 training" in out
    assert words in out
    code, _, err = run("plan", tmp_path / "index.json", "--bundle", tmp_path / "bundle", "--device", "cpu")
    assert code == 0, err
    kept = json.loads((tmp_path / "bundle" / "eval" / "index.json").read_text())
    assert len(kept["training"]) == 5
    assert any(words in finding["message"] for finding in kept["findings"])


@pytest.mark.parametrize("content", ["empty", "text", "missing"])
def test_a_folder_without_cases(run: Run, tmp_path: Path, content: str) -> None:
    folder = tmp_path / "data"
    if content != "missing":
        folder.mkdir()
    if content == "text":
        (folder / "notes.txt").write_text("nothing here")
    code, _, err = run("plan", folder, "--bundle", tmp_path / "b", "--device", "cpu")
    assert code == 2
    assert "dataset is missing" in err if content == "missing" else "no cases were recognised; known layouts are" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "patch_size=[24,24,9]"], "the nearest valid value is"),
        (["--set", "patchsize=3"], "did you mean patch_size?"),
        (["--set", "batch_size=0"], "batch_size=0 does not fit; give a whole number from 1"),
        (["--set", "nonsense"], "is not KEY=VALUE"),
        (["--memory", "lots"], "is not an amount of memory"),
        (["--memory", "8"], "is not an amount of memory; give for example 8GB"),
        (["--memory", "1MB"], "give more memory, a smaller patch_size or fewer base_channels"),
        (["--minutes", "3", "--epochs", "2"], "give one of them"),
        (["--config", "nowhere"], "nowhere: overlay is missing; give a YAML file or one of"),
        (["--device", "tpu"], "--device tpu: is not known"),
    ],
)
def test_bad_plan_options(run: Run, phantom_dataset: Path, tmp_path: Path, words: list[str], message: str) -> None:
    options = words if "--device" in words else [*words, "--device", "cpu"]
    code, _, err = run("plan", phantom_dataset, "--bundle", tmp_path / "b", *options)
    assert code == 2
    assert message in err
    assert not (tmp_path / "b").exists()


def test_what_is_given_last_acts_last(tmp_path: Path) -> None:
    """A rate given with --set holds though one overlay sets a rate and the next a whole optimiser."""
    from medunet.cli.options import train_options

    rate, whole = tmp_path / "rate.yaml", tmp_path / "whole.yaml"
    rate.write_text("optimizer::lr: 0.5\nminutes: 3\nclip: 1\n")
    whole.write_text("optimizer: {lr: 0.1}\nclip: 2\n")
    given = train_options((7.0, None), False, "cpu", [str(rate), str(whole)], ["optimizer::lr=0.02", "minutes=9"])
    assert list(given) == ["optimizer", "clip", "resume", "more", "device::name", "optimizer::lr", "minutes"]
    assert [given[key] for key in ("clip", "optimizer::lr", "minutes")] == [2, 0.02, 9]


def test_options_of_a_plan_win_over_its_overlays(tmp_path: Path) -> None:
    overlay = tmp_path / "large.yaml"
    overlay.write_text("memory: 24GB\ndevice: cuda\nbase_channels: 48\n")
    nothing = (None, None)
    budget, chosen = options.plan_options(None, None, None, nothing, [str(overlay)], [])
    assert (budget.memory, budget.device, chosen) == (24 * 10**9, "cuda", {"base_channels": 48})
    budget, chosen = options.plan_options(None, "cpu", "8GB", nothing, [str(overlay)], ["base_channels=16"])
    assert (budget.memory, budget.device, chosen) == (8 * 10**9, "cpu", {"base_channels": 16})
    assert options.plan_options(None, "cpu", None, nothing, [], [])[0].memory == 8 * 10**9


def test_numbers_with_exponents_are_numbers(tmp_path: Path) -> None:
    text = "{a: [1e-3, -2E+4, .5e1], b: {c: 1e3}, d: [7, 1.0e-4, '1e-3', 1e, v1e3, 1.2.3, 010, 09]}"
    wanted = {"a": [0.001, -20000.0, 5.0], "b": {"c": 1000.0}, "d": [7, 0.0001, "1e-3", "1e", "v1e3", "1.2.3", 8, "09"]}
    assert options.parse_settings(["optimizer::lr=1e-3", f"x={text}"]) == {"optimizer::lr": 0.001, "x": wanted}
    (tmp_path / "o.yaml").write_text(f"x: {text}\n")
    assert options.read_overlay(str(tmp_path / "o.yaml"), "run") == {"x": wanted}
    assert isinstance(options.parse_settings(["seed=7"])["seed"], int)
    with pytest.raises(MedunetError, match="the value is not valid YAML"):
        options.parse_settings(["x=!!python/name:os.system"])


def test_places_that_cannot_be_written_are_named(run: Run, trained_bundle: Path, dataset: Path, tmp_path: Path) -> None:
    file, folder, labels = tmp_path / "file", tmp_path / "folder", dataset / "labelsTr"
    file.write_text("")
    folder.mkdir()
    code, _, err = run("predict", trained_bundle, first(dataset / "imagesTr"), "-o", file)
    assert (code, err) == (2, f"medunet: {file}: is a file; give a folder for the results\n")
    code, _, err = run("evaluate", labels, labels, "-o", folder)
    assert code == 2
    assert f"{folder}: cannot be read or written (Is a directory); give another path" in err


def test_a_run_takes_overlays_by_name(run: Run, planned_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    code, out, err = run("train", bundle, "--config", "sgd_poly", "--epochs", "1", "--device", "cpu")
    assert (code, err) == (0, "")
    assert "Dice" in out
    last = torch.load(bundle / "models" / "checkpoint_last.pt", weights_only=True)
    assert last["optimizer"]["param_groups"][0]["nesterov"]
    code, out, _ = run("train", bundle, "--config", "sgd_poly", "--resume", "--device", "cpu")
    assert "the run is finished after 3 steps; --resume with --minutes or --epochs trains more" in out
    assert f"open {bundle / 'eval' / 'fold_0' / 'report.html'} in a browser" in out
    code, _, err = run("train", bundle, "--config", "nowhere")
    assert code == 2
    assert "nowhere: overlay is missing; give a YAML file or one of adam, augment_on_workers" in err
    code, _, err = run("train", bundle, "--config", "mine/long_run.yaml")  # not the shipped one
    assert code == 2
    assert "mine/long_run.yaml: overlay is missing" in err


def test_unknown_verbs_and_options_are_usage_errors(run: Run) -> None:
    assert run("segment")[0] == 2
    assert run("plan")[0] == 2
    assert run("train", "x", "--fold", "9")[0] == 2


def test_plan_explain_gives_a_reason_for_every_number(run: Run, phantom_dataset: Path, tmp_path: Path) -> None:
    code, out, _ = run("plan", phantom_dataset, "--bundle", tmp_path / "b", "--device", "cpu", "--explain")
    assert code == 0
    for key in ("dims", "orientation", "spacing", "patch_size", "batch_size", "network", "normalization", "overlap"):
        assert f"\n{key} " in f"\n{out}"
    assert out.count("because: ") >= 15


def test_planning_twice_gives_the_same_bytes(run: Run, phantom_dataset: Path, tmp_path: Path) -> None:
    for name in "ab":
        assert run("plan", phantom_dataset, "--bundle", tmp_path / name, "--device", "cpu")[0] == 0
    for path in sorted((tmp_path / "a").rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_a_typo_in_a_target_names_file_and_line(run: Run, planned_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    config = bundle / "configs" / "train.yaml"
    config.write_text(config.read_text().replace("medunet.training.CutPatch", "medunet.training.CutPach"))
    code, _, err = run("train", bundle)
    assert code == 2
    assert "train.yaml line " in err
    assert "'medunet.training.CutPach' does not exist" in err
    assert not (bundle / "models").exists()


def test_a_batch_that_does_not_fit_the_memory(planned_bundle: Path, tmp_path: Path) -> None:
    """A real allocation failure: the address space is limited, the batch is huge."""
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    meta = bundle / "configs" / "metadata.json"
    content = json.loads(meta.read_text())
    content["plan"]["batch_size"] = 4000
    meta.write_text(json.dumps(content))
    code = "import torch, monai.bundle, medunet.training, resource, sys\nfrom medunet.cli.main import main\n" + (
        "import psutil; used = psutil.Process().memory_info().vms\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 1_500_000_000,) * 2)\n"
        "sys.argv = ['medunet', 'train', sys.argv[1], '--epochs', '1']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "does not fit the memory" in done.stderr
    assert "--memory" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_during_prediction(trained_bundle: Path, phantom_dataset: Path, tmp_path: Path) -> None:
    code = (
        "import signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from medunet.cli.main import main\n"
        "sys.argv = ['medunet', 'predict', *sys.argv[1:]]; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, trained_bundle, phantom_dataset / "imagesTr", "-o", tmp_path / "out"],
        capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400)),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "cannot be written, the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file() and p.name != "status.json"]


@pytest.mark.parametrize("verb", ["plan", "train"])
def test_a_full_disk_while_planning_or_training(
    verb: str, planned_bundle: Path, phantom_dataset: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "b"
    words = ["plan", phantom_dataset, "--bundle", bundle, "--device", "cpu"]
    if verb == "train":
        shutil.copytree(planned_bundle, bundle)
        words = ["train", bundle, "--device", "cpu"]
    code = (
        "import signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from medunet.cli.main import main\n"
        "sys.argv = ['medunet', *sys.argv[1:]]; main()"
    )
    limit = 3000 if verb == "plan" else 20_000
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert not bundle.exists() if verb == "plan" else not list(bundle.rglob("*.pt"))


def test_predict_does_what_it_can_and_then_only_what_is_missing(
    run: Run, trained_bundle: Path, dataset: Path, tmp_path: Path
) -> None:
    images = dataset / "imagesTr"
    (images / "sub").mkdir()
    shutil.copy(first(images), images / "sub" / first(images).name)
    break_truncated(dataset)
    out = tmp_path / "out"
    code, _, err = run("predict", trained_bundle, images, "-o", out, "--device", "cpu")
    assert code == 1
    assert "phantom_000.nii.gz: cannot be read, the file is truncated or corrupt" in err
    assert "1 of 7 cases failed" in err
    written = sorted(p.relative_to(out).as_posix() for p in out.rglob("*.nii.gz"))
    assert written == [*(f"phantom_00{n}.nii.gz" for n in range(1, 6)), "sub/phantom_000.nii.gz"]
    for name in written:
        assert np.array_equal(read_label(out / name).grid.affine, read_volume(images / name).grid.affine)
    shutil.copy(images / "sub" / "phantom_000.nii.gz", images / "phantom_000.nii.gz")
    code, text, _ = run("predict", trained_bundle, images, "-o", out, "--device", "cpu")
    assert code == 0
    assert text.count("already done") == 6
    other = Path(shutil.copytree(images, tmp_path / "others", ignore=shutil.ignore_patterns("sub")))
    code, text, err = run("predict", trained_bundle, other, "-o", out, "--device", "cpu")
    assert (code, text.count("already done")) == (1, 0)  # equal names are not equal patients
    assert err.count("which is of another input or not of medunet; give another folder with -o, or --force") == 6
    code, text, _ = run("predict", trained_bundle, other, "-o", out, "--device", "cpu", "--force")
    assert (code, text.count("already done")) == (0, 0)
    (other / "phantom_001.nii.gz").touch()
    code, text, _ = run("predict", trained_bundle, other, "-o", out, "--device", "cpu")
    assert text.count("already done") == 5  # one was changed since
    code, text, _ = run("predict", trained_bundle, other, "-o", out, "--device", "cpu", "--mirror", "--overlap", "0.25")
    assert code == 0
    assert text.count("already done") == 0  # another way of predicting is another result
    assert (out / "phantom_000.nii.gz").is_file()


def test_predict_refuses_what_the_model_was_not_made_for(
    run: Run, trained_bundle: Path, phantom_dataset: Path, tmp_path: Path
) -> None:
    from medunet.data.grid import Grid

    source = read_volume(first(phantom_dataset / "imagesTr"))
    wrong = np.array(source.grid.affine)
    wrong[:3, :3] *= 8
    write_image(tmp_path / "in" / "big.nii.gz", source.array[0], Grid(source.grid.shape, wrong))
    write_image(tmp_path / "in" / "rescaled.nii.gz", (source.array[0] + 2000) / 3000.0, source.grid)
    write_image(tmp_path / "in" / "flat.nii.gz", source.array[0] * 0, source.grid)
    code, _, err = run("predict", trained_bundle, tmp_path / "in", "-o", tmp_path / "out", "--device", "cpu")
    assert code == 1
    assert "big.nii.gz: has spacing" in err
    assert "store it in Hounsfield units" in err
    assert "is constant (0), there is nothing to segment" in err
    assert err.count("--force predicts all the same") == 3
    code, _, err = run(
        "predict", trained_bundle, tmp_path / "in" / "rescaled.nii.gz", "-o", tmp_path / "out2", "--force",
        "--device", "cpu", "--probabilities",
    )  # fmt: skip
    assert code == 0
    assert "warning" in err
    stored = np.load(tmp_path / "out2" / "rescaled_probabilities.npy")
    assert stored.shape == (5, *source.grid.shape)
    assert np.allclose(stored.astype(np.float32).sum(axis=0), 1, atol=5e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.nii.gz"], "nowhere.nii.gz: is missing"),
        (["@nolist.txt"], "nolist.txt: list file is missing"),
    ],
)
def test_predict_without_input(run: Run, trained_bundle: Path, tmp_path: Path, words: list[str], message: str) -> None:
    code, _, err = run("predict", trained_bundle, *words, "-o", tmp_path / "out")
    assert code == 2
    assert message in err


def test_predict_before_training(run: Run, planned_bundle: Path, phantom_dataset: Path, tmp_path: Path) -> None:
    code, _, err = run("predict", planned_bundle, phantom_dataset / "imagesTr", "-o", tmp_path / "out")
    assert code == 2
    assert "model.pt: is missing; train the bundle first" in err


def test_evaluate_and_report(run: Run, trained_bundle: Path, phantom_dataset: Path, tmp_path: Path) -> None:
    out, scores = tmp_path / "out", tmp_path / "scores.json"
    assert run("predict", trained_bundle, phantom_dataset / "imagesTr", "-o", out, "--device", "cpu")[0] == 0
    labels = "spine=1,liver=2,kidneys=3,lesion=4"
    code, text, _ = run("evaluate", out, phantom_dataset / "labelsTr", "-o", scores, "--labels", labels)
    assert code == 0
    assert "over 6 cases" in text
    content = json.loads(scores.read_text())
    assert set(content["classes"]) == {"spine", "liver", "kidneys", "lesion"}
    assert scores.with_suffix(".csv").read_text().startswith("case,class,dice,")
    code, text, _ = run("report", scores)
    assert code == 0
    assert (tmp_path / "report.html").stat().st_size > 10_000
    code, _, err = run("evaluate", tmp_path / "none", out, "-o", scores)
    assert code == 2
    assert "none: is missing; give a folder of label maps" in err


def test_the_report_of_a_fold_knows_its_plan_from_anywhere(
    run: Run, trained_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(trained_bundle, tmp_path / "b"))
    monkeypatch.chdir(bundle / "eval" / "fold_0")
    assert run("report", "scores.json")[:2] == (0, "wrote report.html\n")
    page = Path("report.html").read_text()
    assert "patch size" in page
    assert "fold 0</h1>" in page


def test_what_to_look_at_first_includes_what_is_expected_to_be_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    expected = {"good": 0.9, "wrong": 0.0, "doubtful": 0.5, "unknown": None}
    results = [SimpleNamespace(name=name, state="done", expected_dice=dice) for name, dice in expected.items()]
    Printer().done(results, Path("out"))
    assert "look first at wrong, doubtful: expected" in capsys.readouterr().out


def test_a_stop_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*words: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verbs, "index", stop)
    assert run("index", "x") == (130, "", "medunet: stopped\n")


def test_debug_shows_the_trace_back(run: Run, tmp_path: Path) -> None:
    assert "Traceback" in run("--debug", "plan", tmp_path / "x", "--bundle", tmp_path / "b")[2]


def test_dicom_lists_series_with_their_verdicts(run: Run, tmp_path: Path) -> None:
    make_series(tmp_path / "in/good", np.zeros((4, 6, 5), np.int16), SeriesDescription="thorax")
    make_series(tmp_path / "in/gap", np.zeros((6, 6, 5), np.int16), PatientID="T2")[3].unlink()
    (tmp_path / "in/notes.txt").write_text("x")
    code, out, err = run("dicom", tmp_path / "in", "--json", tmp_path / "list.json")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].endswith("2 stacks of images, 2 patients, 0 label objects, 1 file set aside")
    assert lines[1] == "  accepted  T1  CT thorax  4 images  5 x 6 x 4 voxels of 0.7 x 0.8 x 2.5 mm"
    assert lines[2].startswith("  refused   T2  CT series 4  5 images")
    assert lines[3].strip().startswith("1 slice missing in 1 gap")
    assert lines[4] == f"  aside     {tmp_path}/in/notes.txt: is not DICOM"
    content = json.loads((tmp_path / "list.json").read_text())
    assert [series["verdict"] for series in content["series"]] == ["accepted", "refused"]
    assert content["set_aside"][0]["reason"] == "is not DICOM"
    code, out, _ = run("dicom", tmp_path / "in", "--allow-gaps")
    assert "repaired" in out
    assert run("dicom", tmp_path / "nowhere")[0] == 2


def test_formats_and_options_that_do_not_fit_are_told(run: Run, trained_bundle: Path, tmp_path: Path) -> None:
    code, _, err = run("predict", trained_bundle, tmp_path, "-o", tmp_path / "o", "--format", "stl")
    assert (code, err) == (
        2,
        "medunet: --format stl: is not available; give nifti or dicom-seg or rtstruct or tiff or png\n",
    )
    code, _, err = run("predict", trained_bundle, tmp_path, "-o", tmp_path / "o", "--format", "rtstruct", "--labelmap")
    assert (code, err) == (2, "medunet: --labelmap: rtstruct has no such kind; give --format dicom-seg with it\n")
