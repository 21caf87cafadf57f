"""Times collectives over groups of neighbours, all groups of a size at once, as the ranks of a mesh run them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch
import torch.distributed as dist
from torch import Tensor

from fourfold.backends.calibrate.ask import Ask
from fourfold.backends.calibrate.clock import Clock
from fourfold.hardware.machine import Anchors, Overlap

ops = torch.ops._c10d_functional
OPS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
LATE = (2**10, 2**16, 2**20)
"""Messages by which lateness is told."""
PRODUCTS, ROUNDS = 5, 6
"""Products of a rank between two collectives, and how often both follow each other in one timing."""
IN_FLIGHT = 4
"""Collectives that run beside products, one after the other."""


@dataclass(frozen=True, slots=True)
class Group:
    """One process group of this rank, its size, and the device its messages lie on.

    late: seconds the last rank comes after the others where ranks that compute take turns on the cores.
    """

    group: dist.ProcessGroup
    size: int
    device: torch.device
    late: float = 0.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one rank saw: times of collectives by group as the wall shows them, and what they cost beside products.

    worked: processor seconds of this rank in place of the wall's; on a GPU the same as `anchors`.
    """

    anchors: tuple[Anchors, ...]
    worked: tuple[Anchors, ...]
    overlap: Overlap


def collectives(ask: Ask, rank: int) -> Traffic:
    """Every group size, op and message size, and the overlap over all ranks."""
    device = ask.place(rank)
    groups = tuple(_groups(ask, rank, device))
    pairs = [pair for group in groups for pair in _anchors(ask, group)]
    walls, worked = (tuple(pair[which] for pair in pairs) for which in (0, 1))
    return Traffic(walls, worked, _overlap(ask, groups[-1]) if groups else Overlap())


def _groups(ask: Ask, rank: int, device: torch.device) -> Iterator[Group]:
    """This rank's group of each size; every rank makes all of them, in one order."""
    backend = "nccl" if ask.on_gpu else "gloo"
    for size in ask.groups:
        for first in range(0, ask.ranks, size):
            members = list(range(first, first + size))
            made = dist.new_group(members, backend=backend)
            if rank in members and isinstance(made, dist.ProcessGroup):
                mine = made
        group = Group(mine, size, device)
        yield group if ask.on_gpu else replace(group, late=_late(group))


def _late(group: Group) -> float:
    """What a collective adds to a program that computes before it, beyond its own time; the middle of three sizes."""
    found = []
    for size in LATE:
        call = _call("all_reduce", size, group)
        own = _in_a_row(group, (call,), 2 * ROUNDS)
        alone = median(_in_a_row(group, (_compute,), ROUNDS) for _ in range(3))
        found.append(median(_in_a_row(group, (_compute, call), ROUNDS) for _ in range(4)) - alone - own)
    return max(0.0, median(found))


def _compute() -> None:
    """A few milliseconds of what a rank does between two collectives."""
    a = torch.ones(256, 256)
    for _ in range(PRODUCTS):
        a @ a


def _in_a_row(group: Group, works: Sequence[Callable[[], object]], times: int) -> float:
    """Mean seconds of the works one after the other, all ranks starting together."""
    dist.barrier(group.group)
    started = time.perf_counter()
    for _ in range(times):
        for work in works:
            work()
    return (time.perf_counter() - started) / times


def _anchors(ask: Ask, group: Group) -> Iterator[tuple[Anchors, Anchors]]:
    for op in OPS[:3] if ask.quick else OPS:
        timed = [(float(size), *_seconds(ask, group, _call(op, size, group), size)) for size in ask.messages]
        walls = tuple((size, wall) for size, wall, _ in timed)
        yield (
            Anchors(op, group.size, 1, walls),
            Anchors(op, group.size, 1, tuple((size, own) for size, _, own in timed)),
        )


def _call(op: str, size: int, group: Group) -> Callable[[], object]:
    """One collective on `size` bytes, counted as the cost model counts them, as the program issues it."""
    elements = max(group.size, size // 4)
    elements -= elements % group.size
    whole = torch.randn(elements, device=group.device)
    part, name = whole[: elements // group.size].clone(), group.group.group_name
    rows = [elements // group.size] * group.size
    calls: dict[str, Callable[[], Tensor]] = {
        "all_reduce": lambda: ops.all_reduce(whole, "sum", name),
        "all_gather": lambda: ops.all_gather_into_tensor(part, group.size, name),
        "reduce_scatter": lambda: ops.reduce_scatter_tensor(whole, "sum", group.size, name),
        "all_to_all": lambda: ops.all_to_all_single(whole, rows, rows, name),
    }
    return lambda: ops.wait_tensor(calls[op]())


def _seconds(ask: Ask, group: Group, call: Callable[[], object], size: int) -> tuple[float, float]:
    """The median time of a collective by the wall, and this rank's processor time; on a GPU its own clock for both.

    Every rank makes the same number of calls, so that none waits for one that never comes.
    """
    if group.device.type == "cuda":
        rounds = 4 if size > 2**26 else 8
        seconds = Clock(group.device, least=rounds, budget=0.0).queued(call)
        return seconds, seconds
    rounds = (ROUNDS if size > 2**20 else 2 * ROUNDS) * (1 if ask.quick else 4)
    call()
    dist.barrier(group.group)
    found, used = [], time.process_time()
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return median(found) + group.late, (time.process_time() - used) / rounds


def _overlap(ask: Ask, group: Group) -> Overlap:
    """How much longer products and collectives take while both run, over all ranks; 1.0 is not at all."""
    side, size = (8192, 2**29) if ask.on_gpu else (512, 2**23)
    kind = torch.bfloat16 if ask.on_gpu else torch.float32
    a, b = (torch.randn(side, side, device=group.device).to(kind) for _ in range(2))
    message = torch.randn(size // 4, device=group.device)

    def product() -> None:
        a @ b
        if group.device.type == "cuda":
            # Not the device: that would wait for the collectives beside it, too.
            torch.cuda.current_stream(group.device).synchronize()

    def messages() -> list[dist.Work]:
        works = [dist.all_reduce(message, group=group.group, async_op=True) for _ in range(IN_FLIGHT)]
        return [work for work in works if work is not None]

    product()
    alone = _wall(group, product, 4) / 4
    sent = _wall(group, lambda: [work.wait() for work in messages()], 1)
    found = [_both(group, product, messages) for _ in range(3)]
    return Overlap(
        compute_slowdown=_agreed(median(each for each, _ in found) / alone, group),
        collective_slowdown=_agreed(median(total for _, total in found) / sent, group),
    )


def _both(group: Group, product: Callable[[], None], messages: Callable[[], list[dist.Work]]) -> tuple[float, float]:
    """Seconds of one product while collectives run, and of all the collectives."""
    dist.barrier(group.group)
    _finish(group.device)
    started = time.perf_counter()
    works, count = messages(), 0
    while not works[-1].is_completed():
        product()
        count += 1
    total = time.perf_counter() - started
    for work in works:
        work.wait()
    return total / max(1, count), total


def _wall(group: Group, work: Callable[[], object], times: int) -> float:
    """Seconds of `times` runs, all ranks starting together, after one that warms up."""
    work()
    dist.barrier(group.group)
    _finish(group.device)
    started = time.perf_counter()
    for _ in range(times):
        work()
    _finish(group.device)
    return time.perf_counter() - started


def _agreed(ratio: float, group: Group) -> float:
    """The mean over all ranks, at least 1."""
    told = torch.tensor([ratio], device=group.device)
    dist.all_reduce(told, group=group.group)
    return max(1.0, float(told) / group.size)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
