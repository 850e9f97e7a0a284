"""The settings of the uplink, and whole calls with the key ``uplink`` on the fake kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cni_plugin.agent import settings
from cni_plugin.dataplane.uplink import DEFAULT, DOWNLOAD_LINK, UPLINK_CLASSES, classid
from cni_plugin.ops.uplink import FIRST, LAST, ROOT
from lab.calls import Weft
from lab.confs import pool
from weft import identity
from weft.errors import ConfigProblem
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.host import Host
from weft.kernel.values import Element, TrafficClass
from weft.section import Section
from weft.uplink import Uplink, configured, rate, rate_text

PATHS = {name: f"/run/netns/{name}" for name in ("c1", "c2", "c3")}


@pytest.mark.parametrize(
    ("given", "bits"),
    [
        ("20mbit", 20_000_000),
        ("1Gbit", 10**9),
        ("900kbit", 900_000),
        ("64000bit", 64_000),
        (125_000, 125_000),
        (None, 0),
    ],
)
def test_rates_are_read_as_tc_has_them(given: object, bits: int) -> None:
    section = Section({"rate": given})
    assert rate(section, "rate") == bits
    assert section.problems.found == []
    if bits:
        assert rate(Section({"rate": rate_text(bits)}), "rate") == bits


@pytest.mark.parametrize(
    "given", ["20", "20 mbit", "20mbps", "-1mbit", "1.5mbit", "", True, [], 63_999, -5, "9999gbit"]
)
def test_other_rates_are_refused(given: object) -> None:
    section = Section({"rate": given}, "uplink")
    assert rate(section, "rate") == 0
    assert len(section.problems.found) == 1 and section.problems.found[0].startswith("uplink.rate ")


def test_the_section_is_validated_by_calls_and_by_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weft.toml"
    monkeypatch.setenv("WEFT_CONFIG", str(path))
    assert configured() == Uplink()
    path.write_text('[agent]\ndatacenter = "x"\n')
    assert configured() == Uplink()
    path.write_text('[uplink]\nup = "20mbit"\ndown = 100000000\nlink = "eth0"\nweight = 7\n')
    assert configured() == Uplink(20_000_000, 100_000_000, "eth0", 7)
    settings.read()
    for text, said in (
        ("uplink = 5", "uplink must be an object"),
        ("[uplink]\nup = 5", "uplink.up 5 must be between"),
        ('[uplink]\nlink = "a b"', "uplink.link"),
        ("[uplink]\nweight = 101", "uplink.weight 101 must be between 1 and 100"),
        ("[uplink]\nspeed = 1", "unknown key uplink.speed"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigProblem, match=said):
            configured()
        with pytest.raises(ConfigProblem, match=said):
            settings.read()
    path.write_text("[uplink")
    with pytest.raises(ConfigProblem, match="cannot read"):
        configured()


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    """A host with an uplink of 8 Mbit/s up and 16 Mbit/s down."""
    path = tmp_path / "weft.toml"
    monkeypatch.setenv("WEFT_CONFIG", str(path))
    path.write_text('[uplink]\nlink = "lan0"\nup = "8mbit"\ndown = "16mbit"\nweight = 5\n')
    made = FakeKernel()
    made.host.add_link("lan0", "dummy", up=True)
    for name in PATHS.values():
        made.add(name)
    return made


@pytest.fixture
def weft(kernel: FakeKernel, tmp_path: Path) -> Weft:
    return Weft(kernel, Host(str(tmp_path / "run"), "boot", 0.0))


def network(name: str, number: int, tmp_path: Path, **uplink: Any) -> dict[str, Any]:
    return {
        "cniVersion": "1.1.0", "name": name, "type": "weft", "driver": "bridge", "bridge": f"br-{name}",
        "isGateway": True, "ipam": pool(f"10.8{number}.0.0/24", dataDir=str(tmp_path / "leases")), "uplink": uplink,
    }  # fmt: skip


def test_an_add_makes_the_tree_and_the_last_del_removes_it(kernel: FakeKernel, weft: Weft, tmp_path: Path) -> None:
    before = kernel.dump()
    conf = network("net", 1, tmp_path, weight=3, floor={"up": "2mbit"}, priority=1)
    own = {**conf, "args": {"cni": {"uplink": {"floor": "1mbit", "ceil": "4mbit"}}}}
    assert "floor" in weft("ADD", own, PATHS["c2"], "c2").text  # the network guarantees nothing downwards
    result = weft.add({**conf, "runtimeConfig": {"uplink": {"floor": {"up": "1mbit"}}}}, PATHS["c1"])
    root, rest, inner, leaf, mine = sorted(kernel.host.classes("lan0"), key=lambda one: (one.parent, one.number))[:5]
    assert root == TrafficClass(ROOT, 0, 1_000_000, 1_000_000, 10_100, 0)
    assert rest == TrafficClass(DEFAULT, ROOT, 1_000, 1_000_000, 50_500, 4)
    assert inner == TrafficClass(inner.number, ROOT, 250_000, 1_000_000, 30_300, 1)
    found = {one.number: one for one in (leaf, mine)}
    own_class = found.pop(next(number for number in found if number != inner.number + 1))
    assert found == {inner.number + 1: TrafficClass(inner.number + 1, inner.number, 1_000, 1_000_000, 30_300, 1)}
    assert (own_class.parent, own_class.rate, own_class.quantum) == (inner.number, 125_000, 30_300)
    assert [one.rate for one in kernel.host.classes(DOWNLOAD_LINK) if one.number == inner.number] == [1_000]
    assert kernel.host.redirect("br-net", egress=True) == DOWNLOAD_LINK
    assert weft.check(conf, result, PATHS["c1"]) == ""
    weft.delete(conf, PATHS["c1"])
    assert {one.number for one in kernel.host.classes("lan0")} == {ROOT, DEFAULT, inner.number, inner.number + 1}
    weft.collect(conf)
    assert kernel.host.root_qdisc("lan0") == "" and kernel.dump() == before


def test_a_number_that_another_has_is_not_used(kernel: FakeKernel, weft: Weft, tmp_path: Path) -> None:
    """The digests of network names may be the same: the next free number is taken, and kept."""
    first, second = network("first", 1, tmp_path), network("second", 2, tmp_path)
    weft.add(first, PATHS["c1"])
    slots = (LAST - FIRST) // 2
    number = FIRST + int(identity.digest("uplink class", "second"), 16) % slots * 2
    kernel.rules.add([Element(UPLINK_CLASSES, (classid(number),), mark=identity.mark("somebody"))])
    weft.add(second, PATHS["c2"], "c2")
    expected = FIRST + (number - FIRST + 2) % (slots * 2)
    assert expected in {one.number for one in kernel.host.classes("lan0")}
    kernel.rules.delete([Element(UPLINK_CLASSES, (classid(number),), mark=identity.mark("somebody"))])
    weft.add(second, PATHS["c3"], "c3")
    assert number not in {one.number for one in kernel.host.classes("lan0")}


def test_a_changed_share_is_applied_by_the_next_add(kernel: FakeKernel, weft: Weft, tmp_path: Path) -> None:
    weft.add(network("net", 1, tmp_path, weight=3), PATHS["c1"])
    weft.delete(network("net", 1, tmp_path, weight=3), PATHS["c1"])
    weft.add(network("net", 1, tmp_path, weight=4), PATHS["c1"])
    assert 40_400 in {one.quantum for one in kernel.host.classes("lan0")}
    assert 30_300 not in {one.quantum for one in kernel.host.classes("lan0")}


def test_a_plan_is_printed_as_commands(weft: Weft, tmp_path: Path) -> None:
    record = weft.preview(network("net", 1, tmp_path, weight=3), PATHS["c1"])
    commands = [command for one in (*record.shared, *record.operations) for command in one.commands(PATHS["c1"])]
    added = "tc class replace dev lan0 parent 7765: classid 7765:1"
    for expected in (
        "tc qdisc add dev lan0 root handle 7765: htb default 2",
        f"{added} htb rate 1000000bps ceil 1000000bps quantum 10100 prio 0",
        "tc qdisc add dev br-net clsact",
    ):
        assert expected in commands
    assert any(
        command.startswith("nft add element inet weft uplink_class4 '{ 10.81.0.2 comment") for command in commands
    )
