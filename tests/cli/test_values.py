"""Sizes, pairs and workloads as users type them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourfold.compiler.cli import asking, values
from fourfold.hardware.errors import UsageError


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("8192", 8192),
        ("8k", 8192),
        ("8K", 8192),
        ("128Ki", 131072),
        ("4M", 2**22),
        ("1.5k", 1536),
        ("1,024", 1024),
        ("1g", 2**30),
    ],
)
def test_sizes(text: str, tokens: int) -> None:
    assert values.tokens(text, "--length") == tokens


@pytest.mark.parametrize("text", ["", "8q", "-1", "0", "k", "1.0001k", "8kb", "eight", "0.1"])
def test_what_is_no_size_is_said(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--length .* is not a number of tokens; write"):
        values.tokens(text, "--length")


@given(st.integers(1, 2**40), st.sampled_from(["", "k", "M", "Ki"]))
def test_a_size_is_its_number_times_its_unit(number: int, unit: str) -> None:
    assert values.tokens(f"{number}{unit}", "--x") == number * {"": 1, "k": 1024, "Ki": 1024, "M": 1024**2}[unit]


def test_pairs() -> None:
    found = values.pairs(["a=1", "b=0.5", "c=true", "d=ring", "e=x=y"], "--set")
    assert found == {"a": 1, "b": 0.5, "c": True, "d": "ring", "e": "x=y"}


@pytest.mark.parametrize("texts", [["tp"], ["tp="], ["=2"], ["tp=2", "tp=4"]])
def test_what_is_no_pair_is_said(texts: list[str]) -> None:
    with pytest.raises(UsageError, match="--pin"):
        values.pins(texts)


@pytest.mark.parametrize("text", ["tp=-1", "tp=1.5", "tp=true"])
def test_what_is_no_pin_is_said(text: str) -> None:
    with pytest.raises(UsageError, match="neither a degree"):
        values.pins([text])


def test_a_workload_of_one_length() -> None:
    assert asking.workload("8k", None, "512k").lengths == ((8192, 64),)


@pytest.mark.parametrize("name", ["wikipedia", "prolong", "pretrain", "commoncrawl", "heavy"])
def test_a_shipped_list_keeps_its_tokens(name: str) -> None:
    found = asking.workload(None, name, "4M")
    assert found.tokens == pytest.approx(2**22, rel=0.05)
    assert found.longest > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("8k", "wikipedia", None), "say two things"),
        (("8k", None, "4k"), "holds no sequence"),
        ((None, "nowhere", None), "neither a file nor one of"),
    ],
)
def test_a_workload_that_makes_no_sense_is_said(arguments: tuple[str | None, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        asking.workload(*arguments)
