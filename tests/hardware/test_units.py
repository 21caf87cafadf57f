"""Quantities: what reads, what is refused with which advice, and that rendering reads back exactly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourfold.hardware.units import EXAMPLES, UNITS, Kind, UnitError, quantity, render, short


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("450 GB/s", "bandwidth", 450e9),
        ("400 Gb/s", "bandwidth", 50e9),
        ("400 Gbps", "bandwidth", 50e9),
        ("143771 MiB", "bytes", 143771 * 2**20),
        ("141GB", "bytes", 141e9),
        ("1_024 B", "bytes", 1024.0),
        ("989.4 TFLOP/s", "rate", 989.4e12),
        ("624 TOP/s", "rate", 624e12),
        ("3.4 us", "time", 3.4e-6),
        ("3.4 µs", "time", 3.4e-6),
        ("1830 MHz", "frequency", 1.83e9),
        ("1.5e3 ns", "time", 1.5e-6),
    ],
)
def test_reads(text: str, kind: Kind, value: float) -> None:
    assert quantity(text, kind) == value


@pytest.mark.parametrize(
    ("value", "kind", "code", "advice"),
    [
        (4800, "bandwidth", "HW101", '"450 GB/s"'),
        (True, "bytes", "HW101", '"141 GB"'),
        ("fast", "bandwidth", "HW102", "a number and a unit"),
        ("-3 GB", "bytes", "HW102", "a number and a unit"),
        ("GB 3", "bytes", "HW102", "a number and a unit"),
        ("989 TFLOPS", "rate", "HW103", "TFLOP/s"),
        ("32 GT/s", "bandwidth", "HW103", "63 GB/s"),
        ("141 gb", "bytes", "HW103", "GiB (2^30 bytes)"),
        ("143771 Mb", "bytes", "HW103", "MiB"),
        ("3 GFLOPs/s", "rate", "HW103", "GFLOP/s"),
        ("400 Gb/s", "bytes", "HW104", "is a bandwidth"),
        ("80 GB", "bandwidth", "HW104", "is a bytes"),
    ],
)
def test_refuses_with_advice(value: object, kind: Kind, code: str, advice: str) -> None:
    with pytest.raises(UnitError) as caught:
        quantity(value, kind)
    assert caught.value.code == code
    assert advice in caught.value.text


@given(st.sampled_from(sorted(EXAMPLES)), st.floats(min_value=0, max_value=1e30, allow_subnormal=False))
def test_rendering_reads_back_exactly(kind: Kind, value: float) -> None:
    assert quantity(render(value, kind), kind) == value


@given(st.sampled_from(sorted(UNITS)), st.integers(min_value=0, max_value=10**6))
def test_every_unit_scales_by_its_factor(unit: str, number: int) -> None:
    kind, times, per = UNITS[unit]
    assert quantity(f"{number} {unit}", kind) == number * times / per


@given(st.text(max_size=12))
def test_any_text_reads_or_is_refused_by_name(text: str) -> None:
    for kind in EXAMPLES:
        try:
            assert quantity(text, kind) >= 0
        except UnitError as error:
            assert error.code in ("HW102", "HW103", "HW104")


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (50e9, "bandwidth", "50 GB/s"),
        (1.979e15, "rate", "1979 TFLOP/s"),
        (143771 * 2.0**20, "bytes", "150.8 GB"),
        (2e-6, "time", "2 us"),
        (0.0, "time", "0 s"),
    ],
)
def test_short_text_for_people(value: float, kind: Kind, text: str) -> None:
    assert short(value, kind) == text
