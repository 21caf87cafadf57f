"""`fourfold launch`: a script of the user's own on as many processes as its plan needs."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from fourfold.compiler.cli import options
from fourfold.compiler.cli.planning import saved
from fourfold.compiler.cli.render import dump
from fourfold.hardware.errors import RunError, UsageError

PORT = 29500
"""Where the processes of several hosts meet unless --head names another."""


@dataclass(frozen=True, slots=True)
class Hosts:
    """The hosts a plan is for, the processes on each, and where they meet."""

    count: int
    each: int
    head: str = ""

    def words(self, script: str, arguments: tuple[str, ...], host: int) -> tuple[str, ...]:
        """What host number `host` starts."""
        processes = ("--nproc_per_node", str(self.each))
        if self.count == 1:
            return ("torchrun", "--standalone", *processes, script, *arguments)
        name, _, port = self.head.partition(":")
        meeting = ("--master_addr", name or "HOST-0", "--master_port", port or str(PORT))
        return (
            *("torchrun", "--nnodes", str(self.count), "--node_rank", str(host)),
            *(*processes, *meeting, script, *arguments),
        )


def launch(
    plan: options.PlanFile,
    script: Annotated[str, typer.Argument(metavar="SCRIPT", help="A Python file that compiles that plan.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[ARGUMENTS]...", help="Of the script.")] = None,
    head: Annotated[str, typer.Option("--head", metavar="HOST[:PORT]", help="The first of several hosts.")] = "",
    host: Annotated[int | None, typer.Option("--host", min=0, help="Which of the hosts this one is.")] = None,
    only_print: Annotated[
        bool, typer.Option("--print", help="Print the line of each host, and start nothing.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Start SCRIPT under torchrun on the processes that PLAN needs, its ranks in the order the plan numbers them."""
    hosts = hosts_of(plan, head)
    lines = [hosts.words(script, tuple(arguments or ()), number) for number in range(hosts.count)]
    if as_json:
        dump({"hosts": hosts.count, "processes": hosts.each, "lines": [list(words) for words in lines]})
    elif only_print:
        print("\n".join(shlex.join(words) for words in lines))
    else:
        _started(lines[_here(hosts, host)], script)


def hosts_of(file: str, head: str = "") -> Hosts:
    """The hosts of a saved plan. Raises UsageError."""
    from fourfold.hardware.topology import Machine

    plan = saved(file)
    nodes = Machine.from_snapshot(plan.machine).nodes
    return Hosts(nodes, plan.mesh.ranks // nodes, head)


def _here(hosts: Hosts, host: int | None) -> int:
    """The number of this host. Raises UsageError when it is not said, or is none of them."""
    if hosts.count == 1:
        return 0
    if host is None or not hosts.head:
        raise UsageError(
            f"the plan is for {hosts.count} hosts of {hosts.each} processes: say --host 0 to {hosts.count - 1} and "
            "--head HOST on each, or --print to see their lines"
        )
    if host >= hosts.count:
        raise UsageError(f"--host {host}: the plan is for {hosts.count} hosts, numbered from 0 to {hosts.count - 1}")
    return host


def _started(words: tuple[str, ...], script: str) -> None:
    """Runs torchrun to its end. Raises UsageError for no script, RunError when it fails."""
    if not Path(script).is_file():
        raise UsageError(f"{script} is not a file: launch starts a Python file that calls fourfold.compile")
    # The module behind `torchrun`, of the Python that is running.
    code = subprocess.run([sys.executable, "-m", "torch.distributed.run", *words[1:]]).returncode
    if code:
        raise RunError(f"{script} ended with code {code}; its output is above")
