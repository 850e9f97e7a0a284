"""A new driver or feature needs one file only (and a row in the table of test configurations).

They are written into directories that extend the packages' paths. All of weft must know them
without another edit. The driver ``null`` makes no link and assigns no addresses.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from cni_plugin.engine import server
from cni_plugin.entry import netavark
from cni_plugin.networks import create, requirements
from cni_plugin.ops import ContainerLink
from cni_plugin.plan import modules
from lab.calls import Steps, Weft
from lab.cases import Case, conf, pool
from weft.errors import ConfigProblem
from weft.kernel.host import Host
from weft.kernel.interface import VethPeer
from weft.kernel.linux.probe import Ability
from weft.kernel.values import KernelRoute
from weft.types import Route

DRIVER = '''"""``macvtap``: a macvlan link that a virtual machine opens as a character device."""

from __future__ import annotations

from dataclasses import dataclass

from cni_plugin.plan import interface
from cni_plugin.plan.plan import Context, PlanPart, Plan
from cni_plugin.plan.traits import Driver, LinkTrial, Option, Parent, Value
from cni_plugin.wire.request import Request
from weft.section import Section
from weft.types import Side

DRIVER = Driver(
    link_kind="macvtap",
    parent=Parent.SHARED,
    parent_key="master",
    creatable=True,
    options=(interface.MTU, interface.MASTER, Option("mode", Value.TEXT, ("mode",)), Option("queue", Value.NUMBER)),
    trials=(LinkTrial("macvtap", "macvtap", on_parent=True),),
)


@dataclass(frozen=True, slots=True)
class Macvtap:
    master: str
    mode: str

    def plan(self, context: Context) -> Plan:
        parent = interface.parent_link(context, self.master, Side.HOST)
        options = (("macvtap_mode", self.mode),)
        link = interface.container_link(context, "macvtap", parent=parent.name, mtu=parent.mtu, options=options)
        return interface.attach(context, link, interface.result_interface(context, link), context.result)


def read(request: Request, keys: Section) -> PlanPart | None:
    return Macvtap(interface.read_link(keys, "master"), keys.text("mode", choices=("", "bridge", "vepa")) or "bridge")
'''
NULL = '''"""``null``: no network but ``lo``. Keys: none."""

from __future__ import annotations

from dataclasses import dataclass

from cni_plugin.plan.plan import Context, Plan, PlanPart
from cni_plugin.plan.traits import Driver
from cni_plugin.wire.request import Request
from weft.section import Section
from weft.types import Result

DRIVER = Driver(addresses=False, creatable=True)


@dataclass(frozen=True, slots=True)
class Null:
    def plan(self, context: Context) -> Plan:
        return Plan(result=Result(dns=context.result.dns))


def read(request: Request, keys: Section) -> PlanPart | None:
    return Null()
'''
FEATURE = '''"""``listening``: the container's link takes every frame. Keys: none."""

from __future__ import annotations

from dataclasses import dataclass

from cni_plugin.ops.tuning import LinkSetting
from cni_plugin.plan.plan import Context, PlanPart, Plan
from cni_plugin.plan.traits import Feature, LinkTrial, Stage
from cni_plugin.wire.request import Request
from weft.section import Section

FEATURE = Feature(Stage.LINK, plugin="listening", trials=(LinkTrial("ifb of listening", "ifb"),))


@dataclass(frozen=True, slots=True)
class Listening:
    def plan(self, context: Context) -> Plan:
        there = LinkSetting(context.attachment.interface, "promiscuous", True, False)
        return Plan(operations=(there,), result=context.result)


def read(request: Request, keys: Section) -> PlanPart | None:
    return Listening()
'''
CASE = Case("macvtap", conf("weft", "vms", {"driver": "macvtap", "ipam": pool("192.0.2.0/25")}), wired=True)


def _forget() -> None:
    for known in (modules.drivers, modules.features, modules.driver, modules.feature, modules.plugins):
        known.cache_clear()
    for name in ("cni_plugin.drivers.macvtap", "cni_plugin.drivers.null", "cni_plugin.features.listening"):
        sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The files, in directories on the paths of their packages."""
    for package, texts in (("drivers", {"macvtap": DRIVER, "null": NULL}), ("features", {"listening": FEATURE})):
        folder = tmp_path / package
        folder.mkdir()
        for name, text in texts.items():
            (folder / f"{name}.py").write_text(text)
        path = importlib.import_module(f"cni_plugin.{package}").__path__
        monkeypatch.setattr(f"cni_plugin.{package}.__path__", [*path, str(folder)])
    _forget()
    yield
    _forget()


@pytest.fixture
def weft(run) -> Weft:
    """weft on the fake kernel of ``run``; the host has a veth uplink."""
    host = run.kernel.host
    host.add_link("lan0", "veth", up=True, peer=VethPeer("far", up=True))
    host.add_address("lan0", ip_interface("192.0.2.1/24"))
    host.add_route(KernelRoute(Route(ip_network("0.0.0.0/0"), ip_address("192.0.2.2")), "lan0"))
    return Weft(run.kernel, Host(str(run.folder / "run"), "this-boot", 0.0))


def test_add_check_and_delete(run, weft: Weft) -> None:
    path = run.container("c1")
    before = run.kernel.dump()
    result = weft.add(CASE.conf, path)
    assert run.kernel.open(path).link("eth0").kind == "macvtap"
    assert weft.check(CASE.conf, result, path) == ""
    run.kernel.open(path).delete_address("eth0", ip_interface(result["ips"][0]["address"]))
    assert "lacks the address" in weft.check(CASE.conf, result, path)
    weft.delete(CASE.conf, path)
    weft.delete(CASE.conf, path)
    assert run.kernel.dump() == before


def test_a_fault_before_every_step_leaves_nothing(run, weft: Weft) -> None:
    path = run.container("c1")
    seen = Steps()
    before = run.kernel.dump()
    assert weft("ADD", CASE.conf, path, watch=seen).ok
    weft.delete(CASE.conf, path)
    assert any(isinstance(operation, ContainerLink) for _, operation in seen.taken)
    for at in range(len(seen.taken)):
        answer = weft("ADD", CASE.conf, path, watch=Steps(at))
        assert "a fault that a test made" in answer.text
        assert run.kernel.dump() == before, seen.taken[at]
    assert weft("ADD", CASE.conf, path).ok


def test_del_without_a_record_removes_its_kind_of_link(run, weft: Weft) -> None:
    """Created by another plugin: without weft's mark, but with the MAC address of prevResult."""
    path = run.container("c1")
    run.kernel.open(path).add_link("eth0", "macvtap", mac="02:00:00:00:00:09", parent="lan0",
                                   parent_namespace=run.kernel.host)  # fmt: skip
    proof = {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:09", "sandbox": path}]}
    weft.delete({**CASE.conf, "prevResult": proof}, path)
    assert run.kernel.open(path).link("eth0") is None


def test_gc_removes_attachments_that_are_not_valid(run, weft: Weft) -> None:
    path = run.container("c1")
    before = run.kernel.dump()
    weft.add(CASE.conf, path)
    weft.collect(CASE.conf)
    assert run.kernel.dump() == before


def test_network_create_supports_it(run, weft: Weft) -> None:
    assert "macvtap" in create.drivers()  # the help of the command is generated from it at start
    options = ("-o", "parent=lan0", "-o", "mode=vepa", "-o", "mtu=1400")
    subnet = ("--subnet", "192.0.2.0/24", "--ip-range", "192.0.2.128/25")
    run.good("network", "create", "-d", "macvtap", *subnet, *options, "vms")
    [plugin] = run.list("vms")["plugins"]
    keys = {key: plugin[key] for key in ("driver", "master", "mode", "mtu")}
    assert keys == {"driver": "macvtap", "master": "lan0", "mode": "vepa", "mtu": 1400}
    said = run("network", "create", "-d", "macvtap", "-o", "nonsense=1", "more")
    assert "com.docker.network.driver.mtu, parent, master, mode" in said.err
    run.container("c1")
    run.good("attach", "vms", "c1")
    assert run("doctor", "--json").json["findings"] == []
    run.good("detach", "vms", "c1")


def test_podman_can_create_networks_with_it() -> None:
    asked = {
        "name": "vms", "id": "ab" * 32, "network_interface": "lan0", "options": {"driver": "macvtap", "queue": "3"},
        "subnets": [{"subnet": "192.0.2.0/24"}], "ipam_options": None,
    }  # fmt: skip
    found = netavark.created(asked)
    own = {"interface_name": "eth0"}
    config = netavark.Call({"container_id": "c1", "network": found, "network_options": own}).config
    assert {key: config[key] for key in ("driver", "master", "queue")} == {
        "driver": "macvtap", "master": "lan0", "queue": 3,
    }  # fmt: skip


def test_doctor_probes_its_kind_of_link_and_names_networks_that_need_it(run, weft: Weft) -> None:
    tried = {one.name: one for one in requirements.trials()}
    assert (tried["macvtap"].kind, tried["macvtap"].serves) == ("macvtap", "driver macvtap")
    subnet = ("--subnet", "192.0.2.0/24", "--ip-range", "192.0.2.128/25")
    run.good("network", "create", "-d", "macvtap", *subnet, "-o", "parent=lan0", "vms")
    run.abilities = (Ability("macvtap", "driver macvtap", "this kernel has none"),)
    [found] = run("doctor", "--json").json["findings"]
    assert found["what"] == "macvtap: this kernel has none" and "network vms requires it" in found["remedy"]


def test_the_engine_imports_it_before_it_forks() -> None:
    server.preload()
    assert {"cni_plugin.drivers.macvtap", "cni_plugin.drivers.null", "cni_plugin.features.listening"} <= set(
        sys.modules
    )


def test_a_feature_is_configured_by_its_section(run, weft: Weft) -> None:
    path = run.container("c1")
    asked = {**CASE.conf, "listening": {}}
    result = weft.add(asked, path)
    assert run.kernel.open(path).link("eth0").promiscuous
    assert weft.check(asked, result, path) == ""
    run.kernel.open(path).change_link("eth0", promiscuous=False)
    assert "promiscuous" in weft.check(asked, result, path)
    weft.delete(asked, path)
    assert "feature listening" in {one.serves for one in requirements.trials()}


def test_a_feature_is_a_plugin_in_a_chain(run, weft: Weft) -> None:
    path = run.container("c1")
    first = weft.add(CASE.conf, path)
    chained = {**conf("listening", "vms", {}), "prevResult": first}
    assert "listening" in modules.plugins()
    weft.add(chained, path)
    assert run.kernel.open(path).link("eth0").promiscuous
    weft.delete(chained, path)
    assert not run.kernel.open(path).link("eth0").promiscuous


@pytest.mark.parametrize("driver", ["null", "loopback"])
@pytest.mark.parametrize("feature", modules.features())
def test_a_driver_without_a_link_refuses_every_feature(weft: Weft, run, driver: str, feature: str) -> None:
    declared = modules.feature(feature).FEATURE
    for key in (feature,) if declared.section else declared.keys:
        answer = weft(
            "ADD", conf("weft", "void", {"driver": driver, key: {} if declared.section else True}), run.container("c1")
        )
        assert f"{feature} needs an interface, which driver {driver} does not make" in answer.text
        assert answer.code == 7 and "not found" not in answer.text
        run.kernel.remove("/run/netns/c1")


def test_a_feature_that_is_off_is_accepted_by_a_driver_without_a_link(weft: Weft, run) -> None:
    weft.add({**conf("weft", "void", {"driver": "null"}), "ipMasq": False, "macspoofchk": False}, run.container("c1"))


def test_a_network_without_links_and_addresses(run, weft: Weft) -> None:
    run.good("network", "create", "-d", "null", "void")
    assert run.list("void")["plugins"] == [{"type": "weft", "driver": "null"}]
    [shown] = run("network", "inspect", "void").json
    assert (shown["Internal"], shown["IPAM"]["Driver"]) == (False, "none")
    run.container("c1")
    lo_up = "nsenter --net=/run/netns/c1 ip link set lo up"
    assert run.good("plan", "void", "c1").endswith(f"# Of this attachment:\n{lo_up}\n")
    run.kernel.open("/run/netns/c1").change_link("lo", up=True)
    assert run.good("plan", "void", "c1") == "# No commands: an attach changes nothing.\n"
    before = run.kernel.dump()
    run.good("attach", "void", "c1")
    out = run.good("show", "weft-c1")
    assert "Equivalent commands" not in out and "No commands: nothing was changed" in out
    run.good("detach", "void", "c1")
    assert run.kernel.dump() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--subnet", "10.7.0.0/24"), "--subnet is not supported by driver null, which assigns no addresses"),
        (("--subnet", "10.7.0.0/24", "--gateway", "10.7.0.1"), "--subnet is not supported by driver null"),
        (("--ip-range", "10.7.0.0/25"), "--ip-range is not supported by driver null"),
        (("--ipv6",), "--ipv6 is not supported by driver null"),
        (("-o", "mtu=1400"), "valid options: none"),
        (("--names",), "only supported by the drivers"),
    ],
)
def test_options_that_a_driver_without_addresses_refuses(run, arguments: tuple[str, ...], words: str) -> None:
    said = run("network", "create", "-d", "null", *arguments, "void")
    assert said.code != 0 and words in said.err
    assert "physical network" not in said.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-p", "8080:80"), "driver null assigns no addresses"),
        (("--ip", "10.7.0.9"), "driver null assigns no addresses"),
        (("--mac", "02:00:00:00:00:01"), "driver null makes no interface"),
    ],
)
def test_attach_does_not_advise_what_cannot_work(run, arguments: tuple[str, ...], words: str) -> None:
    run.good("network", "create", "-d", "null", "void")
    run.container("c1")
    said = run("attach", "void", "c1", *arguments)
    assert said.code != 0 and words in said.err and "capabilities" not in said.err


def test_a_driver_without_addresses_refuses_ipam(run, weft: Weft) -> None:
    answer = weft("ADD", conf("weft", "void", {"driver": "null", "ipam": pool("10.7.0.0/24")}), run.container("c1"))
    assert "ipam is not allowed with driver null, which assigns no addresses" in answer.text


def test_podman_is_told_which_drivers_its_networks_can_have() -> None:
    asked = {"name": "void", "id": "ab" * 32, "options": {"driver": "null"}}
    with pytest.raises(ConfigProblem, match="must be one of bridge, dummy, host-device, ipvlan, macvlan, macvtap, "):
        netavark.created(asked)


def test_podman_gets_no_subnets_from_a_driver_without_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    module = modules.driver("dummy")
    monkeypatch.setattr(module, "DRIVER", module.DRIVER._replace(addresses=False))
    monkeypatch.setattr(netavark, "_tried", lambda value: None)
    asked = {"name": "void", "id": "ab" * 32, "options": {"driver": "dummy"}}
    found = netavark.created(asked)
    assert found["ipam_options"] == {"driver": "none"} and "subnets" not in found
    with pytest.raises(ConfigProblem, match="must be none: driver dummy assigns no addresses"):
        netavark.created({**asked, "ipam_options": {"driver": "host-local"}})


LOCAL = [one for one in create.drivers() if not modules.declared(one).clustered]
"""Networks of the others are the cluster's, and made by its agent."""


@pytest.mark.parametrize("driver", ["macvtap", "null", *LOCAL])
def test_every_creatable_driver_can_be_created_read_and_planned(run, weft: Weft, driver: str) -> None:
    """A driver that declares ``creatable``: ``weft network create`` without options."""
    required = {"vlan": ("-o", "vlan=5")}
    run.good("network", "create", "-d", driver, *required.get(driver, ()), "made")
    [plugin] = run.list("made")["plugins"]
    assert ("ipam" in plugin) == modules.declared(driver).addresses
    [shown] = run("network", "inspect", "made").json
    assert (shown["Driver"], shown["Internal"]) == (driver, False)
    run.container("c1")
    if modules.declared(driver).on_host:
        assert "is not the host's network namespace" in run("plan", "made", "c1").err
        assert "--internal is not supported" in run("network", "create", "-d", driver, "--internal", "closed").err
    else:
        assert "#" in run.good("plan", "made", "c1")
