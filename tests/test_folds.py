"""Several folds: one network of all, cross-validated scores, partners, and rules for components that are proved."""

from __future__ import annotations

import errno
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from scipy import ndimage
from torch import Tensor, nn

import medunet
from medunet.bundle.running import explained, load_workflow, train_bundle
from medunet.bundle.segmenting import load_segmenter
from medunet.data.atomic import disk_errors
from medunet.data.grid import Grid
from medunet.data.transforms import Frame
from medunet.data.volume import read_volume, write_label
from medunet.errors import BundleError, MedunetError, NetworkError, PlanError, ResourceError
from medunet.evaluation import components as evaluation_components
from medunet.evaluation.components import Found, apply_rules, prove
from medunet.inference import WindowInferer
from medunet.inference.backends import make_backend
from medunet.inference.components import read_rules
from medunet.inference.quality import Calibration
from medunet.inference.weights import load_weights, model_digest, read_state, weights_digest
from medunet.networks import UNETR, Ensemble, UNet
from medunet.networks.ensemble import joined, member_of, members_in
from medunet.networks.receptive import fitting_size, output_margin, spatial_divisor, tile_halo
from medunet.planning.settings import validate
from medunet.training import folds as room
from medunet.training.cases import FoldCases
from medunet.training.folds import _proved, cross_validation
from medunet.training.guards import Guards
from medunet.trust.archive import content_checks
from medunet.trust.archive.bundle_files import Contents
from medunet.trust.archive.slices import Slice
from medunet.trust.archive.zipform import Member


def unet(seed: int = 0, **options: Any) -> UNet:
    torch.manual_seed(seed)
    return UNet(3, 1, 3, [4, 8], [1, 2], **options).eval()


def of(*networks: nn.Module) -> Ensemble:
    """An ensemble of these, as it comes from a file."""
    ensemble = Ensemble(unet())
    ensemble.load_state_dict(joined(network.state_dict() for network in networks))
    return ensemble.eval()


@pytest.fixture
def window() -> Tensor:
    return torch.randn((2, 1, 16, 16, 16), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_file_decides_how_many_networks_there_are(window: Tensor, tmp_path: Path) -> None:
    one, other = unet(1), unet(2)
    ensemble = Ensemble(unet()).eval()
    ensemble.load_state_dict(one.state_dict())
    assert torch.equal(ensemble(window), one(window))
    assert ensemble.state_dict().keys() == one.state_dict().keys()
    torch.save(joined([one.state_dict(), other.state_dict()]), tmp_path / "model.pt")
    load_weights(ensemble, tmp_path / "model.pt")
    assert not ensemble.training
    assert torch.allclose(ensemble(window), (one(window) + other(window)) / 2, atol=1e-6)
    assert members_in(ensemble.state_dict()) == 2
    assert torch.equal(ensemble.state_dict()["members.1.heads.0.bias"], other.heads[0].bias)
    assert member_of(ensemble.state_dict(), 1).keys() == other.state_dict().keys()
    ensemble.load_state_dict(other.state_dict())  # and back to one, without a trace of the others
    assert torch.equal(ensemble(window), other(window))
    ensemble.load_state_dict(joined([one.state_dict()]))
    assert torch.equal(ensemble(window), one(window))


@torch.no_grad()
def test_equal_members_are_one_network(window: Tensor) -> None:
    one = unet(1)
    assert torch.allclose(of(one, one, one)(window), one(window), atol=1e-6)


@pytest.mark.parametrize(
    "keys",
    [
        ["weight"],
        ["members.0.heads.0.bias"],
        [f"members.1.{key}" for key in unet().state_dict()],
        [f"members.{n}.{key}" for n in (0, 2) for key in unet().state_dict()],
        [*unet().state_dict(), "members.0.heads.0.bias"],
    ],
)
def test_weights_of_neither_kind_are_refused(keys: list[str], tmp_path: Path) -> None:
    torch.save({key: torch.zeros(1) for key in keys}, tmp_path / "model.pt")
    with pytest.raises(NetworkError, match="neither of one such network nor of an ensemble of it"):
        Ensemble(unet()).become(keys)
    words = r"weights do not fit the plan's network \(they are neither .* is in one alone\); plan and train again"
    with pytest.raises(BundleError, match=words):
        load_weights(Ensemble(unet()), tmp_path / "model.pt")


def test_what_a_network_says_of_itself_an_ensemble_says_too() -> None:
    valid = {"norm": "none", "downsample": "pooled", "padding": "valid"}
    for network in (unet(norm="none"), unet(**valid), unet(deep_supervision=0)):
        ensemble = Ensemble(network)
        ensemble.become(joined([network.state_dict()] * 2))
        assert spatial_divisor(ensemble, 3) == spatial_divisor(network, 3) == (2, 2, 2)
        assert output_margin(ensemble, 3) == output_margin(network, 3)
        assert fitting_size(ensemble, (21, 22, 23)) == fitting_size(network, (21, 22, 23))
        assert tile_halo(ensemble, 3) == tile_halo(network, 3)
    assert spatial_divisor(Ensemble(nn.Conv3d(1, 1, 1)), 3) == (32, 32, 32)  # it says nothing
    unetr = UNETR(3, 1, 2, [16, 16, 16], base_channels=4, hidden_size=8, mlp_dim=8, num_heads=2)
    assert tile_halo(Ensemble(unetr), 3) is tile_halo(unetr, 3) is None  # it takes inputs of one size alone


@pytest.mark.parametrize("name", ["torch", "openvino", "onnx"])
def test_every_backend_computes_all_members(name: str, window: Tensor) -> None:
    for package in {"openvino": ["openvino"], "onnx": ["onnx", "onnxruntime"]}.get(name, []):
        pytest.importorskip(package)
    one, other = unet(1), unet(2)
    backend = make_backend(name, of(one, other), "cpu", (16, 16, 16), 1)
    with torch.no_grad():
        assert (backend(window) - (one(window) + other(window)) / 2).abs().max() < 1e-4


QUICK = {"quiet": True, "train::trainer::max_epochs": 1, "device::name": "cpu"}


@pytest.fixture(scope="module")
def ensemble(planned_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle after ``--fold all``. Copy it before changing it."""
    bundle = Path(shutil.copytree(planned_bundle, tmp_path_factory.mktemp("folds") / "bundle"))
    medunet.train(bundle, "all", QUICK)
    return bundle


def folds_of(bundle: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("fold_")) for path in bundle.glob("models/fold_*.pt"))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_all_folds_leave_one_model_and_scores_of_all_cases(ensemble: Path, phantom_dataset: Path) -> None:
    folds = folds_of(ensemble)
    assert len(folds) >= 2
    state = read_state(ensemble / "models" / "model.pt")
    assert members_in(state) == len(folds)
    for number, fold in enumerate(folds):
        kept = read_state(ensemble / "models" / f"fold_{fold}.pt")
        assert all(torch.equal(state[f"members.{number}.{key}"], value) for key, value in kept.items())
    content = read(ensemble / "eval" / "cross_validation.json")
    cases = [case["id"] for case in content["cases"]]
    assert sorted(cases) == sorted(
        path.name.removesuffix(".nii.gz") for path in (phantom_dataset / "imagesTr").iterdir()
    )
    by_fold = {fold: read(ensemble / "eval" / f"fold_{fold}" / "scores.json") for fold in folds}
    assert [entry["fold"] for entry in content["folds"]] == folds
    for entry in content["folds"]:
        assert entry["summary"]["dice"] == by_fold[entry["fold"]]["summary"]["dice"]["mean"]
    dice = [v["dice"] for fold in folds for case in by_fold[fold]["cases"] for v in case["classes"].values()]
    assert content["summary"]["dice"]["n"] == sum(value is not None for value in dice)
    low, high = content["summary"]["dice"]["ci95"]
    assert low <= content["summary"]["dice"]["mean"] <= high
    digest = weights_digest(ensemble)
    assert content["model"] == digest
    assert read(ensemble / "models" / "quality.json")["weights"] == digest
    assert read(ensemble / "models" / "quality.json")["fold"] == "all"
    components = read(ensemble / "models" / "components.json")
    assert components["weights"] == digest
    assert components["rules"] == {}  # of six cases nothing is proved
    assert all(numbers["cases"] == 6 for numbers in components["evidence"].values())
    page = (ensemble / "eval" / "report.html").read_text()
    assert "cross-validation</h1>" in page
    assert page.split('<table id="folds">')[1].split("</table>")[0].count("<tr>") == 1 + len(folds)
    assert medunet.report(ensemble) == ensemble / "eval" / "report.html"
    assert "cross-validation</h1>" in (ensemble / "eval" / "report.html").read_text()


def scan_of(dataset: Path) -> Path:
    return sorted((dataset / "imagesTr").glob("*.nii.gz"))[0]


def voxels(bundle: Path, scan: Path, out: Path, overrides: dict[str, Any] | None = None, **options: Any) -> Any:
    (result,) = medunet.predict(bundle, [scan], out, {"inferer::backend": "torch", **(overrides or {})}, **options)
    assert result.state == "done", result.message
    return read_volume(out / scan.name).array[0]


def test_an_ensemble_predicts_the_mean_of_its_members(ensemble: Path, phantom_dataset: Path, tmp_path: Path) -> None:
    """By hand, in float32: each member's blended logits. A bundle of equal members gives what one of them gives."""
    exact = {"inferer::amp": False}
    scan = scan_of(phantom_dataset)
    single = Path(shutil.copytree(ensemble, tmp_path / "single"))
    fold = folds_of(ensemble)[0]
    shutil.copy(ensemble / "models" / f"fold_{fold}.pt", single / "models" / "model.pt")
    alone = voxels(single, scan, tmp_path / "one")
    assert alone.any()
    torch.save(joined([read_state(single / "models" / "model.pt")] * 3), single / "models" / "model.pt")
    assert (voxels(single, scan, tmp_path / "three") == alone).all()
    segmenter = load_segmenter(ensemble, {"device::name": "cpu", "inferer::backend": "torch", **exact})
    seen = segmenter.inferer.see(segmenter.preprocessing({"image": str(scan)})["image"], segmenter.network)
    members = list(segmenter.network.members)
    (made,) = segmenter.inferer.segment([seen], lambda x: sum(member(x) for member in members) / len(members))
    assert (voxels(ensemble, scan, tmp_path / "all", exact) == made.labels).all()
    mirrored = {"inferer::mirror_axes": [0], "inferer::backend": "auto"}
    assert voxels(ensemble, scan, tmp_path / "auto", mirrored).shape == alone.shape


def test_monai_computes_the_ensemble_too(ensemble: Path, phantom_dataset: Path, tmp_path: Path) -> None:
    scan = scan_of(phantom_dataset)
    (tmp_path / "in").mkdir()
    shutil.copy(scan, tmp_path / "in")
    workflow = load_workflow(
        ensemble, "inference.yaml", "infer",
        {"dataset_dir": str(tmp_path / "in"), "output_dir": str(tmp_path / "run"), "device::name": "cpu",
         "inferer::backend": "torch"},
    )  # fmt: skip
    workflow.run()
    assert (read_volume(tmp_path / "run" / scan.name).array[0] == voxels(ensemble, scan, tmp_path / "out")).all()


def test_a_run_over_all_folds_is_resumed(ensemble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folds that are done are left as they are; the one that is not is trained, and all are put together again."""
    bundle = Path(shutil.copytree(ensemble, tmp_path / "b"))
    folds = folds_of(bundle)
    before = {fold: (bundle / "models" / f"fold_{fold}.pt").read_bytes() for fold in folds}
    (bundle / "models" / f"fold_{folds[0]}.pt").unlink()
    (bundle / "eval" / "cross_validation.json").unlink()
    trained: list[tuple[int, bool]] = []

    def noting(root: Path, values: Any, *begun: Any) -> None:
        trained.append((values["fold"], bool(values["resume"])))
        train_bundle(root, values, *begun)

    monkeypatch.setattr("medunet.bundle.folds.train_bundle", noting)
    paths = medunet.train(bundle, "all", {**QUICK, "resume": True})
    assert trained == [(folds[0], False)]  # the checkpoint is of the last fold
    assert paths[-1] == bundle / "eval" / "cross_validation.json"
    assert {fold: (bundle / "models" / f"fold_{fold}.pt").read_bytes() for fold in folds[1:]} == {
        fold: before[fold] for fold in folds[1:]
    }
    assert members_in(read_state(bundle / "models" / "model.pt")) == len(folds)
    medunet.train(bundle, "all", {**QUICK, "resume": True})  # nothing is left to train
    assert len(trained) == 1
    with pytest.raises(BundleError, match="all folds are finished, and no more than one keeps what it takes"):
        medunet.train(bundle, "all", {**QUICK, "resume": True, "more": True})
    scores = bundle / "eval" / f"fold_{folds[1]}" / "scores.json"
    scores.write_text(scores.read_text() + "\n")  # as another run of that fold leaves it
    medunet.train(bundle, "all", {**QUICK, "resume": True})
    assert trained[1:] == [(folds[1], False)]
    metadata = bundle / "configs" / "metadata.json"
    metadata.write_text(metadata.read_text().replace('"overlap": 0.5', '"overlap": 0.25'))
    with pytest.raises(BundleError, match="the plan was changed since the folds were begun; train without --resume"):
        medunet.train(bundle, "all", {**QUICK, "resume": True})
    (bundle / "eval" / "folds.json").unlink()
    with pytest.raises(BundleError, match="has no run over all folds to resume"):
        medunet.train(bundle, "all", {**QUICK, "resume": True})


def test_folds_of_a_dataset_that_has_moved_are_put_together(
    ensemble: Path, phantom_dataset: Path, tmp_path: Path
) -> None:
    """Each fold's scores name files where they were; what is read, and named, is where they are now."""
    there, moved = (Path(shutil.copytree(phantom_dataset, tmp_path / name)) for name in ("there", "moved"))
    bundle = Path(shutil.copytree(ensemble, tmp_path / "b"))
    medunet.train(bundle, "all", {**QUICK, "dataset_dir": str(there)})
    before = read(bundle / "eval" / "cross_validation.json")
    shutil.rmtree(there)
    (bundle / "models" / f"fold_{folds_of(bundle)[0]}.pt").unlink()
    medunet.train(bundle, "all", {**QUICK, "dataset_dir": str(moved), "resume": True})
    after = read(bundle / "eval" / "cross_validation.json")
    assert after["summary"] == before["summary"]
    assert [
        {**case, "image": [str(path).replace(str(moved), str(there)) for path in case["image"]],
         "reference": case["reference"].replace(str(moved), str(there))}
        for case in after["cases"]
    ] == before["cases"]  # fmt: skip
    assert all(Path(case["reference"]).is_file() and Path(case["image"][0]).is_file() for case in after["cases"])
    assert read(bundle / "models" / "components.json")["weights"] == weights_digest(bundle)


def test_a_run_over_all_folds_goes_on_in_the_fold_it_was_in(
    ensemble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(ensemble, tmp_path / "b"))
    folds = folds_of(bundle)
    for fold in folds[-2:]:
        (bundle / "models" / f"fold_{fold}.pt").unlink()
    last = bundle / "models" / "checkpoint_last.pt"
    torch.save({**torch.load(last, weights_only=True), "fold": folds[-2], "trained": []}, last)
    trained: list[tuple[int, bool]] = []

    def noting(root: Path, values: Any, *begun: Any) -> None:
        trained.append((values["fold"], bool(values["resume"])))
        train_bundle(root, values, *begun)

    monkeypatch.setattr("medunet.bundle.folds.train_bundle", noting)
    paths = medunet.train(bundle, "all", {**QUICK, "resume": True})
    assert trained == [(folds[-2], True), (folds[-1], False)]
    assert [path.parent.name for path in paths[:-1]] == [f"fold_{number}" for number in folds]
    assert members_in(read_state(bundle / "models" / "model.pt")) == len(folds)


def test_a_fold_that_cannot_be_resumed_leaves_the_ensemble(ensemble: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(ensemble, tmp_path / "b"))
    with pytest.raises(BundleError, match=r"is of fold \d, which was trained on cases that fold \d holds out"):
        medunet.train(bundle, folds_of(bundle)[0], {**QUICK, "resume": True})
    assert cross_validation(bundle) is not None
    assert folds_of(bundle) == folds_of(ensemble)


def content_of(bundle: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}


REFUSED = {
    "key": ({"optimizr::lr": 1}, "has no key 'optimizr'"),
    "argument": ({"optimizer::learning_rate": 1.0}, "unexpected keyword argument 'learning_rate'"),
    "minutes": ({"minutes": 0}, "minutes is 0; give a positive number"),
    "no init": ({"init": "/nowhere"}, r"/nowhere/models/model\.pt: is missing"),
    "own init": ({"init": "SELF"}, "is the bundle itself, whose weights may be trained on this fold's validation"),
    "dataset": ({"dataset_dir": "/nowhere"}, "dataset folder is missing"),
    "store": ({"store": "/proc/nowhere"}, "cannot be written .*; give another folder with --set store=DIR"),
    "optimizer": ({"optimizer::_target_": "torch.optim.Adam", "resume": True}, "with another optimizer than Adam;"),
}


@pytest.mark.parametrize("fold", ["all", "one"])
@pytest.mark.parametrize("kind", REFUSED)
def test_a_run_that_is_refused_changes_nothing(ensemble: Path, tmp_path: Path, kind: str, fold: str) -> None:
    """Above all not the weights of the folds, which took hours."""
    bundle = Path(shutil.copytree(ensemble, tmp_path / "b"))
    given, words = REFUSED[kind]
    if fold == "all" and "resume" in given:
        (bundle / "models" / f"fold_{folds_of(bundle)[-1]}.pt").unlink()  # else there is nothing to do
        words = "are asked to go on with optimizer::_target_=torch.optim.Adam; all are trained alike: resume"
    before = content_of(bundle)
    values = {key: str(bundle) if value == "SELF" else value for key, value in given.items()}
    with pytest.raises(MedunetError, match=words):
        medunet.train(bundle, "all" if fold == "all" else folds_of(ensemble)[-1], {**QUICK, **values})
    assert content_of(bundle) == before


def test_folds_go_on_with_the_settings_that_they_were_begun_with(
    ensemble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial before is gone as soon as another one has begun, though that was broken off in its first epoch."""
    bundle = Path(shutil.copytree(ensemble, tmp_path / "b"))
    folds, seen = folds_of(bundle), []

    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Guards, "_after_step", broken)
        with pytest.raises(BundleError, match="ZeroDivisionError"):
            medunet.train(bundle, "all", {**QUICK, "optimizer::lr": 0.004, "clip": 3.0})
    assert folds_of(bundle) == []
    assert not (bundle / "models" / "checkpoint_last.pt").exists()

    def noting(root: Path, values: Any, begun: Any) -> None:
        seen.append({key: values[key] for key in ("fold", "resume", "optimizer::lr", "clip", "store")})
        raise BundleError("enough is seen")

    monkeypatch.setattr("medunet.bundle.folds.train_bundle", noting)
    again = {"resume": True, "quiet": True, "store": str(tmp_path / "moved")}
    for repeated in ({}, {"clip": 3.0}):
        with pytest.raises(BundleError, match="enough is seen"):
            medunet.train(bundle, "all", {**again, **repeated})
    words = r"were begun with .*optimizer::lr=0\.004, clip=3\.0, and are asked to go on with clip=2\.0; all are trained"
    with pytest.raises(BundleError, match=words):
        medunet.train(bundle, "all", {**again, "clip": 2.0})
    expected = {"fold": folds[0], "resume": False, "optimizer::lr": 0.004, "clip": 3.0, "store": again["store"]}
    assert seen == [expected, expected]


@pytest.mark.parametrize(
    "otherwise",
    [{"optimizer::lr": 0.001}, {"resume": True, "more": True, "minutes": 0.1}, {"resume": True, "more": True}, {}],
)
def test_a_fold_that_was_trained_otherwise_is_trained_anew(
    ensemble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, otherwise: dict[str, Any]
) -> None:
    """All are trained alike: a trial of one fold does not slip into the ensemble; what was only resumed goes on."""
    bundle = Path(shutil.copytree(ensemble, tmp_path / "b"))
    fold, trained = folds_of(bundle)[-1], []
    medunet.train(bundle, fold, {**QUICK, "resume": True, **otherwise})

    def noting(root: Path, values: Any, begun: Any) -> None:
        trained.append((values["fold"], bool(values["resume"])))
        if len(trained) == 1:
            begun()
        raise BundleError("enough is seen")

    monkeypatch.setattr("medunet.bundle.folds.train_bundle", noting)
    for _ in range(2):
        with pytest.raises(BundleError, match="enough is seen"):
            medunet.train(bundle, "all", {**QUICK, "resume": True})
    assert trained == [(fold, not otherwise), (fold, True)], "once begun it goes on like any other"


@pytest.mark.parametrize(
    ("given", "alike"),
    [
        ({"resume": True, "loss::alpha": 0.7}, True),
        ({"resume": True, "loss#alpha": 0.7, "minutes": 60, "device::name": "cuda", "store": "s"}, True),
        ({"resume": True}, False),
        ({"resume": True, "loss::alpha": 0.3}, False),
        ({"resume": True, "loss::alpha": 0.7, "clip": 1.0}, False),
        ({"resume": True, "more": True, "minutes": 60, "loss::alpha": 0.7}, False),
        ({"resume": False, "loss::alpha": 0.7}, False),
    ],
)
def test_a_fold_that_is_resumed_by_itself_goes_on_alike_or_is_noted(
    ensemble: Path, tmp_path: Path, given: dict[str, Any], alike: bool
) -> None:
    bundle = Path(shutil.copytree(ensemble, tmp_path / "b"))
    room.begin(bundle, {"loss#alpha": 0.7, "minutes": 60, "init": "other", "network::compile": True})
    room.part_with(bundle, 2, given)
    assert room.belongs(bundle, 2) == alike
    assert room.belongs(bundle, 1)


def test_a_run_over_all_folds_that_begins_forgets_the_scores_of_the_one_before(
    ensemble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in its first fold it has none; else a bundle would be packed with those of weights that are gone."""
    bundle = Path(shutil.copytree(ensemble, tmp_path / "b"))
    first, *others = folds_of(bundle)

    def stopped(root: Path, values: Any, begun: Any) -> None:
        begun()

    monkeypatch.setattr("medunet.bundle.folds.train_bundle", stopped)
    assert medunet.train(bundle, "all", QUICK) == [bundle / "eval" / f"fold_{first}" / "scores.json"]
    assert others
    assert not list(bundle.glob("eval/fold_*/scores.*"))
    assert not list(bundle.glob("eval/fold_*/certainty.json"))


def test_folds_that_are_all_trained_are_put_together_whatever_is_repeated(ensemble: Path, tmp_path: Path) -> None:
    """Killed before the ensemble was made; the command is given again with its minutes."""
    bundle = Path(shutil.copytree(ensemble, tmp_path / "b"))
    (bundle / "models" / "components.json").unlink()
    (bundle / "eval" / "cross_validation.json").unlink()
    assert medunet.train(bundle, "all", {**QUICK, "resume": True, "more": True})[-1].is_file()
    assert cross_validation(bundle) is not None
    with pytest.raises(BundleError, match="or --fold all without it, which begins all of them anew"):
        medunet.train(bundle, "all", {**QUICK, "resume": True, "more": True})


@pytest.mark.parametrize(
    ("place", "advice"),
    [
        ("models/fold_1.pt", "train on with --resume"),
        ("eval/cross_validation.json", "train on with --resume"),
        ("eval/fold_1/predictions/a.nii.gz", "train on with --resume"),
        ("eval/store/a.case", "run again"),
        ("../store/a.case", "run again"),
    ],
)
def test_a_disk_that_is_full_behind_the_preprocessing_advises_to_go_on(tmp_path: Path, place: str, advice: str) -> None:
    """To run the same again would begin with removing what is there."""
    bundle = tmp_path / "b"
    with (
        pytest.raises(ResourceError, match=f"the disk is full .*; free some space and {advice}$"),
        explained(bundle / "configs" / "train.yaml"),
        disk_errors(bundle / place),
    ):
        raise OSError(errno.ENOSPC, "no space")


def test_a_disk_that_is_full_when_a_fold_is_kept_advises_to_go_on(
    ensemble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(ensemble, tmp_path / "b"))
    (bundle / "models" / f"fold_{folds_of(bundle)[0]}.pt").unlink()

    def full(path: Path, write: Any) -> None:
        with disk_errors(path):
            raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(room, "write_with", full)
    with pytest.raises(ResourceError, match=r"fold_\d\.pt: .* the disk is full .* and train on with --resume"):
        medunet.train(bundle, "all", {**QUICK, "resume": True})


def test_how_fast_all_folds_go_on_may_change(ensemble: Path, tmp_path: Path) -> None:
    """What a lost loading process advises, and what docs/training.md promises of every run."""
    bundle = Path(shutil.copytree(ensemble, tmp_path / "b"))
    speed = {"train::dataloader::num_workers": 0, "network#channels_last": False, "network::compile": False}
    paths = medunet.train(bundle, "all", {**QUICK, **speed, "resume": True})
    assert paths[-1].name == "cross_validation.json"


@pytest.mark.parametrize("resume", [False, True])
def test_a_single_fold_makes_a_single_network_again(ensemble: Path, tmp_path: Path, resume: bool) -> None:
    bundle = Path(shutil.copytree(ensemble, tmp_path / "b"))
    fold = folds_of(bundle)[-1]
    own = (bundle / "models" / f"fold_{fold}.pt").read_bytes()
    medunet.train(bundle, fold, {**QUICK, "resume": resume})
    assert members_in(read_state(bundle / "models" / "model.pt")) == 0
    assert ((bundle / "models" / "model.pt").read_bytes() == own) or not resume
    assert not (bundle / "models" / f"fold_{fold}.pt").exists()
    for left in (
        "models/components.json",
        "eval/cross_validation.json",
        "eval/cross_validation.csv",
        "eval/report.html",
    ):
        assert not (bundle / left).exists(), left
    assert read(bundle / "models" / "quality.json")["fold"] == fold
    assert medunet.report(bundle).parent.name.startswith("fold_")


def test_monai_trains_a_single_fold_of_an_ensemble(ensemble: Path, tmp_path: Path) -> None:
    """Without our verb nothing is removed beforehand: what is not of these weights counts for nothing."""
    bundle = Path(shutil.copytree(ensemble, tmp_path / "b"))
    last = folds_of(bundle)[-1]
    train_bundle(bundle, {**QUICK, "fold": last, "resume": True})
    assert members_in(read_state(bundle / "models" / "model.pt")) == 0
    assert cross_validation(bundle) is None
    assert read_rules(bundle) == {}
    assert medunet.report(bundle).parent.name.startswith("fold_")


def evaluated(bundle: Path, dataset: Path, overrides: dict[str, Any]) -> Any:
    """The scores of a run of ``evaluate.yaml``."""
    configs = bundle / "configs"
    files = [str(configs / "inference.yaml"), str(configs / "evaluate.yaml")]
    workflow = ConfigWorkflow(
        config_file=files, meta_file=str(configs / "metadata.json"), logging_file=False, workflow_type="infer",
        bundle_root=str(bundle), dataset_dir=str(dataset),
    )  # fmt: skip
    for key, value in {"device::name": "cpu", "inferer::backend": "torch", **overrides}.items():
        workflow.parser[key] = value
    with explained(configs / "evaluate.yaml"):
        workflow.initialize()
        workflow.run()
    return read(bundle / "eval" / "evaluation" / "scores.json")


def test_cases_that_the_weights_were_trained_on_are_not_evaluated(
    ensemble: Path, phantom_dataset: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(ensemble, tmp_path / "b"))
    first, other = folds_of(bundle)[:2]
    words = r"is an ensemble, trained on the validation cases of every fold; evaluate the test cases \(--part test\)"
    with pytest.raises(BundleError, match=words):
        evaluated(bundle, phantom_dataset, {"fold": first})
    own = {"weights::path": f"models/fold_{first}.pt"}
    words = rf"fold_{first}\.pt: is of fold {first}, which was trained on cases that fold {other} holds out; evaluate f"
    with pytest.raises(BundleError, match=words):
        evaluated(bundle, phantom_dataset, {**own, "fold": other})
    assert not (bundle / "eval" / "evaluation" / "scores.json").exists()
    scored = evaluated(bundle, phantom_dataset, {**own, "fold": first})
    pooled = read(bundle / "eval" / "cross_validation.json")["cases"]
    assert {case["id"] for case in scored["cases"]} == {case["id"] for case in pooled if case["fold"] == first}


def test_cases_that_a_stopped_run_was_trained_on_are_not_evaluated(
    planned_bundle: Path, phantom_dataset: Path, tmp_path: Path
) -> None:
    """It left no scores, and nothing beside them that names its weights."""
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    parser = load_workflow(bundle, "train.yaml", "train", {**QUICK, "fold": 1}).parser
    trainer, validation = (parser.get_parsed_content(key) for key in ("train::trainer", "validation"))

    def stop() -> None:
        validation.stopped = True
        trainer.terminate()

    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), stop)
    trainer.run()
    words = r"model\.pt: is of fold 1, which was trained on cases that fold 0 holds out; evaluate fold 1"
    with pytest.raises(BundleError, match=words):
        evaluated(bundle, phantom_dataset, {"fold": 0})
    assert evaluated(bundle, phantom_dataset, {"fold": 1})["cases"]


def test_cases_that_came_into_a_fold_after_it_was_trained_are_not_evaluated(
    trained_bundle: Path, phantom_dataset: Path, tmp_path: Path
) -> None:
    """A patient was corrected and the folds are others: the number of the fold alone does not tell."""
    bundle = Path(shutil.copytree(trained_bundle, tmp_path / "b"))
    seen, held_out = (
        str(FoldCases(str(bundle), str(phantom_dataset), 0, part)[0]["case"]) for part in ("training", "validation")
    )
    assert evaluated(bundle, phantom_dataset, {"fold": 0})["cases"]
    index = read(bundle / "eval" / "index.json")
    cases = {case["id"]: case for case in index["training"]}
    cases[seen]["patient"] = cases[held_out]["patient"]
    (bundle / "eval" / "index.json").write_text(json.dumps(index))
    words = rf"model\.pt: was trained on {seen}, which fold 0 holds out now, since the folds were changed; train again"
    with pytest.raises(BundleError, match=words):
        evaluated(bundle, phantom_dataset, {"fold": 0})


@pytest.mark.parametrize("labelled", [0, 1])
def test_test_cases_without_labels_are_left_out_of_an_evaluation(
    trained_bundle: Path, phantom_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, labelled: int
) -> None:
    bundle = Path(shutil.copytree(trained_bundle, tmp_path / "b"))
    index = read(bundle / "eval" / "index.json")
    first, second, *rest = index["training"]
    test = [{**first, "label": first["label"] if labelled else None}, {**second, "label": None}]
    (bundle / "eval" / "index.json").write_text(json.dumps({**index, "training": rest, "test": test}))
    if labelled:
        scored = evaluated(bundle, phantom_dataset, {"part": "test"})
        assert [case["id"] for case in scored["cases"]] == [first["id"]]
        assert "1 of 2 test cases have no label and are left out" in caplog.text
    else:
        with pytest.raises(BundleError, match="none of 2 test cases has a label to compare with; give labels to some"):
            evaluated(bundle, phantom_dataset, {"part": "test"})


def test_what_cannot_be_begun_with_is_told(
    trained_bundle: Path, packed_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(trained_bundle, tmp_path / "b"))
    with pytest.raises(BundleError, match=r"is a file, a bundle is a folder; unpack it first \(medunet unpack\)"):
        medunet.train(bundle, 0, {**QUICK, "init": str(packed_bundle)})
    medunet.train(bundle, 0, {**QUICK, "quiet": False, "init": "other", "resume": True})
    assert "the run goes on with its own weights; other is what it may have begun with" in capsys.readouterr().out


def test_a_run_begins_with_the_first_network_of_an_ensemble(
    ensemble: Path, planned_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    medunet.train(bundle, 0, {**QUICK, "quiet": False, "init": str(ensemble)})
    count = len(folds_of(ensemble))
    assert f"48 of 48 tensors are those of the first of the {count} networks of {ensemble}" in capsys.readouterr().out


def test_an_ensemble_is_packed_verified_and_computes_the_same(
    ensemble: Path, phantom_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDUNET_HOME", str(tmp_path / "home"))
    scan, said = scan_of(phantom_dataset), []
    bundle = Path(shutil.copytree(ensemble, tmp_path / "b"))
    content = read(bundle / "models" / "components.json")
    name = next(iter(content["evidence"]))
    proof = {"cases": 12, "tried": 3, "dice_before": 0.81, "dice_after": 0.84, "difference": 0.03}
    content["rules"][name] = {"largest": True}
    content["evidence"][name] = {**proof, "interval": [0.01, 0.05], "rule": {"largest": True}}
    (bundle / "models" / "components.json").write_text(json.dumps(content))
    medunet.pack(bundle, tmp_path / "p.zip", say=said.append)
    assert any("files in models (they have no place" in line or "models/fold_" in line for line in said)
    found = medunet.verify(tmp_path / "p.zip")
    assert found.verified, [check for check in found.checks if check.state == "failed"]
    what = {check.name: check.what for check in found.checks}
    count = len(folds_of(ensemble))
    assert what["network"] == f"UNet x {count}: {48 * count} keys with the shapes of the weights"
    assert what["components"] == f"a rule for 1 of {len(content['evidence'])} classes"
    medunet.unpack(tmp_path / "p.zip", tmp_path / "u")
    assert read_rules(tmp_path / "u") == {name: {"largest": True}}
    here = voxels(bundle, scan, tmp_path / "here")
    assert here.any()
    assert (voxels(tmp_path / "u", scan, tmp_path / "there") == here).all()
    card = (tmp_path / "u" / "docs" / "README.md").read_text()
    pooled = read(ensemble / "eval" / "cross_validation.json")
    assert "each scored by the one network that was not trained on it" in " ".join(card.split())
    assert f"{pooled['summary']['dice']['mean']:.3f}" in card.split("### Cross-validation")[1].split("### Fold")[0]
    assert f"| networks in the ensemble, one per fold | {count} |" in card
    assert f"| {name} | the largest alone | 12 | 0.810 | 0.840 | 0.0100 to 0.0500 |" in card
    shipped = read(tmp_path / "u" / "docs" / "scores.json")
    assert shipped["pooled"]["of"] == folds_of(ensemble)
    assert "cases" not in shipped["pooled"] or isinstance(shipped["pooled"]["cases"], int)
    assert read(tmp_path / "u" / "provenance.json")["fold"] == "all"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c | {"weights": "0" * 64}, "is of other weights than models/model.pt; pack the bundle again"),
        (lambda c: c | {"rules": {"a": {"largest": False}}}, "holds what is no rule; refuse the bundle"),
        (lambda c: c | {"rules": {"a": {"minimum_mm3": -1}}}, "holds what is no rule"),
        (lambda c: c | {"evidence": {"a": {"case": "Miller"}}}, "holds what is no number of a proof"),
        (lambda c: {"weights": c["weights"]}, "is not a list of rules; refuse the bundle"),
    ],
)
def test_rules_that_are_none_do_not_verify(change: Any, words: str) -> None:
    good = {"weights": "1" * 64, "rules": {"a": {"minimum_mm3": 3.5}}, "evidence": {"a": {"cases": 12}}}
    contents = packed_contents(good)
    assert content_checks.components(contents) == "a rule for 1 of 1 classes"
    with pytest.raises(content_checks.Failed, match=words):
        content_checks.components(packed_contents(change(good)))


def packed_contents(components: Any) -> Contents:
    data = json.dumps(components).encode()
    names = {"models/components.json": "", "models/model.pt": "1" * 64}
    members = {name: Member(name, len(data), 0, digest) for name, digest in names.items()}
    return Contents(members, {"models/components.json": Slice(io.BytesIO(data), 0, len(data))}, None)


LABELS = {"background": 0, "a": 3, "b": 7}


@settings(max_examples=150)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    density=st.sampled_from([0.1, 0.3, 0.6]),
    chunk=st.integers(1, 200),
    rule=st.one_of(st.just({"largest": True}), st.integers(1, 12).map(lambda n: {"minimum_mm3": 2.0 * n})),
    seed=st.integers(0, 10_000),
)
def test_rules_keep_what_brute_force_keeps(
    shape: tuple[int, int, int], density: float, chunk: int, rule: dict[str, Any], seed: int
) -> None:
    """However few planes are labelled at a time; `scipy` labels all of the map at once here."""
    rng = np.random.default_rng(seed)
    labels = np.asfortranarray(np.where(rng.random(shape) < density, 3, 0).astype(np.uint8))
    labels[rng.random(shape) < 0.1] = 7
    mask = rng.random(shape) < 0.5
    numbers, count = ndimage.label(labels == 3, np.ones((3, 3, 3)))
    sizes = [int((numbers == n).sum()) for n in range(1, count + 1)]
    least = max(sizes, default=0) if "largest" in rule else rule["minimum_mm3"] / 2.0
    expected = labels.copy()
    for number, size in enumerate(sizes, 1):
        if size < least:
            expected[numbers == number] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_components, "_CHUNK", chunk)
        found = evaluation_components.Components(labels, 3)
        inside = [int((mask & (numbers == n)).sum()) for n in range(1, count + 1)]
        assert sorted(zip(found.sizes, found.counts(mask), strict=True)) == sorted(zip(sizes, inside, strict=True))
        apply_rules(labels, {"a": rule}, LABELS, 2.0)
    assert (labels == expected).all()


def predicted(rng: Any, false: int, true_size: int = 200) -> Found:
    """One good component, and `false` small ones outside of the reference."""
    sizes = np.array([true_size + int(rng.integers(0, 50)), *rng.integers(5, 20, false)])
    inside = np.concatenate([[int(sizes[0] * 0.9)], np.zeros(false, int)])
    return Found(sizes, inside, int(sizes[0]), 2.0)


def test_a_rule_that_helps_is_proved_and_one_that_does_not_is_not() -> None:
    rng = np.random.default_rng(0)
    rule, evidence = prove([predicted(rng, 3) for _ in range(12)])
    assert rule is not None
    assert list(rule) == ["minimum_mm3"]  # as good as the largest alone, and milder
    assert 2 * 19 < rule["minimum_mm3"] < 2 * 200
    low, high = evidence["interval"]
    assert 0 < low <= evidence["difference"] <= high
    assert evidence["dice_after"] == pytest.approx(evidence["dice_before"] + evidence["difference"])
    assert evidence["cases"] == 12
    alone, numbers = prove([predicted(rng, 3 * (n == 0)) for n in range(12)])  # one case of twelve gains
    assert alone is None
    assert numbers["difference"] > 0
    assert prove([predicted(rng, 0) for _ in range(12)])[0] is None  # nothing gains
    assert prove([predicted(rng, 3) for _ in range(9)]) == (None, {"cases": 9, "tried": 0})  # too few
    lesions = [Found(np.array([200, 30, 20]), np.array([180, 28, 18]), 250, 2.0) for _ in range(12)]
    assert prove(lesions)[0] is None  # all are real: every rule would lose


def test_a_class_that_is_rightly_not_found_counts() -> None:
    absent = [Found(np.array([4]), np.array([0]), 0, 1.0) for _ in range(10)]
    there = [Found(np.array([400]), np.array([400]), 400, 1.0) for _ in range(10)]
    rule, evidence = prove(absent + there)
    assert rule is not None
    assert (evidence["dice_before"], evidence["dice_after"]) == (0.5, 1.0)


def write_folds(bundle: Path, fake: int) -> list[dict[str, Any]]:
    """Twelve cases of one fold: a cube that is found, and a smaller one beside it that nobody drew (`fake` there)."""
    folder = bundle / "eval" / "fold_0"
    cases = []
    for number in range(12):
        reference = np.zeros((20, 10, 10), np.uint8)
        reference[2:8, 2:8, 2:8] = 3
        prediction = reference.copy()
        prediction[14:17, 2 : 5 + number % 3, 2:5] = 3
        reference[12:] = fake
        (folder / "references").mkdir(parents=True, exist_ok=True)
        path = folder / "references" / f"{number}.nii.gz"
        write_label(path, reference, Grid(reference.shape, np.eye(4)))
        write_label(folder / "predictions" / path.name, prediction, Grid(reference.shape, np.eye(4)))
        cases.append({"id": str(number), "fold": 0, "reference": str(path)})
    return cases


def test_what_nobody_annotated_proves_no_rule(tmp_path: Path) -> None:
    """A second part that is wrong proves a rule; where nobody looked, the same part is neither wrong nor right."""
    rules, _ = _proved(tmp_path / "wrong", write_folds(tmp_path / "wrong", 0), {"a": 3}, 255)
    assert list(rules) == ["a"]
    rules, evidence = _proved(tmp_path / "unknown", write_folds(tmp_path / "unknown", 255), {"a": 3}, 255)
    assert rules == {}
    assert evidence == {"a": {"cases": 12, "tried": 1}}  # no false part, so that only the largest was tried
    half = np.array([[[3, 3, 3, 0, 3]]]), np.array([[[3, 3, 9, 0, 9]]])
    found = Found.of(*half, 3, 1.0, 9)
    assert (found.sizes.tolist(), found.scored.tolist(), found.inside.tolist()) == ([3, 1], [2, 0], [2, 0])
    assert found.dice(None) == found.dice({"largest": True}) == 1.0


def test_rules_are_applied_on_every_path_and_only_to_their_weights(
    trained_bundle: Path, phantom_dataset: Path, tmp_path: Path
) -> None:
    scan = scan_of(phantom_dataset)
    bundle = Path(shutil.copytree(trained_bundle, tmp_path / "b"))
    plan = read(bundle / "configs" / "metadata.json")["plan"]
    plain = voxels(bundle, scan, tmp_path / "plain")
    name, value = next((n, v) for n, v in plan["labels"].items() if v and (plain == v).any())
    volume = read_volume(scan).grid.voxel_volume
    size = int((plain == value).sum())
    rules = {name: {"minimum_mm3": (size + 1) * volume}}  # more than there is: all of the class goes
    path = bundle / "models" / "components.json"
    path.write_text(json.dumps({"weights": weights_digest(bundle), "rules": rules, "evidence": {}}))
    expected = np.where(plain == value, 0, plain)
    assert (voxels(bundle, scan, tmp_path / "plain") == expected).all()  # made anew, since the rules are
    (tmp_path / "in").mkdir()
    shutil.copy(scan, tmp_path / "in")
    values = {"dataset_dir": str(tmp_path / "in"), "output_dir": str(tmp_path / "run"), "device::name": "cpu"}
    load_workflow(bundle, "inference.yaml", "infer", {**values, "inferer::backend": "torch"}).run()
    assert (read_volume(tmp_path / "run" / scan.name).array[0] == expected).all()
    other = {"weights::path": "models/other.pt"}  # whatever is said of models/model.pt is not said of these
    state = {key: value * 1.001 for key, value in read_state(bundle / "models" / "model.pt").items()}
    torch.save(state, bundle / "models" / "other.pt")
    rest = voxels(bundle, scan, tmp_path / "other", other)
    assert (rest == value).sum() > size / 2
    quality = {"weights": weights_digest(bundle), "fold": 0, "classes": {name: Calibration(0, 1, 1, 9, True).as_json()}}
    (bundle / "models" / "quality.json").write_text(json.dumps(quality))
    assert set(load_segmenter(bundle, {}).calibrations) == {name}
    assert load_segmenter(bundle, other).calibrations == {}
    torch.save({key: value * 0 for key, value in state.items()}, bundle / "models" / "other.pt")
    assert not (voxels(bundle, scan, tmp_path / "other", other) == rest).all()  # other weights under the same name
    path.write_text(json.dumps({"weights": "0" * 64, "rules": rules, "evidence": {}}))
    assert read_rules(bundle) == {}
    assert (voxels(bundle, scan, tmp_path / "plain") == plain).all()
    path.write_text("{")
    assert read_rules(bundle) == {}


TINY = {"base_channels": 4, "max_levels": 2}


def untrained(folder: Path, dataset: Path, chosen: dict[str, Any], seed: int) -> Path:
    """A planned bundle with a network as it was initialised."""
    medunet.plan(dataset, folder, settings={**TINY, **chosen})
    plan = read(folder / "configs" / "metadata.json")["plan"]
    torch.manual_seed(seed)
    network = UNet(**{key: value for key, value in plan["network"].items() if key != "_target_"})
    (folder / "models").mkdir()
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder


def test_a_2d_and_a_3d_bundle_answer_together(phantom_dataset: Path, tmp_path: Path) -> None:
    """The mean of what each says alone, by hand; the same voxels by every way; made anew when the partner changes."""
    scan = scan_of(phantom_dataset)
    flat = untrained(tmp_path / "flat", phantom_dataset, {"dims": 2, "patch_size": [16, 16]}, 1)
    deep = {"dims": 3, "patch_size": [16, 16, 16], "spacing": [6.0, 6.0, 6.0]}
    alone = untrained(tmp_path / "alone", phantom_dataset, deep, 2)
    both = untrained(tmp_path / "both", phantom_dataset, {**deep, "partners": ["../flat"]}, 2)
    for bundle in (flat, alone, both):
        voxels(bundle, scan, tmp_path / "out" / bundle.name, probabilities=True)
    said = {
        name: np.load(tmp_path / "out" / name / f"{scan.name.removesuffix('.nii.gz')}_probabilities.npy")
        for name in ("flat", "alone", "both")
    }
    mean = (said["flat"].astype(np.float32) + said["alone"]) / 2
    assert np.abs(mean - said["both"]).max() < 1e-3  # the files are float16
    together = read_volume(tmp_path / "out" / "both" / scan.name).array[0]
    values = np.array(list(read(both / "configs" / "metadata.json")["plan"]["labels"].values()))
    ordered = np.sort(mean, axis=0)
    sure = ordered[-1] - ordered[-2] > 2e-3
    assert sure.mean() > 0.5
    assert (together == values[mean.argmax(0)])[sure].all()
    assert (together != read_volume(tmp_path / "out" / "alone" / scan.name).array[0]).any()
    assert not list((tmp_path / "out").rglob(".part-*"))
    (tmp_path / "in").mkdir()
    shutil.copy(scan, tmp_path / "in")
    values_of = {"dataset_dir": str(tmp_path / "in"), "output_dir": str(tmp_path / "run"), "device::name": "cpu"}
    load_workflow(both, "inference.yaml", "infer", {**values_of, "inferer::backend": "torch"}).run()
    assert (read_volume(tmp_path / "run" / scan.name).array[0] == together).all()
    options = {"inferer::backend": "torch"}
    assert [r.state for r in medunet.predict(both, [scan], tmp_path / "out" / "both", options)] == ["already done"]
    torch.save(unet_like(flat, 5), flat / "models" / "model.pt")
    assert [r.state for r in medunet.predict(both, [scan], tmp_path / "out" / "both", options)] == ["done"]
    assert model_digest(both, {}) != model_digest(both, {"inferer::partners": []})
    torch.save(joined([unet_like(flat, 5), unet_like(flat, 6)]), flat / "models" / "model.pt")  # a partner of two folds
    assert [r.state for r in medunet.predict(both, [scan], tmp_path / "out" / "both", options)] == ["done"]
    with pytest.raises(BundleError, match=r"averages with other bundles \(\.\./flat\), and an archive holds one"):
        medunet.pack(both, tmp_path / "both.zip")


def unet_like(bundle: Path, seed: int) -> dict[str, Tensor]:
    plan = read(bundle / "configs" / "metadata.json")["plan"]
    torch.manual_seed(seed)
    return UNet(**{key: value for key, value in plan["network"].items() if key != "_target_"}).state_dict()


def test_partners_see_all_of_a_file_and_regions_are_averaged(tmp_path: Path) -> None:
    """The bundle that runs looks only at the body; its partner looks where its own plan says. Outputs are regions."""
    ct = {"scheme": "ct", "low": -200, "high": 300, "mean": 0, "std": 100}
    network = {"_target_": "medunet.networks.UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2,
               "channels": [4], "strides": [1]}  # fmt: skip
    plan = {"orientation": "RAS", "spacing": [1, 1, 1], "normalization": [ct], "labels": LABELS, "border": "constant",
            "patch_size": [16, 16, 16], "overlap": 0.5, "mirror_axes": [0], "region": "all",
            "network": network}  # fmt: skip
    (tmp_path / "p" / "configs").mkdir(parents=True)
    (tmp_path / "p" / "models").mkdir()
    (tmp_path / "p" / "configs" / "metadata.json").write_text(json.dumps({"plan": plan}))
    torch.manual_seed(1)
    partner = UNet(3, 1, 2, [4], [1]).eval()
    torch.save(partner.state_dict(), tmp_path / "p" / "models" / "model.pt")
    torch.manual_seed(2)
    own = UNet(3, 1, 2, [4], [1]).eval()
    rng = np.random.default_rng(0)
    values = np.full((1, 40, 30, 30), -1000, np.int16)
    values[:, 5:15, 10:20, 10:20] = rng.integers(-100, 300, (1, 10, 10, 10))
    image = MetaTensor(torch.from_numpy(values), affine=torch.eye(4))
    frame, mirror = Frame("RAS", (1, 1, 1), [ct]), {"mirror_axes": [0]}

    def said(inferer: WindowInferer, network: nn.Module) -> tuple[Any, Tensor]:
        content = torch.zeros((2, 40, 30, 30))

        def keep(number: int, box: Any, part: Tensor) -> None:
            content[(number, *(slice(*bounds) for bounds in box))] = part

        (made,) = inferer.segment([inferer.see(image, network)], network, [keep])
        return made.labels, content

    options = {"region": "body", "bundle_root": str(tmp_path), **mirror}
    _, mine = said(WindowInferer(frame, LABELS, (16, 16, 16), **options), own)
    _, theirs = said(WindowInferer(frame, LABELS, (16, 16, 16), **mirror), partner)
    together = WindowInferer(frame, LABELS, (16, 16, 16), partners=["p"], scratch=str(tmp_path / "new"), **options)
    labels, mean = said(together, own)
    assert not mine[:, 30:].any()
    assert theirs[:, 30:].any()
    assert torch.allclose(mean, (mine + theirs) / 2, atol=1e-5)
    expected = np.where(mean[1] > 0.5, 7, np.where(mean[0] > 0.5, 3, 0))
    assert (labels == expected).all()
    assert not list((tmp_path / "new").iterdir())
    network["out_channels"] = 3
    (tmp_path / "p" / "configs" / "metadata.json").write_text(json.dumps({"plan": plan}))
    torch.save(UNet(3, 1, 3, [4], [1]).state_dict(), tmp_path / "p" / "models" / "model.pt")
    other = WindowInferer(frame, LABELS, (16, 16, 16), partners=["p"], bundle_root=str(tmp_path))
    with pytest.raises(BundleError, match="has 2 outputs, that of a partner 3; classes and regions cannot be averaged"):
        said(other, own)


@pytest.mark.parametrize(
    ("facts", "theirs", "words"),
    [
        ({"regions": {"a": [3, 7], "b": [7]}}, {"regions": {"a": [3], "b": [7]}}, r"has the regions {'a': \[3\], "),
        ({"regions": {"a": [3, 7], "b": [7]}}, {}, "has the regions None, "),
        ({"regions": {}}, {"regions": {"a": [3, 7], "b": [7]}}, "the bundle that runs has {}; a bundle that is a part"),
        ({"channels": ["T1", "FLAIR"]}, {"channels": ["FLAIR", "T1"]}, "has the channels .*'FLAIR', 'T1'.*, the bundl"),
    ],
)
def test_a_partner_of_other_regions_or_channels_is_refused(
    facts: dict[str, Any], theirs: dict[str, Any], words: str, tmp_path: Path
) -> None:
    """Their outputs are as many, so that they would be averaged without a word."""
    write_plan(tmp_path / "p", {"labels": LABELS, "network": {"_target_": "medunet.networks.UNet"}, **theirs})
    frame = Frame("RAS", (1, 1, 1), [{"scheme": "zscore"}])
    inferer = WindowInferer(frame, LABELS, (16, 16, 16), partners=["p"], bundle_root=str(tmp_path), **facts)
    with pytest.raises(BundleError, match=words):
        inferer(MetaTensor(torch.zeros((1, 1, 20, 20, 20)), affine=torch.eye(4)), unet())


def test_a_coarser_bundle_of_other_channels_is_refused(tmp_path: Path) -> None:
    write_plan(tmp_path / "p", {"channels": ["FLAIR", "T1"], "network": {"_target_": "medunet.networks.UNet"}})
    frame, rule = Frame("RAS", (1, 1, 1), [{"scheme": "zscore"}] * 2), {"bundle": "p", "margin": 5}
    inferer = WindowInferer(
        frame, LABELS, (16, 16, 16), region=rule, bundle_root=str(tmp_path), channels=["T1", "FLAIR"]
    )
    with pytest.raises(BundleError, match=r"has the channels .*; a bundle that tells a region has the same"):
        inferer(MetaTensor(torch.zeros((1, 2, 20, 20, 20)), affine=torch.eye(4)), unet())


def write_plan(bundle: Path, plan: dict[str, Any]) -> None:
    (bundle / "configs").mkdir(parents=True)
    (bundle / "configs" / "metadata.json").write_text(json.dumps({"plan": plan}))


def test_a_partner_that_does_not_fit_is_told(phantom_dataset: Path, planned_bundle: Path, tmp_path: Path) -> None:
    image = MetaTensor(torch.zeros((1, 20, 20, 20)), affine=torch.eye(4))

    def segment(labels: dict[str, int]) -> None:
        frame = Frame("RAS", (1, 1, 1), [{"scheme": "zscore"}])
        inferer = WindowInferer(frame, labels, (16, 16, 16), partners=["p"], bundle_root=str(tmp_path))
        inferer(image[None], unet())

    with pytest.raises(BundleError, match=r"has this bundle for a partner, and it is missing; .* partners: \[\] under"):
        segment(LABELS)
    shutil.copytree(planned_bundle, tmp_path / "p")
    with pytest.raises(BundleError, match=r"has the labels .*, the bundle that runs has .*; a bundle that is a part"):
        segment(LABELS)
    path = tmp_path / "p" / "configs" / "metadata.json"
    labels = read(path)["plan"]["labels"]
    with pytest.raises(BundleError, match="is missing; train the bundle first"):
        segment(labels)
    path.write_text(path.read_text().replace("medunet.networks.UNet", "os.system"))
    with pytest.raises(BundleError, match=r"its network is os\.system; a bundle that is a partner has one of medunet"):
        segment(labels)
    path.write_text("{}")
    with pytest.raises(BundleError, match="has no plan that can be read"):
        segment(labels)
    with pytest.raises(PlanError, match="partners='x' does not fit; give a list of folders of other bundles"):
        validate({"partners": "x"})
