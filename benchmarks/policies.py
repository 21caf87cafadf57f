"""Zeppelin's three clusters simulated: every policy beside ring context parallelism over the whole pool (TE-CP).

    PYTHONPATH=src python benchmarks/policies.py --out benchmarks/results/policies [--pools 16] [--batches 4]

Needs no GPU. Speed-ups are ratios of summed seconds of the same batches; the published ones stand below the table.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import policy_cases as cases

from fourfold.costmodel.collective import collective_time
from fourfold.hardware.errors import InfeasibleError
from fourfold.ir.batch import BatchPlan, Piece
from fourfold.ir.graph import Graph
from fourfold.passes.batch import POLICIES
from fourfold.passes.batch.placing.zones import zones
from fourfold.passes.batch.timing.terms import Terms
from fourfold.passes.batch.timing.timing import timed
from fourfold.passes.sequence.routing import routing

Row = dict[str, object]
BASE = "te-cp"
ROUTED = ("zeppelin routed", "auto routed", "te-cp routed", "zeppelin routed, no remap")
COLUMNS = ("zeppelin routed", "auto routed", *(name for name in POLICIES if name != "pack"), "te-cp routed")
PUBLISHED = (
    "published (abstract; notes): 2.80x on average and 6.60x at most against TE-CP; ablation on ArXiv against TE-CP: "
    "routing 1.6x, engine 3.2x, both 3.51x, and remap 3.64x"
)


def main() -> int:
    """Simulate all cells, say each, write rows and the table."""
    arguments = parsed()
    if arguments.rows:
        rows = [json.loads(line) for line in arguments.rows.read_text().splitlines()]
    else:
        rows = list(every_row(arguments))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = "\n".join(table(rows))
    (arguments.out / "table.txt").write_text(text + "\n")
    print(text)
    return 0


def every_row(arguments: argparse.Namespace) -> Iterator[Row]:
    """The rows of all cells, said as they come."""
    for model in arguments.models:
        graph = cases.captured(model)
        for cluster, pool in cells(arguments, model):
            for row in simulated(graph, cluster, model, pool, batches=arguments.batches):
                print(json.dumps(row), flush=True)
                yield row


def cells(arguments: argparse.Namespace, model: str) -> Iterator[tuple[str, int]]:
    """(cluster, pool) of a model: all clusters, and for the smallest model on A larger pools."""
    for pool in arguments.pools:
        yield from ((cluster, pool) for cluster in cases.CLUSTERS)
    if model == "3B":
        yield from (("A", pool) for pool in arguments.scaled)


def simulated(graph: Graph, cluster: str, model: str, pool: int, *, batches: int) -> Iterator[Row]:
    """One row for each set of documents."""
    try:
        plain = cases.pool_of(graph, cluster, model, pool)
    except InfeasibleError as error:
        print(f"-- {cluster} {model} pool {pool}: {str(error).splitlines()[0]}", file=sys.stderr)
        return
    own, routed = (replace(plain, routing=routing(plain.machine, plain.tensor, proxies=p)) for p in (False, True))
    reach = zones(routed)
    for dataset in cases.DATASETS:
        rng = random.Random(f"{dataset} {pool}")
        drawn = [cases.batch(dataset, cases.SHARE * pool, rng) for _ in range(batches)]
        seconds: dict[str, list[float]] = {}
        for lengths in drawn:
            for name, found in placed(lengths, own, routed):
                seconds.setdefault(name, []).append(found)
        whole = {name: sum(each) for name, each in seconds.items() if len(each) == batches}
        yield {
            "cluster": cluster,
            "model": model,
            "gpus": pool * plain.tensor,
            "tensor": plain.tensor,
            "pool": pool,
            "dataset": dataset,
            "documents": round(fmean(map(len, drawn)), 1),
            "zones": [round(reach.intra), round(reach.inter)] if reach.inter < float("inf") else None,
            "te_cp_seconds": round(whole[BASE] / batches, 4),
            "speedup": {name: round(whole[BASE] / each, 3) for name, each in whole.items() if name != BASE},
        }


def placed(lengths: Sequence[int], own: Terms, routed: Terms) -> Iterator[tuple[str, float]]:
    """Seconds of a step by every policy, and by those that send over idle ports where these are used."""
    policies: Mapping[str, Callable[[Sequence[int], Terms], BatchPlan]] = {BASE: te_cp, **POLICIES}
    for name, policy in policies.items():
        try:
            yield name, timed(policy(lengths, own), own).seconds
        except InfeasibleError:
            continue
    yield "zeppelin, no remap", unmoved(lengths, own)
    yield "te-cp routed", timed(te_cp(lengths, routed), routed).seconds
    yield "auto routed", timed(POLICIES["auto"](lengths, routed), routed).seconds
    yield "zeppelin routed", timed(POLICIES["zeppelin"](lengths, routed), routed).seconds
    yield "zeppelin routed, no remap", unmoved(lengths, routed)


def unmoved(lengths: Sequence[int], terms: Terms) -> float:
    """Zeppelin's seconds without its remaps."""
    return timed(replace(POLICIES["zeppelin"](lengths, terms), moves=()), terms).seconds


def te_cp(lengths: Sequence[int], terms: Terms) -> BatchPlan:
    """Everything on everyone by one ring, in one micro-step, which has room for it."""
    ranks = tuple(range(terms.bounds.ranks))
    pieces = tuple(Piece(i, 0, length, 0, ranks, "ring") for i, length in enumerate(lengths))
    return BatchPlan(BASE, tuple(lengths), terms.bounds.ranks, terms.bounds.capacity, pieces)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Lines: each cell's speed-ups over TE-CP, their means and most, what is published, what is assumed."""
    yield "speed-up over TE-CP (ring over the whole pool); 'routed' sends over idle ports of a node too"
    yield f"{'':36}" + "".join(f"{name:>17}" for name in COLUMNS)
    for row in rows:
        speed = speedups(row)
        head = f"{row['cluster']} {row['model']:>3} {row['gpus']:>3} GPUs tp{row['tensor']} {row['dataset']:<8}"
        yield f"{head:<25}{row['te_cp_seconds']:>9} s " + "".join(cell(speed.get(name)) for name in COLUMNS)
    least = min(int(str(row["pool"])) for row in rows)
    alike = [row for row in rows if row["pool"] == least]
    for title, chosen in (("mean", fmean), ("most", max), ("least", min)):
        found = [[s[name] for row in alike if name in (s := speedups(row))] for name in COLUMNS]
        text = f"{title} of pools of {least}"
        yield f"{text:<36}" + "".join(cell(chosen(each) if each else None) for each in found)
    yield f"ArXiv, means over its cells of pools of {least}, own port / routed:"
    arxiv = [speedups(row) for row in alike if row["dataset"] == "ArXiv"]
    for title, names in (("TE-CP", (None, "te-cp routed")), ("no remap", ("zeppelin, no remap", ROUTED[3]))):
        yield f"  {title:<10}" + "".join(cell(fmean(s[n] for s in arxiv) if n else 1.0) for n in names)
    yield "  zeppelin  " + "".join(cell(fmean(s[n] for s in arxiv)) for n in ("zeppelin", "zeppelin routed"))
    yield PUBLISHED
    yield one_round()
    yield "assumed:"
    yield from (f"  {line}" for line in cases.ASSUMED)


def one_round() -> str:
    """Seconds of one message of a ring between nodes, beside the published ones."""
    machine, width = cases.machine_of("A", 16), cases.SHAPES["3B"].config.width
    size = cases.SHARE * 2 * width * 2
    own, routed = (
        collective_time("send_recv", size, routing(machine, 1, proxies=p).routed(machine.group(16, 2)))
        for p in (False, True)
    )
    return (
        f"one round of the ring of 3B on 16 GPUs of A at 64K tokens: {1e3 * own:.2f} ms, routed {1e3 * routed:.2f} ms; "
        "published for one sequence of 64K (on what is not said in the notes): 2.18 ms and 0.411 ms"
    )


def speedups(row: Row) -> Mapping[str, float]:
    """Of a row, by policy."""
    found = row["speedup"]
    assert isinstance(found, dict)
    return found


def cell(value: float | None) -> str:
    """One column."""
    return f"{'-' if value is None else f'{value:.2f}':>17}"


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for rows and table")
    parser.add_argument("--rows", type=Path, help="an earlier rows.jsonl: only make its table")
    parser.add_argument("--models", nargs="+", choices=tuple(cases.SHAPES), default=list(cases.SHAPES))
    parser.add_argument("--pools", type=int, nargs="+", default=[16])
    parser.add_argument("--scaled", type=int, nargs="*", default=[32, 64], help="further pools of 3B on A")
    parser.add_argument("--batches", type=int, default=4)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
