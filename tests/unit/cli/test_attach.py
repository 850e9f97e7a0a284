"""weft plan, attach, ps, show, check and detach on the fake kernel, also with foreign plugins."""

from __future__ import annotations

import json
import os
from ipaddress import ip_interface

import pytest

from cni_plugin.cli.options import container_of
from cni_plugin.networks import chain, owners
from cni_plugin.networks.owners import OwnerName
from weft.errors import KernelRefused
from weft.identity import mark as mark_of

LOGGER = """#!/bin/sh
stdin=$(cat)
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_NETNS" >>{log}
printf '%s\\n' "$stdin" >>{log}.json
if [ "$CNI_COMMAND" = "{fails}" ]; then
    echo '{{"cniVersion": "1.0.0", "code": 77, "msg": "no luck", "details": "none at all"}}'
    exit 1
fi
if [ "$CNI_COMMAND" = ADD ]; then
    echo '{{"cniVersion": "1.0.0", "interfaces": [], "ips": [{{"address": "10.7.0.2/24"}}]}}'
fi
"""


def foreign(run, fails: str = "nothing") -> None:
    """Append the foreign plugin "stranger" to the plugins of the network blue."""
    folder = run.folder / "plugins"
    folder.mkdir(exist_ok=True)
    (folder / "stranger").write_text(LOGGER.format(log=run.folder / "log", fails=fails))
    (folder / "stranger").chmod(0o755)
    content = run.list("blue")
    content["plugins"].append({"type": "stranger", "capabilities": {"portMappings": True}})
    (run.config / "blue.conflist").write_text(json.dumps(content))


@pytest.fixture
def blue(run):
    run.good("network", "create", "blue", "--subnet", "10.7.0.0/24")
    run.container("c1")
    run.container("c2")
    return run


def test_plan_changes_nothing_and_prints_every_command(blue) -> None:
    before = blue.kernel.dump()
    files = sorted(os.walk(blue.folder))
    out = blue.good("plan", "blue", "c1", "-p", "8080:80/tcp")
    assert blue.kernel.dump() == before
    assert sorted(os.walk(blue.folder)) == files
    shared, own = out.split("# Of this attachment:\n")
    assert shared.startswith("# Shared by all containers of network blue:\n")
    assert "ip link add weft-blue " in shared
    # A port of a bridge that does not exist yet.
    assert "net/ipv6/conf/weft-blue/accept_ra=0" in shared
    assert "nsenter --net=/run/netns/c1 ip address add 10.7.0.2/24 broadcast + dev eth0" in own
    assert "tcp . 8080" in own
    assert "mkdir -p" in own


def test_plan_omits_operations_that_are_in_place(blue) -> None:
    blue.good("attach", "blue", "c2")
    out = blue.good("plan", "blue", "c1")
    assert "ip link add weft-blue" not in out
    assert "already set up" in out
    assert "ip link add weft-blue" in blue.good("plan", "blue", "c1", "--all")
    document = json.loads(blue.good("plan", "blue", "c1", "--json"))
    assert any("ip link add weft-blue" in line for line in document["inPlace"])
    assert document["result"]["ips"][0]["address"] == "10.7.0.3/24"


def test_plan_without_a_namespace_uses_a_variable(blue) -> None:
    out = blue.good("plan", "blue")
    assert 'nsenter --net="$NETNS" ip link set eth0 up' in out
    assert "/proc/1/task" not in out


def test_attach_ps_show_and_detach(blue) -> None:
    out = blue.good("attach", "blue", "c1", "-p", "127.0.0.1:8080:80", "--ip", "10.7.0.9", "--mac", "02:00:00:00:00:09")
    assert (
        out == "weft-c1/eth0: 10.7.0.9/24, gateway 10.7.0.1, mac 02:00:00:00:00:09\npublished: 127.0.0.1:8080->80/tcp\n"
    )
    header, line = blue.good("ps").splitlines()
    assert " ".join(header.split()) == "NAME CONTAINER NETWORK INTERFACE ADDRESSES MAC PORTS AGE STATE"
    assert line.split() == [
        "c1", "weft-c1", "blue", "eth0", "10.7.0.9/24", "02:00:00:00:00:09", "127.0.0.1:8080->80/tcp", "0s", "attached",
    ]  # fmt: skip
    [shown] = json.loads(blue.good("show", "weft-c1/eth0", "--json"))
    assert shown["lacks"] == []
    assert shown["result"]["ips"][0]["gateway"] == "10.7.0.1"
    assert {"key": "dnsQueries", "address": "10.7.0.9", "limit": [1000, 2000], "exceeded": 0} in shown["limits"]
    assert "connections 16384 from 10.7.0.9: 0 packets dropped" in blue.good("show", "weft-c1/eth0")
    assert "No differences from what was set up." in blue.good("show", "weft-c1", "blue")
    assert blue.good("detach", "blue", "c1") == "weft-c1/eth0\n"
    assert len(blue.good("ps").splitlines()) == 1
    said = blue("detach", "blue", "c1")
    assert (said.code, "is not attached to blue" in said.err) == (3, True)


def test_a_container_has_the_name_of_its_owner_everywhere(blue, monkeypatch) -> None:
    digits = "0123456789abcdef" * 4
    source = {digits: OwnerName("web"), f"default-{digits[::-1]}": OwnerName("db", (digits[::-1],))}
    monkeypatch.setattr(owners, "SOURCES", (*owners.SOURCES, lambda ids: ((i, source[i]) for i in ids & source.keys())))
    blue.good("attach", "blue", "c1", "--container", digits)
    blue.good("attach", "blue", "c2", "--container", f"default-{digits[::-1]}")
    rows = [line.split()[:2] for line in blue.good("ps").splitlines()[1:]]
    assert rows == [["web", "0123456789ab"], ["db", "fedcba987654"]]
    assert digits in blue.good("ps", "--no-trunc")
    assert [one["name"] for one in json.loads(blue.good("ps", "--json"))] == ["web", "db"]
    assert blue.good("ps", "-q").split() == ["0123456789ab", "fedcba987654"]
    for word in ("web", "web/eth0", "0123", digits):
        assert blue.good("show", word).startswith("Name:") and f"Container: {digits}\n" in blue.good("show", word)
        assert (
            blue.good("check", word) == blue.good("check", "blue", word) == "ok      0123456789ab/eth0 on blue (web)\n"
        )
    assert "has active endpoints: web/eth0, db/eth0\n" in blue("network", "rm", "blue").err
    assert "\n  web   " in blue("trace", "web", "db").out and digits not in blue("trace", "web", "db").out
    assert json.loads(blue.good("show", "fedcba", "--json"))[0]["name"] == "db"
    assert blue("show", "nobody").code == 3
    source[f"default-{digits[::-1]}"] = OwnerName("web")
    said = blue("detach", "web")
    assert (said.code, "web is ambiguous: " in said.err) == (3, True)
    assert blue.good("detach", digits) == f"{digits}/eth0\n"
    assert blue.good("detach", "blue", "web").startswith("default-fedcba")
    assert (blue("detach", "web").code, len(blue.good("ps").splitlines())) == (3, 1)


def test_a_container_of_docker_has_an_id_on_each_network(blue, monkeypatch) -> None:
    """What the driver is told of is its endpoints; people know the container."""
    blue.good("network", "create", "red", "--subnet", "10.8.0.0/24")
    whole, ids = "f" * 64, ("0123" * 16, "0124" * 16)
    source = dict.fromkeys(ids, OwnerName("web", container=whole))
    monkeypatch.setattr(owners, "SOURCES", (*owners.SOURCES, lambda found: ((i, source[i]) for i in found)))
    for one, network, interface in zip(ids, ("blue", "red"), ("eth0", "eth1"), strict=True):
        blue.good("attach", network, "c1", "--container", one, "--ifname", interface)
    for word in ("web", whole, whole[:12]):
        assert [one["network"] for one in json.loads(blue.good("show", word, "--json"))] == ["blue", "red"]
        assert blue.good("check", "red", word) == f"ok      {ids[1][:12]}/eth1 on red (web)\n"
    assert "Network:   red" in blue.good("show", ids[1][:6])
    source[ids[1]] = OwnerName("web", container="e" * 64)
    assert "web is ambiguous: " in blue("show", "web").err
    source[ids[1]] = source[ids[0]]
    assert blue.good("detach", "web").split() == [f"{ids[0]}/eth0", f"{ids[1]}/eth1"]


def test_what_is_refused_is_named_as_it_was_typed(blue) -> None:
    for option, value, said in (
        ("--ip", "10.99.0.1", '--ip "10.99.0.1" is in none of the ranges 10.7.0.1-10.7.0.254'),
        ("--ip", "10.7.0.1", '--ip "10.7.0.1" is a gateway'),
    ):
        for command in ("attach", "plan"):
            refused = blue(command, "blue", "c1", option, value)
            assert (refused.code, refused.out) == (2, "") and refused.err == f"weft: {said}\n"
    refused = blue("detach")
    assert refused.code == 2 and "Missing argument 'NETNS|CONTAINER'" in refused.err


def test_ps_of_a_network_or_a_state_that_there_is_not(blue) -> None:
    assert blue.good("ps", "--network", "blue", "-q") == ""
    assert (blue("ps", "--network", "bleu").code, blue("ps", "--filter", "network=bleu").code) == (3, 0)
    refused = blue("ps", "--filter", "status=running")
    assert refused.code == 2 and "a state is one of attached, half attached, namespace gone" in refused.err
    assert blue.good("ps", "-q", "--filter", "state=namespace gone") == ""


def test_a_second_attach_is_refused_and_keeps_the_first(blue) -> None:
    blue.good("attach", "blue", "c1")
    said = blue("attach", "blue", "c1")
    assert said.code == 4
    assert "already attached to blue" in said.err
    assert blue.good("check").startswith("ok      weft-c1/eth0 on blue")


def test_attach_brings_lo_up_and_the_plan_says_so(blue) -> None:
    command = "nsenter --net=/run/netns/c1 ip link set lo up"
    assert command in blue.good("plan", "blue", "c1").splitlines()
    assert command in json.loads(blue.good("plan", "blue", "c1", "--json"))["commands"]
    container = blue.kernel.open("/run/netns/c1")
    assert not container.link("lo").up
    blue.good("attach", "blue", "c1")
    assert container.link("lo").up
    assert command not in blue.good("plan", "blue", "c1", "--ifname", "eth1")
    blue.good("detach", "blue", "c1")
    assert container.link("lo").up


def test_an_attach_that_cannot_bring_lo_up_is_undone(blue, monkeypatch) -> None:
    def refused(self, container):
        raise KernelRefused("no lo today")

    before = blue.kernel.dump()
    monkeypatch.setattr(chain.Chain, "_loopback", refused)
    said = blue("attach", "blue", "c1")
    assert (said.code, "no lo today" in said.err) == (1, True)
    assert len(blue.good("ps").splitlines()) == 1
    assert blue.kernel.dump()["/run/netns/c1"] == before["/run/netns/c1"]


def test_attach_json_is_the_cni_result(blue) -> None:
    result = json.loads(blue.good("attach", "blue", "c1", "--json"))
    assert result["cniVersion"] == "1.0.0"
    assert result["interfaces"][2]["sandbox"] == "/run/netns/c1"


def test_a_foreign_plugin_gets_prev_result_and_runtime_config(blue) -> None:
    foreign(blue)
    blue.good("attach", "blue", "c1", "-p", "8080:80")
    blue.good("detach", "blue", "c1")
    calls = (blue.folder / "log").read_text().splitlines()
    assert calls == ["ADD weft-c1 eth0 /run/netns/c1", "DEL weft-c1 eth0 /run/netns/c1"]
    added, deleted = (json.loads(line) for line in (blue.folder / "log.json").read_text().splitlines())
    for given in (added, deleted):
        assert (given["name"], given["cniVersion"], given["type"]) == ("blue", "1.0.0", "stranger")
        assert given["prevResult"]["ips"][0]["address"] == "10.7.0.2/24"
    assert added["runtimeConfig"] == {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}


def test_a_failed_attach_undoes_the_earlier_plugins(blue) -> None:
    before = blue.kernel.dump()
    foreign(blue, fails="ADD")
    said = blue("attach", "blue", "c1")
    assert said.code == 1
    assert said.err == "weft: the plugin stranger failed: no luck\nhint: none at all\n"
    calls = [line.split()[0] for line in (blue.folder / "log").read_text().splitlines()]
    assert calls == ["ADD", "DEL"]
    assert blue("ps", "-q").out == ""
    assert blue.kernel.dump()["/run/netns/c1"] == before["/run/netns/c1"]


def test_an_attach_refused_by_the_kernel_leaves_nothing(blue) -> None:
    before = blue.kernel.dump()["/run/netns/c1"]
    blue.kernel.fail("add_address", KernelRefused("cannot: the kernel says no"), call=2)
    said = blue("attach", "blue", "c1")
    assert (said.code, said.err) == (1, "weft: cannot: the kernel says no\n")
    assert blue.kernel.dump()["/run/netns/c1"] == before
    assert blue("ps", "-q").out == ""


def test_check_reports_what_differs(blue) -> None:
    blue.good("attach", "blue", "c1")
    blue.good("attach", "blue", "c2")
    assert blue.good("check") == "ok      weft-c1/eth0 on blue\nok      weft-c2/eth0 on blue\n"
    inside = blue.kernel.open("/run/netns/c2")
    inside.delete_address("eth0", ip_interface("10.7.0.3/24"))
    said = blue("check", "blue")
    assert said.code == 1
    lines = said.out.splitlines()
    assert lines[:2] == ["ok      weft-c1/eth0 on blue", "broken  weft-c2/eth0 on blue"]
    assert "        eth0 lacks the address 10.7.0.3/24" in lines
    assert lines[-1].startswith("1 of 2 attachments")
    assert blue("check", "blue", "weft-c1").code == 0
    assert blue("check", "nothing").code == 3
    assert blue("check", "blue", "weft-c9").code == 3


def test_check_calls_foreign_plugins(blue) -> None:
    foreign(blue, fails="CHECK")
    blue.good("attach", "blue", "c1")
    said = blue("check")
    assert said.code == 1
    assert "        the plugin stranger failed: no luck" in said.out.splitlines()


def test_detach_works_without_the_conflist_and_the_namespace(blue) -> None:
    blue.good("attach", "blue", "c1")
    (blue.config / "blue.conflist").unlink()
    blue.kernel.remove("/run/netns/c1")
    assert "namespace gone" in blue.good("ps")
    assert blue.good("detach", "blue", "c1") == "weft-c1/eth0\n"
    assert blue("ps", "-q").out == ""


def test_a_container_may_be_given_by_a_prefix_of_its_id(blue) -> None:
    blue.good("attach", "blue", "c1", "--container", "0123456789abcdef0123")
    blue.good("attach", "blue", "c2", "--container", "0123456789abffff")
    assert blue.good("ps", "-q") == "0123456789ab\n" * 2
    assert "Container: 0123456789abcdef0123" in blue.good("show", "0123456789abc")
    said = blue("show", "01234567")
    assert said.code == 3
    assert "is ambiguous: " in said.err


def test_show_finds_the_owner_of_a_mark(blue) -> None:
    blue.good("attach", "blue", "c1", "-p", "8080:80")
    blue.good("attach", "blue", "c2")
    [shown] = json.loads(blue.good("show", "weft-c1", "--json"))
    [port] = [line for line in shown["commands"] if " ports4 " in line]
    mark = port.partition('comment "')[2].partition('"')[0]
    for text in (mark, mark.removeprefix("weft:"), f"{mark}:weft-c1/eth0 on blue"):
        [found] = json.loads(blue.good("show", text, "--json"))
        assert found | {"ageSeconds": 0} == shown | {"ageSeconds": 0}
    shared = mark_of("bridge", "weft-blue")
    assert any(shared in line for line in shown["shared"])
    assert json.loads(blue.good("show", shared, "--json")) == [
        {"mark": shared, "network": "blue", "attachments": ["weft-c1/eth0", "weft-c2/eth0"]}
    ]
    assert "Attachments: weft-c1/eth0, weft-c2/eth0" in blue.good("show", shared.removeprefix("weft:"))
    said = blue("show", "weft:0123456789abcdef")
    assert (said.code, "no attachment or network has the mark weft:0123456789abcdef" in said.err) == (3, True)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("attach", "red", "c1"), 3, "network red not found"),
        (("attach", "blue", "c9"), 3, "no network namespace at /run/netns/c9"),
        (("attach", "blue", "99"), 3, "no network namespace at /run/netns/99 or /proc/99/ns/net"),
        (("attach", "blue", "c1", "-p", "eighty"), 2, "must be [ADDRESS:][HOST-PORT:]PORT"),
        (("attach", "blue", "c1", "-p", "80:80/icmp"), 2, "must be tcp, udp or sctp"),
        (("attach", "blue", "c1", "--mac", "nonsense"), 2, "is not a MAC address"),
        (("attach", "blue", "c1", "--ifname", "a/b"), 2, "--ifname 'a/b': must be printable"),
        (("attach", "blue", "c1", "--container", "-x"), 2, "--container '-x': must start with"),
        (("attach", "blue", "c1", "--ip", "10.9.0.1"), 2, "10.9.0.1"),
        (("show", "c9"), 3, "c9 is not attached"),
    ],
)
def test_errors_are_one_line(blue, arguments, code, said) -> None:
    answer = blue(*arguments)
    assert answer.code == code, answer
    assert said in answer.err
    assert len(answer.err.splitlines()) <= 2


def test_a_port_that_another_container_has_is_refused(blue) -> None:
    blue.good("attach", "blue", "c1", "-p", "8080:80")
    said = blue("attach", "blue", "c2", "-p", "8080:80")
    assert said.code == 4 and "8080" in said.err


def test_a_capability_that_no_plugin_has_is_an_error(blue) -> None:
    content = blue.list("blue")
    del content["plugins"][0]["capabilities"]
    (blue.config / "blue.conflist").write_text(json.dumps(content))
    said = blue("attach", "blue", "c1", "-p", "8080:80")
    assert said.code == 2
    assert "no plugin of network blue publishes ports" in said.err


def test_commands_that_need_root_are_refused_without_privileges(blue) -> None:
    blue.missing_privileges = "CAP_NET_ADMIN"
    for words in ("attach blue c1", "plan blue c1", "detach blue c1", "network rm blue", "gc"):
        said = blue(*words.split())
        assert said.code == 6
        assert "CAP_NET_ADMIN" in said.err and "run as root" in said.err
    assert blue("network", "ls").code == 0


@pytest.mark.parametrize(
    ("netns", "container"),
    [
        ("c1", "weft-c1"),
        ("/run/netns/c1", "weft-c1"),
        ("/proc/77/ns/net", "weft-77"),
        ("77", "weft-77"),
        ("/run/user/0/a b", "weft-a-b"),
    ],
)
def test_the_container_id_derived_from_a_namespace_path(netns, container) -> None:
    assert container_of(netns) == container


def test_doctor_reports_lo_down_and_keys_that_nothing_reads(blue) -> None:
    blue.good("attach", "blue", "c1")
    document = blue("doctor", "--json").json
    assert (document["findings"], document["advice"]) == ([], [])
    blue.kernel.open("/run/netns/c1").change_link("lo", up=False)
    content = blue.list("blue")
    content["plugins"][0]["isGatway"] = True
    (blue.config / "blue.conflist").write_text(json.dumps(content))
    said = blue("doctor")
    assert said.code == 1
    assert "lo is down in the container" in said.out
    assert "run nsenter --net=/run/netns/c1 ip link set lo up" in said.out
    assert "network blue: the plugin weft has no key isGatway; did you mean isGateway?" in said.out
