"""Whole weights in and out of pipelines, and what does not fit, named on every rank of every stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from fourfold.backends.checkpoint import checkpoint
from fourfold.backends.communication.processes import run
from fourfold.backends.communication.ranks import gathered
from fourfold.backends.program import Options, Program
from fourfold.compiler.schedules import Scheduled
from fourfold.hardware.errors import FourfoldError
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import Plan

Make = Callable[[], nn.Module]


@dataclass(frozen=True, slots=True)
class Staged:
    """A model in pipeline stages."""

    make: Make
    plan: Plan

    def program(self, make: Make | None = None) -> Program:
        model = (make or self.make)()
        return Program(model, self.plan, self.plan.graph, Options(timeout=60.0), Scheduled.of(self.plan))


def staged(tiny: Any, make: Make, mesh: Mesh, *, bounds: tuple[int, ...] = (2,), schedule: str = "1f1b") -> Staged:
    plan = tiny.case(make, tp=mesh.tp, zero=0).plan
    return Staged(make, replace(plan, mesh=mesh, bounds=bounds, schedule=schedule, capacity=24))


def adamw(program: Program) -> torch.optim.Optimizer:
    return torch.optim.AdamW(program.parameters(), lr=1e-2)


def raised(body: Callable[[], object]) -> str:
    try:
        body()
    except FourfoldError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def other(make: Make) -> nn.Module:
    """The same model with other weights."""
    model = make()
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model.double()


def copies(program: Program) -> dict[str, list[Any]]:
    """The whole of each parameter under every rank's own name for it. A collective of each stage."""
    whole = {n: program._whole(n, p) for n, p in program.named_parameters()}
    return {n: (v.full_tensor() if isinstance(v, DTensor) else v).tolist() for n, v in whole.items()}


WIDE = [
    ("llama", Mesh(pp=2), (2,), "1f1b"),
    ("gpt", Mesh(pp=2, tp=2), (2,), "1f1b"),
    pytest.param("gpt", Mesh(pp=2), (1, 2, 3), "interleaved-2", marks=pytest.mark.slow),
    pytest.param("gpt", Mesh(dp=2, pp=2), (3,), "gpipe", marks=pytest.mark.slow),
    pytest.param("gpt", Mesh(pp=3), (1, 2), "1f1b", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("family", "mesh", "bounds", "schedule"), WIDE)
def test_weights_go_in_and_come_out_whole(
    family: str, mesh: Mesh, bounds: tuple[int, ...], schedule: str, tiny: Any
) -> None:
    """Bit for bit, under all their names in the model's order; on rank 0 alone, or on all; every tied copy, too."""
    make = getattr(tiny, family)
    case = staged(tiny, make, mesh, bounds=bounds, schedule=schedule)

    def work(rank: int) -> dict[str, Any]:
        program, model = case.program(), other(make)
        program.copy_from(model)
        first, everywhere = program.full_state_dict(), program.full_state_dict(everywhere=True)
        wanted = model.state_dict()
        unlike = [n for n in wanted if not torch.equal(everywhere[n], wanted[n])]
        tied = [own for own in gathered(copies(program)) if "tokens.weight" in own]
        return {
            "names": list(everywhere) == list(wanted),
            "unlike": unlike,
            "first": [n for n in first if not torch.equal(first[n], everywhere[n])],
            "held": len(first),
            "tied": len(tied),
            "copies": all(own["tokens.weight"] == wanted["tokens.weight"].tolist() for own in tied),
        }

    answers = run(work, mesh.ranks)
    count = len(make().state_dict())
    tied = 0 if family == "llama" else mesh.ranks // mesh.pp * 2
    for rank, found in enumerate(answers):
        held = count if rank == 0 else 0
        assert found == {"names": True, "unlike": [], "first": [], "held": held, "tied": tied, "copies": True}, rank


def test_ranks_that_disagree_about_one_stage_are_named(tiny: Any) -> None:
    """Of four ranks two hold the last stage, and only there can its weights differ."""

    def bare() -> nn.Module:
        model = tiny.llama()
        model.norm.reset_parameters = None
        return model

    def changed(rank: int) -> Make:
        def make() -> nn.Module:
            model = bare()
            with torch.no_grad():
                model.norm.weight.add_(rank == 3)
            return model

        return make

    def work(rank: int) -> tuple[str, str]:
        program = case.program(changed(rank))
        made = raised(lambda: program.init(seed=3))
        return made, raised(lambda: program.copy_from(changed(rank)().double()))

    case = staged(tiny, bare, Mesh(dp=2, pp=2))
    for made, copied in run(work, 4):
        assert made.endswith("built alike on every rank: norm.weight differs between rank 2 and rank 3")
        assert copied.endswith("same weights on every rank: norm.weight differs between rank 0 and rank 3")


def grouped(program: Program, *, norms: bool = True) -> torch.optim.Optimizer:
    """Norms, which both stages have, without momentum."""
    named = list(program.named_parameters())
    groups: list[dict[str, Any]] = [{"params": [p for n, p in named if "norm" not in n], "momentum": 0.9}]
    groups += [{"params": [p for n, p in named if "norm" in n]}] if norms else []
    return torch.optim.SGD(groups, lr=0.01)


def without(program: Program, name: str) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for n, p in program.named_parameters() if n != name], lr=0.01)


UNFIT = {
    "class": "RunError: the checkpoint holds the state of SGD, and the optimizer is AdamW",
    "first stage": "embedding.weight is only in the checkpoint (1 in all)",
    "last stage": "head.weight is only in the checkpoint (1 in all)",
    "both stages": "norm.weight is only in the checkpoint (5 in all)",
    "one group": "which have different settings in the checkpoint: put them in different groups",
    "shallower": "layers.1.attention.k.weight is [20, 20] here and absent in the checkpoint",
    "all good": "nothing",
}


def test_what_does_not_fit_is_named_on_every_stage(tiny: Any, tmp_path: Path) -> None:
    """Each stage knows only its own names, and every rank must say the same."""

    def short() -> nn.Module:
        model = tiny.llama()
        del model.layers[1]
        return model

    def shallow(rank: int) -> None:
        alone = tiny.case(short).program()
        alone.init(seed=3)
        alone.save(tmp_path / "shallow")

    def work(rank: int) -> dict[str, str]:
        program, good = case.program(), tmp_path / "good"
        program.init(seed=3)
        optimizer = grouped(program)
        tiny.train(program, optimizer, range(1))
        program.save(good, optimizer)
        calls: dict[str, Callable[[], object]] = {
            "class": lambda: program.load(good, adamw(program)),
            "first stage": lambda: program.load(good, without(program, "embedding.weight")),
            "last stage": lambda: program.load(good, without(program, "head.weight")),
            "both stages": lambda: program.load(good, grouped(program, norms=False)),
            "one group": lambda: program.load(good, without(program, "")),
            "shallower": lambda: program.load(tmp_path / "shallow"),
            "all good": lambda: program.load(good, grouped(program)),
        }
        return {name: raised(call) for name, call in calls.items()}

    case = staged(tiny, tiny.llama, Mesh(pp=2))
    run(shallow, 1)
    for rank, found in enumerate(run(work, 2)):
        assert {n: text for n, text in found.items() if not text.endswith(UNFIT[n]) and UNFIT[n] not in text} == {}, (
            rank
        )


def test_a_stage_that_cannot_save_leaves_what_was_there(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the last stage's disk is full: all ranks raise, and the checkpoint before is the one that loads."""

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    def work(rank: int) -> tuple[str, int, bool]:
        program = case.program()
        program.init(seed=3)
        optimizer = adamw(program)
        program.save(tmp_path, optimizer)
        kept = program.full_state_dict(everywhere=True)
        tiny.train(program, optimizer, range(2))
        monkeypatch.setattr(checkpoint, "flush", full if rank == 1 else checkpoint.flush)
        text = raised(lambda: program.save(tmp_path, optimizer))
        program.load(tmp_path, optimizer)
        found = program.full_state_dict(everywhere=True)
        return text, program.steps_done, all(torch.equal(found[n], kept[n]) for n in kept)

    case = staged(tiny, tiny.llama, Mesh(pp=2))
    for text, steps, same in run(work, 2):
        assert "No space left on device" in text
        assert (steps, same) == (0, True)
