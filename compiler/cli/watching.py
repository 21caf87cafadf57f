"""What one sees of a run while it trains: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fourfold.compiler.cli.job import Job
from fourfold.ir.text import count, seconds


@contextmanager
def progress(job: Job, *, quiet: bool) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Tells the rows of a run: a bar on a terminal, else a line every tenth of the steps."""
    console = Console(highlight=False)
    if quiet:
        yield lambda row: None
        return
    if not console.is_terminal:
        every = max(1, job.steps // 10)
        yield lambda row: print(line(row), flush=True) if (row["step"] + 1) % every == 0 else None
        return
    columns = (BarColumn(bar_width=16), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console, refresh_per_second=2) as bar:
        task = bar.add_task("starting", total=job.steps)
        yield lambda row: bar.update(task, completed=row["step"] + 1, description=brief(row))


def brief(row: Mapping[str, Any]) -> str:
    """Loss, tokens per second, measured step beside the predicted one."""
    rate = count(row["tokens"] / row["seconds"])
    return f"loss {row['loss']:.3f}  {rate} tok/s  {seconds(row['seconds'])} ({seconds(row['predicted'])} predicted)"


def line(row: Mapping[str, Any]) -> str:
    """`brief` with the step, and how many graphs were compiled."""
    compiled = f"  {row['compiled']} compiled" if row["compiled"] else ""
    return f"step {row['step'] + 1:>5}  {brief(row)}{compiled}"
