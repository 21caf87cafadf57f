"""From what the user writes to a machine: forms of a spec, where profiles are found, calibrations, and any nonsense."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.hardware import Machine, catalog, load, match, origin
from fourfold.hardware.build.device import device_of
from fourfold.hardware.build.node import node_of
from fourfold.hardware.checks import demand
from fourfold.hardware.errors import ProfileError
from fourfold.hardware.library import open_library
from fourfold.hardware.profile import Leaf
from fourfold.hardware.topology import SCHEMA

Write = Callable[..., Path]
META = '[applies_to]\nnode = "dgx-h200"\n[meta]\nmethod = "measured"\ndate = '
ANCHORS = (
    'op = "all_reduce"\ngroup = 2\nanchors = [["1 KiB", "%s"], ["4 KiB", "%s"], ["16 KiB", "%s"], ["64 KiB", "%s"]]\n'
)


@pytest.mark.parametrize(
    ("spec", "ranks", "node_size"),
    [
        ("dgx-h200", 8, 8),
        ("dgx-h200:4", 32, 8),
        ("dgx-h200*4", 32, 8),
        ("dgx-h200:1", 8, 8),
        ("dgx-h200@4", 4, 4),
        ("dgx-h200@4:2", 8, 4),
        ("cpu-gloo@3", 3, 3),
        ("h200-x4", 32, 8),
        ("gb200-nvl72", 72, 72),
        ("nvidia-h200-sxm5-141gb", 1, 1),
        ("dgx-h100:256", 2048, 8),
    ],
)
def test_forms_of_a_spec(spec: str, ranks: int, node_size: int) -> None:
    machine = load(spec)
    assert (machine.spec, machine.ranks, machine.node_size) == (spec, ranks, node_size)
    assert str(machine).startswith(f"{spec}: {ranks} x ")


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ("dgx-h200:0.5", "HW113"),
        ("dgx-h200:0", "HW113"),
        ("dgx-h200:-1", "HW113"),
        ("dgx-h200:", "HW113"),
        ("dgx-h200:four", "HW113"),
        ("dgx-h200:4:4", "HW113"),
        ("dgx-h200@0", "HW113"),
        ("", "HW113"),
        ("dgx-h200@9", "HW114"),
        ("dgx-h20", "HW107"),
        ("h200-4:2", "HW257"),
        ("h200-x4:2", "HW113"),
        ("nvidia-gb200:3", "HW113"),
        ("_gpu-base", "HW116"),
        ("h200-kernels", "HW116"),
        ("./none.toml", "HW112"),
    ],
)
def test_what_is_not_a_machine(folder: Path, spec: str, code: str) -> None:
    with pytest.raises(ProfileError, match=f"^{code} "):
        load(spec)


def test_a_file_stands_wherever_a_name_does(write: Write) -> None:
    path = write("node", "mine", 'extends = "theirs"\n', into="elsewhere")
    write("node", "theirs", 'extends = "dgx-h200"\n[host]\nmemory = "1 TiB"\n', into="elsewhere")
    assert load(str(path)).host_memory == 2**40
    assert load(f"{path}:4").ranks == 32
    assert load(f"{path}@2").ranks == 2
    assert load("mine", folders=(path.parent,)).name == "mine"
    assert origin(str(path))[1][0] == "kind"


def test_search_order(write: Write, folder: Path) -> None:
    def one(memory: str) -> str:
        return f'extends = "dgx-h200"\n[host]\nmemory = "{memory}"\n'

    write("node", "mine", one("3 TiB"), into="../account/.config/fourfold/hardware")
    assert load("mine").host_memory == 3 * 2**40
    write("node", "mine", one("2 TiB"))
    assert load("mine").host_memory == 2 * 2**40
    write("node", "mine", one("1 TiB"), into="given")
    assert load("mine", folders=("given",)).host_memory == 2**40


def test_one_broken_file_of_the_user_stops_nothing_else(write: Write) -> None:
    write("node", "torn", "[[fabric]\n")
    assert load("dgx-h200").ranks == 8
    assert match("NVIDIA H200")
    (row,) = [row for row in catalog() if row[0] == "torn"]
    assert row[1] == "broken" and "HW112" in row[2]


def test_a_folder_that_vanishes_meanwhile_stops_nothing(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary folders come and go beside a profile."""
    path = write("node", "mine", 'extends = "dgx-h200"\n', into="elsewhere")
    gone, scandir = path.parent / "gone", os.scandir
    gone.mkdir()

    def vanishing(at: str) -> object:
        if Path(at).name == gone.name and gone.exists():
            gone.rmdir()
        return scandir(at)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert load(str(path)).ranks == load("dgx-h200").ranks and not gone.exists()


def test_two_profiles_for_one_torch_name(write: Write) -> None:
    write("device", "mine", 'extends = "nvidia-h200-sxm5-141gb"\n[match]\nname = ["NVIDIA H200"]\n')
    with pytest.raises(ProfileError, match="HW303"):
        match("NVIDIA H200")


def test_the_users_calibration_of_a_node_applies_by_itself_and_the_newest_counts(write: Write) -> None:
    for name, date, time in (("old", "2026-01-01", "8 us"), ("new", "2026-02-01", "9 us")):
        write("calibration", name, f"{META}{date}\n[[collective]]\n{ANCHORS % (time, time, time, time)}")
    calibration = load("dgx-h200:2").calibration
    assert calibration is not None and calibration.name.endswith("old+new")
    (anchors,) = [one for one in calibration.anchors if (one.op, one.size) == ("all_reduce", 2)]
    assert anchors.points[0] == (1024.0, 9e-6)
    assert load("dgx-h100").calibration != calibration


def test_a_calibration_may_be_asked_for(write: Write) -> None:
    text = '[applies_to]\ndevice = "nvidia-b200-sxm-180gb"\n[meta]\nmethod = "measured"\ndate = 2026-01-01\n'
    rows = '[host]\nlaunch_eager = "3 us"\n[overlap]\ncompute_slowdown = 1.1\n'
    write("calibration", "lab", text + rows)
    machine = load("dgx-b200", calibration="lab")
    assert machine.device.launch == 3e-6
    assert machine.calibration is not None and machine.calibration.overlap.compute_slowdown == 1.1
    assert not any("launch_host" in path for path, _, _ in machine.assumptions)
    assert any("launch_host" in path for path, _, _ in load("dgx-b200").assumptions)
    with pytest.raises(ProfileError, match="HW305"):
        load("dgx-h200", calibration="lab")


def test_a_link_measured_by_rate_and_latency_becomes_points() -> None:
    calibration = load("dgx-h100").calibration
    assert calibration is not None
    link = next(one for one in calibration.anchors if (one.op, one.nodes) == ("send_recv", 2))
    size, seconds = link.points[-1]
    assert size / (seconds - 18.7e-6) == pytest.approx(35.5e9)


def test_assumptions_name_what_nobody_measured() -> None:
    paths = {path: status for path, status, _ in load("frontier-mi250x:2").assumptions}
    assert paths["frontier-mi250x: fabric.xgmi.pairs"] == "memory"
    assert paths["network"] == "default"
    assert "frontier-mi250x: nic.per_direction" in paths
    alone = {path for path, _, _ in load("frontier-mi250x").assumptions}
    assert not any("nic." in path or path == "network" for path in alone)


def test_ports_without_protocol_times_are_filled_in_and_said(write: Write) -> None:
    ports = '[nic]\ncount = 4\nper_direction = "400 Gb/s"\naffinity = "identity"\nlatency = "10 us"\n'
    write("node", "mine", f'extends = "h200-4"\n{ports}')
    machine = load("mine:2")
    path = machine.crossing((0, 4)).inter
    assert path is not None and path.bandwidth == 50e9 and path.step_small < path.step
    assert ("mine: nic.base", "default", "the profile does not say") in machine.assumptions


@pytest.mark.parametrize("name", [name for name, kind, _ in catalog() if kind in ("device", "node", "cluster")])
def test_a_snapshot_reads_back_equal(name: str) -> None:
    machine = load(name)
    assert Machine.from_snapshot(json.loads(json.dumps(machine.snapshot()))) == machine


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"schema": "fourfold.machine/2"},
        {"schema": SCHEMA},
        {"schema": SCHEMA, "machine": {"name": "a"}},
        {"schema": SCHEMA, "machine": 3},
    ],
)
def test_a_torn_snapshot_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(ProfileError, match="HW115"):
        Machine.from_snapshot(data)


JUNK = st.sampled_from(
    (0, -1, 3, 3.7, True, "", "x", "3 GB", "3 GB/s", "3 us", [], [1], ["a"], [[1, 2]], [[0, 1, "3 GB/s"]])
)
LIBRARY = open_library()
NODES = ("dgx-h200", "frontier-mi250x", "l40s-server-8", "mi300x-8", "rtx4090-server-8")
NODE_MACHINES = {name: load(name) for name in NODES}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_whatever_stands_in_a_node_it_is_refused_or_works(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(NODES))
    profile = LIBRARY.profile(name)
    for path in data.draw(st.lists(st.sampled_from(sorted(profile.leaves)), min_size=1, max_size=3)):
        leaves = {key: leaf for key, leaf in profile.leaves.items() if key != path}
        junk = data.draw(st.none() | JUNK)
        profile = replace(profile, leaves=leaves if junk is None else {**leaves, path: Leaf(junk, "f", "memory", "")})
    try:
        node = node_of(demand(profile, LIBRARY), efficiency=0.8)
    except ProfileError as error:
        assert str(error).startswith("HW")
        return
    machine = NODE_MACHINES[name]
    machine = replace(machine, groups=(replace(machine.groups[0], node=node),))
    crossing = machine.crossing(tuple(range(machine.ranks)))
    assert crossing.size == machine.ranks


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_stands_in_a_device_it_is_refused_or_works(data: st.DataObject) -> None:
    profile = LIBRARY.profile(data.draw(st.sampled_from(("nvidia-h200-sxm5-141gb", "cpu-generic"))))
    path = data.draw(st.sampled_from(sorted(profile.leaves)))
    leaves = {**profile.leaves, path: Leaf(data.draw(JUNK), "f", "memory", "")}
    try:
        device = device_of(demand(replace(profile, leaves=leaves), LIBRARY), ())
    except ProfileError as error:
        assert str(error).startswith("HW")
        return
    assert device.usable >= 0
