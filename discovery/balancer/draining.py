"""What becomes of the connections to an instance that gets no new ones: they go on, are counted, and end some day.

A connection keeps its instance as long as the kernel tracks it, so nothing has to be done for it to go on. Datagrams
would go on as well, to nobody; the kernel is told to decide anew about those at once. An instance that is only
unhealthy keeps its connections for as long as they last; one that was deregistered until a deadline.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from discovery.balancer.desired import Backend, Frontend
from weft.kernel.interface import Flow

log = logging.getLogger(__name__)

MAX_DRAINING = 10_000
"""So many are looked after at once; connections to more are left to themselves."""

Flows = Callable[[Collection[Frontend]], dict[Frontend, list[Flow]]]
Forget = Callable[[Iterable[Flow]], None]


@dataclass(frozen=True, slots=True)
class DrainingBackend:
    """An instance that gets no new connections from a frontend. ``deadline`` is of the monotonic clock."""

    frontend: Frontend
    backend: Backend
    deadline: float
    connections: int = -1
    """As last counted; -1 before."""


class ConnectionDrainer:
    """All instances that are being drained. Blocks while it asks the kernel."""

    def __init__(self, flows: Flows, forget: Forget) -> None:
        self._flows = flows
        self._forget = forget
        self._found: dict[tuple[Frontend, Backend], DrainingBackend] = {}

    def all(self) -> tuple[DrainingBackend, ...]:
        """Every one, as last counted."""
        return tuple(self._found.values())

    def __len__(self) -> int:
        return len(self._found)

    def begin(self, front: Frontend, backends: Iterable[Backend], deadline: float) -> None:
        """These instances get no new connections from the frontend any more."""
        for backend in backends:
            if front.protocol == "tcp" and len(self._found) < MAX_DRAINING:
                self._found[(front, backend)] = DrainingBackend(front, backend, deadline)

    def move(self, front: Frontend, serving: Collection[Backend]) -> int:
        """Have the kernel decide anew about datagrams that go to none of the instances that serve; how many clients."""
        places = {(backend.address, backend.port) for backend in serving}
        stale = [flow for flow in self._flows([front])[front] if (flow.reply_source, flow.reply_port) not in places]
        self._forget(stale)
        return len(stale)

    def look(
        self,
        now: float,
        serving: Callable[[Frontend], Collection[Backend]],
        registered: Callable[[Frontend], Collection[Backend]],
    ) -> int:
        """Count the connections; those past their deadline end where the instance is gone. How many were ended."""
        ended = 0
        for front, there in self._flows({front for front, _ in self._found}).items():
            for (_, backend), draining in [(key, one) for key, one in self._found.items() if key[0] == front]:
                mine = [
                    flow for flow in there if (flow.reply_source, flow.reply_port) == (backend.address, backend.port)
                ]
                over = now >= draining.deadline
                if over and mine and backend not in registered(front):
                    self._forget(mine)
                    ended += len(mine)
                    log.info("%d connections to %s by %s were ended: it left", len(mine), backend.name, front)
                if over or not mine or backend in serving(front):
                    del self._found[(front, backend)]
                else:
                    self._found[(front, backend)] = DrainingBackend(front, backend, draining.deadline, len(mine))
        return ended
