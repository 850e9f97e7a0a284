"""Hosts of a cluster that are lost, reinstalled, partitioned, re-addressed or interrupted, with real etcd."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from lab.many_hosts import ClusterHost, members, network, remove_network, token
from lab.unpacked import unpack
from lab.waiting import until

PATIENTLY = 120.0
VOTERS = dict.fromkeys(("n1", "n2", "n3"), "false")

Start = Callable[..., ClusterHost]


@pytest.fixture
def start(isolation: None) -> Iterator[Start]:
    """Starts hosts, by their numbers."""
    network()
    made: list[ClusterHost] = []

    def new(number: int, *, install: bool = True) -> ClusterHost:
        made.append(ClusterHost(number, install=install))
        return made[-1]

    try:
        yield new
    finally:
        for one in made:
            one.close()
        remove_network()


def cluster(start: Start, count: int) -> list[ClusterHost]:
    hosts = [start(number) for number in range(1, count + 1)]
    hosts[0].weft("cluster", "init")
    for one in hosts[1:]:
        one.weft("cluster", "join", token(hosts[0]))
    if count >= 3:
        until(lambda: members(hosts[0]) == VOTERS, PATIENTLY, "three voters")
    return hosts


def listed(host: ClusterHost) -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in host.weft("node", "ls", "--json").json}


@pytest.mark.long
def test_joins_that_are_killed_are_repeated(start: Start) -> None:
    """With the same token, wherever it was: in the end there is one node, one member, and one use."""
    [one] = cluster(start, 1)
    two = start(2)
    words = ("cluster", "join", token(one))
    for seconds in (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0):
        process = two.start(*two.command(*words))
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    two.weft(*words)
    until(lambda: members(one) == {"n1": "false", "n2": "true"}, PATIENTLY, "the learner")
    until(lambda: listed(one)["n2"]["alive"], PATIENTLY, "n2")
    assert sorted(listed(one)) == ["n1", "n2"]
    text = two.path("/etc/weft/weft.toml").read_text()
    assert text.count("[store]") == 1


@pytest.mark.long
def test_a_host_whose_clock_is_wrong(start: Start) -> None:
    """The others' agents notice it when it tells the time, and again when its clock has been set right."""
    one, two = cluster(start, 2)
    said = "the clock of node n2 differs by "
    [library] = unpack("libfaketime").glob("usr/lib/*/faketime/libfaketime.so.1")
    right = two.environment
    wrong = {"LD_PRELOAD": str(library), "FAKETIME": "+120s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    assert said not in one.weft("doctor", check=False).stdout
    for two.environment, is_wrong in (({**right, **wrong, "FAKETIME_DISABLE_SHM": "1"}, True), (right, False)):
        two.run(*two.command("down"))
        agent = two.start(*two.command("agent"))
        try:
            until(lambda: (said in one.weft("doctor", check=False).stdout) is is_wrong, PATIENTLY, f"{is_wrong=}")  # noqa: B023
        finally:
            os.killpg(agent.pid, signal.SIGKILL)
            agent.wait()


def are_one_and_a_learner(one: ClusterHost, other: ClusterHost) -> bool:
    """Whether the two members are a voter and a learner, whichever of them."""
    return sorted((members(one) or members(other)).values()) == ["false", "true"]


@pytest.mark.long
def test_the_host_that_made_the_cluster_is_lost(start: Start) -> None:
    """The others have joined when it was the only member of etcd; their agents use each other's then."""
    one, two, three = cluster(start, 3)
    one.close()
    until(lambda: not listed(two)["n1"]["alive"], PATIENTLY, "the end of n1's lease")
    two.weft("services", "register", "-name=web", "-port=80")
    until(lambda: "web" in three.weft("catalog", "services").stdout.split(), PATIENTLY, "the service on n3")
    two.weft("node", "rm", "n1", "--powered-off")
    until(lambda: are_one_and_a_learner(two, three), PATIENTLY, "one voter, and a learner")
    row = listed(three)
    assert row["n1"]["state"] == "removed" and row["n2"]["alive"] and row["n3"]["alive"]


@pytest.mark.long
def test_a_host_that_was_reinstalled_under_its_name(start: Start) -> None:
    """It is refused until the old one is removed; that takes the old one's access and vote away."""
    one, two, three = cluster(start, 3)
    refused = one.weft("node", "rm", "n3", check=False)
    assert "the agent of node n3 runs" in refused.stderr
    three.close()
    again = start(3)
    refused = again.weft("cluster", "join", token(one), check=False)
    assert "the cluster has a node n3 already" in refused.stderr
    until(lambda: not listed(one)["n3"]["alive"], PATIENTLY, "the end of n3's lease")
    one.weft("node", "rm", "n3", "--powered-off")
    row = listed(two)["n3"]
    assert (row["state"], row["powered_off"]) == ("removed", True)
    until(lambda: are_one_and_a_learner(one, two), PATIENTLY, "one voter, and a learner")
    until(lambda: "n3" not in one.ctl("user", "list").stdout.split(), PATIENTLY, "the end of n3's access")
    again.weft("cluster", "join", token(one))
    until(lambda: members(one) == VOTERS, PATIENTLY, "three voters")
    assert listed(two)["n3"]["state"] == "ready"


@pytest.mark.long
def test_a_node_that_was_removed_while_it_was_partitioned(start: Start) -> None:
    """It says so itself when it is back, has no access, and can leave and join again."""
    one, two, three = cluster(start, 3)
    three.connect(up=False)
    until(lambda: not listed(one)["n3"]["alive"], PATIENTLY, "the end of n3's lease")
    one.weft("node", "rm", "n3")
    row = listed(two)["n3"]
    assert (row["state"], row["powered_off"]) == ("removed", False)
    until(lambda: "n3" not in one.ctl("user", "list").stdout.split(), PATIENTLY, "the end of n3's access")
    three.connect(up=True)
    refused = three.ctl("get", "/weft/nodes/n1", user="node", check=False, endpoint=one.address)
    assert refused.code != 0
    assert refused.stdout == ""
    said = "was removed from the cluster"
    until(lambda: said in three.weft("status", check=False).stdout, PATIENTLY, "the problem in weft status")
    three.weft("cluster", "leave", "--force")
    three.weft("cluster", "join", token(one))
    until(lambda: members(one) == VOTERS, PATIENTLY, "three voters")


@pytest.mark.long
def test_a_client_takes_the_place_of_a_voter_that_leaves(start: Start) -> None:
    hosts = cluster(start, 3)
    four = start(4)
    four.weft("cluster", "join", token(hosts[0]))
    assert listed(hosts[0])["n4"]["role"] == "client"
    assert not four.path("/etc/weft/etcd/ca-key.pem").exists()
    refused = four.weft("cluster", "token", check=False)
    assert "no member of the cluster's etcd" in refused.stderr
    hosts[2].weft("cluster", "leave")
    expected = dict.fromkeys(("n1", "n2", "n4"), "false")
    until(lambda: members(hosts[0]) == expected, PATIENTLY, "n4 as a voter")
    assert four.path("/etc/weft/etcd/ca-key.pem").exists()


@pytest.mark.long
def test_a_client_cannot_make_itself_a_member(start: Start) -> None:
    """It writes its own record. A token lets members answer who asks to be one. What a member may, all members have
    said; in a cluster of an earlier release they say it first.
    """
    hosts = cluster(start, 3)
    four = start(4)
    four.weft("cluster", "join", token(hosts[0]))
    hosts[0].ctl("del", "--prefix", "/weft/cluster/member/")
    may = [f"/weft/cluster/member/n{number}" for number in (1, 2, 3)]
    listing = ("get", "--prefix", "--keys-only", "/weft/cluster/member/")
    until(lambda: hosts[0].ctl(*listing).stdout.split() == may, PATIENTLY, "what each member may")
    token(hosts[0])
    key, at = "/weft/nodes/n4", hosts[0].address
    record = json.loads(four.ctl("get", "--print-value-only", key, user="node", endpoint=at).stdout)
    for lie in ({"role": "voter", "joined": 0}, {"role": "voter", "joined": 0, "addresses": [hosts[1].address]}):
        four.ctl("put", key, json.dumps({**record, **lie}), user="node", endpoint=at)
        time.sleep(10)
        assert members(hosts[0]) == VOTERS
        assert listed(hosts[0])["n4"]["role"] == "client"
        assert not four.path("/etc/weft/etcd/ca-key.pem").exists()
    refused = four.ctl("put", "/weft/cluster/member/n4", record["id"], user="node", endpoint=at, check=False)
    assert "permission denied" in refused.stderr


@pytest.mark.long
def test_a_client_with_another_address_takes_the_place_of_a_voter(start: Start) -> None:
    """Its certificate was for the address that it has joined with."""
    hosts = cluster(start, 3)
    four = start(4)
    four.weft("cluster", "join", token(hosts[0]))
    four.run("ip", "address", "flush", "dev", "eth0")
    four.run("ip", "address", "add", "10.78.0.44/24", "dev", "eth0")
    four.run("ip", "route", "replace", "default", "via", "10.78.0.254")
    until(lambda: listed(hosts[0])["n4"]["addresses"] == ["10.78.0.44"], PATIENTLY, "the address in its record")
    hosts[2].weft("cluster", "leave")
    until(lambda: members(hosts[0]) == dict.fromkeys(("n1", "n2", "n4"), "false"), PATIENTLY, "n4 as a voter")
    assert four.ctl("endpoint", "health", endpoint="10.78.0.44").code == 0


@pytest.mark.long
def test_the_only_voter_hands_over_its_vote(start: Start) -> None:
    """It is a client then, with nothing of a member, and may leave; and make a cluster again."""
    one, two = start(1), start(2)
    one.weft("cluster", "init", "--voters", "1")
    two.weft("cluster", "join", token(one))
    until(lambda: listed(one)["n2"]["alive"], PATIENTLY, "n2")
    refused = one.weft("cluster", "leave", check=False)
    assert "weft node promote n2" in refused.stderr
    one.weft("network", "create", "-d", "overlay", "old")
    one.weft("node", "promote", "n2")
    until(lambda: members(two) == {"n2": "false"}, PATIENTLY, "n2 as the only voter")
    until(lambda: not one.path("/etc/weft/etcd/peer-key.pem").exists(), PATIENTLY,
          lambda: f"the end of n1's keys: {one.weft('status', check=False).stdout}")  # fmt: skip
    assert {path.name for path in one.path("/etc/weft/etcd").iterdir()} == {
        *("ca.pem", "cluster.json", "node.pem", "node-key.pem"),
    }
    assert one.etcd() == 0
    until(lambda: listed(one)["n1"]["role"] == "client", PATIENTLY, "n1 as a client")
    written = one.path("/etc/weft/etcd/cluster.json").stat().st_mtime_ns
    time.sleep(7)
    assert one.path("/etc/weft/etcd/cluster.json").stat().st_mtime_ns == written, "it changes no more"

    one.weft("cluster", "leave")
    assert listed(two)["n1"]["state"] == "removed"
    until(lambda: "old" not in one.weft("network", "ls").stdout, PATIENTLY, "the end of the cluster's network")
    one.weft("cluster", "init")
    two.weft("cluster", "leave", "--last")
    two.weft("cluster", "join", token(one))
    until(lambda: members(one) == {"n1": "false", "n2": "true"}, PATIENTLY, "another cluster")
    until(lambda: all(row["alive"] for row in listed(two).values()), PATIENTLY, "both agents")
    keys = one.ctl("get", "--prefix", "--keys-only", "/weft/v2/overlay/", user="node").stdout.split()
    assert keys == [], "the former cluster's network"


@pytest.mark.long
def test_a_member_that_has_lost_its_address(start: Start) -> None:
    """It says what to do; a majority of the others goes on."""
    _one, two, three = cluster(start, 3)
    three.run("ip", "address", "replace", "10.78.0.33/24", "dev", "eth0")
    three.run("ip", "address", "delete", "10.78.0.3/24", "dev", "eth0")
    until(
        lambda: "no address 10.78.0.3 any more" in three.weft("status", check=False).stdout,
        PATIENTLY,
        "the problem in weft status",
    )
    two.ctl("put", "/weft/v2/kv/x", "1", user="node")


@pytest.mark.long
def test_a_host_without_etcd(start: Start) -> None:
    one = start(1, install=False)
    refused = one.weft("cluster", "init", check=False)
    assert "etcd is not installed" in refused.stderr
    assert "apt-get install etcd-server" in refused.stderr


def test_a_host_whose_ports_are_in_use(start: Start) -> None:
    """It says so at once, not after the patience with etcd; and nothing but that."""
    one = start(1)
    other = "python3 -m http.server 2379 --bind 0.0.0.0 >/dev/null 2>&1 & echo $!"
    process = one.run("sh", "-c", other).stdout.strip()
    until(lambda: one.run("bash", "-c", "</dev/tcp/10.78.0.1/2379", check=False).code == 0, PATIENTLY, "the server")
    begun = time.monotonic()
    refused = one.weft("cluster", "init", check=False)
    assert "TCP port 2379 is in use by another program" in refused.stderr
    assert len(refused.stderr.splitlines()) == 2 and time.monotonic() - begun < 60
    one.run("kill", process)
    one.weft("cluster", "init")
    assert members(one) == {"n1": "false"}
