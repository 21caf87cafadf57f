"""A step says nothing: no hook on a view, no norm or gradient redistributed axis by axis."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch

from fourfold.backends.communication.processes import run
from fourfold.backends.stage.skeleton import Container


def test_no_view_leaves_a_container() -> None:
    """FSDP puts its hooks on what a module returns, and autograd drops them from a view that is written in place."""
    x = torch.arange(6.0, requires_grad=True)
    found, kept = Container()(lambda y: (y.view(2, 3).t(), y * 2), x)
    assert not found._is_view() and found.shape == (3, 2) and torch.equal(found, x.view(2, 3).t())
    (found * torch.ones(3, 2)).sum().backward()
    assert torch.equal(x.grad, torch.ones(6)) and kept.shape == (6,)  # type: ignore[arg-type]
    assert not Container()(lambda y: y.view(2, 3), x)._is_view()


def test_a_step_with_clipping_warns_of_nothing(tiny: Any) -> None:
    """Neither of hooks on a view nor of a norm redistributed axis by axis."""
    case = tiny.case(tiny.llama, dp=2, tp=2)

    def work(rank: int) -> list[str]:
        seen: list[str] = []
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("torch").addHandler(handler)
        logging.getLogger("torch.distributed.tensor._redistribute").addHandler(handler)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            program = case.program()
            program.init(seed=2)
            optimizer = torch.optim.AdamW(program.parameters())
            program.step(tiny.batch(0))
            program.clip_grad_norm_(0.1)
            optimizer.step()
        return seen + [
            str(w.message) for w in caught if not issubclass(w.category, (FutureWarning, DeprecationWarning))
        ]

    assert run(work, 4, timeout=120) == ([],) * 4
