"""Every rule speaks: twenty plausible mistakes as files, and one small wrong profile for each other message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fourfold.hardware import check_file, load
from fourfold.hardware.errors import ProfileError

Write = Callable[..., Path]
MISTAKES = Path(__file__).parent / "mistakes"

# File: level, code, place, and the part of the sentence that says what to do.
EXPECTED = {
    "bare-number": ("error", "HW101", "memory.bandwidth", 'for example "450 GB/s"'),
    "lower-case-unit": ("error", "HW103", "memory.capacity", "write GB (10^9 bytes) or GiB (2^30 bytes)"),
    "tflops": ("error", "HW103", "peak.bf16", "write TFLOP/s, and give the dense rate"),
    "megabits-of-memory": ("error", "HW103", "memory.usable", "write MB or MiB"),
    "mb-for-mib": ("warning", "HW221", "memory.usable", "0.84 x memory.capacity"),
    "sparse-peaks": ("warning", "HW214", "peak.fp16", "this looks like the rate with sparsity; give the dense one"),
    "one-sparse-peak": ("warning", "HW212", "peak.fp8", "4.00 x peak.fp16; expected 1.5 to 2.6"),
    "missing-dtypes": ("error", "HW203", "peak.fp8", 'give the dense rate or write "unsupported"'),
    "bfloat16": ("error", "HW204", "peak.bfloat16", "did you mean bf16?"),
    "percent": ("error", "HW224", "uncalibrated.matmul_compute", "75 % is 0.75"),
    "both-ways": ("error", "HW232", "fabric.nvswitch.per_direction", "may be the figure of both ways together"),
    "no-direction": ("error", "HW231", "fabric.nvlink.bandwidth", "write per_direction"),
    "port-in-bytes": ("error", "HW241", "nic.per_direction", "network speeds are quoted in bits"),
    "half-a-mesh": ("error", "HW235", "fabric.xgmi.links", "4 devices needs 3 links per device, not 7"),
    "half-a-node": ("error", "HW243", "nic.affinity", "8 entries for 4 devices"),
    "transfers": ("error", "HW103", "host.device_link", "PCIe 5 x16 carries 63 GB/s in each direction"),
    "unknown-base": ("error", "HW107", "unknown-base.toml", "did you mean 'dgx-h200'"),
    "unknown-node": ("error", "HW250", "group.h200.node", "did you mean 'dgx-h200'"),
    "unjoined-groups": ("error", "HW255", "network", "no network joins the groups 'old' and 'h200'"),
    "misspelt-table": ("error", "HW110", "memroy.bandwidth", "did you mean 'memory'?"),
}

H200 = 'extends = "nvidia-h200-sxm5-141gb"\n'
NODE = 'extends = "dgx-h200"\n'
FRONTIER = 'extends = "frontier-mi250x"\n'
CLUSTER = 'extends = "h200-x4"\n'
META = '[applies_to]\nnode = "h200-4"\n[meta]\ndate = 2026-01-01\nmethod = "measured"\n'
ROW = '[[collective]]\nop = "all_reduce"\ngroup = 4\nanchors = '
POINTS = '[["1 KiB", "9 us"], ["4 KiB", "9 us"], ["16 KiB", "9 us"], ["64 KiB", "9 us"]]\n'
FIT = '[[matmul]]\ndtype = "bf16"\nmemory = 0.9\nshape = 1.4\noverhead = "5 us"\ncompute = '

# Kind, text, code, part of the sentence.
OTHERS = (
    ("device", H200 + "[execution]\nclock = true\n", "HW101", "True has no unit"),
    ("device", H200 + '[memory]\nbandwidth = "4.8"\n', "HW102", 'cannot read "4.8"'),
    ("device", H200 + '[memory]\nusable = "400 Gb/s"\n', "HW104", "is a bandwidth"),
    ("node", NODE + '[[fabric]]\nname = "nvswitch"\nlink = 3\n', "HW110", "did you mean 'links'?"),
    ("node", 'device = "cpu-generic"\ndevices = "eight"\n', "HW111", "'eight' is not a whole number"),
    ("device", 'extends = "_nvidia-base"\n', "HW201", "arch and units are missing"),
    ("device", 'extends = "_nvidia-base"\n', "HW202", "usable and bandwidth are missing"),
    ("device", '[execution]\nvendor = "nvidia"\n', "HW205", 'extends = "_nvidia-base"'),
    ("device", H200 + '[provenance]\nmemory = { status = "guess" }\n[memory]\nusable = "140 GiB"\n', "HW122", "guess"),
    ("device", H200 + '[provenance]\nmemory = "vendor"\n', "HW122", "must read"),
    ("device", H200 + '[peak]\nbf16 = "980 TFLOP/s"\n', "HW213", "both use the same units"),
    ("device", H200 + "[execution]\nunits = 66\n", "HW214", "twice what 66 units"),
    ("device", H200 + "[execution]\nunits = 100\n", "HW214", "tensor_rate_capped"),
    ("device", H200 + '[memory]\nbandwidth = "4.8 GB/s"\n', "HW222", "GB/s for TB/s?"),
    ("device", H200 + '[memory]\nbandwidth = "480 GB/s"\n', "HW223", "accelerators have 20 to 600"),
    ("node", NODE + 'device = "nvidia-h201"\n', "HW230", "no device profile"),
    ("node", NODE + 'device = "dgx-h100"\n', "HW230", "no device profile"),
    ("node", NODE + '[[fabric]]\nname = "nvswitch"\nbidirectional = "900 GB/s"\n', "HW231", "keep one"),
    ("node", FRONTIER + '[[fabric]]\nname = "xgmi"\nuneven = false\n', "HW233", "a pair may be missing"),
    ("node", FRONTIER + '[[fabric]]\nname = "xgmi"\npairs = [[0, 8, "50 GB/s"]]\n', "HW234", "devices 0 to 7"),
    ("node", FRONTIER + '[[fabric]]\nname = "xgmi"\npairs = [[0, 1, "9 GB/s"]]\n', "HW238", "to device 2"),
    ("node", NODE + '[[fabric]]\nname = "nvswitch"\ntopology = "torus"\n', "HW236", "unknown topology 'torus'"),
    ("node", 'extends = "l40s-server-8"\n[[fabric]]\nname = "pcie"\nper_direction = "200 GB/s"\n', "HW237", "total of"),
    ("node", 'extends = "l40s-server-8"\n[[fabric]]\nname = "pcie"\nswitches = [[0, 1]]\n', "HW239", "8 devices once"),
    ("node", NODE + "devices = 0\n", "HW240", "at least 1"),
    ("node", NODE + '[nic]\nper_direction = "4 Mb/s"\n', "HW242", "check the unit"),
    ("node", NODE + '[nic]\naffinity = "round-robin"\n', "HW243", '"identity" or "shared"'),
    ("node", NODE + '[nic]\ncount = 7\naffinity = "identity"\n', "HW243", "not possible"),
    ("node", NODE + "[nic]\ncount = 4\n", "HW244", "ports 0 to 3"),
    ("node", NODE + "[host]\nnuma = [0, 1]\n", "HW245", "2 entries for 8 devices"),
    ("node", NODE + '[[fabric]]\nname = "nvswitch"\noffload = { gain = [[8, 0.5]] }\n', "HW247", "factor >= 1"),
    ("cluster", "", "HW250", "at least one [[group]]"),
    ("cluster", CLUSTER + '[[group]]\nname = "h200"\ncount = 0\n', "HW251", "count is 0"),
    ("cluster", CLUSTER + '[network]\ngroups = ["h100"]\n', "HW252", "there are h200"),
    ("cluster", CLUSTER + '[[network]]\ngroups = ["h200"]\n', "HW253", "write per_direction"),
    ("cluster", CLUSTER + "[network]\noversubscription = 0.5\n", "HW254", "0.5 is below 1"),
    ("cluster", CLUSTER + '[[group]]\nname = "h200"\nnode = "h200-4"\n', "HW257", "no network port"),
    ("cluster", CLUSTER + '[[group]]\nname = "two"\nnode = "rtx4090-workstation-2"\ncount = 1\n', "HW256", "has 2"),
    ("calibration", META.replace("h200-4", "h200-5") + ROW + POINTS, "HW260", "did you mean 'h200-4'"),
    ("calibration", META.replace("date = 2026-01-01\n", ""), "HW261", "meta.date is missing"),
    ("calibration", META + ROW + '[["1 KiB", "9 us"]]\n', "HW262", "has 1 anchors"),
    ("calibration", META + ROW + POINTS.replace("64 K", "2 K"), "HW263", "sizes must increase"),
    ("calibration", META + ROW + POINTS.replace('64 KiB", "9', '64 KiB", "1'), "HW264", "time falls from 9 us to 1 us"),
    ("calibration", META + FIT + "75\n", "HW265", "not a fraction"),
    ("calibration", META + '[[p2p]]\nplacement = "intra"\n', "HW266", "has no anchors"),
    ("calibration", META + ROW + "[[1024, 9]]\n", "HW101", "1024 has no unit"),
    ("calibration", META + ROW + '["1 KiB", "9 us"]\n', "HW102", "is not an anchor"),
)


def test_there_are_twenty_files() -> None:
    assert sorted(EXPECTED) == sorted(path.stem for path in MISTAKES.glob("*.toml"))
    assert len(EXPECTED) == 20


@pytest.mark.parametrize("name", EXPECTED)
def test_each_mistake_gives_its_message(name: str) -> None:
    level, code, place, advice = EXPECTED[name]
    found = check_file(MISTAKES / f"{name}.toml")
    assert any(
        (one.level, one.code) == (level, code) and one.where.endswith(place) and advice in one.text for one in found
    ), [str(one) for one in found]


@pytest.mark.parametrize("name", [name for name, expected in EXPECTED.items() if expected[0] == "error"])
def test_an_error_stops_loading_and_names_the_file(name: str) -> None:
    with pytest.raises(ProfileError) as caught:
        load(str(MISTAKES / f"{name}.toml"))
    assert f"{name}.toml" in str(caught.value)
    assert caught.value.exit_code == 12


@pytest.mark.parametrize("name", [name for name, expected in EXPECTED.items() if expected[0] == "warning"])
def test_a_warning_does_not(name: str) -> None:
    assert load(str(MISTAKES / f"{name}.toml")).ranks == 1


@pytest.mark.parametrize(("kind", "text", "code", "part"), OTHERS)
def test_every_other_rule_speaks(write: Write, kind: str, text: str, code: str, part: str) -> None:
    found = check_file(write(kind, "mine", text))
    assert any(one.code == code and part in one.text for one in found), [str(one) for one in found]


def test_a_schema_of_another_version(write: Write) -> None:
    path = write("node", "mine", NODE)
    path.write_text(path.read_text().replace("hardware/1", "hardware/2"))
    assert [one.code for one in check_file(path)] == ["HW100"]


def test_two_files_of_one_folder_with_one_name(write: Write) -> None:
    write("node", "mine", NODE)
    other = write("node", "other", NODE)
    other.write_text(other.read_text().replace('"other"', '"mine"'))
    assert [one.code for one in check_file(other)] == ["HW105"]


@pytest.mark.parametrize("text", ["kind = ", "kind = 3\nkind = 4\n", "[[fabric]\n"])
def test_malformed_toml_says_where(folder: Path, text: str) -> None:
    path = folder / "mine.toml"
    path.write_text(text)
    (found,) = check_file(path)
    assert (found.code, found.where) == ("HW112", "mine.toml")
    assert "(at " in found.text


def test_a_file_that_is_not_there(folder: Path) -> None:
    (found,) = check_file("nothing.toml")
    assert found.code == "HW112"
    with pytest.raises(ProfileError, match="HW112"):
        load("./nothing.toml")
