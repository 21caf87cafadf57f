"""The commands of `fourfold`, put together."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from fourfold.compiler.cli import batching, planning, proving, running, simulating
from fourfold.compiler.cli.demo import demo
from fourfold.compiler.cli.doctor import doctor
from fourfold.compiler.cli.ending import ended
from fourfold.compiler.cli.hardware import hardware
from fourfold.compiler.cli.launch import launch
from fourfold.compiler.version import VERSION

app = typer.Typer(
    name="fourfold",
    help="Plan how to train a PyTorch model on many GPUs, see why, and run it.",
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: tuple[tuple[str, Callable[..., None]], ...] = (
    ("plan", planning.plan),
    ("show", planning.show_plan),
    ("why", planning.why),
    ("diff", planning.diff),
    ("simulate", simulating.simulate),
    ("batch", batching.batch),
    ("verify", proving.verify),
    ("run", running.run),
    ("launch", launch),
    ("doctor", doctor),
    ("demo", demo),
)
for name, command in COMMANDS:
    app.command(name)(command)
app.add_typer(hardware, name="hardware")


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an internal error.")] = False,
) -> None:
    """Plan how to train a PyTorch model on many GPUs, see why, and run it."""
    if version:
        typer.echo(f"fourfold {VERSION}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line on `arguments`; its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    given = [word for word in words if word != "--debug"]
    return ended(lambda: app(given, prog_name="fourfold", standalone_mode=False), words)
