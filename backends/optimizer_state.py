"""An optimizer's state by parameter name, so that it can be saved under one plan and loaded under another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from fourfold.hardware.errors import RunError, UsageError

NOT_SETTINGS = ("params", "param_names")


@dataclass(frozen=True, slots=True)
class Record:
    """All of an optimizer but its sharded tensors.

    kind: its class. groups: names of each group's parameters. settings: each group's learning rate and the like.
    sharded: dtype of each sharded tensor, by parameter and key. plain: steps and other small values, likewise.
    """

    kind: str
    groups: tuple[tuple[str, ...], ...]
    settings: tuple[Mapping[str, Any], ...]
    sharded: Mapping[str, Mapping[str, torch.dtype]]
    plain: Mapping[str, Mapping[str, Any]]


def record(optimizer: Optimizer, names: Mapping[int, str]) -> Record:
    """What `optimizer` holds; `names` gives the name of each of the program's parameters by its id.

    A parameter that has no state yet, frozen or never stepped, has none in the record. Raises UsageError for a
    parameter of another model, and for state that only makes sense on this rank.
    """
    groups = tuple(tuple(_name(p, names) for p in group["params"]) for group in optimizer.param_groups)
    settings = tuple({k: v for k, v in group.items() if k not in NOT_SETTINGS} for group in optimizer.param_groups)
    sharded: dict[str, dict[str, torch.dtype]] = {}
    plain: dict[str, dict[str, Any]] = {}
    for parameter, state in _states(optimizer):
        name = _name(parameter, names)
        for key, value in state.items():
            if isinstance(value, DTensor):
                _require_shape(name, key, value, parameter)
                sharded.setdefault(name, {})[key] = value.dtype
            else:
                _require_small(name, key, value)
                plain.setdefault(name, {})[key] = value
        plain.setdefault(name, {})
    return Record(type(optimizer).__name__, groups, settings, sharded, plain)


def tensors(optimizer: Optimizer, names: Mapping[int, str]) -> dict[tuple[str, str], Tensor]:
    """The sharded tensors of the state, by parameter and key."""
    return {
        (_name(parameter, names), key): value
        for parameter, state in _states(optimizer)
        for key, value in state.items()
        if isinstance(value, DTensor)
    }


def empty(found: Record, parameters: Mapping[str, nn.Parameter]) -> dict[tuple[str, str], Tensor]:
    """Zeros to load the sharded tensors of a record into, each cut as its parameter is here."""
    return {
        (name, key): torch.zeros_like(parameters[name].detach(), dtype=dtype)
        for name, keys in found.sharded.items()
        for key, dtype in keys.items()
    }


def check(found: Record, optimizer: Optimizer, names: Mapping[int, str]) -> None:
    """Raises RunError when `optimizer` is of another class, or groups other parameters together, than the record's."""
    if type(optimizer).__name__ != found.kind:
        raise RunError(
            f"the checkpoint holds the state of {found.kind}, and the optimizer is {type(optimizer).__name__}"
        )
    here = [{_name(p, names) for p in group["params"]} for group in optimizer.param_groups]
    there = [set(group) for group in found.groups]
    if len(here) != len(there):
        raise RunError(f"the checkpoint's optimizer has {len(there)} parameter groups, and this one {len(here)}")
    for i, (mine, saved) in enumerate(zip(here, there, strict=True)):
        other = sorted(mine ^ saved)
        if other:
            where = "only here" if other[0] in mine else "only in the checkpoint"
            raise RunError(f"parameter group {i} differs: {other[0]} is {where}; group the same parameters together")


def restore(
    optimizer: Optimizer, found: Record, filled: Mapping[tuple[str, str], Tensor], names: Mapping[int, str]
) -> None:
    """Puts a record and its tensors into `optimizer` through its own load_state_dict."""
    numbers: dict[str, int] = {}
    groups = []
    for group, settings in zip(optimizer.param_groups, found.settings, strict=True):
        owned = [_name(p, names) for p in group["params"]]
        numbers.update(zip(owned, range(len(numbers), len(numbers) + len(owned)), strict=True))
        groups.append({**_beside(settings, group), "params": [numbers[name] for name in owned]})
    state: dict[int, dict[str, Any]] = {numbers[name]: dict(values) for name, values in found.plain.items()}
    for (name, key), value in filled.items():
        state[numbers[name]][key] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _beside(settings: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
    """Settings whose tensors (a learning rate may be one) lie where the group's own do."""
    moved = dict(settings)
    for key, value in settings.items():
        if isinstance(value, Tensor) and isinstance(group.get(key), Tensor):
            moved[key] = value.to(group[key].device)
    return moved


def _states(optimizer: Optimizer) -> Iterator[tuple[Tensor, Mapping[str, Any]]]:
    for parameter, state in optimizer.state.items():
        if state:
            yield parameter, state


def _name(parameter: Tensor, names: Mapping[int, str]) -> str:
    if id(parameter) not in names:
        raise UsageError(
            f"the optimizer holds a parameter of shape {list(parameter.shape)} that is not this program's: make it of "
            "program.parameters()"
        )
    return names[id(parameter)]


def _require_shape(name: str, key: str, value: Tensor, parameter: Tensor) -> None:
    if value.shape != parameter.shape:
        raise UsageError(
            f"optimizer state {key!r} of {name} is {list(value.shape)} and the parameter {list(parameter.shape)}: only "
            "state shaped as its parameter can be cut anew for another plan"
        )


def _require_small(name: str, key: str, value: Any) -> None:
    if isinstance(value, Tensor) and value.numel() > 1:
        raise UsageError(
            f"optimizer state {key!r} of {name} is a local tensor of {value.numel()} elements: make it a DTensor "
            "(torch.zeros_like(parameter)), so that another plan can load it"
        )
