"""Placements solved in processes of their own, while the rank that asks goes on training.

Not multiprocessing's: its spawn imports the user's script again, which would train once more where it has no guard,
and its fork would copy CUDA and a joined process group. These processes import fourfold alone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import subprocess
import sys
import weakref
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread

from fourfold.compiler.online.solving import Answer
from fourfold.hardware.errors import FourfoldError, RunError
from fourfold.ir.batch import BatchPlan
from fourfold.passes.batch import Policy
from fourfold.passes.batch.timing.terms import Terms

CHILD = (
    "import sys; from multiprocessing.connection import Connection; pipe = Connection(int(sys.argv[1])); "
    "sys.path[:] = pipe.recv(); from fourfold.compiler.online.solving import serve; serve(pipe)"
)
PATIENCE = 5.0
"""Seconds a process gets to end before its code is asked for."""

Job = tuple[tuple[int, ...], "Future[BatchPlan]"]


class LostSolverError(RunError):
    """A background process died, or its policy failed: another placement must do."""


@dataclass(frozen=True, slots=True)
class Solver:
    """One process and our end of its pipe."""

    process: subprocess.Popen[bytes]
    pipe: Connection

    @classmethod
    def started(cls, given: bytes) -> Solver:
        """A process that is told `given`, the policy and the terms, this once."""
        ours, theirs = multiprocessing.Pipe()
        command = [sys.executable, "-c", CHILD, str(theirs.fileno())]
        # In a session of its own: Ctrl-C is for the ranks, and it ends when they do.
        process = subprocess.Popen(
            command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, start_new_session=True
        )
        theirs.close()
        with contextlib.suppress(OSError):
            # One that dies here is found dead when it is asked.
            ours.send(sys.path)
            ours.send_bytes(given)
        return cls(process, ours)

    def answer(self, lengths: tuple[int, ...]) -> Answer:
        """What it answers; waits for it. Raises LostSolverError when it is gone."""
        try:
            self.pipe.send(lengths)
            found: Answer = self.pipe.recv()
        except (EOFError, OSError):
            code = self.process.wait(PATIENCE)
            raise LostSolverError(f"the background process that places batches died (exit code {code})") from None
        return found

    def end(self) -> None:
        """Leaves no process, whatever it is at."""
        self.process.kill()
        self.process.wait()
        self.pipe.close()


class Background:
    """So many processes that solve what is asked, in the order in which it is asked.

    The policy must pickle: a function of a module that can be imported.
    """

    def __init__(self, policy: Policy, terms: Terms, *, processes: int = 1) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._solvers: set[Solver] = set()
        given = pickle.dumps((policy, terms))
        for _ in range(processes):
            Thread(target=_work, args=(self._jobs, given, self._solvers), daemon=True).start()
        self._end = weakref.finalize(self, _ended, self._jobs, self._solvers, processes)

    def ask(self, lengths: tuple[int, ...]) -> Future[BatchPlan]:
        """The placement to come; its exception is what the policy raised, or LostSolverError."""
        future: Future[BatchPlan] = Future()
        self._jobs.put((lengths, future))
        return future

    def close(self) -> None:
        """Ends the processes; what was asked and not answered is lost."""
        self._end()


def _work(jobs: SimpleQueue[Job | None], given: bytes, solvers: set[Solver]) -> None:
    """A thread and its process, which is started for the first job and again for the one after its death."""
    solver: Solver | None = None
    while (job := jobs.get()) is not None:
        lengths, future = job
        try:
            if solver is None:
                solver = Solver.started(given)
                solvers.add(solver)
            _settle(future, solver.answer(lengths))
        except Exception as error:
            if solver is not None:
                solvers.discard(solver)
                solver.end()
            solver = None
            future.set_exception(error if isinstance(error, FourfoldError) else LostSolverError(str(error)))
    if solver is not None:
        solver.end()


def _settle(future: Future[BatchPlan], answer: Answer) -> None:
    if isinstance(answer, BatchPlan):
        future.set_result(answer)
    elif isinstance(answer, FourfoldError):
        future.set_exception(answer)
    else:
        future.set_exception(LostSolverError(f"the policy failed in the background: {answer}"))


def _ended(jobs: SimpleQueue[Job | None], solvers: set[Solver], threads: int) -> None:
    while not jobs.empty():
        if (job := jobs.get()) is not None:
            job[1].set_exception(LostSolverError("the background processes were ended"))
    for _ in range(threads):
        jobs.put(None)
    for solver in tuple(solvers):
        solver.process.kill()
