"""The agent's part in an etcd cluster: this node's record, and a cluster that weft has made."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from ipaddress import ip_address
from typing import TYPE_CHECKING

from cluster.etcd_server import EtcdServer
from cluster.local import Files, is_own
from cluster.nodes import State
from cni_plugin.agent.settings import Settings
from discovery.registry import Registry
from discovery.structs import NODE_MAINT
from store import Store
from weft.types import Address

if TYPE_CHECKING:
    from cluster.keeper import MemberKeeper, NodeKeeper

_DRAINED = "drained by weft node drain"


class Clustering:
    """Its parts, None where the catalog is a file of this host, or the cluster is not weft's."""

    def __init__(
        self, settings: Settings, folder: str, store: Store, registry: Registry, restart: Callable[[str], None]
    ) -> None:
        self.node: NodeKeeper | None = None
        self.member: MemberKeeper | None = None
        if settings.store is None:
            return
        from cluster.keeper import MemberKeeper, NodeKeeper

        def addresses() -> tuple[Address, ...]:
            """What a node has joined with; without that, and of a client that has lost it, that of the uplink."""
            joined = settings.cluster
            if joined is not None and (joined.is_member or is_own(joined.address)):
                return (joined.underlay,)
            with contextlib.suppress(ValueError):
                return (ip_address(registry.node.address),)
            return ()

        async def on_state(state: State) -> None:
            """A drained node's services are in maintenance; what somebody else has put there stays."""
            own = registry.checks().get(NODE_MAINT)
            if state is State.DRAINED:
                await registry.maintenance(True, _DRAINED)
            elif own is not None and own.notes == _DRAINED:
                await registry.maintenance(False)

        name = settings.cluster.node if settings.cluster else registry.node.name
        number = settings.cluster.id if settings.cluster else registry.node.id.replace("-", "")
        self.node = NodeKeeper(store, name, number, addresses, on_state, creates=settings.cluster is None)
        if settings.cluster is not None:
            own = Files(settings.cluster_folder)
            self.member = MemberKeeper(own, settings.cluster, EtcdServer(own, folder), store, restart)

    @property
    def problems(self) -> tuple[str, ...]:
        """What does not work."""
        return tuple(one.problem for one in (self.node, self.member) if one is not None and one.problem)
