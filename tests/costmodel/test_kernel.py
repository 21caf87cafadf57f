"""Kernel times: against measurements of one H200, and the properties any roofline must have."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fourfold.costmodel import kernel
from fourfold.hardware.errors import InfeasibleError
from fourfold.hardware.machine import Device, KernelFit

work = st.floats(0, 1e18)
on_one_device = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

# (M, N, K) and TFLOP/s measured in bf16 on random data (torch 2.11, CUDA 13).
MEASURED_MATMULS = (
    ((8192, 8192, 8192), 778),
    ((4096, 4096, 4096), 700),
    ((16384, 14336, 4096), 796),
    ((16384, 4096, 14336), 672),
    ((16384, 128256, 4096), 682),
)

# Sequence length and TFLOP/s, forward and backward, causal, 32 heads of 128, flash attention of torch 2.11.
MEASURED_ATTENTION = ((2048, 262, 211), (8192, 337, 280), (32768, 342, 318), (131072, 315, 325))


def test_matmul_reaches_what_an_h200_reaches(h200: Device) -> None:
    errors = []
    for (m, n, k), rate in MEASURED_MATMULS:
        flops = 2.0 * m * n * k
        seconds = kernel.matmul_time(flops, 2.0 * (m * k + k * n + m * n), "bf16", h200)
        errors.append(abs(flops / seconds / (rate * 1e12) - 1))
    assert mean(errors) <= 0.08
    assert max(errors) <= 0.16


def test_attention_reaches_what_an_h200_reaches(h200: Device) -> None:
    for length, forward, backward in MEASURED_ATTENTION:
        flops = kernel.attention_flops(32, 128, length * (length + 1) / 2)
        for rate, is_backward in ((forward, False), (backward, True)):
            seconds = kernel.attention_time(flops, length, backward=is_backward, dtype="bf16", device=h200)
            done = flops * (2.5 if is_backward else 1.0)
            assert done / seconds == pytest.approx(rate * 1e12, rel=0.15), (length, is_backward)


def test_copy_reaches_nine_tenths_of_the_bandwidth(h200: Device) -> None:
    assert 2**30 / kernel.stream_time(2**30, h200) == pytest.approx(4.3e12, rel=0.02)
    assert kernel.norm_time(2**30, h200) > 1.9 * kernel.stream_time(2**30, h200)


def test_attention_flops_count_pairs() -> None:
    assert kernel.attention_flops(2, 8, 3 * 3) == 2 * (2 * 2 * 3 * 3 * 8)
    causal = kernel.attention_flops(4, 64, 512 * 513 / 2)
    assert causal == pytest.approx(kernel.attention_flops(4, 64, 512**2) / 2, rel=0.003)


@on_one_device
@given(flops=work, moved=work, more=work)
def test_matmul_lies_between_the_hard_roofline_and_the_sum(
    h200: Device, flops: float, moved: float, more: float
) -> None:
    seconds = kernel.matmul_time(flops, moved, "bf16", h200)
    compute, memory = flops / (0.80 * 989.4e12), moved / (0.90 * 4.8e12)
    overhead = 5.5e-6 if flops or moved else 0.0
    assert seconds >= (max(compute, memory) + overhead) * (1 - 1e-9)
    assert seconds <= (compute + memory + overhead) * (1 + 1e-9)
    assert kernel.matmul_time(flops + more, moved, "bf16", h200) >= seconds * (1 - 1e-9)
    assert kernel.matmul_time(flops, moved + more, "bf16", h200) >= seconds * (1 - 1e-9)


@on_one_device
@given(length=st.floats(1, 1e7), longer=st.floats(1, 100))
def test_attention_efficiency_rises_to_its_ceiling(h200: Device, length: float, longer: float) -> None:
    fit = h200.attention_forward
    short, long = (kernel.attention_efficiency(tokens, fit) for tokens in (length, length * longer))
    assert 0 < short <= long * (1 + 1e-9) <= fit.ceiling * (1 + 2e-9)
    assert kernel.attention_efficiency(fit.half_length, fit) == pytest.approx(fit.ceiling / 2)


def test_nothing_to_do_takes_no_time(h200: Device) -> None:
    assert kernel.matmul_time(0, 0, "bf16", h200) == 0
    assert kernel.stream_time(0, h200) == kernel.norm_time(0, h200) == 0
    assert kernel.attention_time(0, 8, backward=True, dtype="bf16", device=h200) == 0


def test_a_dtype_without_its_own_fit_uses_the_fit_for_any(h200: Device) -> None:
    faster_bf16 = replace(h200, matmul={"bf16": KernelFit(1.0, 1.0, 9.0, 0.0), "any": h200.matmul["any"]})
    args = (1e12, 1e8, "fp32")
    assert kernel.matmul_time(*args, faster_bf16) == kernel.matmul_time(*args, h200) > 1e12 / 67e12


def test_a_dtype_the_device_lacks_is_refused_by_name(h200: Device) -> None:
    with pytest.raises(InfeasibleError, match=r"h200 has no unit for fp8; it has bf16, fp32"):
        kernel.matmul_time(1, 1, "fp8", h200)
    with pytest.raises(InfeasibleError, match="fp4"):
        kernel.attention_time(1, 1, backward=False, dtype="fp4", device=h200)
    with pytest.raises(InfeasibleError, match=r"no matmul efficiency for fp32 \(it has: bf16\)"):
        kernel.matmul_time(1, 1, "fp32", replace(h200, matmul={"bf16": h200.matmul["bf16"]}))
