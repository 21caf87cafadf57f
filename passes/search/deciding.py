"""What a pass is to a search: one decision, made the way that is best by itself, or every way there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from fourfold.ir.plan import Decision, Plan

Watch = Callable[[str, Plan], None]
"""Called with the name of a pass and the plan it made: the one way to look into a search."""


class Pass(Protocol):
    """One decision: a plan in, the plan with that decision out."""

    def __call__(self, plan: Plan) -> Plan: ...

    def every(self, plan: Plan) -> Iterable[Plan]:
        """The plan with each way to decide: for graphs so small that all can be priced."""
        ...

    def decisions(self, plan: Plan) -> Iterable[Decision]:
        """For the log of a finished plan: what was chosen, over what."""
        ...


def unwatched(name: str, plan: Plan) -> None:
    """Looks at nothing."""
