"""Weight gradients that come later: the same numbers, nothing of them before their time, nothing kept after it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from fourfold.backends.communication.collectives import Axis
from fourfold.backends.kernels.documents import Documents
from fourfold.backends.lowering.late import Late
from fourfold.backends.lowering.lower import Lowered, Region, lower
from fourfold.backends.stage.runner import Runner
from fourfold.compiler.capture import capture
from fourfold.compiler.models.llama import Llama, LlamaConfig
from fourfold.ir.plan import Layout

TOKENS = 12
PRODUCTS = ("q", "k", "v", "o", "gate", "up", "down")


@pytest.fixture(scope="module")
def layer() -> Lowered:
    model = Llama(LlamaConfig(32, 16, layers=2, heads=4, kv_heads=2, feed_forward=24))
    block = capture(model, torch.float64, cached=False).blocks["layers.*"]
    return lower(block, Layout(), Axis(), torch.device("cpu"))


def runner(low: Lowered, compiler: str | None) -> Runner:
    functions: tuple[Callable[..., tuple[Tensor, ...]] | None, ...] = tuple(
        step.function if isinstance(step, Region) else None for step in low.steps
    )
    if compiler is not None:
        functions = tuple(f if f is None else torch.compile(f, backend=compiler, dynamic=False) for f in functions)
    return Runner(low, functions, Axis(), lambda step, tensors: tensors[0])


def inputs(low: Lowered) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """Parameters and inputs, the same in every call."""
    torch.manual_seed(0)
    made = {name: torch.randn(value.shape, dtype=torch.float64) / 4 for name, value in low.block.parameters.items()}
    parameters = {name: value.requires_grad_() for name, value in made.items()}
    taken = []
    for value in low.block.inputs.values():
        shape = tuple(TOKENS if size < 0 else size for size in value.shape)
        taken.append(torch.randn(shape, dtype=getattr(torch, value.dtype)).requires_grad_(value.grad))
    return parameters, tuple(taken)


def fresh() -> Late:
    return Late.of(TOKENS, 1, dtype=torch.float64, device=torch.device("cpu"))


def weigh(late: Late, parameters: dict[str, Tensor]) -> None:
    torch.autograd.backward(late.products(0, late.anchor, parameters.__getitem__))


@pytest.mark.parametrize("compiler", [None, "aot_eager"])
@pytest.mark.parametrize("recompute", ["none", "regions", "full"])
def test_both_halves_together_are_the_backward(layer: Lowered, recompute: str, compiler: str | None) -> None:
    documents = Documents.of((5, 7), torch.device("cpu"))
    whole, taken = inputs(layer)
    sum(x.square().sum() for x in runner(layer, None).run(taken, lambda: whole, documents)).backward()
    split, again = inputs(layer)
    late, run = fresh(), runner(layer, compiler).run
    found = run(again, lambda: split, documents, recompute=recompute, taps=partial(late.taps, 0))
    assert not late.pairs
    sum(x.square().sum() for x in found).backward()
    waiting = {name for name, _, _ in late.pairs[0]}
    assert len(waiting) == len(PRODUCTS)
    assert {name for name, value in split.items() if value.grad is None} == waiting
    for mine, theirs in zip(again, taken, strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-12, atol=1e-12)
    weigh(late, split)
    for name, value in whole.items():
        torch.testing.assert_close(split[name].grad, value.grad, rtol=1e-12, atol=1e-12)


def test_layers_that_read_one_value_keep_it_once_and_nothing_stays(layer: Lowered) -> None:
    documents = Documents.of((TOKENS,), torch.device("cpu"))
    parameters, taken = inputs(layer)
    late = fresh()
    found = runner(layer, None).run(taken, lambda: parameters, documents, taps=partial(late.taps, 0))
    sum(x.square().sum() for x in found).backward()
    read = {x.untyped_storage().data_ptr() for _, x, _ in late.pairs[0]}
    assert len(read) == 4
    kept = [weakref.ref(tensor) for _, x, dy in late.pairs[0] for tensor in (x, dy)]
    del found
    weigh(late, parameters)
    assert not late.pairs
    assert all(ref() is None for ref in kept)


def test_taps_hold_no_values(layer: Lowered) -> None:
    late = fresh()
    for step in layer.steps:
        if isinstance(step, Region):
            assert all(tap.untyped_storage().nbytes() == 8 for tap in late.taps(0, step.taps))
