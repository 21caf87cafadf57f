"""The line of pipeline stages that a rank is in, and what its ranks tell each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist


@dataclass(frozen=True, slots=True)
class Wire:
    """This rank's line of stages: global ranks in order, and the group they talk over."""

    members: tuple[int, ...]
    group: dist.ProcessGroup | None


def along(wire: Wire, value: Any) -> list[Any]:
    """What every rank of this line of stages passed, from the first stage on."""
    found: list[Any] = [value] * len(wire.members)
    if len(found) > 1:
        dist.all_gather_object(found, value, group=wire.group)
    return found
