"""Desired services from the catalog, and the nftables elements for them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.balancer.desired import (
    Backend,
    BalancePolicy,
    Frontend,
    PortGroup,
    VirtualService,
    desired_service,
)
from discovery.balancer.program import ElementChange, Program, decode_tables, frontends
from discovery.balancer.rules import COUNTERS
from discovery.balancer.rules import tables as rule_tables
from discovery.balancer.settings import BalancerSettings, virtual_address_error
from discovery.structs import ServiceAddress, Status, Weights
from lab.services import NODE, Book, config, instance, virtual
from weft.service_options import Algorithm

VIP = "10.79.0.10"
BACKENDS = [Backend(ip_address(f"10.0.0.{number}"), 80) for number in range(1, 6)]
FRONTS = [Frontend(ip_address(VIP), 4, "tcp", 80), Frontend(None, 4, "tcp", 30080), Frontend(None, 4, "udp", 30080)]


def book(**meta: str) -> Book:
    made = Book()
    made.put(instance("web", "10.0.0.1", meta={key.replace("_", "-"): text for key, text in meta.items()}))
    made.put(instance("web", "10.0.0.2"), virtual("web", VIP))
    return made


def shares(made: Book, name: str = "web", address: str = VIP, port: int = 80, protocol: str = "tcp") -> Counter[str]:
    """The number of slots of each backend."""
    service = desired_service(made.catalog, name, config())
    assert service is not None
    tables, taken = Program().tables_for(service)
    assert not taken
    found = tables.get(Frontend(ip_address(address), ip_address(address).version, protocol, port))
    return Counter(f"{one.address}:{one.port}" for one in found.slots) if found else Counter()


def test_healthy_instances_get_slots() -> None:
    made = book()
    assert shares(made) == {"10.0.0.1:80": 6, "10.0.0.2:80": 6}
    made.health(instance("web", "10.0.0.1"), Status.WARNING)
    assert len(shares(made)) == 2
    made.health(instance("web", "10.0.0.1"), Status.CRITICAL)
    assert shares(made) == {"10.0.0.2:80": 1}
    made.health(instance("web", "10.0.0.2"), Status.CRITICAL)
    assert shares(made) == {}


def test_weights_of_passing_and_warning_are_used_except_with_random() -> None:
    made = book()
    made.put(instance("web", "10.0.0.2", weights=Weights(3, 1)))
    assert shares(made) == {"10.0.0.1:80": 3, "10.0.0.2:80": 9}
    made.health(instance("web", "10.0.0.2"), Status.WARNING)
    assert shares(made) == {"10.0.0.1:80": 6, "10.0.0.2:80": 6}
    made.put(instance("web", "10.0.0.2", weights=Weights(0, 0)))
    assert shares(made) == {"10.0.0.1:80": 1}
    made = book(weft_balance="random")
    made.put(instance("web", "10.0.0.2", weights=Weights(3, 1)))
    assert shares(made) == {"10.0.0.1:80": 6, "10.0.0.2:80": 6}


def test_named_ports_map_to_the_port_of_each_instance() -> None:
    made = Book()
    virtually = {"virtual": ServiceAddress("", 8000)}
    made.put(instance("web", "10.0.0.1", 20001, ports={"admin": 9000}, tagged_addresses=virtually, protocol=""))
    made.put(instance("web", "10.0.0.2", 20002, ports={"admin": 9100}), virtual("web", VIP))
    assert set(shares(made, port=8000)) == {"10.0.0.1:20001", "10.0.0.2:20002"}
    assert set(shares(made, port=8000, protocol="udp")) == {"10.0.0.1:20001", "10.0.0.2:20002"}
    assert set(shares(made, port=9000)) == {"10.0.0.1:9000", "10.0.0.2:9100"}
    assert shares(made, port=20001) == {}


def test_each_family_has_its_own_instances() -> None:
    made = book()
    made.put(virtual("web", "fd57:6566:7400::5"))
    made.put(instance("web", "10.0.0.1", tagged_addresses={"lan_ipv6": ServiceAddress("fd00::1", 8080)}))
    made.put(instance("web", "fd00::2"))
    assert shares(made) == {"10.0.0.1:80": 6, "10.0.0.2:80": 6}
    assert set(shares(made, address="fd57:6566:7400::5")) == {"fd00::1:8080", "fd00::2:80"}


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "224.0.0.1",
        VIP,
        "100.100.100.200",
        "168.63.129.16",
        "::1",
        "fe80::1",
        "::ffff:10.0.0.1",
    ],
)
def test_forbidden_backend_addresses_are_refused(address: str) -> None:
    made = Book()
    version = 6 if ":" in address else 4
    one = {4: "10.79.0.20", 6: "fd57:6566:7400::5"}[version]
    made.put(instance("web", address), virtual("web", one))
    assert shares(made, address=one) == {}
    service = desired_service(made.catalog, "web", config())
    assert service is not None
    assert address in service.problems[0]


@pytest.mark.parametrize("address", ["192.0.2.7", "127.0.0.1", "10.79.0.0", "10.79.255.255", "8.8.8.8", "224.0.0.1"])
def test_virtual_addresses_that_belong_to_others_are_refused(address: str) -> None:
    assert address in virtual_address_error(ip_address(address), config())
    made = Book()
    made.put(instance("web", "10.0.0.1"), virtual("web", address))
    assert desired_service(made.catalog, "web", config()) is None
    wide = config(allowed=(ip_network("0.0.0.0/0"),))
    assert bool(virtual_address_error(ip_address(address), wide)) == (address not in ("192.0.2.7", "8.8.8.8"))
    assert "is in use on this host" in virtual_address_error(
        ip_address("192.0.2.7"), wide, (ip_network("192.0.2.0/24"),)
    )


def test_published_ports() -> None:
    made = book(weft_publish="30080, 30081:80/tcp, 80, x, 30082:admin, 99999")
    made.put(instance("web", "10.0.0.1", ports={"admin": 9000}, meta=made.catalog.instances("web")[0].meta))
    service = desired_service(made.catalog, "web", BalancerSettings(NODE.name, published=(1024, 32767)))
    assert service is not None
    found = {(front.version, front.protocol, front.port) for front in frontends(service) if front.address is None}
    assert found == {(version, "tcp", port) for version in (4, 6) for port in (30080, 30081, 30082)}
    named = ["port 80 ", "'x'", "port 99999 "]
    assert len(service.problems) == 3 and all(one in said for one, said in zip(named, service.problems, strict=True))


def test_invalid_metadata_is_reported_and_defaults_are_used() -> None:
    service = desired_service(book(weft_balance="best", weft_sticky="soon", weft_slots="7").catalog, "web", config())
    assert service is not None
    assert service.policy == BalancePolicy()
    assert [problem.split(" ")[1] for problem in service.problems] == ["weft-balance", "weft-sticky:", "weft-slots"]
    service = desired_service(book(weft_balance="sticky", weft_sticky="11m", weft_slots="251").catalog, "web", config())
    assert service is not None
    assert service.policy == BalancePolicy(Algorithm.STICKY, 3600, 251)


def test_a_service_without_instances_keeps_its_address_and_has_no_ports() -> None:
    made = book()
    made.drop(*made.catalog.instances("web"))
    service = desired_service(made.catalog, "web", config())
    assert service == VirtualService("web", addresses=(ip_address(VIP),))
    made.drop(virtual("web", VIP))
    assert desired_service(made.catalog, "web", config()) is None


def test_every_chain_of_a_program_exists_in_the_ruleset() -> None:
    text = rule_tables().plain
    for algorithm in Algorithm:
        for slots in (0, 1, 12, 61, 251, 1021):
            for count in (1, 2, 5, 30, 150):
                backends = tuple((Backend(ip_address(f"10.1.{n // 250}.{n % 250}"), 80), 1) for n in range(count))
                service = VirtualService(
                    "web", BalancePolicy(algorithm, 600, slots), groups=(PortGroup((FRONTS[0],), backends),)
                )
                tables, _ = Program().tables_for(service)
                table = tables[FRONTS[0]]
                assert f"chain {table.chain} {{" in text
                rules = text.partition(f"chain {table.chain} {{")[2].partition("}")[0].replace("\n", " ")
                assert f"mod {len(table.slots)} " in rules


def test_round_robin_services_have_their_own_counters() -> None:
    program = Program()
    chains = []
    for number in range(COUNTERS + 1):
        front = Frontend(ip_address(f"10.79.0.{number + 1}"), 4, "tcp", 80)
        service = VirtualService(
            f"s{number}", BalancePolicy(Algorithm.ROUND_ROBIN), groups=(PortGroup((front,), ((BACKENDS[0], 1),)),)
        )
        tables, _ = program.tables_for(service)
        program.commit(service.name, service, tables)
        chains.append(tables[front].chain)
    assert len(set(chains)) == COUNTERS
    assert (
        program.tables_for(program.services["s3"])[0][Frontend(ip_address("10.79.0.4"), 4, "tcp", 80)].chain
        == chains[3]
    )


SERVICES = st.builds(
    lambda name, algorithm, fronts, backends, addresses: VirtualService(
        name,
        BalancePolicy(algorithm),
        tuple(ip_address(one) for one in addresses),
        tuple(PortGroup((front,), tuple(sorted(backends.items(), key=lambda pair: pair[0].name))) for front in fronts),
    ),
    st.sampled_from(["web", "db"]),
    st.sampled_from(list(Algorithm)),
    st.lists(st.sampled_from(FRONTS), unique=True),
    st.dictionaries(st.sampled_from(BACKENDS), st.integers(0, 3)),
    st.lists(st.sampled_from([VIP, "10.79.0.11"]), unique=True),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(SERVICES, st.booleans()), max_size=8))
def test_changes_transform_one_state_into_the_next(steps: list[tuple[VirtualService, bool]]) -> None:
    """The kernel here refuses to add existing and to delete missing elements, as nf_tables does."""
    kernel: dict[tuple[str, bytes], bytes | str] = {}
    program = Program()
    for service, stays in steps:
        wanted = service if stays else None
        tables, _ = program.tables_for(service) if stays else ({}, ())
        _apply(kernel, program.change(service.name, wanted, tables))
        program.commit(service.name, wanted, tables)
        assert kernel == program.elements()
        assert {front: (table.chain, [one.name for one in table.slots]) for front, table in decode_tables(kernel)} == {
            front: (table.chain, [one.name for one in table.slots]) for front, table in program.tables.items()
        }


def _apply(kernel: dict[tuple[str, bytes], bytes | str], change: ElementChange) -> None:
    for key in change.delete:
        del kernel[key]
    for name, key, data in change.add:
        assert (name, key) not in kernel
        kernel[(name, key)] = data


def test_a_start_with_all_elements_in_place_changes_nothing() -> None:
    program = Program()
    service = VirtualService("web", groups=(PortGroup((FRONTS[0],), tuple((one, 1) for one in BACKENDS)),))
    tables, _ = program.tables_for(service)
    fewer = replace(service, groups=(PortGroup((FRONTS[0],), tuple((one, 1) for one in BACKENDS[1:])),))
    program.commit("web", service, tables)
    tables, _ = program.tables_for(fewer)
    program.commit("web", fewer, tables)
    again = Program()
    again.adopt(program.elements())
    tables, _ = again.tables_for(fewer)
    again.commit("web", fewer, tables)
    assert again.elements() == program.elements()
