"""Connection draining: established connections to backends that get no new ones.

Conntrack keeps the NAT mapping of established connections, so they continue by themselves. UDP
flows would continue to a backend that is gone, so their entries are flushed at once. An unhealthy
instance keeps its connections; those to a deregistered one are terminated at a deadline.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from discovery.balancer.desired import Backend, Frontend
from weft.kernel.values import Flow

log = logging.getLogger(__name__)

MAX_DRAINING = 10_000
"""Backends tracked at once; connections to further ones are left alone."""

Flows = Callable[[Collection[Frontend]], dict[Frontend, list[Flow]]]
Forget = Callable[[Iterable[Flow]], None]


@dataclass(frozen=True, slots=True)
class DrainingBackend:
    """A backend draining from a frontend. ``deadline`` in monotonic time."""

    frontend: Frontend
    backend: Backend
    deadline: float
    connections: int = -1
    """As last counted; -1 before the first count."""


class ConnectionDrainer:
    """All draining backends. Blocks on conntrack."""

    def __init__(self, flows: Flows, forget: Forget) -> None:
        self._flows = flows
        self._forget = forget
        self._draining: dict[tuple[Frontend, Backend], DrainingBackend] = {}

    def all(self) -> tuple[DrainingBackend, ...]:
        """All draining backends."""
        return tuple(self._draining.values())

    def __len__(self) -> int:
        return len(self._draining)

    def start(self, frontend: Frontend, backends: Iterable[Backend], deadline: float) -> None:
        """Start draining these backends of a frontend."""
        for backend in backends:
            if frontend.protocol == "tcp" and len(self._draining) < MAX_DRAINING:
                self._draining[(frontend, backend)] = DrainingBackend(frontend, backend, deadline)

    def flush_stale_udp(
        self, frontends: Collection[Frontend], serving: Callable[[Frontend], Collection[Backend]]
    ) -> None:
        """Flush UDP flows of these frontends to backends that no longer serve them."""
        for frontend, flows in self._flows(frontends).items():
            addresses = {(backend.address, backend.port) for backend in serving(frontend)}
            self._forget(flow for flow in flows if (flow.reply_source, flow.reply_port) not in addresses)

    def poll(
        self,
        now: float,
        serving: Callable[[Frontend], Collection[Backend]],
        registered: Callable[[Frontend], Collection[Backend]],
    ) -> int:
        """Count connections; terminate those past the deadline whose instance is deregistered.
        Returns their number.
        """
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
                    log.info(
                        "terminated %d connections to %s via %s: deregistered", len(own_flows), backend.name, frontend
                    )
                if expired or not own_flows or backend in serving(frontend):
                    del self._draining[(frontend, backend)]
                else:
                    self._draining[(frontend, backend)] = DrainingBackend(
                        frontend, backend, draining.deadline, len(own_flows)
                    )
        return ended
