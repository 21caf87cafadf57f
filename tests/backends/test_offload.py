"""What is kept in the host's memory changes no gradient, is as much as planned, and is gone from the device."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from fourfold.backends.communication.processes import run
from fourfold.backends.program import Options, Program
from fourfold.backends.stage.engine import Engine
from fourfold.backends.stage.host import Away, Host
from fourfold.backends.stage.offload import Offloading
from fourfold.compiler.models.llama import Llama, LlamaConfig
from fourfold.ir.batch import BatchPlan, Offload, Piece, spare
from fourfold.ir.batch_rules import Bounds, complaints
from fourfold.ir.schedule import Schedule, in_turn

LENGTHS = (13, 1, 9, 16, 5)
LAYERS = 6
SHARES = (0.25, 0.5, spare(LAYERS))


def deep() -> nn.Module:
    torch.manual_seed(0)
    return Llama(LlamaConfig(58, 20, layers=LAYERS, heads=2, kv_heads=2, feed_forward=34))


class Fixed:
    """Two ranks that share a sequence in their first micro-step; a part of each of their turns is offloaded."""

    def __init__(self, share: float) -> None:
        alone = ((0, 0, 0), (1, 0, 1), (2, 1, 0), (4, 1, 1))
        made = (Piece(3, 0, LENGTHS[3], 0, (0, 1), "ring"), *(Piece(i, 0, LENGTHS[i], s, (r,)) for i, s, r in alone))
        offloads = tuple(Offload(step, rank, share) for step in (0, 1) for rank in (0, 1)) if share else ()
        self.plan = BatchPlan("by hand", LENGTHS, 2, 64, made, offloads=offloads)
        assert not (wrong := complaints(self.plan, Bounds(2, 64, 0, 4, spare=spare(LAYERS)))), wrong

    def ahead(self, lengths: Any) -> None:
        raise AssertionError("nobody hints")

    def learn(self, rank: int, seconds: float, tokens: int) -> None:
        assert seconds >= 0.0

    def place(self, lengths: Any, step: int | None = None) -> BatchPlan:
        return self.plan

    def schedule(self, batch: BatchPlan, rank: int) -> Schedule:
        return in_turn(2)


def stepped(case: Any, share: float, compiled: bool = False) -> list[Any]:
    """Of each rank: loss, gradients, and of each forward that was offloaded (kept, moved) bytes; pages still in use,
    and how many storages the device had to let go of and still holds after a forward, of how many."""
    random = torch.Generator().manual_seed(3)
    batch = [torch.randint(0, 58, (n,), generator=random).tolist() for n in LENGTHS]

    def work(rank: int) -> tuple[float, dict[str, Any], list[tuple[int, int]], int, tuple[int, int]]:
        made: list[Offloading] = []
        gone: list[StorageWeakRef] = []
        held: list[int] = []
        real, forward, let_go = Engine.offloading, Engine.run, Away.let_go

        def noted(self: Engine, stage: int, share: float) -> Offloading | None:
            found = real(self, stage, share)
            made.extend((found,) if found is not None else ())
            return found

        def watched(self: Away) -> None:
            assert self.origin is not None
            gone.append(StorageWeakRef(self.origin.untyped_storage()))  # type: ignore[no-untyped-call]
            let_go(self)

        def run(self: Engine, *args: Any, **how: Any) -> tuple[Tensor, ...]:
            found = forward(self, *args, **how)
            gc.collect()
            held.append(sum(not ref.expired() for ref in gone))  # type: ignore[no-untyped-call]
            return found

        Engine.offloading, Engine.run, Away.let_go = noted, run, watched  # type: ignore[method-assign]
        program = Program(deep(), case.plan, case.plan.graph, Options(compile=compiled), placement=Fixed(share))
        program.engine.host = Host(torch.device("cpu"), page=512, least=64)
        program.init(1)
        loss = program.step(batch)
        host = program.engine.host
        for _, p in program.named_parameters():
            if p.grad is not None:
                p.data.copy_(p.grad)
        grads = {n: t.tolist() for n, t in program.full_state_dict(everywhere=True).items()}
        sizes = [(one.kept, one.moved) for one in made]
        return loss, grads, sizes, host.pages - len(host.free), (sum(held), len(gone))

    return list(run(work, 2))


@pytest.mark.parametrize(
    ("recompute", "zero", "compiled", "shares"),
    [
        ("none", 1, False, SHARES),
        ("regions", 1, False, (spare(LAYERS),)),
        # A layer keeps one tensor: the share is met by whole ones.
        ("full", 3, False, (1 / 6, spare(LAYERS))),
        pytest.param("none", 3, True, (0.5,), marks=pytest.mark.slow),
        pytest.param("regions", 1, True, (0.5,), marks=pytest.mark.slow),
    ],
)
def test_gradients_are_the_same_to_the_bit(
    recompute: str, zero: int, compiled: bool, shares: tuple[float, ...], tiny: Any
) -> None:
    case = tiny.case(deep, dp=2, zero=zero)
    case = replace(case, plan=replace(case.plan, recompute=(recompute,) * len(case.plan.graph.calls)))
    wanted = stepped(case, 0.0, compiled)
    for share in shares:
        for found, (loss, gradients, *_) in zip(stepped(case, share, compiled), wanted, strict=True):
            assert found[:2] == (loss, gradients)
            sizes, left, (held, gone) = found[2:]
            assert len(sizes) == 2 and not left and not held and (gone >= 4 or share < 0.6)
            for kept, moved in sizes:
                assert moved == pytest.approx(share * kept, rel=0.15)


def host() -> Host:
    return Host(torch.device("cpu"), page=1000, least=100)


def through(offloading: Offloading, x: Tensor, layers: list[Callable[[Tensor], Tensor]]) -> Tensor:
    """Layer after layer, each a call of its own."""
    for index, layer in enumerate(layers):
        with saved_tensors_hooks(*offloading.hooks(index, lambda: ())):
            x = layer(x)
    return x


def test_what_went_is_free() -> None:
    """Of six layers that keep one tensor each the last four go; the device holds a layer's that is on its way out."""
    alive: list[weakref.ref[Any]] = []

    def layer(x: Tensor) -> Tensor:
        found = torch.exp(x)
        alive.append(weakref.ref(found.untyped_storage()))
        return found

    x = torch.linspace(-1, 0, 1000, requires_grad=True)
    offloading = Offloading(host(), range(6), spare(6))
    out = through(offloading, x, [layer] * 6).sum()
    gone = [ref() is None for ref in alive]
    assert gone == [False, False] + [True] * 3 + [False]
    assert (offloading.kept, offloading.moved) == (24000, 16000)
    out.backward()  # type: ignore[no-untyped-call]
    again = x.detach().requires_grad_()
    through(Offloading(host(), range(6), 0.1), again, [torch.exp] * 6).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None and again.grad is not None and torch.equal(x.grad, again.grad)
    assert len(offloading.host.free) == offloading.host.pages == 16
    assert all(ref() is None for ref in alive)


@pytest.mark.parametrize("each", (1, 3))
def test_a_layer_is_fetched_ahead(each: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In reverse, all that a layer moved while the one behind it is used; the device lets go of a layer at a time."""
    seen: list[str] = []
    names: dict[int, str] = {}
    fetch, storage = Away.fetch, Away.storage

    def fetched(self: Away) -> bool:
        begun = fetch(self)
        seen.extend([f"fetch {names[id(self)]}"] if begun else ())
        return begun

    def used(self: Away) -> torch.UntypedStorage:
        seen.append(f"use {names[id(self)]}")
        return storage(self)

    def layer(x: Tensor) -> Tensor:
        for _ in range(each):
            x = torch.exp(x / 9)
        return x

    monkeypatch.setattr(Away, "fetch", fetched)
    monkeypatch.setattr(Away, "storage", used)
    offloading = Offloading(host(), range(8), spare(8))
    x = torch.linspace(-1, 0, 1000, requires_grad=True)
    out = through(offloading, x, [layer] * 8).sum()
    names.update({id(ref()): str(2 + at // each) for at, ref in enumerate(offloading.order)})
    out.backward()  # type: ignore[no-untyped-call]
    for at in range(2, 7):
        fetches = [i for i, one in enumerate(seen) if one == f"fetch {at}"]
        uses = [i for i, one in enumerate(seen) if one.startswith("use")]
        first = seen.index(f"use {at}")
        # The last layer was still there; of any other, all is on its way before the first of it is used, and no more
        # than the use of one layer before that.
        assert len(fetches) == each and max(fetches) < first
        assert min(fetches) > uses[(6 - at) * each]


def test_views_of_one_storage_go_and_come_together() -> None:
    """q, k and v of one product: their bytes go once; and who saves the same tensor again finds it there."""
    offloading = Offloading(host(), range(3), spare(3))
    x = torch.randn(50, 12, dtype=torch.float64, requires_grad=True)

    def attend(x: Tensor) -> Tensor:
        q, k, v = (x @ torch.eye(12, dtype=torch.float64)).split(4, 1)  # type: ignore[no-untyped-call]
        return torch.cat((q * k.exp(), k * v.t().contiguous().t(), v * q), 1)

    def same(x: Tensor) -> Tensor:
        return x + 1

    out = through(offloading, x, [same, same, attend])
    assert offloading.moved == 8 * (50 * 12 + 2 * 50 * 4 + 12 * 12), "q, k and v at once; exp(k); v turned; the matrix"
    out.sum().backward()  # type: ignore[no-untyped-call]
    found = x.grad
    x.grad = None
    attend(same(same(x))).sum().backward()  # type: ignore[no-untyped-call]
    assert found is not None and x.grad is not None and torch.equal(found, x.grad)


@pytest.mark.parametrize("share", [0.0, spare(3)])
def test_a_changed_tensor_is_refused(share: float) -> None:
    """As by autograd itself, whether it stays or is still on its way."""
    x = torch.randn(1000, requires_grad=True)
    offloading = Offloading(host(), range(3), share)
    kept: list[Tensor] = []

    def layer(x: Tensor) -> Tensor:
        kept.append(torch.exp(x))
        return kept[-1]

    out = through(offloading, x, [layer] * 3)
    with torch.no_grad():
        kept[2].add_(1)
    with pytest.raises(AssertionError, match="changed in place"):
        out.sum().backward()  # type: ignore[no-untyped-call]


def test_what_is_there_anyway_stays() -> None:
    weight = torch.randn(20, 20, requires_grad=True)
    x = torch.randn(30, 20, requires_grad=True)
    offloading = Offloading(host(), range(3), spare(3))
    for index in range(3):
        with saved_tensors_hooks(*offloading.hooks(index, lambda: (weight,))):
            y = x @ weight.t()
    y.sum().backward()  # type: ignore[no-untyped-call]
    assert offloading.moved == 0 and x.numel() * 4 == offloading.kept


def test_two_layers_spare_nothing() -> None:
    assert [spare(n) for n in (0, 1, 2, 4)] == [0.0, 0.0, 0.0, 0.5]
