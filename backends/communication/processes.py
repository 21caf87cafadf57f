"""Runs a function on several gloo processes of this machine, and answers with what each returned or with one error."""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import FileStore  # type: ignore[attr-defined]

from fourfold.backends.communication.lost import LostRankError
from fourfold.hardware.errors import FourfoldError, RunError

T = TypeVar("T")

GRACE = 2.0
"""Seconds the other ranks get to say what they saw, once one has failed."""
LAST_LINES = 12


@dataclass(slots=True)
class _Child:
    """One process: its end of the pipe, and what it sent."""

    process: BaseProcess
    pipe: Connection
    answer: tuple[str, Any] | None = None

    @property
    def failed(self) -> bool:
        return self.answer is not None and self.answer[0] != "done"


def run(work: Callable[[int], T], ranks: int, *, timeout: float = 600.0, start: str | None = None) -> tuple[T, ...]:
    """What `work(rank)` returned on each of `ranks` processes, joined as one gloo group, one thread each.

    `work` returns plain Python values, no tensors. start: "fork" or "spawn" (then `work` must pickle); None forks where
    that is safe. A FourfoldError of a process is raised here as it is; RunError when one dies, raises anything else,
    or has not finished after `timeout` seconds, with the last lines it wrote. No process is left behind.
    """
    context: Any = multiprocessing.get_context(start or _safe_start())
    with tempfile.TemporaryDirectory(prefix="fourfold-") as name:
        folder = Path(name)
        children: list[_Child] = []
        try:
            for rank in range(ranks):
                children.append(_started(context, rank, (ranks, folder, timeout, work)))
            _listen(children, timeout)
            return tuple(_result(child, rank, ranks, folder, timeout) for rank, child in _cause_first(children))
        finally:
            _end(children)


def _safe_start() -> str:
    """Forking keeps what the parent imported and captured (0.1 s, not 6 s), but not CUDA, a joined group or macOS."""
    forkable = "fork" in multiprocessing.get_all_start_methods() and sys.platform != "darwin"
    busy = torch.cuda.is_initialized() or dist.is_initialized()  # type: ignore[no-untyped-call]
    return "fork" if forkable and not busy else "spawn"


def _started(context: Any, rank: int, given: tuple[int, Path, float, Callable[[int], Any]]) -> _Child:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(rank, *given, theirs), daemon=True)
    with warnings.catch_warnings():
        # Python 3.12 warns of forking beside other threads; ours hold no lock that a child with one thread takes.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    theirs.close()
    return _Child(process, ours)


def _listen(children: list[_Child], timeout: float) -> None:
    """Takes each child's answer until all have one, or time is over; after a failure the rest get a little longer."""
    deadline = time.monotonic() + timeout
    while open_children := [c for c in children if c.answer is None]:
        ready = wait([c.pipe for c in open_children], max(0.0, deadline - time.monotonic()))
        if not ready:
            return
        for child in open_children:
            if child.pipe in ready:
                child.answer = _received(child.pipe)
        if any(c.failed for c in children):
            deadline = min(deadline, time.monotonic() + GRACE)


def _received(pipe: Connection) -> tuple[str, Any]:
    try:
        answer: tuple[str, Any] = pipe.recv()
    except (EOFError, OSError):
        return "died", None
    return answer


def _cause_first(children: list[_Child]) -> Iterator[tuple[int, _Child]]:
    """In rank order if all is well; else what explains most: a rank that was cut off only saw another one fail."""
    order = ("named", "raised", "died", "cut off")
    bad = sorted((order.index(c.answer[0]), r) for r, c in enumerate(children) if c.answer and c.failed)
    if bad:
        yield bad[0][1], children[bad[0][1]]
    yield from enumerate(children)


def _result(child: _Child, rank: int, ranks: int, folder: Path, timeout: float) -> Any:
    kind, value = child.answer or ("silent", None)
    if kind == "done":
        return value
    if isinstance(value, FourfoldError):
        raise value
    child.process.join(GRACE)
    how = {
        "raised": f"failed: {value}",
        "cut off": f"failed: {value}",
        "died": f"died (exit code {child.process.exitcode})",
        "silent": f"had not finished after {timeout:g} s",
    }[kind]
    raise RunError(f"rank {rank} of {ranks} {how}; its last lines:\n{_last_lines(folder / f'{rank}.log')}")


def _last_lines(path: Path) -> str:
    try:
        lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return "\n".join(f"  {line}" for line in lines[-LAST_LINES:]) or "  (none)"


def _end(children: list[_Child]) -> None:
    """Leaves no process and no zombie."""
    for child in children:
        if child.process.is_alive():
            child.process.kill()
    for child in children:
        child.process.join()
        child.process.close()
        child.pipe.close()


def _child(rank: int, ranks: int, folder: Path, timeout: float, work: Callable[[int], Any], pipe: Connection) -> None:
    _redirect(folder / f"{rank}.log")
    torch.set_num_threads(1)
    try:
        store = FileStore(str(folder / "store"), ranks)
        limit = datetime.timedelta(seconds=timeout)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=limit)
        answer: tuple[str, Any] = ("done", work(rank))
    except LostRankError as error:
        answer = ("cut off", str(error))
    except FourfoldError as error:
        answer = ("named", error)
    except BaseException as error:
        traceback.print_exc()
        kind = "cut off" if "gloo/transport" in str(error) or isinstance(error, dist.DistError) else "raised"
        answer = (kind, f"{type(error).__name__}: {error}".splitlines()[0])
    with contextlib.suppress(OSError):
        pipe.send(answer)
    pipe.close()
    sys.stderr.flush()
    sys.stdout.flush()
    # Not by return: what the parent registered to run at its exit, or another rank's death, must not hold this one up.
    os._exit(0 if answer[0] == "done" else 1)


def _redirect(path: Path) -> None:
    """Both outputs of this process into a file, whatever the parent had put in their place."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for at in (1, 2):
        os.dup2(log, at)
    sys.stdout = sys.stderr = os.fdopen(os.dup(log), "w", buffering=1)
