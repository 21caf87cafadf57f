"""A choice problem on a graph as a linear program: one option a node, pairs of options an edge, moves paid once.

Solved by GLOP; where the answer is fractional, HiGHS branches on the node variables.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ortools.linear_solver import pywraplp

from fourfold.hardware.errors import InfeasibleError

Pair = tuple[str, str]

LARGEST = 1e6
"""What the dearest choice costs in the solver's own unit."""


class Flow:
    """Collects nodes, edges and shared moves once; then solves as often as asked, each time under other prices."""

    def __init__(self) -> None:
        self.nodes: dict[str, tuple[str, ...]] = {}
        self.edges: dict[tuple[str, str, str], dict[Pair, Pair]] = {}
        self.moves: list[tuple[str, list[tuple[str, str]], tuple[Pair, ...]]] = []
        self.alike: list[Pair] = []
        self._built: _Program | None = None

    def node(self, name: str, options: Iterable[str]) -> None:
        """A choice among `options`."""
        self.nodes[name] = tuple(options)

    def edge(self, source: str, target: str, key: str, allowed: Mapping[Pair, Pair]) -> None:
        """Allowed option pairs of an edge, each with the (made, needed) states it means."""
        self.edges[source, target, key] = dict(allowed)

    def shared(self, source: str, targets: list[tuple[str, str]], moves: Iterable[Pair]) -> None:
        """Each (made, needed) move of a value is paid once, if any of its readers needs it."""
        self.moves.append((source, targets, tuple(moves)))

    def equal(self, a: str, b: str) -> None:
        """Two nodes with the same options choose alike."""
        self.alike.append((a, b))

    def solve(self, prices: Tariff) -> tuple[dict[str, str], float]:
        """The chosen option of each node, and the total. Raises InfeasibleError when no choice is legal."""
        if self._built is None:
            self._built = _Program(self, "GLOP", integer=False)
        chosen, total, fractional = self._built.solve(prices)
        if fractional:
            chosen, total, _ = _Program(self, "HIGHS", integer=True).solve(prices)
        return chosen, total


@dataclass(frozen=True, slots=True)
class Tariff:
    """Seconds of each node's options, and of each move of a flow's `moves`, in their order; others are free."""

    nodes: Mapping[str, Mapping[str, float]]
    moves: Sequence[Mapping[Pair, float]]

    @property
    def unit(self) -> float:
        """Seconds that the solver counts as one: its tolerances are absolute; the dearest option is a million."""
        options = [seconds for table in self.nodes.values() for seconds in table.values()]
        moves = [seconds for table in self.moves for seconds in table.values()]
        return max((*options, *moves), default=0.0) / LARGEST or 1.0


class _Program:
    """The variables of one flow. Rows are set coefficient by coefficient: expressions take ten times as long."""

    def __init__(self, flow: Flow, engine: str, *, integer: bool) -> None:
        self.solver, self.integer, self.nodes = pywraplp.Solver.CreateSolver(engine), integer, flow.nodes
        self.objective = self.solver.Objective()
        self.objective.SetMinimization()
        self.x: dict[Pair, Any] = {}
        self.e: dict[tuple[str, str, str, Pair], Any] = {}
        self.m: list[dict[Pair, Any]] = []
        for name, options in flow.nodes.items():
            self.node(name, options)
        for edge, allowed in flow.edges.items():
            self.edge(edge, allowed)
        for source, targets, moves in flow.moves:
            self.shared(source, targets, moves, flow.edges)
        for a, b in flow.alike:
            for option in flow.nodes[a]:
                self.row(0.0, {self.x[a, option]: 1.0, self.x[b, option]: -1.0})

    def solve(self, prices: Tariff) -> tuple[dict[str, str], float, bool]:
        """The chosen option of each node, the total in seconds, and whether some are only partly chosen.

        Begun anew each time, so that what was solved before does not tell which of equally good answers is found.
        Raises InfeasibleError.
        """
        unit = prices.unit
        for (name, option), variable in self.x.items():
            self.objective.SetCoefficient(variable, prices.nodes.get(name, {}).get(option, 0.0) / unit)
        for paid, seconds in zip(self.m, prices.moves, strict=True):
            for states, variable in paid.items():
                self.objective.SetCoefficient(variable, seconds[states] / unit)
        with _quiet():
            if self.integer:
                # Left to itself, HiGHS stops within a ten-thousandth of the best.
                self.solver.SetSolverSpecificParametersAsString("mip_rel_gap=0")
            status = self.solver.Solve(_anew())
        if status not in (pywraplp.Solver.OPTIMAL, pywraplp.Solver.FEASIBLE):
            raise InfeasibleError("no assignment of cuts satisfies the rules and pins on the tensor axis")
        values = {key: variable.solution_value() for key, variable in self.x.items()}
        chosen = {name: max(options, key=lambda o: values[name, o]) for name, options in self.nodes.items()}
        fractional = any(1e-6 < value < 1 - 1e-6 for value in values.values())
        return chosen, self.objective.Value() * unit, fractional

    def row(self, total: float, terms: Mapping[Any, float], *, least: float | None = None) -> None:
        """least <= sum of coefficient x variable <= total; equal where `least` is not given."""
        row = self.solver.Constraint(total if least is None else least, total)
        for variable, coefficient in terms.items():
            row.SetCoefficient(variable, coefficient)

    def node(self, name: str, options: Iterable[str]) -> None:
        """One option a node."""
        for option in options:
            self.x[name, option] = self.solver.Var(0.0, 1.0, self.integer, "")
        self.row(1.0, {self.x[name, option]: 1.0 for option in options})

    def edge(self, edge: tuple[str, str, str], allowed: Mapping[Pair, Pair]) -> None:
        """Pairs whose marginals are the options at both ends."""
        source, target, _ = edge
        rows = {(0, a): {self.x[source, a]: -1.0} for a in self.nodes[source]}
        rows |= {(1, b): {self.x[target, b]: -1.0} for b in self.nodes[target]}
        for pair in allowed:
            self.e[*edge, pair] = variable = self.solver.Var(0.0, 1.0, False, "")
            rows[0, pair[0]][variable] = rows[1, pair[1]][variable] = 1.0
        for terms in rows.values():
            self.row(0.0, terms)

    def shared(
        self,
        source: str,
        targets: list[tuple[str, str]],
        moves: Iterable[Pair],
        edges: Mapping[tuple[str, str, str], Mapping[Pair, Pair]],
    ) -> None:
        """One payment a move, at least what any reader uses of it."""
        paid = {states: self.solver.Var(0.0, 1.0, False, "") for states in moves}
        self.m.append(paid)
        for target, key in targets:
            used: dict[Pair, dict[Any, float]] = {}
            for pair, states in edges[source, target, key].items():
                if states in paid:
                    used.setdefault(states, {paid[states]: -1.0})[self.e[source, target, key, pair]] = 1.0
            for terms in used.values():
                self.row(0.0, terms, least=-self.solver.infinity())


def _anew() -> Any:
    """Parameters of a solve that does not go on from the last."""
    parameters = pywraplp.MPSolverParameters()
    parameters.SetIntegerParam(parameters.INCREMENTALITY, parameters.INCREMENTALITY_OFF)
    return parameters


@contextmanager
def _quiet() -> Iterator[None]:
    """HiGHS prints a banner to the process's standard output on every solve."""
    sys.stdout.flush()
    saved, sink = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(sink)
