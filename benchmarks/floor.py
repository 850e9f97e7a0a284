"""The floor: one warm process that creates and deletes the same kernel objects with netlink messages
only.
"""

from __future__ import annotations

import select
import threading
import time
from typing import Any

from weft.kernel.linux.kernel import LinuxKernel, LinuxNamespace
from weft.kernel.netlink.constants import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    RTM_DELLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTMGRP_LINK,
)
from weft.kernel.netlink.deletion import deleted_links
from weft.kernel.netlink.rtnetlink import RouteSocket, request


class Floor:
    """A bridge with its address, and a container's namespace."""

    def __init__(self, netns: str) -> None:
        self._kernel = LinuxKernel()
        host = self._kernel.host
        host.add_link("floor0", "bridge", mac="02:00:00:00:00:01", up=True)
        self._bridge = host.link("floor0").index  # type: ignore[union-attr]
        container = self._kernel.open(netns)
        assert isinstance(container, LinuxNamespace)
        self._container = container
        self._host = RouteSocket()
        self._worker = RouteSocket()
        self._watcher = RouteSocket(groups=RTMGRP_LINK)

    def close(self) -> None:
        self._kernel.host.delete_link("floor0")
        for each in (self._host, self._worker, self._watcher, self._container, self._kernel):
            each.close()

    def add(self) -> float:
        """Create a veth pair: one end on the bridge, the other with address and default route, both up."""
        started = time.perf_counter()
        peer = [["IFLA_IFNAME", "eth0"], ["IFLA_NET_NS_FD", self._container.descriptor]]
        data = {"attrs": [["VETH_INFO_PEER", {"attrs": peer}]]}
        kind = [["IFLA_INFO_KIND", "veth"], ["IFLA_INFO_DATA", data]]
        made = [["IFLA_IFNAME", "floorveth"], ["IFLA_MASTER", self._bridge], ["IFLA_LINKINFO", {"attrs": kind}]]
        flags = NLM_F_CREATE | NLM_F_EXCL
        self._ask(self._host, RTM_NEWLINK, flags, {"flags": 1, "change": 1}, made)
        inside = self._container._socket
        index = self._container.link("eth0").index  # type: ignore[union-attr]
        address = [["IFA_LOCAL", "10.250.0.2"], ["IFA_ADDRESS", "10.250.0.2"]]
        self._ask(inside, RTM_NEWADDR, flags, {"family": 2, "index": index, "prefixlen": 24}, address)
        self._ask(inside, RTM_NEWLINK, 0, {"index": index, "flags": 1, "change": 1}, [])
        route = {"family": 2, "table": 254, "type": 1, "proto": 3}
        self._ask(inside, RTM_NEWROUTE, NLM_F_CREATE, route, [["RTA_GATEWAY", "10.250.0.1"], ["RTA_OIF", index]])
        return time.perf_counter() - started

    def delete(self) -> float:
        """Delete the link; timed until RTM_DELLINK, without the acknowledgement that follows."""
        link = self._kernel.host.link("floorveth")
        assert link is not None
        while select.select((self._watcher,), (), (), 0)[0]:
            deleted_links(self._watcher)
        asker = threading.Thread(target=self._ask, args=(self._worker, RTM_DELLINK, 0, {"index": link.index}, []))
        started = time.perf_counter()
        asker.start()
        while link.index not in deleted_links(self._watcher):
            pass
        elapsed = time.perf_counter() - started
        asker.join()
        return elapsed

    @staticmethod
    def _ask(socket: RouteSocket, kind: int, flags: int, fields: dict[str, Any], attributes: list[Any]) -> None:
        socket.request(request(kind, flags, "measure the floor", fields, attributes))
