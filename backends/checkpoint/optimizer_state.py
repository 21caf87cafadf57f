"""An optimizer's state by parameter name, so that it can be saved under one plan and loaded under another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
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

    def values(self) -> dict[str, Any]:
        """Its fields by name, for a file that names no class of ours, which may move. `Record(**values)` reads it."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


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


def merged(records: Sequence[Record]) -> Record:
    """One record of an optimizer whose ranks each step the parameters of their own stages.

    Groups are joined by their place where all ranks have as many, with the same settings; else each stays one of its
    own. A parameter of several stages counts where it is first.
    """
    groups, settings = _joined(records) if _in_step(records) else _apart(records)
    return Record(
        records[0].kind,
        groups,
        settings,
        {name: keys for r in reversed(records) for name, keys in r.sharded.items()},
        {name: values for r in reversed(records) for name, values in r.plain.items()},
    )


def _in_step(records: Sequence[Record]) -> bool:
    first = records[0].settings
    return all(
        len(r.settings) == len(first) and all(map(_alike, r.settings, first)) and r.kind == records[0].kind
        for r in records
    )


Groups = tuple[tuple[tuple[str, ...], ...], tuple[Mapping[str, Any], ...]]


def _joined(records: Sequence[Record]) -> Groups:
    names = zip(*(r.groups for r in records), strict=True)
    return tuple(tuple(dict.fromkeys(n for group in groups for n in group)) for groups in names), records[0].settings


def _apart(records: Sequence[Record]) -> Groups:
    known: set[str] = set()
    found: list[tuple[tuple[str, ...], Mapping[str, Any]]] = []
    for each in records:
        for group, settings in zip(each.groups, each.settings, strict=True):
            fresh = tuple(name for name in group if name not in known)
            known.update(fresh)
            found += [(fresh, settings)] if fresh else []
    return tuple(group for group, _ in found), tuple(settings for _, settings in found)


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two groups have the same settings; a learning rate may be a tensor."""

    def same(a: Any, b: Any) -> bool:
        return torch.equal(a.cpu(), b.cpu()) if isinstance(a, Tensor) and isinstance(b, Tensor) else bool(a == b)

    return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)


def tensors(optimizer: Optimizer, names: Mapping[int, str]) -> dict[tuple[str, str], Tensor]:
    """The sharded tensors of the state, by parameter and key."""
    return {
        (_name(parameter, names), key): value
        for parameter, state in _states(optimizer)
        for key, value in state.items()
        if isinstance(value, DTensor)
    }


def empty(found: Record, parameters: Mapping[str, nn.Parameter]) -> dict[tuple[str, str], Tensor]:
    """Zeros to load the sharded tensors of a record into, each cut as its parameter is here, if it is here."""
    return {
        (name, key): torch.zeros_like(parameters[name].detach(), dtype=dtype)
        for name, keys in found.sharded.items()
        if name in parameters
        for key, dtype in keys.items()
    }


def stepped(optimizer: Optimizer, names: Mapping[int, str]) -> tuple[str, ...]:
    """The parameters that the optimizer steps on this rank. Raises UsageError for one of another model."""
    return tuple(_name(p, names) for group in optimizer.param_groups for p in group["params"])


def check(found: Record, optimizer: Optimizer, names: Mapping[int, str], *, everywhere: Iterable[str]) -> None:
    """Raises RunError when the record is not of this optimizer.

    That is: one of another class, one that steps other parameters on all stages together (`everywhere`), or one that
    puts parameters in a group which had different settings.
    """
    if type(optimizer).__name__ != found.kind:
        raise RunError(
            f"the checkpoint holds the state of {found.kind}, and the optimizer is {type(optimizer).__name__}"
        )
    here, there = set(everywhere), {name for group in found.groups for name in group}
    other = sorted(here ^ there)
    if other:
        where = "only here" if other[0] in here else "only in the checkpoint"
        raise RunError(
            f"the optimizer steps other parameters than the checkpoint's: {other[0]} is {where} ({len(other)} in all)"
        )
    owner = _owner(found)
    for i, group in enumerate(optimizer.param_groups):
        mine = [_name(p, names) for p in group["params"]]
        unlike = [n for n in mine if not _alike(found.settings[owner[n]], found.settings[owner[mine[0]]])]
        if unlike:
            raise RunError(
                f"parameter group {i} holds {mine[0]} and {unlike[0]}, which have different settings in the "
                "checkpoint: put them in different groups"
            )


def restore(
    optimizer: Optimizer, found: Record, filled: Mapping[tuple[str, str], Tensor], names: Mapping[int, str]
) -> None:
    """Puts what a record and its tensors say of this rank's parameters into `optimizer`, by its own load_state_dict.

    A group takes the settings of its parameters; one without any here those of its place, if there are as many groups.
    """
    numbers: dict[str, int] = {}
    groups = []
    owner, as_many = _owner(found), len(optimizer.param_groups) == len(found.groups)
    for i, group in enumerate(optimizer.param_groups):
        owned = [_name(p, names) for p in group["params"]]
        at = owner[owned[0]] if owned else i if as_many else None
        settings = {k: v for k, v in group.items() if k not in NOT_SETTINGS} if at is None else found.settings[at]
        numbers.update(zip(owned, range(len(numbers), len(numbers) + len(owned)), strict=True))
        groups.append({**_beside(settings, group), "params": [numbers[name] for name in owned]})
    state: dict[int, dict[str, Any]] = {
        numbers[name]: dict(values) for name, values in found.plain.items() if name in numbers
    }
    for (name, key), value in filled.items():
        state[numbers[name]][key] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _owner(found: Record) -> dict[str, int]:
    """The group of each parameter."""
    return {name: i for i, group in enumerate(found.groups) for name in group}


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
