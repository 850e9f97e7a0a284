"""One configuration for each mode of each driver. A new driver is tested by adding one here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from lab.sample import offset

Conf = dict[str, Any]
Step = TypeVar("Step")


@dataclass(frozen=True, slots=True)
class Case:
    """A configuration for attachments. ``first`` is that of the preceding plugin in a chain.

    ``needs``: a kind of link that the kernel may lack. ``wired``: the host has a neighbour on
    ``lan0``. ``tables``: iptables was used before, because its built-in chains stay when weft's
    are removed. ``overlay``: the networks' files are those of conf/overlay. ``beside``: keys that
    another container on the network must set differently. ``settings`` is what weft.toml has.
    ``long``: its tests are marked long.
    """

    name: str
    conf: Conf
    first: Conf = field(default_factory=dict)
    needs: str = ""
    wired: bool = False
    tables: bool = False
    overlay: bool = False
    beside: Conf = field(default_factory=dict)
    settings: str = ""
    long: bool = False


def sampled(name: str, steps: Iterable[Step]) -> Iterator[Step]:
    """The steps at which faults or kills are injected; by default all of them.

    With WEFT_TEST_SAMPLE=3 every third, with an offset that depends on the name and the commit.
    """
    every = int(os.environ.get("WEFT_TEST_SAMPLE", "1"))
    start = offset(name, every)
    rest = iter(steps)
    first = list(islice(rest, every))
    if first:
        # At least one, also if there are fewer.
        yield first[start % len(first)]
        yield from islice(rest, start, None, every)


def pool(*subnets: str, **rest: object) -> Conf:
    """A host-local ipam section with one range set for each subnet."""
    return {"type": "host-local", "ranges": [[{"subnet": subnet}] for subnet in subnets], **rest}


def conf(plugin: str, network: str, keys: Mapping[str, object]) -> Conf:
    return {"cniVersion": "1.1.0", "name": network, "type": plugin, **keys}


EVERYWHERE: list[Conf] = [{"dst": "0.0.0.0/0"}]
EVERYWHERE_TWICE: list[Conf] = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
PORTS: Conf = {
    "portMappings": [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8053, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"},
    ]
}
FIXED: Conf = {
    "type": "static",
    "addresses": [{"address": "10.23.0.9/24", "gateway": "10.23.0.1"}],
    "routes": EVERYWHERE,
}

_NEXT = {"address": "10.23.0.10/24", "gateway": "10.23.0.1"}
_BRIDGE: Conf = {"bridge": "wbr0", "isGateway": True, "ipMasq": True, "ipam": pool("10.20.0.0/24", routes=EVERYWHERE)}
_STATIC: Conf = {"bridge": "wbr0", "isGateway": True, "ipMasq": True, "ipam": FIXED}
_DUAL = pool("10.21.0.0/24", "fd00:21::/64", routes=EVERYWHERE_TWICE)

SLOW: Conf = {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 4_000_000, "egressBurst": 400_000}
TUNED: Conf = {
    "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net.ipv4.ip_local_port_range": "30000 60000"},
    "mac": "02:00:00:AA:BB:01", "mtu": 1400, "promisc": True, "allmulti": True, "txQLen": 99,
}  # fmt: skip
UPLINK: Conf = {"weight": 3, "floor": "2mbit", "ceil": {"up": "9mbit"}}
_OWN_CLASS: Conf = {"args": {"cni": {"uplink": {"floor": "1mbit", "priority": 1}}}, "uplink": UPLINK}
_UPLINK = '[uplink]\nlink = "lan0"\nup = "20mbit"\ndown = "90mbit"\n'
_CHAINED: Conf = {"bridge": "wbr0", "isGateway": True, "ipam": _DUAL}

FEATURE_CASES = tuple(
    Case(f"chain-{plugin}{suffix}", conf(plugin, "chain", keys), conf("bridge", "chain", _CHAINED), **more)
    for plugin, suffix, keys, more in (
        ("bandwidth", "", SLOW, {}),
        ("tuning", "", TUNED, {}),
        ("sbr", "", {"addSourceHints": True}, {}),
        ("vrf", "", {"vrfname": "blue"}, {"needs": "vrf"}),
        ("firewall", "", {"ingressPolicy": "isolated", "backend": "iptables"}, {"tables": True}),
        ("portmap", "-iptables", {"runtimeConfig": PORTS, "backend": "iptables"}, {"tables": True}),
    )
)

CASES = (
    *FEATURE_CASES,
    Case(
        "weft-features",
        conf(
            "weft",
            "many",
            {
                "driver": "bridge", "bridge": "wbr0", "isGateway": True, "ipMasq": True, "ipMasqBackend": "iptables",
                "ipam": _DUAL, "bandwidth": SLOW, "tuning": TUNED, "sbr": {}, "firewall": {"ingressPolicy": "isolated"},
            },
        ),
        beside={"tuning": {**TUNED, "mac": "02:00:00:AA:BB:02"}},
        tables=True,
    ),
    *(
        Case(
            f"weft-uplink{suffix}",
            conf("weft", "paced", {**keys, "ipam": pool("10.20.0.0/24"), **_OWN_CLASS}),
            wired=True, settings=_UPLINK, long=True,
        )
        for suffix, keys in (
            ("", {"driver": "bridge", "bridge": "wbr0", "isGateway": True}),
            ("-ptp", {"driver": "ptp"}),
        )
    ),
    Case("bridge", conf("bridge", "plain", {"bridge": "wbr0", "ipam": pool("10.20.0.0/24")})),
    Case("bridge-dual", conf("bridge", "dual", {"bridge": "wbr0", "isGateway": True, "ipMasq": True, "ipam": _DUAL})),
    Case("bridge-l2", conf("bridge", "flat", {"bridge": "wbr0"})),
    Case("bridge-down", conf("bridge", "down", {"bridge": "wbr0", "disableContainerInterface": True})),
    Case("bridge-hairpin", conf("bridge", "hair", {**_BRIDGE, "hairpinMode": True, "isDefaultGateway": True})),
    Case("bridge-promisc", conf("bridge", "prom", {**_BRIDGE, "promiscMode": True})),
    Case("bridge-isolated", conf("bridge", "isol", {**_BRIDGE, "portIsolation": True, "mtu": 1400})),
    Case("bridge-static", conf("bridge", "fixed", _STATIC), beside={"ipam": {**FIXED, "addresses": [_NEXT]}}),
    Case("ptp", conf("ptp", "line", {"ipMasq": True, "ipam": pool("10.24.0.0/24", routes=EVERYWHERE)})),
    Case("ptp-dual", conf("ptp", "lines", {"ipMasq": True, "ipam": _DUAL})),
    Case("loopback", conf("loopback", "lonet", {})),
    Case("macvlan", conf("macvlan", "mac", {"ipam": pool("192.0.2.0/25", "2001:db8:99::/112")}), wired=True),
    Case("tap", conf("tap", "vm", {"owner": 7, "group": 8, "mtu": 1400, "ipam": pool("10.28.0.0/24")}), needs="tun"),
    Case("ipvlan", conf("ipvlan", "ipv", {"ipam": pool("192.0.2.0/25")}), needs="ipvlan", wired=True),
    Case("vlan", conf("vlan", "tag", {"vlanId": 42, "ipam": pool("10.29.0.0/24")}), needs="vlan", wired=True,
         beside={"vlanId": 43}),
    Case("overlay", conf("weft", "overlay", {"driver": "overlay", "ipMasq": True, "ipam": {"type": "blocks"}}),
         needs="vxlan", overlay=True),
    Case("overlay-vlan", conf("weft", "plant", {"driver": "overlay", "ipMasq": True, "ipam": {"type": "blocks"}}),
         needs="vxlan", overlay=True, long=True),
    Case("dummy", conf("dummy", "held", {"ipam": pool("10.30.0.0/24", "fd00:30::/64")}), needs="dummy"),
    Case(
        "portmap-chained",
        conf("portmap", "chain", {"runtimeConfig": PORTS, "snat": True}),
        first=conf("bridge", "chain", _BRIDGE),
    ),
    Case(
        "weft-everything",
        conf(
            "weft",
            "whole",
            {
                "driver": "bridge", "bridge": "wbr0", "isDefaultGateway": True, "ipMasq": True, "hairpinMode": True,
                "ipam": _DUAL, "portmap": {"masqAll": True}, "runtimeConfig": PORTS,
            },
        ),
    ),
)  # fmt: skip
