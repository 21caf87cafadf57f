"""A model's own initial weights, one module at a time: same seed, same weights, whatever the plan."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fourfold.hardware.errors import ModelError


class Initialised:
    """A source of whole tensors by name, made by the model's own initialisers under a seed.

    A tensor's module is brought to life alone, full of NaN, inside a copy of the model on the meta device. Then run,
    under a seed made of `seed` and the module's name and in the order a constructor would: `reset_parameters` of the
    module and of each module around it, then `_init_weights` of the nearest module that has one, likewise. What these
    do not write keeps the value it has in the model, if any; `kept` lists these. The model is left as it was, and so
    is the state of the random generators.
    """

    def __init__(self, model: nn.Module, seed: int, device: torch.device) -> None:
        self.model, self.seed, self.device = model, seed, device
        self.owners = dict(_owners(model))
        self.shadow = _shadow(model)
        self.made: tuple[str, Mapping[str, Tensor]] = ("?", {})
        self.kept: dict[str, Tensor] = {}

    def __call__(self, name: str) -> Tensor | None:
        """The whole tensor, on any device; None when nothing sets it. Raises ModelError when an initialiser fails."""
        if name not in self.owners:
            return None
        module, short = self.owners[name]
        if self.made[0] != module:
            self.made = (module, self._module(module))
        found = self.made[1].get(short)
        if found is not None:
            return found
        own = getattr(self.model.get_submodule(module), short)
        if own.is_meta:
            return None
        self.kept[name] = own.detach()
        return self.kept[name]

    def _module(self, path: str) -> Mapping[str, Tensor]:
        """What the initialisers write into the module at `path`."""
        runs = [self._run(path, fill) for fill in (0, 1)[: 2 if self._has_whole_numbers(path) else 1]]
        buffers = self.model.get_submodule(path)._buffers
        found = {}
        for short, value in runs[0].items():
            own = buffers.get(short)
            if own is not None and not own.is_meta and torch.equal(value.to(own.device), own):
                continue
            sure = not torch.isnan(value).any() if value.is_floating_point() else torch.equal(value, runs[-1][short])
            if sure:
                found[short] = value
        return found

    def _has_whole_numbers(self, path: str) -> bool:
        """Whether the module has meta tensors that no NaN can mark: they are set if two runs agree."""
        module = self.model.get_submodule(path)
        tensors = (*module._parameters.values(), *module._buffers.values())
        return any(t is not None and t.is_meta and not t.is_floating_point() for t in tensors)

    def _run(self, path: str, fill: int) -> dict[str, Tensor]:
        target = self.shadow.get_submodule(path)
        before = dict(target._parameters), dict(target._buffers)
        original = self.model.get_submodule(path)
        target._parameters.update({k: self._parameter(p, fill) for k, p in original._parameters.items()})
        target._buffers.update({k: self._buffer(b, fill) for k, b in original._buffers.items()})
        digest = hashlib.sha256(f"{self.seed}:{path}".encode()).digest()
        try:
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []), torch.no_grad():
                torch.manual_seed(int.from_bytes(digest[:7], "little"))
                self._call_initialisers(path)
            tensors = {**target._parameters, **target._buffers}
            return {k: v.detach() for k, v in tensors.items() if v is not None and not v.is_meta}
        finally:
            target._parameters, target._buffers = before

    def _call_initialisers(self, path: str) -> None:
        chain = list(_chain(self.shadow, path))
        for name, module in chain:
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                self._call(reset, (), f"{name or type(module).__name__}.reset_parameters()")
        for at, (name, module) in enumerate(chain):
            hook = next((m._init_weights for _, m in chain[at:] if callable(getattr(m, "_init_weights", None))), None)
            if hook is not None:
                self._call(hook, (module,), f"_init_weights({name or type(module).__name__})")

    def _call(self, function: Any, args: tuple[Any, ...], what: str) -> None:
        try:
            function(*args)
        except Exception as error:
            raise ModelError(
                f"{what} fails when one module alone holds data: {type(error).__name__}: {error}; build the model "
                "outside torch.device('meta') and give its weights to program.copy_from(model)"
            ) from error

    def _parameter(self, parameter: nn.Parameter | None, fill: int) -> nn.Parameter | None:
        if parameter is None:
            return None
        kind = torch.float32 if parameter.is_floating_point() else parameter.dtype
        value = float("nan") if kind == torch.float32 else fill
        empty = torch.full(parameter.shape, value, dtype=kind, device=self.device)
        return nn.Parameter(empty, requires_grad=parameter.requires_grad)

    def _buffer(self, buffer: Tensor | None, fill: int) -> Tensor | None:
        if buffer is None:
            return None
        if not buffer.is_meta:
            return buffer.detach().clone().to(self.device)
        value = float("nan") if buffer.is_floating_point() else fill
        return torch.full(buffer.shape, value, dtype=buffer.dtype, device=self.device)


def _owners(model: nn.Module) -> Iterator[tuple[str, tuple[str, str]]]:
    """Every name of every tensor, with the module that owns it first and its name there."""
    first: dict[int, tuple[str, str]] = {}
    for module_name, module in model.named_modules(remove_duplicate=False):
        for short, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None:
                owner = first.setdefault(id(value), (module_name, short))
                yield (f"{module_name}.{short}" if module_name else short), owner


def _chain(root: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """The module at `path`, then each module around it."""
    words = path.split(".") if path else []
    for n in range(len(words), -1, -1):
        name = ".".join(words[:n])
        yield name, root.get_submodule(name)


def _shadow(model: nn.Module) -> nn.Module:
    """A copy of the model without data."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)
