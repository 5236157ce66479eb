"""A trained bundle's parts, ready to segment: what ``medunet predict`` and the reference run share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medunet.bundle.running import explained, load_workflow
from medunet.bundle.writer import read_plan

if TYPE_CHECKING:
    from medunet.inference.runner import Segmenter


def load_segmenter(root: Path, overrides: Mapping[str, Any]) -> Segmenter:
    """The parts that the bundle's ``inference.yaml`` defines, with its weights loaded.

    Raises:
        MedunetError: with one sentence, whatever went wrong.
    """
    from medunet.inference.quality import read_calibrations
    from medunet.inference.runner import Segmenter
    from medunet.inference.weights import file_digest, model_digest

    with explained(root / "configs" / "inference.yaml"):
        parser = load_workflow(root, "inference.yaml", "infer", overrides).parser
        part = parser.get_parsed_content
        weights = part("weights")
        weights.load()
        return Segmenter(
            plan=read_plan(str(root)),
            network=part("network").eval(),
            preprocessing=part("preprocessing"),
            inferer=part("inferer"),
            postprocessing=part("postprocessing"),
            digest=model_digest(root, overrides, weights.path.resolve()),
            output_format=part("save").output_format,
            calibrations=read_calibrations(root, file_digest(weights.path)),
        )
