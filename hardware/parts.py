"""What a machine is assembled from: fabrics, ports, nodes, groups of nodes and networks between them, in SI units."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Delay:
    """Fixed and per-step times of the large-message and the small-message protocol, and the limit of the latter."""

    base: float
    step: float
    base_small: float
    step_small: float
    small_limit: float


@dataclass(frozen=True, slots=True)
class Fabric:
    """The links between the devices of one node; every rate is one way.

    `rate` is what one device can send in all, `link` what one link of a mesh carries; `pairs` are the links of a
    graph; `switches` the devices under each PCIe switch with a shared `uplink`; `crossing` is the shared rate between
    memory domains; `gains` maps a group size to the factor by which reduction in the switch speeds an all-reduce up.
    """

    name: str
    topology: str
    rate: float
    link: float
    pairs: tuple[tuple[int, int, float], ...]
    switches: tuple[tuple[int, ...], ...]
    uplink: float | None
    crossing: float | None
    efficiency: float
    delay: Delay
    gains: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Ports:
    """Network ports of one node: `owners[d]` are the ports that device d uses."""

    rate: float
    owners: tuple[tuple[int, ...], ...]
    transport: str
    delay: Delay


@dataclass(frozen=True, slots=True)
class Node:
    """One node: devices, host and links. `domains[d]` is the memory domain of device d."""

    name: str
    device: str
    devices: int
    domains: tuple[int, ...]
    host_memory: float
    host_bandwidth: float | None
    host_link: float | None
    fabrics: tuple[Fabric, ...]
    ports: Ports | None


@dataclass(frozen=True, slots=True)
class Group:
    """Equal nodes of a cluster."""

    name: str
    node: Node
    count: int


@dataclass(frozen=True, slots=True)
class Network:
    """What joins the nodes of `groups`: rate of a port, of a whole node and of the shared trunk, where given."""

    name: str
    groups: tuple[str, ...]
    topology: str
    port: float | None
    node: float | None
    trunk: float | None
    oversubscription: float
    nodes_per_leaf: int | None
    hop: float
    step: float | None
    efficiency: float


@dataclass(frozen=True, slots=True)
class Policy:
    """What a plan may do across groups of unlike nodes."""

    collectives: bool = True
    pipeline: bool = True
    data_parallel: bool = True
