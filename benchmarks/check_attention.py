"""Check every attention kernel this machine can run against the reference, time it, and print one JSON document.

    PYTHONPATH=src python benchmarks/check_attention.py            # the GPU cases where there is a GPU, else toy cases
    PYTHONPATH=src python benchmarks/check_attention.py --toy --repeats 3

Errors are ||x - x0|| / ||x0|| of the output, the log-sum-exp, dq, dk and dv; x0 is the reference in float64 (float32
for documents beyond 2K tokens) on the same, widened inputs. `first` is the first forward of a shape and counts the plan
a library builds for it. Exits with 1 if a kernel is off by more than its dtype allows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from fourfold.backends.kernels.attention import KERNELS, choose
from fourfold.backends.kernels.attention_case import Kernel, Softmax, case_of
from fourfold.backends.kernels.attention_reference import REFERENCE
from fourfold.backends.kernels.documents import Documents

NAMES = ("out", "lse", "dq", "dk", "dv")
ALLOWED = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5, torch.float64: 1e-10}
# The widest document whose scores the reference should hold, and the widest it holds in float64.
REFERENCE_LONGEST, DOUBLE_LONGEST = 16384, 2048


@dataclass(frozen=True, slots=True)
class Shape:
    """One batch: lengths in tokens, query heads, key/value heads, head dimension, and which keys are visible."""

    name: str
    lengths: tuple[int, ...]
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool = True
    window: int | None = None


GPU_SHAPES = (
    Shape("one 2K", (2048,), 32, 8, 128),
    Shape("4 x 2K", (2048,) * 4, 32, 8, 128),
    Shape("2 x 8K", (8192,) * 2, 32, 8, 128),
    Shape("2 x 8K, full heads", (8192,) * 2, 32, 32, 128),
    Shape("2 x 8K, tp 4", (8192,) * 2, 8, 2, 128),
    Shape("ragged long", (8191, 5003, 4099), 32, 8, 128),
    Shape("mixed", (1, 9001, 130, 700, 4444, 64, 2048, 2048, 3), 32, 8, 128),
    Shape("packed 64K", (65536, 16384, 8192, *(2048,) * 16, *(512,) * 16), 32, 8, 128),
    Shape("short", (512, 33, 700, 1, 255, 1024) * 8, 32, 8, 128),
    Shape("not causal", (2048,) * 4, 32, 8, 128, causal=False),
    Shape("window 1K", (4096, 3000), 32, 8, 128, window=1024),
    Shape("head dim 64", (4096,) * 2, 16, 16, 64),
)
TOY_SHAPES = (
    Shape("equal", (64,) * 2, 4, 2, 16),
    Shape("ragged", (33, 1, 64, 5), 4, 1, 16),
    Shape("not causal", (33, 64), 4, 4, 16, causal=False),
    Shape("window 8", (33, 64), 4, 2, 16, window=8),
)


def main() -> int:
    """Run the cases and print the findings; 1 if a kernel was wrong."""
    arguments = parsed()
    device = torch.device("cuda" if torch.cuda.is_available() and not arguments.toy else "cpu")
    shapes = GPU_SHAPES if device.type == "cuda" else TOY_SHAPES
    dtypes = (torch.bfloat16,) if device.type == "cuda" else (torch.float32, torch.float64)
    torch.backends.cuda.matmul.allow_tf32 = False
    rows = [
        row
        for shape in shapes
        if arguments.only in shape.name
        for dtype in dtypes
        for row in measured(shape, dtype, device, arguments.repeats)
    ]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(json.dumps({"device": name, "torch": torch.__version__, "rows": rows}, indent=1))
    return 0 if all(row["right"] for row in rows) else 1


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="small cases on the CPU even where there is a GPU")
    parser.add_argument("--repeats", type=int, default=10, help="timed calls, of which the median is reported")
    parser.add_argument("--only", default="", help="run the cases whose name holds this text")
    return parser.parse_args()


def measured(shape: Shape, dtype: torch.dtype, device: torch.device, repeats: int) -> Iterator[dict[str, object]]:
    """Yield one row a kernel that claims the case: its errors, seconds and rates."""
    documents = Documents.of(shape.lengths, device)
    softmax = Softmax(shape.head_dim**-0.5, shape.causal, shape.window)
    q, k, v, grad = drawn(shape, dtype, device)
    case = case_of(q, k, documents, softmax)
    wanted = truth(q, k, v, grad, documents, softmax) if documents.longest <= REFERENCE_LONGEST else None
    flops = work(shape)
    for kernel in KERNELS:
        slow = kernel is REFERENCE and device.type == "cuda" and documents.longest > DOUBLE_LONGEST
        if slow or not kernel.claims(case):
            continue
        row = {**asdict(shape), "dtype": str(dtype), "kernel": kernel.name, "chosen": choose(case) is kernel}
        try:
            seconds, found = timed(kernel, (q, k, v, grad), documents, softmax, repeats)
        except RuntimeError as error:
            yield row | {"right": False, "error": str(error).splitlines()[0]}
            continue
        wanted = wanted or found
        errors = {name: relative(one, other) for name, one, other in zip(NAMES, found, wanted, strict=True)}
        rates = {"forward_flops": flops / seconds["forward"], "backward_flops": 2.5 * flops / seconds["backward"]}
        right = all(error <= ALLOWED[dtype] for error in errors.values())
        yield row | {"right": right, "errors": errors, "seconds": seconds, "rates": rates}


def drawn(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random q, k, v and output gradient of the shape."""
    generator = torch.Generator(device).manual_seed(0)
    counts = (shape.heads, shape.kv_heads, shape.kv_heads, shape.heads)
    q, k, v, grad = (
        torch.randn(sum(shape.lengths), count, shape.head_dim, device=device, generator=generator).to(dtype)
        for count in counts
    )
    return q, k, v, grad


def truth(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, documents: Documents, softmax: Softmax) -> tuple[Tensor, ...]:
    """The reference's out, lse, dq, dk, dv, one key/value head at a time so that its scores fit."""
    wide = torch.float64 if documents.longest <= DOUBLE_LONGEST else torch.float32
    group = q.shape[1] // k.shape[1]
    parts = []
    for head in range(k.shape[1]):
        mine = slice(head * group, (head + 1) * group)
        one_q, one_grad = (x[:, mine].to(wide) for x in (q, grad))
        one_k, one_v = (x[:, head : head + 1].to(wide) for x in (k, v))
        out, lse = REFERENCE.forward(one_q, one_k, one_v, documents, softmax)
        gradients = REFERENCE.backward(one_grad, one_q, one_k, one_v, out, lse, documents, softmax)
        parts.append((out, lse, *gradients))
    axes = (1, 0, 1, 1, 1)
    return tuple(torch.cat([part[i] for part in parts], axis) for i, axis in enumerate(axes))


def timed(
    kernel: Kernel, tensors: tuple[Tensor, Tensor, Tensor, Tensor], documents: Documents, softmax: Softmax, repeats: int
) -> tuple[dict[str, float], tuple[Tensor, ...]]:
    """The seconds of the first forward and of the median forward and backward, and the tensors they gave."""
    q, k, v, grad = tensors
    first, (out, lse) = once(lambda: kernel.forward(q, k, v, documents, softmax), q.device)
    forward = [once(lambda: kernel.forward(q, k, v, documents, softmax), q.device)[0] for _ in range(repeats)]
    _, gradients = once(lambda: kernel.backward(grad, q, k, v, out, lse, documents, softmax), q.device)
    backward = [
        once(lambda: kernel.backward(grad, q, k, v, out, lse, documents, softmax), q.device)[0] for _ in range(repeats)
    ]
    seconds = {"first": first, "forward": statistics.median(forward), "backward": statistics.median(backward)}
    return seconds, (out, lse, *gradients)


def once(call: Callable[[], tuple[Tensor, ...]], device: torch.device) -> tuple[float, tuple[Tensor, ...]]:
    """The seconds of one call, on the device's own clock where it has one, and what the call returned."""
    if device.type != "cuda":
        start = time.perf_counter()
        found = call()
        return time.perf_counter() - start, found
    torch.cuda.synchronize(device)
    before = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    after = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    before.record()
    found = call()
    after.record()
    torch.cuda.synchronize(device)
    return before.elapsed_time(after) / 1e3, found


def work(shape: Shape) -> float:
    """FLOPs of the forward: two matmuls over the visible scores, causal ones counted as half the square."""
    scores = 0.0
    for length in shape.lengths:
        seen = length * length / 2 if shape.causal else length * length
        scores += seen if shape.window is None else min(seen, length * shape.window)
    return 4 * scores * shape.heads * shape.head_dim


def relative(found: Tensor, wanted: Tensor) -> float:
    """||found - wanted|| / ||wanted||."""
    difference = (found.double() - wanted.double()).norm()
    return float(difference / wanted.double().norm().clamp_min(torch.finfo(torch.float64).tiny))


if __name__ == "__main__":
    sys.exit(main())
