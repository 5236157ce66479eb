"""What computes the logits of windows: PyTorch, OpenVINO or ONNX Runtime behind one protocol, and the choice.

protocol   what every backend is
pytorch    the network itself, on the CPU or a graphics card
openvino   a compiled copy on the CPU
onnx       a compiled copy on the CPU, in ONNX Runtime
cache      converted networks kept between runs
build      a backend by its name
choice     ``auto``: measured, checked against PyTorch, remembered
"""

from medunet.inference.backends.build import NAMES, make_backend
from medunet.inference.backends.cache import network_digest
from medunet.inference.backends.choice import Choice, choose_backend
from medunet.inference.backends.onnx import OnnxBackend
from medunet.inference.backends.openvino import OpenVinoBackend
from medunet.inference.backends.protocol import Backend
from medunet.inference.backends.pytorch import TorchBackend

__all__ = [
    "NAMES",
    "Backend",
    "Choice",
    "OnnxBackend",
    "OpenVinoBackend",
    "TorchBackend",
    "choose_backend",
    "make_backend",
    "network_digest",
]
