"""All verbs through ``Service.handle`` on the fake kernel, without root, also in random sequences."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cni_plugin import ops
from cni_plugin.networks import attachments
from cni_plugin.ops.operation import Machine, Operation
from cni_plugin.service.executor import Watch, unwatched
from cni_plugin.service.records import Phase, Records
from cni_plugin.service.verbs import Service
from lab.calls import Answer, Steps, Weft
from lab.cases import EVERYWHERE, Conf, conf, pool
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.host import Host
from weft.kernel.interface import Kernel

RESULT = {"cniVersion": "1.1.0"}


class Killed(BaseException):
    """Simulates SIGKILL: no handler of weft may change anything afterwards."""


class Mortal(Records):
    """Records that a killed process can no longer write or remove."""

    def __init__(self, folder: str, dead: list[bool]) -> None:
        super().__init__(folder)
        self._dead = dead

    def __getattribute__(self, name: str) -> Any:
        if name in ("write", "remove", "write_network", "remove_network", "all", "read_network", "path") and self._dead:
            raise Killed
        return super().__getattribute__(name)


class Fake(Weft):
    """A fake kernel and a directory.

    ``dead`` is not empty once the current call has been killed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dead: list[bool] = []
        self.boot = 0
        self.start()

    def start(self) -> None:
        """Boot: an empty kernel and an empty /run; files on the disk are from before the boot."""
        self.boot += 1
        self.kernel = FakeKernel()
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        for path in (self.folder / "disk").rglob("*"):
            os.utime(path, (time.time() - 1000, time.time() - 1000))
        host = Host(str(self.folder / "run"), f"boot-{self.boot}", time.time() - 500)
        super().__init__(self.kernel, host)
        self.bare = self.state()

    def service(self, kernel: Kernel, watch: Watch = unwatched) -> Service:
        made = super().service(kernel, watch)
        made.records = Mortal(str(self.folder / "run"), self.dead)
        return made

    def dying(self, command: str, given: Conf, path: str, container: str, at: int) -> Answer:
        """Make the call, killed before step ``at``."""

        def die() -> None:
            self.dead.append(True)
            raise Killed

        steps = Steps(at, die)

        def watch(verb: str, operation: Operation) -> None:
            if self.dead:
                raise Killed
            steps(verb, operation)

        try:
            return self(command, given, path, container, watch=watch)
        finally:
            self.dead.clear()

    def network(self, name: str, subnet: str = "10.60.0.0/28", **rest: Any) -> Conf:
        ipam = pool(subnet, routes=EVERYWHERE, dataDir=str(self.folder / "disk"))
        return conf("bridge", name, {"bridge": f"b{name}", "isGateway": True, "ipMasq": True, "ipam": ipam, **rest})

    def state(self) -> dict[str, object]:
        """The state of the host without its sysctls: weft leaves forwarding on."""
        return {name: part for name, part in self.kernel.dump().items() if name in ("rules", self.kernel.host.id.path)}

    def leases(self, network: str) -> dict[str, str]:
        folder = self.folder / "disk" / network
        names = os.listdir(folder) if folder.is_dir() else []
        return {name: (folder / name).read_text().split()[0] for name in names if name[0] == "1"}


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    made = Fake(tmp_path)
    made.kernel.add("/c1")
    made.kernel.add("/c2")
    return made


def test_add_check_delete_collect(fake: Fake) -> None:
    red = fake.network("red")
    result = fake.add(red, "/c1")
    assert [one["name"] for one in result["interfaces"]][::2] == ["bred", "eth0"]
    assert result["ips"] == [{"address": "10.60.0.2/28", "gateway": "10.60.0.1", "interface": 2}]
    assert fake.check(red, result, "/c1") == ""
    fake.delete(red, "/c1")
    fake.delete(red, "/c1")
    assert fake.leases("red") == {}
    fake.collect(red)
    assert fake.state() == fake.bare
    assert not [path for path in (fake.folder / "run").rglob("*") if path.is_file() and path.parent.name != "ipam"]


def test_calls_leave_no_lock_of_a_network_without_shared_state(fake: Fake) -> None:
    """Such a lock would look like a leftover of a killed call."""

    def locks() -> list[str]:
        return [path.name for path in (fake.folder / "run").rglob("*.lock")]

    red = fake.network("red")
    fake.delete(red, "/c1")
    assert locks() == []
    loopback = {"cniVersion": "1.0.0", "name": "inner", "type": "loopback"}
    fake.kernel.open("/c1").change_link("lo", up=False)
    result = fake.add(loopback, "/c1", ifname="lo")
    fake.check(loopback, result, "/c1", ifname="lo")
    kept = locks()
    fake.delete(loopback, "/c1", ifname="lo")
    assert (len(kept), locks()) == (1, [])


def test_check_of_a_list_whose_last_result_is_of_another_interface(fake: Fake) -> None:
    red = fake.network("red")
    loopback = {"cniVersion": "1.0.0", "name": "red", "type": "loopback"}
    first = fake.add(loopback, "/c1")
    last = fake.add({**red, "prevResult": first}, "/c1")
    assert fake.check(loopback, last, "/c1") == ""
    assert "prevResult lacks the address" in fake.check(loopback, {**first, "ips": []}, "/c1")
    assert "prevResult lacks the address" in fake.check(red, {**last, "ips": []}, "/c1")


def test_a_container_publishes_the_same_port_from_two_networks(fake: Fake) -> None:
    """podman passes all ports to every network: the first publishes them, after its DEL the next."""

    def of(name: str, subnet: str, port: int = 80) -> Conf:
        mappings = [{"hostPort": 8080, "containerPort": port, "protocol": "tcp"}]
        made = fake.network(name, subnet, driver="bridge", portmap={})
        return {**made, "type": "weft", "runtimeConfig": {"portMappings": mappings}}

    def leads_to() -> list[str]:
        return [str(element.data[0]) for element in fake.kernel.rules.elements("ports4")]

    red, blue = of("red", "10.60.0.0/28"), of("blue", "10.61.0.0/28")
    results = {"eth0": fake.add(red, "/c1"), "eth1": fake.add(blue, "/c1", ifname="eth1")}
    assert leads_to() == ["10.60.0.2"]
    assert fake.check(red, results["eth0"], "/c1") == ""
    assert fake.check(blue, results["eth1"], "/c1", ifname="eth1") == ""
    assert "belongs to c1/eth0 on red" in fake("ADD", of("green", "10.62.0.0/28"), "/c2", "c2").text
    fake.delete(red, "/c1")
    assert leads_to() == ["10.61.0.2"]
    fake.add(red, "/c1")
    assert leads_to() == ["10.61.0.2"]
    fake.delete(blue, "/c1", ifname="eth1")
    assert leads_to() == ["10.60.0.3"]
    fake.kernel.rules.remove()
    assert "nftables lacks" in fake.check(red, results["eth0"], "/c1")
    fake.delete(red, "/c1")
    assert fake.leases("red") == fake.leases("blue") == {}


def test_a_port_is_passed_on_where_no_runtime_asks(fake: Fake) -> None:
    """weft network rm --force, weft apply and weft detach end attachments by their records."""
    mappings = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    for name, subnet, ifname in (("red", "10.60.0.0/28", "eth0"), ("blue", "10.61.0.0/28", "eth1")):
        made = fake.network(name, subnet, driver="bridge", portmap={})
        fake.add({**made, "type": "weft", "runtimeConfig": {"portMappings": mappings}}, "/c1", ifname=ifname)
    service = fake.service(fake.kernel)
    [first] = [one for one in attachments.endpoints(service) if one.network == "red"]
    attachments.detach(service, first)
    assert [str(element.data[0]) for element in fake.kernel.rules.elements("ports4")] == ["10.61.0.2"]


def test_a_plugin_twice_in_a_list(fake: Fake) -> None:
    """The second entry adds to what the first has set up, and the first DEL takes back all."""
    red = fake.network("red")
    key, of_link = "net/core/somaxconn", "net/ipv4/conf/eth0/accept_local"
    entries = [
        {**red, "type": "tuning", "sysctl": {key: "5", "net/ipv4/conf/IFNAME/accept_local": "1"}, "mtu": 1400},
        {**red, "type": "tuning", "sysctl": {key: "6"}, "mtu": 1300, "mac": "02:00:00:00:00:09"},
    ]
    box = fake.kernel.open("/c1")
    result = fake.add(red, "/c1")
    link, somaxconn = box.link("eth0"), box.sysctl(key)
    assert link is not None
    told = result
    for entry in entries:
        told = fake.add({**entry, "prevResult": told}, "/c1")
    now = box.link("eth0")
    assert now is not None and (now.mtu, now.mac) == (1300, "02:00:00:00:00:09")
    assert (box.sysctl(key), box.sysctl(of_link)) == ("6", "1")
    for entry in (red, *entries):
        assert fake.check(entry, told, "/c1") == ""
    bad = {**entries[1], "sysctl": {"net/ipv4/conf/IFNAME/rp_filter": "1", "net/no/such": "1"}}
    assert fake("ADD", {**bad, "prevResult": told}, "/c1").code == 7
    box.change_link("eth0", mtu=1299)
    assert "1299" in fake.check(entries[0], told, "/c1")
    box.change_link("eth0", mtu=1300)
    fake.delete({**entries[1], "prevResult": told}, "/c1")
    after = box.link("eth0")
    assert after is not None and (after.mtu, after.mac, box.sysctl(key)) == (link.mtu, link.mac, somaxconn)
    assert box.sysctl(of_link) == "0"
    fake.delete({**entries[0], "prevResult": told}, "/c1")
    assert fake.check(red, result, "/c1") == ""


def test_a_refused_plugin_of_a_list_takes_no_link_with_it(fake: Fake) -> None:
    """What cannot be read of its configuration does not make it the one that has made the link."""
    red = fake.network("red")
    result = fake.add(red, "/c1")
    for refused in ({"type": "firewall", "backend": "firewalld"}, {"type": "portmap", "conditionsV4": ["-m", "x"]}):
        conf = {**red, **refused, "prevResult": result}
        assert fake("ADD", conf, "/c1").code == 2
        assert fake("GC", {**conf, "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]}).code == 2
        fake.delete(conf, "/c1")
        assert fake.check(red, result, "/c1") == ""


def test_a_second_entry_that_fails_leaves_the_first(fake: Fake) -> None:
    red = fake.network("red")
    tuning = {**red, "type": "tuning", "sysctl": {"net/core/somaxconn": "5"}}
    result = fake.add(red, "/c1")
    told = fake.add({**tuning, "prevResult": result}, "/c1")
    for at in range(3):
        second = {**tuning, "sysctl": {"net/ipv4/conf/IFNAME/accept_local": "1"}, "mtu": 1300, "prevResult": told}
        assert fake("ADD", second, "/c1", watch=Steps(at)).ok is (at == 2)
        assert fake.check(tuning, told, "/c1") == ""
    fake.delete(tuning, "/c1")
    assert fake.kernel.open("/c1").sysctl("net/core/somaxconn") == "4096"
    assert fake.check(red, result, "/c1") == ""


def test_weft_without_a_driver_follows_another_plugin(fake: Fake) -> None:
    """Also one of weft; STATUS and GC come to each plugin of the list, without prevResult."""
    red = {**fake.network("red", driver="bridge"), "type": "weft"}
    mappings = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    portmap = {"cniVersion": "1.1.0", "name": "red", "type": "weft", "portmap": {}}
    assert fake("STATUS", portmap).ok and fake("STATUS", {**portmap, "ipMasq": True}).ok
    answer = fake("ADD", portmap, "/c1")
    assert answer.code == 7 and "must follow another plugin" in answer.text
    for lone in ({"cniVersion": "1.1.0", "name": "red", "type": "weft"}, {**portmap, "ipam": red["ipam"]}):
        for command in ("STATUS", "ADD"):
            answer = fake(command, lone, "/c1")
            assert answer.code == 7 and "driver is missing" in answer.text
    result = fake.add(red, "/c1")
    told = fake.add({**portmap, "prevResult": result, "runtimeConfig": {"portMappings": mappings}}, "/c1")
    assert [str(element.data[0]) for element in fake.kernel.rules.elements("ports4")] == ["10.60.0.2"]
    assert fake.check(red, told, "/c1") == "" and fake.check(portmap, told, "/c1") == ""
    fake.collect(red, ("c1", "eth0"))
    fake.collect(portmap, ("c1", "eth0"))
    assert fake.check(portmap, told, "/c1") == ""
    fake.delete({**portmap, "prevResult": told}, "/c1")
    fake.delete({**red, "prevResult": told}, "/c1")
    fake.collect(red)
    assert fake.state() == fake.bare and fake.leases("red") == {}


def test_a_mac_address_that_a_sibling_has_is_refused_by_its_name(fake: Fake) -> None:
    """Its link-local address would be one element for both; nothing is left of the second."""
    ranges = [[{"subnet": "10.60.0.0/28"}], [{"subnet": "fd60::/64"}]]
    ipam = {"type": "host-local", "ranges": ranges, "dataDir": str(fake.folder / "disk")}
    network = conf("bridge", "red", {"bridge": "bred", "isGateway": True, "driver": "bridge", "ipam": ipam})
    red = {**network, "type": "weft", "runtimeConfig": {"mac": "02:00:00:00:00:07"}}
    fake.add(red, "/c1")
    before = fake.state()
    answer = fake("ADD", red, "/c2", "c2")
    assert not answer.ok
    assert "the MAC address 02:00:00:00:00:07 on bred belongs to c1/eth0 on red" in answer.text
    assert fake.state() == before


@pytest.mark.parametrize(
    ("first", "second", "protocol", "refused"),
    [
        ("", "127.0.0.1", "tcp", "every address"),
        ("127.0.0.1", "", "tcp", "127.0.0.1"),
        ("0.0.0.0", "192.0.2.1", "tcp", "every address"),
        ("192.0.2.1", "0.0.0.0", "udp", "192.0.2.1"),
        ("", "::1", "tcp", "every address"),
        ("fd00::9", "::", "tcp", "fd00::9"),
        ("::", "127.0.0.1", "tcp", ""),
        ("127.0.0.1", "192.0.2.1", "tcp", ""),
        ("0.0.0.0", "::1", "tcp", ""),
    ],
)
def test_a_port_of_every_address_includes_that_of_one(
    fake: Fake, first: str, second: str, protocol: str, refused: str
) -> None:
    """Docker refuses both orders as "port is already allocated"; hostPort 8081 is the second of a range."""

    def of(name: str, host: str, protocol: str = "tcp") -> Conf:
        mappings = [
            {"hostPort": port, "containerPort": 80, "protocol": protocol, "hostIP": host}
            for port in ((8080, 8081) if name == "red" else (8081,))
        ]
        number = {"red": 60, "blue": 61}[name]
        ranges = [[{"subnet": f"10.{number}.0.0/28"}], [{"subnet": f"fd{number}::/64"}]]
        ipam = {"type": "host-local", "ranges": ranges, "dataDir": str(fake.folder / "disk")}
        network = conf("bridge", name, {"bridge": f"b{name}", "isGateway": True, "driver": "bridge", "ipam": ipam})
        return {**network, "type": "weft", "portmap": {}, "runtimeConfig": {"portMappings": mappings}}

    red = of("red", first, protocol)
    fake.add(red, "/c1")
    before = fake.state()
    answer = fake("ADD", of("blue", second, protocol), "/c2", "c2")
    assert answer.ok is not bool(refused)
    if refused:
        assert f"host port 8081/{protocol} on {refused} belongs to c1/eth0 on red" in answer.text
        assert fake.state() == before
        # Podman passes all ports to each network of the container.
        assert fake("ADD", of("blue", second, protocol), "/c1", "c1", ifname="eth1").ok
        assert fake("ADD", of("blue", second, "sctp"), "/c2", "c2").ok


def test_a_second_add_is_refused_and_changes_nothing(fake: Fake) -> None:
    red = fake.network("red")
    result = fake.add(red, "/c1")
    assert fake("ADD", red, "/c1").code == 101
    assert fake("ADD", red, "/c2").code == 101
    assert fake.check(red, result, "/c1") == ""
    fake.delete(red, "/c2")
    assert fake.check(red, result, "/c1") == ""


def test_check_without_an_add(fake: Fake) -> None:
    answer = fake("CHECK", {**fake.network("red"), "prevResult": RESULT}, "/c1")
    assert (answer.code, "is not attached" in answer.text) == (3, True)


def test_check_in_another_namespace(fake: Fake) -> None:
    red = fake.network("red")
    result = fake.add(red, "/c1")
    assert "/c1" in fake.check(red, result, "/c2")


def test_check_compares_the_given_prev_result(fake: Fake) -> None:
    red = fake.network("red")
    result = fake.add(red, "/c1")
    assert "10.60.0.2" in fake.check(red, {**result, "ips": []}, "/c1")


def test_gc_keeps_valid_attachments_and_other_networks(fake: Fake) -> None:
    red, blue = fake.network("red"), fake.network("blue", "10.61.0.0/28")
    kept, gone, other = fake.add(red, "/c1", "a"), fake.add(red, "/c2", "b"), fake.add(blue, "/c2", "b", "eth1")
    fake.collect(red, ("a", "eth0"))
    assert fake.check(red, kept, "/c1", "a") == ""
    assert fake.check(blue, other, "/c2", "b", "eth1") == ""
    assert "not attached" in fake.check(red, gone, "/c2", "b")
    assert set(fake.leases("red").values()) == {"a"}


def test_gc_without_valid_attachments_frees_nothing(fake: Fake) -> None:
    red = fake.network("red")
    result = fake.add(red, "/c1")
    assert fake("GC", red).code == 7
    assert fake.check(red, result, "/c1") == ""


def test_status_and_add_report_an_exhausted_pool(fake: Fake) -> None:
    red = fake.network("red")
    assert fake("STATUS", red).ok
    for number in range(13):
        fake.kernel.add(f"/n{number}")
        fake.add(red, f"/n{number}", f"n{number}")
    assert fake("STATUS", red).code == 50
    before = fake.state()
    answer = fake("ADD", red, "/c1")
    assert (answer.code, "on red" in answer.text) == (100, True), answer
    assert fake.state() == before


def test_preview_changes_nothing_and_lists_the_operations_of_add(fake: Fake) -> None:
    red = fake.network("red")
    record = fake.preview(red, "/c1")
    assert fake.state() == fake.bare
    assert fake.leases("red") == {}
    steps = Steps()
    result = fake("ADD", red, "/c1", watch=steps).document
    done = [operation for _, operation in steps.taken]
    # The lease operation differs: the record contains the addresses that were reserved.
    assert done[1:] == [*(one for one in record.shared if one in done), *record.operations[1:]]
    assert [str(ip.address) for ip in record.result.ips] == [ip["address"] for ip in result["ips"]]


def test_the_record_is_kept_if_the_rollback_is_aborted(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an unexpected exception, DEL removes the rest with the help of the record."""
    red = fake.network("red")

    def broken(this: object, machine: Machine) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(ops.Up, "apply", broken)
        patched.setattr(ops.Veth, "undo", broken)
        assert fake("ADD", red, "/c1").code == 999
    records = list(Records(str(fake.folder / "run")).all())
    assert [record.phase for record in records] == [Phase.ADDING]
    fake.delete(red, "/c1")
    fake.collect(red)
    assert fake.state() == fake.bare


def test_a_reboot_frees_the_leases_of_dead_containers(fake: Fake) -> None:
    red = fake.network("red")
    first = fake.add(red, "/c1")
    fake.start()
    fake.kernel.add("/c1")
    again = fake.add(red, "/c1")
    assert fake.check(red, again, "/c1") == ""
    assert set(fake.leases("red")) == {again["ips"][0]["address"].split("/")[0]}
    assert first["interfaces"][2]["name"] == "eth0"


class Life(RuleBasedStateMachine):
    """Four containers on two networks: ADD, CHECK, DEL and GC, kills at any step, and reboots."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="weft-life-")
        self.fake = Fake(Path(self.folder))
        self.confs = [
            self.fake.network("red"),
            self.fake.network("blue", "10.61.0.0/28", bridge="bred", isGateway=False),
        ]
        self.results: dict[tuple[int, int], Any] = {}
        self.living: set[int] = set()
        for container in range(4):
            self.revive(container)

    def teardown(self) -> None:
        try:
            for container in range(4):
                self.revive(container)
                for network in (0, 1):
                    self.delete(network, container)
            for network in (0, 1):
                self.collect(network)
            assert self.fake.state() == self.fake.bare
            assert self.fake.leases("red") == self.fake.leases("blue") == {}
            assert not list(Path(self.folder, "run").rglob("*.json"))
        finally:
            shutil.rmtree(self.folder)

    def _call(self, command: str, network: int, container: int, at: int = -1) -> Answer:
        given = self.confs[network]
        return self.fake.dying(command, given, f"/c{container}", f"c{container}", at)

    networks, containers, steps = st.integers(0, 1), st.integers(0, 3), st.integers(0, 24)

    @rule(network=networks, container=containers)
    def add(self, network: int, container: int) -> None:
        answer = self._call("ADD", network, container)
        there = (network, container) in self.results
        other = (1 - network, container) in self.results
        if container not in self.living:
            assert answer.code == 8
        elif there:
            assert answer.code == 101
        elif answer.ok:
            assert not other
            self.results[network, container] = answer.document
        else:
            # eth0 belongs to the other network, attached or left over from a killed call.
            assert answer.code == 101, answer

    @rule(network=networks, container=containers, at=steps)
    def add_and_be_killed(self, network: int, container: int, at: int) -> None:
        if (network, container) in self.results:
            return
        answer = self._call("ADD", network, container, at)
        if answer.ok:
            self.results[network, container] = answer.document

    @rule(network=networks, container=containers)
    def delete(self, network: int, container: int) -> None:
        assert self._call("DEL", network, container).ok
        self.results.pop((network, container), None)
        assert f"c{container}" not in self.fake.leases(self.confs[network]["name"]).values()

    @rule(network=networks, container=containers, at=steps)
    def delete_and_be_killed(self, network: int, container: int, at: int) -> None:
        self.results.pop((network, container), None)
        self._call("DEL", network, container, at)

    @rule(network=networks, container=containers)
    def check(self, network: int, container: int) -> None:
        result = self.results.get((network, container))
        if result is not None:
            assert self.fake.check(self.confs[network], result, f"/c{container}", f"c{container}") == ""

    @rule(network=networks)
    def collect(self, network: int) -> None:
        self.fake.collect(self.confs[network], *[(f"c{one}", "eth0") for net, one in self.results if net == network])
        wanted = {f"c{one}" for net, one in self.results if net == network}
        assert set(self.fake.leases(self.confs[network]["name"]).values()) == wanted

    @rule(container=containers)
    def die(self, container: int) -> None:
        if container in self.living:
            self.fake.kernel.remove(f"/c{container}")
            self.living.discard(container)
            for network in (0, 1):
                self.results.pop((network, container), None)

    @rule(container=containers)
    def revive(self, container: int) -> None:
        if container not in self.living:
            self.fake.kernel.add(f"/c{container}")
            self.living.add(container)

    @rule()
    def reboot(self) -> None:
        self.fake.start()
        self.results, self.living = {}, set()

    @rule()
    def flush(self) -> None:
        """The whole ruleset is flushed, and all attachments are deleted."""
        self.fake.kernel.rules.remove()
        for network, container in list(self.results):
            self.delete(network, container)

    @invariant()
    def no_address_has_two_owners(self) -> None:
        owners: dict[str, int] = {}
        for container in self.living:
            space = self.fake.kernel.open(f"/c{container}")
            for address in space.addresses("eth0") if space.link("eth0") else ():
                if not address.is_link_local:
                    assert str(address.ip) not in owners, (address, container, owners)
                    owners[str(address.ip)] = container
                    held = self.fake.leases("red") | self.fake.leases("blue")
                    assert held.get(str(address.ip)) == f"c{container}", (address, held)
            space.close()


Life.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLife = Life.TestCase
