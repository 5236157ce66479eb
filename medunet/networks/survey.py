"""What a plan wants to know of a network: which sizes pass, how many parameters, and what a training step holds.

Nothing is guessed: the network is built, and a forward and backward pass without numbers (PyTorch's meta device) tells
which tensors are alive at the same time.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import weakref
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medunet.errors import MedunetError, NetworkError
from medunet.networks.receptive import fitting_size, output_margin, spatial_divisor
from medunet.planning.sizes import Axis
from medunet.planning.surveyed import Surveyed


def survey(definition: Mapping[str, Any], facts: Mapping[str, Any], patch: Sequence[int]) -> Surveyed:
    """Build a network and look at it.

    `definition` has ``_target_`` and the arguments that are settled; of `facts` (a plan's numbers by name) those are
    added that the target's signature names. ``img_size`` is `patch`, rounded up to the target's attribute ``step``.

    Raises:
        NetworkError: there is no such target, or it does not take these arguments.
    """
    own = {key: value for key, value in definition.items() if key != "_target_"}
    target = str(definition["_target_"])
    kind = _located(target)
    names = set(inspect.signature(kind).parameters)
    filled = {key: value for key, value in facts.items() if key in names}
    if "img_size" in names:
        step = int(getattr(kind, "step", 1))
        filled["img_size"] = [math.ceil(n / step) * step for n in patch]
    arguments = json.loads(json.dumps({**filled, **own}))
    network = _built(target, json.dumps(arguments))
    dims = len(patch)
    channels = int(facts["in_channels"])
    return Surveyed(
        name=target.rsplit(".", 1)[-1],
        definition={"_target_": target, **arguments},
        accepts=frozenset(names),
        axes=tuple(getattr(network, "axes", None) or _axes(network, dims)),
        parameters=sum(p.numel() for p in network.parameters()),
        held=lambda size: held(network, channels, tuple(size)),
    )


def _axes(network: nn.Module, dims: int) -> tuple[Axis, ...]:
    """Sizes along each axis by what the network says: its smallest input, larger by its divisor from then on."""
    steps, margins = spatial_divisor(network, dims), output_margin(network, dims)
    smallest = fitting_size(network, [1 + 2 * margin for margin in margins])
    larger = tuple(size + step for size, step in zip(smallest, steps, strict=True))
    if fitting_size(network, larger) != larger:
        raise NetworkError(
            f"network {type(network).__name__} takes {list(smallest)} and not {list(larger)}, with a spatial_divisor "
            f"of {list(steps)}; give it the one by which its fitting_size grows"
        )
    return tuple(
        Axis(step, more=size - step, less=2 * margin - (size - step), least=1)
        for step, margin, size in zip(steps, margins, smallest, strict=True)
    )


def held(network: nn.Module, channels: int, size: tuple[int, ...]) -> tuple[int, int]:
    """Bytes that one patch adds to a training step's peak, without the loss, and how many logits it makes.

    The difference of two batches is taken, in which weights and their gradients cancel.
    """
    (one, _), (two, logits) = (_peak(network, (batch, channels, *size)) for batch in (1, 2))
    return two - one, logits // 2


def _located(target: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise NetworkError(f"network {target} is not there ({error}); give the full name of a class") from error


@lru_cache(maxsize=8)
def _built(target: str, arguments: str) -> nn.Module:
    """A network without numbers. It is built on the CPU: some networks compute while they are built."""
    with torch.random.fork_rng(devices=[]):
        try:
            network = _located(target)(**json.loads(arguments))
        except (TypeError, ValueError, AssertionError) as error:
            raise NetworkError(f"network {target} cannot be built with {arguments}: {error}") from error
    if not isinstance(network, nn.Module):
        raise NetworkError(f"network {target} is no torch.nn.Module")
    return network.to("meta").train()


@lru_cache(maxsize=64)
def _peak(network: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    """The most bytes alive during a forward and backward pass, and the number of logits."""
    image = torch.empty(shape, device="meta")
    try:
        with _Alive([image, *network.parameters(), *network.buffers()]) as alive:
            made = network(image)
            outputs: list[Tensor] = [made] if isinstance(made, Tensor) else list(made)
            logits = sum(output.numel() for output in outputs)
            torch.stack([output.sum() for output in outputs]).sum().backward()  # type: ignore[no-untyped-call]
            del made, outputs
    except MedunetError:
        raise
    except Exception as error:
        raise NetworkError(
            f"network {type(network).__name__} cannot be measured with an input of {list(shape)}: {error}; its forward "
            f"must work without numbers (no .item(), all tensors parameters or buffers) and give a tensor or a list"
        ) from error
    finally:
        network.zero_grad(set_to_none=True)
    return alive.peak + image.nbytes, logits


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that operators make, until they are freed."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key, size).atexit = False

    def _freed(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size
