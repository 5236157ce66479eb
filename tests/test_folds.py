"""Several folds: one network of all, cross-validated scores, partners, and rules for components that are proved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import medunet
from medunet.bundle.running import load_workflow, train_bundle
from medunet.bundle.segmenting import load_segmenter
from medunet.data.volume import read_volume
from medunet.errors import BundleError, NetworkError
from medunet.inference.backends import make_backend
from medunet.inference.components import read_rules
from medunet.inference.weights import load_weights, read_state, weights_digest
from medunet.networks import Ensemble, UNet
from medunet.networks.ensemble import joined, member_of, members_in
from medunet.networks.receptive import fitting_size, output_margin, spatial_divisor, tile_halo
from medunet.training.folds import cross_validation


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
    assert medunet.report(ensemble) == ensemble / "eval" / "report.html"
    assert "cross-validation</h1>" in (ensemble / "eval" / "report.html").read_text()


def scan_of(dataset: Path) -> Path:
    return sorted((dataset / "imagesTr").glob("*.nii.gz"))[0]


def voxels(bundle: Path, scan: Path, out: Path, overrides: dict[str, Any] | None = None, **options: Any) -> Any:
    (result,) = medunet.predict(bundle, [scan], out, {"inferer::backend": "torch", **(overrides or {})}, **options)
    assert result.state == "done", result.message
    return read_volume(out / scan.name).array[0]


def test_an_ensemble_predicts_the_mean_of_its_members(ensemble: Path, phantom_dataset: Path, tmp_path: Path) -> None:
    """By hand: each member's blended logits. A bundle of equal members gives what one of them gives."""
    scan = scan_of(phantom_dataset)
    single = Path(shutil.copytree(ensemble, tmp_path / "single"))
    fold = folds_of(ensemble)[0]
    shutil.copy(ensemble / "models" / f"fold_{fold}.pt", single / "models" / "model.pt")
    alone = voxels(single, scan, tmp_path / "one")
    assert alone.any()
    torch.save(joined([read_state(single / "models" / "model.pt")] * 3), single / "models" / "model.pt")
    assert (voxels(single, scan, tmp_path / "three") == alone).all()
    segmenter = load_segmenter(ensemble, {"device::name": "cpu", "inferer::backend": "torch"})
    seen = segmenter.inferer.see(segmenter.preprocessing({"image": str(scan)})["image"], segmenter.network)
    members = list(segmenter.network.members)
    (made,) = segmenter.inferer.segment([seen], lambda x: sum(member(x) for member in members) / len(members))
    assert (voxels(ensemble, scan, tmp_path / "all") == made.labels).all()
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

    def noting(root: Path, values: Any) -> None:
        trained.append((values["fold"], bool(values["resume"])))
        train_bundle(root, values)

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
    with pytest.raises(BundleError, match="was changed since the folds were begun; train without --resume"):
        medunet.train(bundle, "all", {**QUICK, "resume": True})
    (bundle / "eval" / "folds.json").unlink()
    with pytest.raises(BundleError, match="has no run over all folds to resume"):
        medunet.train(bundle, "all", {**QUICK, "resume": True})


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


def test_a_run_begins_with_the_first_network_of_an_ensemble(
    ensemble: Path, planned_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    medunet.train(bundle, 0, {**QUICK, "quiet": False, "init": str(ensemble)})
    count = len(folds_of(ensemble))
    assert f"48 of 48 tensors are those of the first of the {count} networks of {ensemble}" in capsys.readouterr().out
