"""``weft doctor --repair`` makes again what is gone of a running container: its link and all that was on it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from glob import glob
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.dataplane.tables import TABLES
from cni_plugin.networks import attachments, repairs
from cni_plugin.ops.operation import LinkRef
from cni_plugin.service import shared
from cni_plugin.service.gc import collect_stale
from lab import namespaces
from lab.cases import CASES, Case
from lab.commands import Outcome, run
from lab.ground import Ground, at_last, steady
from lab.host import Host
from lab.plugins import ROOT
from lab.snapshot import Snapshot, difference, settled
from weft.errors import Missing
from weft.kernel.linux.kernel import LinuxKernel
from weft.types import Side

Weft = Callable[..., Outcome]

_IN_ORDER = frozenset(
    {"ifindex", "link_index", "link_netnsid", "no", "id", "root_id", "bridge_id", "port_no", "port_id"}
)
"""Keys that the kernel counts by, which a link that is made again has others of."""


@pytest.fixture
def weft(host: Host, tmp_path: Path) -> Weft:
    """Runs bin/weft with a directory of network lists for this test alone."""
    environment = {"PATH": os.environ["PATH"], "WEFT_CNI_CONFIG": str(tmp_path), "LC_ALL": "C.UTF-8"}

    def call(*arguments: str, check: bool = True) -> Outcome:
        return run(str(ROOT / "bin/weft"), *arguments, environment=environment, check=check)

    return call


def _comparable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _comparable(item) for key, item in value.items() if key not in _IN_ORDER}
    if isinstance(value, list):
        return sorted(map(_comparable, value), key=lambda one: json.dumps(one, sort_keys=True))
    return value


def _both(ground: Ground) -> tuple[Snapshot, Snapshot]:
    """What the host and the container have."""
    with namespaces.inside(ground.container):
        inside = settled()
    return _comparable(settled()), _comparable(inside)


def _links(ground: Ground, kernel: LinuxKernel) -> list[LinkRef]:
    """The links that the attachment's operations create."""
    records = list(ground.weft.service(kernel).records.all())
    return list(dict.fromkeys(link for one in records for each in one.operations for link in each.creates))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_link_that_is_deleted_is_made_again(host: Host, case: Case) -> None:
    """On either side, of every driver and feature: host and container are as they were."""
    ground = Ground(host, case)
    answer = ground.add()
    assert answer.ok, answer
    with contextlib.closing(LinuxKernel(TABLES)) as kernel:
        service = ground.weft.service(kernel)
        before = _both(ground)
        for side, name in _links(ground, kernel):
            with contextlib.closing(kernel.open(ground.container)) as container, contextlib.suppress(Missing):
                (kernel.host if side is Side.HOST else container).delete_link(name)
            found = [
                sentence
                for one in attachments.endpoints(service)
                for sentence, is_repairable in attachments.differences(service, one)
                if name in sentence and is_repairable
            ]
            assert len(found) == 1, (name, found)
            shared.repair(service)
            assert repairs.repair(service) == []
            assert ground.weft.check(case.conf, answer.document, ground.container) == "", name

            def changes() -> list[str]:
                pairs = zip(before, _both(ground), strict=True)
                return steady([line for was, now in pairs for line in difference(was, now)])

            assert at_last(changes) == [], name
    assert ground.delete().ok
    assert ground.finish() == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gc_leaves_what_runs_without_a_record(host: Host, case: Case) -> None:
    """Of every driver and feature, while the record of its last plugin is lost, those of networks as well, all of
    /run/weft: host and container are as they were.
    """
    ground = Ground(host, case)
    answer = ground.add()
    assert answer.ok, answer
    before = _both(ground)
    with contextlib.closing(LinuxKernel(TABLES)) as kernel:
        service = ground.weft.service(kernel)
        last = max(service.records.all(), key=lambda record: record.made)
        for lost in ([service.records.path(last.attachment)], glob("/run/weft/*/networks/*.json"), ["/run/weft"]):
            for path in map(Path, lost):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            service.records.prepare()
            assert collect_stale(service).errors == []
            pairs = zip(before, _both(ground), strict=True)
            assert steady([line for was, now in pairs for line in difference(was, now)]) == [], lost
    assert ground.delete().ok
    ground.finish()


def _attached(weft: Weft, container: str) -> dict[str, Any]:
    [found] = [one for one in json.loads(weft("ps", "--json").stdout) if one["container"] == f"weft-{container}"]
    return dict(found)


@pytest.mark.parametrize("driver", ["bridge", "ptp"])
@pytest.mark.parametrize("side", Side)
def test_a_deleted_link_carries_traffic_again(host: Host, weft: Weft, driver: str, side: Side) -> None:
    """The same address, MAC address and published port; one finding before, and what was done is listed."""
    for name in ("c1", "c2"):
        host.container(name)
    weft("network", "create", "blue", "-d", driver, "--subnet", "10.7.0.0/24", "--subnet", "fd00:7::/64")
    weft("attach", "blue", "c1", "-p", "8080:80/tcp")
    weft("attach", "blue", "c2")
    was = _attached(weft, "c1")
    host.serve_tcp("c1", 80)
    assert host.ping("c2", "10.7.0.2") and host.fetch(None, "127.0.0.1", 8080) is not None
    link = next(
        one["ifname"]
        for one in json.loads(host.run("ip", "-j", "link").stdout)
        if "weft-c1/" in str(one.get("ifalias"))
    )
    if side is Side.HOST:
        host.run("ip", "link", "delete", link)
    else:
        host.inside("c1", "ip", "link", "delete", "eth0")
    assert host.ping("c2", "10.7.0.2", expected=False) is False
    gone = f"the container's link eth0 ({link} on the host) is missing"
    what = f"weft-c1/eth0 on blue: {gone}, with what was set up on it"
    [found] = json.loads(weft("doctor", "--json", check=False).stdout)["findings"]
    assert (found["what"], found["command"], found["mends"]) == (what, "weft doctor --repair", "repair")
    checked = weft("check", check=False)
    assert "1 of 2 attachments broken" in checked.stdout and "run weft doctor --repair" in checked.stdout
    repaired = weft("doctor", "--repair")
    assert f"1 problem repaired\n  - {what}" in repaired.stdout and "No problems found." in repaired.stdout
    assert weft("check").code == 0
    assert {**_attached(weft, "c1"), "ageSeconds": 0} == {**was, "ageSeconds": 0}
    for address in ("10.7.0.2", "fd00:7::2"):
        assert host.ping("c2", address)
    assert host.fetch(None, "127.0.0.1", 8080) is not None
    assert host.fetch("c2", "10.7.0.2", 80) is not None


def test_a_deleted_bridge_and_a_link_are_two_findings(host: Host, weft: Weft) -> None:
    """What follows from either is not told again; both are made in one go."""
    for name in ("c1", "c2", "c3"):
        host.container(name)
    weft("network", "create", "blue", "--subnet", "10.7.0.0/24")
    for name in ("c1", "c2", "c3"):
        weft("attach", "blue", name)
    host.inside("c2", "ip", "link", "delete", "eth0")
    host.run("ip", "link", "delete", "weft-blue")
    whats = [one["what"] for one in json.loads(weft("doctor", "--json", check=False).stdout)["findings"]]
    assert len(whats) == 2, whats
    assert whats[0] == "network blue: the bridge weft-blue is missing, with what was set up on it"
    assert whats[1].startswith("weft-c2/eth0 on blue: ")
    assert "2 problems repaired" in weft("doctor", "--repair").stdout
    assert host.ping("c1", "10.7.0.3") and host.ping("c2", "10.7.0.4") and host.ping("c3", "10.7.0.1")


def test_an_address_that_another_container_has_now_is_not_given_again(host: Host, weft: Weft, tmp_path: Path) -> None:
    for name in ("c1", "c2"):
        host.container(name)
    ranges = [[{"subnet": "10.7.0.0/29", "rangeStart": "10.7.0.2", "rangeEnd": "10.7.0.2"}]]
    bridge = {"type": "bridge", "bridge": "cni7", "isGateway": True, "ipam": {"type": "host-local", "ranges": ranges}}
    conf = {"cniVersion": "1.1.0", "name": "blue", "plugins": [bridge]}
    (tmp_path / "blue.conflist").write_text(json.dumps(conf))
    weft("attach", "blue", "c1")
    weft("ipam", "release", "blue", "10.7.0.2", "--force")
    weft("attach", "blue", "c2")
    host.inside("c1", "ip", "link", "delete", "eth0")
    said = json.loads(weft("doctor", "--repair", "--json", check=False).stdout)
    assert [one["what"] for one in said["repaired"] if "weft-c1" in one["what"]] == []
    assert any("10.7.0.2 is leased to weft-c2/eth0" in one["what"] for one in said["findings"])
    assert "eth0" not in host.inside("c1", "ip", "link").stdout
    assert host.ping("c2", "10.7.0.1")


def test_another_link_with_the_name_of_a_lent_one_is_left(host: Host, weft: Weft, tmp_path: Path) -> None:
    """The host's own, with its addresses, that has got the name since."""
    host.container("c1")
    host.run("ip", "link", "add", "lan0", "type", "veth", "peer", "name", "far0")
    conf = {"cniVersion": "1.1.0", "name": "lent", "plugins": [{"type": "host-device", "device": "lan0"}]}
    (tmp_path / "lent.conflist").write_text(json.dumps(conf))
    weft("attach", "lent", "c1")
    host.inside("c1", "ip", "link", "delete", "eth0")
    for line in ("link add lan0 type veth peer name far1", "address add 192.0.2.7/24 dev lan0", "link set lan0 up"):
        host.run("ip", *line.split())
    before = host.snapshot()
    said = json.loads(weft("doctor", "--repair", "--json", check=False).stdout)
    assert [one["what"] for one in said["repaired"] if "weft-c1" in one["what"]] == []
    assert host.changes(before) == []
