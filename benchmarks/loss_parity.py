"""Losses of every layout over 50 steps against one GPU's, with the spread of one GPU against itself as the measure.

    PYTHONPATH=src python benchmarks/plan_8b.py --gpus 2 --parity --out plans/parity-2
    PYTHONPATH=src torchrun --nproc_per_node 2 benchmarks/loss_parity.py --plans plans/parity-2 --out out
    PYTHONPATH=src torchrun --nproc_per_node 2 benchmarks/loss_parity.py --tiny --plans plans/parity-tiny --out out

Four layers of width 1024, bf16, AdamW, a text whose next token can be learned. While the group waits, its first ranks
each run one reference on a device of their own: "one rank", "reordered" (the sequences in another order, so in other
micro-steps), and "plain" (the module itself, its loss by torch). A layout passes if its losses differ from one rank's
by no more than three times what the reordered run's do: the largest difference of any step, and the root mean square.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from measuring import PARITY, TINY, forget
from ours import Variant
from torch import Tensor
from torch.func import functional_call

from fourfold.backends.program import Options, Program
from fourfold.compiler.models.llama import Llama, LlamaConfig
from fourfold.ir.mesh import Mesh
from fourfold.ir.plan import Plan

STEPS = 50
RATE, WARMUP, CLIP = 3e-4, 10, 1.0
"""Learning rate, steps to reach it, and the gradient's largest norm: without spikes, which drown differences."""
ALLOWED = 3.0
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


def text(step: int, config: LlamaConfig, length: int, count: int = 8) -> list[Tensor]:
    """The sequences of one step: mostly the successor a fixed table names, sometimes any token."""
    table = torch.randperm(config.vocabulary, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(step + 1)
    tokens = torch.randint(0, min(config.vocabulary, 64), (count, length), generator=generator)
    known = torch.rand((count, length), generator=generator) < 0.9
    for at in range(1, length):
        tokens[:, at] = torch.where(known[:, at], table[tokens[:, at - 1]], tokens[:, at])
    return list(tokens.unbind(0))


def trained(plan: Plan, config: LlamaConfig, length: int, *, reorder: bool = False, on: str) -> list[float]:
    """The losses of a planned program, from the same weights and the same text."""
    with torch.device("meta"):
        model = Llama(config)
    program = Program(model, plan, plan.graph, Options(device=None if on == "cuda" else torch.device("cpu")))
    program.init(0)
    optimizer = torch.optim.AdamW(program.parameters(), lr=RATE)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1)).tolist()

    def step(number: int) -> float:
        batch = text(number, config, length)
        loss = program.step([batch[i] for i in order] if reorder else batch)
        program.clip_grad_norm_(CLIP)
        _warm(optimizer, number)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    found = [step(number) for number in range(STEPS)]
    for group in program.ranks.mesh.get_all_groups():
        if group is not dist.group.WORLD:
            dist.destroy_process_group(group)
    return found


def plain(plan: Plan, config: LlamaConfig, length: int, *, on: str) -> list[float]:
    """The losses of the module itself: float32 weights cast for each micro-step of two sequences."""
    device = torch.device(on)
    with torch.device("meta"):
        model = Llama(config)
    single = Program(model, plan, plan.graph, Options(device=None if on == "cuda" else torch.device("cpu")))
    single.init(0)
    weights = {name: _whole(value).detach().clone().requires_grad_() for name, value in single.named_parameters()}
    compute: torch.dtype = getattr(torch, plan.precision.compute)
    module = Llama(config).to(device)
    optimizer = torch.optim.AdamW(list(weights.values()), lr=RATE)
    found = []
    for number in range(STEPS):
        batch = torch.stack(text(number, config, length)).to(device)
        total = torch.zeros((), device=device)
        for pair in batch.split(2):  # type: ignore[no-untyped-call]
            cast = {name: weight.to(compute) for name, weight in weights.items()}
            logits = functional_call(module, cast, (pair[:, :-1],)).float()
            loss = F.cross_entropy(logits.flatten(0, 1), pair[:, 1:].flatten(), reduction="sum")
            loss = loss / (batch.shape[0] * (length - 1))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(list(weights.values()), CLIP)
        _warm(optimizer, number)
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(total))
    return found


def _warm(optimizer: torch.optim.Optimizer, number: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = RATE * min(1.0, (number + 1) / WARMUP)


def _whole(value: Tensor) -> Tensor:
    full: Callable[[], Tensor] = getattr(value, "full_tensor", lambda: value)
    return full()


def alone(plan: Plan) -> Plan:
    """The same model and workload on one rank, two sequences at once."""
    capacity = 2 * plan.workload.longest
    micro_steps = plan.workload.tokens // capacity
    single = Plan(plan.graph, {}, plan.workload, precision=plan.precision, bucket=plan.bucket)
    return replace(single, mesh=Mesh(), zero=0, capacity=capacity, micro_steps=micro_steps)


def reference(name: str, out: Path, arguments: argparse.Namespace) -> None:
    """Runs one reference in a process of its own, which sees one device and no group."""
    environment = {k: v for k, v in os.environ.items() if k not in TORCHRUN and not k.startswith("TORCHELASTIC")}
    environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("LOCAL_RANK", "0")
    command = [sys.executable, __file__, "--plans", str(arguments.plans), "--out", str(out), "--reference", name]
    subprocess.run([*command, *(("--tiny",) if arguments.tiny else ())], env=environment, check=True)


def referred(name: str, plan: Plan, arguments: argparse.Namespace) -> int:
    """What the process of one reference does."""
    config, length, on = sizes(arguments)
    if name == "plain":
        found = plain(alone(plan), config, length, on=on)
    else:
        found = trained(alone(plan), config, length, reorder=name == "reordered", on=on)
    (arguments.out / f"{name.replace(' ', '-')}.json").write_text(json.dumps(found) + "\n")
    return 0


def sizes(arguments: argparse.Namespace) -> tuple[LlamaConfig, int, str]:
    """The model, the length of its sequences, and the kind of device."""
    return (TINY, 64, "cpu") if arguments.tiny or not torch.cuda.is_available() else (PARITY, 1024, "cuda")


def compared(losses: Sequence[float], one: Sequence[float]) -> tuple[float, float]:
    """The largest difference of any step, and the root of the mean square."""
    gaps = [abs(a - b) for a, b in zip(losses, one, strict=True)]
    return max(gaps), math.sqrt(sum(g * g for g in gaps) / len(gaps))


def main() -> int:
    """Print and write how far each layout is from one rank; 1 if one is further than allowed."""
    arguments = parsed()
    variants = [Variant.read(path) for path in sorted(arguments.plans.glob("*.plan.json"))]
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.reference:
        return referred(arguments.reference, variants[0].plan, arguments)
    config, length, on = sizes(arguments)
    names = ("one rank", "reordered", "plain")
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    for name in names[rank::size]:
        reference(name, arguments.out, arguments)
    if on == "cuda":
        torch.cuda.set_device(rank)
        dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
    else:
        dist.init_process_group("gloo")
    dist.barrier()
    losses = {name: json.loads((arguments.out / f"{name.replace(' ', '-')}.json").read_text()) for name in names}
    for variant in variants:
        losses[variant.name] = trained(variant.plan, config, length, on=on)
        forget(torch.device(on))
    dist.destroy_process_group()
    return verdict(losses, arguments.out) if rank == 0 else 0


def verdict(losses: dict[str, list[float]], out: Path) -> int:
    """Prints and writes the comparison; 1 if a layout is too far from one rank."""
    one = losses["one rank"]
    spread = compared(losses["reordered"], one)
    rows, worst = [], 0.0
    print(f"{'layout':28} {'first':>8} {'last':>8} {'largest gap':>12} {'rms gap':>10} {'of spread':>16}")
    for name, found in losses.items():
        gaps = compared(found, one)
        ratios = [gap / of if of else math.inf if gap else 0.0 for gap, of in zip(gaps, spread, strict=True)]
        rows.append({"layout": name, "losses": found, "largest": gaps[0], "rms": gaps[1], "ratios": ratios})
        ends, ratio = f"{found[0]:8.4f} {found[-1]:8.4f}", f"{ratios[0]:7.2f} {ratios[1]:8.2f}"
        print(f"{name:28} {ends} {gaps[0]:12.2e} {gaps[1]:10.2e} {ratio}")
        worst = max(worst, *(ratios if name not in ("one rank", "reordered", "plain") else (0.0,)))
    passed = worst <= ALLOWED
    (out / "loss_parity.json").write_text(json.dumps({"passed": passed, "worst": worst, "rows": rows}, indent=1) + "\n")
    print(
        f"{'pass' if passed else 'FAIL'}: a layout is {worst:.2f} spreads from one rank at most, {ALLOWED} are allowed"
    )
    return 0 if passed else 1


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=Path, required=True, help="what plan_8b.py --parity wrote")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the losses and the verdict")
    parser.add_argument("--tiny", action="store_true", help="a toy in float32 on the CPU")
    parser.add_argument("--reference", choices=("one rank", "reordered", "plain"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
