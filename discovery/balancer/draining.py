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
        self._draining: dict[tuple[Frontend, Backend], DrainingBackend] = {}

    def all(self) -> tuple[DrainingBackend, ...]:
        """Every one, as last counted."""
        return tuple(self._draining.values())

    def __len__(self) -> int:
        return len(self._draining)

    def start(self, frontend: Frontend, backends: Iterable[Backend], deadline: float) -> None:
        """These instances get no new connections from the frontend any more."""
        for backend in backends:
            if frontend.protocol == "tcp" and len(self._draining) < MAX_DRAINING:
                self._draining[(frontend, backend)] = DrainingBackend(frontend, backend, deadline)

    def flush_stale_udp(self, frontend: Frontend, serving: Collection[Backend]) -> int:
        """Have the kernel decide anew about datagrams that go to none of the instances that serve; how many clients."""
        serving_addresses = {(backend.address, backend.port) for backend in serving}
        stale = [
            flow
            for flow in self._flows([frontend])[frontend]
            if (flow.reply_source, flow.reply_port) not in serving_addresses
        ]
        self._forget(stale)
        return len(stale)

    def poll(
        self,
        now: float,
        serving: Callable[[Frontend], Collection[Backend]],
        registered: Callable[[Frontend], Collection[Backend]],
    ) -> int:
        """Count the connections; those past their deadline end where the instance is gone. How many were ended."""
        ended = 0
        for frontend, flows in self._flows({frontend for frontend, _ in self._draining}).items():
            for (_, backend), draining in [(key, one) for key, one in self._draining.items() if key[0] == frontend]:
                own_flows = [
                    flow for flow in flows if (flow.reply_source, flow.reply_port) == (backend.address, backend.port)
                ]
                expired = now >= draining.deadline
                if expired and own_flows and backend not in registered(frontend):
                    self._forget(own_flows)
                    ended += len(own_flows)
                    log.info("%d connections to %s by %s were ended: it left", len(own_flows), backend.name, frontend)
                if expired or not own_flows or backend in serving(frontend):
                    del self._draining[(frontend, backend)]
                else:
                    self._draining[(frontend, backend)] = DrainingBackend(
                        frontend, backend, draining.deadline, len(own_flows)
                    )
        return ended
