"""Compute orders against those of torch.distributed.pipelining, without a process group."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
from torch.distributed.pipelining import schedules as torch_schedules

from fourfold.ir.schedule import Schedule
from fourfold.passes.schedule.gpipe import gpipe
from fourfold.passes.schedule.interleaved import interleaved
from fourfold.passes.schedule.one_f_one_b import one_f_one_b
from fourfold.passes.schedule.zero_bubble import zero_bubble

SIZES = [(p, m) for p in (1, 2, 3, 4, 8) for m in (1, 2, 3, 4, 6, 8, 12, 16)]


def computes(order: list[Any]) -> list[str]:
    """The forwards and backwards of a line of torch's, as our text."""
    return [str(action) for action in order if action is not None and str(action)[-1].isdigit()]


def ours(schedule: Schedule) -> dict[int, list[str]]:
    return {rank: list(map(str, line)) for rank, line in enumerate(schedule.lines)}


def executed(kind: Any, p: int, m: int) -> dict[int, list[str]]:
    """What torch's step of one stage a rank runs on a stage that only notes it, rank by rank."""
    lines = {}
    for rank in range(p):
        line: list[str] = []
        lines[rank] = line
        step = Mock(_n_microbatches=m, _num_stages=p)
        step._check_inputs.return_value = ([()] * m, [{}] * m)
        stage = step._stage
        stage.stage_index = rank
        stage.forward_one_chunk = lambda k, *_, line=line, rank=rank, **__: line.append(f"{rank}F{k}")
        stage.backward_one_chunk = lambda k, *_, line=line, rank=rank, **__: line.append(f"{rank}B{k}")
        for name in ("get_fwd_recv_ops", "get_fwd_send_ops", "get_bwd_recv_ops", "get_bwd_send_ops"):
            getattr(stage, name).return_value = []
        kind._step_microbatches(step)
    return lines


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_gpipe(p: int, m: int) -> None:
    assert ours(gpipe(p, m)) == executed(torch_schedules.ScheduleGPipe, p, m)


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_1f1b(p: int, m: int) -> None:
    assert ours(one_f_one_b(p, m)) == executed(torch_schedules.Schedule1F1B, p, m)


@pytest.mark.parametrize("v", [1, 2, 3, 4])
@pytest.mark.parametrize(("p", "m"), [(p, m) for p, m in SIZES if m % max(1, m // p) == 0])
def test_interleaved(p: int, m: int, v: int) -> None:
    """Wherever torch takes the sizes: the micro-steps are a multiple of the rounds."""
    rounds = max(1, m // p)
    made = Mock(
        n_local_stages=v,
        microbatches_per_round=m // rounds,
        pp_group_size=p,
        _n_microbatches=m,
        number_of_rounds=rounds,
    )
    method = torch_schedules.ScheduleInterleaved1F1B._calculate_single_rank_operations
    assert ours(interleaved(p, m, v)) == {rank: computes(method(made, rank)) for rank in range(p)}


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_zero_bubble(p: int, m: int) -> None:
    """Torch's interleaved zero-bubble with one stage a rank."""
    rounds = max(1, m // p)
    made = Mock(n_local_stages=1, microbatches_per_round=m // rounds, pp_group_size=p, _n_microbatches=m)
    method = torch_schedules.ScheduleInterleavedZeroBubble._calculate_single_rank_operations
    assert ours(zero_bubble(p, m)) == {rank: computes(method(made, rank)) for rank in range(p)}
