"""Every move of the table on simulated ranks: the value arrives in its state, the gradient in the dual one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fourfold.ir.conversion import Move, conversion, convertible
from fourfold.ir.rule import State

Parts = list[Tensor]
STATES = ("R", "Q", "P", "S0", "S1", "S2")
PAIRS = [(a, b) for a in STATES for b in STATES if a != b and convertible(State.parse(a), State.parse(b))]
DUAL = {"S": "S", "R": "R", "Q": "P", "P": "R"}
SHAPE = (6, 12, 6)


def gathered(parts: Parts, move: Move) -> Parts:
    return [torch.cat(parts, move.dim)] * len(parts)


def scattered(parts: Parts, move: Move) -> Parts:
    return list(torch.stack(parts).sum(0).chunk(len(parts), move.dim))


def exchanged(parts: Parts, move: Move) -> Parts:
    return list(torch.cat(parts, move.dim).chunk(len(parts), move.to))


MOVES: dict[str, Callable[[Parts, Move], Parts]] = {
    "all_gather": gathered,
    "reduce_scatter": scattered,
    "all_to_all": exchanged,
    "all_reduce": lambda parts, move: [torch.stack(parts).sum(0)] * len(parts),
    "slice": lambda parts, move: [p.chunk(len(parts), move.dim)[r] for r, p in enumerate(parts)],
    "scale": lambda parts, move: [p / len(parts) for p in parts],
    "keep": lambda parts, move: parts,
}


def spread(x: Tensor, state: State, n: int) -> Parts:
    """What each rank holds of `x` in `state`."""
    if state.kind == "S":
        return list(x.chunk(n, state.dim))
    if state.kind != "P":
        return [x] * n
    parts = [torch.randn_like(x) for _ in range(n - 1)]
    return [*parts, x - sum(parts)]


def joined(parts: Parts, state: State) -> Parts:
    """The whole value, as every rank that holds it says."""
    if state.kind == "S":
        return [torch.cat(parts, state.dim)]
    return [torch.stack(parts).sum(0)] if state.kind == "P" else parts


def dual(state: State) -> State:
    return State(DUAL[state.kind], state.dim)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize(("made", "needed"), PAIRS)
def test_a_value_and_its_gradient_arrive(made: str, needed: str, n: int) -> None:
    torch.manual_seed(0)
    a, b = State.parse(made), State.parse(needed)
    change = conversion(a, b)
    assert change is not None
    x, gradient = torch.randn(SHAPE, dtype=torch.float64), torch.randn(SHAPE, dtype=torch.float64)
    forward = MOVES[change.forward.op](spread(x, a, n), change.forward)
    assert all(torch.allclose(found, x) for found in joined(forward, b))
    backward = MOVES[change.backward.op](spread(gradient, dual(b), n), change.backward)
    assert all(torch.allclose(found, gradient) for found in joined(backward, dual(a)))


def test_a_wrong_move_is_seen() -> None:
    """The test's own test: a sum left undone does not join to the whole."""
    x = torch.randn(SHAPE, dtype=torch.float64)
    kept = MOVES["keep"](spread(x, State("P"), 2), Move("keep"))
    assert not all(torch.allclose(found, x) for found in joined(kept, State("R")))


@pytest.mark.parametrize("state", STATES)
def test_nothing_moves_where_the_state_is_right(state: str) -> None:
    assert conversion(State.parse(state), State.parse(state)) is None


@pytest.mark.parametrize(("made", "needed"), [("S0", "P"), ("Q", "P"), ("Q", "R"), ("Q", "S0")])
def test_what_has_no_move_is_refused(made: str, needed: str) -> None:
    assert not convertible(State.parse(made), State.parse(needed))
    with pytest.raises(ValueError, match=f"no conversion from {made} to {needed}"):
        conversion(State.parse(made), State.parse(needed))


def test_local_moves_cross_no_link() -> None:
    local = {name for name in MOVES if Move(name).local}
    assert local == {"slice", "scale", "keep"}
