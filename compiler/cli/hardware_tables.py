"""What `fourfold hardware` prints: rich tables that read at 80 columns and without colour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fourfold.hardware import Machine, Message
from fourfold.hardware.machine import Path
from fourfold.hardware.schema import WEAK
from fourfold.hardware.units import Kind, short

PLURAL: Final = {
    "cluster": "Clusters",
    "node": "Nodes",
    "device": "Devices",
    "calibration": "Calibrations",
    "broken": "Broken",
}
STYLES: Final = {"error": "bold red", "warning": "yellow", **dict.fromkeys(WEAK, "bold yellow")}
HIDDEN: Final = ("schema", "kind", "name", "summary", "extends")
Row = tuple[str, str, float | None, float | None]


def listing(rows: Sequence[tuple[str, str, str]]) -> RenderableType:
    """Names and summaries, one block for each kind."""
    blocks: list[RenderableType] = []
    width = max(len(name) for name, _, _ in rows)
    for kind in dict.fromkeys(kind for _, kind, _ in rows):
        table = _table("", "", title=PLURAL[kind])
        table.columns[0].min_width = width
        for name, what, summary in rows:
            if what == kind:
                table.add_row(Text(name, "bold"), summary)
        blocks.append(table)
    return Group(*blocks)


def summary(machine: Machine) -> RenderableType:
    """The machine in one small table."""
    device = machine.device
    table = _table("", "", title=f"{machine}")
    peaks = ", ".join(f"{dtype} {rate / 1e12:.4g}" for dtype, rate in device.peak.items() if dtype in _shown(machine))
    table.add_row("peak, dense", f"{peaks} TFLOP/s")
    table.add_row("memory", f"{device.usable / 2**30:.1f} GiB usable at {short(device.bandwidth, 'bandwidth')}")
    if machine.host_memory:
        table.add_row("host memory", f"{machine.host_memory / 2**30:.0f} GiB a node")
    measured = machine.calibration.name if machine.calibration else "none: factors of the profile, expect 25 %"
    table.add_row("calibration", measured)
    return table


def crossings(machine: Machine) -> RenderableType:
    """What groups of ranks cross, side by side within a node and one in each node."""
    table = _table("group", "ranks", "inside a node", "between nodes", title="one rank towards its group, one way")
    for label, ranks in groups(machine):
        found = machine.crossing(ranks)
        table.add_row(label, str(len(ranks)), _path(found.intra), _path(found.inter))
    return table if table.row_count else Text("one rank: nothing to cross", "dim")


def groups(machine: Machine) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Groups worth showing: 2, 4, ... devices of a node, one device of each node, all."""
    size = 2
    while size <= machine.node_size:
        yield f"{size} side by side", tuple(range(size))
        size *= 2
    if machine.nodes > 1:
        yield "one in each node", tuple(range(0, machine.ranks, machine.node_size))
        if machine.node_size > 1:
            yield "all", tuple(range(machine.ranks))


def fields(rows: Sequence[tuple[str, str, str, str, str]]) -> RenderableType:
    """The values of a profile."""
    table = _table("field", "value")
    for path, value, *_ in rows:
        if path not in HIDDEN:
            table.add_row(path, escape(value))
    return table


def origins(rows: Sequence[tuple[str, str, str, str, str]]) -> RenderableType:
    """The values of a profile under what they come from: status, file and source, once for each run of fields."""
    blocks: list[RenderableType] = []
    shown = (row for row in rows if row[0] not in HIDDEN)
    for (file, status, source), run in groupby(shown, key=lambda row: row[2:]):
        blocks.append(
            Text.assemble((status, STYLES.get(status, "bold")), f" in {file}", f": {source}" if source else "")
        )
        table = _table("", "")
        for path, value, *_ in run:
            table.add_row(f"    {path}", escape(value))
        blocks.append(table)
    return Group(*blocks)


def assumptions(rows: Sequence[tuple[str, str, str]], *, full: bool) -> RenderableType:
    """The values nobody measured or published: a line, or all of them."""
    if not full:
        return Text(f"{len(rows)} values rest on memory, press or estimates: --origin lists them", "dim")
    table = _table("rests on", "status", title="neither measured nor published")
    for path, status, _ in rows:
        table.add_row(path, status)
    return table


def messages(file: str, found: Sequence[Message]) -> RenderableType:
    """A line that all is well, or every message with its place."""
    if not found:
        return Text(f"{file}: ok")
    lines: list[RenderableType] = []
    for one in found:
        lines.append(Text.assemble((f"{one.level} {one.code}", STYLES[one.level]), f" {one.where}"))
        lines.append(Text(f"    {one.text}"))
    return Group(*lines)


def comparison(first: Machine, second: Machine) -> list[Row]:
    """Rows of (what, unit kind, first, second) in SI; None where a machine has no such thing."""
    rows: list[Row] = [
        ("ranks", "", first.ranks, second.ranks),
        ("devices a node", "", first.node_size, second.node_size),
    ]
    for dtype in dict.fromkeys((*first.device.peak, *second.device.peak)):
        rows.append((f"peak {dtype}", "rate", first.device.peak.get(dtype), second.device.peak.get(dtype)))
    one, other = first.device, second.device
    rows += [
        ("best matmul, bf16", "rate", _matmul(first), _matmul(second)),
        ("memory usable", "bytes", one.usable, other.usable),
        ("memory rate", "bandwidth", one.bandwidth, other.bandwidth),
        ("host memory a node", "bytes", first.host_memory or None, second.host_memory or None),
    ]
    links, others = dict(_links(first)), dict(_links(second))
    rows += [(label, "bandwidth", links.get(label), others.get(label)) for label in dict.fromkeys((*links, *others))]
    return rows


def compared(first: str, second: str, rows: Sequence[Row]) -> RenderableType:
    """Two machines side by side with the ratio of the second to the first."""
    table = _table("", escape(first), escape(second), "ratio")
    for what, kind, one, other in rows:
        ratio = f"{other / one:.2f}" if one and other else ""
        table.add_row(what, _value(one, kind), _value(other, kind), ratio)
    return table


def _table(*headers: str, title: str = "") -> Table:
    table = Table(box=None, pad_edge=False, show_header=any(headers), title=title or None, title_justify="left")
    for header in headers:
        table.add_column(header, overflow="fold")
    table.title_style, table.header_style = "bold underline", "bold"
    return table


def _shown(machine: Machine) -> tuple[str, ...]:
    return ("fp32",) if machine.device.vendor == "cpu" else ("fp32", "fp16", "bf16", "fp8", "fp4")


def _path(path: Path | None) -> str:
    if path is None:
        return ""
    factor = f" x {path.gain:g}" if path.gain != 1 else ""
    return f"{path.name}: {short(path.bandwidth, 'bandwidth')}{factor}"


def _matmul(machine: Machine) -> float | None:
    device = machine.device
    peak = device.peak.get("bf16") or device.peak.get("fp16")
    return peak * device.matmul.get("bf16", device.matmul["any"]).compute if peak else None


def _links(machine: Machine) -> Iterator[tuple[str, float]]:
    for label, ranks in groups(machine):
        found = machine.crossing(ranks)
        path = found.inter or found.intra
        if path is not None:
            yield f"{label} ({'between' if found.inter else 'inside'})", path.bandwidth


def _value(value: float | None, kind: str) -> str:
    kinds: dict[str, Kind] = {"rate": "rate", "bytes": "bytes", "bandwidth": "bandwidth"}
    if value is None:
        return "-"
    return short(value, kinds[kind]) if kind in kinds else f"{value:g}"
