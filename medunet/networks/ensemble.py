"""Several networks of one kind as one: their mean answer."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from medunet.errors import NetworkError

_MEMBER = re.compile(r"members\.(0|[1-9][0-9]{0,2})\.(.+)")
_PROTOCOL = ("spatial_dims", "spatial_divisor", "margin", "fitting_size", "unbounded", "auxiliary_outputs")
"""What a network may say of itself; an ensemble says what its members say."""


class Ensemble(nn.Module):
    """As many copies of a network as the weights that are loaded into it are of; the mean of their logits.

    The file decides: a state dict with the network's own keys makes it that network and nothing more; one with keys
    ``members.0.KEY``, ``members.1.KEY``, ... makes it as many members. What it gives out as its state dict has the same
    form.

    The mean is of logits, as in nnU-Net: of classes and of regions that is the geometric mean of the members'
    probabilities, normalised. It is right for either without knowing which, and being linear it may be taken before
    windows are blended or mirrored versions averaged.

    Args:
        network: the first member; the others are copies of it with weights of their own.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.members = nn.ModuleList([network])

    def __getattr__(self, name: str) -> Any:
        if name in _PROTOCOL:
            return getattr(self.members[0], name)
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> Any:
        if len(self.members) == 1:
            return self.members[0](x)
        total = _full(self.members[0](x)).float()
        for member in list(self.members)[1:]:
            total = total + _full(member(x)).float()
        return total / len(self.members)

    def become(self, keys: Iterable[str]) -> None:
        """Take on as many members as the keys of a state dict are of.

        Raises:
            NetworkError: they are those of neither one such network nor several.
        """
        found, own = set(keys), set(self.members[0].state_dict())
        count = 0 if found == own else members_in(found)
        differing = found ^ ({f"members.{n}.{key}" for n in range(count) for key in own} if count else own)
        if differing:
            raise NetworkError(
                f"they are neither of one such network nor of an ensemble of it: {min(differing)} is in one alone"
            )
        while len(self.members) < count:
            self.members.append(copy.deepcopy(self.members[0]))
        del self.members[max(1, count) :]

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The network's own while it is alone, else with ``members.K.`` before each key."""
        if len(self.members) == 1:
            return self.members[0].state_dict(*args, **kwargs)
        return super().state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Become what the state dict is of, and load it.

        Raises:
            NetworkError: it is of neither one such network nor several.
            RuntimeError: a tensor has another shape.
        """
        self.become(state_dict)
        if members_in(state_dict):
            return super().load_state_dict(state_dict, strict, assign)
        return self.members[0].load_state_dict(state_dict, strict, assign)


def members_in(keys: Iterable[str]) -> int:
    """How many members a state dict with these keys has; 0 where it is none of an ensemble.

    >>> members_in(["members.0.weight", "members.1.weight"]), members_in(["weight"]), members_in(["members.1.weight"])
    (2, 0, 0)
    """
    matches = [_MEMBER.fullmatch(key) for key in keys]
    numbers = {int(match[1]) for match in matches if match}
    return len(numbers) if all(matches) and numbers == set(range(len(numbers))) else 0


def joined(states: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The state dict of an ensemble of these networks."""
    return {f"members.{number}.{key}": value for number, state in enumerate(states) for key, value in state.items()}


def member_of(state: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The plain state dict of a member."""
    prefix = f"members.{number}."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _full(output: Any) -> Tensor:
    """The output at full resolution of a network that may return several."""
    full: Tensor = output if isinstance(output, Tensor) else output[0]
    return full
