"""The meshes worth pricing: every factorisation of the ranks into data, tensor, pipeline and sequence degrees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fourfold.hardware.errors import UsageError
from fourfold.ir.mesh import AXES, Mesh
from fourfold.ir.plan import Plan
from fourfold.passes.search.pins import number, pinned_order

LEAST_SHARE = 8
"""Buckets of tokens that a rank should have of the longest sequence before several share it."""
WIDEST = 64
"""Tensor ranks beyond which nothing is gained: collectives of small parts over many nodes."""


def meshes(plan: Plan, ranks: int) -> Iterator[Mesh]:
    """Every dp x tp x pp x sp = ranks that the model and the workload could use, pins respected.

    Not more pipeline stages than layers, not more sequence ranks than its longest sequence feeds, not more data ranks
    than there are sequences; what is pinned is not held to that. Raises UsageError when the pins cannot fill the ranks.
    """
    yield from _filled(plan, ranks, _most(plan))


def every_mesh(plan: Plan, ranks: int) -> Iterator[Mesh]:
    """Every factorisation that could be run: a call for each stage, a bucket of tokens for each sequence rank."""
    feed = max(1, plan.workload.longest // plan.bucket)
    yield from _filled(plan, ranks, {"dp": ranks, "tp": ranks, "pp": len(plan.graph.calls), "sp": feed})


def _filled(plan: Plan, ranks: int, most: Mapping[str, int]) -> Iterator[Mesh]:
    pins = plan.pins
    degrees = [n for n in range(1, ranks + 1) if ranks % n == 0]
    wanted = {axis: number(pins, axis) for axis in ("dp", "tp", "pp", "sp")}
    found = False
    for tp, pp, sp in _products(degrees, ranks):
        mesh = Mesh(dp=ranks // (tp * pp * sp), tp=tp, pp=pp, sp=sp).ordered(pinned_order(pins) or AXES)
        if any(wanted[axis] not in (None, getattr(mesh, axis)) for axis in wanted):
            continue
        if all(wanted[axis] is not None or getattr(mesh, axis) <= most[axis] for axis in wanted):
            found = True
            yield mesh
    if not found:
        raise UsageError(_unfilled(pins, ranks, degrees))


def layers(plan: Plan) -> int:
    """Calls that hold attention: what a pipeline can be cut between."""
    blocks = plan.graph.blocks
    mixing = {name for name, block in blocks.items() if any(node.op == "attention" for node in block.nodes)}
    return sum(call.block in mixing for call in plan.graph.calls)


def _most(plan: Plan) -> Mapping[str, int]:
    workload = plan.workload
    feed = workload.longest // (LEAST_SHARE * plan.bucket)
    return {"dp": max(1, workload.sequences), "tp": WIDEST, "pp": max(1, layers(plan)), "sp": max(1, feed)}


def _products(degrees: list[int], ranks: int) -> Iterator[tuple[int, int, int]]:
    for tp in degrees:
        for pp in degrees:
            for sp in degrees:
                if ranks % (tp * pp * sp) == 0:
                    yield tp, pp, sp


def _unfilled(pins: Mapping[str, str | int], ranks: int, degrees: list[int]) -> str:
    pinned = " x ".join(f"{axis}{pins[axis]}" for axis in ("dp", "tp", "pp", "sp") if axis in pins)
    if not pinned:
        return f"no mesh of {ranks} ranks is left that the model and the workload can use; use fewer ranks"
    rest = " x ".join(axis for axis in ("dp", "tp", "pp", "sp") if axis not in pins)
    return f"{pinned} does not fill {ranks} ranks; each degree may be {_words(degrees)}" + (
        f", and {rest} must give the rest" if rest else ""
    )


def _words(degrees: list[int]) -> str:
    texts = [str(n) for n in degrees]
    return f"{', '.join(texts[:-1])} or {texts[-1]}" if len(texts) > 1 else texts[0]
