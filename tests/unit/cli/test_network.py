"""weft network: the conflists that are written, errors, and output."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from cni_plugin.networks import pools
from weft import events
from weft.kernel.values import KernelRoute
from weft.types import Route


def test_create_writes_a_conflist_with_the_given_options(run) -> None:
    out = run.good(
        "network", "create", "blue", "--subnet", "10.7.0.0/24", "--gateway", "10.7.0.9", "--ip-range", "10.7.0.128/25",
        "-o", "mtu=1400", "-o", "com.docker.network.bridge.enable_icc=false", "--label", "a=b",
    )  # fmt: skip
    assert out == "blue\n"
    content = run.list("blue")
    assert content["cniVersion"] == "1.0.0"
    [plugin] = content["plugins"]
    assert plugin == {
        "type": "weft",
        "driver": "bridge",
        "bridge": "weft-blue",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "mtu": 1400,
        "portIsolation": True,
        "capabilities": {"portMappings": True, "ips": True, "mac": True},
        "portmap": {},
        "ipam": {
            "type": "host-local",
            "ranges": [
                [
                    {
                        "subnet": "10.7.0.0/24",
                        "gateway": "10.7.0.9",
                        "rangeStart": "10.7.0.128",
                        "rangeEnd": "10.7.0.254",
                    }
                ]
            ],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    assert content["weft"]["labels"] == {"a": "b"}
    assert os.listdir(run.config) == ["blue.conflist"]


def test_options_names_and_isolation(run) -> None:
    run.good("network", "create", "blue", "--names", "--internal")
    [plugin] = run.list("blue")["plugins"]
    assert plugin["names"] == {} and plugin["isGateway"] and plugin["capabilities"]["aliases"]
    assert "routes" not in plugin["ipam"] and not plugin["ipMasq"]
    run.good("network", "create", "red", "-o", "isolation=routed", "-o", "host-access=dns", "--disable-dns")
    [plugin] = run.list("red")["plugins"]
    assert (plugin["isolation"], plugin["hostAccess"], "names" in plugin) == ("routed", "dns", False)
    assert "must be one of closed, routed, open" in run("network", "create", "-o", "isolation=no").err
    assert "whose gateway is this host" in run("network", "create", "-d", "macvlan", "--names").err
    assert "mutually exclusive" in run("network", "create", "--names", "--disable-dns").err


def test_a_share_of_the_uplink_is_a_section(run) -> None:
    run.good("network", "create", "blue", "-o", "uplink-weight=3", "-o", "uplink-floor=10mbit", "-o", "mtu=1400")
    [plugin] = run.list("blue")["plugins"]
    assert plugin["uplink"] == {"weight": 3, "floor": "10mbit"}
    assert plugin["mtu"] == 1400 and plugin["capabilities"]["uplink"] is True
    assert "must be a number from 1 to 100" in run("network", "create", "-o", "uplink-weight=0").err
    assert "unknown option 'uplink-weight'" in run("network", "create", "-d", "macvlan", "-o", "uplink-weight=2").err


def test_networks_without_name_and_subnet_get_free_ones(run) -> None:
    assert [run.good("network", "create") for _ in range(3)] == ["weft0\n", "weft1\n", "weft2\n"]
    subnets = [run.list(f"weft{n}")["plugins"][0]["ipam"]["ranges"][0][0]["subnet"] for n in range(3)]
    assert subnets == ["10.89.0.0/24", "10.89.1.0/24", "10.89.2.0/24"]
    assert [run.list(f"weft{n}")["plugins"][0]["bridge"] for n in range(3)] == ["weft0", "weft1", "weft2"]


def test_subnets_of_the_hosts_addresses_and_routes_are_not_chosen(run) -> None:
    from ipaddress import ip_interface, ip_network

    run.kernel.host.add_link("lan0", "dummy", up=True)
    run.kernel.host.add_address("lan0", ip_interface("10.89.0.77/24"))
    run.kernel.host.add_route(KernelRoute(Route(ip_network("10.89.1.0/25")), "lan0", protocol=4))
    run.kernel.host.add_route(KernelRoute(Route(ip_network("0.0.0.0/0")), "lan0", protocol=4))
    run.good("network", "create", "blue")
    assert run.list("blue")["plugins"][0]["ipam"]["ranges"] == [[{"subnet": "10.89.2.0/24"}]]
    said = run("network", "create", "red", "--subnet", "10.89.0.64/26")
    assert said.code == 4
    assert "Pool overlaps with other one on this address space: 10.89.0.64/26 with 10.89.0.0/24" in said.err
    assert "lan0" in said.err


def test_a_macvlan_network_may_have_the_subnet_of_its_parent(run) -> None:
    from ipaddress import ip_interface, ip_network

    for name, address in (("lan0", "10.89.0.77/24"), ("lan1", "192.0.2.7/24")):
        run.kernel.host.add_link(name, "dummy", up=True)
        run.kernel.host.add_address(name, ip_interface(address))
    wire = ("--driver", "macvlan", "--subnet", "10.89.0.0/24")
    run.good("network", "create", "named", *wire, "-o", "parent=lan0")
    run.good("network", "rm", "named")
    assert run("network", "create", "red", *wire, "-o", "parent=lan1").code == 4
    assert run("network", "create", "red", *wire).code == 4
    run.kernel.host.add_route(KernelRoute(Route(ip_network("0.0.0.0/0")), "lan0", protocol=4))
    run.good("network", "create", "default", *wire)
    assert run("network", "create", "blue", "--subnet", "10.89.0.0/24").code == 4
    # A subnet chosen by weft must be free, also on the parent.
    run.good("network", "rm", "default")
    run.good("network", "create", "any", "--driver", "macvlan", "-o", "parent=lan0")
    assert run.list("any")["plugins"][0]["ipam"]["ranges"] == [[{"subnet": "10.89.1.0/24"}]]


def test_free_subnets_come_from_further_pools() -> None:
    from ipaddress import ip_network

    uses = [pools.Use(ip_network("10.89.0.0/16"), "x"), pools.Use(ip_network("10.90.0.0/23"), "y")]
    assert str(pools.free_ipv4(uses)) == "10.90.2.0/24"
    everything = [pools.Use(ip_network(text), "x") for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]
    with pytest.raises(pools.PoolExhausted, match="could not find an available, non-overlapping IPv4 address pool"):
        pools.free_ipv4(everything)


def test_ipv6_adds_a_unique_local_subnet(run) -> None:
    run.good("network", "create", "blue", "--ipv6")
    four, six = (ranges[0]["subnet"] for ranges in run.list("blue")["plugins"][0]["ipam"]["ranges"])
    assert four == "10.89.0.0/24"
    assert six.startswith("fd") and six.endswith("/64")
    assert run.list("blue")["plugins"][0]["ipam"]["routes"] == [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    run.good("network", "create", "red", "--ipv6", "--subnet", "fd00:1::/64")
    assert run.list("red")["plugins"][0]["ipam"]["ranges"] == [[{"subnet": "fd00:1::/64"}]]


def test_an_internal_network_has_no_default_route(run) -> None:
    run.good("network", "create", "inside", "--internal")
    [plugin] = run.list("inside")["plugins"]
    assert (plugin["isGateway"], plugin["ipMasq"], "routes" in plugin["ipam"]) == (False, False, False)
    assert plugin["internal"] is True
    [shown] = json.loads(run.good("network", "inspect", "inside"))
    assert shown["Internal"] is True


def test_long_names_get_distinct_bridge_names(run) -> None:
    names = ("application-frontend", "application-backend")
    for name in names:
        run.good("network", "create", name)
    bridges = {run.list(name)["plugins"][0]["bridge"] for name in names}
    assert len(bridges) == 2
    assert all(len(bridge) <= 15 for bridge in bridges)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("blue",), 4, "network with name blue already exists"),
        (("red", "--subnet", "10.89.0.0/16"), 4, "10.89.0.0/16 with 10.89.0.0/24, network blue"),
        (("red", "--subnet", "10.7.0.1/24"), 2, "did you mean 10.7.0.0/24?"),
        (("red", "--subnet", "10.7.0.0/31"), 2, "too small"),
        (("red", "--subnet", "10.7.0.0/24", "--subnet", "10.7.0.0/25"), 4, "another --subnet of this network"),
        (("red", "--subnet", "10.7.0.0/24", "--gateway", "10.8.0.1"), 2, "--gateway 10.8.0.1 is not in 10.7.0.0/24"),
        (("red", "--subnet", "10.7.0.0/24", "--gateway", "10.7.0.255"), 2, "10.7.0.255"),
        (("red", "--subnet", "10.7.0.0/24", "--ip-range", "10.8.0.0/25"), 2, "--ip-range 10.8.0.0/25 is not in"),
        (("red", "--ip-range", "10.7.0.9-10.7.0.5"), 2, "the first address must not be higher than the last"),
        (("red", "-o", "foo=1"), 2, "unknown option 'foo' for driver bridge"),
        (("red", "-o", "mtu"), 2, "must be KEY=VALUE"),
        (("red", "-o", "mtu=12"), 2, "must be a number from 68 to 65535"),
        (("red", "-o", "mtu=1400", "-o", "com.docker.network.driver.mtu=1500"), 2, "have conflicting values"),
        (("red", "-o", "bridge=weft-blue"), 4, "bridge weft-blue is already in use by network blue"),
        (("red", "-o", "bridge=a/b"), 2, "must be printable ASCII"),
        (("red", "-d", "nonsense"), 2, "unknown driver 'nonsense': must be one of bridge"),
        (("red", "--internal", "-o", "ip-masq=true"), 2, "mutually exclusive"),
        (("../red",), 2, "must start with a letter or digit"),
    ],
)
def test_invalid_options_are_refused_with_one_line(run, arguments, code, said) -> None:
    run.good("network", "create", "blue")
    answer = run("network", "create", *arguments)
    assert answer.code == code, answer
    assert said in answer.err
    assert answer.err.startswith("weft: ")
    assert len(answer.err.splitlines()) <= 2
    assert os.listdir(run.config) == ["blue.conflist"]


def test_ls_lists_foreign_networks_and_escapes_control_characters(run) -> None:
    run.good("network", "create", "blue", "--subnet", "10.7.0.0/24")
    foreign = {
        "cniVersion": "0.4.0",
        "name": "podman",
        "plugins": [{"type": "br\x1b[31midge", "ipam": {"ranges": [[{"subnet": "10.88.0.0/16"}]]}}],
    }
    (run.config / "87-podman.conflist").write_text(json.dumps(foreign))
    (run.config / "99-broken.conflist").write_text("{")
    said = run("network", "list")
    assert said.code == 0
    identity, blue = (hashlib.sha256(name).hexdigest()[:12] for name in (b"podman", b"blue"))
    assert said.out.splitlines() == [
        "NETWORK ID     NAME     DRIVER           SUBNETS        FILE",
        f"{identity}   podman   br\\x1b[31midge   10.88.0.0/16   {run.config}/87-podman.conflist",
        f"{blue}   blue     bridge           10.7.0.0/24    {run.config}/blue.conflist",
    ]
    assert "99-broken.conflist" in said.err and "Traceback" not in said.err


def test_ls_filters_as_docker_does(run) -> None:
    run.good("network", "create", "blue", "--label", "tier=web")
    run.good("network", "create", "red", "-d", "ptp", "--label", "tier=db")
    assert run.good("network", "ls", "-q") == "blue\nred\n"
    assert run.good("network", "ls", "-q", "--filter", "driver=ptp") == "red\n"
    assert run.good("network", "ls", "-q", "--filter", "name=blu") == "blue\n"
    assert run.good("network", "ls", "-q", "--filter", "label=tier=db") == "red\n"
    assert run.good("network", "ls", "-q", "--filter", "label=tier") == "blue\nred\n"
    assert run.good("network", "ls", "-q", "--filter", "label=tier", "--filter", "driver=ptp") == "red\n"
    assert run("network", "ls", "--filter", "colour=red").code == 2
    assert [one["name"] for one in json.loads(run.good("network", "ls", "--json"))] == ["blue", "red"]


def test_inspect_prints_dockers_format(run) -> None:
    run.good("network", "create", "blue", "--subnet", "10.7.0.0/24", "-o", "mtu=1400")
    run.container("c1")
    run.good("attach", "blue", "c1")
    [shown] = json.loads(run.good("network", "inspect", "blue"))
    assert shown["IPAM"] == {
        "Driver": "host-local",
        "Options": {},
        "Config": [{"Subnet": "10.7.0.0/24", "Gateway": "10.7.0.1"}],
    }
    assert (shown["Driver"], shown["EnableIPv6"], shown["Internal"]) == ("bridge", False, False)
    assert shown["Options"] == {"mtu": "1400"}
    assert shown["Containers"]["weft-c1"]["IPv4Address"] == "10.7.0.2/24"
    assert shown["Weft"]["Bridge"] == "weft-blue"
    assert run("network", "inspect", "nothing").code == 3


def test_rm_refuses_networks_in_use_unless_forced(run) -> None:
    run.good("network", "create", "blue")
    before = run.kernel.dump()
    run.container("c1")
    run.good("attach", "blue", "c1", "-p", "8080:80")
    said = run("network", "rm", "blue")
    assert (said.code, said.out) == (4, "")
    assert "network blue has active endpoints: weft-c1/eth0" in said.err
    assert run.good("network", "remove", "-f", "blue") == "blue\n"
    run.kernel.remove("/run/netns/c1")
    after = run.kernel.dump()
    assert list(os.listdir(run.config)) == []
    assert os.listdir(run.folder / "leases") == []
    assert after["/proc/thread-self/ns/net"] == before["/proc/thread-self/ns/net"]
    assert not any(after["rules"].values())


def test_what_rm_detaches_is_an_event(run, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[tuple[str, dict[str, events.Value]]] = []
    monkeypatch.setattr(events, "record", lambda folder, event, fields: recorded.append((event, dict(fields))))
    run.good("network", "create", "blue")
    run.container("c1")
    run.good("attach", "blue", "c1")
    recorded.clear()
    run.good("network", "rm", "-f", "blue")
    [(event, fields)] = recorded
    assert (event, fields["network"], fields["container"], fields["interface"]) == ("del", "blue", "weft-c1", "eth0")
    assert str(fields["by"]).startswith("weft[") and "error" not in fields


def test_rm_of_several_networks_goes_on_after_one_that_stays(run) -> None:
    for name in ("blue", "red", "green"):
        run.good("network", "create", name)
    run.container("c1")
    run.good("attach", "red", "c1")
    said = run("network", "rm", "blue", "red", "nothing", "green")
    assert (said.code, said.out) == (4, "blue\ngreen\n")
    assert "network red has active endpoints" in said.err and "network nothing not found" in said.err
    for name in ("one", "two"):
        run.good("network", "create", name)
    # A lease that another program has taken keeps one of them.
    (run.folder / "leases/one").mkdir(parents=True)
    (run.folder / "leases/one/10.89.0.9").write_text("other\r\neth0")
    said = run("network", "prune", "-f", "--json")
    assert (said.code, said.json) == (4, ["two"])


def test_rm_refuses_foreign_networks_unless_forced(run) -> None:
    run.config.mkdir()
    (run.config / "x.conflist").write_text(json.dumps({"name": "x", "plugins": [{"type": "macvlan"}]}))
    said = run("network", "rm", "x")
    assert said.code == 4
    assert "was not created by weft" in said.err
    assert run.good("network", "rm", "--force", "x") == "x\n"
    assert run("network", "rm", "x").code == 3


def test_the_option_for_the_directory_overrides_the_environment(run, tmp_path, monkeypatch) -> None:
    there = tmp_path / "elsewhere"
    run.good("network", "create", "blue", "--config-dir", str(there))
    assert os.listdir(there) == ["blue.conflist"]
    assert run.good("network", "ls", "-q") == ""


@pytest.mark.parametrize(
    ("driver", "options", "keys"),
    [
        ("macvlan", ("parent=lan0", "macvlan_mode=bridge"), {"master": "lan0", "mode": "bridge"}),
        ("ipvlan", ("parent=lan0", "ipvlan_mode=l3"), {"master": "lan0", "mode": "l3"}),
        ("vlan", ("parent=lan0", "vlan=7"), {"master": "lan0", "vlanId": 7}),
    ],
)
def test_networks_on_a_link_of_the_host(run, driver, options, keys) -> None:
    run.kernel.host.add_link("lan0", "dummy", up=True)
    given = [word for option in options for word in ("-o", option)]
    run.good("network", "create", "wire", "-d", driver, "--subnet", "10.7.0.0/24", *given)
    [plugin] = run.list("wire")["plugins"]
    assert plugin.items() >= keys.items()
    assert "portmap" not in plugin and "portMappings" not in plugin["capabilities"]
    wrong = run("network", "create", "bad", "-d", driver, "-o", "parent=lan0", "-o", "mode=nonsense")
    assert wrong.code == 2
