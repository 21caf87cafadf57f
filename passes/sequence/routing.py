"""Over which ports of a node a ring's message goes to the next node.

In a ring of neighbours only the last rank of a node sends to another. Its message may go over its own port, or in parts
over those of ranks that send nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fourfold.hardware.machine import Crossing
from fourfold.hardware.topology import Machine


@dataclass(frozen=True, slots=True)
class Routing:
    """Ports that carry such a message.

    share: of the sender's port, in shares of a device while all devices send. proxies: by how much more ports the parts
    go than the sender has, 1 where it sends alone.
    """

    share: float = 1.0
    proxies: float = 1.0

    def routed(self, crossing: Crossing) -> Crossing:
        """The links between nodes at the rate so reached: scattered inside the node, sent, gathered again.

        As that is done piece by piece, a byte takes the longer of b_inter / x and b_intra (x - 1) / x, or b_inter where
        that is less. Source: Zeppelin (arXiv 2509.21841), its routing layer.
        """
        if crossing.inter is None:
            return crossing
        inter, intra, x = crossing.inter, crossing.intra, self.proxies
        alone = 1.0 / (inter.efficiency * inter.bandwidth * self.share)
        copied = 0.0 if intra is None else 1.0 / (intra.efficiency * intra.bandwidth) * (x - 1) / x
        each = min(alone, max(alone / x, copied))
        return replace(crossing, inter=replace(inter, bandwidth=1.0 / (each * inter.efficiency)))


OWN_PORT = Routing()
"""Every rank sends what is its own, over its own share of the ports; what the engine's ranks are priced by."""


def routing(machine: Machine, tensor: int, *, proxies: bool) -> Routing:
    """The ports of one of the `tensor` rings that leave a node together, one on each rank of a tensor group.

    The last devices of the node send, each over its own ports; through proxies all ports of the node carry them.
    """
    ports = machine.groups[0].node.ports
    if ports is None:
        return OWN_PORT
    senders, everyone = ports.owners[-tensor:], [port for owned in ports.owners for port in owned]
    sending = [port for owned in senders for port in owned]
    own = min(sum(1.0 / sending.count(port) for port in owned) for owned in senders)
    busy = min(sum(1.0 / everyone.count(port) for port in owned) for owned in ports.owners)
    return Routing(own / busy, max(1.0, len(set(everyone)) / tensor / own) if proxies else 1.0)
