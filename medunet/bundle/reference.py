"""The proof that travels with a bundle: a synthetic image, and what the network makes of it here and there.

The image is made of smooth waves with intensities like the training data's; nobody's anatomy is in it. It goes through
the same parts as in ``medunet predict``, on the CPU with one thread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medunet.bundle.writer import read_plan
from medunet.data.grid import Grid
from medunet.data.volume import write_image
from medunet.errors import UnsafeError
from medunet.trust.archive.atomic import atomic_file
from medunet.trust.archive.names import EXPECTED, TENSORS
from medunet.trust.archive.slices import Slice
from medunet.trust.archive.weights_file import read_safetensors, write_safetensors
from medunet.types import Affine, AnyArray, FloatArray

TOLERANCE, MARGIN = 1e-4, 1e-3
"""Probabilities may differ so much; labels only where the two best probabilities are closer than MARGIN.

Of regions: where one is so close to its complement.
"""

_SEED = 20260101
_LONGEST, _SHORTEST, _MOST_BYTES = 32, 8, 2_000_000
_WAVES = 6
_TYPES = {"U8": np.uint8, "I16": np.int16, "I32": np.int32, "I64": np.int64, "F32": np.float32}
_CODES = {np.dtype(kind): code for code, kind in _TYPES.items()}


@dataclass(frozen=True)
class Answer:
    """Labels (x, y, z) as stored, and probabilities (classes, x, y, z) float32, on the image's grid."""

    labels: AnyArray
    probabilities: FloatArray


def write_reference(root: Path) -> None:
    """Write ``reference/`` of a bundle: the image, a file per channel, and what its network answers.

    Raises:
        MedunetError: the bundle cannot be run; the sentence says why.
    """
    images = _make_image(read_plan(str(root)))
    grid = images[1]
    for number, channel in enumerate(images[0]):
        name = "input.nii" if len(images[0]) == 1 else f"input_{number:04d}.nii"
        write_image(root / "reference" / name, channel, grid)
    answer = run_reference(root)
    arrays = {"labels": answer.labels, "probabilities": answer.probabilities}
    with atomic_file(root / EXPECTED) as file:
        write_safetensors(file, {name: (_CODES[a.dtype], a.shape, a.tobytes()) for name, a in arrays.items()})


def run_reference(root: Path) -> Answer:
    """What a bundle's network answers to its reference image, by the path that ``medunet predict`` takes.

    Raises:
        MedunetError: the bundle cannot be run; the sentence says why.
    """
    from medunet.bundle.running import explained
    from medunet.bundle.segmenting import load_segmenter
    from medunet.inference.device import one_thread

    files = [str(path) for path in sorted((root / "reference").glob("input*.nii"))]
    overrides = {
        "device::name": "cpu",
        "inferer::backend": "torch",
        "inferer::bundle_root": None,
        "inferer::amp": False,
    }
    with one_thread(), explained(root / "configs" / "inference.yaml"):
        segmenter = load_segmenter(root, overrides)
        item = segmenter.preprocessing({"image": files[0] if len(files) == 1 else files})
        seen = segmenter.inferer.frame.see(item["image"])
        classes = int(segmenter.plan["network"]["out_channels"])
        probabilities = np.zeros((classes, *seen.native.shape), dtype=np.float32)

        def keep(number: int, box: Any, values: Any) -> None:
            place: Any = (number, *(slice(*bounds) for bounds in box))
            probabilities[place] = values.float().cpu().numpy()

        (made,) = segmenter.inferer.segment([seen], segmenter.network, [keep])
    return Answer(np.ascontiguousarray(made.labels), probabilities)


def check_reference(root: Path) -> str:
    """Run the reference image and compare the answer with the one that was packed.

    Raises:
        UnsafeError: it differs.
        MedunetError: the bundle cannot be run.
    """
    from medunet.inference.outputs import are_classes

    expected, found = _read_expected(root), run_reference(root)
    for name, ours, theirs in (
        ("labels", found.labels, expected.labels), ("probabilities", found.probabilities, expected.probabilities)
    ):  # fmt: skip
        if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            raise UnsafeError(
                f"{EXPECTED}: {name} are {theirs.dtype} {list(theirs.shape)}, the network makes {ours.dtype} "
                f"{list(ours.shape)}; the bundle is not what it was when it was packed, refuse it"
            )
    plan = read_plan(str(root))
    return compare_answers(found, expected, are_classes(int(plan["network"]["out_channels"]), len(plan["labels"])))


def compare_answers(found: Answer, expected: Answer, classes: bool) -> str:
    """How two answers agree, in a sentence; labels may only differ where the expected ones are a tie.

    `classes`: whether the outputs exclude each other; else they are regions, each found by itself.

    Raises:
        UnsafeError: they do not agree.
    """
    apart = float(np.abs(found.probabilities - expected.probabilities).max(initial=0.0))
    if not apart <= TOLERANCE:
        raise UnsafeError(
            f"{EXPECTED}: a probability differs by {apart:.2g} (allowed {TOLERANCE:g}); these weights or this software "
            f"do not compute what the sender's did, do not use the bundle here"
        )
    other = found.labels != expected.labels
    wrong = int((other & (_margin(expected.probabilities, classes) > MARGIN)).sum())
    if wrong:
        raise UnsafeError(
            f"{EXPECTED}: {wrong} of {other.size} voxels have another label; these weights or this software do not "
            f"compute what the sender's did, do not use the bundle here"
        )
    ties = int(other.sum())
    words = "all labels are equal (100 %)" if not ties else f"{ties} labels differ at ties, all others are equal"
    return f"{words}, probabilities within {apart:.1g}"


def check_network(root: Path) -> str:
    """Build the network that the bundle declares, without memory for weights, and compare keys and shapes.

    Raises:
        UnsafeError: the weights are not of this network.
        MedunetError: the network cannot be built.
    """
    import torch
    from monai.bundle import ConfigParser

    from medunet.bundle.running import explained, forbid_expressions
    from medunet.networks.ensemble import Ensemble, members_in

    forbid_expressions()
    with (root / TENSORS).open("rb") as file:
        found = {name: tensor.shape for name, tensor in read_safetensors(Slice.whole(file)).items()}
    config = root / "configs" / "inference.yaml"
    with explained(config), torch.device("meta"):
        parser = ConfigParser()
        parser.read_config(str(config))
        parser.read_meta(str(root / "configs" / "metadata.json"))
        network = parser.get_parsed_content("network_def")
        if isinstance(network, Ensemble) and (members := members_in(found)):
            network.become(f"members.{number}.{key}" for number in range(members) for key in network.state_dict())
        wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if differing:
        name = differing[0]
        raise UnsafeError(
            f"{name}: is {_shape(found.get(name))} in the weights and {_shape(wanted.get(name))} in the network; "
            f"the weights are not of this network, refuse the bundle"
        )
    return f"{_kind(network)}: {len(wanted)} keys with the shapes of the weights"


def _kind(network: Any) -> str:
    members = list(getattr(network, "members", [network]))
    return type(members[0]).__name__ + (f" x {len(members)}" if len(members) > 1 else "")


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))


def _margin(probabilities: FloatArray, classes: bool) -> FloatArray:
    """How far the best class is ahead of the second; how far a region is from being just so found, or just not."""
    if not classes:
        undecided: FloatArray = np.abs(2 * probabilities - 1).min(axis=0)
        return undecided
    best = np.partition(probabilities, -2, axis=0)
    margin: FloatArray = best[-1] - best[-2]
    return margin


def _read_expected(root: Path) -> Answer:
    with (root / EXPECTED).open("rb") as file:
        tensors = read_safetensors(Slice.whole(file))
        if set(tensors) != {"labels", "probabilities"} or any(t.dtype not in _TYPES for t in tensors.values()):
            raise UnsafeError(f"{EXPECTED}: holds no labels and probabilities; refuse the bundle")
        arrays = {n: np.frombuffer(t.data.read(), dtype=_TYPES[t.dtype]).reshape(t.shape) for n, t in tensors.items()}
    return Answer(arrays["labels"], arrays["probabilities"])


def _make_image(plan: Mapping[str, Any]) -> tuple[list[AnyArray], Grid]:
    """The channels, each (x, y, z), and their grid: the plan's spacing and orientation, so that nothing is resampled.

    At most one window, and small enough for its probabilities to take two megabytes.
    """
    classes = int(plan["network"]["out_channels"])
    shape = [max(1, min(int(n), _LONGEST)) for n in plan["window"]]
    while math.prod(shape) * classes * 4 > _MOST_BYTES and max(shape) > _SHORTEST:
        shape[shape.index(max(shape))] -= 1
    return [_channel(tuple(shape), number, values) for number, values in enumerate(plan["seen"]["intensity"])], Grid(
        tuple(shape), _affine(plan["orientation"], plan["spacing"])
    )


def _channel(shape: tuple[int, ...], number: int, seen: Mapping[str, Any]) -> AnyArray:
    """Waves of random direction, stretched over the intensities of the training data."""
    rng = np.random.default_rng([_SEED, number])
    points = np.meshgrid(*[np.arange(n) / max(shape) for n in shape], indexing="ij")
    total = np.zeros(shape)
    for _ in range(_WAVES):
        frequency, phase = rng.uniform(-3, 3, 3), rng.uniform(0, 2 * math.pi)
        total += np.sin(2 * math.pi * sum(f * p for f, p in zip(frequency, points, strict=True)) + phase)
    low, high = float(seen["minimum"]), float(seen["maximum"])
    unit = (total + _WAVES) / (2 * _WAVES)
    return (low + unit * (high - low)).astype(np.float32)


def _affine(orientation: str, spacing: Any) -> Affine:
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (code, step) in enumerate(zip(orientation, spacing, strict=True)):
        affine["RLAPSI".index(code) // 2, axis] = step if code in "RAS" else -step
    return affine
