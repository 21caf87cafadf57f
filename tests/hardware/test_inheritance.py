"""Inheritance: what merges, what is replaced, what is dropped, and that provenance never outlives its value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fourfold.hardware import check_file, load, origin
from fourfold.hardware.errors import ProfileError
from fourfold.hardware.library import open_library

Write = Callable[..., Path]


def test_tables_merge_and_named_arrays_merge_by_name(write: Write) -> None:
    write("node", "mine", 'extends = "dgx-h200"\n[[fabric]]\nname = "nvswitch"\nlink_efficiency = 0.7\n')
    profile = open_library().profile("mine")
    assert profile.value("fabric.nvswitch.link_efficiency") == 0.7
    assert profile.value("fabric.nvswitch.links") == 18
    assert profile.rows("fabric") == ("fabric.nvswitch",)
    assert load("mine").crossing((0, 1)).intra.efficiency == 0.7  # type: ignore[union-attr]


def test_a_second_name_is_a_second_fabric_and_the_faster_one_counts(write: Write) -> None:
    latency = (
        'latency = { base = "1 us", step = "1 us", base_small = "1 us", step_small = "1 us", small_limit = "1 GB/s" }'
    )
    rate = 'name = "slow"\ntopology = "switch"\nper_direction = "10 GB/s"\n'
    write("node", "mine", f'extends = "dgx-h200"\n[[fabric]]\n{rate}{latency}\n')
    assert open_library().profile("mine").rows("fabric") == ("fabric.slow", "fabric.nvswitch")
    assert load("mine").crossing((0, 1)).intra.name == "nvswitch"  # type: ignore[union-attr]


def test_arrays_without_names_replace(write: Write) -> None:
    network = '[[network]]\ngroups = ["h200"]\nper_direction = "100 Gb/s"\n'
    write("cluster", "mine", f'extends = "h200-x4"\n{network}')
    profile = open_library().profile("mine")
    assert profile.rows("network") == ("network.0",)
    assert not profile.has("network.0.efficiency")
    assert load("mine").crossing((0, 8)).inter.bandwidth == 12.5e9  # type: ignore[union-attr]


def test_the_short_network_form_merges_key_by_key(write: Write) -> None:
    write("cluster", "mine", 'extends = "h200-x4"\n[network]\noversubscription = 2.0\n')
    profile = open_library().profile("mine")
    assert profile.value("network.all.oversubscription") == 2.0
    assert profile.value("network.all.per_direction") == "400 Gb/s"


def test_remove_deletes_what_was_inherited(write: Write) -> None:
    write("node", "mine", 'extends = "dgx-h200"\n[[fabric]]\nname = "nvswitch"\nremove = ["offload"]\n')
    assert not open_library().profile("mine").has("fabric.nvswitch.offload")
    assert load("mine").crossing(tuple(range(8))).intra.gain == 1.0  # type: ignore[union-attr]


def test_an_overridden_value_loses_the_provenance_of_the_old_one(write: Write) -> None:
    write("device", "mine", 'extends = "nvidia-h200-sxm5-141gb"\n[memory]\nbandwidth = "4.0 TB/s"\n')
    rows = {path: (value, file, status) for path, value, file, status, _ in origin("mine")}
    assert rows["memory.bandwidth"] == ("4.0 TB/s", "fourfold-hardware/mine.toml", "unstated")
    assert rows["memory.usable"] == ("143771 MiB", "shipped/device/nvidia-h200-sxm5-141gb.toml", "measured")
    assert rows["peak.bf16"][1:] == ("shipped/device/nvidia-h100-sxm5-80gb.toml", "vendor")
    assert ("mine: memory.bandwidth", "unstated", "") in load("mine").assumptions


def test_a_child_states_the_provenance_of_what_it_sets_only(write: Write) -> None:
    stated = '[provenance]\nmemory = { status = "measured", source = "my lab" }\n'
    write("device", "mine", f'extends = "nvidia-h200-sxm5-141gb"\n[memory]\nbandwidth = "4.0 TB/s"\n{stated}')
    status = {path: (status, source) for path, _, _, status, source in origin("mine")}
    assert status["memory.bandwidth"] == ("measured", "my lab")
    assert status["memory.capacity"] == ("vendor", "stas00/ml-engineering compute/accelerator/README.md @744d01e")


def test_provenance_of_what_the_file_does_not_set_is_pointed_out(write: Write) -> None:
    path = write("device", "mine", 'extends = "nvidia-h200-sxm5-141gb"\n[provenance]\npeak = { status = "measured" }\n')
    assert [(one.code, one.level) for one in check_file(path)] == [("HW120", "warning")]


def test_the_shipped_b200_node_does_not_inherit_the_h200s_word() -> None:
    rows = {path: (file, source) for path, _, file, _, source in origin("dgx-b200")}
    assert rows["fabric.nvswitch.per_direction"][0] == "shipped/node/dgx-b200.toml"
    assert "NVLink 5" in rows["fabric.nvswitch.per_direction"][1]
    assert rows["fabric.nvswitch.links"][0] == "shipped/node/dgx-h200.toml"


def test_measurements_are_never_inherited(write: Write) -> None:
    write("node", "mine", 'extends = "dgx-h200"\n')
    assert not open_library().profile("mine").has("calibration")
    assert load("dgx-h200").calibration is not None
    assert {anchors.size for anchors in load("dgx-h200").calibration.anchors} == {2, 4, 8, 32}  # type: ignore[union-attr]
    assert load("mine").calibration.anchors == ()  # type: ignore[union-attr]


def test_a_profile_may_extend_the_shipped_one_of_its_own_name(write: Write) -> None:
    write("node", "dgx-h200", 'extends = "dgx-h200"\n[host]\nmemory = "1 TiB"\n')
    assert load("dgx-h200").host_memory == 2.0**40
    assert load("dgx-h200").ranks == 8


@pytest.mark.parametrize(
    ("files", "code", "text"),
    [
        ({"mine": ("node", 'extends = "dgx-h20"\n')}, "HW107", "did you mean 'dgx-h200'"),
        ({"mine": ("node", 'extends = "nvidia-h200-sxm5-141gb"\n')}, "HW108", "which is a device"),
        ({"mine": ("machine", "")}, "HW109", "device, node, cluster, calibration"),
        ({"mine": ("node", 'extends = "a"\n'), "a": ("node", 'extends = "mine"\n')}, "HW106", "mine -> a -> mine"),
        ({"mine": ("node", 'extends = "mine"\n')}, "HW106", "mine -> mine"),
    ],
)
def test_broken_chains(write: Write, files: dict[str, tuple[str, str]], code: str, text: str) -> None:
    for name, (kind, body) in files.items():
        write(kind, name, body)
    with pytest.raises(ProfileError, match=code) as caught:
        load("mine")
    assert text in str(caught.value)


def test_a_name_given_twice_in_a_file(write: Write) -> None:
    path = write("node", "mine", 'extends = "dgx-h200"\n[[fabric]]\nname = "a"\n[[fabric]]\nname = "a"\n')
    assert [one.code for one in check_file(path)] == ["HW105"]


def test_a_file_that_calls_itself_otherwise(write: Write) -> None:
    path = write("node", "mine", 'extends = "dgx-h200"\n')
    path.rename(path.with_name("other.toml"))
    with pytest.raises(ProfileError, match="HW105"):
        load("other")
    assert load(str(path.with_name("other.toml"))).name == "mine"  # given as a file, its own name counts
