"""Check and time the fused loss head beside full logits, and print one JSON document.

    PYTHONPATH=src python benchmarks/check_loss.py                 # Llama-8B's head where there is a GPU, else a toy
    PYTHONPATH=src python benchmarks/check_loss.py --tokens 16384 --chunks 1024 2048 4096

Every row gives the seconds of forward + backward, the peak bytes above the inputs (GPU only) and ||g - g0|| / ||g0|| of
dx and dW, g0 from float32 logits of the widened inputs. `full` is F.cross_entropy on the logits, as a stock program has
it; `ratio` is its seconds over the row's. Exits with 1 if a gradient is off by more than its dtype allows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.backends.kernels.linear_loss import Vocabulary, linear_cross_entropy

ALLOWED = {torch.bfloat16: 1e-2, torch.float32: 1e-5}
# Rows the truth is worked out for at a time, so that its logits fit.
TRUTH_ROWS = 1024


def main() -> int:
    """Run the rows and print them; 1 if a gradient was wrong."""
    arguments = parsed()
    device = torch.device("cuda" if torch.cuda.is_available() and not arguments.toy else "cpu")
    toy = device.type == "cpu"
    dtype = torch.float32 if toy else torch.bfloat16
    tokens, features, rows = (256, 32, 500) if toy else (arguments.tokens, 4096, 128256)
    torch.backends.cuda.matmul.allow_tf32 = False
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(tokens, features, device=device, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(rows, features, device=device, generator=generator) * features**-0.5).to(dtype)
    weight.requires_grad_()
    targets = torch.randint(0, rows, (tokens,), device=device, generator=generator)
    wanted = truth(x, weight, targets)
    calls: dict[str, Callable[[], Tensor]] = {"full": lambda: full(x, weight, targets)}
    for chunk in (64,) if toy else arguments.chunks:
        calls[f"chunk {chunk}"] = lambda chunk=chunk: fused(x, weight, targets, chunk)  # type: ignore[misc]
    rows_found = {name: measured(call, x, weight, wanted, arguments.repeats) for name, call in calls.items()}
    for row in rows_found.values():
        row["ratio"] = rows_found["full"]["seconds"] / row["seconds"]
    shape = {"tokens": tokens, "features": features, "rows": rows, "dtype": str(dtype)}
    print(json.dumps({"device": str(device), "torch": torch.__version__, **shape, "found": rows_found}, indent=1))
    return 0 if all(max(row["dx"], row["dw"]) <= ALLOWED[dtype] for row in rows_found.values()) else 1


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="a small head on the CPU even where there is a GPU")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--chunks", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--repeats", type=int, default=5, help="timed calls, of which the median is reported")
    return parser.parse_args()


def full(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The mean loss by way of all logits in float32."""
    return F.cross_entropy((x @ weight.t()).float(), targets)


def fused(x: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """The mean loss by chunks."""
    vocab = Vocabulary(0, weight.shape[0])
    return linear_cross_entropy(x, weight, targets, None, scale=1 / x.shape[0], chunk=chunk, vocab=vocab)


def truth(x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """dx and dW of the mean loss in float32."""
    wide_x, wide_weight = (tensor.detach().float() for tensor in (x, weight))
    dx, dw = torch.zeros_like(wide_x), torch.zeros_like(wide_weight)
    for start in range(0, x.shape[0], TRUTH_ROWS):
        part = slice(start, start + TRUTH_ROWS)
        share = (wide_x[part] @ wide_weight.t()).softmax(-1)
        share[torch.arange(share.shape[0]), targets[part]] -= 1
        share /= x.shape[0]
        dx[part] = share @ wide_weight
        dw += share.t() @ wide_x[part]
    return dx, dw


def measured(
    call: Callable[[], Tensor], x: Tensor, weight: Tensor, wanted: tuple[Tensor, Tensor], repeats: int
) -> dict[str, float]:
    """The row of one way to get the loss; the first call, which compiles, is not timed."""
    seconds = []
    for _ in range(repeats + 1):
        held = torch.cuda.memory_allocated() if x.is_cuda else 0
        if x.is_cuda:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        start = time.perf_counter()
        dx, dw = torch.autograd.grad(call(), (x, weight))
        if x.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        peak = torch.cuda.max_memory_allocated() - held if x.is_cuda else 0
        errors = [relative(found, other) for found, other in zip((dx, dw), wanted, strict=True)]
        del dx, dw
    return {"seconds": statistics.median(seconds[1:]), "peak": peak, "dx": errors[0], "dw": errors[1]}


def relative(found: Tensor, wanted: Tensor) -> float:
    """||found - wanted|| / ||wanted||."""
    return float((found.float() - wanted).norm() / wanted.norm())


if __name__ == "__main__":
    sys.exit(main())
