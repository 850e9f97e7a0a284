"""Results in the format of every version, after the examples of the specification, and parsed back."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin.wire import result, versions
from weft.errors import VersionProblem
from weft.section import Problems
from weft.types import Cidr, Dns, Result, ResultAddress, ResultInterface, Route

WHOLE = Result(
    interfaces=(
        ResultInterface("cni0", "00:11:22:33:44:55", mtu=1500),
        ResultInterface("veth3243", "55:44:33:22:11:11", socket_path="/run/vhost.sock", pci_id="0000:00:1f.6"),
        ResultInterface("eth0", "99:88:77:66:55:44", "/run/netns/blue", mtu=1450),
    ),
    ips=(
        ResultAddress(ip_interface("10.1.0.5/16"), ip_address("10.1.0.1"), 2),
        ResultAddress(ip_interface("2001:db8::5/64"), None, 2),
        ResultAddress(ip_interface("10.2.0.5/16"), None, None),
    ),
    routes=(
        Route(ip_network("0.0.0.0/0")),
        Route(ip_network("10.9.0.0/16"), ip_address("10.1.0.9"), 1400, 1360, 100, 50, 0),
        Route(ip_network("::/0"), ip_address("2001:db8::1")),
    ),
    dns=Dns(("10.1.0.1",), "example.org", ("example.org", "org"), ("ndots:2",)),
)
DNS = {
    "nameservers": ["10.1.0.1"],
    "domain": "example.org",
    "search": ["example.org", "org"],
    "options": ["ndots:2"],
}
ROUTES = [
    {"dst": "0.0.0.0/0"},
    {"dst": "10.9.0.0/16", "gw": "10.1.0.9", "mtu": 1400, "advmss": 1360, "priority": 100, "table": 50, "scope": 0},
    {"dst": "::/0", "gw": "2001:db8::1"},
]
PLAIN_INTERFACES = [
    {"name": "cni0", "mac": "00:11:22:33:44:55"},
    {"name": "veth3243", "mac": "55:44:33:22:11:11"},
    {"name": "eth0", "mac": "99:88:77:66:55:44", "sandbox": "/run/netns/blue"},
]
IPS = [
    {"interface": 2, "address": "10.1.0.5/16", "gateway": "10.1.0.1"},
    {"interface": 2, "address": "2001:db8::5/64"},
    {"address": "10.2.0.5/16"},
]
EXPECTED: dict[str, dict[str, object]] = {
    "1.1.0": {
        "interfaces": [
            {"name": "cni0", "mtu": 1500, "mac": "00:11:22:33:44:55"},
            {
                "name": "veth3243",
                "mac": "55:44:33:22:11:11",
                "socketPath": "/run/vhost.sock",
                "pciID": "0000:00:1f.6",
            },
            {"name": "eth0", "mtu": 1450, "mac": "99:88:77:66:55:44", "sandbox": "/run/netns/blue"},
        ],
        "ips": IPS,
        "routes": ROUTES,
        "dns": DNS,
    },
    "1.0.0": {"interfaces": PLAIN_INTERFACES, "ips": IPS, "routes": ROUTES, "dns": DNS},
    "0.4.0": {
        "interfaces": PLAIN_INTERFACES,
        "ips": [{"version": family} | each for family, each in zip("464", IPS, strict=True)],
        "routes": ROUTES,
        "dns": DNS,
    },
    "0.2.0": {
        "ip4": {
            "ip": "10.1.0.5/16",
            "gateway": "10.1.0.1",
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.0.9"}],
        },
        "ip6": {"ip": "2001:db8::5/64", "routes": [{"dst": "::/0", "gw": "2001:db8::1"}]},
        "dns": DNS,
    },
}
EXPECTED |= {"0.1.0": EXPECTED["0.2.0"], "0.3.0": EXPECTED["0.4.0"], "0.3.1": EXPECTED["0.4.0"]}


def test_every_version_is_tested() -> None:
    assert set(EXPECTED) == set(versions.ALL)


@pytest.mark.parametrize("version", versions.ALL)
def test_a_result_with_all_fields(version: str) -> None:
    text = result.render(WHOLE, version)
    assert json.loads(text) == EXPECTED[version] | {"cniVersion": version}
    assert text.startswith(b'{\n    "cniVersion": "')
    assert text.endswith(b"\n}")


def test_an_empty_result() -> None:
    assert json.loads(result.render(Result(), "1.1.0")) == {"cniVersion": "1.1.0"}
    assert json.loads(result.render(Result(), "0.3.1")) == {"cniVersion": "0.3.1", "dns": {}}
    for version in ("0.1.0", "0.2.0"):
        with pytest.raises(VersionProblem, match="cannot convert: no valid IP addresses"):
            result.render(Result(routes=WHOLE.routes), version)


def test_old_results_drop_routes_of_a_family_without_address() -> None:
    only = Result(ips=WHOLE.ips[1:2], routes=WHOLE.routes)
    body = json.loads(result.render(only, "0.2.0"))
    assert set(body) == {"cniVersion", "ip6", "dns"}
    assert body["ip6"]["routes"] == [{"dst": "::/0", "gw": "2001:db8::1"}]


def parsed(value: object, version: str) -> tuple[Result, list[str]]:
    problems = Problems()
    return result.parse(value, version, problems), problems.found


def test_old_formats_are_recognized_by_their_keys_in_any_version() -> None:
    value = EXPECTED["0.2.0"] | {"cniVersion": "0.2.0"}
    found, problems = parsed(value, "1.1.0")
    assert problems == []
    assert found == parsed(value, "0.1.0")[0]
    assert [str(each.address) for each in found.ips] == ["10.1.0.5/16", "2001:db8::5/64"]
    assert [str(each.destination) for each in found.routes] == ["0.0.0.0/0", "10.9.0.0/16", "::/0"]
    assert found.dns == WHOLE.dns


def test_the_format_of_0_4_in_later_versions() -> None:
    assert parsed(EXPECTED["0.4.0"], "1.1.0") == parsed(EXPECTED["1.0.0"], "1.1.0")


@pytest.mark.parametrize("index", [{}, {"interface": None}, {"interface": -1}])
def test_an_address_without_interface(index: dict[str, object]) -> None:
    found, problems = parsed({"ips": [{"address": "10.1.0.5/24"} | index]}, "1.0.0")
    assert problems == []
    assert found.ips[0].interface is None


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"interfaces": [{"name": "eth0"}], "ips": [{"address": "10.1.0.5/24", "interface": 1}]}, "ips[0].interface 1"),
        ({"ips": [{"address": "10.1.0.5/24", "interface": 0}]}, "which has 0"),
        ({"ips": [{"address": "10.1.0.5/24", "interface": -2}]}, "ips[0].interface -2"),
        ({"ips": [{"address": "10.1.0.5/24", "interface": 0.0}]}, "must be a whole number"),
        ({"ips": [{"address": "10.1.0.5"}]}, "not an address with a prefix length"),
        ({"ips": [{}]}, "ips[0].address is missing"),
        ({"ips": [{"address": "10.1.0.5/24", "gateway": "x"}]}, "gateway"),
        ({"ips": {}}, "ips {} must be a list"),
        ({"ips": [7]}, "ips[0] must be an object"),
        ({"interfaces": [{"mac": "02:00:00:00:00:01"}]}, "interfaces[0].name is missing"),
        ({"interfaces": [{"name": "eth0", "mtu": -1}]}, "interfaces[0].mtu -1"),
        ({"routes": [{"dst": "<nil>"}]}, "routes[0].dst"),
        ({"routes": [{"gw": "10.1.0.1"}]}, "routes[0].dst"),
        ({"dns": {"nameservers": "10.1.0.1"}}, "dns.nameservers"),
        ({"ip4": {"ip": "2001:db8::5/64"}}, "is not an IPv4 address"),
        ({"ip4": {}}, "ip4.ip is missing"),
        ([], "must be an object"),
        ("eth0", "must be an object"),
    ],
)
def test_invalid_results_are_refused(value: object, sentence: str) -> None:
    _, problems = parsed(value, "1.0.0")
    assert any(sentence in each for each in problems), problems
    assert all(each.startswith("prevResult") for each in problems)


def test_valid_parts_of_an_invalid_result_are_kept() -> None:
    value = {"ips": [{"address": "x"}, {"address": "10.1.0.5/24"}], "routes": [{"dst": "y"}, {"dst": "10.0.0.0/8"}]}
    found, problems = parsed(value, "1.0.0")
    assert len(problems) == 2
    assert [str(each.address) for each in found.ips] == ["10.1.0.5/24"]
    assert [str(each.destination) for each in found.routes] == ["10.0.0.0/8"]


WORDS = st.text(st.characters(codec="ascii", min_codepoint=33, max_codepoint=126), min_size=1, max_size=15)
NUMBERS = st.none() | st.integers(1, 2**32 - 1)
ADDRESS4 = st.integers(0, 2**32 - 1).map(IPv4Address)
ADDRESS6 = st.integers(0, 2**128 - 1).map(IPv6Address)


def cidrs() -> st.SearchStrategy[Cidr]:
    return st.builds(lambda address, bits: ip_interface((address, bits)), ADDRESS4, st.integers(0, 32)) | st.builds(
        lambda address, bits: ip_interface((address, bits)), ADDRESS6, st.integers(0, 128)
    )


@st.composite
def routes(draw: st.DrawFn) -> Route:
    address = draw(ADDRESS4 | ADDRESS6)
    bits = draw(st.integers(0, address.max_prefixlen))
    destination = ip_network((address, bits), strict=False)
    assert isinstance(destination, IPv4Network | IPv6Network)
    gateway = draw(st.none() | (ADDRESS4 if address.version == 4 else ADDRESS6))
    numbers = [draw(NUMBERS) for _ in range(4)]
    return Route(destination, gateway, *numbers, draw(st.none() | st.integers(0, 255)))


@st.composite
def results(draw: st.DrawFn) -> Result:
    interfaces = draw(
        st.lists(
            st.builds(ResultInterface, WORDS, st.text(max_size=5), st.text(max_size=20), st.integers(0, 65535)),
            max_size=3,
        )
    )
    index = st.none() | st.integers(0, len(interfaces) - 1) if interfaces else st.none()
    addresses = st.builds(ResultAddress, cidrs(), st.none() | ADDRESS4 | ADDRESS6, index)
    words = st.lists(WORDS, max_size=2).map(tuple)
    return Result(
        tuple(interfaces),
        tuple(draw(st.lists(addresses, max_size=3))),
        tuple(draw(st.lists(routes(), max_size=3))),
        draw(st.builds(Dns, words, st.just("") | WORDS, words, words)),
    )


@given(results())
def test_results_round_trip(value: Result) -> None:
    found, problems = parsed(json.loads(result.render(value, "1.1.0")), "1.1.0")
    assert problems == []
    assert found == value


@given(results(), st.sampled_from(versions.ALL))
def test_only_fields_that_a_version_lacks_are_lost(value: Result, version: str) -> None:
    try:
        text = result.render(value, version)
    except VersionProblem:
        assert not value.ips
        assert version in ("0.1.0", "0.2.0")
        return
    found, problems = parsed(json.loads(text), version)
    assert problems == []
    assert result.render(found, version) == text
