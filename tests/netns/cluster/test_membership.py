"""Three hosts become a cluster by ``weft cluster``, with real etcd; what must be refused is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from cluster import tokens
from lab.many_hosts import ClusterHost, members, network, remove_network, token
from lab.waiting import until

pytestmark = pytest.mark.in_order
PATIENTLY = 90.0


@dataclasses.dataclass(frozen=True)
class Hosts:
    one: ClusterHost
    two: ClusterHost
    three: ClusterHost


@pytest.fixture(scope="module")
def hosts(isolation: None) -> Iterator[Hosts]:
    """Three hosts; the first one has made a cluster."""
    network()
    made: list[ClusterHost] = []
    try:
        for number in (1, 2, 3):
            made.append(ClusterHost(number))
        made[0].weft("cluster", "init")
        yield Hosts(*made)
    finally:
        for one in made:
            one.close()
        remove_network()


def test_a_cluster_in_commands(hosts: Hosts) -> None:
    """Refusals first: none of them changes what the next one finds."""
    one, two, three = hosts.one, hosts.two, hosts.three
    good = token(one)
    parsed = tokens.parse(good)
    for wrong, said in (
        (dataclasses.replace(parsed, secret=tokens.new_secret()), "knows no such join token"),
        (dataclasses.replace(parsed, fingerprint="ab" * 32), "not the cluster that the join token is for"),
        (token(one, "--ttl", "1s"), "the join token expired"),
    ):
        refused = two.weft("cluster", "join", str(wrong), check=False)
        assert refused.code != 0
        assert said in refused.stderr, refused
    text = '# of the operator\n[agent]\nnode = "n2"\n'
    assert two.path("/etc/weft/weft.toml").read_text() == text

    two.weft("cluster", "join", good)
    assert two.path("/etc/weft/weft.toml").read_text().startswith(text)
    until(lambda: members(one) == {"n1": "false", "n2": "true"}, PATIENTLY, "the learner")
    refused = three.weft("cluster", "join", good, check=False)
    assert "has been used already, by node n2" in refused.stderr
    three.weft("cluster", "join", token(one))
    until(lambda: members(one) == dict.fromkeys(("n1", "n2", "n3"), "false"), PATIENTLY, "three voters")

    listed = {row["name"]: row for row in three.weft("node", "ls", "--json").json}
    assert {(row["role"], row["state"], row["alive"]) for row in listed.values()} == {("voter", "ready", True)}
    again = three.weft("cluster", "join", good)
    assert "It is node n3 already" in again.stdout
    for host in (one, two, three):
        modes = host.run("find", "/etc/weft/etcd", "-type", "f", "-perm", "/077").stdout
        assert modes == ""
        assert host.path("/etc/weft/etcd/ca-key.pem").exists()


def test_a_node_cannot_write_the_records_of_another(hosts: Hosts) -> None:
    one, two = hosts.one, hosts.two
    for key in (
        "/weft/nodes/n1",
        "/weft/nodes/n1/alive",
        "/weft/nodes/n22",
        "/weft/v2/host/n1/node",
        "/weft/v2/overlay/member/n1/blue",
        "/weft/cluster/config",
        "/weft/cluster/token/x",
        "/elsewhere",
    ):
        refused = two.ctl("put", key, "x", user="node", check=False)
        assert "permission denied" in refused.stderr, key
        assert "permission denied" in two.ctl("del", key, user="node", check=False).stderr
    for key in (
        *("/weft/nodes/n2/mine", "/weft/v2/host/n2/x", "/weft/v2/overlay/member/n2/blue"),
        *("/weft/v2/kv/x", "/weft/v2/overlay/block/blue/x", "/weft/operation/x/0"),
    ):
        two.ctl("put", key, "x", user="node")
        assert one.ctl("get", key, user="node").stdout.split() == [key, "x"]
        two.ctl("del", key, user="node")
    assert "permission denied" in two.ctl("user", "list", user="node", check=False).stderr
    assert "permission denied" in two.ctl("member", "remove", "1", user="node", check=False).stderr


def test_a_member_that_is_killed_comes_back(hosts: Hosts) -> None:
    one, two = hosts.one, hosts.two
    before = two.etcd()
    two.run("kill", "-KILL", str(before))
    one.ctl("put", "/weft/v2/kv/while", "x", user="node")
    until(lambda: two.etcd() not in (0, before), PATIENTLY, "etcd, started again by the agent")
    until(lambda: two.ctl("endpoint", "health", check=False).code == 0, PATIENTLY, "its health")
    assert two.ctl("get", "/weft/v2/kv/while", user="node").stdout.split()[1] == "x"


def test_leave(hosts: Hosts) -> None:
    """Of two nodes one votes; the host that has left has its own catalogue, and nothing of the cluster."""
    one, two, three = hosts.one, hosts.two, hosts.three
    three.weft("cluster", "leave")
    assert three.path("/etc/weft/weft.toml").read_text() == '# of the operator\n[agent]\nnode = "n3"\n'
    assert not three.path("/etc/weft/etcd").exists()
    assert not three.path("/var/lib/weft/etcd-member").exists()
    assert three.etcd() == 0
    until(lambda: sorted(members(one).values()) == ["false", "true"], PATIENTLY, "one voter and a learner")
    rows = {row["name"]: row for row in two.weft("node", "ls", "--json").json}
    assert rows["n3"]["state"] == "removed"
    assert not rows["n3"]["powered_off"]
