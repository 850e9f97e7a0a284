"""Plans and calls of macvlan, ipvlan, vlan, dummy, tap, host-device and host on the fake kernel."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cni_plugin.ops import ContainerLink, Ifb, LentLink, LinkAddress, LinkRoute, Setting, Up, devices
from cni_plugin.ops.operation import Operation
from cni_plugin.plan.facts import KernelFacts
from cni_plugin.plan.plan import Device
from lab.calls import Afterwards, Steps, Weft
from weft import identity
from weft.errors import Conflict
from weft.kernel.fake.kernel import FakeKernel, FakeNamespace
from weft.kernel.host import Host
from weft.kernel.interface import VethPeer
from weft.kernel.values import KernelRoute
from weft.types import Attachment, Route, Side

BOX = "/run/netns/c1"
MAC = "02:00:00:00:00:01"
IPAM = {
    "type": "static",
    "addresses": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}, {"address": "fd00::5/64"}],
    "routes": [{"dst": "0.0.0.0/0"}],
    "dns": {"nameservers": ["10.1.0.53"]},
}


class Lab:
    """A fake host with an uplink ``up0`` (default route), another link ``up1``, and a container."""

    def __init__(self, folder: Path, lacks: tuple[str, ...] = ()) -> None:
        self.kernel = FakeKernel(lacks=lacks)
        host = self.kernel.host
        host.add_link("up0", "veth", mac=MAC, mtu=1450, up=True, peer=VethPeer("wire", up=True))
        host.add_link("up1", "veth", mac="02:00:00:00:00:02", up=True, peer=VethPeer("wire1", up=True))
        host.add_address("up0", IPv4Interface("192.0.2.7/24"))
        host.add_address("up0", IPv6Interface("2001:db8::7/64"))
        for link, priority in (("up1", 200), ("up0", 100)):
            host.add_route(KernelRoute(Route(IPv4Network("0.0.0.0/0"), priority=priority), link, protocol=4))
        self.box = self.kernel.add(BOX)
        self.weft = Weft(self.kernel, Host(str(folder), "boot", 0.0))

    def plan(self, conf: dict[str, Any]) -> tuple[Operation, ...]:
        return self.weft.preview(conf, BOX).operations

    def refused(self, conf: dict[str, Any]) -> str:
        before = self.kernel.dump()
        answer = self.weft("ADD", conf, BOX)
        assert answer.code == 7, answer
        assert self.kernel.dump() == before
        return answer.text


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def conf(plugin: str, *, ipam: dict[str, Any] | None = IPAM, **keys: Any) -> dict[str, Any]:
    found = {"cniVersion": "1.1.0", "name": "net", "type": plugin, **keys}
    return found if ipam is None else {**found, "ipam": ipam}


def kinds(operations: tuple[Operation, ...]) -> list[str]:
    return [type(one).__name__ for one in operations]


def made(lab: Lab, given: dict[str, Any]) -> ContainerLink:
    first = lab.plan(given)[0]
    assert isinstance(first, ContainerLink)
    return first


def test_a_macvlan_plan_has_the_link_its_addresses_and_routes(lab: Lab) -> None:
    plan = lab.plan(conf("macvlan", bcqueuelen=77))
    digest = identity.attachment_digest(Attachment("net", "c1", "eth0", "macvlan"))
    assert plan[0] == ContainerLink(
        name="eth0",
        type="macvlan",
        passing=identity.temporary_link(Attachment("net", "c1", "eth0", "macvlan")),
        alias=f"weft:{digest}:c1/eth0 on net",
        mac=identity.mac(f"boot/{lab.kernel.host.id.inode}", "container", "net", "c1", "eth0"),
        mtu=1450,
        parent="up0",
        side=Side.HOST,
        options=(("macvlan_mode", "bridge"), ("macvlan_bc_queue_len", 77)),
    )
    rest = [one for one in plan[1:] if not isinstance(one, Setting)]
    assert kinds(tuple(rest)) == ["LinkAddress", "LinkAddress", "Up", "LinkRoute"]
    assert [one.address for one in rest if isinstance(one, LinkAddress)] == [
        IPv4Interface("10.1.0.5/24"),
        IPv6Interface("fd00::5/64"),
    ]
    assert all(one.on_link in ((Side.CONTAINER, "eth0"), None) for one in rest)
    assert isinstance(rest[2], Up) and isinstance(rest[3], LinkRoute)
    keys = {one.key for one in plan if isinstance(one, Setting)}
    assert {"net/ipv4/conf/eth0/arp_notify", "net/ipv6/conf/eth0/ndisc_notify"} <= keys


def test_operations_as_commands(lab: Lab) -> None:
    first, second = made(lab, conf("macvlan", master="up1", mtu=1400)).commands(BOX)
    assert first.startswith("ip link add weft") and f"netns {BOX} type macvlan mode bridge" in first
    assert "link up1 " in first and " mtu 1400 " in first
    assert f"nsenter --net={BOX} ip link set weft" in second and " name eth0 alias 'weft:" in second


@pytest.mark.parametrize(
    ("given", "kind", "mac", "options"),
    [
        (conf("ipvlan", mode="l3s"), "ipvlan", MAC, (("ipvlan_mode", 2),)),
        (conf("ipvlan"), "ipvlan", MAC, (("ipvlan_mode", 0),)),
        (conf("ipvlan", master=""), "ipvlan", MAC, (("ipvlan_mode", 0),)),
        (conf("vlan", vlanId=4094), "vlan", MAC, (("vlan_id", 4094),)),
        (conf("vlan"), "vlan", MAC, (("vlan_id", 0),)),
        (conf("macvlan", mode="passthru"), "macvlan", MAC, (("macvlan_mode", "passthru"),)),
        (conf("weft", driver="vlan", vlanId=3), "vlan", MAC, (("vlan_id", 3),)),
    ],
)
def test_options_of_links_on_a_master(lab: Lab, given: dict[str, Any], kind: str, mac: str, options: Any) -> None:
    link = made(lab, given)
    assert (link.type, link.mac, link.mtu, link.parent, link.options) == (kind, mac, 1450, "up0", options)


def test_a_master_in_the_container(lab: Lab) -> None:
    lab.box.add_link("inner", "veth", mtu=1300, peer=VethPeer("other"))
    link = made(lab, conf("macvlan", master="inner", linkInContainer=True))
    assert (link.parent, link.side, link.mtu) == ("inner", Side.CONTAINER, 1300)
    assert "inner" in lab.refused(conf("macvlan", master="inner"))
    assert "default route" in lab.refused(conf("vlan", linkInContainer=True))


@pytest.mark.parametrize("plugin", ["macvlan", "ipvlan", "vlan"])
def test_the_mtu_is_at_most_that_of_the_master(lab: Lab, plugin: str) -> None:
    assert made(lab, conf(plugin, mtu=1449)).mtu == 1449
    assert "mtu 1451 must be between 0 and 1450" in lab.refused(conf(plugin, mtu=1451))
    text = lab.refused(conf(plugin, master="up0.12"))
    assert "up0.12" in text and "ip link add link up0 name up0.12 type vlan id 12" in text


def test_dummy_and_tap_need_no_master(lab: Lab) -> None:
    dummy = made(lab, conf("dummy"))
    assert (dummy.type, dummy.parent, dummy.mtu, dummy.options) == ("dummy", "", 1500, ())
    lab.box.add_link("br", "bridge")
    tap = made(lab, conf("tap", ipam=None, multiQueue=True, owner=1, group=2, mtu=1300, mac=MAC, bridge="br"))
    assert (tap.type, tap.mac, tap.mtu, tap.master) == ("tun", MAC, 1300, "br")
    assert tap.options == (("tun_type", 2), ("tun_multi_queue", 1), ("tun_owner", 1), ("tun_group", 2))


def test_host_device_moves_a_link_and_records_its_former_state(lab: Lab) -> None:
    lab.kernel.host.change_link("up1", alias="mine")
    loan = lab.plan(conf("host-device", device="up1"))[0]
    digest = identity.attachment_digest(Attachment("net", "c1", "eth0", "host-device"))
    assert isinstance(loan, LentLink)
    assert (loan.name, loan.container, loan.before, loan.mac) == ("up1", "eth0", "mine", "02:00:00:00:00:02")
    assert loan.alias == f"weft-device:{digest}:up1:lent to c1/eth0 on net"
    assert identity.mark_digest(loan.alias) == ""  # or GC would delete a link of the host
    by_mac = lab.plan(conf("host-device", hwaddr="02-00-00-00-00-02"))[0]
    assert by_mac == loan


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        ({"kernelpath": "/sys/devices/pci0000:00/x"}, "/sys/devices/pci0000:00/x"),
        ({"pciBusID": "0000:00:1f.6"}, "0000:00:1f.6"),
        ({"pciBusID": "0000:00:1f.6", "runtimeConfig": {"deviceID": "mlx5_core.sf.4"}}, "mlx5_core.sf.4"),
    ],
)
def test_hardware_by_its_place(lab: Lab, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], place: str) -> None:
    asked = []

    def device(self: KernelFacts, path: str) -> Device:
        asked.append(path)
        return Device("e1000", ("gone0", "up1"))

    monkeypatch.setattr(KernelFacts, "device", device)
    record = lab.weft.preview(conf("host-device", **keys), BOX)
    assert set(asked) == {place}
    assert isinstance(record.operations[0], LentLink) and record.operations[0].name == "up1"
    assert record.result.interfaces[0].pci_id == ("" if "kernelpath" in keys else place)


def _lent(lab: Lab, kind: str) -> LentLink:
    """A link that was lent, of the host again with its name there: that of its own."""
    lab.weft.add(conf("host-device", device="up1"), BOX)
    [record] = lab.weft.service(lab.kernel).records.all()
    lent = next(one for one in record.operations if isinstance(one, LentLink))
    lab.box.change_link("eth0", up=False, new_name="up1", namespace=lab.kernel.host)
    lab.kernel.host.links_by_name["up1"].kind = kind
    return replace(lent, type=kind)


@pytest.mark.parametrize(
    ("kind", "change", "is_same"),
    [
        ("", {}, True),
        ("veth", {}, True),
        ("", {"alias": ""}, True),
        ("veth", {"alias": ""}, False),
        ("", {"alias": "", "mac": "02:00:00:00:00:99"}, False),
        ("", {"alias": "another"}, False),
        ("", {"up": True}, False),
        ("", {"master": "br0"}, False),
        ("", {"address": "192.0.2.77/24"}, False),
    ],
    ids=str,
)
def test_only_the_link_that_was_lent_is_lent_again(lab: Lab, kind: str, change: dict[str, Any], is_same: bool) -> None:
    """Not another one that has its name now, nor one that the host uses."""
    lent = _lent(lab, kind)
    host = lab.kernel.host
    host.add_link("br0", "bridge", up=True)
    if "address" in change:
        host.add_address("up1", IPv4Interface(change["address"]))
    else:
        host.change_link("up1", **change)
    machine = lab.weft.service(lab.kernel).machine(lab.box)
    before = lab.kernel.dump()
    assert lent.is_repairable(machine) is is_same
    if is_same:
        lent.repair(machine)
        assert lent.mismatch(machine) is None and host.link("up1") is None
    else:
        with pytest.raises(Conflict, match="up1 on the host is not the link that was lent"):
            lent.repair(machine)
        assert lab.kernel.dump() == before


@pytest.mark.parametrize("kind", ["", "veth"])
@pytest.mark.parametrize(
    "changes",
    [
        [{"alias": "mine"}],
        [{"alias": ""}, {"new_name": "x0"}],
        [{"new_name": "x0"}, {"mac": "02:00:00:00:00:77"}],
        [{"alias": "", "mtu": 1300}, {"namespace": "nested"}],
        [{"new_name": "x0"}, {"namespace": "nested"}],
        [{"namespace": "host", "new_name": "dev5"}],
    ],
    ids=str,
)
def test_a_container_does_not_keep_a_lent_device(lab: Lab, kind: str, changes: list[dict[str, Any]]) -> None:
    """Its processes may change all of the link, and move it on; a virtual one they might as well delete."""
    host = lab.kernel.host
    host.links_by_name["up1"].kind = kind
    host.change_link("up1", up=False)
    before = host.dump()["up1"]
    lab.weft.add(conf("host-device", device="up1"), BOX)
    places = {"nested": lab.kernel.add("/run/netns/nested"), "host": host}
    name, alias = "eth0", True
    lab.box.change_link(name, up=False)
    for change in changes:
        to = places.get(change.get("namespace", ""))
        lab.box.change_link(name, **{**change, **({"namespace": to} if to is not None else {})})
        name, alias = change.get("new_name", name), alias and "alias" not in change
    lab.weft.delete(conf("host-device", device="up1"), BOX)
    moved = any(change.get("namespace") == "nested" for change in changes)
    kept = (moved and (kind or not alias)) or (kind and not alias and name != "eth0")
    assert (host.link("up1") is None) is bool(kept)
    if not kept:
        assert host.dump()["up1"] == before
    assert not lab.box.links_by_name.keys() - {"lo", *([name] if kept and not moved else [])}


def test_a_link_of_another_kind_is_not_taken_for_the_lent_one(lab: Lab) -> None:
    """The host would have a link that the container has made, under the device's name, and not its device."""
    lab.kernel.host.links_by_name["up1"].kind = ""
    lab.weft.add(conf("host-device", device="up1"), BOX)
    mark = lab.box.links_by_name["eth0"].alias
    lab.box.change_link("eth0", up=False, new_name="hidden", alias="")
    lab.box.add_link("eth0", "veth", alias=mark, peer=VethPeer("trap"))
    lab.weft.delete(conf("host-device", device="up1"), BOX)
    link = lab.kernel.host.link("up1")
    assert link is not None and (link.kind, link.mac, link.alias) == ("", "02:00:00:00:00:02", "")
    assert sorted(lab.box.links_by_name) == ["eth0", "lo", "trap"]


@pytest.mark.parametrize("late", [True, False])
def test_a_device_that_the_kernel_returns_late(
    lab: Lab, late: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A namespace in the container, with the device, has ended just before."""
    lab.kernel.host.links_by_name["up1"].kind = ""
    lab.weft.add(conf("host-device", device="up1"), BOX)
    nested, clock = lab.kernel.add("/run/netns/nested"), [0.0]
    lab.box.change_link("eth0", up=False, namespace=nested)
    monkeypatch.setattr(lab.kernel, "others", lambda: (BOX,))

    def sleep(pause: float) -> None:
        clock[0] += pause
        if late and nested.link("eth0") is not None:
            nested.change_link("eth0", namespace=lab.kernel.host, new_name="dev9")

    monkeypatch.setattr(devices, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    lab.weft.delete(conf("host-device", device="up1"), BOX)
    assert (lab.kernel.host.link("up1") is not None) is late and 0 < clock[0] < 3
    assert ("up1 is neither in the container nor on the host" in capfd.readouterr().err) is not late


def test_an_ifb_link_that_another_program_made_is_left(lab: Lab) -> None:
    ifb = Ifb("ifb0", "weft:0123456789abcdef:c1", "02:00:00:00:00:05", 1500)
    machine = lab.weft.service(lab.kernel).machine(lab.box)
    lab.kernel.host.add_link("ifb0", "ifb", mac="02:00:00:00:00:06", up=True)
    assert ifb.mismatch(machine) == "the host's link ifb0 is not the one that was made"
    assert ifb.lost(machine) == ifb.creates and not ifb.is_repairable(machine)


@pytest.mark.parametrize("driver", ["vfio-pci", "uio_pci_generic", "igb_uio"])
def test_devices_with_a_userspace_driver_are_not_moved(lab: Lab, monkeypatch: pytest.MonkeyPatch, driver: str) -> None:
    monkeypatch.setattr(KernelFacts, "device", lambda self, place: Device(driver))
    given = conf("host-device", pciBusID="0000:00:1f.6")
    answer = lab.weft.add(given, BOX)
    assert "interfaces" not in answer and [ip["address"] for ip in answer["ips"]] == ["10.1.0.5/24", "fd00::5/64"]
    assert lab.weft.check(given, answer, BOX) == ""
    lab.weft.delete(given, BOX)


def test_a_device_is_found_in_sysfs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lab: Lab) -> None:
    """PCI devices by bus address, virtio ones a level below; nothing outside /sys/devices."""
    look = KernelFacts(lab.kernel.host, None)
    assert look.device("/etc") is None
    assert look.device("/sys/devices/../../etc") is None
    assert look.device("no-such-device") is None
    real = tmp_path / "sys/devices/0000:00:01.0"
    (real / "virtio0/net/eth7").mkdir(parents=True)
    (tmp_path / "virtio-pci").mkdir()
    (real / "driver").symlink_to(tmp_path / "virtio-pci")
    monkeypatch.setattr("cni_plugin.plan.facts._DEVICES", f"{tmp_path}/sys/devices/")
    assert look.device(str(real)) == Device("virtio-pci", ("eth7",))
    (real / "net/eth8").mkdir(parents=True)
    assert look.device(str(real)) == Device("virtio-pci", ("eth8",))


def test_the_host_driver_plans_nothing(lab: Lab) -> None:
    place = lab.kernel.host.id.path
    given = {**conf("weft", ipam=None, driver="host"), "portmap": {}, "ipMasq": True}
    before = lab.kernel.dump()
    answer = lab.weft.add(given, place)
    assert [one["name"] for one in answer["interfaces"]] == ["up0"]
    assert [ip["address"] for ip in answer["ips"]] == ["192.0.2.7/24", "2001:db8::7/64"]
    assert lab.weft.check(given, answer, place) == ""
    assert lab.weft("ADD", given, BOX).code == 8
    lab.weft.delete(given, place)
    assert lab.kernel.dump() == before
    assert lab.weft("ADD", conf("macvlan"), place).code == 8


@pytest.mark.parametrize(
    "given",
    [
        conf("macvlan"),
        conf("ipvlan", mode="l3"),
        conf("vlan", vlanId=5),
        conf("dummy"),
        conf("tap", owner=3),
        conf("host-device", device="up1"),
    ],
    ids=lambda given: given["type"],
)
def test_a_fault_at_every_step_leaves_nothing(lab: Lab, tmp_path: Path, given: dict[str, Any]) -> None:
    """Then an ADD succeeds: dns of IPAM is kept, CHECK passes, DEL works twice."""
    if given["type"] == "host-device":  # DEL leaves it down: start from that state
        lab.kernel.host.change_link("up1", up=False)
    before = lab.kernel.dump()
    steps = Steps()
    assert lab.weft("ADD", given, BOX, watch=steps).ok
    lab.weft.delete(given, BOX)
    assert lab.kernel.dump() == before
    for at in range(len(steps.taken)):
        for fault in (Steps(at), Afterwards(at)):
            answer = lab.weft("ADD", given, BOX, watch=fault)
            assert answer.code == 103, (at, answer)
            assert lab.kernel.dump() == before, (at, steps.taken[at])
    answer = lab.weft("ADD", given, BOX)
    assert answer.document["dns"] == {"nameservers": ["10.1.0.53"]}
    assert [ip["interface"] for ip in answer.document["ips"]] == [0, 0]
    assert lab.weft.check(given, answer.document, BOX) == ""
    lab.weft.delete(given, BOX)
    lab.weft.delete(given, BOX)
    assert lab.kernel.dump() == before


def test_a_missing_kernel_module_is_named(tmp_path: Path) -> None:
    lab = Lab(tmp_path, lacks=("ipvlan",))
    answer = lab.weft("ADD", conf("ipvlan"), BOX)
    assert answer.code == 102 and "eth0" in answer.text and "module ipvlan" in answer.text


def test_del_removes_a_link_that_a_killed_add_left_under_its_temporary_name(lab: Lab) -> None:
    given = conf("vlan", vlanId=5)
    before = lab.kernel.dump()
    lab.weft.add(given, BOX)
    box = lab.box
    assert isinstance(box, FakeNamespace)
    passing = identity.temporary_link(Attachment("net", "c1", "eth0", "vlan"))
    box.change_link("eth0", new_name=passing, alias="")
    lab.weft.delete(given, BOX)
    assert lab.kernel.dump() == before


def test_del_keeps_a_link_of_that_name_without_our_mark(lab: Lab) -> None:
    given = conf("macvlan")
    lab.weft.add(given, BOX)
    lab.box.delete_link("eth0")
    lab.box.add_link("eth0", "macvlan", parent="up0", parent_namespace=lab.kernel.host)
    assert "not the one" in lab.weft.check(given, {}, BOX)
    lab.weft.delete(given, BOX)
    assert lab.box.link("eth0") is not None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (conf("macvlan", mode="l2"), "mode"),
        (conf("macvlan", mode="passthru", mac="02:00:00:00:00:09"), "passthru"),
        (conf("ipvlan", mode="bridge"), "mode"),
        (conf("ipvlan", ipam=None), "ipam.type is missing"),
        (conf("vlan", vlanId=4095), "vlanId 4095"),
        (conf("vlan", vlanId="5"), "vlanId"),
        (conf("vlan", ipam=None), "ipam.type is missing"),
        (conf("dummy", ipam=None), "ipam.type is missing"),
        (conf("tap", bridge="nope"), "nope"),
        (conf("host-device"), "specify either"),
        (conf("host-device", device="nope"), "nope"),
        (conf("macvlan", ipam={"type": "static"}), "missing IP config"),
    ],
    ids=lambda value: value if isinstance(value, str) else value["type"],
)
def test_invalid_configurations_are_refused_before_anything_changes(
    lab: Lab, given: dict[str, Any], words: str
) -> None:
    assert words in lab.refused(given)
