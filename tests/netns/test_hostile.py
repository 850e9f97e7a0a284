"""Malformed and malicious input: one error document with the right code, and nothing is changed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.entry import cni
from lab.calls import Weft, variables
from lab.cases import Case, Conf, conf, pool
from lab.ground import Ground, rest
from lab.host import Host
from lab.plugins import chosen_folder

IPAM: Conf = pool("10.50.0.0/24", routes=[{"dst": "0.0.0.0/0", "mtu": 1400}])
BRIDGE = conf("bridge", "hostile", {"bridge": "wbr0", "isGateway": True, "ipMasq": True, "ipam": IPAM})
PORT: Conf = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"}
WHOLE = conf(
    "weft", "hostile",
    {"driver": "bridge", "bridge": "wbr0", "ipam": IPAM, "portmap": {}, "runtimeConfig": {"portMappings": [PORT]}},
)  # fmt: skip
PTP = conf("ptp", "hostile", {"ipMasq": True, "ipam": IPAM})
FIXED: Conf = {"type": "static", "addresses": [{"address": "10.50.0.9/24", "gateway": "10.50.0.1"}]}
STATIC = conf("bridge", "hostile", {"bridge": "wbr0", "ipam": FIXED})

VALUES: dict[str, object] = {
    "text": "a b", "number": 7, "flag": True, "fraction": 1.5, "list": [[7]], "object": {"a": "b"},
}  # fmt: skip
"""One value of each JSON type; the text is a valid value for none of the keys."""

FLAGS = (
    "isGateway", "isDefaultGateway", "forceAddress", "hairpinMode", "promiscMode", "preserveDefaultVlan", "enabledad",
    "disableContainerInterface", "portIsolation", "ipMasq",
)  # fmt: skip
ROUTE = {"dst": "text", "gw": "text", "mtu": "number", "advmss": "number", "priority": "number", "table": "number"}
RANGE = dict.fromkeys(("subnet", "rangeStart", "rangeEnd", "gateway"), "text")

KEYS: list[tuple[str, Conf, tuple[str | int, ...], dict[str, str]]] = [
    ("bridge", BRIDGE, (), {
        **dict.fromkeys(FLAGS, "flag"), "bridge": "text", "mtu": "number", "vlan": "number", "vlanTrunk": "list",
        "ipMasqBackend": "text", "ipam": "object", "dns": "object", "runtimeConfig": "object", "args": "object",
        "prevResult": "object", "name": "text", "cniVersion": "text",
    }),
    ("ptp", PTP, (), {"mtu": "number", "ipMasq": "flag", "ipMasqBackend": "text", "ipam": "object"}),
    ("weft", WHOLE, (), {"driver": "text", "portmap": "object"}),
    ("ipam", BRIDGE, ("ipam",), {"type": "text", "subnet": "text", "ranges": "list", "routes": "list",
                                 "dataDir": "text", "resolvConf": "text"}),
    ("range", BRIDGE, ("ipam", "ranges", 0, 0), RANGE),
    ("set", BRIDGE, ("ipam", "ranges"), {"0": "list"}),
    ("route", BRIDGE, ("ipam", "routes", 0), ROUTE),
    ("static", STATIC, ("ipam",), {"addresses": "list", "routes": "list", "dns": "object"}),
    ("address", STATIC, ("ipam", "addresses", 0), {"address": "text", "gateway": "text"}),
    ("portmap", WHOLE, ("portmap",), {"snat": "flag", "masqAll": "flag", "backend": "text", "markMasqBit": "number"}),
    ("runtime", WHOLE, ("runtimeConfig",), {"portMappings": "list", "mac": "text", "ips": "list", "ipRanges": "list"}),
    ("mapping", WHOLE, ("runtimeConfig", "portMappings", 0), {
        "hostPort": "number", "containerPort": "number", "protocol": "text", "hostIP": "text",
    }),
    ("dns", {**BRIDGE, "dns": {}}, ("dns",), {"nameservers": "list", "domain": "text", "search": "list"}),
    ("args", {**BRIDGE, "args": {"cni": {}}}, ("args", "cni"), {"mac": "text", "ips": "list"}),
]  # fmt: skip
"""A configuration, a path in it, and the type of each key that weft reads there."""


def _with(base: Conf, place: tuple[str | int, ...], key: str, value: object) -> Conf:
    """The configuration with one value replaced."""
    copy: Any = json.loads(json.dumps(base))
    there = copy
    for step in place:
        there = there[step]
    there[int(key) if isinstance(there, list) else key] = value
    return dict(copy)


def _wrong() -> Iterator[tuple[str, Conf]]:
    for name, base, place, keys in KEYS:
        for key, kind in keys.items():
            for other, value in VALUES.items():
                if other != kind:
                    yield f"{name}.{key} as {other}", _with(base, place, key, value)


class Untouched:
    """A host and a container that the calls must not change."""

    def __init__(self, host: Host) -> None:
        self.ground = Ground(host, Case("hostile", BRIDGE))
        self.path = self.ground.container

    def at_a_glance(self) -> list[str]:
        """What exists apart from shared state: an ADD that is refused early creates no file."""
        return rest(self.path)

    def wholly(self) -> list[str]:
        return self.ground.changes()


def test_every_key_with_a_value_of_every_wrong_kind(host: Host) -> None:
    untouched, weft = Untouched(host), Weft()
    number = 0
    for name, bad in _wrong():
        answer = weft("ADD", bad, untouched.path)
        assert answer.status == 1, (name, answer)
        assert answer.code in ((6, 7) if name.split(".")[1][:4] in ("name", "cniV", "type") else (7,)), (name, answer)
        assert untouched.at_a_glance() == [], name
        number += 1
    assert number > 300
    assert untouched.wholly() == []


BAD_VALUES: dict[str, Conf] = {
    "bridge %d": {"bridge": "br%d"}, "bridge /": {"bridge": "a/b"}, "bridge ..": {"bridge": ".."},
    "bridge of 16 bytes": {"bridge": "b" * 16}, "bridge ESC": {"bridge": "\x1b[2J"}, "bridge empty": {"bridge": ""},
    "bridge not ASCII": {"bridge": "brücke"}, "bridge with a space": {"bridge": "a b"},
    "mtu 1": {"mtu": 1}, "mtu 10^9": {"mtu": 10**9}, "mtu 10^30": {"mtu": 10**30}, "vlan 5000": {"vlan": 5000},
    "vlan -1": {"vlan": -1}, "both modes": {"hairpinMode": True, "promiscMode": True},
    "trunk": {"vlanTrunk": [{"minID": 9, "maxID": 3}]}, "half a trunk": {"vlanTrunk": [{"minID": 9}]},
    "trunk 0": {"vlanTrunk": [{"id": 0}]}, "down with addresses": {"disableContainerInterface": True},
    "backend": {"ipMasqBackend": "magic"}, "version": {"cniVersion": "7.0.0"}, "no version": {"cniVersion": "x"},
    "no name": {"name": ""}, "name ..": {"name": ".."}, "name /": {"name": "a/b"}, "name -": {"name": "-rf"},
    "name newline": {"name": "a\n"}, "name long": {"name": "n" * 300}, "name ESC": {"name": "\x1b"},
    "foreign ipam": {"ipam": {"type": "../../bin/sh"}}, "foreign ipam .": {"ipam": {"type": "."}},
    "foreign ipam missing": {"ipam": {"type": "nothing-of-that-name"}},
    "subnet": {"ipam": pool("x")}, "subnet /33": {"ipam": pool("10.0.0.0/33")},
    "subnet /32": {"ipam": pool("10.0.0.1/32")},
    "host bits": {"ipam": pool("10.0.0.5/24")}, "no subnet": {"ipam": {"type": "host-local"}},
    "overlap": {"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.0/25"}]]}},
    "two families in a set": {
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]]}
    },
    "gateway elsewhere": {"ipam": {"type": "host-local", "subnet": "10.0.0.0/24", "gateway": "ten"}},
    "range backwards": {
        "ipam": {"type": "host-local", "subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.3"}
    },
    "route": {"ipam": pool("10.0.0.0/24", routes=[{"dst": "x"}])},
    "route without": {"ipam": pool("10.0.0.0/24", routes=[{}])},
    "MAC": {"runtimeConfig": {"mac": "01:00:00:00:00:00"}}, "MAC 0": {"args": {"cni": {"mac": "00:00:00:00:00:00"}}},
    "keys twice": {"Bridge": "other"}, "static without": {"ipam": {"type": "static", "addresses": [{}]}},
    "static text": {"ipam": {"type": "static", "addresses": [{"address": "10.0.0.1"}]}},
}  # fmt: skip


@pytest.fixture(scope="module")
def quick() -> Weft:
    return Weft()


def test_every_invalid_value(host: Host, quick: Weft) -> None:
    untouched = Untouched(host)
    for name, change in BAD_VALUES.items():
        answer = quick("ADD", {**BRIDGE, **change}, untouched.path)
        expected = {"version": (1,), "no version": (1, 7), "foreign ipam missing": (106,)}.get(name, (7,))
        assert (answer.status, answer.code in expected) == (1, True), (name, answer)
        assert untouched.at_a_glance() == [], name
    assert untouched.wholly() == []


PORTS: dict[str, object] = {
    "0": {"hostPort": 0}, "65536": {"hostPort": 65536}, "-1": {"containerPort": -1}, "protocol": {"protocol": "icmp"},
    "no protocol": {"protocol": ""}, "host": {"hostIP": "1.2.3.4; flush ruleset"}, "v6 host": {"hostIP": "fd00::1"},
    "zone": {"hostIP": "fe80::1%eth0"}, "injection": {"protocol": "tcp; flush ruleset"},
}  # fmt: skip


def test_every_invalid_port_mapping(host: Host, quick: Weft) -> None:
    untouched = Untouched(host)
    for name, change in PORTS.items():
        assert isinstance(change, dict)
        bad = {**WHOLE, "runtimeConfig": {"portMappings": [{**PORT, **change}]}}
        answer = quick("ADD", bad, untouched.path)
        assert (answer.status, answer.code) == (1, 7), (name, answer)
        assert untouched.at_a_glance() == [], name
    twice = {**WHOLE, "runtimeConfig": {"portMappings": [PORT, {**PORT, "containerPort": 81}]}}
    assert quick("ADD", twice, untouched.path).code == 7
    assert untouched.wholly() == []


CONTAINERS = ("", "../x", "a/b", "a b", "a\n", "é", "x" * 256, "-x", ".x", "..", "a;b", "$(x)", "\x1b[2J", "a\tb", "'")
INTERFACES = (
    "",
    "eth%d",
    "\x1b[2J",
    "a" * 16,
    ".",
    "..",
    "a/b",
    "a b",
    "a:b",
    "é",
    "a\n",
    "a\\b",
    'a"b',
    "*",
    "\udcff",
)


def test_every_invalid_name(host: Host, quick: Weft) -> None:
    untouched = Untouched(host)
    for command in ("ADD", "DEL", "CHECK"):
        for container in CONTAINERS:
            answer = quick(command, BRIDGE, untouched.path, container)
            assert (answer.status, answer.code) == (1, 4), (command, container, answer)
        for interface in INTERFACES:
            answer = quick(command, BRIDGE, untouched.path, "c1", interface)
            assert (answer.status, answer.code) == (1, 4), (command, interface, answer)
    refused = quick("ADD", BRIDGE, untouched.path, "c1", "lo")
    assert refused.code == 101
    assert untouched.wholly() == []


PLACES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "a file": lambda path: path.write_text("x"),
    "a FIFO": os.mkfifo,
    "a directory": Path.mkdir,
    "a dangling link": lambda path: path.symlink_to("/nowhere"),
    "a loop": lambda path: path.symlink_to(path),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a mount namespace": lambda path: path.symlink_to("/proc/self/ns/mnt"),
    "the host's own": lambda path: path.symlink_to("/proc/thread-self/ns/net"),
}


def test_every_invalid_netns_path(host: Host, quick: Weft, tmp_path: Path) -> None:
    untouched = Untouched(host)
    for name, make in PLACES.items():
        path = tmp_path / name.replace(" ", "-")
        make(path)
        for command in ("ADD", "CHECK"):
            answer = quick(command, BRIDGE, str(path))  # must not block, as open() of a FIFO would
            assert (answer.status, answer.code) == (1, 8), (name, command, answer)
        assert untouched.at_a_glance() == [], name
    assert quick("ADD", BRIDGE, "run/netns/c1").code == 4
    assert quick("ADD", BRIDGE, "/run/netns/c1\n").code == 4
    assert quick("ADD", BRIDGE, "").code == 4
    assert untouched.wholly() == []


@pytest.mark.parametrize("place", ("a FIFO", "a directory", "a device", "nothing"))
def test_invalid_resolv_conf(host: Host, quick: Weft, tmp_path: Path, place: str) -> None:
    untouched = Untouched(host)
    path = tmp_path / "resolv.conf"
    PLACES[place](path)
    answer = quick("ADD", {**BRIDGE, "ipam": {**IPAM, "resolvConf": str(path)}}, untouched.path)
    assert answer.status == 1 and answer.code in (5, 7), answer
    assert untouched.wholly() == []


# The executable itself

DEEP = b'{"cniVersion":"1.0.0","name":"n","type":"bridge","a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
STDIN: dict[str, tuple[int, bytes]] = {
    "empty": (6, b""),
    "no JSON": (6, b"hello"),
    "100 MB": (6, b'{"name":"' + b"x" * (100 << 20) + b'"}'),
    "deep": (6, DEEP),
    "not UTF-8": (6, b'{"name":"\xff\xfe"}'),
    "a list": (6, b"[]"),
    "null": (7, b"null"),
    "two": (6, b"{}{}"),
}


def _executable(stdin: bytes, environ: dict[str, str]) -> tuple[int, bytes]:
    done = subprocess.run(
        [str(chosen_folder() / "bridge")], input=stdin, env=environ, capture_output=True, timeout=20, check=False
    )
    return done.returncode, done.stdout


def test_the_executable(host: Host) -> None:
    """Exactly one JSON document, with the code of the error."""
    untouched = Untouched(host)
    good = {**variables("ADD", "c1", untouched.path, "eth0"), "PATH": "/usr/bin"}
    for name, (code, stdin) in STDIN.items():
        status, output = _executable(stdin, good)
        assert (status, json.loads(output)["code"]) == (1, code), (name, output)
    text = json.dumps(BRIDGE).encode()
    environs = {
        "ifname": (4, {"CNI_IFNAME": "eth%d"}), "ifname bytes": (4, {"CNI_IFNAME": "e\udcff"}),
        "container": (4, {"CNI_CONTAINERID": "../x"}), "command": (4, {"CNI_COMMAND": "add"}),
        "namespace": (8, {"CNI_NETNS": "/proc/thread-self/ns/net"}), "arguments": (4, {"CNI_ARGS": "a=b=c"}),
    }  # fmt: skip
    for name, (code, change) in environs.items():
        status, output = _executable(text, {**good, **change})
        assert (status, json.loads(output)["code"]) == (1, code), (name, output)
    assert untouched.wholly() == []


def test_refused_calls_leave_no_files(host: Host, quick: Weft) -> None:
    """A call that is refused before any change creates no record, no lease and no lock file."""
    path = host.container()
    for bad in ({**BRIDGE, "vlan": 5000}, {**BRIDGE, "ipam": pool("x")}, {**BRIDGE, "name": "a/b"}):
        assert quick("ADD", bad, path).status == 1
    assert [one for folder in ("/run/weft", "/var/lib/cni") for one in Path(folder).rglob("*") if one.is_file()] == []


def test_internal_error_is_one_document() -> None:
    """Each exception becomes one document; unexpected exceptions have code 999."""
    status, output = cni.run("bridge", variables("ADD", "c", "/x", "eth0"), json.dumps(BRIDGE).encode(), _broken)
    assert (status, json.loads(output)["code"]) == (1, 999)


def _broken(request: object) -> None:
    raise ZeroDivisionError("by a test")
