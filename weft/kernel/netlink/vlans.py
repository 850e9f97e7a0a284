"""VLANs of bridge ports. Source: ``bridge(8)``, ``linux/if_bridge.h``, ``net/bridge/br_netlink.c``."""

from __future__ import annotations

from collections.abc import Iterable

from weft.errors import Missing
from weft.kernel.interface import BridgeVlan
from weft.kernel.netlink import codec, links
from weft.kernel.netlink.codec import Attributes, attribute
from weft.kernel.netlink.reader import Reader
from weft.kernel.netlink.socket import Request, RouteSocket

_SHOW_VLANS = 2
_PVID, _UNTAGGED = 0x2, 0x4
_SELF = 2
_NEEDS = "VLAN filtering of bridges (CONFIG_BRIDGE_VLAN_FILTERING)"


def of_port(socket: RouteSocket, name: str) -> tuple[BridgeVlan, ...]:
    """The VLANs of a bridge port, or of a bridge itself, by number; () where the kernel has no VLAN filtering."""
    index = links.index(socket, name, f"list the VLANs of {name}")
    request = Request(codec.GETLINK, 0, f"list the VLANs of {name}", {"family": codec.AF_BRIDGE})
    request.attributes = [["IFLA_EXT_MASK", _SHOW_VLANS]]
    found: dict[int, BridgeVlan] = {}
    for message in socket.dump(request):
        specific = attribute(message, "IFLA_AF_SPEC") if message["index"] == index else None
        if isinstance(specific, Reader):
            for one in specific.get_attrs("IFLA_BRIDGE_VLAN_INFO"):
                flags = one["flags"]
                found[one["vid"]] = BridgeVlan(one["vid"], bool(flags & _PVID), bool(flags & _UNTAGGED))
    return tuple(found[vid] for vid in sorted(found))


def add(socket: RouteSocket, name: str, vlans: Iterable[BridgeVlan]) -> None:
    """Add VLANs to a bridge port, or to a bridge itself; those that are there are changed to what is asked."""
    doing = f"add VLANs to {name}"
    wanted = [(vlan.vid, (_PVID if vlan.pvid else 0) | (_UNTAGGED if vlan.untagged else 0)) for vlan in vlans]
    socket.request(*_requests(socket, codec.SETLINK, name, wanted, doing))


def delete(socket: RouteSocket, name: str, vids: Iterable[int]) -> None:
    """Take VLANs from a bridge port; those that are not there are fine."""
    doing = f"delete VLANs from {name}"
    for outcome in socket.attempt(*_requests(socket, codec.DELLINK, name, [(vid, 0) for vid in vids], doing)):
        if outcome.problem is not None and not isinstance(outcome.problem, Missing):
            raise outcome.problem


def _requests(
    socket: RouteSocket, kind: int, name: str, vlans: list[tuple[int, int]], doing: str
) -> tuple[Request, ...]:
    # One message a VLAN: the kernel stops at the first that it cannot delete.
    link = links.get(socket, name)
    if link is None:
        raise Missing(f"cannot {doing}: there is no link {name}")
    requests = []
    for vid, flags in vlans:
        specific: Attributes = [["IFLA_BRIDGE_VLAN_INFO", {"flags": flags, "vid": vid}]]
        if link.kind == "bridge":
            specific.insert(0, ["IFLA_BRIDGE_FLAGS", _SELF])
        fields = {"family": codec.AF_BRIDGE, "index": link.index}
        attributes = [("IFLA_AF_SPEC", {"attrs": specific}, links.NESTED)]
        requests.append(Request(kind, 0, doing, fields, attributes, needs=_NEEDS))
    return tuple(requests)
