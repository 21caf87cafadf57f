"""Memory of the host that keeps what the device has no room for: pages that are reused, and one storage out and back.

On a GPU the pages are pinned and each direction has a stream of its own, ordered by events alone: the host waits for
nothing. On a CPU the same copies run where they stand.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Event = torch.cuda.Event | None
"""What later work waits for; None where nothing is late."""
Page = tuple[Tensor, Event]
"""Bytes of the host, and when they may be written again."""
PAGE = 8 * 2**20
"""Bytes of a page: a copy of one takes far longer than its launch, and half a page is lost for each storage."""
LEAST = 2**20
"""Bytes of the smallest storage that is worth a copy."""


@dataclass(frozen=True, slots=True)
class Direction:
    """Out of the device or back into it: a stream of its own on a GPU."""

    stream: torch.cuda.Stream | None = None

    def copied(self, pairs: Sequence[tuple[Tensor, Tensor]], after: Sequence[Event]) -> Event:
        """Copies each second tensor into the first, once `after` and all that was begun here are done."""
        if self.stream is None:
            for there, here in pairs:
                there.copy_(here)
            return None
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        for event in after:
            if event is not None:
                self.stream.wait_event(event)
        with torch.cuda.stream(self.stream):
            for there, here in pairs:
                there.copy_(here, non_blocking=True)
        done: torch.cuda.Event = self.stream.record_event()
        return done


@dataclass(slots=True, eq=False)
class Host:
    """The pages of one rank, those that are free, and the directions out and back."""

    device: torch.device
    out: Direction = Direction()
    back: Direction = Direction()
    page: int = PAGE
    least: int = LEAST
    free: deque[Page] = field(default_factory=deque)
    pages: int = 0
    leaving: deque[tuple[int, weakref.ref[Away]]] = field(default_factory=deque)
    outward: int = 0

    @classmethod
    def of(cls, device: torch.device) -> Host:
        """Of a device; no page exists before it is needed."""
        if device.type != "cuda":
            return cls(device)
        out, back = (Direction(torch.cuda.Stream(device)) for _ in range(2))  # type: ignore[no-untyped-call]
        return cls(device, out, back)

    def take(self, size: int) -> list[Page]:
        """Pages for so many bytes."""
        count = -(-size // self.page)
        while len(self.free) < count:
            pinned = self.device.type == "cuda"
            self.free.append((torch.empty(self.page, dtype=torch.uint8, pin_memory=pinned), None))
            self.pages += 1
        return [self.free.popleft() for _ in range(count)]

    def give(self, pages: Sequence[Page], after: Event) -> None:
        """Pages that are free once `after` is done."""
        self.free.extend((page, after) for page, _ in pages)

    def left(self, away: Away, most: int) -> None:
        """Counts one that is on its way; where more than `most` bytes are, the device lets go of the first.

        A backward that comes before that finds them on the device.
        """
        self.leaving.append((away.size, weakref.ref(away)))
        self.outward += away.size
        while self.outward > most:
            size, first = self.leaving.popleft()
            self.outward -= size
            found = first()
            if found is not None:
                found.let_go()


class Away:
    """One storage of the device in the host's memory, for as long as something that was saved refers to it."""

    __slots__ = ("__weakref__", "arrived", "changed", "gone", "host", "origin", "pages", "restored", "size", "version")

    def __init__(self, host: Host, origin: Tensor) -> None:
        """Begins to copy the storage of `origin` out."""
        self.host, self.size = host, origin.untyped_storage().nbytes()
        self.origin: Tensor | None = origin
        self.restored: Tensor | None = None
        self.gone: Event = None
        self.arrived: Event = None
        self.pages: list[Page] = []
        self.version, self.changed = origin._version, False
        self.pages = host.take(self.size)
        self.gone = host.out.copied(tuple(self._pairs(_flat(origin))), [event for _, event in self.pages])

    def let_go(self) -> None:
        """The device's memory is free for what is begun here next."""
        self._wait(self.gone)
        self._compare()
        self.origin = None

    def fetch(self) -> bool:
        """Begins to bring the storage back; whether it was not there."""
        if self.origin is not None or self.restored is not None:
            return False
        self.restored = torch.empty(self.size, dtype=torch.uint8, device=self.host.device)
        pairs = tuple((here, page) for page, here in self._pairs(self.restored))
        self.arrived = self.host.back.copied(pairs, (self.gone,))
        self.host.give(self.pages, self.arrived)
        self.pages = []
        return True

    def storage(self) -> torch.UntypedStorage:
        """The storage, for what is begun here next."""
        self.fetch()
        self._compare()
        assert not self.changed, "a saved tensor was changed in place"
        if self.origin is not None:
            return self.origin.untyped_storage()
        assert self.restored is not None
        self._wait(self.arrived)
        self.arrived = None
        return self.restored.untyped_storage()

    def __del__(self) -> None:
        """Its pages are free when the last copy is done; so is memory that was brought back and not asked for."""
        self._wait(self.arrived)
        self.host.give(self.pages, self.gone)

    def _pairs(self, flat: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Each page with its part of the storage."""
        for (page, _), part in zip(self.pages, flat.split(self.host.page), strict=True):  # type: ignore[no-untyped-call]
            yield page[: len(part)], part

    def _wait(self, event: Event) -> None:
        if event is not None:
            torch.cuda.current_stream(self.host.device).wait_event(event)

    def _compare(self) -> None:
        """Whether the storage was written to while it was on its way."""
        if self.origin is not None:
            self.changed |= self.origin._version != self.version


def _flat(x: Tensor) -> Tensor:
    """All bytes of a tensor's storage."""
    return torch.empty(0, dtype=torch.uint8, device=x.device).set_(x.untyped_storage())
