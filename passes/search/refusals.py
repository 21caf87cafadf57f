"""Why a mesh was refused, and which mesh nearest to it fits."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2

from fourfold.costmodel.memory import GIB
from fourfold.ir.answer import Candidate, Refusal
from fourfold.ir.mesh import AXES, Mesh
from fourfold.ir.plan import Plan


def refusal(mesh: Mesh, lacking: Sequence[tuple[float, Plan]], ranked: Sequence[Candidate]) -> Refusal:
    """The setting of `mesh` that comes closest to fitting, and the change of degrees that fits.

    `lacking` holds the plans tried with the bytes they are short of, `ranked` the plans of other meshes that fit.
    """
    short, closest = min(lacking, key=lambda pair: pair[0])
    calls = len(closest.recompute) - closest.recompute.count("none")
    recompute = f"recompute in {calls} calls" if calls else "nothing recomputed"
    steps = f"{closest.micro_steps} micro-step" + ("s" if closest.micro_steps > 1 else "")
    zero = f"ZeRO {closest.zero}, " if mesh.pool > 1 else ""
    reason = f"{short / GIB:.1f} GiB short at best ({zero}{steps}, {recompute})"
    if not ranked:
        return Refusal(str(mesh), reason)
    nearest = min(ranked, key=lambda c: (_distance(mesh, c.plan.mesh), c.estimate.step))
    return Refusal(str(mesh), reason, ((_change(mesh, nearest.plan.mesh), nearest.estimate.step),))


def _distance(mesh: Mesh, other: Mesh) -> float:
    """How far two meshes are from each other, in factors of two over all axes."""
    return sum(abs(log2(getattr(other, axis) / getattr(mesh, axis))) for axis in AXES)


def _change(mesh: Mesh, other: Mesh) -> str:
    """The degrees that differ, data last in importance: it fills what the others leave."""
    pairs = [(axis, getattr(mesh, axis), getattr(other, axis)) for axis in AXES]
    told = [f"{axis} {a} -> {b}" for axis, a, b in pairs if a != b and axis != "dp"]
    return ", ".join(told) or "another setting"
