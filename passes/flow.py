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

    def pairs(self, source: str, targets: list[tuple[str, str]]) -> tuple[Pair, ...]:
        """All (made, needed) states that occur on these edges."""
        found = (pair for t, key in targets for pair in self._edges[source, t, key].values())
        return tuple(dict.fromkeys(found))

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
        solver = pywraplp.Solver.CreateSolver(engine)
        program = _Program(solver, integer)
        for name, options in self._nodes.items():
            program.node(name, options)
        for (source, target, key), allowed in self._edges.items():
            program.edge(source, target, key, allowed, self._nodes)
        for source, targets, price in self._shared:
            program.shared(source, targets, price, self._edges)
        for a, b in self._equal:
            for option in self._nodes[a]:
                solver.Add(program.x[a, option] == program.x[b, option])
        solver.Minimize(solver.Sum(program.cost))
        with _quiet():
            status = solver.Solve()
        if status not in (pywraplp.Solver.OPTIMAL, pywraplp.Solver.FEASIBLE):
            raise InfeasibleError("no assignment of cuts satisfies the rules and pins on the tensor axis")
        values = {key: variable.solution_value() for key, variable in program.x.items()}
        chosen = {name: max(options, key=lambda o: values[name, o]) for name, options in self._nodes.items()}
        fractional = any(1e-6 < value < 1 - 1e-6 for value in values.values())
        return chosen, solver.Objective().Value() / _SCALE, fractional


_SCALE = 1e6
"""Seconds are solved as microseconds: GLOP's tolerances are absolute."""


class _Program:
    """The variables of one solve."""

    def __init__(self, solver: Any, integer: bool) -> None:
        self.solver, self.integer = solver, integer
        self.x: dict[Pair, Any] = {}
        self.e: dict[tuple[str, str, str, Pair], Any] = {}
        self.cost: list[Any] = []

    def node(self, name: str, options: Mapping[str, float]) -> None:
        make = self.solver.BoolVar if self.integer else lambda n: self.solver.NumVar(0.0, 1.0, n)
        for option, seconds in options.items():
            self.x[name, option] = make("")
            if seconds:
                self.cost.append(self.x[name, option] * (seconds * _SCALE))
        self.solver.Add(self.solver.Sum([self.x[name, o] for o in options]) == 1)

    def edge(self, source: str, target: str, key: str, allowed: Mapping[Pair, Pair], nodes: Mapping[str, Mapping[str, float]]) -> None:
        found = {pair: self.solver.NumVar(0.0, 1.0, "") for pair in allowed}
        for a in nodes[source]:
            self.solver.Add(self.solver.Sum([v for p, v in found.items() if p[0] == a]) == self.x[source, a])
        for b in nodes[target]:
            self.solver.Add(self.solver.Sum([v for p, v in found.items() if p[1] == b]) == self.x[target, b])
        self.e.update({(source, target, key, pair): v for pair, v in found.items()})

    def shared(
        self,
        source: str,
        targets: list[tuple[str, str]],
        price: Mapping[Pair, float],
        edges: Mapping[tuple[str, str, str], Mapping[Pair, Pair]],
    ) -> None:
        for states, seconds in price.items():
            paid = self.solver.NumVar(0.0, 1.0, "")
            for target, key in targets:
                terms = [self.e[source, target, key, p] for p, s in edges[source, target, key].items() if s == states]
                if terms:
                    self.solver.Add(self.solver.Sum(terms) <= paid)
            self.cost.append(paid * (seconds * _SCALE))


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
