"""`fourfold hardware`: what each command prints at 80 columns, its JSON, its exit codes, and what it never imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner, Result

from fourfold.compiler.cli import hardware as module
from fourfold.hardware import Machine, load
from fourfold.hardware.errors import ProfileError, UsageError

MISTAKES = Path(__file__).parent / "mistakes"
SOURCE = Path(__file__).resolve().parents[2] / "src"
PROBE = """
import sys
from fourfold.compiler.cli.hardware import hardware
try:
    hardware(sys.argv[1:])
except SystemExit as end:
    code = end.code or 0
print("loaded:", sorted(set(sys.modules) & {"torch", "ortools", "networkx", "numpy", "triton"}), code)
"""


def run(*arguments: str, width: int = 80) -> Result:
    return CliRunner().invoke(module.hardware, list(arguments), env={"COLUMNS": str(width), "NO_COLOR": "1"})


def answer(*arguments: str) -> object:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_the_module_is_the_app() -> None:
    assert isinstance(module, ModuleType) and module.hardware.info.name == "hardware"


@pytest.mark.parametrize(
    "arguments",
    [
        ("list",),
        ("show", "dgx-h200:4"),
        ("show", "h200-4", "--origin"),
        ("show", "h200-kernels"),
        ("show", "_gpu-base"),
        ("compare", "dgx-h100", "mi300x-8"),
        ("check", str(MISTAKES / "both-ways.toml")),
        ("--help",),
    ],
    ids=lambda arguments: "-".join(arguments)[:24],
)
def test_nothing_is_wider_than_80_columns(arguments: tuple[str, ...], folder: Path) -> None:
    output = run(*arguments).output
    assert output.strip()
    assert max(len(line) for line in output.splitlines()) <= 80
    assert "\x1b" not in output


def test_list(folder: Path) -> None:
    text = run("list").output
    assert text.index("Clusters") < text.index("Nodes") < text.index("Devices") < text.index("Calibrations")
    rows = answer("list", "--kind", "node")
    assert isinstance(rows, list)
    assert {row["kind"] for row in rows} == {"node"} and "dgx-h200" in {row["name"] for row in rows}
    assert isinstance(run("list", "--kind", "nodes").exception, UsageError)


def test_show_prints_the_machine_and_what_groups_cross(folder: Path) -> None:
    text = run("show", "dgx-h200:4").output
    assert "32 x nvidia-h200-sxm5-141gb (4 nodes of 8)" in text
    assert "nvswitch: 450 GB/s x 1.29" in text
    assert "default: 50 GB/s" in text
    assert "fabric.nvswitch.per_direction" in text


def test_show_origin_prints_value_file_and_status_of_every_field(folder: Path) -> None:
    text = run("show", "dgx-b200", "--origin", width=200).output
    assert "vendor in shipped/node/dgx-b200.toml: NVLink 5: 18 links, 900 GB/s" in text
    assert "published in shipped/node/dgx-h200.toml: MLPerf system file: two sockets of 56" in text
    assert "host.cores  112" in text
    assert "nvidia-b200-sxm-180gb: memory.usable" in text


def test_show_json_holds_a_snapshot_that_reads_back(folder: Path) -> None:
    shown = answer("show", "h200-2")
    assert isinstance(shown, dict)
    assert shown["fields"]["fabric.nvswitch.links"]["value"] == "18"
    assert Machine.from_snapshot(shown["machine"]) == load("h200-2")


def test_check_exits_12_on_an_error_and_0_on_a_warning(folder: Path) -> None:
    result = run("check", str(MISTAKES / "both-ways.toml"), "dgx-h200", width=200)
    assert result.exit_code == 12
    assert "error HW232" in result.output and "dgx-h200: ok" in result.output
    result = run("check", str(MISTAKES / "sparse-peaks.toml"))
    assert result.exit_code == 0 and "warning HW214" in result.output
    found = json.loads(run("check", str(MISTAKES / "percent.toml"), "--json").output)
    assert [one["code"] for messages in found.values() for one in messages] == ["HW224"]
    assert run("check", "nothing.toml").exit_code == 12


def test_compare(folder: Path) -> None:
    lines = [line.split() for line in run("compare", "dgx-h100", "dgx-h200:2").output.splitlines()]
    assert ["ranks", "8", "16", "2.00"] in lines
    assert ["memory", "rate", "3.35", "TB/s", "4.8", "TB/s", "1.43"] in lines
    rows = answer("compare", "dgx-h100", "mi300x-8")
    assert isinstance(rows, list)
    assert {"what": "peak fp4", "dgx-h100": None, "mi300x-8": None} not in rows


def test_new_writes_a_cluster_that_loads_and_checks(folder: Path) -> None:
    result = run("new", "lab", "--from", "dgx-h200", "--nodes", "4")
    assert result.exit_code == 0 and "wrote fourfold-hardware/lab.toml" in result.output
    assert load("lab").ranks == 32
    path, default = load("lab").crossing((0, 8)).inter, load("dgx-h200:4").crossing((0, 8)).inter
    assert path is not None and default is not None and path.bandwidth == default.bandwidth
    assert run("check", "fourfold-hardware/lab.toml").exit_code == 0
    assert isinstance(run("new", "lab", "--from", "dgx-h200").exception, UsageError)


def test_new_with_ports_of_its_own_writes_the_node_too(folder: Path) -> None:
    shown = answer("new", "lab", "--from", "h200-4", "--nodes", "2", "--nic", "400 Gb/s")
    assert isinstance(shown, dict)
    assert shown["files"] == ["fourfold-hardware/lab-node.toml", "fourfold-hardware/lab.toml"]
    machine = load("lab")
    path = machine.crossing((0, 4)).inter
    assert machine.ranks == 8 and path is not None and path.bandwidth == 50e9
    assert machine.calibration == load("h200-4").calibration  # links inside the node are the same
    for file in shown["files"]:
        assert "ok" in run("check", file).output


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("new", "lab", "--from", "dgx-h20"), ProfileError),
        (("new", "lab", "--from", "h200-4"), ProfileError),
        (("new", "lab", "--from", "nvidia-gb200"), ProfileError),
        (("new", "lab", "--from", "dgx-h200", "--nic", "400 gb"), ProfileError),
        (("new", "../lab", "--from", "dgx-h200"), UsageError),
        (("new", "lab", "--from", "dgx-h200", "--nodes", "0"), UsageError),
        (("show", "dgx-h20"), ProfileError),
        (("compare", "dgx-h200", "h200-kernels"), ProfileError),
    ],
)
def test_what_cannot_be_done_is_said(arguments: tuple[str, ...], error: type[Exception], folder: Path) -> None:
    assert isinstance(run(*arguments).exception, error)
    assert not (folder / "fourfold-hardware").exists()


def test_new_cannot_write(folder: Path) -> None:
    (folder / "fourfold-hardware").write_text("a file is in the way")
    assert isinstance(run("new", "lab", "--from", "dgx-h200").exception, UsageError)


@pytest.mark.parametrize("arguments", [("list",), ("show", "dgx-h200:4"), ("check", "dgx-h200"), ("--help",)])
def test_a_process_answers_without_torch_solver_or_graph_library(arguments: tuple[str, ...], folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.splitlines()[-1] == "loaded: [] 0"


def test_check_without_a_name_checks_all_there_are() -> None:
    checked = answer("check")
    assert isinstance(checked, dict)
    assert {"dgx-h200", "nvidia-h200-sxm5-141gb", "h200-kernels"} <= checked.keys()
    assert not [name for name, messages in checked.items() for one in messages if one["level"] == "error"]
