"""A rank that is killed or hangs in the middle of a step ends the others in time, and torchrun's restart goes on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STEPS = 8

SCRIPT = """
import json, os, pathlib, signal, sys, time
import torch
from fourfold.backends.program import Options, Program
from fourfold.compiler.capture import capture
from fourfold.compiler.models.llama import Llama, LlamaConfig
from fourfold.compiler.schedules import Scheduled
from fourfold.hardware.errors import FourfoldError
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import Plan, Precision
from fourfold.ir.workload import Workload

how, at, victim, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
folder = pathlib.Path(sys.argv[5])
model = Llama(LlamaConfig(layers=2, vocabulary=58, width=16, heads=2, kv_heads=2, feed_forward=32))
graph = capture(model, cached=False)
work = Workload.fixed(length=16, sequences=4)
plan = Plan(graph, {}, work, Mesh(pp=2), 0, Precision(), capacity=16, bucket=8, bounds=(2,))
program = Program(model, plan, graph, Options(device=torch.device("cpu"), timeout=5.0), Scheduled.of(plan))
optimizer = torch.optim.AdamW(program.parameters(), lr=1e-2)
if (folder / "kept" / "checkpoint.json").exists():
    program.load(folder / "kept", optimizer)
else:
    program.init(seed=1)

began = folder / "began"
forward = program.engine.run


def gone(root, stage, *rest, **options):
    program.ran += 1
    if how != "stay" and program.steps_done == at and program.ranks.rank == victim and program.ran == 2:
        if not began.exists():
            began.write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)
    return forward(root, stage, *rest, **options)


program.engine.run = gone
try:
    while program.steps_done < steps:
        random = torch.Generator().manual_seed(program.steps_done)
        program.ran = 0
        loss = program.step([torch.randint(0, 58, (n,), generator=random).tolist() for n in (13, 9, 16, 5)])
        program.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()
        if program.ranks.rank == 0:
            with (folder / "losses").open("a") as file:
                file.write(json.dumps([program.steps_done, loss.hex()]) + "\\n")
        if program.steps_done % 2 == 0:
            program.save(folder / "kept", optimizer)
except FourfoldError as error:
    (folder / f"seen-{program.ranks.rank}").write_text(f"{time.time()} {error}")
    print(error, file=sys.stderr, flush=True)
    os._exit(error.exit_code)
os._exit(0)
"""


def written(folder: Path) -> list[tuple[int, str]]:
    return [tuple(json.loads(line)) for line in (folder / "losses").read_text().splitlines()]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", **more}


def torchrun(folder: Path, how: str, restarts: int) -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    script = folder / "train.py"
    script.write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = [*launcher, "--max-restarts", str(restarts), str(script), how, "5", "1", str(STEPS), str(folder)]
    return subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.slow
def test_a_restart_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    """Killed in the middle of its sixth step, a checkpoint every second: the fifth is run again, to the bit."""
    straight = torchrun(tmp_path / "straight", "stay", 0)
    assert straight.returncode == 0, straight.stderr
    broken = torchrun(tmp_path / "broken", "kill", 1)
    assert broken.returncode == 0, broken.stderr
    wanted, found = written(tmp_path / "straight"), written(tmp_path / "broken")
    assert [step for step, _ in wanted] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [step for step, _ in found] == [1, 2, 3, 4, 5, 5, 6, 7, 8]
    assert found == [*wanted[:5], *wanted[4:]]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize(("how", "most"), [("kill", 4.0), ("stop", 15.0)])
def test_a_stage_that_is_gone_ends_the_others(how: str, most: float, victim: int, tmp_path: Path) -> None:
    """Killed: the other stage sees it at once. Stopped, as a hung machine is: after the timeout of 5 s."""
    children: list[subprocess.Popen[str]] = []
    (tmp_path / "train.py").write_text(SCRIPT)
    store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    for rank in range(2):
        words = [sys.executable, str(tmp_path / "train.py"), how, "3", str(victim), str(STEPS), str(tmp_path)]
        env = environment(**store, RANK=str(rank))
        children.append(subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True))
    other = 1 - victim
    try:
        children[other].wait(timeout=60)
        began = float((tmp_path / "began").read_text())
        seen, text = (tmp_path / f"seen-{other}").read_text().split(" ", 1)
        print(text)
        assert float(seen) - began < most
        assert how == "kill" or float(seen) - began > 4.0
        assert text.startswith(f"step 4 ended on rank {other}: another rank died, or hung for 5 s")
        assert children[other].returncode == 13
    finally:
        for child in children:
            child.send_signal(signal.SIGKILL)
            child.wait()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
