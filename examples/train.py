"""Plan, compile and train a model of one's own with the API alone, on this machine:

torchrun --nproc_per_node 4 examples/train.py
"""

from __future__ import annotations

import os
from pathlib import Path
from pydoc_data.topics import topics

import torch
from model import parallel

import fourfold as ff

STEPS, LENGTH, SEQUENCES = 40, 128, 32


def batch(step: int) -> list[list[int]]:
    """The global batch, the same on every rank: sequences of bytes of any lengths."""
    texts = [topics[name].encode() for name in sorted(topics)]
    rows = [text[at : at + LENGTH] for text in texts for at in range(0, len(text) - 1, LENGTH)]
    return [list(row) for row in rows[step * SEQUENCES : (step + 1) * SEQUENCES]]


def main() -> None:
    with torch.device("meta"):
        model = parallel()
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    work = ff.Workload.fixed(length=LENGTH, sequences=SEQUENCES)
    answer = ff.plan(model, work, hardware=f"cpu-gloo@{ranks}", precision=ff.Precision.fp32)

    program = ff.compile(model, answer)
    program.init(seed=0)
    optimizer = torch.optim.AdamW(program.parameters(), lr=3e-3)
    first = program.ranks.rank == 0
    if first:
        print(answer)
    for step in range(STEPS):
        loss = program.step(batch(step))
        program.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()
        if first and step % 5 == 0:
            print(f"step {step:>3}  loss {loss:.3f}")
    program.save(Path("runs") / "example", optimizer)


if __name__ == "__main__":
    main()
