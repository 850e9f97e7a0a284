"""docs/reference-compatibility.md matches the code: the keys that are read, and a test for each."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.plan import modules
from cni_plugin.service import assemble
from cni_plugin.service.records import Record
from cni_plugin.wire import config, environment
from cni_plugin.wire.plugins import OWN_NAME
from cni_plugin.wire.request import Command, Request
from lab.calls import Weft
from lab.confs import bridge, network, port, ptp
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.host import Host
from weft.kernel.interface import VethPeer
from weft.section import Section

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference-compatibility.md"
WORDS = ("same", "better", "accepted", "ignored", "refused")
COMMON, OWN = "common", "Weft's own keys"
NETNS = "/run/netns/c1"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table. ``said`` begins with one of WORDS, except for weft's own keys."""

    plugins: tuple[str, ...]
    keys: tuple[str, ...]
    said: str
    test: str


def rows() -> tuple[Row, ...]:
    found, section = [], ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        if line.startswith("| ") and not line.startswith(("| key", "| plugin")):
            *plugins, keys, said, test = (cell.strip() for cell in line.strip("|").split("|"))
            named = tuple(name.strip() for name in plugins[0].split(",")) if plugins else (section,)
            found.append(Row(named, tuple(re.findall("`([^`]+)`", keys)), said, test))
    return tuple(found)


ROWS = rows()


@cache
def source(path: str) -> tuple[str, frozenset[str]]:
    """The text of a test file, and the names of its tests."""
    text = (ROOT / "tests" / path).read_text(encoding="utf-8")
    tests = (node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef))
    return text, frozenset(name for name in tests if name.startswith("test_"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.plugins[0]}-{row.keys[0]}")
def test_the_test_of_each_row_mentions_its_keys(row: Row) -> None:
    path, _, name = row.test.partition("::")
    text, tests = source(path)
    assert name in tests, row.test
    lacking = [key for key in row.keys if not re.search(rf"\b{re.escape(last(key))}\b", text)]
    assert lacking == [], f"{path} does not speak of {lacking}"


def last(key: str) -> str:
    return re.split(r"[. ]", key)[-1] if not key.startswith("cni.dev") else "cni.dev"


def test_every_plugin_has_its_section() -> None:
    titles = re.findall("^## (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(modules.plugins()) | {COMMON, OWN} <= set(titles)
    for row in ROWS:
        assert set(row.plugins) <= {*modules.plugins(), COMMON, OWN_NAME}
        assert row.said.split(":")[0] in WORDS or len(row.plugins) > 1 or row in own_rows(), row


def own_rows() -> tuple[Row, ...]:
    page = PAGE.read_text(encoding="utf-8")
    start = page[: page.index(f"## {OWN}")].count("\n| `")
    return ROWS[start:]


def test_no_key_is_described_twice() -> None:
    every = [(plugin, key) for row in ROWS for plugin in row.plugins for key in row.keys]
    assert sorted({pair for pair in every if every.count(pair) > 1}) == []


# Which keys are looked up

GIVEN: dict[str, tuple[dict[str, Any], ...]] = {
    "bridge": ({"vlanTrunk": [{}], "limits": {}},),
    "ptp": ({"limits": {}},),
    "portmap": ({"runtimeConfig": {"portMappings": [{}]}},),
    "bandwidth": ({"runtimeConfig": {"bandwidth": {}}}, {"ingressRate": 1}),
    "host-local": (
        {"ipam": {"subnet": "10.1.0.0/24", "routes": [{"dst": "10.9.0.0/16"}]}},
        {
            "ipam": {"ranges": [[{"subnet": "10.2.0.0/24"}]]},
            "runtimeConfig": {"ipRanges": [[{"subnet": "10.3.0.0/24"}]]},
        },
    ),
    "static": ({"ipam": {"addresses": [{"address": "10.1.0.2/24"}], "routes": [{"dst": "10.9.0.0/16"}]}},),
    "dhcp": ({"ipam": {"provide": [{}], "request": [{"option": 12}]}},),
}
"""Values without which some keys would not be read: objects in lists, and keys that select others.
"""


class Noted(dict[str, str]):
    """CNI_ARGS as a mapping that records the keys that are read."""

    def __init__(self, seen: set[str]) -> None:
        self._seen = seen

    def get(self, key: str, default: Any = None) -> Any:
        self._seen.add(f"CNI_ARGS {key}")
        return default


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Collects the path of every key that is looked up."""
    found: set[str] = set()
    for name in ("raw", "__contains__"):
        original = getattr(Section, name)

        def noted(section: Section, key: str, original: Any = original) -> Any:
            found.add(re.sub(r"\[\d+\]", "[]", section.at(key)))
            return original(section, key)

        monkeypatch.setattr(Section, name, noted)
    return found


def leaves(paths: set[str]) -> set[str]:
    """Paths of values only, without the objects and lists that contain them."""
    return {path for path in paths if not any(other.startswith((f"{path}.", f"{path}[")) for other in paths)}


def looked_up(plugin: str, seen: set[str]) -> set[str]:
    found: set[str] = set()
    for more in ({}, *GIVEN.get(plugin, ())):
        text = json.dumps({"cniVersion": "1.1.0", "name": "net", "type": plugin, **more}).encode()
        read = config.read(text, Command.ADD, plugin)
        seen.clear()
        assemble.read(
            Request(Command.ADD, plugin, "c1", NETNS, "eth0", (), Noted(seen), False, {}, read, text),
        )
        found |= seen
    return leaves(found)


def listed(plugin: str, *, unread: bool = False) -> set[str]:
    """The keys of a plugin that are read according to the page; with ``unread``, those not read."""
    mine = [row for row in ROWS if plugin in row.plugins]
    return {key for row in mine for key in row.keys if row.said.startswith("ignored") is unread}


@pytest.mark.parametrize("plugin", modules.plugins())
def test_the_keys_that_a_plugin_reads_are_on_the_page(seen: set[str], plugin: str) -> None:
    found = looked_up(plugin, seen) - listed(COMMON)
    assert sorted(found - listed(plugin)) == [], "read, and not on the page"
    assert sorted(listed(plugin) - found) == [], "on the page, and not read"


def test_the_keys_that_all_plugins_read_are_on_the_page(seen: set[str]) -> None:
    text = {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "cni.dev/valid-attachments": [{}]}
    found = set()
    for given in (text, {**text, "cni.dev/attachments": []}):
        seen.clear()
        with pytest.raises(Exception, match="containerID"):
            config.read(json.dumps(given).encode(), Command.GC)
        found |= leaves(seen)
    arguments = {f"CNI_ARGS {word}" for word in ("IgnoreUnknown",) if f'"{word}"' in module(environment)}
    assert leaves(found) | arguments | {"ipam.type"} == listed(COMMON) | {"ipam"}


def module(of: Any) -> str:
    return Path(of.__file__).read_text(encoding="utf-8")


def literals() -> Iterator[str]:
    """Every key that the code of a driver, a feature or IPAM reads from a section."""
    getters = {"raw", "text", "flag", "integer", "section", "items", "sections", "texts", "address", "subnet", "cidr"}
    alone = ("interface.py", "wire/common.py", "wire/config.py")
    for pattern in (
        "cni_plugin/drivers/*.py",
        "cni_plugin/features/*.py",
        "ipam/*.py",
        *(f"cni_plugin/{name}" for name in alone),
    ):
        for path in sorted(ROOT.glob(pattern)):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in getters:
                    for given in node.args[:1]:
                        if isinstance(given, ast.Constant) and isinstance(given.value, str):
                            yield given.value


def test_no_key_in_the_source_is_missing() -> None:
    """Covers keys that are read only with certain others.

    ``driver`` belongs to the plugin name weft, ``direct`` to its overlay networks.
    """
    every = {part for row in ROWS for key in row.keys for part in re.split(r"[. \[\]]+", key)}
    assert sorted(set(literals()) - every - {"driver", "direct"}) == []
    assert len(set(literals())) > 60


# Keys without effect, and those that have no test elsewhere


@pytest.fixture
def kernel() -> FakeKernel:
    made = FakeKernel()
    made.add(NETNS)
    return made


@pytest.fixture
def weft(kernel: FakeKernel, tmp_path: Path) -> Weft:
    return Weft(kernel, Host(str(tmp_path), "boot", 0.0))


FIXED = {"type": "static", "addresses": [{"address": "10.80.0.2/24", "gateway": "10.80.0.1"}]}
DRIVER = bridge(FIXED, isGateway=True)
PORTS = {"portMappings": [port(8080, 80)]}
WITHOUT_EFFECT: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    (DRIVER, {"capabilities": {"mac": True}}),
    (DRIVER, {"runtimeConfig": {"dns": {"servers": ["192.0.2.1"]}, "infinibandGUID": "x", "cgroupPath": "/x"}}),
    (network("portmap", runtimeConfig=PORTS), {"markMasqBit": 5}),
    (network("portmap", runtimeConfig=PORTS, backend="iptables"), {"externalSetMarkChain": "KUBE-MARK-MASQ"}),
    (network("firewall", ingressPolicy="same-bridge"), {"firewalldZone": "public"}),
    (network("tuning", mtu=1400), {"dataDir": "/nowhere"}),
)


def planned(weft: Weft, conf: dict[str, Any]) -> Record:
    """The plan of an ADD; that of a chained plugin follows a bridge."""
    if conf["type"] in modules.features():
        conf = {**conf, "prevResult": weft.add(DRIVER, NETNS)}
        weft.delete(DRIVER, NETNS)
    return weft.preview(conf, NETNS)


@pytest.mark.parametrize(("conf", "keys"), WITHOUT_EFFECT, ids=lambda value: next(iter(value)))
def test_what_has_no_effect_changes_nothing(weft: Weft, conf: dict[str, Any], keys: dict[str, Any]) -> None:
    """``daemonSocketPath`` of dhcp is compared below, without a DHCP server."""
    plain, more = planned(weft, conf), planned(weft, {**conf, **keys})
    assert (more.shared, more.operations, more.result) == (plain.shared, plain.operations, plain.result)
    assert plain.operations


def test_every_key_without_effect_is_tested() -> None:
    said = {key for row in ROWS for key in row.keys if row.said.startswith(("accepted", "ignored"))}
    tried = {key for _, keys in WITHOUT_EFFECT for key in keys if key != "runtimeConfig"}
    tried |= {f"runtimeConfig.{key}" for _, keys in WITHOUT_EFFECT for key in keys.get("runtimeConfig", {})}
    assert said - tried == {"ipam.daemonSocketPath"}


def test_a_dhcp_lease_is_the_same_whatever_daemon_is_named() -> None:
    from ipam import dhcp

    plain = dhcp.read(Section({}, "ipam"), {})
    assert dhcp.read(Section({"daemonSocketPath": "/run/cni/dhcp.sock"}, "ipam"), {}) == plain


def uplink(kernel: FakeKernel) -> None:
    kernel.host.add_link("up0", "veth", mac="02:00:00:00:00:10", up=True, peer=VethPeer("wire", up=True))


@pytest.mark.parametrize("driver", ["macvlan", "tap"])
def test_a_tap_link_has_the_mac_address_asked_for(kernel: FakeKernel, weft: Weft, driver: str) -> None:
    """args.cni.mac overrides CNI_ARGS, runtimeConfig.mac overrides both; macvlan does the same."""
    uplink(kernel)
    conf: dict[str, Any] = network(
        driver, FIXED, mac="02:00:00:00:00:01", **({"master": "up0"} if driver != "tap" else {})
    )
    found = []
    for more in ({}, {"args": {"cni": {"mac": "02:00:00:00:00:03"}}}, {"runtimeConfig": {"mac": "02:00:00:00:00:04"}}):
        conf |= more
        answer = weft("ADD", conf, NETNS, args="MAC=02:00:00:00:00:02")
        assert answer.ok, answer
        found.append(answer.document["interfaces"][0]["mac"])
        weft.delete(conf, NETNS)
    assert found == [f"02:00:00:00:00:0{number}" for number in (2, 3, 4)]


@pytest.mark.parametrize("driver", ["ptp", "vlan"])
def test_weft_sets_a_mac_address_that_the_reference_ignores(kernel: FakeKernel, weft: Weft, driver: str) -> None:
    uplink(kernel)
    mac, runtime = "02:00:00:00:00:04", {"runtimeConfig": {"mac": "02:00:00:00:00:04"}}
    where = {"master": "up0", "vlanId": 5} if driver == "vlan" else {}
    for plugin in ("weft", driver):
        conf = network(plugin, FIXED, driver=driver, **runtime, **where)
        answer = weft.add(conf, NETNS)
        inner = next(one for one in answer["interfaces"] if one["name"] == "eth0")
        link = kernel.open(NETNS).link("eth0")
        assert link is not None and inner["mac"] == link.mac
        assert (link.mac == mac) is (plugin == "weft")
        weft.delete(conf, NETNS)


def test_overrides_of_a_links_attributes(kernel: FakeKernel, weft: Weft) -> None:
    result = weft.add(DRIVER, NETNS)
    wanted = {"promisc": True, "allmulti": True, "txQLen": 77}
    conf = network("tuning", txQLen=55, args={"cni": wanted}, prevResult=result)
    weft.add(conf, NETNS)
    link = kernel.open(NETNS).link("eth0")
    assert link is not None and (link.promiscuous, link.all_multicast, link.queue_length) == (True, True, 77)


@pytest.mark.parametrize("key", ["shapedSubnets", "unshapedSubnets"])
@pytest.mark.parametrize("runtime", [False, True])
def test_limits_of_some_subnets_are_refused(kernel: FakeKernel, weft: Weft, key: str, runtime: bool) -> None:
    """They would be limits of all traffic. Without a rate there is nothing to exempt from."""
    result = weft.add(DRIVER, NETNS)
    before = kernel.dump()
    rates = {"egressRate": 8000, "egressBurst": 80000}
    for given, code in (({**rates, key: ["10.0.0.0/8"]}, 2), ({key: ["10.0.0.0/8"]}, 0), ({**rates, key: []}, 0)):
        values = {"runtimeConfig": {"bandwidth": given}} if runtime else given
        conf = network("bandwidth", **values, prevResult=result)
        answer = weft("ADD", conf, NETNS)
        assert answer.code == code, answer
        assert not code or (f'{key} ["10.0.0.0/8"]' in answer.text and kernel.dump() == before)
        weft.delete(conf, NETNS)


def test_the_administrators_chain_has_the_name_asked_for(kernel: FakeKernel, weft: Weft) -> None:
    conf = network("firewall", backend="iptables", iptablesAdminChainName="MINE", prevResult=weft.add(DRIVER, NETNS))
    weft.add(conf, NETNS)
    saved = kernel.host.iptables(4, "filter")
    assert any("-j MINE" in line for line in saved) and not any("CNI-ADMIN" in line for line in saved)


def test_what_a_ptp_link_is_checked_for(weft: Weft) -> None:
    plain, mac, addresses = (
        planned(weft, ptp(FIXED, **keys)) for keys in ({}, {"macspoofchk": True}, {"ipspoofchk": True})
    )
    assert mac.operations == plain.operations != addresses.operations


@pytest.mark.parametrize("driver", ["macvlan", "ipvlan", "vlan", "host-device"])
def test_detection_with_every_driver(kernel: FakeKernel, weft: Weft, driver: str) -> None:
    uplink(kernel)
    where = {"device": "up0"} if driver == "host-device" else {"master": "up0"}
    for wanted in (False, True):
        conf = network(driver, FIXED, enabledad=wanted, **where)
        weft.add(conf, NETNS)
        assert kernel.open(NETNS).sysctl("net/ipv6/conf/eth0/accept_dad") == str(int(wanted))
        weft.delete(conf, NETNS)
