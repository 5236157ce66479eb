"""The trained network compiled, with other orders in memory, and with recomputed activations: the same training."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from ignite.engine import Events
from torch import nn

from medunet import verbs
from medunet.bundle.running import load_workflow
from medunet.errors import ResourceError
from medunet.networks import UNet
from medunet.planning import Budget
from medunet.training import local_device, place
from medunet.training.placing import _require_compiler, compiled_like
from tests.test_regions import regions_dataset

CPU = torch.device("cpu")
OVERLAYS = Path(__file__).parents[1] / "configs" / "run"


def gradients(network: nn.Module) -> list[torch.Tensor]:
    torch.manual_seed(1)
    x = torch.randn(2, 1, 16, 16, 16)
    sum(output.square().mean() for output in network(x)).backward()
    return [weight.grad for weight in network.parameters() if weight.grad is not None]


@pytest.mark.parametrize(("compile", "checkpointing"), [(False, False), (False, True), (True, True)])
def test_a_placed_network_has_the_same_gradients_and_names(compile: bool, checkpointing: bool) -> None:
    plain = UNet.of_depth(3, 4, deep_supervision=1, convs_per_level=1)
    other = UNet.of_depth(3, 4, deep_supervision=1, convs_per_level=1, checkpointing=checkpointing)
    other.load_state_dict(plain.state_dict())
    placed = place(other, CPU, channels_last=True, compile=compile)
    assert placed is other
    for mine, theirs in zip(gradients(placed.train()), gradients(plain.train()), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
    assert list(placed.state_dict()) == list(plain.state_dict())
    weight = placed.get_parameter("encoder.1.0.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)
    twin = copy.deepcopy(placed)
    assert twin._compiled_call_impl is None  # an average, an export
    assert (compiled_like(twin, placed)._compiled_call_impl is not None) == compile


def values(bundle: Path, epochs: int, overlay: str = "", **more: Any) -> dict[str, Any]:
    chosen = yaml.safe_load((OVERLAYS / f"{overlay}.yaml").read_text()) if overlay else {}
    return {"quiet": True, "device::name": "cpu", "train::trainer::max_epochs": epochs, **chosen, **more}


def last_of(bundle: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(bundle / "models" / "checkpoint_last.pt", weights_only=True)
    return state


def test_a_run_goes_on_compiled_and_plain_from_the_same_checkpoint(trained_bundle: Path, tmp_path: Path) -> None:
    """Two epochs are done; the third is trained plain, with channels together, and compiled.

    Its learning rate has decayed: AdamW goes a whole step where rounding alone decides (biases before a normalisation).
    """
    ends = {}
    small = {"schedule::decay": "cosine"}
    for overlay in ("", "channels_last", "compile"):
        bundle = Path(shutil.copytree(trained_bundle, tmp_path / f"b{overlay}"))
        torch.save({**last_of(bundle), "max_epochs": 3}, bundle / "models" / "checkpoint_last.pt")
        verbs.train(bundle, 0, {**values(bundle, 3, overlay, resume=True), **small})
        ends[overlay] = last_of(bundle)
        assert ends[overlay]["iteration"] == 9
        assert all(value.is_contiguous() for value in ends[overlay]["model"].values())
    for overlay in ("channels_last", "compile"):
        for part in ("model", "average"):
            assert list(ends[overlay][part]) == list(ends[""][part])
            for name, weights in ends[""][part].items():
                assert torch.allclose(ends[overlay][part][name], weights, atol=2e-3), name
    plain = tmp_path / "bcompile"
    torch.save({**last_of(plain), "max_epochs": 4}, plain / "models" / "checkpoint_last.pt")
    verbs.train(plain, 0, values(plain, 4, resume=True))
    assert last_of(plain)["iteration"] == 12


def test_a_compiled_run_is_timed_as_it_will_train(planned_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(planned_bundle, tmp_path / "b"))
    parser = load_workflow(bundle, "train.yaml", "train", values(bundle, 1, "compile")).parser
    seen: list[bool] = []
    trainer, budget = (parser.get_parsed_content(key) for key in ("train::trainer", "budget"))
    whole = trainer.inferer

    def note(image: Any, network: Any) -> Any:
        seen.append(network._compiled_call_impl is not None and network is not trainer.network)
        return whole(image, network)

    budget.dataset.prepare()
    trainer.inferer = note
    assert budget.measure(trainer).step > 0
    assert seen
    assert all(seen)


def test_recomputed_activations_resume_bit_by_bit(planned_bundle: Path, tmp_path: Path) -> None:
    """With dropout: what was dropped is dropped again when it is recomputed, also after a resume."""
    whole, broken = (Path(shutil.copytree(planned_bundle, tmp_path / name)) for name in ("whole", "broken"))
    for bundle in (whole, broken):
        path = bundle / "configs" / "metadata.json"
        metadata = json.loads(path.read_text())
        metadata["plan"]["network"] |= {"checkpointing": True, "dropout": 0.2}
        path.write_text(json.dumps(metadata))
    verbs.train(whole, 0, values(whole, 2))
    trainer = load_workflow(broken, "train.yaml", "train", values(broken, 2)).parser.get_parsed_content(
        "train::trainer"
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.run()
    verbs.train(broken, 0, values(broken, 2, resume=True))
    first, second = last_of(whole), last_of(broken)
    assert all(torch.equal(first["model"][name], second["model"][name]) for name in first["model"])


def test_two_processes_train_with_all_at_once(tmp_path: Path) -> None:
    """Regions, ignored voxels, batch normalisation, recomputed activations, late changes; then early stopping."""
    data, bundle = regions_dataset(tmp_path / "data"), tmp_path / "b"
    content = json.loads((data / "dataset.json").read_text())
    content["labels"]["ignore"] = 5
    (data / "dataset.json").write_text(json.dumps(content))
    for path in sorted((data / "labelsTr").iterdir()):
        label = nib.load(path)
        values = np.asanyarray(label.dataobj).copy()
        values[:, :6] = 5
        nib.save(nib.Nifti1Image(values, label.affine, label.header), path)
    sizes = {"base_channels": 4, "max_levels": 3, "steps_per_epoch": 3, "checkpointing": True, "norm": "batch"}
    verbs.plan(data, bundle, Budget(epochs=6), sizes)
    (tmp_path / "ranks.py").write_text(RANKS)
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
            str(tmp_path / "ranks.py"), str(bundle),
        ],
        cwd=bundle, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "stopped early" in done.stdout
    assert last_of(bundle)["epoch"] == last_of(bundle)["max_epochs"] < 6
    classes = json.loads((bundle / "eval" / "fold_0" / "scores.json").read_text())["classes"]
    assert set(classes) == {"organs", "liver", "lesion"}
    ranks = [torch.load(bundle / f"rank_{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, weights in ranks[0]["after"].items():  # of other patches each, with gradients that were averaged
        assert torch.equal(weights, ranks[1]["after"][name]), name
    assert any(not torch.equal(weights, ranks[0]["before"][name]) for name, weights in ranks[0]["after"].items())


RANKS = """
import sys
import torch
from monai.bundle import ConfigWorkflow

configs = sys.argv[1] + "/configs/"
files = [configs + "train.yaml", configs + "multi_gpu_train.yaml"]
workflow = ConfigWorkflow(
    config_file=files, meta_file=configs + "metadata.json", logging_file=False, workflow_type="train", bundle_root="."
)
values = {"train::dataloader::augment_on": "device", "validations": 6, "patience": 1, "optimizer::lr": 1.0e-6}
for key, value in values.items():
    workflow.parser[key] = value
workflow.initialize()
network = workflow.parser.get_parsed_content("network").module
before = {name: weights.detach().clone() for name, weights in network.named_parameters()}
workflow.run()
after = {name: weights.detach() for name, weights in network.named_parameters()}
torch.save({"before": before, "after": after}, f"rank_{torch.distributed.get_rank()}.pt")
workflow.finalize()
"""


def test_processes_without_a_device_or_torchrun_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(ResourceError, match="was started as one process; start it with torchrun --nproc_per_node=N"):
        local_device()
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ResourceError, match=r"started process 3 on a machine with 2 GPUs; give --nproc_per_node=2"):
        local_device()


def test_processes_wait_for_the_one_that_validates() -> None:
    """Longer than NCCL's ten minutes; in a process of its own, which a process group is left in."""
    program = (
        "import torch; from medunet.training import local_device; assert local_device().type == 'cpu'; "
        "group = torch.distributed.group.WORLD._get_backend(torch.device('cpu')); "
        "print(group.options._timeout.total_seconds()); torch.distributed.destroy_process_group()"
    )
    words = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    environment = {**os.environ, **words, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) >= 12 * 3600


@pytest.mark.parametrize(("device", "name"), [("cpu", r"\w*\+\+\S*"), ("cuda", "gcc")])
def test_a_missing_compiler_is_told(device: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    words = f"compile needs the compiler {name}, which is not on this machine; install it or train without compile"
    with pytest.raises(ResourceError, match=words):
        _require_compiler(torch.device(device), lambda _: None)
