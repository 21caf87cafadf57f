"""The terms of a static plan: what its micro-steps take at least."""

from __future__ import annotations

import pytest
import torch

from fourfold.compiler.api import plan
from fourfold.compiler.models.llama import Llama, LlamaConfig
from fourfold.ir.plan import Precision
from fourfold.ir.workload import Workload
from fourfold.passes.batch.timing.planned import LAUNCHED, LEFT, terms_of
from fourfold.passes.batch.timing.terms import Terms

LAYERS = 6


def terms(hardware: str, capacity: int) -> Terms:
    with torch.device("meta"):
        model = Llama(LlamaConfig(512, 1024, layers=LAYERS, heads=8, kv_heads=8, feed_forward=2048))
    precision = Precision.fp32 if "cpu" in hardware else Precision.bf16
    pins: dict[str, str | int] = {"tp": 1, "pp": 1, "zero": 1, "recompute": "none", "capacity": capacity}
    work = Workload.of([capacity] * 64)
    return terms_of(plan(model, work, hardware=hardware, precision=precision, pins=pins, top=0).plan)


def test_a_small_micro_step_takes_as_long_as_the_host_launches_it() -> None:
    """Full ones exactly that where the device has less to do; those of many tokens as long as the device takes."""
    small, large = terms("dgx-h200", 512), terms("dgx-h200", 65536)
    assert small.fixed + small.linear * 512 == pytest.approx(LAYERS * LAUNCHED)
    assert large.fixed < small.fixed / 4 and large.linear == pytest.approx(small.linear, rel=0.2)
    assert small.launch == large.launch == pytest.approx(LAYERS * LAUNCHED * LEFT)


def test_a_cpu_launches_nothing() -> None:
    assert terms("cpu-gloo-2", 512).launch == 0.0
