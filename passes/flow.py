"""A choice problem on a graph as a linear program: one option a node, pairs of options an edge, moves paid once.

Solved by GLOP; where the answer is fractional, HiGHS branches on the node variables.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ortools.linear_solver import pywraplp

from fourfold.hardware.errors import InfeasibleError

Pair = tuple[str, str]

LARGEST = 1e6
"""What the dearest choice costs in the solver's own unit."""


class Flow:
    """Collects nodes, edges and shared moves, then solves once."""

    def __init__(self) -> None:
        self._nodes: dict[str, dict[str, float]] = {}
        self._edges: dict[tuple[str, str, str], dict[Pair, Pair]] = {}
        self._shared: list[tuple[str, list[tuple[str, str]], dict[Pair, float]]] = []
        self._equal: list[Pair] = []

    def node(self, name: str, options: Mapping[str, float]) -> None:
        """A choice among `options`, each with its seconds."""
        self._nodes[name] = dict(options)

    def options(self, name: str) -> tuple[str, ...]:
        """The options of a node."""
        return tuple(self._nodes[name])

    def edge(self, source: str, target: str, key: str, allowed: Mapping[Pair, Pair]) -> None:
        """Allowed option pairs of an edge, each with the (made, needed) states it means."""
        self._edges[source, target, key] = dict(allowed)

    def shared(self, source: str, targets: list[tuple[str, str]], price: Mapping[Pair, float]) -> None:
        """Each (made, needed) move of a value is paid once, if any of its readers needs it."""
        if price:
            self._shared.append((source, targets, dict(price)))

    def equal(self, a: str, b: str) -> None:
        """Two nodes with the same options choose alike."""
        self._equal.append((a, b))

    def solve(self) -> tuple[dict[str, str], float]:
        """The chosen option of each node, and the total. Raises InfeasibleError when no choice is legal."""
        chosen, total, fractional = self._solve("GLOP", integer=False)
        if fractional:
            chosen, total, _ = self._solve("HIGHS", integer=True)
        return chosen, total

    def _solve(self, engine: str, *, integer: bool) -> tuple[dict[str, str], float, bool]:
        program = _Program(pywraplp.Solver.CreateSolver(engine), integer, self._unit())
        for name, options in self._nodes.items():
            program.node(name, options)
        for (source, target, key), allowed in self._edges.items():
            program.edge((source, target, key), allowed, self._nodes)
        for source, targets, price in self._shared:
            program.shared(source, targets, price, self._edges)
        for a, b in self._equal:
            for option in self._nodes[a]:
                program.row(0.0, {program.x[a, option]: 1.0, program.x[b, option]: -1.0})
        values, total = program.solve()
        chosen = {name: max(options, key=lambda o: values[name, o]) for name, options in self._nodes.items()}
        fractional = any(1e-6 < value < 1 - 1e-6 for value in values.values())
        return chosen, total, fractional

    def _unit(self) -> float:
        """Seconds that the solver counts as one: its tolerances are absolute; the dearest option is a million."""
        found = [seconds for options in self._nodes.values() for seconds in options.values()]
        found += [seconds for _, _, price in self._shared for seconds in price.values()]
        return max(found, default=0.0) / LARGEST or 1.0


class _Program:
    """The variables of one solve. Rows are set coefficient by coefficient: expressions take ten times as long."""

    def __init__(self, solver: Any, integer: bool, unit: float) -> None:
        self.solver, self.integer, self.unit = solver, integer, unit
        self.objective = solver.Objective()
        self.objective.SetMinimization()
        self.x: dict[Pair, Any] = {}
        self.e: dict[tuple[str, str, str, Pair], Any] = {}

    def solve(self) -> tuple[dict[Pair, float], float]:
        """The value of each option, and the total in seconds. Raises InfeasibleError."""
        with _quiet():
            if self.integer:
                # Left to itself, HiGHS stops within a ten-thousandth of the best.
                self.solver.SetSolverSpecificParametersAsString("mip_rel_gap=0")
            status = self.solver.Solve()
        if status not in (pywraplp.Solver.OPTIMAL, pywraplp.Solver.FEASIBLE):
            raise InfeasibleError("no assignment of cuts satisfies the rules and pins on the tensor axis")
        return {key: variable.solution_value() for key, variable in self.x.items()}, self.objective.Value() * self.unit

    def row(self, total: float, terms: Mapping[Any, float], *, least: float | None = None) -> None:
        """least <= sum of coefficient x variable <= total; equal where `least` is not given."""
        row = self.solver.Constraint(total if least is None else least, total)
        for variable, coefficient in terms.items():
            row.SetCoefficient(variable, coefficient)

    def node(self, name: str, options: Mapping[str, float]) -> None:
        """One option a node."""
        for option, seconds in options.items():
            self.x[name, option] = variable = self.solver.Var(0.0, 1.0, self.integer, "")
            self.objective.SetCoefficient(variable, seconds / self.unit)
        self.row(1.0, {self.x[name, option]: 1.0 for option in options})

    def edge(
        self, edge: tuple[str, str, str], allowed: Mapping[Pair, Pair], nodes: Mapping[str, Mapping[str, float]]
    ) -> None:
        """Pairs whose marginals are the options at both ends."""
        source, target, _ = edge
        rows = {(0, a): {self.x[source, a]: -1.0} for a in nodes[source]}
        rows |= {(1, b): {self.x[target, b]: -1.0} for b in nodes[target]}
        for pair in allowed:
            self.e[*edge, pair] = variable = self.solver.Var(0.0, 1.0, False, "")
            rows[0, pair[0]][variable] = rows[1, pair[1]][variable] = 1.0
        for terms in rows.values():
            self.row(0.0, terms)

    def shared(
        self,
        source: str,
        targets: list[tuple[str, str]],
        price: Mapping[Pair, float],
        edges: Mapping[tuple[str, str, str], Mapping[Pair, Pair]],
    ) -> None:
        """One payment a move, at least what any reader uses of it."""
        paid = {}
        for states, seconds in price.items():
            paid[states] = self.solver.Var(0.0, 1.0, False, "")
            self.objective.SetCoefficient(paid[states], seconds / self.unit)
        for target, key in targets:
            used: dict[Pair, dict[Any, float]] = {}
            for pair, states in edges[source, target, key].items():
                if states in paid:
                    used.setdefault(states, {paid[states]: -1.0})[self.e[source, target, key, pair]] = 1.0
            for terms in used.values():
                self.row(0.0, terms, least=-self.solver.infinity())


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
