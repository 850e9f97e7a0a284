"""What the fake does not model of conntrack, listening sockets and iptables policies."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from ipaddress import ip_address

import pytest

from lab.commands import run
from lab.host import Host
from lab.plugins import ROOT
from weft.kernel.firewall_chains import RETURN, UserChain
from weft.kernel.linux.kernel import LinuxKernel
from weft.kernel.values import Listener


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_listener_is_reported_with_its_process(host: Host, protocol: str) -> None:
    kernel = LinuxKernel()
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    name = f"({os.getpid()})"
    for address, only, found in (
        ("127.0.0.1", 0, ["127.0.0.1"]),
        ("0.0.0.0", 0, ["0.0.0.0"]),
        ("::1", 0, ["::1"]),
        ("::", 0, ["::", "0.0.0.0"]),
        ("::", 1, ["::"]),
    ):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, kind) as server:
            if family == socket.AF_INET6:
                server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
            server.bind((address, 8080))
            if protocol == "tcp":
                assert kernel.host.listeners(protocol, [8080]) == ()
                server.listen()
            there = kernel.host.listeners(protocol, [8080])
            assert [str(one.address) for one in there] == found
            assert all(one.process.endswith(name) and not one.reserved for one in there)
            assert kernel.host.listeners(protocol, [8081]) == ()
    assert kernel.host.listeners(protocol, [8080]) == ()
    kernel.close()


LISTENING = """
import socket, subprocess, sys
server = socket.create_server(("127.0.0.1", 8080))
open("/proc/self/comm", "w").write(sys.argv[1])
# Its child's child is the call: podman calls netavark, which calls weft.
subprocess.run(("sh", "-c", "sleep 600 & echo $!; wait"))
"""


@pytest.mark.parametrize(
    ("name", "is_ancestor", "reserved"),
    [
        ("podman", True, True),  # it binds the port before it has weft called
        ("podman", False, False),  # podman system service tcp://127.0.0.1:8080
        ("nomad", True, False),  # its own API
        ("conmon", False, True),  # podman network reload
    ],
)
def test_port_is_reserved_by_an_ancestor_of_the_call(host: Host, name: str, is_ancestor: bool, reserved: bool) -> None:
    kernel = LinuxKernel()
    with subprocess.Popen((sys.executable, "-ISc", LISTENING, name), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        caller = int(process.stdout.readline())
        found = kernel.host.listeners("tcp", [8080], caller if is_ancestor else os.getpid())
        os.kill(caller, signal.SIGKILL)
    kernel.close()
    assert found == (Listener(ip_address("127.0.0.1"), 8080, f"{name} ({process.pid})", reserved),)


def test_the_processes_of_many_listeners_are_looked_up_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """podman binds all of a container's ports: with 206 of them a setup took 3 s."""
    kernel = LinuxKernel()
    looked: list[str] = []
    listed = os.listdir

    def listdir(path: str) -> list[str]:
        looked.append(path)
        return listed(path)

    monkeypatch.setattr(os, "listdir", listdir)
    with contextlib.ExitStack() as stack:
        for port in range(8100, 8140):
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        found = kernel.host.listeners("tcp", range(8110, 8150))
    kernel.close()
    assert [one.port for one in sorted(found, key=lambda one: one.port)] == [*range(8110, 8140)]
    assert {one.process.partition(" ")[2] for one in found} == {f"({os.getpid()})"}
    assert looked.count("/proc") == 1


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_conntrack_flows_are_listed_and_deleted(host: Host, address: str) -> None:
    kernel = LinuxKernel()
    # The kernel tracks connections only in namespaces where a rule needs it.
    host.run(
        "nft",
        "add table inet t; add chain inet t c { type filter hook input priority 0; }; add rule inet t c ct state new",
    )
    host.serve_udp(None, 5300)
    host.serve_udp(None, 5301)
    for port in (5300, 5301):
        assert host.fetch(None, address, port, "udp") == address
    [flow] = kernel.host.flows({("udp", 5300)})
    place = ip_address(address)
    assert (flow.source, flow.destination, flow.port) == (place, place, 5300)
    assert (flow.reply_source, flow.reply_port) == (place, 5300) and flow.source_port > 1023
    assert kernel.host.flows({("tcp", 5300)}) == ()
    many = {("udp", number) for number in range(5290, 5301)}
    for ports in ({("udp", 5300), ("tcp", 5300)}, many):
        assert kernel.host.translated_flows(place, ports) == (flow,)
    assert kernel.host.translated_flows(place, {("tcp", 5300)}) == ()
    assert kernel.host.translated_flows(place + 1, many) == ()
    for _ in range(2):
        kernel.host.delete_flows([flow])
        assert kernel.host.flows({("udp", 5300)}) == ()
    assert len(kernel.host.flows({("udp", 5301)})) == 1
    kernel.close()


def test_drop_policy_is_detected_in_both_iptables_backends(host: Host) -> None:
    kernel = LinuxKernel()
    host.run("iptables-nft", "-P", "FORWARD", "DROP")
    assert kernel.host.drops_forwarded(4) and not kernel.host.drops_forwarded(6)
    host.run("iptables-nft", "-P", "FORWARD", "ACCEPT")
    assert not kernel.host.drops_forwarded(4)
    if host.run("ip6tables-legacy", "-P", "FORWARD", "DROP", check=False).code == 0:
        assert kernel.host.drops_forwarded(6) and not kernel.host.drops_forwarded(4)
    kernel.close()


@pytest.mark.parametrize("backend", ["nft", "legacy"])
@pytest.mark.parametrize("version", [4, 6])
def test_user_chains_of_both_iptables_backends(host: Host, backend: str, version: int) -> None:
    program = f"{'iptables' if version == 4 else 'ip6tables'}-{backend}"
    if host.run(program, "-N", "DOCKER-USER", check=False).code:
        pytest.skip(f"{program} does not work here")
    kernel, mark = LinuxKernel(), "weft:0123456789abcdef"
    host.run(program, "-N", "OTHER")
    host.run(program, "-A", "OTHER", "-m", "comment", "--comment", "weft:fedcba9876543210")
    for policy in ("ACCEPT", "DROP"):
        host.run(program, "-P", "FORWARD", policy)
        expected = UserChain(version, "DOCKER-USER", (), policy == "DROP", backend)
        assert kernel.host.firewalls().user_chains == (expected,)
    line = f'-A DOCKER-USER -m comment --comment "{mark}" -j RETURN'
    kernel.host.change_iptables(version, "filter", [line], backend)
    others = (
        "-i lo -j RETURN",
        "-j ACCEPT",
        "-p tcp -j RETURN",
        "-s 10.0.0.0/8 -j RETURN" if version == 4 else "-j DROP",
    )
    more = [f"-A DOCKER-USER {one}" for one in (*others, "-j RETURN", "-j RETURN")]
    kernel.host.change_iptables(version, "filter", more, backend)
    [found] = kernel.host.firewalls().user_chains
    assert found.rules == (mark, *[""] * 4, RETURN, RETURN) and len(found.seen) == 5
    assert found.marks == (mark,) and line in kernel.host.iptables(version, "filter", backend)
    [chain] = [one for one in kernel.host.base_chains() if one.hook == "forward" and version in one.versions]
    assert (chain.policy, chain.owner) == ("drop", program.removesuffix("-nft"))
    kernel.close()


def test_foreign_ingress_filter_is_kept(host: Host) -> None:
    kernel = LinuxKernel()
    host.run("ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    host.run("ip", "link", "add", "ifb0", "type", "ifb")
    host.run("tc", "qdisc", "add", "dev", "veth0", "ingress")
    classify = "protocol ip prio 7 u32 match ip protocol 1 0xff flowid 1:7"
    host.run("tc", "filter", "add", "dev", "veth0", "parent", "ffff:", *classify.split())
    before = host.run("tc", "filter", "show", "dev", "veth0", "parent", "ffff:").stdout
    kernel.host.set_redirect("veth0", "ifb0")
    assert kernel.host.redirect("veth0") == "ifb0"
    kernel.host.set_redirect("veth0", "")
    # The kernel lists all filters of a hook under the parent that was named last.
    after = host.run("tc", "filter", "show", "dev", "veth0", "parent", "ffff:").stdout
    assert after.replace("filter ingress ", "filter ") == before
    assert "flowid 1:7" in before
    kernel.close()


def test_redirect_to_a_deleted_link_can_be_removed(host: Host) -> None:
    kernel = LinuxKernel()
    host.run("ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    host.run("ip", "link", "add", "ifb0", "type", "ifb")
    before = host.run("tc", "qdisc", "show", "dev", "veth0").stdout
    kernel.host.set_redirect("veth0", "ifb0")
    host.run("ip", "link", "delete", "ifb0")
    kernel.host.set_redirect("veth0", "")
    assert host.run("tc", "qdisc", "show", "dev", "veth0").stdout == before
    kernel.close()


def test_foreign_root_qdisc_is_kept(host: Host) -> None:
    kernel = LinuxKernel()
    host.run("ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    host.run("tc", "qdisc", "add", "dev", "veth0", "root", "handle", "7:", "htb")
    kernel.host.set_limit("veth0", None)
    assert "htb 7:" in host.run("tc", "qdisc", "show", "dev", "veth0").stdout
    kernel.close()


_PRIVATE_RUN = """
mount -t tmpfs tmpfs /run
"$0" -c "from weft.kernel import netns; netns.add('/run/netns/made')"
ip netns add other
"$0" -c "from weft.kernel import netns; netns.remove('/run/netns/made')"
ls /run/netns; grep -c /run/netns/ /proc/self/mountinfo
ip netns delete other
"""


def test_a_namespace_is_removed_after_the_first_of_ip_netns_where_run_is_a_private_mount(host: Host) -> None:
    unshared = ("unshare", "--mount", "--propagation", "private", "sh", "-ec", _PRIVATE_RUN, sys.executable)
    outcome = run(*unshared, environment={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert outcome.stdout.split() == ["other", "1"] and outcome.code == 0, outcome
