"""A backend by its name."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from medunet.errors import InputError, MedunetError, NetworkError, ResourceError
from medunet.inference.backends import onnx, openvino
from medunet.inference.backends.cache import is_proved, network_digest, note_proved
from medunet.inference.backends.protocol import Backend, Conversion, copy_for_export, example_window
from medunet.inference.backends.pytorch import TorchBackend
from medunet.inference.device import mixed_type

_File: TypeAlias = Callable[[Path | None, str, Sequence[int], int], Path | None]


@dataclass(frozen=True)
class Compiled:
    """A backend that converts the network: what it needs, how it is made, where its file lies, if it takes `mixed`."""

    packages: tuple[str, ...]
    kind: Callable[..., Conversion]
    file: _File
    mixes: bool = False

    def make(
        self, network: nn.Module, window: Sequence[int], channels: int, cache: Path | None, digest: str, mixed: bool
    ) -> Conversion:
        """The converted network; in mixed precision where that is asked for and it can."""
        options = {"mixed": mixed} if self.mixes else {}
        return self.kind(network, window, channels, cache, digest, **options)

    @property
    def installed(self) -> bool:
        """Whether its packages can be found; nothing is imported."""
        try:
            return all(importlib.util.find_spec(package) is not None for package in self.packages)
        except (ImportError, ValueError):
            return False


COMPILED = {
    "openvino": Compiled(("openvino",), openvino.OpenVinoBackend, openvino.model_file, mixes=True),
    "onnx": Compiled(("onnxruntime", "onnx"), onnx.OnnxBackend, onnx.model_file),
}
NAMES = ("torch", *COMPILED)
AGREEMENT = 1e-3
"""How far a logit may be from PyTorch's, as a fraction of the range of those."""
MIXED_AGREEMENT, MIXED_OUTLIER = 0.003, 0.05
"""The same in mixed precision: the root mean square of all, and one alone. Right conversions have a root mean square of
0.0003 to 0.0011, whatever the input, while of millions of their logits one is 0.004 to 0.021 away."""


def make_backend(
    name: str,
    network: nn.Module,
    device: torch.device | str,
    window: Sequence[int],
    channels: int,
    *,
    amp: bool = False,
    cache: Path | None = None,
) -> Backend:
    """The backend called `name` (one of NAMES); of one that converts, a window's logits are compared with PyTorch's.

    Args:
        name: ``torch``, ``openvino`` or ``onnx``.
        network: the network with its weights; the compiled backends keep a copy of them.
        device: where to run; compiled backends run on the CPU only.
        window: spatial size of the network's input, 2 or 3 numbers.
        channels: image channels.
        amp: mixed precision where the device has it; ONNX Runtime stays in float32.
        cache: folder for converted networks, or None.

    Raises:
        InputError: the name is not known, or the backend does not run on the device.
        ResourceError: its package is not installed.
        NetworkError: it cannot convert the network, or computes something else.
    """
    device = torch.device(device)
    if name == "torch":
        return TorchBackend(network, device, amp)
    if name not in COMPILED:
        raise InputError(f"backend '{name}' is not known; give auto, {', '.join(NAMES)}")
    if device.type != "cpu":
        raise InputError(f"backend '{name}' runs on the CPU, not on {device}; give --device cpu or --backend torch")
    if not COMPILED[name].installed:
        raise _missing(name)
    try:
        mixed = amp and mixed_type(device) is not None
        backend, found = compared(name, network, window, channels, cache, network_digest(network), mixed)
    except ImportError as error:
        raise _missing(name) from error
    except MedunetError:
        raise
    except Exception as error:  # the converters raise whatever they like
        raise NetworkError(
            f"backend '{name}' cannot run this network ({first_line(error)}); give --backend torch"
        ) from error
    if found:
        raise NetworkError(f"backend '{name}' does not compute what PyTorch does: {found}; give --backend torch")
    return backend


def compared(
    name: str, network: nn.Module, window: Sequence[int], channels: int, cache: Path | None, digest: str, mixed: bool
) -> tuple[Backend, str]:
    """A converted network, and how its logits differ from PyTorch's; what was made and found right here is believed."""
    file = COMPILED[name].file(cache, digest, window, channels)
    proved = is_proved(file, mixed)
    backend = COMPILED[name].make(network, window, channels, cache, digest, mixed)
    if proved and not backend.converted:
        return backend, ""
    found = _difference(backend, network, example_window(window, channels, seed=1), mixed)
    if backend.converted and not found:
        note_proved(file, mixed)
    return backend, found


def _difference(backend: Backend, network: nn.Module, unseen: Tensor, mixed: bool) -> str:
    """What is wrong with a backend's logits of a window that the conversion has not seen."""
    with torch.no_grad():
        return disagreement(backend(unseen), copy_for_export(network)(unseen).float(), mixed)


def disagreement(logits: Tensor, expected: Tensor, mixed: bool) -> str:
    """How logits differ from those expected by more than their precision allows; nothing where they agree."""
    if logits.shape != expected.shape:
        return f"its logits have the shape {list(logits.shape)}, not {list(expected.shape)}"
    span = max(float(expected.max() - expected.min()), 1e-30)
    away = (logits - expected).div_(span)
    most = float(torch.linalg.vector_norm(away, math.inf))
    mean = float(torch.linalg.vector_norm(away)) / math.sqrt(away.numel())
    agrees = most <= MIXED_OUTLIER and mean <= MIXED_AGREEMENT if mixed else most <= AGREEMENT
    return "" if agrees else f"its logits differ by {most:.1%} of their range (root mean square {mean:.2%})"


def first_line(error: BaseException) -> str:
    """The beginning of an error's text, else its kind."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def _missing(name: str) -> ResourceError:
    return ResourceError(f"backend '{name}' is not installed; pip install 'medunet[{name}]'")
