"""The parent of a run: starts torchrun on this machine, follows the figures its ranks write, tells of what failed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fourfold.compiler.cli.job import Job
from fourfold.hardware.errors import FourfoldError, ModelError, RunError, UsageError

SOURCE = Path(__file__).parents[3]
"""The folder `fourfold` is imported from, for the ranks to import it from there too."""
KINDS: Mapping[str, type[FourfoldError]] = {"ModelError": ModelError, "UsageError": UsageError, "RunError": RunError}
PAUSE = 0.1


def folder_of(runs: str, name: str) -> Path:
    """The run's folder, made and empty of what an earlier run of that name left. Raises RunError."""
    path = Path(runs) / name
    try:
        (path / "errors").mkdir(parents=True, exist_ok=True)
        for old in (*(path / "errors").iterdir(), path / "metrics.jsonl", path / "sample.txt"):
            old.unlink(missing_ok=True)
        (path / "metrics.jsonl").touch()
    except OSError as error:
        raise RunError(f"the run cannot be written to {path}: {error.strerror}; choose a folder with --runs") from None
    return path


def launched(folder: Path, job: Job, *, ranks: int, tell: Callable[[Mapping[str, Any]], None]) -> list[dict[str, Any]]:
    """Runs the job in `folder` on `ranks` processes; the rows of metrics.jsonl, each also told as it comes.

    Raises what a rank raised, or RunError with its last words. No process is left behind.
    """
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)),
        *("-m", "fourfold.compiler.cli.worker", str(folder)),
    ]
    rows: list[dict[str, Any]] = []
    with (
        (folder / "log.txt").open("w") as log,
        _started(command, log) as process,
        (folder / "metrics.jsonl").open() as file,
    ):
        while True:
            over = process.poll() is not None
            for row in _rows(file):
                rows.append(row)
                tell(row)
            if over:
                break
            time.sleep(PAUSE)
        code = process.returncode
    if code != 0:
        raise failure(folder, code)
    return rows


@contextmanager
def _started(command: Sequence[str], log: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The process in a session of its own; whatever happens here, it and its ranks are gone afterwards."""
    path = os.pathsep.join(filter(None, (str(SOURCE), os.environ.get("PYTHONPATH", ""))))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    before = signal.signal(signal.SIGTERM, _stopped)
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        yield process
    finally:
        signal.signal(signal.SIGTERM, before)
        if process.poll() is None:
            # torchrun ends its ranks when it is asked to; one that does not listen is not waited for.
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def _stopped(*_: object) -> None:
    """Being told to end is as good as Ctrl-C: the ranks end first."""
    raise KeyboardInterrupt


def _rows(file: Any) -> Iterator[dict[str, Any]]:
    """Whole lines written since the last call."""
    while True:
        place = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(place)
            return
        yield json.loads(line)


def failure(folder: Path, code: int) -> FourfoldError:
    """The error of the rank that failed first; ranks that only lost their neighbour come last."""
    found = [json.loads(path.read_text()) for path in sorted((folder / "errors").glob("*.json"))]
    if not found:
        lines = [line for line in (folder / "log.txt").read_text(errors="replace").splitlines() if line.strip()]
        last = lines[-1].strip() if lines else "it wrote nothing"
        return RunError(f"the run ended with code {code}: {last}; its output is in {folder / 'log.txt'}")
    first = min(found, key=lambda one: (one["kind"] not in KINDS, one["time"]))
    if first["kind"] in KINDS:
        return KINDS[first["kind"]](first["message"])
    return RunError(
        f"rank {first['rank']} failed: {first['kind']}: {first['message']}; its traceback is in {folder / 'log.txt'}"
    )
