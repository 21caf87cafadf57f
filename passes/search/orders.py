"""The orders of a mesh's axes that differ in what lies inside a node: by the links that its groups cross."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

from fourfold.hardware.machine import Crossing
from fourfold.hardware.topology import Machine
from fourfold.ir.mesh import Mesh
from fourfold.passes.price.pipelined import neighbours

Links = tuple[Crossing, ...]
"""What the groups of each kind cross: all of a price that an order decides."""


def orders(mesh: Mesh, machine: Machine) -> Iterator[Mesh]:
    """The mesh in every other order whose groups cross other links; none on one node.

    Sequence lies inside data. Groups are those that are priced: along tensor and sequence, neighbouring stages, pools.
    """
    if machine.nodes == 1:
        return
    seen = {links(mesh, machine)}
    for axes in permutations(mesh.used):
        if "sp" in axes and "dp" in axes and axes.index("sp") < axes.index("dp"):
            continue
        other = mesh.ordered(axes)
        if other != mesh and links(other, machine) not in seen:
            seen.add(links(other, machine))
            yield other


def links(mesh: Mesh, machine: Machine) -> Links:
    """What each group crosses that a price asks for."""
    groups = (mesh.group("tp"), mesh.group("sp"), mesh.group("pool"), neighbours(mesh, machine))
    return tuple(machine.crossing(group) for group in groups)
