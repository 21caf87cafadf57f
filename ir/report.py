"""What there is to say about a plan and its price, as sections of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise
from math import prod

from fourfold.ir.estimate import Candidate, Estimate, Refusal
from fourfold.ir.graph import TOKENS, Block, Graph, Node
from fourfold.ir.mesh import AXES, Mesh
from fourfold.ir.ops import op_of, rule_for
from fourfold.ir.plan import RECOMPUTE, Decision, Plan
from fourfold.ir.rule import WHOLE
from fourfold.ir.text import Section, bar, count, percent, seconds, size, sizes

CUTS = ("columns", "rows", "heads", "vocabulary", "tokens", "whole")
"""How an op with weights, or a mixer, may lie on the tensor axis, in the order they are listed."""
MANY = 16
"""Ranks above which a lower bound is shown: below, every mesh is priced."""
KINDS = ("matmul", "gather", "attention", "loss", "norm")


def asked(plan: Plan) -> Section:
    """Model, machine, workload, optimizer and precision: what the plan is for."""
    graph = plan.graph
    parameters = list(graph.parameters())
    total = sum(prod(value.shape) for _, value in parameters)
    frozen = sum(prod(value.shape) for _, value in parameters if not value.grad)
    blocks = ", ".join(f"{name} x{n}" for name, n in graph.counts.items() if n > 1)
    words = f"{count(total)} parameters" + (f" ({count(frozen)} frozen)" if frozen else "")
    rows = [
        ("model", f"{graph.name}, {words}" + (f", {blocks}" if blocks else "")),
        ("machine", f"{machine_name(plan)}, {plan.mesh.ranks} ranks"),
        ("workload", f"{plan.workload}, {plan.workload.tokens:,} tokens a step"),
        ("optimizer", f"{plan.optimizer.name}, {plan.optimizer.state:g} bytes of state a parameter"),
        ("precision", str(plan.precision)),
    ]
    found = [
        dict(n.kwargs).get("window") for c in graph.calls for n in graph.blocks[c.block].nodes if n.op == "attention"
    ]
    counted = Counter(window for window in found if window is not None)
    if counted:
        words = ", ".join(f"{window} tokens in {times} of {len(found)} attentions" for window, times in counted.items())
        rows.insert(1, ("windows", words))
    return Section("For", tuple(rows))


def machine_name(plan: Plan) -> str:
    """What the user wrote for the machine."""
    machine = plan.machine.get("machine")
    return str(machine.get("spec", "a machine")) if isinstance(machine, Mapping) else "a machine"


def headline(plan: Plan) -> str:
    """The plan in a few words: mesh, ZeRO stage, micro-steps."""
    steps = f"{plan.micro_steps} micro-step" + ("s" if plan.micro_steps > 1 else "")
    zero = f", ZeRO {plan.zero}" if plan.mesh.pool > 1 else ""
    return f"{plan.mesh}{zero}, {steps}"


def layout(plan: Plan) -> Section:
    """What was decided: micro-steps, recompute, and how each block lies on the tensor axis."""
    rows = [("micro-steps", f"{plan.micro_steps} of at most {plan.capacity:,} tokens a rank")]
    modes = plan.recompute or ("none",) * len(plan.graph.calls)
    rows.append(("recompute", ", ".join(f"{m}: {modes.count(m)} blocks" for m in RECOMPUTE if m in modes)))
    if plan.mesh.pp > 1:
        cuts = (0, *plan.bounds, len(plan.graph.calls))
        sizes_of = [str(b - a) for a, b in pairwise(cuts)]
        rows.append(("stages", f"{plan.schedule}, {' + '.join(sizes_of)} calls"))
    if plan.mesh.order != AXES:
        rows.append(("order", f"{', '.join(plan.mesh.used)}, the last inside a node first"))
    if plan.mesh.sp > 1:
        rows.append(("sequence", f"{plan.sharing}, over {plan.mesh.sp} ranks"))
    return Section(f"Plan: {headline(plan)}", tuple(rows))


def cuts(plan: Plan) -> Iterator[Section]:
    """How the products, mixers and norms of each block lie on the tensor axis."""
    if plan.mesh.tp == 1:
        return
    rows: list[tuple[str, str, str]] = []
    for name, block in plan.graph.blocks.items():
        times = plan.graph.counts[name]
        title = f"{name} x{times}" if times > 1 else name
        for how, modules in _cuts(block, plan.layouts[name].cuts if name in plan.layouts else {}):
            rows.append((title, how, ", ".join(modules)))
            title = ""
    yield Section(f"Cut over tp{plan.mesh.tp}", tuple(rows), "lll")


def step(estimate: Estimate) -> Section:
    """Where the time goes; shares under a thousandth are left out."""
    rows = [
        (name, seconds(value), percent(value / estimate.step), bar(value, value, estimate.step).rstrip("."))
        for name, value in estimate.parts
        if value >= 1e-3 * estimate.step
    ]
    rate, each = count(estimate.tokens_per_second), count(estimate.tokens_per_second / estimate.ranks)
    title = f"Step: {seconds(estimate.step)}, {rate} tokens/s, {each} a rank, MFU {percent(estimate.mfu)}"
    return Section(title, tuple(rows), "lrrl")


def memory(estimate: Estimate) -> Section:
    """Bytes on the fullest rank by category, low to high, against what a rank may use."""
    rows = [
        (name, sizes(low, high), bar(low, high, estimate.limit).rstrip("."))
        for name, (low, high) in estimate.memory.items()
    ]
    low, high = estimate.peak
    rows.append(("total", sizes(low, high), bar(low, high, estimate.limit) + f"| {percent(high / estimate.limit)}"))
    return Section(f"Memory of the fullest rank: {sizes(low, high)} of {size(estimate.limit)}", tuple(rows), "lrl")


def beside(best: Estimate, others: Sequence[Candidate], refused: Sequence[Refusal]) -> Iterator[Section]:
    """The next-best plans, and the meshes that do not fit, with what would make them."""
    if others:
        yield Section("Next best", tuple(_other(best, c) for c in others), "lrrl")
    if refused:
        yield Section("Refused", tuple((r.mesh, _refusal(r)) for r in refused))


def _other(best: Estimate, other: Candidate) -> tuple[str, ...]:
    found = other.estimate
    return headline(other.plan), seconds(found.step), _more(found.step, best.step), size(found.peak[1])


def _refusal(refusal: Refusal) -> str:
    repairs = [f"{text} ({seconds(cost)} a step)" for text, cost in refusal.repairs]
    return refusal.reason + (f"; it fits with {' or '.join(repairs)}" if repairs else "")


def bounded(estimate: Estimate, bound: float) -> Iterator[Section]:
    """How far a better plan could be, where there are too many meshes to price each to its end."""
    if bound and estimate.ranks > MANY:
        gap = max(0.0, 1.0 - bound / estimate.step)
        yield Section("Lower bound", (("of all meshes", f"{seconds(bound)}, the gap is {percent(gap)}"),))


def pinned(estimate: Estimate, plan: Plan, costs: Mapping[str, float]) -> Iterator[Section]:
    """What each pin adds to a step."""
    if not plan.pins:
        return
    rows = []
    for name, value in plan.pins.items():
        cost = costs.get(name)
        free = cost is not None and cost <= 1e-6 * estimate.step
        if cost is None:
            words = ""
        elif free:
            words = "costs nothing"
        else:
            words = f"costs {seconds(cost)} a step ({_more(estimate.step, estimate.step - cost)})"
        rows.append((f"{name}={value}", words))
    yield Section("Pins", tuple(rows))


def notes(plan: Plan) -> Iterator[Section]:
    """What capture found and the user should know."""
    if plan.graph.notes:
        yield Section("Notes", tuple((note,) for note in plan.graph.notes), "l")


def why(plan: Plan, pattern: str = "*") -> tuple[Section, ...]:
    """The decisions about what `pattern` matches, with the price of each option, and the ops of modules it matches."""
    rows = tuple(row for d in decisions(plan, pattern) for row in _decided(d))
    found = [Section(f"Why {headline(plan)}", rows)] if rows else []
    placed = tuple(_placed(plan, pattern)) if pattern != "*" else ()
    return (*found, Section(f"Ops of {pattern}", placed, "llll")) if placed else tuple(found)


def _decided(decision: Decision) -> Iterator[tuple[str, str]]:
    """What was chosen at what price, by which pass; then the others, dearest last, each beside it."""
    prices = dict(decision.over)
    own = prices.pop(decision.chose, None)
    yield decision.about, decision.chose + ("" if own is None else f": {seconds(own)}") + f"  [{decision.by}]"
    least = min(prices.values(), default=0.0) if own is None else own
    others = [f"{n}: {seconds(v)} ({_beside(v, least)})" for n, v in sorted(prices.items(), key=lambda pair: pair[1])]
    if others:
        yield "", f"over {', '.join(others)}"


def _beside(value: float, best: float) -> str:
    return "the same" if abs(value - best) < 5e-4 * best else _more(value, best)


def decisions(plan: Plan, pattern: str = "*") -> tuple[Decision, ...]:
    """The decisions of the log about what `pattern` matches."""
    return tuple(d for d in plan.log if _matches(d.about, pattern))


def difference(plans: Sequence[Plan], estimates: Sequence[Estimate]) -> list[tuple[str, str, str]]:
    """Rows (what, first, second) where two plans differ: settings, cuts, then what they should cost."""
    one, other = (_settled(plan) for plan in plans)
    rows = [(k, one.get(k, "-"), other.get(k, "-")) for k in {**one, **other} if one.get(k) != other.get(k)]
    a, b = estimates
    rows.append(("step", seconds(a.step), f"{seconds(b.step)} ({_more(b.step, a.step)})"))
    rows.append(("memory", sizes(*a.peak), sizes(*b.peak)))
    rows.append(("MFU", percent(a.mfu), percent(b.mfu)))
    return rows


def settings(plan: Plan) -> dict[str, object]:
    """Everything that was asked and decided but the graph, as plain values."""
    modes = plan.recompute or ("none",) * len(plan.graph.calls)
    return {
        "machine": machine_name(plan),
        "workload": {
            "tokens": plan.workload.tokens,
            "sequences": plan.workload.sequences,
            "longest": plan.workload.longest,
        },
        "optimizer": {"name": plan.optimizer.name, "state": plan.optimizer.state},
        "precision": {f: getattr(plan.precision, f) for f in ("parameter", "compute", "reduce")},
        "mesh": {axis: getattr(plan.mesh, axis) for axis in AXES} | _order(plan.mesh),
        "zero": plan.zero,
        "micro_steps": plan.micro_steps,
        "capacity": plan.capacity,
        "recompute": {mode: modes.count(mode) for mode in RECOMPUTE},
        "cuts": {name: dict(layout.cuts) for name, layout in plan.layouts.items()},
    }


def _order(mesh: Mesh) -> dict[str, object]:
    """Which axis lies inside which, where it is not the usual order."""
    return {} if mesh.order == AXES else {"order": " ".join(mesh.order)}


def _settled(plan: Plan) -> dict[str, str]:
    """The settings on one level, cuts in words."""
    found = dict(_flat({k: v for k, v in settings(plan).items() if k != "cuts"}))
    for section in cuts(plan):
        block = ""
        for name, how, modules in section.rows:
            block = name or block
            found[f"{block} {how}"] = modules
    return found


def _flat(value: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, one in value.items():
        if isinstance(one, Mapping):
            yield from _flat(one, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", str(one)


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or pattern in name


def _placed(plan: Plan, pattern: str) -> Iterator[tuple[str, ...]]:
    """Module, op, its cut in words, and the rule's label, for the ops of each block under a matching module name."""
    for name, block in plan.graph.blocks.items():
        chosen = plan.layouts[name].cuts if name in plan.layouts else {}
        prefixes = {name, *(call.prefix for call in plan.graph.calls if call.block == name)}
        for node in block.nodes:
            if op_of(node).kind in KINDS and any(
                _matches(f"{p}.{node.module or node.name}", pattern) for p in prefixes
            ):
                cut = chosen.get(node.name, WHOLE)
                label = "" if cut == WHOLE else f"label {cut}"
                yield f"{name}.{node.module or node.name}", node.op, _how(node, block, cut), label


def _more(value: float, best: float) -> str:
    return f"{'+' if value >= best else '-'}{percent(abs(value - best) / best)}" if best else "-"


def _cuts(block: Block, chosen: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Modules of a block by how they are cut."""
    found: dict[str, list[str]] = {}
    for node in block.nodes:
        if op_of(node).kind in KINDS:
            found.setdefault(_how(node, block, chosen.get(node.name, WHOLE)), []).append(node.module or node.name)
    yield from ((how, found[how]) for how in CUTS if how in found)


def _how(node: Node, block: Block, cut: str) -> str:
    """The field's word for a cut: a product by columns or rows of its weight, attention by heads, ..."""
    kind = op_of(node).kind
    if cut == WHOLE:
        return "whole"
    state = rule_for(node, block.values(), cut).gives(cut)
    if kind == "attention":
        return "heads"
    if kind == "loss":
        return "vocabulary" if cut == "v" else "tokens"
    if state.kind == "P":
        return "vocabulary" if kind == "gather" else "rows"
    return "tokens" if node.value.shape[state.dim] == TOKENS else "columns"


def fields(graph: Graph) -> Mapping[str, object]:
    """The graph in figures, for JSON."""
    total = sum(prod(value.shape) for _, value in graph.parameters())
    return {"model": graph.name, "fingerprint": graph.fingerprint, "parameters": total, "blocks": dict(graph.counts)}
