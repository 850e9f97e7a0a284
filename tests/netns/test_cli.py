"""``weft`` on the real kernel: an operator's commands, and that ADD does what ``plan`` prints."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import namespaces
from lab.commands import Outcome, run
from lab.host import Host
from lab.plugins import REFERENCE_FOLDER, ROOT
from lab.snapshot import Snapshot, difference, take

Weft = Callable[..., Outcome]
CONFIG = Path("/run/cni-config")


@pytest.fixture
def weft(host: Host) -> Iterator[Weft]:
    """Runs bin/weft with a directory of network lists for this test alone."""
    shutil.rmtree(CONFIG, ignore_errors=True)
    environment = {"PATH": os.environ["PATH"], "WEFT_CNI_CONFIG": str(CONFIG), "LC_ALL": "C.UTF-8"}

    def call(*arguments: str, check: bool = True) -> Outcome:
        return run(str(ROOT / "bin/weft"), *arguments, environment=environment, check=check)

    yield call
    shutil.rmtree(CONFIG, ignore_errors=True)


def test_create_attach_show_detach_remove(host: Host, weft: Weft) -> None:
    before = host.snapshot()
    for name in ("c1", "c2"):
        host.container(name)
    assert weft("network", "create", "blue", "--subnet", "10.7.0.0/24").stdout == "blue\n"
    assert host.changes(before) == []  # the kernel is configured at the first attachment
    first = weft("attach", "blue", "c1", "-p", "8080:80/tcp").stdout
    assert first.startswith("weft-c1/eth0: 10.7.0.2/24, gateway 10.7.0.1, mac ")
    weft("attach", "blue", "c2")
    assert host.ping("c1", "10.7.0.3") and host.ping("c2", "10.7.0.1")
    host.serve_tcp("c1", 80)
    assert host.fetch(None, "127.0.0.1", 8080) is not None
    lines = [line.split()[:4] for line in weft("ps").stdout.splitlines()]
    assert lines[0] == ["NAME", "CONTAINER", "NETWORK", "INTERFACE"]
    assert lines[1:] == [["c1", "weft-c1", "blue", "eth0"], ["c2", "weft-c2", "blue", "eth0"]]
    assert "No differences from what was set up." in weft("show", "c1/eth0").stdout
    assert weft("check").code == 0
    assert json.loads(weft("doctor", "--json").stdout)["findings"] == []
    _break_and_mend(host, weft)
    refused = weft("network", "rm", "blue", check=False)
    assert (refused.code, "has active endpoints: weft-c1/eth0, weft-c2/eth0" in refused.stderr) == (4, True)
    weft("detach", "blue", "c1")
    weft("detach", "blue", "weft-c2")
    weft("network", "rm", "blue")
    assert not Path("/var/lib/cni/networks/blue").exists()
    assert not any(Path("/run/weft").rglob("*.json")) and list(CONFIG.iterdir()) == []
    changes = [line for line in host.changes(before) if "net/ipv4/ip_forward" not in line and "forwarding" not in line]
    assert changes == []


def _break_and_mend(host: Host, weft: Weft) -> None:
    """Break the network by hand: check and doctor report it, ``doctor --repair`` restores it."""
    host.run("nft", "flush", "set", "inet", "weft", "masquerade4")
    host.run("nft", "delete", "chain", "inet", "weft", "raw_prerouting")
    host.run("ip", "link", "set", "weft-blue", "down")
    host.run("ip", "link", "add", "veth0123456789", "type", "veth", "peer", "name", "veth9876543210")
    host.run("ip", "link", "set", "veth0123456789", "alias", "weft:0123456789abcdef:gone")
    checked = weft("check", "blue", check=False)
    assert checked.code == 1
    assert "the bridge weft-blue is down" in checked.stdout
    assert "masquerade4" in checked.stdout
    found = json.loads(weft("doctor", "--json", check=False).stdout)["findings"]
    whats = " | ".join(one["what"] for one in found)
    for word in ("weft-blue is down", "raw_prerouting", "masquerade4", "link veth0123456789 has"):
        assert word in whats
    repaired = weft("doctor", "--repair", check=False)
    assert (repaired.code, "No problems found." in repaired.stdout) == (0, True), repaired
    assert weft("check").code == 0
    assert host.ping("c1", "10.7.0.3")


def test_gc_frees_a_container_without_namespace(host: Host, weft: Weft) -> None:
    before = host.snapshot()
    host.container("c1")
    weft("network", "create", "blue")
    weft("attach", "blue", "c1", "--ifname", "eth7")
    host.remove_container("c1")
    assert "namespace gone" in weft("ps").stdout
    assert weft("doctor", check=False).code == 1
    expected = weft("gc", "--dry-run").stdout
    assert "would free attachment weft-c1/eth7 on blue" in expected
    assert "freed attachment weft-c1/eth7 on blue" in weft("gc").stdout
    assert weft("ps", "-q").stdout == ""
    assert [line for line in host.changes(before) if "forward" not in line] == []
    assert list(Path("/var/lib/cni/networks/blue").glob("10.*")) == []


@pytest.mark.parametrize("driver", ["bridge", "ptp"])
def test_printed_plan_equals_attach(host: Host, weft: Weft, driver: str) -> None:
    """The commands that ``plan`` prints configure a host exactly as attaching does."""
    path = host.container("c1")
    weft("network", "create", "blue", "-d", driver, "--subnet", "10.7.0.0/24", "--subnet", "fd00:7::/64")
    before = host.snapshot()
    script = weft("plan", "blue", "c1", "--all", "-p", "8080:80/tcp").stdout
    assert host.changes(before, within=0.0) == []
    assert run("sh", "-e", stdin=script).stderr == ""
    by_hand = _both(path)
    assert by_hand[0] != before
    host.remove_container("c1")
    host.run("nft", "flush", "ruleset")
    for link in json.loads(host.run("ip", "-j", "link").stdout):
        if link["ifname"].startswith(("weft", "veth")):
            host.run("ip", "link", "delete", link["ifname"], check=False)
    host.run("sysctl", "-qw", "net/ipv4/ip_forward=0", "net/ipv6/conf/all/forwarding=0")
    shutil.rmtree("/var/lib/cni/networks/blue")
    host.container("c1")
    weft("attach", "blue", "c1", "-p", "8080:80/tcp")
    by_weft = _both(path)
    for hand, own in zip(by_hand, by_weft, strict=True):
        changes = difference(hand, own)
        assert not changes, "\n".join(changes)


_OWN_WAYS = frozenset({"ifindex", "link_index", "link_netnsid", "root_id", "bridge_id", "no", "id", "nodad"})
"""Keys that may differ: counters and indexes, and nodad, which accept_dad=0 makes redundant."""


def _both(path: str) -> tuple[Snapshot, Snapshot]:
    """Snapshots of the host's namespace and of the container's."""
    with namespaces.inside(path):
        inside = take()
    return _comparable(take()), _comparable(inside)


def _comparable(snapshot: Snapshot) -> Snapshot:
    """A snapshot without the keys that may differ, and without the chain ``stamp``."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items() if key not in _OWN_WAYS}
        return [clean(item) for item in value] if isinstance(value, list) else value

    found: Snapshot = clean(snapshot)
    found["nft"] = [item for item in found["nft"] if '"stamp"' not in json.dumps(item)]
    return found


def test_without_a_namespace_the_plan_can_be_run_with_a_variable(host: Host, weft: Weft) -> None:
    weft("network", "create", "blue")
    script = weft("plan", "blue", "--all").stdout
    path = host.container("c1")
    run("sh", "-e", stdin=f"NETNS={path}\n{script}")
    assert host.ping("c1", "10.89.0.1")


def test_foreign_plugins_of_a_list_are_executed(host: Host, weft: Weft, tmp_path: Path) -> None:
    """The reference's bandwidth after weft's bridge: its qdisc exists until detach."""
    host.container("c1")
    weft("network", "create", "blue")
    path = CONFIG / "blue.conflist"
    content = json.loads(path.read_text())
    shaper = {"type": "shaper", "ingressRate": 8000000, "ingressBurst": 800000}
    content["plugins"].append(shaper)
    path.write_text(json.dumps(content))
    folder = tmp_path / "plugins"
    folder.mkdir()
    shutil.copy(REFERENCE_FOLDER / "bandwidth", folder / "shaper")  # under a name that is not one of weft's own plugins
    environment = {"PATH": os.environ["PATH"], "WEFT_CNI_CONFIG": str(CONFIG), "CNI_PATH": str(folder)}
    run(str(ROOT / "bin/weft"), "attach", "blue", "c1", environment=environment)
    assert "tbf" in host.run("tc", "qdisc", "show").stdout
    assert run(str(ROOT / "bin/weft"), "check", environment=environment).code == 0
    run(str(ROOT / "bin/weft"), "detach", "blue", "c1", environment=environment)
    assert "tbf" not in host.run("tc", "qdisc", "show").stdout
    assert weft("ps", "-q").stdout == ""


def test_a_container_whose_record_is_lost_is_detached(host: Host, weft: Weft) -> None:
    """What it publishes, its address and its link; gc and the neighbour leave each other alone."""
    before = host.snapshot()
    for name in ("c1", "c2"):
        host.container(name)
    weft("network", "create", "blue", "--subnet", "10.7.0.0/24")
    weft("attach", "blue", "c1", "-p", "8080:80/tcp")
    weft("attach", "blue", "c2")
    shutil.rmtree("/run/weft")
    assert weft("gc").stdout == "nothing to remove\n"
    host.serve_tcp("c1", 80)
    assert host.ping("c1", "10.7.0.3") and host.fetch(None, "127.0.0.1", 8080) is not None
    found = json.loads(weft("doctor", "--json", check=False).stdout)["findings"]
    assert len(found) == 2 and all("record is lost" in one["what"] for one in found)
    refused = weft("uninstall", check=False)
    assert (refused.code, "2 attachments: weft-c1/eth0 on blue" in refused.stderr) == (4, True)
    assert weft("detach", "blue", "c3", check=False).code
    assert weft("detach", "blue", "c1").stdout == "weft-c1/eth0\n"
    assert host.fetch(None, "127.0.0.1", 8080) is None and host.ping("c2", "10.7.0.1")
    assert weft("detach", "blue", "c1", check=False).code
    weft("attach", "blue", "c1")
    assert host.ping("c1", "10.7.0.3")
    assert json.loads(weft("detach", "--json", "weft-c2").stdout) == ["weft-c2/eth0"]  # by its id, of every network
    weft("detach", "blue", "c1")
    weft("gc")
    changes = [line for line in host.changes(before) if "net/ipv4/ip_forward" not in line and "forwarding" not in line]
    assert changes == []


def test_an_invalid_configuration_is_a_finding(host: Host, weft: Weft) -> None:
    host.configure("[agent]\nnode = 5\n")
    found = json.loads(weft("doctor", "--json", check=False).stdout)["findings"]
    assert [one["what"] for one in found] == ["/etc/weft/weft.toml: agent.node 5 must be a string"]


def test_host_features_are_probed_without_changes(host: Host, weft: Weft) -> None:
    before = host.snapshot()
    said = weft("doctor", "--json")
    abilities = {one["name"]: one["there"] for one in json.loads(said.stdout)["abilities"]}
    assert abilities["veth pairs"] and abilities["bridge"] and abilities["nftables nat"] and abilities["nftables fib"]
    tried = run("ip", "link", "add", "weft-try", "type", "dummy", check=False).code == 0
    if tried:
        host.run("ip", "link", "delete", "weft-try")
    assert abilities["dummy"] is tried
    assert host.changes(before) == []


def test_missing_privileges_are_reported(host: Host, weft: Weft) -> None:
    weft("network", "create", "blue")
    host.container("c1")
    environment = {"PATH": os.environ["PATH"], "WEFT_CNI_CONFIG": str(CONFIG)}
    drop = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all")
    for arguments, code in ((("attach", "blue", "c1"), 6), (("network", "ls"), 0), (("network", "create", "red"), 6)):
        said = run(*drop, str(ROOT / "bin/weft"), *arguments, environment=environment, check=False)
        assert said.code == code, said
        assert "Traceback" not in said.stderr
