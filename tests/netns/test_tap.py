"""The tap driver: links as the program that opens them finds them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from typing import Any

import pytest

from lab import namespaces, seen
from lab.abilities import require
from lab.confs import network
from lab.host import Host
from lab.plugins import Cni
from lab.snapshot import difference
from lab.waiting import until

TUNSETIFF, TAP, NO_PI, MULTI_QUEUE = 0x400454CA, 0x2, 0x1000, 0x100


@pytest.fixture(autouse=True)
def able() -> None:
    require("tun")


def tap(address: str = "10.80.0.5/24", **keys: Any) -> dict[str, Any]:
    ipam = {"type": "static", "addresses": [{"address": address}]}
    return network("tap", ipam if address else None, **keys)


def program(netns: str, *, queues: bool = False) -> int:
    """Open the tap device as a program does; returns its file descriptor."""
    with namespaces.inside(netns):
        end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(end, TUNSETIFF, struct.pack("=16sH22x", b"eth0", TAP | NO_PI | (MULTI_QUEUE if queues else 0)))
    return end


def test_a_program_receives_what_is_sent_to_it(host: Host, cni: Cni) -> None:
    netns = host.container()
    before, inner = host.snapshot(), seen.inner(netns)
    conf = tap(mac="02:00:00:00:00:07")
    result = cni.add(conf, netns)
    seen.agrees(host, result, netns)
    assert result["interfaces"] == [{"name": "eth0", "mac": "02:00:00:00:00:07", "mtu": 1500, "sandbox": netns}]
    assert result["ips"] == [{"address": "10.80.0.5/24", "interface": 0}]
    end = program(netns)
    try:
        frames: list[bytes] = []

        def asked_for() -> bool:
            # Again: the kernel sends nothing yet when the program has just opened the link.
            host.inside("c1", "ping", "-c1", "-W0.2", "10.80.0.9", check=False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    frames.append(os.read(end, 2000))
            return any(frame[12:14] == b"\x08\x06" for frame in frames)

        until(asked_for, what="an ARP request")
        asked = next(frame for frame in frames if frame[12:14] == b"\x08\x06")
        assert asked[6:12] == bytes.fromhex("020000000007") and asked[28:32] == bytes([10, 80, 0, 5])
    finally:
        os.close(end)
    cni.check(conf, result, netns)
    cni.delete(conf, netns)
    cni.delete(conf, netns)
    assert host.changes(before) == [] and difference(inner, seen.inner(netns)) == []


@pytest.mark.parametrize(
    "who", [{}, {"owner": 70007}, {"group": 70008}, {"owner": 70007, "group": 70008}, {"owner": 0}]
)
def test_mtu_and_mac_hold_whoever_owns_it(host: Host, cni: Cni, who: dict[str, int]) -> None:
    netns = host.container()
    conf = tap(mtu=1400, mac="02:00:00:00:00:07", **who)
    result = cni.add(conf, netns)
    link = seen.link(host, "eth0", "c1")
    assert (link["mtu"], link["address"]) == (1400, "02:00:00:00:00:07")
    data = link["linkinfo"]["info_data"]
    assert data["type"] == "tap" and data["persist"] is True
    names = {"root": 0}
    told = {key: data.get(word) for key, word in (("owner", "user"), ("group", "group")) if word in data}
    assert {key: names.get(value, value) for key, value in told.items()} == who
    cni.check(conf, result, netns)


def test_several_queues(host: Host, cni: Cni) -> None:
    netns = host.container()
    conf = tap("", multiQueue=True)
    cni.check(conf, cni.add(conf, netns), netns)
    ends = [program(netns, queues=True) for _ in range(3)]
    for end in ends:
        os.close(end)
    assert len(ends) == 3
    one = host.container("c2")
    cni.add(tap(""), one, container="c2")
    with pytest.raises(OSError):
        program(one, queues=True)


def test_on_a_bridge_of_the_containers(host: Host, cni: Cni) -> None:
    netns = host.container()
    host.inside("c1", "ip", "link", "add", "inner0", "up", "type", "bridge")
    conf = tap("", bridge="inner0")
    result = cni.add(conf, netns)
    assert seen.link(host, "eth0", "c1")["master"] == "inner0"
    cni.check(conf, result, netns)
    host.inside("c1", "ip", "link", "set", "eth0", "nomaster")
    problem = seen.problem(cni, "CHECK", {**conf, "prevResult": result}, netns)
    assert problem["code"] == 104 and "eth0 is on no bridge instead of inner0" in problem["msg"]
    cni.delete(conf, netns)
    assert seen.links(host, "c1") == ["lo", "inner0"]


@pytest.mark.parametrize(
    ("keys", "code", "words"),
    [
        ({"bridge": "nope"}, 7, "bridge nope does not exist in the container"),
        ({"bridge": "lo"}, 7, "lo is a physical link, not a bridge"),
        ({"owner": -1}, 7, "owner"),
        ({"group": "wheel"}, 7, "group"),
        ({"mtu": 67}, 7, "mtu"),
        ({"multiQueue": 1}, 7, "multiQueue"),
    ],
)
def test_what_cannot_be_is_refused(host: Host, cni: Cni, keys: dict[str, Any], code: int, words: str) -> None:
    problem = seen.problem(cni, "ADD", tap(**keys), host.container())
    assert problem["code"] == code and words in problem["msg"], problem
    assert seen.links(host, "c1") == ["lo"]


@pytest.mark.skipif(os.path.exists("/sys/fs/selinux/enforce"), reason="SELinux is enabled")
def test_a_context_without_selinux_is_refused(host: Host, cni: Cni) -> None:
    conf = tap(selinuxContext="system_u:system_r:container_t:s0")
    problem = seen.problem(cni, "ADD", conf, host.container())
    assert problem["code"] == 102 and "SELinux" in problem["msg"] and "selinuxContext" in problem["details"]
    assert seen.links(host, "c1") == ["lo"]


def test_check_sees_what_is_broken_by_hand(host: Host, cni: Cni) -> None:
    netns = host.container()
    conf = tap()
    result = cni.add(conf, netns)
    for words, sentence in (
        (("link", "set", "eth0", "mtu", "1300"), "MTU"),
        (("link", "set", "eth0", "mtu", "1500", "address", "02:00:00:00:00:99"), "MAC"),
        (("link", "set", "eth0", "down"), "is down"),
        (("tuntap", "del", "dev", "eth0", "mode", "tap"), "missing"),
    ):
        host.inside("c1", "ip", *words)
        problem = seen.problem(cni, "CHECK", {**conf, "prevResult": result}, netns)
        assert problem["code"] == 104 and sentence in problem["msg"], problem
    cni.delete(conf, netns)
