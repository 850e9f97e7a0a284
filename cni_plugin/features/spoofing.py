"""``macspoofchk``, ``ipspoofchk``: drops frames from a container with other source addresses than its
own.

Keys, at the top level: ``macspoofchk`` (the source MAC address), ``ipspoofchk`` (also source IP
addresses, ARP, neighbour discovery, DHCP server replies, VLAN tags and other protocols),
``routerAdvertisements`` (allow router advertisements from the port, for a router behind it). For type
``weft`` both checks are on, ``ipspoofchk`` if there is IPAM; for the reference plugins' types both are
off. Router advertisements and redirects from a port are always dropped unless the key allows them
(CVE-2020-10749).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cni_plugin.dataplane import frames, packets
from cni_plugin.plan import modules
from cni_plugin.plan.plan import Context, Plan, PlanPart
from cni_plugin.plan.traits import Feature, Option, Stage, Value
from cni_plugin.wire.plugins import OWN_NAME
from cni_plugin.wire.request import Request
from weft import identity
from weft.kernel.values import Element, Scalar
from weft.section import Section
from weft.types import Address, Result, ResultInterface

FEATURE = Feature(
    Stage.PORT_GUARD,
    section=False,
    keys=("macspoofchk", "ipspoofchk", "routerAdvertisements"),
    options=(
        Option("macspoofchk", Value.FLAG),
        Option("ipspoofchk", Value.FLAG),
        Option("routerAdvertisements", Value.FLAG),
    ),
)
_OWN = {4: frames.PORT_MAC_IP4, 6: frames.PORT_MAC_IP6}
_SOURCES = {4: packets.LINK_SOURCES4, 6: packets.LINK_SOURCES6}


@dataclass(frozen=True, slots=True)
class Spoofing:
    """What a container's port may send. ``trunk``: tagged frames are allowed, and not inspected, but for
    those of the ``native`` VLANs, whose frames have no tag, and of VLAN 0 (priority tags).
    """

    bridged: bool
    mac: bool
    addresses: bool
    router: bool = False
    trunk: bool = False
    native: tuple[int, ...] = ()

    def plan(self, context: Context) -> Plan:
        result = context.result
        inner = next((one for one in result.interfaces if one.sandbox), None)
        port = _port(result, self.bridged)
        if inner is None or not port:
            return Plan(result=result)
        own = tuple(ip.address.ip for ip in result.ips)
        found = self._frames(port, inner, own) if self.bridged else self._packets(port, inner, own)
        mark = identity.attachment_mark(context.attachment)
        # An address may be listed twice, with different prefix lengths.
        return Plan(
            guards=tuple(dict.fromkeys(Element(name, key, mark=mark) for name, key in found)),
            result=result,
        )

    def _frames(
        self, port: str, inner: ResultInterface, own: tuple[Address, ...]
    ) -> Iterator[tuple[str, tuple[Scalar, ...]]]:
        if not self.router:
            yield frames.NO_ROUTER_PORTS, (port,)
        if self.mac:
            yield frames.MAC_CHECKED_PORTS, (port,)
            yield frames.PORT_MACS, (port, inner.mac)
        if not (self.addresses and own):
            return
        yield frames.IP_CHECKED_PORTS, (port,)
        yield frames.ND_LINK_ADDRESSES, (port, int(inner.mac.replace(":", ""), 16))
        for address in (*own, identity.link_local(inner.mac)):
            yield _OWN[address.version], (port, inner.mac, address)
            if address.version == 6:
                yield frames.ND_TARGETS6, (port, int(address))
        if self.trunk:
            yield frames.TRUNK_PORTS, (port,)
            for vid in (0, *self.native):
                yield frames.NATIVE_VLANS, (port, vid)

    def _packets(
        self, port: str, inner: ResultInterface, own: tuple[Address, ...]
    ) -> Iterator[tuple[str, tuple[Scalar, ...]]]:
        if self.addresses and own:
            yield packets.SOURCE_CHECKED_LINKS, (port,)
            for address in (*own, identity.link_local(inner.mac)):
                yield _SOURCES[address.version], (port, address)


def _port(result: Result, bridged: bool) -> str:
    """The host end of the veth pair; with a bridge it is the result's second interface."""
    host = [one.name for one in result.interfaces if not one.sandbox]
    return next(iter(host[1:] if bridged else host), "")


def read(request: Request, keys: Section) -> PlanPart | None:
    own = request.plugin == OWN_NAME
    addressed = bool(request.config.ipam.text("type"))
    mac = keys.flag("macspoofchk", own)
    addresses = keys.flag("ipspoofchk", own and mac and addressed)
    if addresses and not mac:
        if own:
            keys.problem(
                "macspoofchk",
                "must not be false if ipspoofchk is true: IP addresses are checked together with the MAC address",
            )
        mac = True
    if addresses and not addressed:
        keys.problem("ipspoofchk", "requires ipam: the container's addresses are not known without it")
    bridged = modules.of_request(request).bridged
    trunk = bridged and "vlanTrunk" in keys
    native = _untagged(keys) if trunk else ()
    return Spoofing(bridged, mac, addresses, keys.flag("routerAdvertisements"), trunk, native)


def _untagged(keys: Section) -> tuple[int, ...]:
    """The VLANs whose frames a bridge's port sends without a tag."""
    default = (1,) if keys.flag("preserveDefaultVlan") else ()
    return (keys.integer("vlan", least=0, most=4094) or 1, *default)
