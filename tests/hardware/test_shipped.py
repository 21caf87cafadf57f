"""Every shipped profile: checks clean, says where each value is from, resolves, and is found by its torch name."""

from __future__ import annotations

from pathlib import Path

import pytest

from fourfold.hardware import catalog, check_file, load, match, origin
from fourfold.hardware.errors import ProfileError
from fourfold.hardware.library import SHIPPED
from fourfold.hardware.schema import NOT_INHERITED

FILES = sorted(SHIPPED.rglob("*.toml"))
MACHINES = [name for name, kind, _ in catalog() if kind in ("device", "node", "cluster")]
WANTED = {
    "device": {"p100", "v100", "a100", "a800", "h100", "h800", "h20", "h200", "b200", "gb200", "l40s", "rtx-4090"}
    | {"mi250x", "mi300x", "mi325x", "mi355x", "cpu"},
    "node": {"dgx-a100-80gb", "dgx-b200", "dgx-h100", "dgx-h200", "dgx1-v100-32gb", "frontier-mi250x", "gb200-nvl72"}
    | {"h200-2", "h200-4", "hgx-a800", "hgx-h20", "hgx-h800", "l40s-server-8", "mi300x-8", "mi325x-8", "mi355x-8"}
    | {"piz-daint-p100", "rtx4090-server-8", "rtx4090-workstation-2", "cpu-gloo", "cpu-gloo-2", "cpu-gloo-4"},
    "cluster": {"gb200-nvl72-x2", "h100-a100-mixed", "h200-x4", "p100-x64", "rtx4090-pair"},
    "calibration": {"h200-kernels", "h200-nvlink", "dgx-h200-published"},
}


@pytest.mark.parametrize("kind", WANTED)
def test_all_the_machines_are_there(kind: str) -> None:
    names = [name for name, what, _ in catalog() if what == kind]
    assert all(any(wanted in name for name in names) for wanted in WANTED[kind])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_checks_clean(path: Path) -> None:
    assert [str(one) for one in check_file(path)] == []


@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_every_value_says_where_it_is_from(name: str) -> None:
    silent = [
        path
        for path, _, _, status, source in origin(name)
        if path not in NOT_INHERITED and not path.startswith(("match.", "applies_to.", "meta."))
        if status == "unstated" or not source
    ]
    assert silent == []


@pytest.mark.parametrize("name", MACHINES)
def test_resolves_to_a_machine_with_finite_positive_rates(name: str) -> None:
    machine = load(name)
    device = machine.device
    assert machine.ranks == machine.nodes * machine.node_size
    assert 0 < device.reserve < device.usable
    assert all(rate > 0 for rate in (*device.peak.values(), device.bandwidth))
    assert 0 < device.matmul["any"].compute <= 1
    whole = machine.crossing(tuple(range(machine.ranks)))
    for path in (whole.intra, whole.inter):
        assert path is None or (0 < path.bandwidth < 1e13 and 0 < path.efficiency <= 1 and path.step > 0)


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("NVIDIA H200", "nvidia-h200-sxm5-141gb"),
        ("NVIDIA H20", "nvidia-h20-sxm-96gb"),
        ("NVIDIA H100 80GB HBM3", "nvidia-h100-sxm5-80gb"),
        ("NVIDIA H800", "nvidia-h800-sxm5-80gb"),
        ("NVIDIA B200", "nvidia-b200-sxm-180gb"),
        ("NVIDIA GB200", "nvidia-gb200"),
        ("NVIDIA A100-SXM4-80GB", "nvidia-a100-sxm4-80gb"),
        ("NVIDIA A100-SXM4-40GB", "nvidia-a100-sxm4-40gb"),
        ("NVIDIA L40S", "nvidia-l40s-48gb"),
        ("NVIDIA GeForce RTX 4090", "nvidia-rtx-4090-24gb"),
        ("Tesla V100-SXM2-32GB", "nvidia-v100-sxm2-32gb"),
        ("Tesla P100-PCIE-16GB", "nvidia-p100-pcie-16gb"),
        ("AMD Instinct MI300X", "amd-mi300x-192gb"),
        ("AMD Instinct MI355X", "amd-mi355x-288gb"),
        ("cpu", "cpu-generic"),
    ],
)
def test_torch_names(reported: str, name: str) -> None:
    assert match(reported) == name


@pytest.mark.parametrize("reported", ["NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA GH200 480GB", "NVIDIA H200 NVL"])
def test_another_parts_numbers_are_never_given(reported: str) -> None:
    with pytest.raises(ProfileError, match="HW302"):
        match(reported)


def test_measured_h200() -> None:
    """Rates inside a training step; of long documents they are those of the kernels alone, at the clock of a step."""
    device = load("h200-4").device
    assert device.usable == 143771 * 2**20
    rate = device.peak["bf16"] * device.matmul["bf16"].compute
    assert rate == pytest.approx(678e12, rel=0.05)
    alone = ((522, 626, 592, 552), (353, 536, 532, 531))
    fits = (device.attention_forward, device.attention_backward)
    inside = ((290, 497), (200, 394))
    for fit, measured, (short, middle) in zip(fits, alone, inside, strict=True):
        rates = [fit.ceiling * n / (n + fit.half_length) * device.peak["bf16"] / 1e12 for n in (2500, 8192, 131072)]
        assert rates[0] == pytest.approx(short, rel=0.2), "short documents of unlike lengths, packed"
        assert rates[1] == pytest.approx(middle, rel=0.1), "documents of 8192 by themselves"
        assert rates[2] == pytest.approx(0.95 * measured[3], rel=0.05)
        assert rates[0] < rates[1] < rates[2]


@pytest.mark.parametrize(
    ("size", "op", "factor", "busbw"),
    [
        (4, "all_reduce", 1.5, 349e9),
        (4, "all_gather", 0.75, 321e9),
        (4, "reduce_scatter", 0.75, 314e9),
        (4, "all_to_all", 0.75, 325e9),
        (2, "all_reduce", 1.0, 331e9),
        (2, "reduce_scatter", 0.5, 267e9),
    ],
)
def test_measured_h200_collectives(size: int, op: str, factor: float, busbw: float) -> None:
    calibration = load("h200-4").calibration
    assert calibration is not None
    (anchors,) = [one for one in calibration.anchors if (one.op, one.size) == (op, size)]
    large, seconds = anchors.points[-1]
    assert large == 2**30
    assert large * factor / seconds == pytest.approx(busbw, rel=0.01)
