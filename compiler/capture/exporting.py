"""Runs torch.export on a weightless copy of the model: tokens [b, s] -> logits [b, s, v], both dims dynamic."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram, export
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from fourfold.compiler.capture.agreeing import Agreeing
from fourfold.compiler.capture.huggingface import settled
from fourfold.compiler.capture.traps import refuse_stateful, watched
from fourfold.hardware.errors import ModelError

READS = (
    "aten._local_scalar_dense",
    ".item()",
    "Tensor.item",
    "data-dependent",
    "_local_scalar",
    "GuardOnDataDependent",
)
SIZES = ("Constraints violated", "ConstraintViolation", "specialized", "marked dynamic but your code")


def exported(model: nn.Module, dtype: torch.dtype, *, training: bool) -> tuple[ExportedProgram, list[str]]:
    """The exported program of a meta copy with floating parameters in `dtype`, and notes for the user.

    Raises ModelError where the model branches on data, reads values back, or hides a backward.
    """
    refuse_stateful(model)
    fake = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    try:
        with fake:
            twin = settled(weightless(model, dtype)).train(training)
            tokens = torch.zeros(2, 24, dtype=torch.long)
        with watched() as notes, _quiet(), Agreeing(dtype, notes):
            program = export(twin, (tokens,), dynamic_shapes=((Dim.DYNAMIC, Dim.DYNAMIC),), strict=False)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(_reason(model, error)) from None
    return program, notes


def weightless(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A deep copy on the CPU with floating parameters in `dtype`; under a fake mode, so nothing is allocated."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        kind = dtype if parameter.is_floating_point() else parameter.dtype
        empty = torch.empty(parameter.shape, dtype=kind)
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype)
    for tensor in (v for module in model.modules() for v in vars(module).values() if isinstance(v, torch.Tensor)):
        memo[id(tensor)] = torch.empty(tensor.shape, dtype=tensor.dtype)
    return copy.deepcopy(model, memo)


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing is printed: torch logs whole graphs when an export fails."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _reason(model: nn.Module, error: Exception) -> str:
    """One line for the user out of an export failure."""
    text = f"{type(error).__name__}: {error}"
    kind, where = type(model).__name__, _frame(error)
    if any(word in text for word in READS):
        return (
            f"{kind} reads a tensor's value while it runs{where} (.item(), .tolist() or a branch on data): "
            "its graph would depend on the data; compute with tensors instead (torch.where) or move it out of forward"
        )
    if any(word in text for word in SIZES):
        return (
            f"{kind} fixes the batch size or the sequence length{where}: take sizes from the tensors, so that any "
            f"number of tokens fits ({_first_line(text)})"
        )
    return f"{kind} cannot be captured{where}: {_first_line(text)}"


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), text)[:300]


def _frame(error: BaseException) -> str:
    """Where in the user's code it happened: the last frame outside torch and this package."""
    found, trace = "", error.__traceback__
    ours = ("torch", "fourfold.compiler.capture", "contextlib", "importlib", "sympy", "copy")
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__", "")
        if not name.startswith(ours):
            found = f" at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found
