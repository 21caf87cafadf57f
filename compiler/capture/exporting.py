"""Runs torch.export on a weightless copy of the model: tokens [b, s] -> logits [b, s, v], both dims dynamic."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram, export

from fourfold.compiler.capture.traps import refuse_stateful, watched
from fourfold.hardware.errors import ModelError


def exported(model: nn.Module, dtype: torch.dtype, *, training: bool) -> tuple[ExportedProgram, list[str]]:
    """The exported program of a meta copy with floating parameters in `dtype`, and notes for the user.

    Raises ModelError where the model branches on data, reads values back, or hides a backward.
    """
    refuse_stateful(model)
    twin = meta_copy(model, dtype).train(training)
    tokens = torch.zeros(2, 24, dtype=torch.long, device="meta")
    with watched() as notes, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = export(twin, (tokens,), dynamic_shapes=((Dim.DYNAMIC, Dim.DYNAMIC),), strict=False)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(_reason(model, error)) from error
    return program, notes


def meta_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A deep copy whose parameters and buffers are on the meta device; floating parameters in `dtype`."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        kind = dtype if parameter.is_floating_point() else parameter.dtype
        empty = torch.empty(parameter.shape, dtype=kind, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def _reason(model: nn.Module, error: Exception) -> str:
    """One line for the user out of an export failure."""
    text = str(error)
    where = _frame(error)
    kind = type(model).__name__
    if any(
        word in text
        for word in (".item()", "aten._local_scalar_dense", "Tensor.item", "data-dependent", "_local_scalar")
    ):
        return (
            f"{kind} reads a tensor's value while it runs{where} (.item(), .tolist() or a branch on data): "
            "its graph would depend on the data; compute with tensors instead (torch.where) or move it out of forward"
        )
    first = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
    return f"{kind} cannot be captured{where}: {type(error).__name__}: {first.strip()[:300]}"


def _frame(error: BaseException) -> str:
    """Where in the user's code it happened: the last frame outside torch and fourfold."""
    found, trace = "", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__", "")
        if not name.startswith(("torch", "fourfold.compiler.capture", "contextlib", "importlib")):
            found = f" at {trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found
