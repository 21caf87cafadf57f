"""A save that fails leaves what was there; a folder that cannot be used is one line on every rank, never a wait."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fourfold.backends.checkpoint import checkpoint
from fourfold.backends.communication.processes import run
from fourfold.backends.program import Program
from fourfold.hardware.errors import FourfoldError, RunError

Call = Callable[[Program], Any]


def adamw(program: Program) -> torch.optim.Optimizer:
    return torch.optim.AdamW(program.parameters(), lr=1e-2)


def raised(call: Callable[[], Any]) -> tuple[str, str]:
    """Class and text of the error a call raises, as plain values."""
    try:
        call()
    except FourfoldError as error:
        return type(error).__name__, str(error)
    return "nothing", ""


def on_every_rank(tiny: Any, calls: dict[str, Call]) -> dict[str, tuple[str, str]]:
    """What each call raises, once all of two ranks were seen to raise the same class; the text is rank 0's."""

    def work(rank: int) -> dict[str, tuple[str, str]]:
        program = case.program()
        program.init(seed=3)
        return {name: raised(lambda call=call: call(program)) for name, call in calls.items()}

    case = tiny.case(tiny.llama, 2, 1, 3)
    first, second = run(work, 2, timeout=120)
    assert {n: kind for n, (kind, _) in first.items()} == {n: kind for n, (kind, _) in second.items()}
    return first


@pytest.fixture(scope="module")
def folder(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good checkpoint with an optimizer and a schedule."""
    path = tmp_path_factory.mktemp("saved") / "run"

    def work(rank: int) -> None:
        program = case.program()
        program.init(seed=3)
        optimizer = adamw(program)
        tiny.train(program, optimizer, range(1))
        program.save(path, optimizer, schedule=torch.optim.lr_scheduler.StepLR(optimizer, 1))

    case = tiny.case(tiny.llama, 2, 1, 3)
    run(work, 2)
    return path


def copied(folder: Path, to: Path, change: Callable[[Path, Path], None]) -> Path:
    """A copy of a checkpoint with something done to it: `change(folder, data folder)`."""
    shutil.copytree(folder, to)
    change(to, to / json.loads((to / "checkpoint.json").read_text())["data"])
    return to


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def drop(path: Path, key: str) -> None:
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))


DAMAGE: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "index cut": (lambda f, d: cut(f / "checkpoint.json"), "damaged: checkpoint.json is no index"),
    "index without a field": (lambda f, d: drop(f / "checkpoint.json", "ranks"), "damaged: checkpoint.json: Index"),
    "index of another version": (lambda f, d: edit(f / "checkpoint.json", schema="fourfold.checkpoint/9"), "version"),
    "index gone": (lambda f, d: (f / "checkpoint.json").unlink(), "holds no checkpoint"),
    "data gone": (lambda f, d: edit(f / "checkpoint.json", data="step-00000009-00000000"), "damaged: rank-0.pt"),
    "rank file cut": (lambda f, d: cut(d / "rank-1.pt"), "rank-1.pt"),
    "tensors cut": (lambda f, d: cut(d / "__1_0.distcp"), "could not be read"),
    "tensors gone": (lambda f, d: (d / "__0_0.distcp").unlink(), "could not be read"),
    "torch's index cut": (lambda f, d: cut(d / ".metadata"), "could not be read"),
}


def test_damage_is_named_on_every_rank(folder: Path, tiny: Any, tmp_path: Path) -> None:
    calls: dict[str, Call] = {}
    for i, (name, (change, _)) in enumerate(DAMAGE.items()):
        path = copied(folder, tmp_path / str(i), change)
        calls[name] = lambda program, path=path: program.load(path, adamw(program))
    wrong = {
        name: (kind, text)
        for name, (kind, text) in on_every_rank(tiny, calls).items()
        if kind != "RunError" or DAMAGE[name][1] not in text or str(tmp_path) not in text or "\n" in text
    }
    assert wrong == {}


UNFIT = {
    "missing": ("RunError", "nowhere holds no checkpoint: it has no checkpoint.json"),
    "parent": ("RunError", "there is one in each of run there"),
    "below a file": ("RunError", "could not be written: NotADirectoryError"),
    "in a file": ("RunError", "could not be written: "),
    "class": ("RunError", "the checkpoint holds the state of AdamW, and the optimizer is SGD"),
    "groups": ("nothing", ""),
    "parameters": ("RunError", "layers.0.attention_norm.weight is only in the checkpoint"),
    "name": ("RunError", "holds no sampler: beside weights it has optimizer, schedule"),
    "value": ("UsageError", "epoch is int: to be part of a checkpoint it needs"),
    "strange": ("UsageError", "shape [3] that is not this program's"),
    "shards": ("UsageError", "ema holds tensors cut over the ranks"),
    "after all that": ("nothing", ""),
}


def test_what_does_not_fit_is_named_on_every_rank(folder: Path, tiny: Any, tmp_path: Path) -> None:
    def single(program: Program) -> torch.optim.Optimizer:
        """Groups are matched by their parameters: other groups fit, other parameters do not."""
        return torch.optim.AdamW([{"params": [p]} for p in program.parameters()])

    def matrices(program: Program) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in program.parameters() if p.dim() > 1])

    (tmp_path / "file").write_text("in the way")
    strange = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))])
    calls: dict[str, Call] = {
        "missing": lambda p: p.load(tmp_path / "nowhere"),
        "parent": lambda p: p.load(folder.parent),
        "below a file": lambda p: p.save(tmp_path / "file" / "x"),
        "in a file": lambda p: p.save(tmp_path / "file"),
        "class": lambda p: p.load(folder, torch.optim.SGD(p.parameters())),
        "groups": lambda p: p.load(folder, single(p)),
        "parameters": lambda p: p.load(folder, matrices(p)),
        "name": lambda p: p.load(folder, sampler=Kept()),
        "value": lambda p: p.save(tmp_path / "v", epoch=3),
        "strange": lambda p: p.save(tmp_path / "s", strange),
        "shards": lambda p: p.save(tmp_path / "d", ema=Kept(next(iter(p.parameters())))),
        "after all that": lambda p: p.load(folder, adamw(p)),
    }
    found = on_every_rank(tiny, calls)
    assert {n: v for n, v in found.items() if v[0] != UNFIT[n][0] or UNFIT[n][1] not in v[1]} == {}
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


class Kept:
    """Holds one value."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"inside": [self.value]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["inside"][0]


def test_another_model_is_named_by_its_tensors(folder: Path, tiny: Any) -> None:
    def work(rank: int) -> tuple[str, str]:
        return raised(lambda: case.program().load(folder))

    case = tiny.case(tiny.gpt)
    kind, text = run(work, 1)[0]
    assert kind == "RunError"
    assert "is of another model (Llama, fingerprint " in text
    assert "tokens.weight is [58, 20] here and absent in the checkpoint" in text
    assert text.endswith("; ...")


def test_the_same_tensors_in_another_computation_are_doubted(folder: Path, tiny: Any) -> None:
    """Two heads of ten or one of twenty: nothing in the weights tells them apart."""
    wide = functools.partial(tiny.llama, heads=1, kv_heads=1)
    frozen = functools.partial(tiny.llama, frozen=True)

    def work(rank: int) -> list[list[str]]:
        said = []
        for case in cases:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                case.program().load(folder)
            said.append([str(w.message) for w in caught if "checkpoint" in str(w.message)])
        return said

    cases = [tiny.case(wide), tiny.case(frozen), tiny.case(tiny.llama, dtype="float32")]
    ((other, *same),) = run(work, 1)
    assert len(other) == 1
    assert "fits this model's tensors, but was saved by a model that computes otherwise" in other[0]
    assert same == [[], []]


def test_weights_must_be_set_before_a_step(tiny: Any) -> None:
    case = tiny.case(tiny.llama)
    text = "the weights are not set yet: call init(seed), load(folder) or copy_from(model) first"
    assert run(lambda rank: raised(lambda: case.program().step(tiny.batch(0))), 1) == (("UsageError", text),)
    assert run(lambda rank: raised(lambda: case.program().save("nowhere")), 1)[0][0] == "UsageError"


@pytest.mark.parametrize("how", ["full disk", "killed", "one rank fails"])
def test_a_save_that_fails_leaves_the_last_one(
    how: str, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first(rank: int) -> tuple[str, list[Any]]:
        program = case.program()
        program.init(seed=3)
        optimizer = adamw(program)
        program.save(tmp_path, optimizer)
        kept = program.full_state_dict(everywhere=True)["head.weight"].tolist()
        tiny.train(program, optimizer, range(1))
        fail(monkeypatch, how, rank)
        return raised(lambda: program.save(tmp_path, optimizer))[1], kept

    def second(rank: int) -> tuple[int, list[Any]]:
        program = case.program()
        program.load(tmp_path, adamw(program))
        kept = program.full_state_dict(everywhere=True)["head.weight"].tolist()
        program.save(tmp_path)
        return program.steps_done, kept

    case = tiny.case(tiny.llama, 2, 1, 3)
    (tmp_path / "mine.txt").write_text("kept")
    if how == "killed":
        with pytest.raises(RunError, match="died"):
            run(first, 2, timeout=60)
        kept = None
    else:
        (text, kept), (other, _) = run(first, 2, timeout=60)
        assert "No space left on device" in text
        assert "No space left on device" in other
        assert len([p for p in tmp_path.iterdir() if p.is_dir()]) == 1
    steps, found = run(second, 2)[0]
    assert steps == 0
    assert found == kept or kept is None
    # The next save clears what the broken one left, and nothing else.
    assert sorted(p.name.split("-")[0] for p in tmp_path.iterdir()) == ["checkpoint.json", "mine.txt", "step"]


def fail(monkeypatch: pytest.MonkeyPatch, how: str, rank: int) -> None:
    """Makes the next save of this process fail after its tensors were written."""

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    def killed(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if how == "one rank fails":
        monkeypatch.setattr(checkpoint, "flush", full if rank == 1 else checkpoint.flush)
    else:
        monkeypatch.setattr(checkpoint, "publish", full if how == "full disk" else killed)
