"""One rank of a run, as torchrun starts it: `python -m fourfold.compiler.cli.worker FOLDER`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from fourfold.compiler.cli.asking import model_of
from fourfold.compiler.cli.job import Job
from fourfold.hardware.errors import FourfoldError, ModelError

SAMPLE = 300
"""Bytes of a sampled continuation."""


def work(folder: Path) -> None:
    """Trains as the folder's job and plan say; rank 0 writes a line a step, and the sample afterwards."""
    import torch

    from fourfold.compiler import api
    from fourfold.compiler.corpus import read_corpus
    from fourfold.compiler.training import Keep, Recipe, Row, sample, train, trained_module

    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    job = Job.read(folder)
    corpus = read_corpus(job.data, length=job.length)
    model = model_of(job.model, job.overrides)
    program = api.compile(model, folder / "plan.json", batches=job.policy or None)
    try:
        program.init(job.seed)
    except ModelError:
        # Tensors that only the model's constructor computes: let it, under the same seed on every rank.
        torch.manual_seed(job.seed)
        program.copy_from(model_of(job.model, job.overrides, real=True))
    first = program.ranks.rank == 0
    recipe = Recipe(steps=job.steps, tokens=job.tokens, rate=job.rate, seed=job.seed)
    with (folder / "metrics.jsonl").open("a") if first else open(os.devnull, "w") as file:

        def write(row: Row) -> None:
            file.write(json.dumps(asdict(row)) + "\n")
            file.flush()

        resume = Path(job.resume) if job.resume else None
        keep = Keep(folder / "checkpoint" if job.keep else None, job.every, resume)
        train(program, corpus, recipe, predicted=job.predicted, write=write, keep=keep)
    plain = trained_module(program, model) if job.sample else None
    if plain is not None:
        (folder / "sample.txt").write_text(sample(plain, job.sample, length=SAMPLE, window=job.length))


def told(folder: Path, task: Callable[[Path], None]) -> int:
    """Runs `task`; an error is written for the parent, once a rank. The exit code."""
    try:
        task(folder)
    except Exception as error:
        rank = int(os.environ.get("RANK", "0"))
        message = " ".join(str(error).split())
        row = {"rank": rank, "kind": type(error).__name__, "message": message, "time": time.time()}
        scratch = folder / "errors" / f"rank{rank}.part"
        scratch.write_text(json.dumps(row))
        scratch.rename(scratch.with_suffix(".json"))
        if isinstance(error, FourfoldError):
            return error.exit_code
        raise
    return 0


if __name__ == "__main__":
    code = told(Path(sys.argv[1]), work)
    # Communicators of an error'd group may hang in their destructors; the parent has been told all there is.
    sys.stderr.flush()
    os._exit(code) if code else sys.exit(0)
