"""Every field of the four kinds of profile: one line each, with its form and what it means.

A line reads `path form [required] [priced] meaning`. A `*` in a path stands for one name: a dtype, a fabric, a
group, a row number. `priced` marks what the resolved machine is built from. Forms beside the unit kinds of
units.py: text, texts (one or a list), whole, number, share (a fraction of a peak or a wire), flag, list, date,
and `rate?`, a rate or the word "unsupported".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

VERSION: Final = "fourfold.hardware/1"
KINDS: Final = ("device", "node", "cluster", "calibration")
DTYPES: Final = ("fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "fp4", "int8")
OPTIONAL_DTYPES: Final = ("fp6", "fp16_acc16", "fp8_acc16")
NOT_INHERITED: Final = ("schema", "kind", "name", "extends", "abstract", "summary", "calibration")
STATUSES: Final = ("vendor", "measured", "published", "derived", "press", "memory", "estimated")
WEAK: Final = ("press", "memory", "estimated", "unstated", "default")

EVERY: Final = """
schema                text required     the version of this format
kind                  text required     device, node, cluster or calibration
name                  text required     how other files and the command line call it
extends               text              the profile that this one starts from
abstract              flag              only a base for others; never matches a device
summary               text              one line for lists
"""
DEVICE: Final = """
calibration           texts             measurements of this device, by name
match.name            texts             patterns of the name that torch reports
match.not_name        texts             patterns that this profile must not match
match.arch            text              the architecture that torch reports
execution.vendor      text required priced   nvidia, amd or cpu
execution.arch        text required priced   sm_90, gfx942, x86_64
execution.units       whole required priced  multiprocessors, compute units or cores
execution.unit        text              what a unit is called
execution.clock       frequency         the boost clock behind the peak rates
execution.simt_width  whole required    threads that run in step
execution.l2          bytes priced      last cache that all units share, or one die's
execution.llc         bytes             cache behind it
execution.shared_per_unit          bytes   scratch memory of a unit
execution.shared_per_block         bytes   scratch memory one block may use
execution.registers_per_unit       bytes   register file of a unit
execution.tensor_memory_per_unit   bytes   matrix accumulators of a unit
execution.tensor_rate_capped       flag    the rate is cut below units x clock
peak.*                rate? priced      dense rate with fp32 accumulation
memory.capacity       bytes             the label on the box
memory.usable         bytes required priced      what the driver reports, not the label
memory.bandwidth      bandwidth required priced  read plus write
memory.reserve        bytes priced      context and communicator buffers, never the model's
capability.collectives      text required priced   nccl, rccl or gloo
capability.peer_access      flag         devices of one host read each other
capability.copy_engine_p2p  flag         copies between devices without using units
uncalibrated.matmul_compute        share required priced   best matmul rate over peak
uncalibrated.matmul_memory         share required priced   memory rate of thin matmuls over bandwidth
uncalibrated.matmul_shape          number required priced  exponent of the roofline norm
uncalibrated.matmul_overhead       time required priced    fixed time of a matmul
uncalibrated.stream_memory         share required priced   elementwise rate over bandwidth
uncalibrated.norm_memory           share required priced   normalisation rate over bandwidth
uncalibrated.kernel_overhead       time required priced    fixed time of an elementwise kernel
uncalibrated.attention_forward     share required priced   best attention rate over matmul peak
uncalibrated.attention_backward    share required priced   the same, backward
uncalibrated.attention_half_length number required priced  sequence length at half of that rate
uncalibrated.launch_host           time required priced    host time to launch one eager op
uncalibrated.collective_bandwidth  share required priced   bus bandwidth over wire for large messages
uncalibrated.collective_latency_small  number required priced  multiplies the small-message latency
uncalibrated.collective_latency_large  number required priced  multiplies the large-message latency
uncalibrated.collective_overlap    share required priced   share of the shorter phase that hides
"""
NODE: Final = """
calibration           texts             measurements of this node, by name
device                text required priced   the device profile
devices               whole required priced  devices in one node
host.cores            whole             processor cores
host.memory           bytes priced      host memory, of one tray where trays are given
host.memory_bandwidth bandwidth priced  host memory rate, shared by staged traffic
host.device_link      bandwidth priced  device to host, each device at once
host.numa             list priced       memory domain of each device
host.tray             whole priced      devices of one operating system, if fewer than devices
fabric.*.name         text required     name of the link between devices
fabric.*.topology     text required priced   switch, mesh, graph, pcie-tree or host-staged
fabric.*.per_direction        bandwidth priced  what one device sends while it receives as much
fabric.*.bidirectional        bandwidth priced  both ways together; halved on reading
fabric.*.bandwidth            refused
fabric.*.links                whole priced      links of one device
fabric.*.link_per_direction   bandwidth priced  one link, one way
fabric.*.link_efficiency      share priced      share of the wire that large messages reach
fabric.*.pairs                list priced       [device, device, rate one way] of a graph
fabric.*.uneven               flag              devices have unequal totals, and that is right
fabric.*.switches             list priced       devices under each PCIe switch
fabric.*.uplink_per_direction     bandwidth priced  from one such switch upwards, shared
fabric.*.cross_numa_per_direction bandwidth priced  between memory domains, shared
fabric.*.latency.base         time required priced       fixed time, large-message protocol
fabric.*.latency.step         time required priced       each step, large-message protocol
fabric.*.latency.base_small   time required priced       fixed time, small-message protocol
fabric.*.latency.step_small   time required priced       each step, small-message protocol
fabric.*.latency.small_limit  bandwidth required priced  rate limit of the small-message protocol
fabric.*.offload.collectives  texts priced      what the switch reduces
fabric.*.offload.min_group    whole priced      smallest group that gains
fabric.*.offload.gain         list priced       [group size, factor] pairs
fabric.*.offload.requires_env.*  text           environment that the offload needs
nic.count             whole priced      network ports of the node
nic.per_direction     bandwidth priced  each port, one way
nic.bandwidth         refused
nic.affinity          any priced        port of each device, "identity" or "shared"
nic.transport         text              infiniband, roce, slingshot, aries, tcp
nic.gpudirect         flag              the port reads device memory itself
nic.base              time priced       fixed time across nodes, large messages
nic.base_small        time priced       fixed time across nodes, small messages
nic.latency           time priced       each step over the network, large messages
nic.latency_small     time priced       each step over the network, small messages
nic.small_limit       bandwidth priced  rate limit of the small-message protocol across nodes
"""
CLUSTER: Final = """
group.*.name          text required     name of a set of equal nodes
group.*.node          text required priced   the node profile
group.*.count         whole required priced  how many
network.*.name        text              name of a network
network.*.groups      texts priced      the groups it joins; all, if absent
network.*.topology    text priced       rail-optimized, fat-tree, dragonfly, flat, bridge
network.*.bandwidth   refused
network.*.per_direction           bandwidth priced  each port, one way
network.*.per_node_per_direction  bandwidth priced  a whole node, one way
network.*.total_per_direction     bandwidth priced  the trunk that all of it shares, one way
network.*.oversubscription        number priced     leaf downlinks over uplinks
network.*.nodes_per_leaf          whole priced      nodes that meet on one leaf switch
network.*.hop_latency             time priced       each switch
network.*.latency                 time priced       each step, in place of the port's own
network.*.efficiency              share priced      share of the wire that large messages reach
network.*.transport               text              tcp where it differs from the ports
network.*.gpudirect               flag              false where it differs from the ports
policy.collectives_across_groups    flag   tensor, sequence and sharded groups may span groups
policy.pipeline_across_groups       flag   pipeline stages may lie in different groups
policy.data_parallel_across_groups  flag   replicas may lie in different groups
"""
CALIBRATION: Final = """
applies_to.device     texts             the device profiles it was measured on
applies_to.node       texts             the node profiles it was measured on
meta.environment.*    text              variables that were set
meta.*                any               date, method, source, versions, environment
matmul.*.dtype        text required     dtype of the inputs
matmul.*.layout       text              nn, nt, tn or any
matmul.*.compute      number required priced   best rate over peak
matmul.*.memory       number required priced   thin rate over bandwidth
matmul.*.shape        number required priced   exponent of the roofline norm
matmul.*.overhead     time required priced     fixed time
stream.*.kind         text required     copy, add, swiglu; "special": exponentials and their like, on their own
stream.*.efficiency   number required priced   rate over bandwidth
stream.*.overhead     time required priced     fixed time
stream.*.cached       bytes priced      bytes moved that a cache holds
stream.*.hot          number priced     rate of those over bandwidth
norm.*.kind           text required     rms_norm, layer_norm
norm.*.pass           text              forward or backward
norm.*.efficiency     number required priced   rate over bandwidth
norm.*.overhead       time required priced     fixed time
norm.*.cached         bytes priced      bytes moved that a cache holds
norm.*.hot            number priced     rate of those over bandwidth
attention.*.kernel    text required     which kernel was timed
attention.*.pass      text required     forward or backward
attention.*.head_dim  whole             size of a head
attention.*.causal    flag              half of the work counted
attention.*.ceiling   number required priced   best rate over matmul peak
attention.*.half_length  number required priced  sequence length at half of it
attention.*.half_width   number priced  head size at half of it
attention.*.overhead  time required priced     fixed time
chore.*.name          text required     gather, reduce, update, local, move or read
chore.*.overhead      time required priced     host time each, where no kernel runs meanwhile
chore.*.idle          time priced       the same where there is nothing to move
chore.*.rate          bandwidth priced  rate at which its bytes are copied
collective.*.op       text required     all_reduce, all_gather, reduce_scatter, all_to_all, broadcast, send_recv
collective.*.group    whole required priced    ranks in the group
collective.*.placement  text            intra or inter
collective.*.nodes    whole priced      nodes it spans
collective.*.stride   whole             distance between its ranks
collective.*.busbw    bandwidth         bus bandwidth of the largest message
collective.*.latency  time              time of a tiny message
collective.*.anchors  list priced       ["size", "time"] pairs
p2p.*.placement       text required     intra or inter
p2p.*.pair            list              the two ranks
p2p.*.per_direction   bandwidth priced  one way
p2p.*.bidirectional   bandwidth         both ways at once, together
p2p.*.latency         time priced       time of a tiny message
p2p.*.anchors         list priced       ["size", "time"] pairs
*.*.dtype             text              dtype it was timed in
*.*.points            whole             timings behind the fit
*.*.error_mean        number            mean relative error of the fit
*.*.error_p95         number            its 95th percentile
*.*.range_m           list              rows covered
*.*.range_time        list              times covered
*.*.status            text              as in [provenance], where a row differs
*.*.source            text              as in [provenance], where a row differs
host.*                time priced       host time of a launch
overlap.*             number priced     slowdown of compute and collective when both run
"""


@dataclass(frozen=True, slots=True)
class Field:
    """One line of the tables above."""

    path: str
    form: str
    required: bool
    priced: bool
    meaning: str


def _read(table: str) -> dict[str, Field]:
    fields = (_field(line.split()) for line in table.strip().splitlines())
    return {field.path: field for field in fields}


def _field(words: list[str]) -> Field:
    path, form, *rest = words
    required = rest[:1] == ["required"]
    rest = rest[required:]
    priced = rest[:1] == ["priced"]
    return Field(path, form, required, priced, " ".join(rest[priced:]))


FIELDS: Final[dict[str, dict[str, Field]]] = {
    "device": _read(EVERY) | _read(DEVICE),
    "node": _read(EVERY) | _read(NODE),
    "cluster": _read(EVERY) | _read(CLUSTER),
    "calibration": _read(EVERY) | _read(CALIBRATION),
}


def field_of(kind: str, path: str) -> Field | None:
    """The field that a path such as `fabric.nvswitch.links` belongs to, or None if a profile has no such field."""
    fields = FIELDS.get(kind, {})
    parts = path.split(".")
    patterns = (
        path,
        ".".join((*parts[:1], "*", *parts[2:])),
        ".".join((*parts[:-1], "*")),
        ".".join((*parts[:1], "*", *parts[2:-1], "*")),
        ".".join(("*", "*", *parts[2:])),
    )
    return next((fields[pattern] for pattern in patterns if pattern in fields), None)
