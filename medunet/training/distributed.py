"""Several processes, one per device, through ``torchrun`` and torch's DistributedDataParallel."""

from __future__ import annotations

import atexit
import os
import sys
from datetime import timedelta

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medunet.data.spill import free_memory
from medunet.errors import ResourceError
from medunet.training.placing import place

_LONGEST_WAIT = timedelta(days=1)  # for the first process, which validates and scores while the others wait


def local_device(backend: str = "auto") -> torch.device:
    """Join the process group that torchrun announced and return this process's device (``cuda:LOCAL_RANK`` or CPU).

    Raises:
        ResourceError: the process was not started by torchrun, or there are fewer GPUs than processes.
    """
    if "LOCAL_RANK" not in os.environ:
        raise ResourceError("multi-GPU training was started as one process; start it with torchrun --nproc_per_node=N")
    cuda, rank = torch.cuda.is_available(), int(os.environ["LOCAL_RANK"])
    if cuda and rank >= torch.cuda.device_count():
        raise ResourceError(
            f"torchrun started process {rank + 1} on a machine with {torch.cuda.device_count()} GPUs; give "
            f"--nproc_per_node={torch.cuda.device_count()}"
        )
    if not torch.distributed.is_initialized():
        chosen = ("nccl" if cuda else "gloo") if backend == "auto" else backend
        torch.distributed.init_process_group(chosen, timeout=_LONGEST_WAIT)
    device = torch.device(f"cuda:{rank}" if cuda else "cpu")
    if cuda:
        torch.cuda.set_device(device)
    return device


def distribute(
    network: nn.Module, device: torch.device, channels_last: bool = False, compile: bool = False
) -> nn.Module:
    """Place the network (see `place`) and average its gradients over all processes."""
    network = place(network, device, channels_last, compile)
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices, broadcast_buffers=False)


def rank_and_size() -> tuple[int, int]:
    """The number of this process and how many there are; 0 and 1 where torchrun started none."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def is_main_process() -> bool:
    """Whether this process is the one that writes."""
    return rank_and_size()[0] == 0


def agree(*numbers: int) -> list[int]:
    """The first process's numbers, in every process: what was measured differs between them."""
    values = list(numbers)
    if rank_and_size()[1] > 1:
        torch.distributed.broadcast_object_list(values, src=0)
    return values


def total(values: Tensor) -> Tensor:
    """The sum of `values` over all processes, for a loss that comes out the same in each of them.

    Its slope is the process's own part, times their number, by which DistributedDataParallel divides: together the
    gradients are those of one process that holds all patches. Nothing is exchanged on the way back.
    """
    processes = rank_and_size()[1]
    if processes == 1:
        return values
    whole = values.detach().clone()
    torch.distributed.all_reduce(whole)
    return whole + processes * (values - values.detach())


def any_asks(asked: bool) -> bool:
    """Whether any process asks; the same in all of them, so that they stop at the same step."""
    if rank_and_size()[1] == 1:
        return asked
    cuda = torch.distributed.get_backend() == "nccl"
    flag = torch.tensor([int(asked)], device="cuda" if cuda else "cpu")
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag.item())


def cores() -> int:
    """CPU cores that this process may use: its share, where torchrun started several on this machine."""
    all_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, all_cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def memory() -> int:
    """Bytes that this process may still take: its share, where torchrun started several on this machine."""
    return free_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def leave() -> None:
    """Leave the process group; the last step of a run.

    The process then ends without Python's final clean-up, in which threads of gloo abort it now and then (torch 2.13:
    "terminate called without an active exception").
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        atexit.register(_end)


def _end() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
