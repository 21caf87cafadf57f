"""What a split backward leaves for later: seconds of weight gradients, and bytes that wait for them."""

from __future__ import annotations

from dataclasses import dataclass

from fourfold.ir.states import deferrable
from fourfold.passes.price.laid import Laid, size_of
from fourfold.passes.price.seconds import Seconds


@dataclass(frozen=True, slots=True)
class Waiting:
    """Of one call in one micro-step: `seconds` of its linear layers' dW; `kept` bytes from their dx to their dW."""

    seconds: float = 0.0
    kept: float = 0.0


def waiting(laid: Laid, seconds: Seconds) -> Waiting:
    """What waits of a block: dW = dy^T x takes as long as dx; x is kept once however many layers read it."""
    made, needs = laid.states
    late = frozenset(deferrable(laid.block, needs))
    values = seconds.values[laid.block.name]
    taken = {(node.refs()[0], needs[node.name][0]) for node in laid.block.nodes if node.name in late}
    given = {(name, made[name]) for name in late}
    kept = sum(size_of(values[name], seconds.load.fullest) / laid.share(state) for name, state in taken | given)
    own = ((seconds.op(*rule, laid.block), rule[0].refs()) for rule in laid.rules if rule[0].name in late)
    return Waiting(sum(times.backward / sum(values[name].grad for name in reads) for times, reads in own), kept)
