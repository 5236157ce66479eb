"""OpenVINO on the CPU."""

from __future__ import annotations

import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medunet.inference.backends.cache import Files, key_of, model_path, open_cached, version
from medunet.inference.backends.protocol import copy_for_export, example_window, quiet

_TELEMETRY = "openvino_telemetry"
_MOST_STREAMS = 8


class OpenVinoBackend:
    """A compiled copy of the network with its present weights.

    3D windows run one at a time on all of torch's threads; 2D ones, too small to be shared by several threads, side by
    side on one each.

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
        self.streams = min(torch.get_num_threads(), _MOST_STREAMS) if len(window) == 2 else 1
        path = model_file(cache, digest, window, channels)
        self.requests, self.converted = open_cached(
            path, lambda: self._convert(network, example_window(window, channels)), self._start
        )

    def __call__(self, windows: Tensor) -> Tensor:
        """(n, channels, *window) -> (n, classes, *window), float32."""
        if len(windows) == 1:
            window = windows.contiguous().numpy()
            return torch.from_numpy(self.requests[0].infer({0: window}, share_inputs=True, share_outputs=True)[0])
        return torch.cat([logits.clone() for logits in self.ahead(torch.split(windows, 1))])

    def ahead(self, windows: Iterable[Tensor]) -> Iterator[Tensor]:
        """Logits of each window (1, channels, *window) in order, while the next ones are computed.

        Windows are taken as requests are free, and logits last until the next are asked for.
        """
        running: deque[tuple[Any, Any]] = deque()
        free, rest = deque(self.requests), iter(windows)
        try:
            while True:
                for tensor in islice(rest, len(free)):
                    request, window = free.popleft(), tensor.contiguous().numpy()
                    request.start_async({0: window}, share_inputs=True)
                    running.append((request, window))  # which must live until then
                if not running:
                    return
                running[0][0].wait()
                request, _ = running.popleft()
                yield torch.from_numpy(request.get_output_tensor(0).data)
                free.append(request)
        finally:
            for request, _ in running:  # another image failed: they are of no use, and busy
                request.wait()

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
            "NUM_STREAMS": self.streams,
        }
        compiled = core.compile_model(model, "CPU", options)
        spare = 1 if self.streams > 1 else 0  # starts as soon as one before it ends
        return [compiled.create_infer_request() for _ in range(self.streams + spare)]


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
