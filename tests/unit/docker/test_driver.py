"""The driver for Docker on the fake kernel: libnetwork's calls, without HTTP and without dockerd."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.docker import ports, resolvers
from cni_plugin.docker.addresses import Addresses
from cni_plugin.docker.calls import attachment, link_name
from cni_plugin.docker.driver import Networks
from cni_plugin.docker.naming import Naming
from cni_plugin.docker.state import Endpoint, Kept, Network, Pool
from cni_plugin.networks import attachments, findings, owners, pools, repairs
from cni_plugin.service.gc import collect_stale
from cni_plugin.service.records import Phase
from lab.libnetwork import ENDPOINT, GENERIC, NETWORK, SANDBOX, Fake, address_of, call, created, ended, joined, pool_of
from weft import daemons, identity
from weft.errors import BadOption, Conflict, InUse, Missing, PoolExhausted, WeftError
from weft.section import Section


@pytest.mark.parametrize("options", [{}, {"driver": "ptp"}, {"driver": "macvlan", "parent": "lan0"}], ids=str)
def test_nothing_is_left_of_an_endpoint(driver: Networks, calls: Fake, kept: Kept, options: dict[str, str]) -> None:
    before = calls.kernel.host.links()
    created(driver, **options)
    answer = joined(driver)
    assert answer["InterfaceName"] == {"SrcName": link_name(ENDPOINT), "DstPrefix": "eth"}
    assert answer["Gateway"] == "172.18.0.1"
    made = calls.kernel.host.link(link_name(ENDPOINT))
    assert made is not None and not made.up
    # Docker addresses the link itself.
    assert calls.kernel.host.addresses(made.name) == ()
    [one] = attachments.endpoints(calls.service)
    assert attachments.mismatches(calls.service, one) == []
    ended(driver)
    driver.delete_network(call(NetworkID=NETWORK))
    assert calls.kernel.host.link(made.name) is None
    assert calls.kernel.host.links() == before
    assert [*kept.all(Network), *kept.all(Endpoint), *calls.service.records.all()] == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"driver": "ptp"},
        {"driver": "macvlan", "parent": "lan0"},
        {"driver": "macvlan", "parent": "lan0", "mode": "passthru"},
        {"driver": "ipvlan", "parent": "lan0"},
        {"driver": "vlan", "parent": "lan0", "vlan": "5"},
    ],
    ids=str,
)
def test_a_link_is_followed_into_the_sandbox(
    driver: Networks, calls: Fake, kept: Kept, options: dict[str, str]
) -> None:
    """CHECK, GC and DEL know where Docker has moved it, and under which name."""
    created(driver, **options)
    joined(driver)
    network, endpoint = driver.network(NETWORK), driver.endpoint(call(EndpointID=ENDPOINT))
    assert not calls.settle(network, endpoint)  # there is no such namespace yet
    sandbox = calls.kernel.add(SANDBOX)
    assert not calls.settle(network, endpoint)  # and no link in it
    calls.kernel.host.change_link(link_name(ENDPOINT), namespace=sandbox)
    assert not calls.settle(network, endpoint)  # Docker renames it next
    sandbox.change_link(link_name(ENDPOINT), new_name="eth0", up=True)
    if endpoint.mac:
        sandbox.change_link("eth0", mac=endpoint.mac)  # as Docker does with the one that it is answered
    assert calls.settle(network, endpoint) and calls.settle(network, endpoint)
    assert calls.kernel.calls.count("announce") == 1
    assert sandbox.sysctl("net/ipv4/conf/eth0/arp_notify") == sandbox.sysctl("net/ipv6/conf/eth0/ndisc_notify") == "1"
    [one] = attachments.endpoints(calls.service)
    assert one.namespace.path == SANDBOX
    assert attachments.mismatches(calls.service, one) == []
    sandbox.change_link("eth0", mtu=1400)
    assert attachments.mismatches(calls.service, one) == ["the MTU of eth0 is 1400 instead of 1500"]
    assert collect_stale(calls.service).attachments == []
    driver.leave(call(NetworkID=NETWORK, EndpointID=ENDPOINT))
    assert sandbox.link("eth0") is None
    assert list(calls.service.records.all()) == []


def test_a_link_is_waited_for_without_its_lock(driver: Networks, calls: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's link may make it wait for a second, and its DEL not."""
    created(driver)
    joined(driver)
    network, endpoint = driver.network(NETWORK), driver.endpoint(call(EndpointID=ENDPOINT))
    sandbox = calls.kernel.add(SANDBOX)
    calls.kernel.host.change_link(link_name(ENDPOINT), new_name="eth0", namespace=sandbox, up=True)
    waited = []

    def look(*_: object) -> bool:
        with calls.service.locked(attachment(network, endpoint), timeout=0.0):
            waited.append(calls.record(network, endpoint))
        return True

    monkeypatch.setattr(type(sandbox), "is_operational", look)
    assert calls.settle(network, endpoint)
    [record] = waited
    assert record is not None and record.namespace.path == SANDBOX


@pytest.mark.parametrize(
    "options", [{}, {"driver": "macvlan", "parent": "lan0"}, {"driver": "vlan", "parent": "lan0", "vlan": "5"}], ids=str
)
@pytest.mark.parametrize("former", [False, True])
def test_a_deleted_link_that_docker_configured_is_not_made_again(
    driver: Networks, calls: Fake, options: dict[str, str], former: bool
) -> None:
    """Its addresses and routes are Docker's, so that a new one would have none. ``former``: a record of an earlier
    release.
    """
    created(driver, **options)
    joined(driver)
    network, endpoint = driver.network(NETWORK), driver.endpoint(call(EndpointID=ENDPOINT))
    sandbox = calls.kernel.add(SANDBOX)
    calls.kernel.host.change_link(link_name(ENDPOINT), namespace=sandbox)
    sandbox.change_link(link_name(ENDPOINT), new_name="eth0", up=True)
    assert calls.settle(network, endpoint)
    if former:
        [record] = calls.service.records.all()
        unmarked = tuple(replace(one, moved=False) if one.creates else one for one in record.operations)
        calls.service.records.write(replace(record, operations=unmarked))
        assert calls.settle(network, endpoint)
    sandbox.delete_link("eth0")
    before = calls.kernel.dump()
    [one] = attachments.endpoints(calls.service)
    [(sentence, is_repairable)] = attachments.differences(calls.service, one, shared=False)
    assert "eth0" in sentence and not is_repairable
    assert "docker network disconnect" in str(findings.remedy(one, is_repairable))
    assert repairs.repair(calls.service) == []
    assert calls.kernel.dump() == before


def test_links_with_one_mac_address_are_told_apart(driver: Networks, calls: Fake) -> None:
    """``docker run --network name=…,mac-address=…`` may name the same one for two networks."""
    sandbox = calls.kernel.add(SANDBOX)
    names = {"c" * 16: "eth1", "d" * 16: "eth0"}
    for number, (name, link) in enumerate(names.items()):
        created(driver, 18 + number, name)
        interface = {"Address": f"172.{18 + number}.0.2/16", "MacAddress": "02:00:00:00:00:05"}
        driver.create_endpoint(call(NetworkID=name, EndpointID=name, Interface=interface))
        driver.join(call(NetworkID=name, EndpointID=name, SandboxKey=SANDBOX, Options={}))
        calls.kernel.host.change_link(link_name(name), new_name=link, namespace=sandbox)
    for name in names:
        assert calls.settle(driver.network(name), driver.endpoint(call(EndpointID=name)))
    for one in attachments.endpoints(calls.service):
        assert attachments.mismatches(calls.service, one) == []


@pytest.mark.parametrize("options", [{}, {"driver": "macvlan", "parent": "lan0"}], ids=str)
def test_a_link_that_docker_has_moved_and_never_renamed_is_deleted(
    driver: Networks, calls: Fake, options: dict[str, str]
) -> None:
    created(driver, **options)
    joined(driver)
    sandbox = calls.kernel.add(SANDBOX)
    calls.kernel.host.change_link(link_name(ENDPOINT), namespace=sandbox)
    driver.leave(call(NetworkID=NETWORK, EndpointID=ENDPOINT))
    assert sandbox.link(link_name(ENDPOINT)) is None
    assert list(calls.service.records.all()) == []


def test_a_link_that_docker_moves_back_after_leave_is_deleted(driver: Networks, calls: Fake) -> None:
    created(driver, driver="macvlan", parent="lan0")
    joined(driver)
    sandbox = calls.kernel.add("/elsewhere")
    calls.kernel.host.change_link(link_name(ENDPOINT), new_name="eth0", namespace=sandbox)
    driver.leave(call(NetworkID=NETWORK, EndpointID=ENDPOINT))
    sandbox.change_link("eth0", new_name=link_name(ENDPOINT), namespace=calls.kernel.host)
    driver.delete_endpoint(call(NetworkID=NETWORK, EndpointID=ENDPOINT))
    assert calls.kernel.host.link(link_name(ENDPOINT)) is None


def test_repeated_calls_are_answered_as_the_first(driver: Networks, calls: Fake) -> None:
    """Docker repeats a call when the driver was killed before it answered."""
    created(driver)
    created(driver)
    assert joined(driver) == joined(driver)
    assert len(list(calls.service.records.all())) == 1
    ended(driver)
    ended(driver)
    driver.delete_network(call(NetworkID=NETWORK))
    driver.delete_network(call(NetworkID=NETWORK))


def test_a_network_takes_its_endpoints_along(driver: Networks, calls: Fake, kept: Kept) -> None:
    created(driver)
    joined(driver)
    driver.delete_network(call(NetworkID=NETWORK))
    assert [*kept.all(Network), *kept.all(Endpoint), *calls.service.records.all()] == []


def test_ptp_routes_the_subnet_through_the_gateway(driver: Networks) -> None:
    created(driver, driver="ptp")
    assert joined(driver)["StaticRoutes"] == [
        {"Destination": "172.18.0.1/32", "RouteType": 1},
        {"Destination": "172.18.0.0/17", "RouteType": 0, "NextHop": "172.18.0.1"},
        {"Destination": "172.18.128.0/17", "RouteType": 0, "NextHop": "172.18.0.1"},
    ]


def test_the_mac_address_is_dockers_or_made_of_the_endpoints_id(driver: Networks, calls: Fake) -> None:
    created(driver)
    interface = {"Address": "172.18.0.3/16", "MacAddress": ""}
    answer = driver.create_endpoint(call(NetworkID=NETWORK, EndpointID="c" * 16, Interface=interface))
    assert answer == {"Interface": {"MacAddress": identity.mac("docker", "c" * 16)}}
    interface["MacAddress"] = "02:00:00:00:00:05"
    assert driver.create_endpoint(call(NetworkID=NETWORK, EndpointID=ENDPOINT, Interface=interface)) == {
        "Interface": {}
    }
    joined(driver, "02:00:00:00:00:05")
    made = calls.kernel.host.link(link_name(ENDPOINT))
    assert made is not None and made.mac == "02:00:00:00:00:05"


@pytest.mark.parametrize("options", [{"driver": "ipvlan"}, {"driver": "macvlan", "mode": "passthru"}], ids=str)
def test_a_mac_address_of_its_own_is_refused_where_it_is_the_parents(driver: Networks, options: dict[str, str]) -> None:
    created(driver, parent="lan0", **options)
    with pytest.raises(BadOption, match="uses that of the parent"):
        joined(driver, "02:00:00:00:00:05")


def test_an_internal_network_has_no_way_out(driver: Networks) -> None:
    pool = {"Gateway": "172.18.0.1/16", "Pool": "172.18.0.0/16"}
    options = {"com.docker.network.internal": True, GENERIC: {}}
    driver.create_network(call(NetworkID=NETWORK, Options=options, IPv4Data=[pool]))
    assert "Gateway" not in joined(driver)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"driver": "overlay"}, "driver overlay needs --ipam-driver weft"),
        ({"driver": "nothing"}, "unknown driver 'nothing': -o driver must be one of bridge, ipvlan, macvlan"),
        ({"mtu": "many"}, "invalid value 'many' for option mtu"),
        ({"colour": "red"}, "unknown option 'colour' for driver bridge"),
        ({"com.docker.network.bridge.host_binding_ipv4": "here"}, "is not an IP address"),
        ({"com.docker.network.container_iface_prefix": "fifteen-letters"}, "must not be longer than 15 bytes"),
        ({"com.docker.network.container_iface_prefix": "a/b"}, "must be printable ASCII"),
        ({"driver": "macvlan", "parent": "lan9"}, 'master "lan9" not found on the host'),
        ({"driver": "macvlan", "parent": "lan0", "mtu": "9000"}, "mtu 9000 must be between 0 and 1500"),
    ],
    ids=str,
)
def test_a_network_that_cannot_work_is_refused(
    driver: Networks, kept: Kept, calls: Fake, options: dict[str, str], said: str
) -> None:
    with pytest.raises(WeftError) as caught:
        created(driver, **options)
    assert said in str(caught.value)
    assert list(kept.all(Network)) == []


def test_a_bridge_belongs_to_one_network(driver: Networks) -> None:
    named = {"com.docker.network.bridge.name": "blue0", "com.docker.network.driver.mtu": "1400"}
    created(driver, **named)
    with pytest.raises(InUse, match="bridge blue0 is already in use by network a9fe288e7882"):
        created(driver, 19, "b" * 16, **named)


def test_addresses_that_are_none_are_refused(driver: Networks, kept: Kept) -> None:
    """Kept, they would make each later call fail, also the one that deletes the endpoint."""
    pool = {"Pool": "172.18.0.0/16", "Gateway": "here"}
    with pytest.raises(WeftError, match=r"IPv4Data\[0\]\.Gateway .* is not an address"):
        driver.create_network(call(NetworkID=NETWORK, Options={}, IPv4Data=[pool]))
    created(driver)
    with pytest.raises(WeftError, match=r"Interface\.Address .* is not an address"):
        driver.create_endpoint(call(NetworkID=NETWORK, EndpointID=ENDPOINT, Interface={"Address": "here"}))
    assert list(kept.all(Endpoint)) == []


def test_unknown_networks_and_ids(driver: Networks, kept: Kept) -> None:
    with pytest.raises(Missing, match="weft has no network"):
        joined(driver)
    with pytest.raises(WeftError, match="is not an id of Docker's"):
        driver.delete_network(call(NetworkID="../../etc/passwd"))


def test_a_damaged_file_is_set_aside(driver: Networks, kept: Kept, tmp_path: Path) -> None:
    created(driver)
    [path] = (tmp_path / "kept" / "networks").iterdir()
    path.write_text("{")
    assert kept.read(Network, NETWORK) is None
    assert [one.suffix for one in path.parent.iterdir()] == [".damaged"]


def test_what_a_killed_driver_has_not_finished_is_removed(driver: Networks, kept: Kept, tmp_path: Path) -> None:
    """Docker need not repeat the call: dockerd may have been killed, too."""
    created(driver)
    for kind in ("networks", "endpoints", "pools"):
        (tmp_path / "kept" / kind / f"{'5' * 64}.tmp").write_text('{"id": ')
    before = kept.read(Network, NETWORK)
    again = Kept(str(tmp_path / "kept"))
    assert again.read(Network, NETWORK) == before is not None
    assert [one.name for one in tmp_path.glob("kept/*/*")] == [f"{NETWORK}.json"]


# Addresses


def test_a_file_of_a_newer_release_is_read(driver: Networks, kept: Kept, tmp_path: Path) -> None:
    created(driver)
    [path] = tmp_path.glob("kept/networks/*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": "red"}))
    assert kept.read(Network, path.stem) is not None and path.exists()


def test_addresses_of_a_pool(addresses: Addresses, kept: Kept) -> None:
    pool = pool_of(addresses, "10.5.0.0/29")["PoolID"]
    assert address_of(addresses, pool, "", RequestAddressType="com.docker.network.gateway") == "10.5.0.1/29"
    assert [address_of(addresses, pool) for _ in range(2)] == ["10.5.0.2/29", "10.5.0.3/29"]
    assert address_of(addresses, pool, "10.5.0.6") == "10.5.0.6/29"
    with pytest.raises(Conflict, match=r"Address already in use: 10.5.0.6"):
        address_of(addresses, pool, "10.5.0.6")
    with pytest.raises(BadOption, match=r"address 10.6.0.1 is not in the pool 10.5.0.0/29"):
        address_of(addresses, pool, "10.6.0.1")
    for text in ("10.5.0.0", "10.5.0.7"):
        with pytest.raises(BadOption, match=rf"address {text} is not one of a host in 10.5.0.0/29"):
            address_of(addresses, pool, text)
    addresses.release_address(call(PoolID=pool, Address="10.5.0.2"))
    # One that was just released is given out last.
    assert [address_of(addresses, pool) for _ in range(3)] == ["10.5.0.4/29", "10.5.0.5/29", "10.5.0.2/29"]
    with pytest.raises(PoolExhausted, match=r"no available addresses in 10.5.0.0/29"):
        address_of(addresses, pool)
    addresses.release_pool(call(PoolID=pool))
    assert list(kept.all(Pool)) == []
    with pytest.raises(Missing, match="there is no pool"):
        address_of(addresses, pool)
    assert address_of(addresses, pool_of(addresses, "10.5.1.0/31")["PoolID"], "10.5.1.0") == "10.5.1.0/31"


def test_a_part_of_a_pool(addresses: Addresses) -> None:
    pool = pool_of(addresses, "10.5.0.0/24", "10.5.0.128/31")["PoolID"]
    assert address_of(addresses, pool, "10.5.0.1") == "10.5.0.1/24"
    assert [address_of(addresses, pool) for _ in range(2)] == ["10.5.0.128/24", "10.5.0.129/24"]
    with pytest.raises(PoolExhausted):
        address_of(addresses, pool)


def test_pools_do_not_overlap(addresses: Addresses) -> None:
    first = pool_of(addresses)["Pool"]
    assert pool_of(addresses)["Pool"] != first
    assert pool_of(addresses, v6=True)["Pool"].startswith("fd")
    with pytest.raises(InUse, match="Pool overlaps with other one"):
        pool_of(addresses, str(first))
    with pytest.raises(BadOption, match="it contains the multicast addresses"):
        pool_of(addresses, "224.0.0.0/8")
    with pytest.raises(BadOption, match=r"is not in 10.5.0.0/24"):
        pool_of(addresses, "10.5.0.0/24", "10.6.0.0/25")
    with pytest.raises(BadOption, match="invalid subnet 'here'"):
        pool_of(addresses, "here")


# Ports


def binding(**keys: object) -> Section:
    return call(**{ports.PORTMAP: [{"Proto": 6, "IP": "", "Port": 80, "HostIP": "", **keys}]})


def published(
    given: list[ports.Binding], taken: set[int] = frozenset(), listening: set[int] = frozenset()
) -> list[Any]:  # type: ignore[assignment]
    found: list[Any] = []
    ports.publish(given, found.extend, lambda: {("tcp", one) for one in taken}, lambda _, span: listening & set(span))
    return found


def test_published_ports() -> None:
    fixed = ports.read(binding(HostPort=8080, HostPortEnd=8080), "127.0.0.1")
    mapping = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"}
    assert published(fixed) == [mapping]
    several = ports.read(binding(HostPort=8080, HostPortEnd=8082, HostIP="::"), "127.0.0.1")
    assert published([*fixed, *several], set(), {8081})[1]["hostPort"] == 8082
    assert published(several)[0]["hostIP"] == "::"
    with pytest.raises(PoolExhausted, match="no free host port in 8080-8082 for 80/tcp"):
        published(several, {8080, 8082}, {8081})
    [free] = published(ports.read(binding(), ""))
    assert free["hostPort"] in ports.EPHEMERAL and "hostIP" not in free
    with pytest.raises(WeftError, match="Proto 99 is not one of tcp, udp, sctp"):
        ports.read(binding(Proto=99), "")


def test_another_port_is_tried_where_a_call_was_faster() -> None:
    tried: list[int] = []

    def add(mappings: list[Any]) -> None:
        tried.append(mappings[0]["hostPort"])
        if len(tried) < 3:
            raise Conflict("host port belongs to another")

    ports.publish(ports.read(binding(HostPort=8000, HostPortEnd=8003), ""), add, set, lambda *_: set())
    assert tried == [8000, 8001, 8002]
    with pytest.raises(Conflict):
        tried.clear()
        ports.publish(ports.read(binding(HostPort=8000, HostPortEnd=8000), ""), add, set, lambda *_: set())


def test_records_of_all_containers_are_read_only_to_choose_a_port() -> None:
    def unread() -> set[tuple[str, int]]:
        raise AssertionError

    found: list[Any] = []
    ports.publish(ports.read(binding(HostPort=8080, HostPortEnd=8080), ""), found.extend, unread, lambda *_: set())
    assert [one["hostPort"] for one in found] == [8080]


def test_a_network_without_the_default_route(driver: Networks) -> None:
    """Docker asks the one that names a gateway for the ports."""
    created(driver, **{"default-route": "false"})
    answer = joined(driver)
    assert answer["DisableGatewayService"] is True and not {"Gateway", "GatewayIPv6"} & set(answer)
    with pytest.raises(BadOption, match="default-route"):
        created(driver, 19, "b" * 16, **{"default-route": "perhaps"})


def test_ports_are_withdrawn_with_their_endpoint(driver: Networks, calls: Fake) -> None:
    created(driver)
    joined(driver)
    asked = [{"Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": 8080, "HostPortEnd": 8080}]
    driver.publish(call(NetworkID=NETWORK, EndpointID=ENDPOINT, Options={ports.PORTMAP: asked}))
    assert calls.published() == {("tcp", 8080)}
    [one] = attachments.endpoints(calls.service)
    assert one.ports == ("8080->80/tcp",)
    ended(driver)
    assert calls.published() == set()


def test_ports_need_a_routed_network(driver: Networks) -> None:
    created(driver, driver="macvlan", parent="lan0")
    joined(driver)
    asked = [{"Proto": 6, "Port": 80, "HostPort": 8080, "HostPortEnd": 8080}]
    with pytest.raises(BadOption, match="ports cannot be published on a network of driver macvlan"):
        driver.publish(call(NetworkID=NETWORK, EndpointID=ENDPOINT, Options={ports.PORTMAP: asked}))


# Names


def test_names_come_from_dockers_api(
    driver: Networks,
    calls: Fake,
    kept: Kept,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(daemons.Daemon, "ensure", lambda *_: None)
    monkeypatch.setattr(resolvers, "servers", lambda root="": ["192.0.2.53", "127.0.0.1", "fe80::1%eth0", "none"])
    created(driver)
    joined(driver)
    container = Section(
        {
            "Id": "f" * 64,
            "Name": "/shop",
            "Config": {"Labels": {"weft.service": "web:80,bad"}, "Env": ["A=b"], "ExposedPorts": {"80/tcp": {}}},
            "NetworkSettings": {"Networks": {"my-net": {"EndpointID": ENDPOINT, "Aliases": ["store", "not a name"]}}},
        }
    )
    naming = Naming(kept, calls)
    naming.announce(container, again=False)
    [path] = (tmp_path / "run" / "names").iterdir()
    found = json.loads(path.read_text())
    assert {"shop", "store", "f" * 12} <= set(found["names"]) and found["domain"] == "my-net"
    assert [(one["name"], one["port"]) for one in found["services"]] == [("web", 80)]
    [server] = calls.kernel.rules.elements("dns_server4")
    assert (server.key, server.data) == (("weft-a9fe288e78",), (ip_address("172.18.0.1"),))
    [asked] = calls.kernel.rules.elements("dns_redirected4")
    assert asked.key == ("weft-a9fe288e78", ip_address("192.0.2.53"))
    [kept_endpoint] = kept.all(Endpoint)
    assert (kept_endpoint.name, kept_endpoint.container) == ("shop", "f" * 64)
    monkeypatch.setattr(owners, "DOCKER_ENDPOINTS", str(tmp_path / "kept" / "endpoints"))
    assert owners.names([ENDPOINT, "../secret"]) == {ENDPOINT: owners.OwnerName("shop", container="f" * 64)}
    before = path.stat().st_mtime_ns
    assert "shop: label weft.service 'bad' must be NAME:PORT" in capfd.readouterr().err
    naming.announce(container, again=False)
    assert path.stat().st_mtime_ns == before and capfd.readouterr().err == ""  # nor is the label named again
    # The driver was killed while it published them.
    [names] = (one for one in calls.service.records.all() if one.attachment.plugin == "dnsname")
    calls.service.records.write(replace(names, phase=Phase.ADDING))
    path.unlink()
    naming.announce(container, again=False)
    assert "shop" in json.loads(path.read_text())["names"]
    # The container was renamed while the driver was down.
    renamed = Section({"Name": "/mall", "Id": "f" * 64, "NetworkSettings": container.raw("NetworkSettings")})
    naming.announce(renamed, again=False)
    assert "mall" in json.loads(path.read_text())["names"]
    ended(driver)
    assert not path.exists()
    naming.announce(container)  # it has ended meanwhile
    assert not path.exists() and list(kept.all(Endpoint)) == []


def test_subnets_of_networks_without_containers_are_known_as_used(
    driver: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host shows nothing of them; a LAN's subnet is shared."""
    monkeypatch.setattr(pools, "DOCKER_NETWORKS", str(tmp_path / "kept" / "networks"))
    assert pools.of_docker() == []
    created(driver)
    created(driver, 19, "b" * 16, driver="macvlan", parent="lan0")
    (tmp_path / "kept" / "networks" / "torn.json").write_text("{")
    [found] = pools.of_docker()
    assert (str(found.subnet), found.by) == ("172.18.0.0/16", "Docker's network a9fe288e7882")
