"""One error for all ranks, the line that starts the right number of them, and no rank that waits for a dead one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fourfold.backends.communication import ranks
from fourfold.backends.communication.processes import run
from fourfold.backends.communication.ranks import gathered, join, launch_line, same, together, told
from fourfold.hardware.errors import FourfoldError, ModelError, RunError
from fourfold.ir.mesh import Mesh

ROOT = Path(__file__).resolve().parents[2]


def raised(body: Any) -> tuple[str, str]:
    try:
        body()
    except FourfoldError as error:
        return type(error).__name__, str(error)
    return "nothing", ""


def one_fails(rank: int, error: Exception, where: int) -> tuple[str, str]:
    def body() -> None:
        with together():
            if rank == where:
                raise error

    return raised(body)


def test_what_one_rank_meets_all_raise() -> None:
    named = run(lambda rank: one_fails(rank, ModelError("no such layer"), 1), 3)
    assert named == (
        ("ModelError", "rank 1: no such layer"),
        ("ModelError", "no such layer"),
        ("ModelError", "rank 1: no such layer"),
    )
    other = run(lambda rank: one_fails(rank, KeyError("x"), 0), 2)
    assert other == (("RunError", "KeyError: 'x'"), ("RunError", "rank 0: KeyError: 'x'"))
    assert run(lambda rank: one_fails(rank, KeyError("x"), 7), 2) == (("nothing", ""), ("nothing", ""))


def test_ranks_tell_each_other() -> None:
    def work(rank: int) -> Any:
        return gathered(rank * 2), told(f"from {rank}"), raised(lambda: same({"a": "1", "b": f"{rank // 2}"}, "alike"))

    wanted = ([0, 2, 4], "from 0", ("RunError", "alike: b differs between rank 0 and rank 2"))
    assert run(work, 3) == (wanted,) * 3


def test_the_wrong_number_of_processes_gives_the_right_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--data", "my data"])
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    text = raised(lambda: join(Mesh(2, 2), shard=True))[1]
    assert text == (
        "the plan needs 4 processes (dp2 x tp2) and 1 is running; start it with: "
        "torchrun --nproc_per_node 4 train.py --data 'my data'"
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    text = raised(lambda: join(Mesh(1, 1), shard=True))[1]
    assert text == (
        "the plan needs 1 process (one rank) and 2 are running; start it with: python train.py --data 'my data'"
    )


def test_the_line_counts_hosts_when_one_has_too_few_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["-c"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert launch_line(8) == "torchrun --nproc_per_node 8 <script>"
    assert launch_line(32).startswith("torchrun --nnodes 4 --nproc_per_node 8 --rdzv_backend c10d ")
    monkeypatch.setenv("LOCAL_RANK", "8")
    with pytest.raises(RunError, match="process 8 of this host has no GPU: 8 are here"):
        ranks._device()


def test_one_rank_needs_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, because the group it makes stays."""
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def work() -> None:
        found = join(Mesh(), shard=True, device=torch.device("cpu"), timeout=7.0)
        theirs.send((found.world, found.rank, dist.get_backend(), gathered("alone")))

    child = context.Process(target=work)
    child.start()
    child.join(60)
    assert ours.poll()
    assert ours.recv() == (1, 0, "gloo", ["alone"])


SCRIPT = """
import sys, time, os, signal, pathlib
import torch
from fourfold.backends.program import Options, Program
from fourfold.compiler.capture import capture
from fourfold.compiler.models.llama import Llama, LlamaConfig
from fourfold.hardware.errors import FourfoldError
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import Plan, Precision
from fourfold.ir.workload import Workload

ranks, how, folder = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
model = Llama(LlamaConfig(layers=1, vocabulary=58, width=16, heads=2, kv_heads=2, feed_forward=32))
graph = capture(model, cached=False)
plan = Plan(graph, {}, Workload.fixed(length=16, sequences=4), Mesh(ranks), 3, Precision(), capacity=64, bucket=8)
try:
    program = Program(model, plan, graph, Options(device=torch.device("cpu"), timeout=5.0))
except FourfoldError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
program.init()
for step in range(1000):
    if how != "train" and step == 3 and program.ranks.rank == 1:
        (folder / "began").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)
    try:
        program.step([list(range(20)), list(range(12))])
    except Exception as error:
        (folder / "seen").write_text(f"{time.time()} {error}")
        raise
    if how == "train" and step == 2:
        break
print(f"done {program.steps_done}\\n", end="", flush=True)
os._exit(0)
"""


def torchrun(processes: int, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    script = folder / "train.py"
    script.write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.run(
        [*launcher, str(script), *words, str(folder)], env=env, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.mark.slow
def test_torchrun_with_the_wrong_number_prints_the_right_line(tmp_path: Path) -> None:
    done = torchrun(2, "3", "train", folder=tmp_path)
    assert done.returncode != 0
    assert (
        "the plan needs 3 processes (dp3) and 2 are running; start it with: torchrun --nproc_per_node 3 "
        f"{tmp_path / 'train.py'} 3 train {tmp_path}\n"
    ) in done.stderr
    assert "exitcode  : 13" in done.stderr


@pytest.mark.slow
def test_torchrun_with_the_right_number_trains(tmp_path: Path) -> None:
    done = torchrun(2, "2", "train", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["done", "3"] * 2


@pytest.mark.slow
@pytest.mark.parametrize(("how", "most"), [("kill", 4.0), ("stop", 15.0)])
def test_a_rank_that_is_gone_ends_the_others(how: str, most: float, tmp_path: Path) -> None:
    """Killed: the others see it at once. Stopped, as a hung machine is: after the timeout of 5 s."""

    children: list[subprocess.Popen[str]] = []
    (tmp_path / "train.py").write_text(SCRIPT)
    store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    for rank in range(2):
        env = {**os.environ, **store, "RANK": str(rank), "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        words = [sys.executable, str(tmp_path / "train.py"), "2", how, str(tmp_path)]
        children.append(subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True))
    try:
        assert children[0].wait(timeout=120) != 0
        began = float((tmp_path / "began").read_text())
        seen = float((tmp_path / "seen").read_text().split()[0])
        assert seen - began < most
        assert how == "kill" or seen - began > 4.0
    finally:
        for child in children:
            child.send_signal(signal.SIGKILL)
            child.wait()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
