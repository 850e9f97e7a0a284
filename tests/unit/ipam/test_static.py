from __future__ import annotations

from ipaddress import ip_interface
from typing import Any

import pytest

from ipam import static
from weft.section import Problems, Section
from weft.types import Dns


def parse(
    ipam: dict[str, Any],
    arguments: dict[str, str] | None = None,
    args_cni: dict[str, Any] | None = None,
    runtime: dict[str, Any] | None = None,
    version: str = "1.0.0",
) -> tuple[static.Static, list[str]]:
    problems = Problems()
    found = static.read(
        Section(ipam, "ipam", problems),
        version=version,
        arguments=arguments or {},
        args_cni=Section(args_cni or {}, "args.cni", problems),
        runtime=Section(runtime or {}, "runtimeConfig", problems),
    )
    return found, problems.found


def shown(found: static.Static) -> list[tuple[str, str | None]]:
    return [(str(each.address), str(each.gateway) if each.gateway else None) for each in found.addresses]


CONFIGURED = {"addresses": [{"Address": "10.1.0.5/24", "gateway": "10.1.0.1"}]}


def test_everything_configured_is_answered() -> None:
    found, problems = parse(
        CONFIGURED | {"routes": [{"dst": "0.0.0.0/0", "mtu": 1400}], "dns": {"nameservers": ["10.1.0.1"]}}
    )
    assert not problems
    answer = static.result(found)
    assert [str(each.address) for each in answer.ips] == ["10.1.0.5/24"]
    assert (str(answer.routes[0].destination), answer.routes[0].mtu) == ("0.0.0.0/0", 1400)
    assert answer.dns == Dns(nameservers=("10.1.0.1",))
    assert answer.interfaces == ()


def test_arguments_are_added_and_gateways_find_their_subnets() -> None:
    found, problems = parse(CONFIGURED, {"IP": "10.2.0.5/24,fd00::5/64", "GATEWAY": "10.2.0.1,fd00::1"})
    assert not problems
    assert shown(found) == [
        ("10.1.0.5/24", "10.1.0.1"), ("10.2.0.5/24", "10.2.0.1"), ("fd00::5/64", "fd00::1")
    ]  # fmt: skip


def test_later_places_replace_earlier_ones() -> None:
    arguments = {"IP": "10.2.0.5/24"}
    assert shown(parse(CONFIGURED, arguments, {"ips": ["10.3.0.5/24"]})[0]) == [("10.3.0.5/24", None)]
    assert shown(parse(CONFIGURED, arguments, {"ips": ["10.3.0.5/24"]}, {"ips": ["10.4.0.5/24"]})[0]) == [
        ("10.4.0.5/24", None)
    ]


def test_an_address_without_prefix_length_takes_the_configured_ones_place() -> None:
    """As podman passes ``--ip``: one address in CNI_ARGS, several in runtimeConfig."""
    dual = {"addresses": [*CONFIGURED["addresses"], {"address": "fd00::5/64"}]}
    assert shown(parse(dual, {"IP": "10.1.0.9"})[0]) == [("fd00::5/64", None), ("10.1.0.9/24", "10.1.0.1")]
    several = {"ips": ["10.1.0.9", "fd00::9"]}
    assert shown(parse(dual, {}, {}, several)[0]) == [("10.1.0.9/24", "10.1.0.1"), ("fd00::9/64", None)]
    assert shown(parse(dual, {"IP": "10.1.0.9/24"})[0])[0] == ("10.1.0.5/24", "10.1.0.1")  # as the reference


def test_a_configuration_without_addresses_is_valid() -> None:
    found, problems = parse({})
    assert (shown(found), problems) == ([], [])
    assert static.result(found).ips == ()


@pytest.mark.parametrize(
    ("ipam", "arguments", "said"),
    [
        ({"addresses": [{}]}, {}, "ipam.addresses[0].address is missing"),
        ({"addresses": [{"address": "10.1.0.5"}]}, {}, 'ipam.addresses[0].address "10.1.0.5" is not'),
        ({"addresses": [{"address": "10.1.0.5/24", "gateway": "fd00::1"}]}, {}, "not of the same family as"),
        ({"addresses": [{"address": "10.1.0.5/24"}] * 2}, {}, "10.1.0.5 is configured twice"),
        ({}, {"IP": "x"}, 'CNI_ARGS.IP "x" is not'),
        (
            CONFIGURED,
            {"IP": "10.2.0.5"},
            'CNI_ARGS.IP "10.2.0.5" has no prefix length, and no address in ipam.addresses',
        ),
        ({}, {"GATEWAY": "x"}, 'CNI_ARGS GATEWAY "x" is not'),
        ({"routes": [{"gw": "10.1.0.1"}]}, {}, "ipam.routes[0].dst is missing"),
        ({"routes": [{"dst": "10.0.0.0/8", "gw": "fd00::1"}]}, {}, 'ipam.routes[0].gw "fd00::1" is not of the same'),
    ],
)
def test_problems(ipam: dict[str, Any], arguments: dict[str, str], said: str) -> None:
    _, problems = parse(ipam, arguments)
    assert len(problems) == 1
    assert said in problems[0]


def test_old_versions_allow_one_address_of_each_family() -> None:
    two = {"addresses": [{"address": "10.1.0.5/24"}, {"address": "10.1.0.6/24"}]}
    assert parse(two)[1] == []
    assert "allows one address" in parse(two, version="0.2.0")[1][0]


def test_missing_addresses_are_named() -> None:
    found, _ = parse(CONFIGURED)
    assert static.lacks(found, (ip_interface("10.1.0.5/24"),)) is None
    assert static.lacks(found, ()) == "the configured address 10.1.0.5/24 is not in the attachment's result"
