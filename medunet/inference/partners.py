"""Several bundles, such as one of a 2D and one of a 3D network, that answer together: the mean of their probabilities.

Each has its own spacing, orientation and windows; they meet on the file's own grid. Their mean lies in a file and grows
box by box, so that memory holds no more than one bundle needs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medunet.data.atomic import PART, disk_errors, reserve
from medunet.data.resampling import Box
from medunet.data.transforms import NetworkImage
from medunet.errors import BundleError
from medunet.inference.neighbour import Neighbour, seen_by
from medunet.inference.outputs import are_classes, decide
from medunet.inference.passage import Segmentation
from medunet.inference.restoring import Sink
from medunet.types import AnyArray, Shape

_CHUNK = 2_000_000  # voxels that are decided at a time


class Partners:
    """Other bundles of the same labels whose probabilities are averaged with those of the one that runs.

    As with folds of one plan, nnU-Net averages logits, and across plans probabilities: on different grids there is
    nothing else to average. Each bundle counts the same.

    Args:
        folders: the other bundles.
        labels: stored value per class that they must have too.
        facts: what else their plans must say likewise: ``channels``, ``regions``; null: is not compared.
        scratch: where the temporary file of all probabilities lies: 4 bytes per voxel of the file and class.
        options: for their inferers: backend and mixed precision; with ``mirror`` they mirror along their own axes.

    Raises:
        BundleError: (at the first image) a partner is missing, has other labels, regions or channels, or other outputs.
        ResourceError: the disk is full.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        labels: Mapping[str, int],
        facts: Mapping[str, Any],
        scratch: Path | None,
        options: Mapping[str, Any],
    ) -> None:
        self.folders, self.labels, self.scratch = list(folders), dict(labels), scratch
        self.facts, self.options = dict(facts), dict(options)

    def segment(
        self, alone: Callable[[Sink], Segmentation], image: NetworkImage, device: torch.device, sink: Sink | None
    ) -> Segmentation:
        """The labels that all bundles together give an image; certainty is that of the bundle that runs.

        Args:
            alone: segments with the bundle that runs, and hands its probabilities to a sink.
            device: where the partners compute.
            sink: takes the mean probabilities, if wanted.
        """
        shape = image.file.shape
        with _mean(self.scratch, (self.outputs, *shape), 1 + len(self.folders)) as mean:
            made = alone(mean.sink)
            mean.require_all("the bundle that runs")
            for partner, network, inferer in self._loaded:
                seen = seen_by(inferer, image, network.to(device))
                inferer.segment([seen], network, [mean.sink])
                mean.require_all(str(partner.folder))
            mean.decide(made.labels, list(self.labels.values()))
            if sink is not None:
                mean.pour(sink)
        return made

    @property
    def outputs(self) -> int:
        """Channels of every bundle's network."""
        return int(self._loaded[0][0].plan["network"]["out_channels"])

    @cached_property
    def _loaded(self) -> list[tuple[Neighbour, nn.Module, Any]]:
        loaded = []
        for folder in self.folders:
            if not (folder / "configs" / "metadata.json").is_file():
                raise BundleError(
                    f"{folder}: the plan has this bundle for a partner, and it is missing; put it there, or write "
                    f"partners: [] under inferer in configs/inference.yaml"
                )
            partner = Neighbour(folder, "is a partner")
            for name, own in {"labels": self.labels, **self.facts}.items():
                partner.require_same(name, own)
            options = dict(self.options)
            axes = partner.plan["mirror_axes"] if options.pop("mirror", False) else ()
            options |= {"bundle_root": str(folder), "region": partner.plan.get("region", "all"), "mirror_axes": axes}
            loaded.append((partner, partner.network(), partner.inferer(**options)))
        return loaded


class _Mean:
    """Probabilities (outputs, x, y, z) in a file, each bundle's added with its share."""

    def __init__(self, content: AnyArray, share: float) -> None:
        self.content, self.share = content, share
        self.seen: set[int] = set()

    def sink(self, number: int, box: Box, values: Tensor) -> None:
        """Add a bundle's probabilities of an output on a box."""
        if number < len(self.content):
            self.content[number][_place(box)] += self.share * values.float().cpu().numpy()
        self.seen.add(number)

    def require_all(self, bundle: str) -> None:
        """Refuse a bundle with other outputs than the file has room for."""
        seen, self.seen = self.seen, set()
        if seen != set(range(len(self.content))):
            raise BundleError(
                f"{bundle}: its network has {len(seen)} outputs, that of a partner {len(self.content)}; classes and "
                f"regions cannot be averaged"
            )

    def _boxes(self) -> Iterator[Box]:
        _, x, y, z = self.content.shape
        step = max(1, _CHUNK // (y * z))
        for start in range(0, x, step):
            yield (start, min(x, start + step)), (0, y), (0, z)

    def decide(self, labels: AnyArray, values: Sequence[int]) -> None:
        """Write the most probable class, or the regions above one half, of every voxel into `labels`."""
        stored = np.array(values, dtype=labels.dtype)
        classes = are_classes(len(self.content), len(values))
        for box in self._boxes():
            part = torch.from_numpy(np.array(self.content[(slice(None), *_place(box))]))
            labels[_place(box)] = stored[decide(part, classes).numpy()]

    def pour(self, sink: Sink) -> None:
        """Hand everything over."""
        for box in self._boxes():
            for number in range(len(self.content)):
                sink(number, box, torch.from_numpy(np.array(self.content[number][_place(box)])))


def _place(box: Box) -> tuple[slice, ...]:
    return tuple(slice(*bounds) for bounds in box)


@contextmanager
def _mean(folder: Path | None, shape: Shape, bundles: int) -> Iterator[_Mean]:
    """A temporary file of zeros; what a killed run leaves of it is removed as all partial files are."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    where = Path(folder or tempfile.gettempdir())
    with disk_errors(where), tempfile.NamedTemporaryFile(prefix=PART, suffix=".raw", dir=where) as file:
        path = Path(file.name)
        content = np.memmap(path, dtype=np.float32, mode="w+", shape=shape)
        reserve(path)
        yield _Mean(content, 1 / bundles)
        del content
