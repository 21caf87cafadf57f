"""A turn of this rank as attention runs it: which part of which team, on which queue, with what is kept of chunks.

Teams that leave a node have a queue of their own where there are several nodes: a communicator and, on a GPU, a stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch

from fourfold.backends.attention.attention import Attention, Held
from fourfold.backends.attention.remap import Remap
from fourfold.backends.attention.sequence import Chain, Group, Local
from fourfold.backends.batch.placing import Part, Turn
from fourfold.backends.communication.ranks import Ranks
from fourfold.backends.communication.torch_comm import TorchComm
from fourfold.backends.kernels.documents import Documents
from fourfold.hardware.topology import Machine
from fourfold.ir.plan import Plan, Sharing
from fourfold.ir.sequence import METHODS


@dataclass(frozen=True, slots=True)
class Queues:
    """The queues of a rank: one for teams that leave a node, where some do, and one for those inside.

    node: ranks of a node, of all ranks; streams: one for each queue, on a GPU.
    """

    comms: tuple[TorchComm, ...]
    node: float
    streams: tuple[torch.cuda.Stream, ...]

    @classmethod
    def of(cls, ranks: Ranks, node: float) -> Queues:
        """Those of this rank."""
        cuda = ranks.device.type == "cuda"
        return cls(ranks.queues, node, tuple(_stream() for _ in ranks.queues) if cuda else ())

    def of_team(self, members: Sequence[int]) -> int:
        """The queue of a team of global ranks."""
        nodes = {rank // self.node for rank in members}
        return 0 if len(nodes) > 1 else len(self.comms) - 1


def _stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


def node_size(plan: Plan) -> float:
    """Ranks of one node of the plan's machine; without end where the plan names none."""
    return Machine.from_snapshot(plan.machine).node_size if plan.machine else inf


def queues(plan: Plan, *, placed: bool) -> int:
    """Communicators that attention's messages need under a plan, whose batches are placed or shared by fixed groups."""
    if plan.mesh.pool == 1 or not (placed or plan.mesh.sp > 1):
        return 0
    return 2 if placed and plan.mesh.ranks > node_size(plan) else 1


def attention_of(
    turn: Turn, lengths: tuple[int, ...], ranks: Ranks, sharing: Sharing, chains: dict[int, Chain], own: Queues
) -> Held:
    """What attention runs over in a turn; `lengths` are those of its runs, padding included."""
    if not turn.moves and all(len(part.team.ranks) == 1 and not part.earlier for part in turn.parts):
        return Documents.of(lengths, ranks.device)
    parts = tuple(_part(part, ranks, sharing, chains, own) for part in turn.parts)
    return Attention(parts, turn.run.tokens, _remap(turn, own), own.streams)


def _part(part: Part, ranks: Ranks, sharing: Sharing, chains: dict[int, Chain], own: Queues) -> Local | Group:
    team = part.team
    alone = len(team.ranks) == 1
    if alone and not part.earlier:
        return Local(Documents.of(tuple(piece.tokens for piece in team.pieces), ranks.device))
    chain = None
    if part.earlier:
        chain = chains.setdefault(team.pieces[0].sequence, Chain(part.rows))
    if alone:
        comm, queue = TorchComm((ranks.rank,), None), None
    else:
        pool = own.comms[0].members
        members = tuple(pool[rank] for rank in team.ranks)
        queue = own.of_team(members)
        comm = TorchComm(members, own.comms[queue].group)
    method, travel = METHODS["ring" if alone else team.sharing.method], getattr(torch, sharing.travel)
    return Group(comm, part.shards, method, team.sharing.ulysses, travel, part.earlier, chain, queue)


def _remap(turn: Turn, own: Queues) -> Remap | None:
    if not turn.moves:
        return None
    gives = tuple((move.target, move.tokens) for move in turn.moves if move.source == turn.rank)
    takes = tuple((move.source, move.tokens) for move in turn.moves if move.target == turn.rank)
    return Remap(own.comms[0], gives, takes)
