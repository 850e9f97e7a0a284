"""Random frames of every kind from a container's port: nobody else's state changes, and nothing arrives that
must not.

Each setting takes WEFT_FUZZ_SECONDS. A failure names the seed and the frame, which
``WEFT_TEST_SEED=SEED WEFT_FUZZ_FIRST=NUMBER`` sends first.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from lab import frames, seen
from lab.abilities import require
from lab.calls import Weft
from lab.confs import bridge, dual, pool, ptp
from lab.frames import UDP
from lab.fuzz_frames import FORGED, TOKEN, Maker, World
from lab.host import Host
from lab.namespaces import inside
from lab.permitted import Checks, Tag, Vlans, misled, objection
from lab.sample import seed
from lab.snapshot import difference
from lab.waiting import PATIENTLY

SECONDS = float(os.environ.get("WEFT_FUZZ_SECONDS", "3"))
FIRST = int(os.environ.get("WEFT_FUZZ_FIRST", "0"))
BATCH = 300
_AUXDATA = 8  # PACKET_AUXDATA
_VLAN_VALID = 1 << 4
_TAGS = (0, 0x2000, 1, 3, 7, 7, 8, 9, 9, 4094, 4095)
_OUTGOING = 4
_SIOCSRCVBUFFORCE = 33

OWN: dict[str, Any] = {"type": "weft", "driver": "bridge"}
SETTINGS = {
    "checked": OWN,
    "isolated": {**OWN, "portIsolation": True},
    "internal": {**OWN, "internal": True},
    "dns": {**OWN, "hostAccess": "dns"},
    "hairpin": {**OWN, "hairpinMode": True},
    "promiscuous": {**OWN, "promiscMode": True},
    "macspoofchk": {"macspoofchk": True},
    "ipspoofchk": {"ipspoofchk": True},
    "plain": {},
    "vlan": {**OWN, "vlan": 7},
    "trunk": {**OWN, "vlan": 7, "vlanTrunk": [{"id": 9}]},
    "plain-vlan": {"vlan": 7},
    "plain-trunk": {"vlanTrunk": [{"id": 9}]},
    "ptp": {"type": "weft", "driver": "ptp"},
    "ptp-dns": {"type": "weft", "driver": "ptp", "hostAccess": "dns", "internal": True},
}
LONG = ("vlan", "plain-vlan", "plain-trunk")
"""Settings that take minutes where a VM has no KVM."""
OTHER_VLANS: dict[str, Any] = {"vlan": 8, "vlanTrunk": [{"minID": 2, "maxID": 6}, {"minID": 10, "maxID": 4094}]}


class Capture:
    """All frames that arrive at a link, with the VLAN tag that the kernel has removed."""

    def __init__(self, namespace: str, link: str) -> None:
        with inside(namespace):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            self._socket.bind((link, 3))
        self._socket.setsockopt(socket.SOL_SOCKET, _SIOCSRCVBUFFORCE, 1 << 26)
        self._socket.setsockopt(263, _AUXDATA, 1)
        self._socket.settimeout(0.1)

    def close(self) -> None:
        self._socket.close()

    def until(self, last: bytes) -> Iterator[tuple[bytes, Tag | None]]:
        """What arrives before the frame with this token; raises AssertionError if that never comes."""
        deadline = time.monotonic() + PATIENTLY
        while time.monotonic() < deadline:
            try:
                data, extra, _, (_, _, kind, *_rest) = self._socket.recvmsg(65535, 64)
            except TimeoutError:
                continue
            if kind == _OUTGOING:
                continue
            if last in data:
                return
            yield data, _tag(extra)
        raise AssertionError(f"{last!r} did not arrive")

    def there(self) -> Iterator[bytes]:
        """What has arrived by now."""
        self._socket.settimeout(0)
        while True:
            try:
                data, (_, _, kind, *_rest) = self._socket.recvfrom(65535)
                if kind != _OUTGOING:
                    yield data
            except BlockingIOError:
                return


def _tag(extra: list[tuple[int, int, bytes]]) -> Tag | None:
    """The tag in a packet's struct tpacket_auxdata, from ``linux/if_packet.h``."""
    for _, _, data in extra:
        status, _, _, _, _, content, protocol = struct.unpack("=IIIHHHH", data[:20])
        if status & _VLAN_VALID:
            return protocol, content
    return None


class Topology:
    """The container that sends, its sibling, the host and a machine of the LAN; with VLANs also a container
    in other ones.
    """

    def __init__(self, host: Host, conf: dict[str, Any], bridged: bool) -> None:
        self.host, self.conf, self.bridged = host, conf, bridged
        self.others: set[str] = set()
        self.vlans = vlans(conf)
        seen.hurry(host)
        seen.forward(host)
        self.lan = host.lan(default_route=True)
        self.weft = Weft()
        self.paths = {name: host.container(name) for name in ("evil", "sibling")}
        results = {name: self.weft.add(conf, path, name) for name, path in self.paths.items()}
        ports = {
            name: [one for one in result["interfaces"] if not one.get("sandbox")] for name, result in results.items()
        }
        self.ports = {name: found[bridged]["name"] for name, found in ports.items()}
        addresses = {
            name: tuple(ip["address"].partition("/")[0] for ip in result["ips"]) for name, result in results.items()
        }
        self.link = ports["evil"][-1]["name"] if conf.get("vlan") else "br0" if bridged else self.ports["evil"]
        elsewhere = []
        if self.vlans:
            path = host.container("other")
            self.weft.add(bridge(pool("10.81.0.0/24"), name="other", isGateway=True, **OTHER_VLANS), path, "other")
            self.others = {seen.link(host, "eth0", "other")["address"]}
            elsewhere = [(path, "eth0"), (host.path, "br0.8"), *([(host.path, "br0")] if conf.get("vlan") else [])]
        self.elsewhere = [Capture(*place) for place in elsewhere]
        self.world = World(
            mac=seen.link(host, "eth0", "evil")["address"],
            sibling_mac=seen.link(host, "eth0", "sibling")["address"],
            host_mac=seen.link(host, self.link)["address"],
            own=addresses["evil"],
            sibling=addresses["sibling"],
            gateway=tuple(ip["gateway"] for ip in results["evil"]["ips"]),
            outside=(self.lan.outside, self.lan.outside6),
            **({"tags": _TAGS} if self.vlans else {}),
        )
        self.others |= {self.world.sibling_mac, *(one["address"] for one in host.run("ip", "-j", "link").json)}
        self.results = results
        for name in ("sibling", "evil"):
            for address in self.world.gateway:
                host.ping(name, address)

    def state(self) -> tuple[Any, ...]:
        """The sibling's and the host's configuration."""
        return seen.inner(self.paths["sibling"]), self.host.snapshot()

    def tables(self) -> str:
        """Forwarding and neighbour tables, in which forged addresses would be."""
        shown = self.host.run("ip", "neighbour").stdout + self.host.inside("sibling", "ip", "neighbour").stdout
        return shown + (self.host.run("bridge", "fdb", "show", "br", "br0").stdout if self.bridged else "")


def vlans(conf: dict[str, Any]) -> Vlans | None:
    """The VLANs of a container's port; None without VLAN filtering."""
    if not conf.keys() & {"vlan", "vlanTrunk"}:
        return None
    return Vlans(conf.get("vlan", 1), tuple(one["id"] for one in conf.get("vlanTrunk", ())))


def check_elsewhere(topology: Topology, sent: dict[int, tuple[str, bytes]]) -> None:
    """Nothing of the container has reached other VLANs, whatever its source."""
    world = topology.world
    honest = topology.others - {world.sibling_mac, world.host_mac}
    for capture in topology.elsewhere:
        for data in capture.there():
            if data[6:12].hex(":") not in honest or TOKEN in data:
                failed(number_of(data, sent), sent, "reached another VLAN", data)


def check_tables(topology: Topology, checks: Checks, sent: dict[int, tuple[str, bytes]]) -> None:
    shown = topology.tables()
    if checks.addresses:  # macspoofchk alone does not look into neighbour discovery
        for octets in re.findall(rf"{FORGED}(\S\S:\S\S:\S\S:\S\S)", shown):
            failed(int(octets.replace(":", ""), 16), sent, "is in a forwarding or neighbour table")
    if topology.bridged and checks.mac:
        port = topology.ports["evil"]
        learnt = {line.split()[0] for line in shown.splitlines() if f"dev {port} " in line and "permanent" not in line}
        assert learnt <= {topology.world.mac}, (f"seed {seed()}, frames to {max(sent)}", shown)
    if checks.addresses:
        for address in (*topology.world.sibling, *topology.world.gateway):
            for line in shown.splitlines():
                if line.startswith(f"{address} ") and topology.world.mac in line:
                    raise AssertionError(f"seed {seed()}, frames {min(sent)} to {max(sent)}: {line}")


def failed(number: int, sent: dict[int, tuple[str, bytes]], why: str, captured: bytes = b"") -> None:
    kind, data = sent.get(number, ("?", b""))
    as_what = f", as {captured.hex()}" if captured else ""
    raise AssertionError(f"seed {seed()} frame {number} ({kind}) {why}: {data.hex()}{as_what}")


def number_of(data: bytes, sent: dict[int, tuple[str, bytes]]) -> int:
    """The frame that was captured: by its token, or by what is left of it."""
    if (place := data.find(TOKEN)) >= 0 and len(data) >= place + 8:
        return int.from_bytes(data[place + 4 : place + 8], "big")
    return next((number for number, (_, made) in sent.items() if made.startswith(data[:60])), -1)


@pytest.mark.parametrize(
    "setting", [pytest.param(one, marks=pytest.mark.long) if one in LONG else one for one in SETTINGS]
)
def test_random_frames_change_and_reach_nothing(host: Host, setting: str) -> None:
    keys = SETTINGS[setting]
    require("vlan_filtering" if vlans(keys) else "")
    bridged = keys.get("driver") != "ptp"
    conf = bridge(dual(), isGateway=True, **keys) if bridged else ptp(dual(), **keys)
    topology = Topology(host, conf, bridged)
    world = topology.world
    own = keys.get("type") == "weft"
    checks = Checks(
        own or "macspoofchk" in keys or "ipspoofchk" in keys,
        own or "ipspoofchk" in keys,
        topology.vlans.tagged if topology.vlans else (),
    )
    closed, silent = bool(keys.get("internal")), keys.get("internal") or keys.get("hostAccess") == "dns"
    with inside(host.path):
        service = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        service6 = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    service6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    for each, any_address in ((service, "0.0.0.0"), (service6, "::")):
        each.bind((any_address, 4000))
        each.setblocking(False)
    sibling = Capture(topology.paths["sibling"], "eth0")
    at_host = Capture(host.path, topology.link)
    lan = Capture("/run/netns/outside", "eth0")
    native = topology.vlans.native if topology.vlans else 0
    before = topology.state()
    kinds: Counter[str] = Counter()
    deadline = time.monotonic() + SECONDS
    number = FIRST
    while not kinds or time.monotonic() < deadline:
        sent = {each: Maker(world, f"{seed()} {setting}", each).make() for each in range(number, number + BATCH)}
        number += BATCH
        kinds.update(kind for kind, _ in sent.values())
        end = b"<end %d>" % number
        honest = frames.ip(world.own[0], "255.255.255.255", UDP, frames.udp(4000, 4001, end))
        frames.send(topology.paths["evil"], [*(data for _, data in sent.values()), frames.frame(world.mac, *honest)])
        arrivals: list[tuple[bytes, Tag | None, Vlans | None]] = [
            (data, tag, Vlans(native)) for data, tag in at_host.until(end)
        ]
        if not bridged:
            arrivals = []  # the link itself, before any rule
        if bridged and not keys.get("portIsolation"):
            arrivals += [(data, tag, topology.vlans) for data, tag in sibling.until(end)]
        else:
            for data in sibling.there():
                if data[6:12] == frames.octets(world.mac):  # not by the host
                    failed(number_of(data, sent), sent, "reached the sibling", data)
        for data, tag, port in arrivals:
            source = data[6:12].hex(":")
            if len(data) < 14:
                continue
            _, made = sent.get(number_of(data, sent), ("", b""))
            if source in topology.others and not (made[6:12] == data[6:12] and data[14:] in made):
                continue  # its own, such as an ICMP error that quotes the frame
            why = objection(data, tag, world, checks)
            if not why and made and topology.vlans and port:
                why = misled(made, tag, topology.vlans, port)
            if why:
                failed(number_of(data, sent), sent, f"arrived: {why}", data)
        check_elsewhere(topology, sent)
        for data in lan.there():
            if TOKEN in data and leaks(data, topology, checks, closed):
                failed(number_of(data, sent), sent, "reached the LAN", data)
        for each in (service, service6):
            for data, address in received(each):
                if silent or (checks.addresses and address not in (*world.own, *world.own6)):
                    failed(number_of(data, sent), sent, f"was received by the host from {address}")
        if bridged:
            check_tables(topology, checks, sent)
    after = topology.state()
    assert difference(before[0], after[0]) == [], f"seed {seed()}: the sibling, after {number} frames"
    changed = [one for one in host.changes(before[1], within=0.5) if '"timeout"' not in one]  # not what limits count
    assert changed == [], f"seed {seed()}: the host, after {number} frames"
    for each in (service, service6):
        each.close()
    for capture in (sibling, at_host, lan, *topology.elsewhere):
        capture.close()
    for name, path in topology.paths.items():
        assert topology.weft.check(conf, topology.results[name], path, name) == ""
    assert len(kinds) > 30
    print(f"{setting}: {sum(kinds.values())} frames, seed {seed()}: {dict(kinds)}")


def leaks(data: bytes, topology: Topology, checks: Checks, closed: bool) -> bool:
    """Whether a packet at the LAN may not be there: the network has no way out, or the source is forged."""
    if closed:
        return True
    if not checks.addresses or data[12:14] not in (b"\x08\0", b"\x86\xdd"):
        return False
    source = socket.inet_ntop(*((socket.AF_INET, data[26:30]) if data[12] == 8 else (socket.AF_INET6, data[22:38])))
    return source not in (*topology.world.own, topology.lan.host, topology.lan.host6)


def received(service: socket.socket) -> Iterator[tuple[bytes, str]]:
    while True:
        try:
            data, (address, *_rest) = service.recvfrom(2048)
        except BlockingIOError:
            return
        if not address.startswith("fe80"):
            yield data, address
