"""The demonstration of ``bin/demo --hosts 3``: a cluster, an overlay network and a service that outlives a host."""

from __future__ import annotations

import collections
import os
import re

from lab.many_hosts import ROOT, ClusterHost, members, network, remove_network
from lab.waiting import until

_LONG = 120.0
_VIRTUAL = "10.79.0.80"
_SERVE = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(sys.argv[1].encode())
    def log_message(self, *words): pass
http.server.ThreadingHTTPServer(("", 80), Handler).serve_forever()
"""
_FETCH = """
import sys, urllib.request
for _ in range(int(sys.argv[2])):
    print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())
"""


def main() -> None:
    """Raises AssertionError where something does not work."""
    network()
    hosts = [ClusterHost(number) for number in (1, 2, 3)]
    try:
        _show(*hosts)
    finally:
        for one in hosts:
            one.close()
        remove_network()


def _show(one: ClusterHost, two: ClusterHost, three: ClusterHost) -> None:
    _step("Three hosts. The first one makes a cluster, the others join it by a token")
    said = _weft(one, "cluster", "init")
    _weft(two, "cluster", "join", said.split()[-1])
    token = _weft(one, "cluster", "token")
    _weft(three, "cluster", "join", token.strip())
    until(lambda: list(members(one).values()) == ["false"] * 3, _LONG, "three voters")
    _weft(three, "node", "ls")

    _step("An overlay network, created on one host, is on all of them")
    _weft(one, "network", "create", "-d", "overlay", "shop", "--subnet", "10.60.0.0/16")
    for host in (one, two, three):
        until(lambda host=host: "shop" in host.weft("network", "ls").stdout, _LONG, f"shop on {host.name}")  # type: ignore[misc]

    _step("A container with a web server on each host, and one more that is its client")
    for host in (one, two, three):
        address = _attach(host, "web")
        host.start("ip", "netns", "exec", "web", _python(), "-I", "-c", _SERVE, f"web on {host.name}")
        words = (
            f"-id=web-{host.name}",
            "-name=web",
            f"-address={address}",
            "-port=80",
            f"-tagged-address=virtual={_VIRTUAL}:80",
        )
        _weft(host, "services", "register", *words)
    _attach(two, "client")
    _call(two, 3)
    _weft(two, "services", "list", "-detailed")

    _step(
        "Host n1, which made the cluster, loses its power. Its instance leaves with its lease, and the service goes on"
    )
    one.close()
    until(lambda: _instances(two) == 2, _LONG, "the end of n1's instance")
    _call(two, 2)
    _weft(two, "node", "ls")

    _step("Of etcd's three members another one is killed: no majority. Names and connections go on")
    # Stopped, not killed: the agent would start it again within a second.
    three.run("kill", "-STOP", str(three.etcd()))
    _print(two, "weft network create -d overlay late")
    refused = two.weft("network", "create", "-d", "overlay", "late", check=False)
    assert refused.code != 0, "a network was created without a majority"
    print(refused.stderr.strip())
    _call(two, 2)

    _step("The majority is back: what was refused is done")
    three.run("kill", "-CONT", str(three.etcd()))
    until(lambda: two.weft("network", "create", "-d", "overlay", "late", check=False).code == 0, _LONG, "a network")
    until(lambda: "late" in three.weft("network", "ls").stdout, _LONG, "late on n3")
    _weft(three, "network", "ls")


def _attach(host: ClusterHost, name: str) -> str:
    host.run("ip", "netns", "add", name)
    _print(host, f"weft attach shop {name}")
    found = host.weft("attach", "--json", "shop", name).json
    address = str(found["ips"][0]["address"])
    print(address, flush=True)
    return address.partition("/")[0]


def _call(host: ClusterHost, instances: int) -> None:
    """Thirty requests to the virtual address, all answered, by so many instances."""

    def answered() -> bool:
        words = ("ip", "netns", "exec", "client", _python(), "-I", "-c", _FETCH, f"http://{_VIRTUAL}/", "30")
        done = host.run(*words, check=False)
        seen.clear()
        seen.update(done.stdout.splitlines())
        return done.code == 0 and len(seen) == instances

    seen: collections.Counter[str] = collections.Counter()
    _print(host, f"30 requests of the client to http://{_VIRTUAL}/")
    until(answered, _LONG, f"answers of {instances} instances ({dict(seen)})")
    for text, times in sorted(seen.items()):
        print(f"{times:4} x {text}", flush=True)


def _instances(host: ClusterHost) -> int:
    return len(re.findall(r"^web-n\d", host.weft("services", "list", "-detailed").stdout, re.MULTILINE))


def _weft(host: ClusterHost, *words: str) -> str:
    _print(host, f"weft {' '.join(words)}")
    said = host.weft(*words).stdout
    print(said, end="", flush=True)
    return said


def _python() -> str:
    return os.path.realpath(ROOT / ".venv" / "bin" / "python")


def _step(text: str) -> None:
    print(f"\n# {text}", flush=True)


def _print(host: ClusterHost, text: str) -> None:
    print(f"[{host.name}]$ {text}", flush=True)
