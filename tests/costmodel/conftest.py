"""One machine as numbers, so that these tests read no profile: an 8-GPU H200 node on NVSwitch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fourfold.hardware.machine import AttentionFit, Crossing, Device, KernelFit, Path

H200 = Device(
    name="h200",
    vendor="nvidia",
    arch="sm_90",
    units=132,
    peak={"fp32": 67e12, "bf16": 989.4e12},
    usable=143771 * 2**20,
    reserve=2 * 2**30,
    bandwidth=4.8e12,
    l2=60 * 2**20,
    collectives="nccl",
    matmul={"bf16": KernelFit(0.80, 0.90, 1.4, 5.5e-6), "any": KernelFit(0.74, 0.85, 1.4, 5.5e-6)},
    stream=KernelFit(1.0, 0.9, 1.4, 2e-6),
    norm=KernelFit(1.0, 0.45, 1.4, 2e-6),
    attention_forward=AttentionFit(0.35, 650.0, 5e-6),
    attention_backward=AttentionFit(0.325, 1000.0, 5e-6),
    launch=14e-6,
)

NVSWITCH = Path(
    name="nvswitch",
    bandwidth=450e9,
    base=8.4e-6,
    step=3.4e-6,
    base_small=6.6e-6,
    step_small=0.6e-6,
    small_limit=141e9,
    gain=1.0,
    efficiency=0.8,
    latency_small=2.5,
    latency_large=1.5,
)

NETWORK = replace(
    NVSWITCH,
    name="infiniband",
    bandwidth=50e9,
    step=14e-6,
    step_small=2.7e-6,
    small_limit=35e9,
)


@pytest.fixture
def h200() -> Device:
    return H200


@pytest.fixture
def four() -> Crossing:
    """Four GPUs of one node; the switch does not reduce for so few."""
    return Crossing(size=4, nodes=1, per_node=4, stride=1, intra=NVSWITCH, inter=None, overlap=0.6)


@pytest.fixture
def eight() -> Crossing:
    """The whole node; the switch reduces (gain 1.29)."""
    return Crossing(size=8, nodes=1, per_node=8, stride=1, intra=replace(NVSWITCH, gain=1.29), inter=None, overlap=0.6)


@pytest.fixture
def four_nodes() -> Crossing:
    return Crossing(size=32, nodes=4, per_node=8, stride=1, intra=NVSWITCH, inter=NETWORK, overlap=0.6)
