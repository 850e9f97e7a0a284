"""Kernel features that tests need, probed in a throw-away network namespace. unshare(1), ip(8)."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from functools import cache

import pytest

from lab.commands import run

_PAIR = "ip link add here type veth peer name there; ip link set here up; ip link set there up; "
_HOOKED = "add table {0} t; add chain {0} t c {{ type filter hook {1} priority 0; }}; add rule {0} t c counter accept"


@dataclass(frozen=True, slots=True)
class Ability:
    """A kernel feature. ``trial`` is a shell script that fails if the kernel lacks it."""

    name: str
    what: str
    trial: str


def _nft(family: str, hook: str) -> Ability:
    return Ability(f"nft_{family}", f"nf_tables for {family}", f'{_PAIR}nft "{_HOOKED.format(family, hook)}"')


_FILTERED = "ip link add br0 type bridge vlan_filtering 1; bridge vlan add vid 5 dev br0 self"
_BUCKET = "tc qdisc add dev here root tbf rate 1mbit burst 10k latency 50ms"
_MIRRORED = (
    "ip link add ifb0 type ifb; tc qdisc add dev here ingress; "
    "tc filter add dev here parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev ifb0"
)
_TRANSLATED = (
    "nft 'add table inet t; add chain inet t p { type nat hook postrouting priority 100; }; "
    "add rule inet t p ip saddr 10.0.0.0/8 masquerade; add rule inet t p ip6 saddr fd00::/8 masquerade; "
    "add chain inet t d { type nat hook prerouting priority -100; }; "
    "add rule inet t d dnat ip to tcp dport map { 80 : 10.0.0.2 . 8080 }'"
)
_ESP = (
    "ip xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x9000 mode transport "
    f"aead 'rfc4106(gcm(aes))' 0x{'11' * 36} 128"
)
_ALL = (
    Ability("vlan", "VLAN links (8021q)", _PAIR + "ip link add link here name here.5 type vlan id 5"),
    Ability("vlan_filtering", "VLAN filtering on bridges", _FILTERED),
    Ability("macvlan", "macvlan links", _PAIR + "ip link add link here name m0 type macvlan mode bridge"),
    Ability("ipvlan", "ipvlan links", _PAIR + "ip link add link here name i0 type ipvlan mode l2"),
    Ability("vxlan", "VXLAN links", "ip link add vx0 type vxlan id 7 dstport 4789"),
    Ability("vrf", "VRF links", "ip link add red type vrf table 1001; ip link set red up"),
    Ability("dummy", "dummy links", "ip link add d0 type dummy; ip link set d0 up"),
    Ability("ifb", "ifb links", "ip link add ifb0 type ifb; ip link set ifb0 up"),
    Ability("wireguard", "WireGuard links", "ip link add wg0 type wireguard"),
    Ability("esp", "ESP (esp4, AES-GCM)", _ESP),
    Ability("tun", "tun and tap links", "ip tuntap add tap0 mode tap"),
    _nft("ip", "forward"),
    _nft("ip6", "forward"),
    _nft("inet", "forward"),
    _nft("arp", "input"),
    _nft("bridge", "forward"),
    _nft("netdev", "ingress device here"),
    Ability("nft_nat", "address translation with nf_tables", _TRANSLATED),
    Ability("bridge_netfilter", "netfilter on bridges", "test -e /proc/sys/net/bridge/bridge-nf-call-iptables"),
    Ability("tbf", "the token bucket (sch_tbf)", _PAIR + _BUCKET),
    Ability("u32_mirred", "redirection by tc (cls_u32, act_mirred)", _PAIR + _MIRRORED),
)
ABILITIES = {item.name: item for item in _ALL}


@cache
def lack(name: str) -> str:
    """Why tests that need it cannot run here, "" if the kernel has it. Probed once per process."""
    ability = ABILITIES[name]
    outcome = run("unshare", "--net", "--", "sh", "-euc", ability.trial, check=False, timeout=60)
    if outcome.code == 0:
        return ""
    said = (outcome.stderr.strip() or outcome.stdout.strip()).partition("\n")[0]
    return f"this kernel lacks {ability.what} (bin/vm has it): {said or f'exit status {outcome.code}'}"


def require(*names: str) -> None:
    """Skip the test, with a reason, unless the kernel has all of these; "" needs nothing."""
    if lacking := [text for text in map(lack, filter(None, names)) if text]:
        pytest.skip("; ".join(lacking))


def require_sctp() -> None:
    """Skip the test if this kernel has no SCTP."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError as error:
        pytest.skip(f"this kernel has no SCTP ({error.strerror}); the one of bin/vm does")
