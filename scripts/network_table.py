"""Measure every network of configs/plan on one patch and write the table of docs/networks.md.

Run: python scripts/network_table.py [--write docs/networks.md] [--dims 2 3] [--only NAME ...] [--untimed 3]
(minutes, on one core)

Parameters; floating-point operations of a forward pass (torch.utils.flop_counter, a multiply-add counts two); memory of
a training step of one patch as a plan estimates it; seconds of a forward pass and of a training step; what can be
exported. Without --write the table is printed.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from medunet.errors import MedunetError, NetworkError
from medunet.inference.backends import make_backend
from medunet.networks import member, survey
from medunet.planning import Budget, Fingerprint, plan
from medunet.planning.fingerprint import ChannelIntensity
from medunet.training import DiceCE

ROOT = Path(__file__).resolve().parents[1]
PATCH = {2: (160, 160), 3: (64, 64, 64)}
OWN_PATCH = {"unet2015": (572, 572), "unet3d2016": (132, 132, 116)}
"""Networks without padding, on the patch of their paper."""
NOT_NETWORKS = ("large", "regularised", "slices", "small")
BEGIN, END = "<!-- table: scripts/network_table.py -->", "<!-- end of table -->"
HEAD = (
    "| overlay | dims | parameters, M | forward, GFLOP | step, GB | forward, s | step, s | ONNX | OpenVINO |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def members() -> dict[str, dict[str, Any]]:
    """Overlays that change the network, and the plain U-Net."""
    files = sorted((ROOT / "configs" / "plan").glob("*.yaml"))
    found = {path.stem: yaml.safe_load(path.read_text()) for path in files if path.stem not in NOT_NETWORKS}
    return {"(none)": {}, **found}


def fingerprint(dims: int) -> Fingerprint:
    """Isotropic volumes of one channel and two structures."""
    shape = (160, 160, 120 if dims == 3 else 1)
    labels = {"background": 0, "a": 1, "b": 2}
    return Fingerprint(
        name="table", digest="", cases=100, channels=(ChannelIntensity("MRI", 0.0, 1.0, -3.0, 3.0, -5.0, 5.0),),
        labels=labels, spacings=((1.0, 1.0, 1.0),) * 100, shapes=(shape,) * 100,
        class_voxels=dict.fromkeys(labels, 1), class_cases=dict.fromkeys(labels, 100), pictures=False,
    )  # fmt: skip


def row(name: str, overlay: dict[str, Any], dims: int, timed: bool) -> str:
    """One line of the table; unless `timed` only what needs no computing."""
    patch = OWN_PATCH.get(name, PATCH[dims])
    chosen = {**overlay, "dims": dims, "patch_size": patch, "batch_size": 1}
    made = plan(fingerprint(dims), Budget(memory=10**12), chosen, survey)
    definition = dict(made.network)
    network = member(definition.pop("_target_", "medunet.networks.UNet"))(**definition)
    image = torch.randn(1, 1, *patch)
    if timed:
        forward, step = (f"{value:.2f}" for value in seconds(network, image))
        exports = [exported(network, image, backend) for backend in ("onnx", "openvino")]
    else:
        forward, step, *exports = ["–"] * 4
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.to("meta").eval()(image.to("meta"))
    cells = [
        f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f}", f"{counter.get_total_flops() / 1e9:.1f}",
        f"{made.memory_estimate / 1e9:.2f}", forward, step, *exports,
    ]  # fmt: skip
    return f"| {name if overlay else '(none), the U-Net'} | {dims}D | " + " | ".join(cells) + " |"


def seconds(network: nn.Module, image: torch.Tensor) -> tuple[float, float]:
    """The shorter of two forward passes, and of two training steps."""
    loss, optimizer = DiceCE(3), torch.optim.AdamW(network.parameters())
    label = torch.randint(0, 3, image.shape)
    forward, step = [], []
    for _ in range(2):
        network.eval()
        start = time.perf_counter()
        with torch.no_grad():
            network(image)
        forward.append(time.perf_counter() - start)
        network.train()
        start = time.perf_counter()
        loss(network(image.repeat(2, *[1] * (image.ndim - 1))), label.repeat(2, *[1] * (image.ndim - 1))).backward()
        optimizer.step()
        optimizer.zero_grad()
        step.append((time.perf_counter() - start) / 2)  # two patches: batch normalisation needs more than one
    return min(forward), min(step)


def exported(network: nn.Module, image: torch.Tensor, backend: str) -> str:
    """Whether a backend computes the same."""
    with torch.no_grad():
        expected = network.eval()(image)
    try:
        made = make_backend(backend, network, "cpu", image.shape[2:], 1)(image)
    except NetworkError:
        return "no"
    except MedunetError as error:
        return str(error)
    span = float(expected.max() - expected.min())
    return "yes" if float((made - expected).abs().max()) <= 1e-3 * span else "differs"


def machine() -> str:
    """The processor and what runs on it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    threads = torch.get_num_threads()
    return f"{model}, {threads} thread{'s' if threads > 1 else ''} of {os.cpu_count()} cores, torch {torch.__version__}"


def main() -> None:
    """Print the table, or put it between its marks in a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path)
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--untimed", type=int, nargs="*", default=[], help="dims of which nothing is run, only counted")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [HEAD]
    for name, overlay in members().items():
        if options.only and name not in options.only:
            continue
        for dims in options.dims:
            if overlay.get("dims", dims) == dims:
                lines.append(row(name, overlay, dims, dims not in options.untimed))
                print(lines[-1], flush=True)
    text = (
        f"Measured on {machine()}; one patch of {' x '.join(map(str, PATCH[2]))} or "
        f"{' x '.join(map(str, PATCH[3]))} voxels, one channel, three classes (networks without padding: the patch of "
        f"their paper), the plan of a CPU.\n\n" + "\n".join(lines)
    )
    if options.write:
        page = options.write.read_text(encoding="utf-8")
        before, rest = page.split(BEGIN)
        options.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    else:
        print("\n" + text)


if __name__ == "__main__":
    main()
