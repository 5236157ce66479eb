"""The reference run: an image like the training data's, an answer that must come again."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medunet import verbs
from medunet.bundle import reference
from medunet.bundle.reference import Answer, check_network, check_reference, compare_answers, run_reference
from medunet.data.phantom import make_phantom
from medunet.data.volume import read_volume
from medunet.errors import UnsafeError
from medunet.planning import Budget

PLAN = {
    "window": [64, 48, 1], "orientation": "LPS", "spacing": [0.5, 0.6, 3.0], "network": {"out_channels": 3},
    "seen": {"intensity": [{"minimum": -1000.0, "maximum": 500.0}, {"minimum": 0.0, "maximum": 9.0}]},
}  # fmt: skip


def test_the_image_is_like_the_plans_data() -> None:
    channels, grid = reference._make_image(PLAN)
    assert [c.shape for c in channels] == [(32, 32, 1)] * 2
    assert "".join(grid.axcodes) == "LPS"
    assert np.allclose(grid.spacing, PLAN["spacing"])
    for channel, seen in zip(channels, PLAN["seen"]["intensity"], strict=True):  # type: ignore[index]
        assert seen["minimum"] <= channel.min() < channel.max() <= seen["maximum"]
        assert channel.std() > 0.05 * (seen["maximum"] - seen["minimum"])
    again, _ = reference._make_image(PLAN)
    assert all((a == b).all() for a, b in zip(channels, again, strict=True))
    many, _ = reference._make_image({**PLAN, "window": [64, 64, 64], "network": {"out_channels": 200}})
    assert many[0].size * 200 * 4 <= 2_000_000


def answer(*rows: list[float]) -> Answer:
    probabilities = np.array(rows, dtype=np.float32).reshape(len(rows), -1, 1, 1)
    return Answer(probabilities.argmax(axis=0).astype(np.uint8), probabilities)


def test_answers_are_compared_and_ties_are_not_hidden() -> None:
    expected = answer([0.9, 0.50004], [0.1, 0.49996])
    assert compare_answers(expected, expected, True) == "all labels are equal (100 %), probabilities within 0"
    tie = answer([0.9, 0.49998], [0.1, 0.50002])
    assert "1 labels differ at ties, all others are equal" in compare_answers(tie, expected, True)
    with pytest.raises(UnsafeError, match=r"a probability differs by 0\.001"):
        compare_answers(answer([0.901, 0.50004], [0.099, 0.49996]), expected, True)
    with pytest.raises(UnsafeError, match="a probability differs by nan"):
        compare_answers(answer([float("nan"), 0.50004], [0.1, 0.49996]), expected, True)
    with pytest.raises(UnsafeError, match="1 of 2 voxels have another label"):
        compare_answers(Answer(1 - expected.labels, expected.probabilities), answer([0.9, 0.5], [0.1, 0.5]), True)
    single = Answer(np.array([1, 0], dtype=np.uint8), np.array([[0.9, 0.5]], dtype=np.float32))
    other = Answer(np.array([1, 1], dtype=np.uint8), np.array([[0.9, 0.50001]], dtype=np.float32))
    assert "1 labels differ at ties" in compare_answers(other, single, False)


def test_a_region_that_is_just_found_is_a_tie_however_far_the_others_are() -> None:
    expected = np.array([[0.5000002, 0.9], [0.1, 0.8], [0.2, 0.7]], dtype=np.float32)[..., None, None]
    labels = np.array([1, 3], dtype=np.uint8)[:, None, None]
    other = expected.copy()
    other[0, 0] = 0.4999998
    found = Answer(labels - np.array([1, 0], dtype=np.uint8)[:, None, None], other)
    assert "1 labels differ at ties" in compare_answers(found, Answer(labels, expected), False)
    expected[:, 0, 0, 0] = [0.9, 0.9001, 0.1]  # two outputs are close to each other, and no tie
    with pytest.raises(UnsafeError, match="1 of 2 voxels have another label"):
        compare_answers(Answer(found.labels, expected), Answer(labels, expected), False)


def test_what_was_packed_answers_the_same_and_another_file_does_not(packed_bundle: Path, tmp_path: Path) -> None:
    verbs.unpack(packed_bundle, tmp_path / "b")
    assert check_network(tmp_path / "b").startswith("UNet: 48 keys")
    assert "(100 %)" in check_reference(tmp_path / "b")
    found = run_reference(tmp_path / "b")
    assert np.allclose(found.probabilities.sum(axis=0), 1, atol=1e-5)
    assert not (tmp_path / "b" / "models" / "compiled").exists()
    image = read_volume(tmp_path / "b" / "reference" / "input.nii")
    from medunet.data.volume import write_image

    write_image(tmp_path / "b" / "reference" / "input.nii", image.array[0] * 0.5, image.grid)
    with pytest.raises(UnsafeError, match="a probability differs by"):
        check_reference(tmp_path / "b")


@pytest.mark.parametrize(("dims", "channels"), [(3, 2), (2, 1), (2, 2)])
def test_two_channels_and_slices_are_packed_too(
    dims: int, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from medunet.bundle.running import load_workflow

    monkeypatch.setenv("MEDUNET_HOME", str(tmp_path / "home"))
    data = tmp_path / "data"
    for number in range(5):
        image, label = make_phantom(number, (24, 24, 16), (5.0, 5.0, 8.0))
        for folder in ("imagesTr", "labelsTr"):
            (data / folder).mkdir(parents=True, exist_ok=True)
        volumes = np.stack([image.array[0], -image.array[0]][:channels], axis=-1).squeeze().astype(np.float32)
        nib.save(nib.Nifti1Image(volumes, image.grid.affine), data / "imagesTr" / f"c_{number}.nii.gz")
        nib.save(nib.Nifti1Image(label.array[0], label.grid.affine), data / "labelsTr" / f"c_{number}.nii.gz")
    names = {"0": "T1", "1": "T2"} if channels == 2 else {"0": "T1"}
    labels = {"0": "background", "1": "spine", "2": "liver", "3": "kidneys", "4": "lesion"}
    pairs = [{"image": f"./imagesTr/c_{n}.nii.gz", "label": f"./labelsTr/c_{n}.nii.gz"} for n in range(5)]
    (data / "dataset.json").write_text(
        json.dumps({"name": "d", "modality": names, "labels": labels, "training": pairs})
    )
    bundle = tmp_path / "bundle"
    verbs.plan(data, bundle, Budget(epochs=1), {"dims": dims, "base_channels": 4, "max_levels": 3})
    network = load_workflow(bundle, "inference.yaml", "infer", {"device::name": "cpu"}).parser.get_parsed_content(
        "network"
    )
    (bundle / "models").mkdir(exist_ok=True)
    torch.save(network.state_dict(), bundle / "models" / "model.pt")
    verbs.pack(bundle, tmp_path / "b.zip")
    result = verbs.verify(tmp_path / "b.zip")
    assert result.verified, result.failure
    verbs.unpack(tmp_path / "b.zip", tmp_path / "out")
    assert len(list((tmp_path / "out" / "reference").glob("input*.nii"))) == channels
