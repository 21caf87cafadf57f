"""simulate: steps of known durations drawn to the letter, their traces and pictures, and what the command answers."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from fourfold.compiler.cli import picture
from fourfold.costmodel.timeline import simulate
from fourfold.hardware.errors import UsageError
from fourfold.hardware.machine import Overlap
from fourfold.ir.chart import Chart, trace
from fourfold.ir.drawing import svg
from fourfold.ir.gantt import text
from fourfold.ir.profiled import measured
from fourfold.ir.text import seconds
from fourfold.passes.price.charting import bars_of_schedule, bars_of_tasks
from fourfold.passes.price.seconds import Times
from fourfold.passes.price.steps import CallCost, tasks
from fourfold.passes.price.work import Replay
from fourfold.passes.schedule import scheduled
from fourfold.passes.schedule.timing import timed

Command = Callable[..., Any]
Golden = Callable[..., None]
SMALL = ("--hardware", "cpu-gloo-4", "--length", "64", "--tokens-per-step", "4k")


def line(kind: str, *, send: float = 0.1) -> Chart:
    """Four places, eight micro-steps; a stage takes 1 s forward and 2 s backward, half of it where a place has two."""
    share = 0.5 if kind.startswith("interleaved") else 1.0
    found = timed(scheduled(kind, 4, 8), lambda _, what, __: share * (1 if what == "F" else 2), send=send)
    return Chart("predicted", tuple(bars_of_schedule(found)), found.makespan, {r: f"place {r}" for r in range(4)})


def pool(zero: int) -> Chart:
    """Three micro-steps of four calls on one of eight data ranks; a gather takes 1/4 s, a reduction 3/4 s."""
    call = CallCost(Times(1.0, 2.0), Times(0.0, 0.0), Replay(), 0.25 if zero else 0.0, 0.75)
    built = tasks([call] * 4, zero=zero, micro_steps=3, optimizer=1.0)
    found = simulate(built, overlap=Overlap())
    return Chart("predicted", tuple(bars_of_tasks(found, list("abcd"))), found.makespan, {0: "rank 0"})


@pytest.mark.parametrize("kind", ["1f1b", "interleaved-2", "gpipe"])
def test_a_line_of_stages(kind: str, golden: Golden) -> None:
    golden("\n".join(text([line(kind)])))


@pytest.mark.parametrize("zero", [0, 3])
def test_data_ranks(zero: int, golden: Golden) -> None:
    golden("\n".join(text([pool(zero)])))


def test_letters_dots_and_numbers_of_a_schedule_without_messages() -> None:
    """33 units of time in 66 columns: forward takes two, backward four, and 3/11 of each line are dots."""
    rows = text([line("1f1b", send=0.0)], 2 + 7 + 1 + 66 + 1)[:4]
    assert rows[0] == "  place 0 F0F1F2F3" + "." * 12 + "B0--F4B1--F5B2--F6B3--F7B4--..B5--..B6--..B7--"
    assert [row.count(".") for row in rows] == [66 * 3 // 11] * 4


def kernel(name: str, start: float, length: float, stream: int = 7, cat: str = "kernel") -> dict[str, Any]:
    """An event as torch's profiler writes it: microseconds since some start."""
    place = {"ph": "X", "pid": 0, "tid": stream}
    return {**place, "cat": cat, "name": name, "ts": 5e6 + start, "dur": length, "args": {"stream": stream}}


EVENTS = [
    kernel("ProfilerStep#1", 0, 1_000, cat="gpu_user_annotation"),
    kernel("gemm", 10, 900),
    kernel("ProfilerStep#2", 2_000, 10_000, cat="gpu_user_annotation"),
    kernel("gemm", 2_000, 3_000),
    kernel("gemm", 5_000, 1_000),
    kernel("ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)", 4_000, 4_000, 20),
    kernel("Memcpy DtoD", 8_000, 500, cat="gpu_memcpy"),
    kernel("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL", 9_000, 1_000, 24),
    kernel("aten::mm", 2_000, 50, cat="cpu_op"),
]


@pytest.fixture
def profile(tmp_path: Path) -> Callable[..., str]:
    """Writes a trace of a rank."""

    def write(events: Sequence[Any] = EVENTS, *, rank: int = 0, name: str = "rank.json") -> str:
        told = json.dumps({"distributedInfo": {"rank": rank}, "traceEvents": events}).encode()
        (tmp_path / name).write_bytes(gzip.compress(told) if name.endswith(".gz") else told)
        return str(tmp_path / name)

    return write


def test_the_last_step_of_a_profile_is_drawn_beside(profile: Callable[..., str], golden: Golden) -> None:
    found = measured([profile(rank=3), profile(rank=1, name="b.json.gz")])
    assert found.seconds == pytest.approx(10e-3) and dict(found.ranks) == {1: "rank 1", 3: "rank 3"}
    assert found.exposed(3) == pytest.approx(2e-3 + 1e-3)
    lanes = {stream: bars for rank, stream, bars in found.lanes() if rank == 3}
    assert [bar.kind for bar in lanes["compute 7"]] == ["compute", "copy"]
    assert [bar.stop for bar in lanes["compute 7"]] == pytest.approx([4e-3, 6.5e-3])
    assert [bar.kind for bars in (lanes["nccl 20"], lanes["nccl 24"]) for bar in bars] == ["gather", "reduce"]
    predicted = pool(3)
    short = [replace(bar, start=bar.start / 5e3, stop=bar.stop / 5e3) for bar in predicted.bars]
    golden("\n".join(text([Chart("predicted", tuple(short), predicted.seconds / 5e3, predicted.ranks), found])))


def test_what_is_no_profile(profile: Callable[..., str], tmp_path: Path) -> None:
    wrong = {
        "absent.json": "cannot be read",
        profile([kernel("aten::mm", 0, 5, cat="cpu_op")], name="cpu.json"): "holds no kernels of a GPU",
    }
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "torn.json.gz").write_bytes(b"{")
    wrong |= {str(tmp_path / "list.json"): "is not a chrome trace", str(tmp_path / "torn.json.gz"): "cannot be read"}
    for path, message in wrong.items():
        with pytest.raises(UsageError, match=message):
            measured([path])
    with pytest.raises(UsageError, match="is of rank 0, as one before"):
        measured([profile(), profile(name="again.json")])


@pytest.mark.parametrize(
    "chart", [line("1f1b"), line("interleaved-2", send=0.7), pool(3)], ids=["1f1b", "virtual", "pool"]
)
def test_a_stream_of_a_trace_does_one_thing_at_a_time(chart: Chart) -> None:
    found = json.loads(json.dumps(trace([chart, replace(chart, title="measured")])))
    names = {event["args"]["name"] for event in found["traceEvents"] if event["ph"] == "M"}
    assert {f"{title} {rank}" for title in ("predicted", "measured") for rank in chart.ranks.values()} <= names
    threads: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in found["traceEvents"]:
        if event["ph"] == "X":
            threads.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
    assert len(threads) == 2 * len(list(chart.lanes())) and sum(map(len, threads.values())) == 2 * len(chart.bars)
    for spans in threads.values():
        assert all(one[1] <= other[0] + 1e-6 for one, other in pairwise(sorted(spans)))
    last = max(stop for spans in threads.values() for _, stop in spans)
    assert last == pytest.approx(chart.seconds * 1e6)


@pytest.mark.parametrize("chart", [line("1f1b"), pool(0)], ids=["line", "pool"])
def test_an_svg_has_every_bar_once(chart: Chart) -> None:
    odd = replace(chart, bars=(replace(chart.bars[0], name="<a & 'b'>"), *chart.bars[1:]))
    root = ElementTree.fromstring(svg([odd, replace(odd, title="measured")]))
    space = {"svg": "http://www.w3.org/2000/svg"}
    titles = [title.text or "" for title in root.iterfind(".//svg:title", space)]
    assert len(titles) == 2 * len(chart.bars) and sum(title.startswith("<a & 'b'>: ") for title in titles) == 2
    words = {one.text for one in root.iterfind(".//svg:text", space)}
    assert {seconds(chart.seconds), f"measured: {seconds(chart.seconds)}"} <= words
    right = float(root.attrib["width"])
    assert all(
        float(one.attrib["x"]) + float(one.attrib["width"]) <= right for one in root.iterfind("svg:rect[@x]", space)
    )


@pytest.fixture
def kept(fourfold: Command, tiny: str, tmp_path: Path) -> str:
    """A saved plan over two stages of two data ranks."""
    file = str(tmp_path / "plan.json")
    pins = ("--pin", "pp=2", "--pin", "micro_steps=8", "--pin", "schedule=1f1b")
    assert fourfold("plan", tiny, *SMALL, *pins, "--top", "0", "--save", file).code == 0
    return file


def test_a_saved_plan(fourfold: Command, kept: str, tmp_path: Path, profile: Callable[..., str]) -> None:
    step = fourfold("show", kept, "--json").data["estimate"]["step"]
    said = fourfold("simulate", kept)
    assert said.code == 0 and max(map(len, said.out.splitlines())) <= 80 and "\x1b" not in said.out
    assert f"{seconds(step)} a step" in said.out and "4 of 8 micro-steps; 4 more like the middle ones" in said.out
    assert "place 0 F0" in said.out and "place 1 ." in said.out and "in flight  at most 2 1" in said.out
    files = [str(tmp_path / f"step.{kind}") for kind in ("json", "svg")]
    beside = ("--measured", profile(), "--trace", files[0], "--svg", files[1])
    data = fourfold("simulate", kept, *beside, "--json").data
    assert data["step"] == step and data["micro_steps"] == {
        "drawn": 8,
        "repeated": 0,
        "period": data["micro_steps"]["period"],
    }
    assert data["charts"][0]["seconds"] == pytest.approx(step, rel=0.01) and data["measured"][0]["step"] == 0.01
    assert {event["pid"] for event in json.loads(Path(files[0]).read_text())["traceEvents"]} == {0, 1, 2}
    assert ElementTree.parse(files[1]).getroot().tag.endswith("svg")
    said = fourfold("simulate", kept, "--measured", profile())
    assert "measured   10.0 ms a step" in said.out and "predicted: " in said.out
    assert "all micro-steps: " not in said.out


def test_a_model_planned_on_the_way(fourfold: Command, tiny: str) -> None:
    said = fourfold("simulate", tiny, *SMALL, "--pin", "dp=4", "--pin", "micro_steps=8", "--pin", "zero=3")
    assert said.code == 0 and "4, all alike: one is drawn" in said.out
    assert "3 of 8 micro-steps; 5 more like the middle ones" in said.out and "    pool" in said.out
    data = fourfold("simulate", tiny, *SMALL, "--pin", "dp=4", "--pin", "micro_steps=2", "--json").data
    assert data["bubble"] == 0.0 and data["charts"][0]["seconds"] == pytest.approx(data["step"])


def test_mistakes(
    fourfold: Command, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: Callable[..., str]
) -> None:
    usage = [
        ((), "Missing argument"),
        (("llama-8b",), "which machine?"),
        (("absent.json",), "absent.json cannot be read"),
        ((kept, "--length", "64"), "says it all"),
        ((kept, "--hardware", "cpu-gloo-4"), "says it all"),
        ((kept, "--measured", "absent.json"), "cannot be read"),
        ((kept, "--measured", profile([])), "holds no kernels"),
    ]
    for words, message in usage:
        said = fourfold("simulate", *words)
        assert said.code == 2 and message in said.line
    for option in ("--trace", "--svg", "--png"):
        said = fourfold("simulate", kept, option, str(tmp_path / "nowhere" / "step"))
        assert said.code in (13, 2) and ("cannot be written" in said.line or "fourfold[viz]" in said.line)
    monkeypatch.setattr(picture, "find_spec", lambda name: None)
    said = fourfold("simulate", kept, "--png", str(tmp_path / "step.png"))
    assert said.code == 2 and "pip install 'fourfold[viz]'" in said.line


def test_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture.png([line("1f1b")], str(tmp_path / "step.png"))
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")
