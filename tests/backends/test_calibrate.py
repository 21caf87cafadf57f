"""Calibration: fits recover what made their points; a small measurement becomes profiles that load back equal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from fourfold.backends.calibrate import Detected, ask, detect, fit
from fourfold.backends.calibrate.fit import AttentionPoint, Point, Stream
from fourfold.costmodel.kernel import chore_time, stream_time
from fourfold.hardware import check_file, load
from fourfold.hardware.errors import UsageError

PEAK, BANDWIDTH = 40e9, 20e9


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Detected, Path]]:
    """Two ranks with next to no time: the figures are poor and the way from timing to file is the real one."""
    small = pytest.MonkeyPatch()
    small.setattr(ask, "CPU_PRODUCTS", ((32, 32, 32), (64, 64, 32), (64, 32, 128), (128, 64, 64)))
    small.setattr(ask, "CPU_ATTENTIONS", ((2, 16, 2, 16), (1, 32, 2, 16), (1, 64, 2, 32), (2, 32, 2, 32)))
    small.setattr(ask.Ask, "streams", property(lambda self: (2**10, 2**12, 2**14, 2**15)))
    small.setattr(ask.Ask, "messages", property(lambda self: (2**8, 2**10, 2**12, 2**14)))
    path = tmp_path_factory.mktemp("profiles") / "here.toml"
    detected = detect(name="here", ranks=2, quick=True)
    small.undo()
    detected.write(path)
    yield detected, path


def test_what_was_measured_loads_as_a_machine(measured: tuple[Detected, Path]) -> None:
    detected, path = measured
    machine = load(str(path))
    assert (machine.ranks, machine.device.vendor, machine.device.collectives) == (2, "cpu", "gloo")
    assert machine.device.peak["fp32"] == pytest.approx(detected.found.rates.peak["fp32"], rel=1e-3)
    assert not machine.assumptions, "every figure is measured"
    assert set(machine.device.chores) == {"gather", "reduce", "update", "local", "move", "read"}
    assert chore_time("gather", machine.device, 1e6) > chore_time("gather", machine.device)


def test_every_file_passes_its_rules(measured: tuple[Detected, Path]) -> None:
    _, path = measured
    errors = [one for file in path.parent.glob("*.toml") for one in check_file(file) if one.level == "error"]
    assert errors == []


def test_anchors_rise_and_come_back_as_written(measured: tuple[Detected, Path]) -> None:
    detected, path = measured
    calibration = load(str(path)).calibration
    assert calibration is not None
    read = {(one.op, one.size): one.points for one in calibration.anchors}
    assert {op for op, _ in read} == {"all_reduce", "all_gather", "reduce_scatter"}
    for one in detected.found.anchors:
        assert all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(one.points)), one
        for (size, seconds), (again, told) in zip(one.points, read[one.op, one.size], strict=True):
            assert (again, told) == (size, pytest.approx(seconds, rel=1e-3))


def test_fits_come_back_through_the_cost_model(measured: tuple[Detected, Path]) -> None:
    detected, path = measured
    device, stream = load(str(path)).device, detected.found.stream[0]
    for moved in (1e3, 1e5, 1e7):
        assert stream_time(moved, device) == pytest.approx(stream.seconds(moved), rel=5e-3)


def test_a_file_of_another_name_is_refused(measured: tuple[Detected, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"here\.toml"):
        measured[0].write(tmp_path / "there.toml")


def test_no_ranks_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        detect(ranks=-1)


def test_a_matmul_fit_tells_the_points_that_made_it() -> None:
    sizes = ((32, 32), (128, 128), (512, 64), (64, 1024), (1024, 1024))
    shapes = [(2.0 * m * n * 256, 4.0 * (m * n + 256 * (m + n))) for m, n in sizes]
    points = [Point(f, q, 2e-6 + ((f / 30e9) ** 1.4 + (q / 10e9) ** 1.4) ** (1 / 1.4)) for f, q in shapes]
    found_fit = fit.matmul(points, peak=PEAK, bandwidth=BANDWIDTH)
    assert fit.matmul_quality(found_fit, points, peak=PEAK, bandwidth=BANDWIDTH).p95 < 0.03


def test_a_stream_fit_finds_the_cache_and_ignores_an_outlier() -> None:
    true = Stream(1e-5, 1e6, 40e9, 8e9)
    points = [Point(0.0, moved, true.seconds(moved)) for moved in (1e4, 1e5, 5e5, 1e6, 4e6, 1e7, 4e7)]
    points[2] = replace(points[2], seconds=5 * points[2].seconds)
    found_fit = fit.stream(points)
    for moved in (2e4, 1e6, 2e7):
        assert found_fit.seconds(moved) == pytest.approx(true.seconds(moved), rel=0.05)


def test_an_attention_fit_tells_small_heads_and_short_documents() -> None:
    def seconds(flops: float, length: int, width: int) -> float:
        return 1e-5 + flops / (0.5 * PEAK) * (1 + 64 / length) * (1 + 16 / width)

    shapes = [(1e7 * k, length, width) for k, length in ((1, 64), (4, 256), (9, 1024)) for width in (16, 64)]
    points = [AttentionPoint(f, s, d, seconds(f, s, d)) for f, s, d in shapes]
    assert fit.attention_quality(fit.attention(points, peak=PEAK), points, peak=PEAK).p95 < 0.02
