"""Compiles our block kernels for an architecture, without a GPU, and prints what each takes as JSON.

A program, not a test: it must not interpret kernels. Arguments: the architecture, a dtype, a head dimension, and the
kernels by name; "fresh forward" is one that writes what another adds to. Of each: bytes of shared memory, bytes of
machine code, matrix instructions, spilled registers (AMD).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fourfold.backends.kernels.block_tiles import Tile, tiles_for
from fourfold.backends.kernels.block_triton import DELTA_ROWS, padded
from fourfold.backends.kernels.block_triton_backward import delta_kernel, key_kernel, query_kernel
from fourfold.backends.kernels.block_triton_forward import forward_kernel
from fourfold.backends.kernels.block_triton_merge import ROWS, merge_kernel
from fourfold.backends.kernels.rows_triton import join_kernel, pack_kernel

KERNELS = {
    "forward": forward_kernel,
    "query": query_kernel,
    "key": key_kernel,
    "delta": delta_kernel,
    "merge": merge_kernel,
    "pack": pack_kernel,
    "join": join_kernel,
}
DTYPES = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32"}
# What each argument points to where it is not of the inputs' dtype, and the numbers.
WIDE = ("lse_HM", "delta_HM", "new_HM")
SUMMED = ("out_MHD", "dq_MHD", "dk_NGD", "dv_NGD")
MATRIX = re.compile(r"wgmma\.mma_async|mma\.sync|v_mfma")
HEADS, GROUPS = 32, 8


def main() -> None:
    """One entry a kernel."""
    architecture, dtype, width, *names = sys.argv[1:]
    print(json.dumps({name: taken(name, architecture, dtype, int(width)) for name in names}))


def taken(name: str, architecture: str, dtype: str, width: int) -> dict[str, int]:
    """What one kernel takes."""
    tiles = tiles_for(architecture, getattr(torch, dtype))
    fresh, name = name.startswith("fresh "), name.removeprefix("fresh ")
    small = Tile(DELTA_ROWS if name == "delta" else ROWS, 0, 4, 3)
    tile: Tile = getattr(tiles, name, small)
    kernel = KERNELS[name]
    fixed = {
        "HEADS": HEADS,
        "GROUPS": GROUPS,
        "FIRST": HEADS,
        "SECOND": GROUPS,
        "THIRD": GROUPS,
        "WIDTH": width,
        "PADDED": padded(width),
        "ROWS": tile.rows,
        "KEYS": tile.keys,
        "FRESH": fresh,
    }
    done = compiled(
        kernel, {k: v for k, v in fixed.items() if k in kernel.arg_names}, DTYPES[dtype], architecture, tile
    )
    text = done.asm["ptx"] if "ptx" in done.asm else done.asm["amdgcn"]
    spills = [int(count) for count in re.findall(r"vgpr_spill_count:\s*(\d+)", text)]
    code = done.asm["cubin"] if "cubin" in done.asm else done.asm["hsaco"]
    found = {"code": len(code), "matrix": len(MATRIX.findall(text)), "spilled": sum(spills)}
    return found | {"shared": done.metadata.shared}


def compiled(kernel: Any, fixed: Mapping[str, int], pointer: str, architecture: str, tile: Tile) -> Any:
    """A kernel as the JIT would build it for pointers that are multiples of 16 bytes."""
    names = kernel.arg_names
    fresh = bool(fixed.get("FRESH"))
    types = {name: "constexpr" if name in fixed else typed(name, kernel, pointer, fresh=fresh) for name in names}
    constants = {(names.index(name),): value for name, value in fixed.items()}
    aligned = {(at,): [["tt.divisibility", 16]] for at, name in enumerate(names) if types[name].startswith("*")}
    source = ASTSource(kernel, types, constants, aligned)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return triton.compile(source, target=target(architecture), options=options)


def typed(name: str, kernel: Any, pointer: str, *, fresh: bool) -> str:
    """The type of one argument; results are float32 sums unless fresh, but for the delta, which reads out as given."""
    if name == "scale":
        return "fp32"
    if name in ("jobs", "spans_2M"):
        return "*i32"
    summed = name in SUMMED and kernel is not delta_kernel and not fresh
    if name in WIDE or summed:
        return "*fp32"
    return pointer if re.search(r"_[2A-Z]+$", name) else "i32"


def target(architecture: str) -> GPUTarget:
    """Triton's name for it."""
    if architecture.startswith("gfx"):
        return GPUTarget("hip", architecture, 64)
    return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)


if __name__ == "__main__":
    main()
