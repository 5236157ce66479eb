"""ONNX Runtime on the CPU, in float32."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medunet.inference.backends.cache import Files, key_of, model_path, open_cached, version
from medunet.inference.backends.protocol import copy_for_export, example_window, quiet

_OPSET = 17


class OnnxBackend:
    """A converted copy of the network with its present weights; one window at a time on all of torch's threads.

    Args:
        network: any module on the CPU that can be traced; it is copied and not changed.
        window: spatial size of the input, 2 or 3 numbers.
        channels: image channels.
        cache: folder for converted networks, or None.
        digest: `network_digest` of the network.

    Raises:
        ImportError: onnxruntime or onnx is not installed.
        Exception: whatever the export or ONNX Runtime raise when they cannot convert the network.
    """

    name = "onnx"
    device = torch.device("cpu")
    streams = 1

    def __init__(
        self, network: nn.Module, window: Sequence[int], channels: int, cache: Path | None, digest: str
    ) -> None:
        import onnxruntime

        self.runtime = onnxruntime
        self.runtime.disable_telemetry_events()
        path = model_file(cache, digest, window, channels)
        self.session, self.converted = open_cached(
            path, lambda: _convert(network, example_window(window, channels)), self._start
        )

    def __call__(self, windows: Tensor) -> Tensor:
        """(n, channels, *window) -> (n, classes, *window), float32."""
        done = [self._one(window) for window in torch.split(windows, 1)]
        return done[0] if len(done) == 1 else torch.cat(done)

    def _one(self, window: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {"windows": window.contiguous().numpy()})[0])

    def _start(self, files: Files) -> Any:
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        return self.runtime.InferenceSession(files["model.onnx"], options, providers=["CPUExecutionProvider"])


def model_file(cache: Path | None, digest: str, window: Sequence[int], channels: int) -> Path | None:
    """Where the converted network lies: the name depends on weights, structure, input and versions."""
    versions = [f"{package} {version(package)}" for package in ("medunet", "torch", "onnxruntime")]
    return model_path(cache, "onnx", key_of(digest, window, channels, versions))


def _convert(network: nn.Module, example: Tensor) -> Files:
    # The TorchScript exporter does without onnxscript, and for our networks the graph is the same.
    with tempfile.TemporaryDirectory(prefix="medunet-") as folder, torch.no_grad(), quiet():
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            copy_for_export(network),
            (example,),
            path,
            dynamo=False,
            opset_version=_OPSET,
            input_names=["windows"],
            output_names=["logits"],
        )
        return {path.name: path.read_bytes()}
