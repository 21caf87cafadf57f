"""State-aware 1F1B: chunks of long sequences beside whole micro-steps, the keys of a sequence kept, activations not."""

from __future__ import annotations

from collections.abc import Sequence

from fourfold.ir.schedule import Action, Schedule, ScheduleError


def state_aware(ranks: int, chains: Sequence[Sequence[int]], retained: int) -> Schedule:
    """1F1B over chunks: those of a chain forward in order, backward in reverse, with the last `retained` kept.

    chains: micro-steps, each in one chain, which is run before the next; a chain of one is a micro-step by itself. The
    chunks before the last `retained` run forward as N, and again right before their backward, under which a pipeline
    waits for the gradient anyhow. A stage holds at most retained + p - 1 - s micro-steps, and runs as many forwards
    ahead of a backward as 1F1B, if the chain is not longer. With equal chunks, one chain first, the bubble is that of
    1F1B; between two chains the pipeline drains in part, as a stage begins the second when it is done with the keys of
    the first, but for p - 1 - s chunks.
    Source: ChunkFlow (arXiv 2503.02356), algorithm 2 and its 1F1B; here chunks run again in reverse, as gradients of
    keys need, and a chain's backwards stay together.
    Raises ScheduleError where micro-steps are not each in one chain, or none is retained.
    """
    steps = [step for chain in chains for step in chain]
    if retained < 1 or sorted(steps) != list(range(len(steps))):
        raise ScheduleError(
            f"chains of micro-steps {[list(chain) for chain in chains]} with {retained} retained: each micro-step is "
            "in one chain, and at least 1 chunk is retained"
        )
    again = dropped(chains, retained)
    return Schedule.of([_line(stage, ranks - 1 - stage, chains, again) for stage in range(ranks)])


def dropped(chains: Sequence[Sequence[int]], retained: int) -> frozenset[int]:
    """The micro-steps whose activations are not kept from their first forward."""
    return frozenset(step for chain in chains for step in chain[: max(0, len(chain) - retained)])


def _line(stage: int, ahead: int, chains: Sequence[Sequence[int]], again: frozenset[int]) -> list[Action]:
    """A stage runs `ahead` forwards more than the last one before the same backward."""
    forward = [Action(stage, "N" if step in again else "F", step) for chain in chains for step in chain]
    line: list[Action] = []
    begun = ended = 0
    for chain in chains:
        ended += len(chain)
        line += forward[begun : ended + ahead]
        begun = min(len(forward), ended + ahead)
        for step in reversed(chain):
            line += [Action(stage, kind, step) for kind in (("F", "B") if step in again else ("B",))]
    return line
