"""What a checkpoint holds: every bit of weights and optimizer state, under whatever plan it is loaded."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from fourfold.backends.communication.processes import run
from fourfold.backends.program import Program

Maker = Callable[[Program], torch.optim.Optimizer]


def adamw(program: Program) -> torch.optim.Optimizer:
    return torch.optim.AdamW(program.parameters(), lr=1e-2, weight_decay=0.1)


def momentum(program: Program) -> torch.optim.Optimizer:
    """Two groups, momentum in one of them only."""
    named = list(program.named_parameters())
    groups = [
        {"params": [p for n, p in named if "norm" in n], "lr": 0.1},
        {"params": [p for n, p in named if "norm" not in n], "momentum": 0.9},
    ]
    return torch.optim.SGD(groups, lr=0.01, foreach=True)


def fused(program: Program) -> torch.optim.Optimizer:
    return torch.optim.AdamW(program.parameters(), lr=1e-2, fused=True)


def everything(program: Program, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The whole weights and optimizer state, as plain values. A collective."""
    found: dict[str, Any] = {name: t.tolist() for name, t in program.full_state_dict(everywhere=True).items()}
    names = {id(p): name for name, p in program.named_parameters()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            whole = program._whole(names[id(parameter)], value) if isinstance(value, DTensor) else value
            found[f"{names[id(parameter)]} {key}"] = whole.tolist() if isinstance(whole, torch.Tensor) else whole
    found["groups"] = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    return found


def saved(case: Any, folder: Path, tiny: Any, make: Maker = adamw, steps: int = 2) -> dict[str, Any]:
    """Trains under one plan and saves; everything that was saved."""

    def work(rank: int) -> dict[str, Any]:
        program = case.program()
        optimizer = make(program)
        program.init(seed=3)
        tiny.train(program, optimizer, range(steps))
        program.save(folder, optimizer)
        return everything(program, optimizer) if rank == 0 else (everything(program, optimizer), {})[1]

    return run(work, case.ranks)[0]


def loaded(case: Any, folder: Path, make: Maker = adamw) -> tuple[dict[str, Any], tuple[int, int, int, int]]:
    """Everything as another program holds it after loading, and its position."""

    def work(rank: int) -> Any:
        program = case.program()
        optimizer = make(program)
        program.load(folder, optimizer)
        found = everything(program, optimizer)
        position = (program.steps_done, program.sequences_seen, program.tokens_seen, program.seed)
        return (found if rank == 0 else {}), position

    answers = run(work, case.ranks)
    assert len({position for _, position in answers}) == 1
    return answers[0]


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    return [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]


QUICK = [(1, 2, 0), (1, 1, 3), (3, 1, 2)]
MORE = [(2, 1, 3), (2, 1, 0), (4, 1, 1), (2, 2, 3), (2, 2, 0), (1, 2, 3), (3, 2, 3)]


@pytest.mark.parametrize("plan", [*QUICK, *(pytest.param(p, marks=pytest.mark.slow) for p in MORE)], ids=str)
def test_another_plan_loads_every_bit(
    plan: tuple[int, int, int], folder: tuple[Path, dict[str, Any]], tiny: Any
) -> None:
    path, wanted = folder
    found, position = loaded(tiny.case(tiny.llama, *plan), path)
    assert differences(found, wanted) == []
    assert position == (2, 10, 88, 3)


@pytest.fixture(scope="module")
def folder(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("saved") / "run"
    return path, saved(tiny.case(tiny.llama, 2, 1, 3), path, tiny)


@pytest.mark.slow
@pytest.mark.parametrize("make", [momentum, fused])
@pytest.mark.parametrize("plan", [(2, 2, 3), (1, 2, 1)], ids=str)
def test_from_cut_weights_too(plan: tuple[int, int, int], make: Maker, tiny: Any, tmp_path: Path) -> None:
    wanted = saved(tiny.case(tiny.gpt, *plan), tmp_path, tiny, make)
    for other in ((3, 1, 3), (1, 1, 0), (2, 2, 3)):
        assert differences(loaded(tiny.case(tiny.gpt, *other), tmp_path, make)[0], wanted) == []


@pytest.mark.parametrize("plan", [(1, 2, 0), pytest.param((3, 1, 3), marks=pytest.mark.slow)], ids=str)
def test_frozen_and_never_stepped_parameters_have_no_state(
    plan: tuple[int, int, int], tiny: Any, tmp_path: Path
) -> None:
    def make() -> torch.nn.Module:
        model = tiny.llama()
        model.embedding.weight.requires_grad_(False)
        return model

    def work(rank: int) -> Any:
        program = before.program()
        optimizer = adamw(program)
        program.init(seed=3)
        program.step(tiny.batch(0))
        dict(program.named_parameters())["layers.1.feed_forward.up.weight"].grad = None
        optimizer.step()
        program.save(tmp_path, optimizer)
        return everything(program, optimizer)

    before = tiny.case(make, 2, 1, 3)
    wanted = run(work, 2)[0]
    assert not any(name.startswith(("embedding.weight ", "layers.1.feed_forward.up.weight ")) for name in wanted)
    assert any(name.startswith("layers.0.feed_forward.up.weight exp_avg") for name in wanted)
    assert differences(loaded(tiny.case(make, *plan), tmp_path)[0], wanted) == []


def test_an_optimizer_without_a_step_is_saved_too(tiny: Any, tmp_path: Path) -> None:
    one = tiny.case(tiny.llama)
    wanted = saved(one, tmp_path, tiny, momentum, steps=0)
    assert [g["lr"] for g in wanted["groups"]] == [0.1, 0.01]
    assert differences(loaded(one, tmp_path, momentum)[0], wanted) == []


def test_a_rank_file_names_no_class_of_ours(tiny: Any, tmp_path: Path) -> None:
    """What is saved is read by programs whose files may lie elsewhere."""
    saved(tiny.case(tiny.llama), tmp_path, tiny, momentum, steps=1)
    (path,) = tmp_path.glob("step-*/rank-0.pt")
    with zipfile.ZipFile(path) as file:
        (pickled,) = (file.read(name) for name in file.namelist() if name.endswith("data.pkl"))
    assert b"momentum" in pickled
    assert b"fourfold" not in pickled


def test_after_an_evaluation_the_weights_are_still_shards(tiny: Any, tmp_path: Path) -> None:
    """Below ZeRO 3 a forward alone leaves weights gathered, and gathered weights are none to save or change."""

    def work(rank: int) -> tuple[float, float, bool]:
        program = case.program()
        program.init(seed=3)
        program.evaluate(tiny.batch(0))
        names = [n for n, p in program.named_parameters() if not isinstance(p, DTensor)]
        program.save(tmp_path)
        first = program.evaluate(tiny.batch(0))
        program.init(seed=4)
        other = program.evaluate(tiny.batch(0))
        program.load(tmp_path)
        return first - program.evaluate(tiny.batch(0)), abs(first - other), not names

    case = tiny.case(tiny.llama, 2, 1, 1)
    for same, other, sharded in run(work, 2):
        assert same == 0.0
        assert other > 1e-3
        assert sharded


def test_the_whole_weights_fit_the_plain_model(tiny: Any) -> None:
    """Fused projections joined, the tied head under both names: the plain model then has the same loss."""

    def work(rank: int) -> tuple[float, float, list[str]]:
        program = case.program()
        program.init(seed=3)
        optimizer = adamw(program)
        tiny.train(program, optimizer, range(2))
        tensors = program.full_state_dict()
        if rank:
            return 0.0, program.evaluate(tiny.batch(7)), list(tensors)
        model = tiny.gpt().double()
        model.load_state_dict(tensors)
        return mean_loss(model, tiny.batch(7)), program.evaluate(tiny.batch(7)), list(tensors)

    case = tiny.case(tiny.gpt, 2, 2, 3)
    (plain, ours, names), *others = run(work, 4)
    assert plain == pytest.approx(ours, rel=1e-12)
    assert {"head.weight", "tokens.weight", "layers.0.attention.qkv.bias"} <= set(names)
    assert [names for _, _, names in others] == [[], [], []]


def mean_loss(model: torch.nn.Module, batch: list[list[int]]) -> float:
    """The mean over all next tokens of all documents, by the plain model."""
    total, count = 0.0, 0
    for tokens in (torch.tensor(t) for t in batch if len(t) > 1):
        logits = model(tokens[None])[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="sum"))
        count += len(tokens) - 1
    return total / count
