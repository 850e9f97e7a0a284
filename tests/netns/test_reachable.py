"""A container is reached at once, and reaches others: its first packet, and one to an address that another had."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from lab import frames, namespaces, seen
from lab.calls import Weft
from lab.confs import bridge, dual, ptp
from lab.host import Host
from lab.waiting import PATIENTLY, until

_FOUR, _SIX = "10.80.0.77", "fd80::77"
_GATEWAY = "10.80.0.1"
_ARP, _REPLY = 0x0806, 2
DRIVERS = {
    "bridge": bridge(dual(), isGateway=True),
    # with all that weft's own network has, such as the check of source addresses
    "weft": {**bridge(dual(), isGateway=True, ipMasq=True), "type": "weft", "driver": "bridge"},
    "ptp": ptp(dual()),
}


def add(host: Host, weft: Weft, conf: dict[str, Any], name: str) -> str:
    """Attach a container with the addresses; its MAC address."""
    asked = {**conf, "runtimeConfig": {"ips": [f"{_FOUR}/24", f"{_SIX}/64"]}}
    interfaces = weft.add(asked, host.container(name), name)["interfaces"]
    return str(next(one["mac"] for one in interfaces if one.get("sandbox")))


def remove(host: Host, weft: Weft, conf: dict[str, Any], name: str) -> None:
    weft.delete(conf, f"/run/netns/{name}", name)
    host.remove_container(name)


def gateway_answers(path: str, mac: str) -> bool:
    """Whether the gateway answers the first ARP request of the container, which is not repeated."""
    with namespaces.inside(path), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ARP)) as sender:
        sender.bind(("eth0", _ARP))
        sender.settimeout(PATIENTLY)
        sender.send(frames.frame(mac, _ARP, frames.arp(1, mac, _FOUR, "00:00:00:00:00:00", _GATEWAY)))
        try:
            while sender.recv(64)[21] != _REPLY:
                pass
        except TimeoutError:
            return False
    return True


@pytest.mark.parametrize("driver", ["bridge", "weft"])
def test_neighbours_know_an_address_that_is_given_again_at_once(host: Host, driver: str) -> None:
    """They had the MAC address of the container before, which they would use for up to a minute."""
    weft, conf = Weft(), DRIVERS[driver]
    seen.forward(host)
    weft.add(conf, host.container("c0"), "c0")
    for turn in range(8):
        mac = add(host, weft, conf, f"x{turn}")
        for name, address in ((name, address) for name in (None, "c0") for address in (_FOUR, _SIX)):
            if turn:  # nothing is sent to it meanwhile, by which they would notice
                until(
                    lambda name=name, address=address, mac=mac: seen.neighbour(host, address, name) == mac,  # type: ignore[misc]
                    what=f"that {name or 'the host'} knows {address} as {mac} in round {turn}",
                )
            assert host.ping(name, address)
        remove(host, weft, conf, f"x{turn}")


@pytest.mark.parametrize("driver", DRIVERS)
def test_no_first_packet_is_lost(host: Host, driver: str) -> None:
    """Also of the only container of a bridge, which had no carrier before."""
    weft, conf = Weft(), DRIVERS[driver]
    seen.forward(host)
    lost = []
    for turn in range(30):
        mac = add(host, weft, conf, f"x{turn}")
        if not gateway_answers(f"/run/netns/x{turn}", mac):
            lost.append(turn)
        remove(host, weft, conf, f"x{turn}")
    assert lost == []
