"""Counts the collectives a piece of code runs: by process group and kind, ours and torch's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

KINDS: Mapping[str, str] = MappingProxyType(
    {
        "all_reduce": "all_reduce",
        "all_gather_into_tensor": "all_gather",
        "reduce_scatter_tensor": "reduce_scatter",
        "all_to_all_single": "all_to_all",
        "allreduce_": "all_reduce",
        "_allgather_base_": "all_gather",
        "_reduce_scatter_base_": "reduce_scatter",
        "alltoall_base_": "all_to_all",
    }
)
"""Functional and in-place forms of one collective are one kind."""


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While entered, counts each collective of eager code under (group name, kind) in `seen`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: Counter[tuple[str, str]] = Counter()

    def on(self, group: str) -> dict[str, int]:
        """How many of each kind ran on one group."""
        return {kind: n for (name, kind), n in sorted(self.seen.items()) if name == group}

    def of_step(self, group: str) -> dict[str, int]:
        """The same for one `Program.step`, less the sum of the loss over all ranks where the group is all ranks."""
        found = self.on(group)
        world = dist.group.WORLD
        if world is not None and group == world.group_name:
            found["all_reduce"] -= 1
        return {kind: n for kind, n in found.items() if n}

    def __torch_dispatch__(self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if function.namespace in ("c10d", "_c10d_functional"):
            kind = KINDS.get(function._schema.name.split("::")[1])
            if kind is not None:
                self.seen[_group(args), kind] += 1
        return function(*args, **(kwargs or {}))


def _group(args: Sequence[Any]) -> str:
    """The group's name: the functional ops' last argument; the in-place ones hold the group itself."""
    if isinstance(args[-1], str):
        return args[-1]
    for arg in args:
        if isinstance(arg, torch.ScriptObject) and "ProcessGroup" in str(arg._type()):
            return str(dist.ProcessGroup.unbox(arg).group_name)
    return ""
