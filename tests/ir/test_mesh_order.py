"""The mesh in every order of its axes, against a grid numbered by brute force."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product

import pytest

from fourfold.ir.mesh import AXES, Mesh

ORDERS = [order for order in permutations(AXES) if order.index("dp") < order.index("sp")]
DEGREES = {"pp": 2, "dp": 3, "sp": 2, "tp": 4}


def numbered(order: tuple[str, ...]) -> dict[tuple[int, ...], int]:
    """The rank at each place (pp, dp, sp, tp): counted with the last axis of the order fastest."""
    found = {}
    for rank, place in enumerate(product(*(range(DEGREES[axis]) for axis in order))):
        found[tuple(place[order.index(axis)] for axis in AXES)] = rank
    return found


@pytest.mark.parametrize("order", ORDERS)
def test_groups_and_places_are_those_of_the_grid(order: tuple[str, ...]) -> None:
    mesh, grid = Mesh(**DEGREES, order=order), numbered(order)
    for axis in (*AXES, "pool"):
        along = ("dp", "sp") if axis == "pool" else (axis,)
        lines: dict[tuple[int, ...], list[int]] = {}
        for place, rank in sorted(grid.items()):
            others = tuple(at for name, at in zip(AXES, place, strict=True) if name not in along)
            lines.setdefault(others, []).append(rank)
            inside = [at for name, at in zip(AXES, place, strict=True) if name in along]
            assert mesh.place(rank, axis) == (inside[0] * DEGREES["sp"] + inside[1] if axis == "pool" else inside[0])
        assert mesh.groups(axis) == sorted(lines.values())
        assert list(mesh.group(axis)) == lines[(0,) * (4 - len(along))]
        # A process group sorts its ranks: place and rank must ascend together.
        assert all(line == sorted(line) for line in lines.values())


def test_the_usual_order_has_tensor_ranks_as_neighbours() -> None:
    mesh = Mesh(dp=3, tp=4, pp=2, sp=2)
    assert mesh.group("tp") == (0, 1, 2, 3) and mesh.group("sp") == (0, 4) and mesh.group("pp") == (0, 24)
    assert mesh.group("pool") == (0, 4, 8, 12, 16, 20) and str(mesh) == "pp2 x dp3 x sp2 x tp4"


def test_only_used_axes_tell_orders_apart() -> None:
    mesh = Mesh(dp=2, tp=2)
    assert mesh.ordered(("dp", "tp")) == mesh == mesh.ordered(AXES)
    other = mesh.ordered(("tp", "dp"))
    assert other != mesh and str(other) == "tp2 x dp2" and other.group("dp") == (0, 1) and other.group("tp") == (0, 2)
    assert other == mesh.ordered(("tp", "pp", "dp", "sp")) and replace(other, order=AXES) == mesh
