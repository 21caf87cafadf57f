"""Times our Triton block kernel against cuDNN and FlashAttention-2 of torch on one GPU, forward and backward.

    PYTHONPATH=src python benchmarks/block_kernels.py --out out/block_kernels.json           # a GPU: 90 seconds
    TRITON_INTERPRET=1 PYTHONPATH=src python benchmarks/block_kernels.py --toy --out x.json  # any machine

Blocks are those of a Llama-8B layer (32 query heads, 8 key/value heads of 128, bf16): as many keys as queries, causal
or full, packed documents, a window, and the stripes of a group of four. Variants of a shape take turns; a time is the
median of their turns by the device's clock, merges into the sums included; a rate counts visible pairs, 4 x D FLOPs
forward and 10 x D backward. Other tiles of our kernel follow at 16K causal, one kernel changed at a time, while the
time lasts. Errors are ||x - x0|| / ||x0|| against the written-out float32 block at a small size, two blocks one after
the other so that the second goes on from the sums; exits with 1 if one is above what its dtype allows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from block_shapes import GPU_SHAPES, LITTLE, LLAMA, SMALL, TOY, Heads, Shape
from torch import Tensor

from fourfold.backends.kernels import block_dense
from fourfold.backends.kernels.block import Call, LibraryBlock, block_for
from fourfold.backends.kernels.block_reference import REFERENCE_BLOCK
from fourfold.backends.kernels.block_tiles import Tile, Tiles, architecture_of, tiles_for
from fourfold.backends.kernels.block_triton import TritonBlock
from fourfold.backends.kernels.block_triton_merge import mix
from fourfold.ir.sequence.method import Block, zeros
from fourfold.ir.sequence.rectangles import Seen

ALLOWED = {torch.bfloat16: 2e-2, torch.float32: 2e-5}
OTHERS: Mapping[str, tuple[Tile, ...]] = {
    "forward": (Tile(128, 128, 8, 2), Tile(128, 64, 8, 3), Tile(128, 64, 4, 3)),
    "query": (Tile(128, 64, 8, 2), Tile(128, 128, 8, 2), Tile(64, 64, 4, 3)),
    "key": (Tile(32, 128, 8, 3), Tile(64, 128, 8, 2), Tile(64, 64, 4, 2)),
}
"""Tiles to try in place of one kernel's own."""

Row = dict[str, Any]


def main() -> int:
    """Errors, then times; 1 if an error is too large."""
    arguments = parsed()
    toy = arguments.toy or not torch.cuda.is_available()
    device, dtype = (torch.device("cpu"), torch.float32) if toy else (torch.device("cuda"), torch.bfloat16)
    torch.backends.cuda.matmul.allow_tf32 = False
    deadline = time.monotonic() + arguments.budget
    wrong, rows = [], []
    for row in everything(device, dtype, arguments.turns):
        print(line(row), flush=True)
        rows.append(row)
        wrong += [row] if row.get("right") is False else []
        if time.monotonic() > deadline:
            print("the time is up", flush=True)
            break
    found = {"device": "cpu" if toy else torch.cuda.get_device_name(device), "torch": torch.__version__, "rows": rows}
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if wrong else 0


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="small blocks on the CPU even where there is a GPU")
    parser.add_argument("--turns", type=int, default=3, help="timed turns of each variant, of which the median counts")
    parser.add_argument("--budget", type=float, default=85.0, help="seconds after which nothing new begins")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser.parse_args()


def everything(device: torch.device, dtype: torch.dtype, turns: int) -> Iterator[Row]:
    """Yield every row, what matters most first."""
    toy = device.type == "cpu"
    heads, shapes = (LITTLE, TOY) if toy else (LLAMA, GPU_SHAPES)
    block = ours(device, dtype)
    for shape in TOY if toy else SMALL:
        yield erred(shape, heads, block, device, dtype)
    for shape in shapes:
        yield from timed(shape, heads, variants(shape, block, device, dtype), device, dtype, turns)
    for kernel, tiles in OTHERS.items():
        for tile in () if toy else tiles:
            changed = TritonBlock(replace(block.tiles or tiles_for("", dtype), **{kernel: tile}))
            name = f"{kernel} {tile.rows}x{tile.keys}/{tile.warps}/{tile.stages}"
            yield from timed(shapes[0], heads, {"triton": block, name: changed}, device, dtype, turns)
    for other, kind in () if toy else ((Heads(4, 2, 96), dtype), (Heads(4, 2, 64), torch.float32)):
        yield erred(SMALL[2], other, ours(device, kind), device, kind)


def ours(device: torch.device, dtype: torch.dtype) -> TritonBlock:
    """Our kernel with the device's tiles, in the interpreter with small ones."""
    if device.type == "cpu":
        return TritonBlock(Tiles(Tile(32, 16, 4, 1), Tile(32, 16, 4, 1), Tile(16, 32, 4, 1)))
    return TritonBlock(tiles_for(architecture_of(device), dtype))


def variants(shape: Shape, block: Block, device: torch.device, dtype: torch.dtype) -> dict[str, Block]:
    """The kernels that can run a shape, by name; the libraries' know no bands."""
    found = {"triton": block}
    if device.type == "cpu":
        return found | {"reference": REFERENCE_BLOCK}
    found["chosen"] = block_for(torch.empty((1, 1, LLAMA.width), device=device, dtype=dtype))
    if any(not one.full and not one.square for one in shape.seen):
        return found
    dense = (block_dense.cudnn_forward, block_dense.cudnn_backward)
    for name, divide in (("cudnn", one_by_one), ("flash", by_kind)):
        found[name] = LibraryBlock(divide, *dense, mix=mix)
    return found


def one_by_one(q_THD: Tensor, seen: Seen) -> Iterator[Call]:
    """Every rectangle as one dense call."""
    return (Call("dense", Seen((one,))) for one in seen)


def by_kind(q_THD: Tensor, seen: Seen) -> Iterator[Call]:
    """Squares in one packed call and full rectangles in another."""
    kinds = (tuple(one for one in seen if one.square is square) for square in (True, False))
    return (Call("packed", Seen(kind)) for kind in kinds if kind)


def erred(shape: Shape, heads: Heads, block: Block, device: torch.device, dtype: torch.dtype) -> Row:
    """The errors of a block, over two sets of keys of which the second goes on from the first."""
    q, grad, *kvs = drawn(shape, heads, device, dtype, sets=2)
    known = {"shape": shape.name, "kernel": "triton", "width": heads.width, "dtype": str(dtype)}
    try:
        found = once(block, q, grad, kvs, shape, wide=False)
    except Exception as error:  # Other kernels still have their turn.
        return known | {"right": False, "error": str(error).splitlines()[:1]}
    wanted = once(REFERENCE_BLOCK, q, grad, kvs, shape, wide=True)
    names = ("out", "lse", "dq", "dkv", "dkv2")
    errors = {name: relative(a, b) for name, a, b in zip(names, found, wanted, strict=True)}
    right = all(error <= ALLOWED[dtype] for error in errors.values())
    return known | {"right": right, "errors": errors}


def once(block: Block, q: Tensor, grad: Tensor, kvs: list[Tensor], shape: Shape, *, wide: bool) -> tuple[Tensor, ...]:
    """Out, lse and gradients over all sets of keys; `wide`: in float32."""
    if wide:
        q, grad, *kvs = (x.float() for x in (q, grad, *kvs))
    scale, sums, dq = q.shape[2] ** -0.5, block.empty(q), zeros(q)
    seen = shape.seen
    for kv in kvs:
        block.forward(sums, q, kv, seen, scale)
    into = [zeros(kv) for kv in kvs]
    for kv, dkv in zip(kvs, into, strict=True):
        block.backward((dq, dkv), grad, q, kv, sums.out.to(q.dtype), sums.lse, seen, scale)
    return sums.out, sums.lse, dq, *into


def timed(
    shape: Shape, heads: Heads, blocks: Mapping[str, Block], device: torch.device, dtype: torch.dtype, turns: int
) -> Iterator[Row]:
    """Yield a row a variant: seconds and rates of forward and backward; the first turn is not counted."""
    q, grad, kv = drawn(shape, heads, device, dtype)
    scale, seen = heads.width**-0.5, shape.seen
    work = sum(one.pairs for one in seen) * heads.queries * heads.width
    into = (zeros(q), zeros(kv))
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in blocks}
    for name in (name for _ in range(turns + 1) for name in blocks if name in took):
        try:
            took[name].append(turn(blocks[name], into, grad, q, kv, seen, scale))
        except Exception as error:  # A variant that cannot run is a row, and does not end the others.
            del took[name]
            yield {"shape": shape.name, "kernel": name, "right": False, "error": str(error).splitlines()[:1]}
    for name, times in took.items():
        forward, backward = (statistics.median(part) for part in zip(*times[1:], strict=True))
        rates = {"forward_flops": 4 * work / forward, "backward_flops": 10 * work / backward}
        yield {"shape": shape.name, "kernel": name, "forward": forward, "backward": backward, **rates}


def turn(
    block: Block,
    into: tuple[Tensor, Tensor],
    grad: Tensor,
    q: Tensor,
    kv: Tensor,
    seen: Seen,
    scale: float,
) -> tuple[float, float]:
    """The seconds of one forward and of one backward."""
    sums = block.empty(q)
    forward = seconds(lambda: block.forward(sums, q, kv, seen, scale), q.device)
    out = sums.out.to(q.dtype)
    backward = seconds(lambda: block.backward(into, grad, q, kv, out, sums.lse, seen, scale), q.device)
    return forward, backward


def drawn(shape: Shape, heads: Heads, device: torch.device, dtype: torch.dtype, *, sets: int = 1) -> list[Tensor]:
    """Random q, gradient of out, and as many sets of keys and values."""
    generator = torch.Generator(device).manual_seed(0)
    rows, keys = shape.counts
    sizes = [(rows, heads.queries, heads.width)] * 2 + [(2, keys, heads.keys, heads.width)] * sets
    return [torch.randn(size, device=device, generator=generator).to(dtype) for size in sizes]


def seconds(call: Callable[[], None], device: torch.device) -> float:
    """Of one call, by the device's own clock where it has one."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    before.record()
    call()
    after.record()
    torch.cuda.synchronize(device)
    return float(before.elapsed_time(after)) / 1e3


def relative(found: Tensor, wanted: Tensor) -> float:
    """||found - wanted|| / ||wanted|| where both are finite; infinite where they are finite in different places."""
    some = wanted.isfinite()
    if not bool((found.isfinite() == some).all()):
        return float("inf")
    difference = (found.double() - wanted.double())[some].norm()
    return float(difference / wanted[some].double().norm().clamp_min(1e-300))


def line(row: Row) -> str:
    """A row of the table."""
    if "error" in row:
        return f"{row['shape']:22} {row['kernel']:22} {row['error']}"
    if "errors" in row:
        errors = ", ".join(f"{name} {error:.1e}" for name, error in row["errors"].items())
        return (
            f"{row['shape']:22} D {row['width']:3} {row['dtype']:15} {'right' if row['right'] else 'WRONG'}: {errors}"
        )
    figures = (row[part] * unit for part, unit in (("forward", 1e3), ("backward", 1e3)))
    rates = (row[f"{part}_flops"] / 1e12 for part in ("forward", "backward"))
    return "{:22} {:22} {:8.2f} ms {:8.2f} ms  {:6.0f} {:6.0f} TFLOP/s".format(
        row["shape"], row["kernel"], *figures, *rates
    )


if __name__ == "__main__":
    sys.exit(main())
