"""Which calls keep what their backward needs, and which compute it again, under the memory bound (CP-SAT)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ortools.sat.python import cp_model

from fourfold.ir.graph import Graph
from fourfold.ir.plan import RECOMPUTE
from fourfold.passes.work import BlockWork

NANOSECOND = 1e9
MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True)
class ChooseRecompute:
    """Decides the recompute mode of every call.

    Given: the work of each block and `room`, the bytes activations may take. Minimises: seconds replayed in one
    micro-step. Subject to: sum of kept bytes + the largest replayed block <= room. Equal calls are counted, not named:
    one integer a block and mode. Source: Checkmate (arXiv 1910.02653) on whole blocks; regions as in design of the
    attention-output-keeping recompute of Megatron-LM (arXiv 2205.05198).
    """

    work: Mapping[str, BlockWork]
    room: float
    only: str | None = None

    def __call__(self, graph: Graph) -> tuple[str, ...] | None:
        """One mode a call, in order; None when not even "full" everywhere fits."""
        counts = graph.counts
        model = cp_model.CpModel()
        many: dict[tuple[str, str], cp_model.IntVar] = {}
        for block, count in counts.items():
            for mode in RECOMPUTE:
                top = count if self._allowed(block, mode, graph) else 0
                many[block, mode] = model.new_int_var(0, top, f"{block} {mode}")
            model.add(sum(many[block, mode] for mode in RECOMPUTE) == count)
        replayed = model.new_int_var(0, 2**50, "replayed")
        for (block, mode), number in many.items():
            if mode != "none":
                used = model.new_bool_var("")
                model.add(number <= counts[block] * used)
                model.add(replayed >= self._mib(block, "none") * used)
        kept = sum(number * self._mib(block, mode) for (block, mode), number in many.items())
        model.add(kept + replayed <= max(0, int(self.room // MEBIBYTE)))
        model.minimize(sum(number * self._nanoseconds(block, mode) for (block, mode), number in many.items()))
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.max_deterministic_time = 1.0
        if solver.solve(model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return None
        left = {key: solver.value(number) for key, number in many.items()}
        return tuple(_take(left, call.block) for call in graph.calls)

    def _allowed(self, block: str, mode: str, graph: Graph) -> bool:
        """Recompute is for blocks with attention; a forced mode leaves no choice there."""
        mixes = any(node.op == "attention" for node in graph.blocks[block].nodes)
        if not mixes:
            return mode == "none"
        return self.only is None or mode == self.only

    def _mib(self, block: str, mode: str) -> int:
        return int(-(-self.work[block].kept[mode] // MEBIBYTE))

    def _nanoseconds(self, block: str, mode: str) -> int:
        again = self.work[block].replay(mode)
        return int((again.forward + again.backward) * NANOSECOND)


def _take(left: dict[tuple[str, str], int], block: str) -> str:
    """The next mode of a block's calls: those that keep least come first, where activations wait longest."""
    for mode in reversed(RECOMPUTE):
        if left[block, mode]:
            left[block, mode] -= 1
            return mode
    raise AssertionError(f"more calls of {block} than modes")
