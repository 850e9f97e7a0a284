"""DEL removes everything of its attachment and nothing else, whatever state it finds."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.calls import Weft, leases
from lab.cases import CASES, EVERYWHERE, Case, Conf, conf, pool
from lab.commands import run
from lab.ground import Ground, held_twice, rest
from lab.host import Host
from weft import identity
from weft.types import Attachment

BY_NAME = {case.name: case for case in CASES}
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
WHOLE, PTP, CHAINED = BY_NAME["weft-everything"], BY_NAME["ptp-dual"], BY_NAME["portmap-chained"]

Break = Callable[[Host, Case], object]


def _host_link(case: Case) -> str:
    return identity.host_link(Attachment(case.conf["name"], "c1", "eth0", case.conf["type"]))


def _renamed(host: Host, case: Case) -> None:
    name = _host_link(case)
    if case.conf["type"] != "loopback" and not case.first:
        host.run("ip", "link", "set", name, "down")
        host.run("ip", "link", "set", name, "name", "stranger")


def _on_the_host(*argv: str) -> Break:
    return lambda host, case: host.run(*argv, check=False)


def _age(network: str) -> None:
    """Leases without a record are kept for a minute: a foreign host-local writes no records."""
    for address in leases(network):
        os.utime(Path("/var/lib/cni/networks", network, address), (time.time() - 120, time.time() - 120))


BREAKS: dict[str, Break] = {
    "nothing": lambda host, case: None,
    "namespace gone": lambda host, case: host.remove_container(),
    "bridge gone": _on_the_host("ip", "link", "delete", "wbr0"),
    "records wiped": lambda host, case: shutil.rmtree("/run/weft"),
    "leases wiped": lambda host, case: shutil.rmtree("/var/lib/cni", ignore_errors=True),
    "all state wiped": lambda host, case: (shutil.rmtree("/run/weft"), shutil.rmtree("/var/lib/cni", True)),
    "rules flushed": _on_the_host("nft", "flush", "ruleset"),
    "table deleted": _on_the_host("nft", "delete", "table", "inet", "weft"),
    "set deleted": _on_the_host("nft", "flush", "chain", "inet", "weft", "nat_postrouting"),
    "host link deleted": lambda host, case: host.run("ip", "link", "delete", _host_link(case), check=False),
    "host link renamed": _renamed,
    "container link deleted": lambda host, case: host.inside("c1", "ip", "link", "delete", "eth0", check=False),
    "host link off the bridge": lambda host, case: host.run("ip", "link", "set", _host_link(case), "nomaster"),
}


@pytest.mark.parametrize("way", ("DEL", "DEL with the result", "DEL without a namespace", "GC"))
@pytest.mark.parametrize("broken", BREAKS)
@pytest.mark.parametrize("case", [WHOLE, PTP, CHAINED], ids=lambda case: case.name)
def test_whatever_is_broken(host: Host, case: Case, broken: str, way: str) -> None:
    if broken == "host link off the bridge" and case is not WHOLE:
        return
    ground = Ground(host, case)
    answer = ground.add()
    assert answer.ok
    BREAKS[broken](host, case)
    if way == "GC":
        if broken == "records wiped":
            _age(case.conf["name"])
        # A bridge without a record is deleted only when it has no port any more: by the second GC.
        ground.collect()
        ground.collect()
    else:
        given = {**ground.conf, "prevResult": answer.document} if way == "DEL with the result" else case.conf
        netns = "" if way == "DEL without a namespace" else ground.container
        ground.weft.delete(given, netns)
        ground.weft.delete(given, netns)
        if case.first:
            ground.weft.delete(case.first, netns)
        assert leases(case.conf["name"]) == {}
        # Without a record only links with the attachment's mark are its own; GC frees those of the
        # network.
        ground.collect()
    assert rest(ground.container) == []


def test_renamed_link_is_deleted_by_del(host: Host) -> None:
    """Otherwise the container would keep an address that is leased to the next one."""
    for case in (WHOLE, PTP):
        ground = Ground(host, case)
        assert ground.add().ok
        _renamed(host, case)
        assert ground.delete().ok
        assert host.run("ip", "link", "show", "stranger", check=False).code != 0
        assert host.inside("c1", "ip", "link", "show", "eth0", check=False).code != 0
        ground.collect()
        host.remove_container()


def _file(path: Path) -> None:
    path.write_text("not a namespace")


PLACES: dict[str, Callable[[Path], object]] = {
    "an ordinary file": _file,
    "a FIFO": os.mkfifo,
    "a directory": Path.mkdir,
    "a link to nowhere": lambda path: path.symlink_to("/nowhere"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "another kind of namespace": lambda path: path.symlink_to("/proc/self/ns/mnt"),
    "the host's own namespace": lambda path: path.symlink_to("/proc/thread-self/ns/net"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("case", [WHOLE, PTP, CHAINED], ids=lambda case: case.name)
def test_netns_path_is_not_a_network_namespace(host: Host, case: Case, place: str) -> None:
    ground = Ground(host, case)
    assert ground.add().ok
    host.remove_container()
    PLACES[place](Path(ground.container))
    try:
        ground.weft.delete(ground.conf, ground.container)
        ground.weft.delete(ground.conf, ground.container)
        if case.first:
            ground.weft.delete(case.first, ground.container)
        assert leases(case.conf["name"]) == {}
        ground.collect()
        assert rest() == []
    finally:
        path = Path(ground.container)
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


@pytest.mark.parametrize("state", ("kept", "wiped"))
@pytest.mark.parametrize("case", [WHOLE, PTP], ids=lambda case: case.name)
def test_netns_path_refers_to_another_namespace(host: Host, case: Case, state: str) -> None:
    """The container in that namespace now keeps everything, in particular its eth0."""
    ground = Ground(host, case)
    result = ground.add().document
    host.remove_container()
    assert host.container() == ground.container
    other = {**case.conf, "name": "other", "ipam": pool("10.99.0.0/24"), "bridge": "wbr1", "runtimeConfig": {}}
    theirs = ground.weft.add(other, ground.container, "c9")
    if state == "wiped":
        shutil.rmtree("/run/weft")
        ground.weft.delete({**case.conf, "prevResult": result}, ground.container)
        assert host.inside("c1", "ip", "link", "show", "eth0", check=False).code == 0
        assert leases("other") == {theirs["ips"][0]["address"].split("/")[0]: "c9 eth0"}
        return
    ground.weft.delete({**case.conf, "prevResult": result}, ground.container)
    assert ground.weft.check(other, theirs, ground.container, "c9") == ""
    ground.weft.delete(other, ground.container, "c9")
    ground.collect()
    ground.weft.collect(other)
    assert rest(ground.container) == []


REFUSED: dict[str, Conf] = {
    "a VLAN": {"vlan": 5000},
    "a subnet": {"ipam": {"type": "host-local", "subnet": "x"}},
    "no ipam": {"ipam": {}},
    "ipam of another kind": {"ipam": "host-local"},
    "ports": {"runtimeConfig": {"portMappings": [{"hostPort": -1}, 7]}},
    "ports of another kind": {"runtimeConfig": {"portMappings": "8080:80"}},
    "a previous result": {"prevResult": {"ips": "none"}},
    "a driver": {"driver": "nothing"},
    "a bridge": {"bridge": "a/b", "mtu": "big"},
    "a foreign ipam": {"ipam": {"type": "../../bin/sh"}},
}


@pytest.mark.parametrize("recorded", (True, False), ids=("recorded", "unrecorded"))
@pytest.mark.parametrize("refused", REFUSED)
@pytest.mark.parametrize("case", [WHOLE, PTP], ids=lambda case: case.name)
def test_configuration_that_add_would_refuse(host: Host, case: Case, refused: str, recorded: bool) -> None:
    """The configuration was changed since, or ADD was refused and the runtime calls DEL."""
    ground = Ground(host, case)
    bad = {**case.conf, **REFUSED[refused]}
    if recorded:
        assert ground.add().ok
    answer = ground.weft("DEL", bad, ground.container, args="K=V=W;;=")
    if refused == "a foreign ipam" and not recorded:
        assert answer.code in (0, 7, 106)  # weft cannot tell what that plugin has reserved
    else:
        assert answer.ok, answer
    ground.collect()
    assert rest(ground.container) == []


@every_case
def test_del_without_an_add(host: Host, case: Case) -> None:
    ground = Ground(host, case)
    for _ in range(2):
        ground.weft.delete(case.conf, ground.container, "nobody")
        ground.weft.delete(case.conf, "", "nobody")
        ground.weft.delete(case.conf, "/nowhere/at/all", "nobody")
    assert [line for line in ground.changes() if not line.endswith(".lock")] == []
    assert ground.finish() == []


# Full and read-only file systems


@contextmanager
def _small_disk(path: str, size: str) -> Iterator[Path]:
    """Mount a small file system at a path; ``_fill`` fills it."""
    place = Path(path)
    place.mkdir(parents=True, exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path)
    try:
        yield place
    finally:
        run("umount", "-l", path)


def _fill(place: Path) -> None:
    """Write until no block is free."""
    with (place / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 512):
                pass
        except OSError:
            return


@pytest.mark.parametrize("place", ("/run/weft", "/var/lib/cni/networks/whole"))
def test_on_a_full_disk(host: Host, place: str) -> None:
    with _small_disk(place, "128k") as disk:
        ground = Ground(host, WHOLE)
        result = ground.add().document
        _fill(disk)
        other = host.container("c2")
        refused = ground.weft("ADD", {**WHOLE.conf, "runtimeConfig": {}}, other, "c2")
        assert (refused.status, refused.code) == (1, 105), refused
        assert host.inside("c2", "ip", "-br", "link").stdout.count("\n") == 1
        assert "c2 eth0" not in leases("whole").values()
        assert ground.weft.check(WHOLE.conf, result, ground.container) == ""
        assert ground.delete().ok
        assert ground.delete().ok
        (disk / "filler").unlink()
        assert leases("whole") == {}
        ground.collect()
        assert rest(ground.container) == []


@pytest.mark.parametrize("end", ("DEL", "GC"))
@pytest.mark.parametrize("place", ("/run/weft", "/var/lib/cni/networks/whole"))
def test_on_a_read_only_disk(host: Host, place: str, end: str) -> None:
    """DEL reports what it could not do, and does it when called again."""
    with _small_disk(place, "1m"):
        ground = Ground(host, WHOLE)
        assert ground.add().ok
        run("mount", "-o", "remount,ro", place)
        refused = ground.delete()
        assert (refused.status, refused.code) == (1, 105), refused
        assert place in refused.text
        assert "c1 eth0" in leases("whole").values()
        run("mount", "-o", "remount,rw", place)
        if end == "DEL":
            assert ground.delete().ok
            assert leases("whole") == {}
        ground.collect()
        assert leases("whole") == {}
        assert rest(ground.container) == []


# Ownership: which links, addresses and elements belong to which attachment


def _bridge(network: str, subnet: str, port: int = 0, **rest: Any) -> Conf:
    keys: Conf = {"driver": "bridge", "bridge": f"w{network}", "isGateway": True, "ipMasq": True, "portmap": {}}
    ports = [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}] if port else []
    keys |= {"ipam": pool(subnet, routes=EVERYWHERE), "runtimeConfig": {"portMappings": ports}}
    return conf("weft", network, {**keys, **rest})


def test_two_interfaces_on_one_network(host: Host) -> None:
    weft, path = Weft(), host.container()
    first, second = _bridge("red", "10.31.0.0/24", 8001), _bridge("red", "10.31.0.0/24", 8002)
    second["ipam"] = pool("10.31.0.0/24")
    weft.add(first, path, "c1", "eth0")
    kept = weft.add(second, path, "c1", "eth1")
    weft.delete(first, path, "c1", "eth0")
    assert weft.check(second, kept, path, "c1", "eth1") == ""
    assert list(leases("red").values()) == ["c1 eth1"]
    weft.delete(second, path, "c1", "eth1")
    weft.collect(first)
    assert rest(path) == []


def test_two_networks_of_one_container(host: Host) -> None:
    weft, path = Weft(), host.container()
    red, blue = _bridge("red", "10.31.0.0/24", 8001), _bridge("blue", "10.32.0.0/24", 8002)
    blue["ipam"] = pool("10.32.0.0/24")
    weft.add(red, path, "c1", "eth0")
    kept = weft.add(blue, path, "c1", "eth1")
    weft.delete(red, path, "c1", "eth0")
    weft.collect(red)
    assert weft.check(blue, kept, path, "c1", "eth1") == ""
    weft.delete(blue, path, "c1", "eth1")
    weft.collect(blue)
    assert rest(path) == []


def test_same_container_id_in_another_namespace(host: Host) -> None:
    """ADD of the same container id with another namespace is refused; its DEL keeps the first."""
    weft, path, other = Weft(), host.container(), host.container("c2")
    red = _bridge("red", "10.31.0.0/24", 8001)
    kept = weft.add(red, path)
    refused = weft("ADD", red, other)
    assert (refused.code, "already attached" in refused.text) == (101, True)
    weft.delete(red, other)
    assert weft.check(red, kept, path) == ""
    assert held_twice("red", {"c1": path}) == []
    weft.delete(red, path)
    weft.collect(red)
    assert rest(path, other) == []


@pytest.mark.parametrize("state", ("kept", "wiped"))
def test_after_a_failed_add_with_an_interface_name_in_use(host: Host, state: str) -> None:
    """The other network's ADD finds eth0 in use; its rollback and DEL keep the first one's."""
    weft, path = Weft(), host.container()
    red, blue = _bridge("red", "10.31.0.0/24", 8001), _bridge("blue", "10.32.0.0/24", 8002)
    kept = weft.add(red, path)
    before = host.snapshot()
    if state == "wiped":
        shutil.rmtree("/run/weft")
    refused = weft("ADD", blue, path)
    assert (refused.code, "eth0" in refused.text) == (101, True), refused
    weft.delete(blue, path)
    weft.delete({**blue, "prevResult": {"cniVersion": "1.1.0", "ips": []}}, path)
    assert host.changes(before) == []
    assert leases("blue") == {}
    assert list(leases("red").values()) == ["c1 eth0"]
    if state == "kept":
        assert weft.check(red, kept, path) == ""


def test_after_a_repeated_add(host: Host) -> None:
    """Also if its record is lost: the container still runs, and only DEL may detach it."""
    weft, path = Weft(), host.container()
    red = _bridge("red", "10.31.0.0/24", 8001)
    weft.add(red, path)
    before = host.snapshot()
    assert weft("ADD", red, path).code == 101
    assert host.changes(before) == []
    shutil.rmtree("/run/weft")
    refused = weft("ADD", red, path)
    assert refused.code == 101, refused
    assert host.changes(before) == []
    assert host.inside("c1", "ip", "link", "show", "eth0").code == 0
    assert held_twice("red", {"c1": path}) == []
    weft.delete(red, path)
    weft.collect(red)
    assert rest(path) == []


def test_published_port_in_use(host: Host) -> None:
    """ADD is refused with the owner's name; the owner keeps its port through rollback and DEL."""
    weft, path, other = Weft(), host.container(), host.container("c2")
    red = _bridge("red", "10.31.0.0/24", 8001)
    kept = weft.add(red, path)
    refused = weft("ADD", red, other, "c2")
    assert refused.code == 101, refused
    weft.delete(red, other, "c2")
    assert weft.check(red, kept, path) == ""
    assert list(leases("red").values()) == ["c1 eth0"]


def test_failed_add_keeps_other_leases_of_host_local(host: Host) -> None:
    """It frees its own lease, and none of the same id on another interface."""
    weft, path = Weft(), host.container()
    red = _bridge("red", "10.31.0.0/24")
    folder = Path("/var/lib/cni/networks/red")
    folder.mkdir(parents=True)
    (folder / "10.31.0.77").write_text("c1\r\neth5")
    (folder / "10.31.0.78").write_text("c1\r\neth0")
    host.inside("c1", "ip", "link", "add", "eth0", "type", "bridge")
    refused = weft("ADD", red, path)
    assert not refused.ok
    assert leases("red") == {"10.31.0.77": "c1 eth5", "10.31.0.78": "c1 eth0"}
