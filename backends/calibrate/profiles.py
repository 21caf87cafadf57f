"""What was measured, as profiles: a node, its calibration and, where no profile knows it, its device."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date

from fourfold.backends.calibrate.fit import Quality, Stream
from fourfold.backends.calibrate.found import Found, bus_bandwidth
from fourfold.hardware.machine import Anchors, AttentionFit, Chore, KernelFit
from fourfold.hardware.schema import VERSION
from fourfold.hardware.units import short

Value = str | int | float | bool | date | list[object] | dict[str, str]
Rows = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Host:
    """The machine around the devices: `device` is the profile of its GPUs, None for one written here.

    memory and usable in bytes: of the host, and of one rank; `versions` and `environment` go into the record.
    """

    name: str
    device: str | None
    ranks: int
    arch: str
    cores: int
    memory: float
    usable: float
    versions: Mapping[str, str]
    environment: Mapping[str, str]
    today: date

    @property
    def device_name(self) -> str:
        """The profile of one rank's device."""
        return self.device or f"{self.name}-device"

    @property
    def calibration(self) -> str:
        """The profile of the measurements."""
        return f"{self.name}-measured"

    @property
    def source(self) -> str:
        """Where the figures are from."""
        return f"fourfold hardware detect, {self.ranks} ranks at once"


def profiles(host: Host, found: Found) -> dict[str, str]:
    """Profile name to TOML text; the first is the node, which names the others."""
    texts = {host.name: _node(host, found), host.calibration: _calibration(host, found)}
    return texts if host.device else texts | {host.device_name: _device(host, found)}


def _node(host: Host, found: Found) -> str:
    head: Rows = {
        "summary": f"{host.ranks} ranks of this machine, as measured",
        "device": host.device_name,
        "calibration": host.calibration,
        "devices": host.ranks,
    }
    parts = [_head("node", host.name, head), _table("host", _host(host))]
    if host.ranks > 1:
        rate, first = bus_bandwidth(found.anchors), min(a.points[0][1] for a in found.anchors)
        fabric: Rows = {"name": "measured", "topology": "switch", "per_direction": short(rate, "bandwidth")}
        delay = short(first, "time")
        latency: Rows = {
            **dict.fromkeys(("base", "step", "base_small", "step_small"), delay),
            "small_limit": short(rate, "bandwidth"),
        }
        parts += [_table("[fabric]", {**fabric, "link_efficiency": 1.0}), _table("fabric.latency", latency)]
    return "\n".join([*parts, _provenance(host)])


def _host(host: Host) -> Rows:
    return {"cores": host.cores, "memory": short(host.memory, "bytes")} if host.memory else {"cores": host.cores}


def _device(host: Host, found: Found) -> str:
    """A share of this machine's processor as a device: what one rank gets while all of them run."""
    head: Rows = {"summary": "one of several processes on this machine's processor", "calibration": host.calibration}
    peak = found.rates.peak
    rates = {dtype: short(peak[dtype], "rate") if dtype in peak else "unsupported" for dtype in _DTYPES}
    execution: Rows = {"vendor": "cpu", "arch": host.arch, "simt_width": 1, "unit": "core", "units": 1}
    memory: Rows = {
        "capacity": short(host.usable, "bytes"),
        "usable": short(host.usable, "bytes"),
        "bandwidth": short(found.rates.bandwidth, "bandwidth"),
        "reserve": "256 MiB",
    }
    tables = {
        "execution": execution,
        "peak": rates,
        "memory": memory,
        "capability": {"collectives": "gloo"},
        "uncalibrated": _uncalibrated(found),
    }
    body = [_table(name, rows) for name, rows in tables.items()]
    return "\n".join([_head("device", host.device_name, head), *body, _provenance(host)])


_DTYPES = ("fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "fp4", "int8")


def _uncalibrated(found: Found) -> Rows:
    """The same fits in the words of a device, for readers that look no further; the calibration has more."""
    product, rates = found.products["fp32"][0], found.rates
    return {
        "matmul_compute": _fraction(product.compute),
        "matmul_memory": _fraction(product.memory),
        "matmul_shape": product.shape,
        "matmul_overhead": short(product.overhead, "time"),
        "stream_memory": _fraction(found.stream[0].cold / rates.bandwidth),
        "norm_memory": _fraction(found.norm[0].cold / rates.bandwidth),
        "kernel_overhead": short(found.stream[0].overhead, "time"),
        "attention_forward": _fraction(found.attention[0].ceiling),
        "attention_backward": _fraction(found.attention_backward[0].ceiling),
        "attention_half_length": found.attention[0].half_length,
        "launch_host": short(found.launch, "time"),
        "collective_bandwidth": 1.0,
        "collective_latency_small": 1.0,
        "collective_latency_large": 1.0,
        "collective_overlap": 0.0,
    }


def _calibration(host: Host, found: Found) -> str:
    head: Rows = {"summary": f"measured on {host.today.isoformat()}, {host.ranks} ranks at once"}
    environment: Rows = {"environment": dict(host.environment)} if host.environment else {}
    meta: Rows = {"date": host.today, "method": "measured", "source": host.source, **host.versions}
    parts = [
        _head("calibration", host.calibration, head),
        _table("applies_to", {"device": host.device_name, "node": host.name}),
        _table("meta", {**meta, **environment}),
        *(_table(f"[{name}]", rows) for name, rows in _rows(found)),
        _table("host", {"launch_eager": short(found.launch, "time")}),
        *(_table("overlap", rows) for rows in [_overlap(found)] if found.anchors),
    ]
    return "\n".join([*parts, _provenance(host)])


def _rows(found: Found) -> Iterator[tuple[str, Rows]]:
    """The arrays of tables of a calibration."""
    bandwidth = found.rates.bandwidth
    for dtype, (product, quality) in found.products.items():
        yield "matmul", {"dtype": dtype, "layout": "any", **_product(product), **_quality(quality)}
    for kind, (stream, quality) in (("add", found.stream), ("special", found.special)):
        yield "stream", {"kind": kind, **_stream(stream, bandwidth), **_quality(quality)}
    for direction, (stream, quality) in (("forward", found.norm), ("backward", found.norm_backward)):
        yield "norm", {"kind": "rms_norm", "pass": direction, **_stream(stream, bandwidth), **_quality(quality)}
    for direction, (mixed, quality) in (("forward", found.attention), ("backward", found.attention_backward)):
        yield (
            "attention",
            {"kernel": "chosen", "pass": direction, "causal": True, **_attention(mixed), **_quality(quality)},
        )
    for anchors in found.anchors:
        yield "collective", _collective(anchors)
    for name, chore in found.chores.items():
        yield "chore", {"name": name, **_chore(chore)}


def _product(fit: KernelFit) -> Rows:
    return {
        "compute": _share(fit.compute),
        "memory": _share(fit.memory),
        "shape": fit.shape,
        "overhead": short(fit.overhead, "time"),
    }


def _stream(fit: Stream, bandwidth: float) -> Rows:
    cached: Rows = {"cached": short(fit.cached, "bytes"), "hot": _share(fit.hot / bandwidth)} if fit.cached else {}
    return {"efficiency": _share(fit.cold / bandwidth), "overhead": short(fit.overhead, "time"), **cached}


def _attention(fit: AttentionFit) -> Rows:
    wide: Rows = {"half_width": fit.half_width} if fit.half_width else {}
    overhead = short(fit.overhead, "time")
    return {"ceiling": _share(fit.ceiling), "half_length": fit.half_length, "overhead": overhead, **wide}


def _chore(chore: Chore) -> Rows:
    idle: Rows = {"idle": short(chore.idle, "time")} if chore.idle else {}
    rate: Rows = {"rate": short(chore.rate, "bandwidth")} if chore.rate else {}
    return {"overhead": short(chore.overhead, "time"), **idle, **rate}


def _collective(anchors: Anchors) -> Rows:
    points: list[object] = [[_size(size), short(seconds, "time")] for size, seconds in anchors.points]
    return {"op": anchors.op, "group": anchors.size, "placement": "intra", "anchors": points}


def _size(size: float) -> str:
    return f"{int(size) // 1024} KiB" if size % 1024 == 0 else f"{int(size)} B"


def _overlap(found: Found) -> Rows:
    slowdown = found.overlap
    return {
        "compute_slowdown": _share(slowdown.compute_slowdown),
        "collective_slowdown": _share(slowdown.collective_slowdown),
    }


def _quality(quality: Quality) -> Rows:
    return {"points": quality.points, "error_mean": _share(quality.mean), "error_p95": _share(quality.p95)}


def _share(value: float) -> float:
    """A number without a unit, to four digits."""
    return float(f"{value:.4g}")


def _fraction(value: float) -> float:
    """A share of a peak, which a device's own words keep at 1 or below."""
    return min(1.0, _share(value))


def _head(kind: str, name: str, rows: Rows) -> str:
    return _lines({"schema": VERSION, "kind": kind, "name": name, **rows})


def _table(name: str, rows: Rows) -> str:
    return f"[{name}]\n{_lines(rows)}"


def _provenance(host: Host) -> str:
    return f'[provenance]\nall = {{ status = "measured", source = {json.dumps(host.source)} }}\n'


def _lines(rows: Rows) -> str:
    return "".join(f"{key} = {_text(value)}\n" for key, value in rows.items())


def _text(value: Value) -> str:
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {json.dumps(one)}" for key, one in value.items()) + " }"
    return json.dumps(value)
