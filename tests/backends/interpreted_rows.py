"""Runs the kernels of rows_triton.py in Triton's interpreter, and prints [case: not equal to the written-out] as JSON.

A program, not a test: TRITON_INTERPRET=1 has to be set before Triton is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fourfold.backends.kernels import rows, rows_triton

CASES = {
    "q, k, v": ((4, 2, 2), 24),
    "one": ((3,), 16),
    "different groups": ((2, 1, 3), 8),
}
EMPTY: Any = Tensor.new_empty
MESSAGES: tuple[tuple[int, ...], ...] = ((), (9,), (40, 1), (3, 30, 5), (1, 2, 0, 3, 4))


def main() -> None:
    """All that differ."""
    print(json.dumps([name for case in CASES for name in wrong(case)]))


def wrong(case: str) -> Iterator[str]:
    """Rows that are views with every order of strides, as attention's are; results begin as no number."""
    heads, width = CASES[case]
    generator = torch.Generator().manual_seed(0)
    total = width * sum(heads)
    tensors = [torch.randn(h, 90, width, generator=generator).transpose(0, 1)[7:60] for h in heads]
    tensors[-1] = torch.randn(90, width, heads[-1], generator=generator).transpose(1, 2)[7:60]
    tensors[0][3] = -0.0
    if not same([rows_triton.gathered(tensors)], [rows.written_gathered(tensors)]):
        yield f"{case} gathered"
    for kept in (0, 20, 53):
        for sizes in MESSAGES:
            messages = [torch.randn(n, total, generator=generator) for n in sizes]
            for padding in (0, 37):
                stay = [x[:kept] for x in tensors]
                given = stay, messages, kept + sum(sizes) + padding
                if not same(rows_triton.joined(*given), rows.written_joined(*given)):
                    yield f"{case} {kept} and {sizes} and {padding}"


def same(found: list[Tensor] | tuple[Tensor, ...], wanted: list[Tensor] | tuple[Tensor, ...]) -> bool:
    """To the bit."""
    pairs = zip(found, wanted, strict=True)
    return all(torch.equal(x.view(torch.int32), y.contiguous().view(torch.int32)) for x, y in pairs)


def poisoned(self: Tensor, size: tuple[int, ...], **how: Any) -> Tensor:
    """In place of new_empty."""
    found: Tensor = EMPTY(self, size, **how)
    return found.fill_(torch.nan) if found.is_floating_point() else found


if __name__ == "__main__":
    Tensor.new_empty = poisoned  # type: ignore[assignment,method-assign]
    main()
