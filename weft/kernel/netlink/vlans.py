"""VLANs of bridge ports.

Source: ``bridge(8)``, ``linux/if_bridge.h``, ``net/bridge/br_netlink.c``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from weft.errors import Missing
from weft.kernel.netlink import links
from weft.kernel.netlink.codec import attribute, decode
from weft.kernel.netlink.constants import (
    AF_BRIDGE,
    BRIDGE_FLAGS_SELF,
    BRIDGE_VLAN_INFO_PVID,
    BRIDGE_VLAN_INFO_UNTAGGED,
    NLA_F_NESTED,
    RTEXT_FILTER_BRVLAN,
    RTM_DELLINK,
    RTM_GETLINK,
    RTM_SETLINK,
)
from weft.kernel.netlink.decoder import Decoder
from weft.kernel.netlink.rtnetlink import RouteSocket, request
from weft.kernel.netlink.transport import Request, parses_answer
from weft.kernel.values import BridgeVlan

_NEEDS = "VLAN filtering of bridges (CONFIG_BRIDGE_VLAN_FILTERING)"


@parses_answer
def of_port(socket: RouteSocket, name: str) -> tuple[BridgeVlan, ...]:
    """The VLANs of a bridge port or a bridge, by number; () without VLAN filtering in the kernel."""
    index = links.index(socket, name, f"list the VLANs of {name}")
    mask = [["IFLA_EXT_MASK", RTEXT_FILTER_BRVLAN]]
    found: dict[int, BridgeVlan] = {}
    dump = request(RTM_GETLINK, 0, f"list the VLANs of {name}", {"family": AF_BRIDGE}, mask)
    for message in map(decode, socket.dump(dump)):
        specific = attribute(message, "IFLA_AF_SPEC") if message["index"] == index else None
        if isinstance(specific, Decoder):
            for one in specific.get_attrs("IFLA_BRIDGE_VLAN_INFO"):
                flags = one["flags"]
                pvid, untagged = flags & BRIDGE_VLAN_INFO_PVID, flags & BRIDGE_VLAN_INFO_UNTAGGED
                found[one["vid"]] = BridgeVlan(one["vid"], bool(pvid), bool(untagged))
    return tuple(found[vid] for vid in sorted(found))


def add(socket: RouteSocket, name: str, vlans: Iterable[BridgeVlan]) -> None:
    """Add VLANs to a bridge port, or to a bridge itself; existing ones are changed."""
    action = f"add VLANs to {name}"
    socket.request(*_requests(socket, RTM_SETLINK, name, [(vlan.vid, _flags(vlan)) for vlan in vlans], action))


def delete(socket: RouteSocket, name: str, vids: Iterable[int]) -> None:
    """Take VLANs from a bridge port; missing ones are fine."""
    action = f"delete VLANs from {name}"
    for outcome in socket.attempt(*_requests(socket, RTM_DELLINK, name, [(vid, 0) for vid in vids], action)):
        error = outcome.error
        if error is not None and not isinstance(error, Missing):
            raise error


def _flags(vlan: BridgeVlan) -> int:
    return (BRIDGE_VLAN_INFO_PVID if vlan.pvid else 0) | (BRIDGE_VLAN_INFO_UNTAGGED if vlan.untagged else 0)


def _requests(
    socket: RouteSocket, kind: int, name: str, vlans: list[tuple[int, int]], action: str
) -> tuple[Request, ...]:
    # One message a VLAN: the kernel stops at the first that it cannot delete.
    link = links.get(socket, name)
    if link is None:
        raise Missing(f"cannot {action}: the link {name} does not exist")
    requests = []
    for vid, flags in vlans:
        specific: list[Any] = [["IFLA_BRIDGE_VLAN_INFO", {"flags": flags, "vid": vid}]]
        if link.kind == "bridge":
            specific.insert(0, ["IFLA_BRIDGE_FLAGS", BRIDGE_FLAGS_SELF])
        fields = {"family": AF_BRIDGE, "index": link.index}
        attributes = [("IFLA_AF_SPEC", {"attrs": specific}, NLA_F_NESTED)]
        requests.append(request(kind, 0, action, fields, attributes, needs=_NEEDS))
    return tuple(requests)
