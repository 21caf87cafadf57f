"""Recompute: a replayed block gives the gradients of a kept one, and attention runs once where its results are kept."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from fourfold.backends import compat
from fourfold.backends.communication.collectives import Axis
from fourfold.backends.kernels import attention
from fourfold.backends.kernels.documents import Documents
from fourfold.backends.lowering.lower import Mixer, Region, lower
from fourfold.backends.stage.runner import Runner
from fourfold.compiler.capture import capture
from fourfold.compiler.models.llama import Llama, LlamaConfig
from fourfold.ir.graph import TOKENS, Block
from fourfold.ir.plan import Layout

LENGTHS = (24, 41)


@pytest.fixture(scope="module")
def block() -> Block:
    """The block of a small Llama in float64."""
    with torch.device("meta"):
        model = Llama(LlamaConfig(layers=2, width=64, heads=4, kv_heads=2, feed_forward=96))
    return capture(model, torch.float64).blocks["layers.*"]


def runner_of(block: Block, compiler: Callable[..., Tensor] | None = None) -> Runner:
    """The runner of one rank; with a compiler for its last region's frugal form."""
    low = lower(block, Layout(), Axis(), torch.device("cpu"))
    functions = tuple(step.function if isinstance(step, Region) else None for step in low.steps)
    frugal = None if compiler is None else torch.compile(functions[-1], backend=compiler, dynamic=False)
    return Runner(low, functions, Axis(), lambda step, tensors: tensors[0], frugal)  # type: ignore[arg-type]


def drawn(block: Block) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Random inputs and parameters, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    sizes = {name: value for name, value in block.values().items() if name in (*block.inputs, *block.parameters)}

    def tensor(name: str) -> Tensor:
        shape = [sum(LENGTHS) if size == TOKENS else size for size in sizes[name].shape]
        kind = getattr(torch, sizes[name].dtype)
        return torch.randn(shape, generator=generator, dtype=kind).mul_(0.3).requires_grad_(sizes[name].grad)

    return tuple(tensor(name) for name in block.inputs), {name: tensor(name) for name in block.parameters}


def gradients(runner: Runner, block: Block, how: str) -> tuple[Tensor, ...]:
    inputs, parameters = drawn(block)
    found = runner.run(inputs, lambda: parameters, Documents.of(LENGTHS, "cpu"), recompute=how)
    wanted = [t for t in (*inputs, *parameters.values()) if t.requires_grad]
    return (*found, *torch.autograd.grad(sum(f.sin().sum() for f in found), wanted))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Attention's forwards from here on."""
    seen: list[str] = []
    kernel = attention.KERNELS[-1]

    def forward(*arguments: object) -> tuple[Tensor, Tensor]:
        seen.append("forward")
        return kernel.forward(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "KERNELS", (replace(kernel, forward=forward),))
    return seen


@pytest.mark.parametrize(("how", "runs"), [("none", 1), ("regions", 1), ("full", 2)])
def test_a_replay_equals_what_is_kept(block: Block, how: str, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = gradients(runner_of(block), block, "none")
    seen = counted(monkeypatch)
    for found, wanted in zip(gradients(runner_of(block), block, how), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    assert len(seen) == runs


@pytest.mark.parametrize("how", ["none", "regions", "full"])
def test_what_a_block_keeps(block: Block, how: str) -> None:
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    inputs, parameters = drawn(block)
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        found = runner_of(block).run(inputs, lambda: parameters, Documents.of(LENGTHS, "cpu"), recompute=how)
    weights = {p.untyped_storage().data_ptr() for p in (*parameters.values(), *inputs)}
    activations = sum(size for at, size in kept.items() if at not in weights)
    assert found[0].requires_grad
    # A checkpoint hides what is inside from these hooks: it keeps its inputs alone, and attention's results beside it.
    assert (activations > 0) == (how == "none")


def test_results_of_attention_go_with_the_graph(block: Block) -> None:
    alive: list[weakref.ref[attention.Kept]] = []
    runner, (inputs, parameters) = runner_of(block), drawn(block)
    made = attention.Kept.start

    class Watched(attention.Kept):
        __slots__ = ("__weakref__",)

        def start(self) -> None:
            alive.append(weakref.ref(self))
            made(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fourfold.backends.stage.runner.Kept", Watched)
        (found,) = runner.run(inputs, lambda: parameters, Documents.of(LENGTHS, "cpu"), recompute="regions")
    found.sum().backward()
    del found
    gc.collect()
    assert alive
    assert all(reference() is None for reference in alive)


@pytest.mark.slow
def test_the_frugal_region_keeps_its_inputs_and_leaves_out_what_backward_does_not_read(block: Block) -> None:
    expected = gradients(runner_of(block), block, "none")
    for found, wanted in zip(gradients(runner_of(block, compat.frugal), block, "regions"), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    runner, (inputs, parameters) = runner_of(block, compat.frugal), drawn(block)
    kept: list[tuple[int, ...]] = []
    with saved_tensors_hooks(lambda tensor: kept.append(tuple(tensor.shape)) or tensor, lambda tensor: tensor):  # type: ignore[func-returns-value]
        runner.run(inputs, lambda: parameters, Documents.of(LENGTHS, "cpu"), recompute="regions")
    assert any(isinstance(step, Mixer) for step in runner.lowered.steps)
    assert not [shape for shape in kept if shape[-1] == 96 and sum(LENGTHS) in shape]
