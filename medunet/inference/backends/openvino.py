"""OpenVINO on the CPU."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medunet.inference.backends.cache import Files, key_of, model_path, open_cached, version
from medunet.inference.backends.protocol import copy_for_export, example_window, quiet

_TELEMETRY = "openvino_telemetry"


class OpenVinoBackend:
    """A compiled copy of the network with its present weights; one window at a time on all of torch's threads.

    Precision is float32, in the file and in computing, unless `mixed`: then it computes in bfloat16.

    Args:
        network: any module on the CPU that can be traced; it is copied and not changed.
        window: spatial size of the input, 2 or 3 numbers.
        channels: image channels.
        cache: folder for converted networks, or None.
        digest: `network_digest` of the network.
        mixed: compute in bfloat16; only where the processor has it.

    Raises:
        ImportError: openvino is not installed.
        Exception: whatever OpenVINO raises when it cannot convert the network.
    """

    name = "openvino"
    device = torch.device("cpu")

    def __init__(
        self,
        network: nn.Module,
        window: Sequence[int],
        channels: int,
        cache: Path | None,
        digest: str,
        mixed: bool = False,
    ) -> None:
        self.openvino, self.mixed = import_openvino(), mixed
        path = model_file(cache, digest, window, channels)
        self.request, self.converted = open_cached(
            path, lambda: self._convert(network, example_window(window, channels)), self._start
        )

    def __call__(self, windows: Tensor) -> Tensor:
        """(n, channels, *window) -> (n, classes, *window), float32."""
        if len(windows) == 1:
            return self._one(windows)
        return torch.cat([self._one(window).clone() for window in torch.split(windows, 1)])

    def _one(self, window: Tensor) -> Tensor:
        results = self.request.infer({0: window.contiguous().numpy()}, share_inputs=True, share_outputs=True)
        return torch.from_numpy(results[0])

    def _convert(self, network: nn.Module, example: Tensor) -> Files:
        with torch.no_grad(), quiet():
            traced = torch.jit.trace(  # type: ignore[no-untyped-call]
                copy_for_export(network), example, check_trace=False
            )
        model = self.openvino.convert_model(traced, example_input=example, input=[list(example.shape)])
        with tempfile.TemporaryDirectory(prefix="medunet-") as folder:
            self.openvino.save_model(model, Path(folder) / "model.xml", compress_to_fp16=False)
            return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}

    def _start(self, files: Files) -> Any:
        core = self.openvino.Core()
        model = core.read_model(files["model.xml"], files["model.bin"])
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.mixed else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        return core.compile_model(model, "CPU", options).create_infer_request()


def model_file(cache: Path | None, digest: str, window: Sequence[int], channels: int) -> Path | None:
    """Where the converted network lies: the name depends on weights, structure, input and versions."""
    versions = [f"{package} {version(package)}" for package in ("medunet", "torch", "openvino")]
    return model_path(cache, "openvino", key_of(digest, window, channels, versions))


def import_openvino() -> Any:
    """OpenVINO without its telemetry, which reports every import and conversion to its makers unless told not to.

    Where other code of the process imported it before, that import counts.
    """
    with _without(_TELEMETRY):
        import openvino
        import openvino.tools.ovc.convert_impl
    return openvino


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Let imports of `module` fail inside the block."""
    before = sys.modules.get(module, _without)
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is _without:
            del sys.modules[module]
        else:
            sys.modules[module] = before  # type: ignore[assignment]
