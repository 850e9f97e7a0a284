"""``macspoofchk``, ``ipspoofchk``: a container sends with its own addresses alone, whatever it is allowed to do inside.

Keys, at the top level: ``macspoofchk`` (the source MAC address), ``ipspoofchk`` (also source IP addresses, ARP,
neighbour discovery, DHCP servers' answers, tags and other protocols), ``routerAdvertisements`` (a router is behind the
port: let it advertise itself). Under the name ``weft`` both checks are on, ``ipspoofchk`` where there are addresses;
under the reference's names both are off until asked for. Router advertisements and redirects never leave a port,
whatever the type, unless the key says so (CVE-2020-10749).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address

from cni_plugin.dataplane import frames, packets
from cni_plugin.plan import modules
from cni_plugin.plan.plan import Context, Plan, PlanPart
from cni_plugin.plan.traits import Feature, Option, Stage, Value
from cni_plugin.wire.plugins import OWN_NAME
from cni_plugin.wire.request import Request
from weft import identity
from weft.kernel.interface import Element, Scalar
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
    """What a container's port may send. ``trunk``: frames with VLAN tags, too, which are then not looked into."""

    bridged: bool
    mac: bool
    addresses: bool
    router: bool = False
    trunk: bool = False

    def plan(self, context: Context) -> Plan:
        result = context.result
        inner = next((one for one in result.interfaces if one.sandbox), None)
        port = _port(result, self.bridged)
        if inner is None or not port:
            return Plan(result=result)
        own = tuple(ip.address.ip for ip in result.ips)
        found = self._frames(port, inner, own) if self.bridged else self._packets(port, inner, own)
        mark = identity.attachment_mark(context.attachment)
        # An address may be there twice, with two prefix lengths.
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
        for address in (*own, link_local(inner.mac)):
            yield _OWN[address.version], (port, inner.mac, address)
            if address.version == 6:
                yield frames.ND_TARGETS6, (port, int(address))
        if self.trunk:
            yield frames.TRUNK_PORTS, (port,)

    def _packets(
        self, port: str, inner: ResultInterface, own: tuple[Address, ...]
    ) -> Iterator[tuple[str, tuple[Scalar, ...]]]:
        if self.addresses and own:
            yield packets.SOURCE_CHECKED_LINKS, (port,)
            for address in (*own, link_local(inner.mac)):
                yield _SOURCES[address.version], (port, address)


def _port(result: Result, bridged: bool) -> str:
    """The host's end of the veth pair: on a bridge it comes after the bridge itself."""
    host = [one.name for one in result.interfaces if not one.sandbox]
    return next(iter(host[1:] if bridged else host), "")


def link_local(mac: str) -> IPv6Address:
    """The address that the kernel gives a link by itself (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    return IPv6Address(b"\xfe\x80" + bytes(6) + bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:])


def read(request: Request, keys: Section) -> PlanPart | None:
    own = request.plugin == OWN_NAME
    addressed = bool(request.config.ipam.text("type"))
    mac = keys.flag("macspoofchk", own)
    addresses = keys.flag("ipspoofchk", own and mac and addressed)
    if addresses and not mac:
        if own:
            keys.problem(
                "macspoofchk", "cannot be set together with ipspoofchk true: whoever forges one forges the other"
            )
        mac = True
    if addresses and not addressed:
        keys.problem("ipspoofchk", "needs ipam: without it no address is known to be the container's own")
    bridged = modules.of_request(request).bridged
    return Spoofing(bridged, mac, addresses, keys.flag("routerAdvertisements"), bridged and "vlanTrunk" in keys)
