"""What the tests of the command line share: running it, here or in a process of its own, and answers made by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fourfold.compiler.cli.app import run
from fourfold.ir.answer import Answer, Candidate, Estimate, Refusal
from fourfold.ir.graph import TOKENS, Block, Call, Graph, Node, Ref, Source, Tensor
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import Decision, Layout, Plan, Precision
from fourfold.ir.workload import Workload

SOURCE = Path(__file__).resolve().parents[2] / "src"
TINY = Path(__file__).parent / "models.py"
GIB = 2.0**30


@dataclass(frozen=True, slots=True)
class Said:
    """What a command ended with, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """Its JSON."""
        return json.loads(self.out)

    @property
    def line(self) -> str:
        """Its one line of error; no traceback may stand beside it."""
        assert "Traceback" not in self.out + self.err
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        return lines[0]


@pytest.fixture
def fourfold(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Runs the command line in this process, 80 columns wide and without colour."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")

    def call(*arguments: str) -> Said:
        capsys.readouterr()
        code = run(arguments)
        written = capsys.readouterr()
        return Said(code, written.out, written.err)

    return call


@pytest.fixture
def process() -> Callable[..., Said]:
    """Runs `python -m fourfold`, or another command line of Python, in a process of its own."""

    def call(*arguments: str, python: tuple[str, ...] = ("-m", "fourfold"), **environment: str) -> Said:
        told = {**os.environ, "COLUMNS": "80", "PYTHONPATH": str(SOURCE), **environment}
        answer = subprocess.run([sys.executable, *python, *arguments], capture_output=True, text=True, env=told)
        return Said(answer.returncode, answer.stdout, answer.stderr)

    return call


@pytest.fixture
def tiny() -> str:
    """A model that captures in a moment, as the command line names it."""
    return f"{TINY}:tiny"


@pytest.fixture
def graph() -> Graph:
    """Embedding, two layers with attention, head: written by hand, as capture would."""
    return Graph("Hand", "0123456789abcdef", {b.name: b for b in (_first(), _layer(), _last())}, _calls())


@pytest.fixture
def plan(graph: Graph) -> Plan:
    """A plan over dp2 x tp2."""
    return Plan(
        graph,
        {"machine": {"spec": "dgx-h200"}},
        Workload.fixed(length=8192, sequences=64),
        mesh=Mesh(dp=2, tp=2),
        zero=1,
        precision=Precision.bf16,
        micro_steps=2,
        capacity=16384,
        layouts={
            "first": Layout({"embedding": "d"}),
            "layers.*": Layout({"up": "f", "attention:0": "g", "down": "d"}),
            "last": Layout({"loss:0": "v"}),
        },
        recompute=("none", "full", "none", "none"),
        pins={"tp": 2, "zero": 1},
        log=(
            Decision("Search", "mesh", "dp2 x tp2", (("dp2 x tp2", 1.25), ("dp4", 1.5))),
            Decision("CutTensors", "layers.*.norm", "whole: tp=2 divides none of its labels"),
        ),
    )


@pytest.fixture
def estimate() -> Estimate:
    """Something of every size: seconds and milliseconds, bytes and GiB, bands and points."""
    return Estimate(
        step=1.25,
        parts=(
            ("products", 0.9),
            ("attention", 0.2),
            ("tensor communication", 0.1),
            ("optimizer", 0.04999),
            ("x", 1e-6),
        ),
        memory={
            "parameters": (12 * GIB, 12 * GIB),
            "activations": (60 * GIB, 71 * GIB),
            "logits": (512 * 2.0**20, 2 * GIB),
            "workspace": (0.0, 32 * 2.0**20),
        },
        limit=132 * GIB,
        flops=2.7e15,
        mfu=0.5432,
        tokens=524288,
        ranks=4,
    )


@pytest.fixture
def answer(plan: Plan, estimate: Estimate) -> Answer:
    """A whole answer: next-best plans, a refusal with repairs, pins that cost and one that does not."""
    from dataclasses import replace

    other = Candidate(replace(plan, mesh=Mesh(dp=4), zero=3), replace(estimate, step=1.5))
    refusal = Refusal(
        "tp4", "3.2 GiB short: ZeRO 0, 8 micro-steps, full recompute", (("recompute in layers 0-9", 1.31),)
    )
    return Answer(plan, estimate, (other,), (refusal,), {"tp": 0.1, "zero": 0.0}, solving=0.4)


def _node(name: str, op: str, inputs: tuple[str, ...], shape: tuple[int, ...], **kwargs: Any) -> Node:
    refs = tuple(Ref(one) for one in inputs)
    return Node(name, op, refs, tuple(kwargs.items()), Tensor(shape, "bfloat16", True), name.partition(":")[0])


def _parameters(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name.replace("__", "."): Tensor(shape, "bfloat16", True) for name, shape in shapes.items()}


def _first() -> Block:
    node = _node("embedding", "embedding", ("embedding.weight", "tokens"), (1, TOKENS, 512))
    tokens = {"tokens": Tensor((1, TOKENS), "int64")}
    return Block("first", tokens, _parameters(embedding__weight=(32000, 512)), {}, (node,), ("embedding",))


def _layer() -> Block:
    hidden = Tensor((1, TOKENS, 512), "bfloat16", True)
    nodes = (
        _node("norm", "rms_norm", ("in0", "norm.weight"), (1, TOKENS, 512)),
        _node("up", "linear", ("norm", "up.weight"), (1, TOKENS, 512)),
        _node("view:0", "view", ("up",), (1, TOKENS, 8, 64)),
        _node("permute:0", "permute", ("view:0",), (1, 8, TOKENS, 64)),
        _node("attention:0", "attention", ("permute:0", "permute:0", "permute:0"), (1, 8, TOKENS, 64)),
        _node("permute:1", "permute", ("attention:0",), (1, TOKENS, 8, 64)),
        _node("view:1", "view", ("permute:1",), (1, TOKENS, 512)),
        _node("down", "linear", ("view:1", "down.weight"), (1, TOKENS, 512)),
    )
    weights = _parameters(norm__weight=(512,), up__weight=(512, 512), down__weight=(512, 512))
    return Block("layers.*", {"in0": hidden}, weights, {}, nodes, ("down",))


def _last() -> Block:
    hidden = Tensor((1, TOKENS, 512), "bfloat16", True)
    row = Tensor((TOKENS,), "int64")
    node = Node(
        "loss:0",
        "loss",
        (Ref("in0"), Ref("head.weight"), Ref("targets"), Ref("weights")),
        (("transposed", False),),
        Tensor((), "float32", True),
        "head",
    )
    inputs = {"in0": hidden, "targets": row, "weights": Tensor((TOKENS,), "float32")}
    return Block("last", inputs, _parameters(head__weight=(32000, 512)), {}, (node,), ("loss:0",))


def _calls() -> tuple[Call, ...]:
    graph = -1
    return (
        Call("first", "", (Source(graph, 0),)),
        Call("layers.*", "layers.0", (Source(0, 0),)),
        Call("layers.*", "layers.1", (Source(1, 0),)),
        Call("last", "", (Source(2, 0), Source(graph, 2), Source(graph, 3))),
    )
