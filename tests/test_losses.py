"""One contract for all losses, what makes each of them special, and the overlays that choose them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.losses import DiceLoss, GeneralizedDiceLoss, TverskyLoss
from torch import Tensor
from torch.nn import functional as F

from medunet.errors import InputError
from medunet.networks import UNet
from medunet.training import (
    BorderWeightsd,
    DiceBCE,
    DiceCE,
    DiceFocal,
    DiceHausdorff,
    GeneralizedDice,
    Jaccard,
    Tversky,
    WeightedCE,
)
from medunet.training.losses import against_the_rest

LOSSES: list[tuple[type, dict[str, Any]]] = [
    (DiceCE, {}),
    (DiceBCE, {}),
    (DiceFocal, {}),
    (DiceFocal, {"dice_weight": 0.0}),
    (DiceFocal, {"gamma": 1.0, "alpha": 0.25}),
    (Tversky, {}),
    (Tversky, {"power": 0.75}),
    (Jaccard, {}),
    (GeneralizedDice, {}),
    (WeightedCE, {}),
    (DiceHausdorff, {}),
]
OVERLAYS = sorted((Path(__file__).parents[1] / "configs" / "run").glob("loss_*.yaml"))


def name(value: object) -> str:
    return value.__name__ if isinstance(value, type) else ",".join(f"{k}={v}" for k, v in dict(value).items())


def blocks(dims: int, classes: int, weighted: bool) -> Tensor:
    """A label (2, 1 or 2 channels, *n) of slabs; the last class is absent when there are more than two."""
    size = (2, 1, *(16,) * dims)
    label = torch.zeros(size)
    label[0, 0, 4:9] = 1
    label[1, 0, 2:6] = min(1, classes - 1) or 1
    return torch.cat((label, torch.rand(size) + 0.5), dim=1) if weighted else label


def certain(label: Tensor, classes: int, certainty: float = 20.0) -> Tensor:
    """Logits of a perfect prediction."""
    if classes == 1:
        return (2 * label[:, :1] - 1) * certainty
    return torch.cat([(label[:, :1] == k).float() * 2 - 1 for k in range(classes)], dim=1) * certainty


@pytest.mark.parametrize("classes", [1, 2, 4])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("loss_class", "options"), LOSSES, ids=name)
def test_contract(loss_class: type, options: dict[str, Any], dims: int, classes: int) -> None:
    torch.manual_seed(0)
    loss = loss_class(classes, **options)
    label = blocks(dims, classes, loss_class is WeightedCE)
    logits = torch.randn(2, classes, *(16,) * dims, requires_grad=True)
    value = loss(logits, label)
    value.backward()
    assert value.ndim == 0
    assert value.dtype == torch.float32
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().sum() > 0

    # A perfect prediction is the minimum, and has finite slopes; a shifted one and a wrong one are worse.
    perfect = certain(label, classes).requires_grad_()
    best = loss(perfect, label)
    best.backward()
    assert torch.isfinite(perfect.grad).all()
    at_best = float(best.detach())
    shifted = float(loss(certain(label, classes).roll(1, 2), label))
    wrong = float(loss(-certain(label, classes), label))
    assert at_best < shifted < wrong
    assert at_best < float(value.detach())
    assert at_best < (0.26 if classes == 4 else 0.01)  # MONAI's Dice of the absent classes may not be quite 0

    # A list of outputs: weights 2/3 and 1/3, each against the label at its size.
    small = torch.randn(2, classes, *(8,) * dims)
    sampled = F.interpolate(label, size=(8,) * dims, mode="nearest-exact")
    expected = (2 * value.detach() + loss(small, sampled)) / 3
    assert float(loss([logits.detach(), small], label)) == pytest.approx(float(expected), rel=1e-5)

    # Half precision around it changes nothing but the logits' own digits.
    rounded = logits.detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = loss(rounded, label)
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(float(loss(rounded.float(), label)), rel=1e-6)

    # Nothing of the foreground in the batch.
    empty = torch.zeros_like(label) if loss_class is not WeightedCE else torch.ones_like(label) * label[:, 1:2]
    empty[:, 0] = 0
    logits.grad = None
    loss(logits, empty).backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(("loss_class", "options"), LOSSES, ids=name)
def test_a_few_steps_find_a_small_object(loss_class: type, options: dict[str, Any]) -> None:
    """Gradient descent on the logits themselves: every loss alone leads to the label."""
    label = torch.zeros(1, 1, 16, 16)
    label[0, 0, 5:9, 6:10] = 1
    target = torch.cat((label, torch.ones_like(label)), 1) if loss_class is WeightedCE else label
    logits = torch.zeros(1, 2, 16, 16, requires_grad=True)
    optimizer, loss = torch.optim.Adam([logits], lr=0.3), loss_class(2, **options)
    for _ in range(40):
        optimizer.zero_grad()
        loss(logits, target).backward()
        optimizer.step()
    assert torch.equal(logits.argmax(1, keepdim=True).float(), label)


def test_binary_cross_entropy_is_of_the_soft_max_probabilities() -> None:
    torch.manual_seed(0)
    logits, label = torch.randn(2, 3, 5, 5), torch.randint(0, 3, (2, 1, 5, 5))
    p = logits.softmax(1)
    assert torch.allclose(against_the_rest(logits).sigmoid(), p, atol=1e-6)
    one_hot = F.one_hot(label[:, 0], 3).movedim(-1, 1).float()
    expected = -(one_hot * p.log() + (1 - one_hot) * (1 - p).log()).mean()
    assert torch.allclose(DiceBCE(3, dice_weight=0.0)(logits, label), expected, atol=1e-6)
    extreme = torch.tensor([200.0, -200.0, 0.0])[None, :, None, None].requires_grad_()
    DiceBCE(3, dice_weight=0.0)(extreme, torch.ones(1, 1, 1, 1)).backward()
    assert torch.isfinite(extreme.grad).all()
    assert extreme.grad[0, 1] < 0  # the certain mistake still has a slope


def test_formulas() -> None:
    torch.manual_seed(0)
    logits, label = torch.randn(2, 2, 6, 6), torch.randint(0, 2, (2, 1, 6, 6)).float()
    p, y = logits.softmax(1)[:, 1:], label
    tp, fp, fn = (p * y).sum(), (p * (1 - y)).sum(), ((1 - p) * y).sum()
    index = tp / (tp + 0.3 * fp + 0.7 * fn)
    assert float(Tversky(2)(logits, label)) == pytest.approx(float(1 - index), abs=1e-5)
    assert float(Tversky(2, power=0.75)(logits, label)) == pytest.approx(float((1 - index) ** 0.75), abs=1e-5)
    dice = DiceCE(2, ce_weight=0.0)
    assert float(Tversky(2, 0.5, 0.5)(logits, label)) == pytest.approx(float(dice(logits, label)), abs=1e-5)
    assert float(Jaccard(2)(logits, label)) == pytest.approx(float(1 - tp / (tp + fp + fn)), abs=1e-5)
    entropy = F.cross_entropy(logits, label[:, 0].long(), reduction="none")
    of_class = (-entropy).exp()
    focal = ((1 - of_class) ** 2 * entropy).mean() / 2  # MONAI's mean is over the classes too
    assert float(DiceFocal(2, dice_weight=0.0)(logits, label)) == pytest.approx(float(focal), abs=1e-5)
    ones = torch.cat((label, torch.ones_like(label)), 1)
    assert float(WeightedCE(2)(logits, ones)) == pytest.approx(float(entropy.mean()), abs=1e-6)


@pytest.mark.parametrize("masks", [False, True], ids=["classes", "regions"])
@pytest.mark.parametrize("empty", [False, True], ids=["", "empty"])
def test_overlaps_are_those_of_monai(masks: bool, empty: bool) -> None:
    """The sums are ours, since several processes share them; values and slopes are the library's."""
    torch.manual_seed(3)
    reading = {"sigmoid": masks, "softmax": not masks, "to_onehot_y": not masks, "include_background": masks}
    label = torch.randint(0, 2, (2, 3, 6, 6, 6)) if masks else torch.randint(0, 3, (2, 1, 6, 6, 6))
    label = (0 if empty else 1) * label.float()
    pairs = [
        (DiceCE(3, ce_weight=0.0), DiceLoss(batch=True, **reading)),
        (Jaccard(3), DiceLoss(batch=True, jaccard=True, **reading)),
        (Tversky(3, 0.3, 0.7), TverskyLoss(batch=True, alpha=0.3, beta=0.7, **reading)),
    ]
    if not (masks and empty):  # MONAI's is 0 with no slope there
        pairs += [(GeneralizedDice(3), GeneralizedDiceLoss(batch=True, **{**reading, "include_background": True}))]
    for ours, theirs in pairs:
        logits = [torch.randn(2, 3, 6, 6, 6, generator=torch.Generator().manual_seed(4)) for _ in range(2)]
        values = [loss(x.requires_grad_(), label) for loss, x in zip((ours, theirs), logits, strict=True)]
        for value in values:
            value.backward()
        assert float(values[0].detach()) == pytest.approx(float(values[1].detach()), rel=1e-6), ours
        assert torch.allclose(logits[0].grad, logits[1].grad, rtol=1e-4, atol=1e-8), ours


def test_generalised_dice_learns_from_patches_without_any_region() -> None:
    logits = torch.full((2, 3, 4, 4, 4), 2.0, requires_grad=True)
    loss = GeneralizedDice(3)(logits, torch.zeros(2, 3, 4, 4, 4))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1, abs=1e-3)
    assert (logits.grad > 0).all()


def test_weights_move_the_slope_to_where_they_are() -> None:
    label = np.zeros((1, 20, 20), np.float32)
    label[0, :, 2:9], label[0, :, 10:18] = 1, 1  # two cells with a gap of one voxel
    item = BorderWeightsd()({"label": torch.from_numpy(label)})
    logits = torch.zeros(1, 2, 20, 20, requires_grad=True)
    WeightedCE(2)(logits, item["label"][None]).backward()
    slope = logits.grad[0, 0].abs()
    assert slope[:, 9].min() > 5 * slope[:, 5].max()
    with pytest.raises(InputError, match=r"has 1 channel, WeightedCE needs classes and weights; add .*BorderWeightsd"):
        WeightedCE(2)(logits, torch.from_numpy(label)[None])


def test_networks_without_padding_are_compared_with_the_middle_of_the_label() -> None:
    torch.manual_seed(0)
    network = UNet.of_2015(2, base_channels=2, depth=3, dropout=0.0)
    label = torch.randint(0, 2, (1, 1, 60, 60)).float()
    logits = network(torch.randn(1, 1, 60, 60))
    assert logits.shape[2:] == (20, 20)
    for loss in (DiceCE(2), Tversky(2)):
        assert torch.equal(loss(logits, label), loss(logits, label[..., 20:40, 20:40]))


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda p: p.stem)
def test_overlays_train(planned_bundle: Path, overlay: Path, tmp_path: Path) -> None:
    """Each overlay over a bundle's training: a patch as it leaves the augmentation, through network and loss."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config([str(planned_bundle / "configs" / "train.yaml"), str(overlay)])
    parser.read_meta(str(planned_bundle / "configs" / "metadata.json"))
    parser["bundle_root"], parser["device::name"], parser["store"] = str(planned_bundle), "cpu", str(tmp_path)
    item = parser.get_parsed_content("train::dataset")[0]
    loss, network = parser.get_parsed_content("loss"), parser.get_parsed_content("network").train()
    weighted = isinstance(loss, WeightedCE)
    assert item["label"].shape[0] == (2 if weighted else 1)
    value = loss(network(item["image"][None]), item["label"][None])
    value.backward()
    assert torch.isfinite(value)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


_HALVES = """
import sys, torch
from medunet.training import *
torch.distributed.init_process_group("gloo")
rank, cases = torch.distributed.get_rank(), torch.load(sys.argv[1])
for number, (kind, options, logits, label) in enumerate(cases):
    part = logits[rank::2].clone().requires_grad_()
    value = globals()[kind](3, **options)([part, part[:, :, ::2, ::2]], label[rank::2])
    value.backward()
    torch.save((value.detach(), part.grad), f"{sys.argv[1]}_{rank}_{number}")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def test_two_processes_have_the_loss_of_one_that_holds_both_their_patches(tmp_path: Path) -> None:
    """The same value in both, and slopes whose mean over both, as DDP takes it, are those of one."""
    torch.manual_seed(2)
    cases = []
    for kind, options in LOSSES:
        for ignored in (0, 9, 16):  # planes nobody annotated in the second process's patches
            label = blocks(2, 3, kind is WeightedCE)
            label[1, 0, :ignored] = 3
            cases.append((kind.__name__, options, torch.randn(2, 3, 16, 16), label))
    file, script = tmp_path / "cases.pt", tmp_path / "halves.py"
    torch.save(cases, file)
    script.write_text(_HALVES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run([*command, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for number, (kind_name, options, logits, label) in enumerate(cases):
        whole = logits.clone().requires_grad_()
        value = globals()[kind_name](3, **options)([whole, whole[:, :, ::2, ::2]], label)
        value.backward()
        for rank in (0, 1):
            theirs, slope = torch.load(f"{file}_{rank}_{number}")
            assert float(theirs) == pytest.approx(float(value.detach()), rel=1e-5), (kind_name, options)
            assert torch.allclose(slope / 2, whole.grad[rank::2], rtol=1e-4, atol=1e-7), (kind_name, options)


def test_every_loss_has_an_overlay() -> None:
    texts = " ".join(p.read_text() for p in OVERLAYS)
    assert all(f"medunet.training.{loss.__name__}\n" in texts for loss, _ in LOSSES if loss is not DiceCE)
