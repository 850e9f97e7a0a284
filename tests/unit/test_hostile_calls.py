"""200 hostile inputs through the whole call: an error object with code 4, 6 or 7, and nothing is changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from unit.wire import test_hostile as wire

from cni_plugin.entry import cni
from cni_plugin.service.verbs import Service
from lab.calls import variables
from lab.cases import Conf, conf, pool
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.host import Host

NETNS = "/run/netns/a"
POOL = pool("10.1.0.0/24")
BRIDGE: Conf = {"bridge": "br0", "isGateway": True, "ipam": POOL}
WEFT = {"driver": "bridge", **BRIDGE}
PORT = {"hostPort": 80, "containerPort": 80, "protocol": "tcp"}
HUGE = 10**300
CHECKS = ({}, {"http": "x"})


def _ipam(**keys: Any) -> Conf:
    return {**BRIDGE, "ipam": {**POOL, **keys}}


def _ports(**keys: Any) -> Conf:
    return {**WEFT, "portmap": {}, "runtimeConfig": {"portMappings": [{**PORT, **keys}]}}


def _service(**keys: Any) -> Conf:
    return {**WEFT, "names": {}, "services": [{"name": "a", **keys}]}


def _each(plugin: str, base: Conf, key: str, *values: Any) -> list[tuple[str, Conf]]:
    return [(plugin, {**base, key: value}) for value in values]


CONFIGURATIONS: list[tuple[str, Conf]] = [
    *_each("bridge", BRIDGE, "bridge", "br%d", "a/b", ".", "..", "b" * 16, "a b", "\x00", "b\n", 5, []),
    *_each("bridge", BRIDGE, "mtu", "1500", 1.5, HUGE, [], 67),
    *_each("bridge", BRIDGE, "vlan", -1, 4095, "7", {}, HUGE),
    *_each("bridge", BRIDGE, "vlanTrunk", 5, [5], [{"minID": 9, "maxID": 2}]),
    *(("bridge", {**BRIDGE, key: "yes"}) for key in ("isGateway", "ipMasq", "hairpinMode", "promiscMode")),
    *_each("bridge", BRIDGE, "ipam", [], "host-local", 5, True),
    *(("bridge", {**BRIDGE, "ipam": {"type": name}}) for name in ("bridge", "weft", "portmap", "ptp", 5, [])),
    *(("bridge", _ipam(dataDir=path)) for path in ("relative", "/a\x00b", "/a\nb", "/a/../../etc", "/" + "d" * 5000)),
    *(("bridge", _ipam(ranges=ranges)) for ranges in ("x", [5], [[5]], [[{}]], [[{"subnet": "x"}]], [[{"subnet": 5}]])),
    *(("bridge", {**BRIDGE, "ipam": pool(text)}) for text in ("10.0.0.0/33", "10.0.0.0/32", "::/129", "\x00")),
    *(("bridge", _ipam(routes=routes)) for routes in (5, [5], [{"dst": "x"}], [{"dst": "0.0.0.0/0", "gw": "x"}], [{}])),
    *(("bridge", _ipam(resolvConf=path)) for path in ("/nowhere", "/dev", "a\x00b", 5)),
    *_each("weft", WEFT, "driver", "", "nope", "../bridge", 5, [], "bridge\x00"),
    *(("weft", _ports(hostPort=port)) for port in (-1, 65536, "80", 1.5, HUGE)),
    *(("weft", _ports(containerPort=port)) for port in (0, 65536, "80", [])),
    *(("weft", _ports(protocol=name)) for name in ("icmp", "tcp; flush ruleset", 6)),
    *(("weft", _ports(hostIP=text)) for text in ("1.2.3.4; flush", "x", 5)),
    *_each("weft", WEFT, "bandwidth", "x", 5, [], {"ingressRate": -1}, {"ingressRate": "x"}),
    *_each("weft", WEFT, "uplink", "x", 5, [], {"weight": "x"}, {"floor": True}, {"ceil": {"up": []}}, {"rate": 1}),
    *_each("weft", {**WEFT, "uplink": {}}, "runtimeConfig", {"uplink": 5}, {"uplink": {"weight": HUGE}}),
    *_each("weft", WEFT, "names", "x", 5, [1], {"domain": 5}, {"domain": "a b"}),
    *_each("weft", {**WEFT, "names": {}}, "services", "x", 5, [5], [{}], [{"name": 5}], [{"name": "a b"}]),
    *(("weft", _service(port=port)) for port in (65536, "80")),
    ("weft", _service(tags="x")),
    ("weft", _service(meta=[1])),
    *(("weft", _service(check=check)) for check in CHECKS),
    *_each("weft", WEFT, "isolation", "shut", 5, []),
    *_each("weft", WEFT, "tuning", "x", {"sysctl": 5}, {"sysctl": {"kernel.panic": "1"}}, {"mtu": "x"}),
]  # fmt: skip


def _call(plugin: str, environ: dict[str, str], stdin: bytes, folder: Path) -> dict[str, Any]:
    """The error object of a call that must fail and change nothing."""
    kernel = FakeKernel()
    kernel.add(NETNS)
    before = kernel.dump()

    def handle(request: Any) -> Any:
        return Service(kernel, Host(str(folder / "run"), "boot", 0.0)).handle(request)

    status, answer = cni.run(plugin, environ, stdin, handle)
    found: dict[str, Any] = json.loads(answer)
    assert status == 1, found
    assert found["msg"].isprintable(), found
    assert kernel.dump() == before
    assert [path for path in folder.rglob("*") if not path.is_dir()] == []
    return found


@pytest.mark.parametrize("case", [case for case, (code, _) in wire.STDIN.items() if code != 1])
def test_standard_input(case: str, tmp_path: Path) -> None:
    assert _call("bridge", wire.ENVIRON, wire.STDIN[case][1], tmp_path)["code"] == wire.STDIN[case][0]


@pytest.mark.parametrize("case", wire.ENVIRONMENT)
def test_environment(case: str, tmp_path: Path) -> None:
    changed = wire.ENVIRON | wire.ENVIRONMENT[case][1]
    environ = {name: value for name, value in changed.items() if value is not None}
    assert _call("bridge", environ, wire.GOOD, tmp_path)["code"] == 4


@pytest.mark.parametrize("number", range(len(CONFIGURATIONS)))
def test_configuration(number: int, tmp_path: Path) -> None:
    plugin, keys = CONFIGURATIONS[number]
    given = conf(plugin, "n", keys)
    found = _call(plugin, variables("ADD", "c", NETNS, "eth0"), json.dumps(given).encode(), tmp_path)
    assert found["code"] in (6, 7), (keys, found)


def test_there_are_200() -> None:
    assert len(wire.STDIN) + len(wire.ENVIRONMENT) + len(CONFIGURATIONS) >= 200


def test_a_plugin_that_attaches_is_no_ipam_plugin(tmp_path: Path) -> None:
    """``ipam.type: bridge`` would wait for its own lock for 30 seconds; DEL must work with it all the same."""
    kernel = FakeKernel()
    kernel.add(NETNS)
    given = conf("bridge", "n", {**BRIDGE, "ipam": {"type": "bridge"}})
    called: list[str] = []

    def delegate(name: str, *_: object) -> bytes:
        called.append(name)
        return b""

    def handle(request: Any) -> Any:
        return Service(kernel, Host(str(tmp_path / "run"), "boot", 0.0), delegate=delegate).handle(request)

    for command, expected in (("ADD", 1), ("DEL", 0)):
        status, answer = cni.run("bridge", variables(command, "c", NETNS, "eth0"), json.dumps(given).encode(), handle)
        assert status == expected, answer
    assert called == []
