"""`fourfold hardware`: list, show, check, compare, write and measure machine profiles. Only `detect` imports torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fourfold.compiler.cli import hardware_tables as tables
from fourfold.hardware import Machine, Message, catalog, check_file, load, origin
from fourfold.hardware.catalog import named
from fourfold.hardware.drafting import draft
from fourfold.hardware.errors import ProfileError, UsageError
from fourfold.hardware.library import user_folders
from fourfold.hardware.spec import parse

hardware = typer.Typer(
    name="hardware",
    help="Machine profiles: list, show, check, compare, write.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@hardware.command("list")
def list_profiles(
    kind: Annotated[str, typer.Option("--kind", help="device, node, cluster or calibration only.")] = "",
    as_json: Json = False,
) -> None:
    """List the profiles that can be named: shipped ones and your own."""
    rows = [row for row in catalog() if kind in ("", row[1])]
    if not rows:
        raise UsageError(f"--kind {kind}: there is no such kind; use device, node, cluster or calibration")
    if as_json:
        _json([{"name": name, "kind": what, "summary": summary} for name, what, summary in rows])
        return
    _print(tables.listing(rows))


@hardware.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A profile, `dgx-h200:4`, `dgx-h200@4`, or a .toml file.")],
    with_origin: Annotated[bool, typer.Option("--origin", help="Where each value is from.")] = False,
    as_json: Json = False,
) -> None:
    """Show a profile, and the machine it resolves to: ranks, rates, and what groups of ranks cross."""
    library, key = named(name)
    profile = library.profile(key)
    machine = None if profile.is_abstract or profile.kind == "calibration" else load(name)
    fields = origin(name)
    if as_json:
        keys = ("value", "file", "status", "source")
        values = {path: dict(zip(keys, rest, strict=True)) for path, *rest in fields}
        _json({"name": key, "kind": profile.kind, "file": profile.file, "fields": values, "machine": _plain(machine)})
        return
    if machine is not None:
        _print(tables.summary(machine), tables.crossings(machine))
    _print(tables.origins(fields) if with_origin else tables.fields(fields))
    if machine is not None and machine.assumptions:
        _print(tables.assumptions(machine.assumptions, full=with_origin))


@hardware.command("check")
def check(
    files: Annotated[list[str] | None, typer.Argument(help="TOML files, or names of profiles; all, if none.")] = None,
    as_json: Json = False,
) -> None:
    """Check profiles; every message names its rule, its place and what to write. Exit code 12 on an error."""
    found = {file: check_file(_file(file)) for file in files or (name for name, *_ in catalog())}
    if as_json:
        _json({file: [_message(one) for one in messages] for file, messages in found.items()})
    else:
        for file, messages in found.items():
            _print(tables.messages(file, messages))
    if any(one.level == "error" for messages in found.values() for one in messages):
        raise typer.Exit(ProfileError.exit_code)


@hardware.command("compare")
def compare(
    first: Annotated[str, typer.Argument(help="A machine, as in show.")],
    second: Annotated[str, typer.Argument(help="Another one.")],
    as_json: Json = False,
) -> None:
    """Compare two machines: rates, memory, links, and how many times one is the other."""
    rows = tables.comparison(load(first), load(second))
    if as_json:
        _json([{"what": what, first: one, second: other} for what, _, one, other in rows])
        return
    _print(tables.compared(first, second, rows))


@hardware.command("new")
def new(
    name: Annotated[str, typer.Argument(help="Name of the new cluster.")],
    node: Annotated[str, typer.Option("--from", help="The node profile it is made of.")],
    nodes: Annotated[int, typer.Option("--nodes", help="How many nodes.")] = 1,
    nic: Annotated[str | None, typer.Option("--nic", help="Rate of a network port, for example '400 Gb/s'.")] = None,
    as_json: Json = False,
) -> None:
    """Write ./fourfold-hardware/NAME.toml, a cluster of nodes to edit; a node profile too where the ports differ."""
    folder = user_folders()[0]
    files = [(folder / file, text) for file, text in draft(name, node=node, nodes=nodes, nic=nic)]
    for path, _ in files:
        if path.exists():
            raise UsageError(f"{path} exists; choose another name, or remove it first")
    try:
        folder.mkdir(exist_ok=True)
        for path, text in files:
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror}") from error
    machine = load(name)
    if as_json:
        _json({"files": [str(path) for path, _ in files], "machine": _plain(machine)})
        return
    for path, _ in files:
        typer.echo(f"wrote {path}")
    typer.echo(str(machine))
    typer.echo(f"edit it, then: fourfold hardware check {files[-1][0]}")


@hardware.command("detect")
def detect(
    quick: Annotated[bool, typer.Option("--quick", help="Within 20 s on two cores, not 90 s.")] = False,
    ranks: Annotated[int | None, typer.Option("--ranks", help="Processes at once: all GPUs, else 4.")] = None,
    write: Annotated[
        Path | None, typer.Option("--write", help="File of the profile; what it needs lies beside.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure this machine as its ranks share it, and write it as a profile that plans can name."""
    # Measuring takes torch, which the other commands of this group do without.
    from fourfold.backends import calibrate

    path = write or user_folders()[0] / "this-machine.toml"
    if path.suffix != ".toml":
        raise UsageError(f"--write {path}: a profile is a .toml file")
    environment = {key: value for key, value in sorted(os.environ.items()) if key.startswith(("NCCL_", "RCCL_"))}
    found = calibrate.detect(
        name=path.stem,
        ranks=ranks,
        quick=quick,
        environment=environment,
        say=lambda text: typer.echo(text, err=True),
    )
    files = found.write(path) if write else ()
    if as_json:
        _json({"name": found.name, "files": [str(one) for one in files], "profiles": dict(found.texts)})
        return
    if not files:
        for text in found.texts.values():
            typer.echo(text)
        typer.echo(f"nothing was written; to keep it: fourfold hardware detect --write {path}")
        return
    for one in files:
        typer.echo(f"wrote {one}")
    _print(tables.summary(load(str(path))))


def _file(name: str) -> Path:
    """The file of a name or a path; what is neither is left to the check to report."""
    wanted = parse(name)
    if wanted.is_file or "/" in name:
        return Path(name)
    library, key = named(name)
    return library.read(key)[0]


def _message(one: Message) -> dict[str, str]:
    return {"code": one.code, "level": one.level, "where": one.where, "text": one.text}


def _plain(machine: Machine | None) -> dict[str, object] | None:
    return None if machine is None else {"ranks": machine.ranks, "node_size": machine.node_size, **machine.snapshot()}


def _print(*parts: object) -> None:
    console = Console(highlight=False)
    for part in parts:
        console.print(part)
        console.print()


def _json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2))
