"""DHCP without a network: configuration, message format, results, and the client's state machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipam import dhcp, dhcp_client
from ipam.dhcp_client import ClientOptions, Lease
from ipam.dhcp_leases import LeaseFiles, StoredLease
from ipam.dhcp_messages import (
    ANY,
    BROADCAST,
    Kind,
    Message,
    Option,
    checksum,
    classless_routes,
    decode,
    encode,
    packet,
    payload,
    search_list,
    static_routes,
)
from weft.section import Section
from weft.types import Dns, NamespaceId, Route

MAC = "02:00:00:00:00:01"
SERVER = IPv4Address("192.0.2.1")


def acknowledged(**options: str) -> Message:
    """A DHCPACK for 192.0.2.5; ``options`` override the usual ones: hexadecimal bytes, "" for none."""
    lease = {"SUBNET_MASK": "ffffff00", "SERVER_ID": SERVER.packed.hex(), "LEASE_TIME": "00000078", **options}
    found = {int(Option[name]): bytes.fromhex(data) for name, data in lease.items() if data}
    return Message(Kind.ACK, 7, MAC, yours=IPv4Address("192.0.2.5"), reply=True, options=found)


def settings(ipam: object, **arguments: str) -> tuple[dhcp.DhcpConfig, list[str]]:
    section = Section(ipam, "ipam")
    return dhcp.read(section, arguments), section.problems.found


def test_settings() -> None:
    found, problems = settings(
        {
            "provide": [
                {"option": "host-name", "value": "web"},
                {"option": "77", "fromArg": "CLASS"},
                {"option": 60, "value": "x", "fromArg": "MISSING"},
            ],
            "request": [{"option": "26"}],
            "priority": 7,
        },
        CLASS="blue",
    )
    assert problems == []
    assert found.provide == ((12, b"web"), (60, b"x"), (77, b"blue"))
    assert found.request[0] == Option.CLASSLESS_ROUTES and 26 in found.request and found.priority == 7
    skipped, _ = settings({"request": [{"option": "routers"}, {"skipDefault": True}]})
    assert set(skipped.request) == {3, Option.LEASE_TIME, Option.SERVER_ID, Option.RENEWAL, Option.REBINDING}


@pytest.mark.parametrize(
    ("ipam", "words"),
    [
        ({"provide": [{"option": "nonsense", "value": "x"}]}, "nonsense"),
        ({"provide": [{"option": 0, "value": "x"}]}, "between 1 and 254"),
        ({"provide": [{"option": "53", "value": "x"}]}, "itself"),
        ({"provide": [{"option": "12", "value": "x" * 256}]}, "255"),
        ({"request": [{"option": True}]}, "option"),
        ({"request": [{"skipDefault": "yes"}]}, "skipDefault"),
        ({"priority": -1}, "priority"),
        ({"provide": {}}, "list"),
    ],
)
def test_invalid_settings_are_named(ipam: object, words: str) -> None:
    _, problems = settings(ipam)
    assert problems and words in "; ".join(problems)


def test_the_client_id_is_that_of_the_reference_plugin() -> None:
    assert dhcp.client_id("c1", "net", "eth0") == b"\0c1/net/eth0"
    assert len(dhcp.client_id("c" * 300, "net", "eth0")) == 255


@given(st.dictionaries(st.integers(1, 254).filter(lambda n: n not in (52, 53)), st.binary(max_size=600), max_size=5))
def test_messages_round_trip(options: dict[int, bytes]) -> None:
    message = Message(Kind.OFFER, 0xDEADBEEF, MAC, ANY, SERVER, 3, False, True, options)
    back = decode(encode(message))
    assert back is not None
    assert replace(back, options={}) == replace(message, options={})
    assert {number: data for number, data in back.options.items() if number != 53} == options


@given(st.binary(max_size=400))
def test_random_bytes_are_a_message_or_none(data: bytes) -> None:
    for whole in (data, encode(acknowledged())[:240] + data):
        message = decode(whole)
        if message is not None and not dhcp.problem(message):
            dhcp.result(message, None)
    payload(data)
    classless_routes(data)
    static_routes(data)
    assert all(name for name in search_list(data))


def test_options_in_sname_and_file() -> None:
    """Option overload, RFC 2132 section 9.3."""
    data = bytearray(encode(acknowledged(OVERLOAD="02")))
    data[44:53] = b"\x0c\x03webEND!"[:5] + b"\xff\0\0\0"
    message = decode(bytes(data))
    assert message is not None and message.options[Option.HOST_NAME] == b"web"


def test_packets_contain_the_message() -> None:
    for content in (b"odd", b"even"):
        whole = packet(content, ANY, BROADCAST)
        assert checksum(whole[:20]) == 0
        pseudo = whole[12:20] + b"\0\x11" + whole[24:26]
        assert checksum(pseudo + whole[20:]) == 0
        assert payload(whole) is None, "addressed to the server's port"
        turned = whole[:20] + whole[22:24] + whole[20:22] + whole[24:]
        assert payload(turned + b"padding") == content
        assert payload(turned[:-1]) is None
        assert payload(turned[:6] + b"\x20\0" + turned[8:]) is None, "a fragment"


def test_the_result_of_a_lease() -> None:
    message = acknowledged(
        ROUTERS="c0000201c0000202", NAME_SERVERS="c0000235", DOMAIN=b"example.test".hex(),
        DOMAIN_SEARCH=(b"\x03one\x04test\0\x03two\xc0\x04").hex(), STATIC_ROUTES="0a000000c000020300000000c0000204",
    )  # fmt: skip
    found = dhcp.result(message, 9)
    assert str(found.ips[0].address) == "192.0.2.5/24" and found.ips[0].gateway == SERVER
    assert found.routes == (
        Route(IPv4Network("10.0.0.0/8"), IPv4Address("192.0.2.3"), priority=9),
        Route(IPv4Network("0.0.0.0/0"), SERVER, priority=9),
    )
    assert found.dns == Dns(("192.0.2.53",), "example.test", ("one.test", "two.test"))


def test_classless_static_routes_replace_the_router_option() -> None:
    message = acknowledged(ROUTERS="c0000201", CLASSLESS_ROUTES="18c63364c000020220cb00710100000000")
    assert dhcp.result(message, None).routes == (
        Route(IPv4Network("198.51.100.0/24"), IPv4Address("192.0.2.2")),
        Route(IPv4Network("203.0.113.1/32"), scope=253),
    )


def test_a_router_outside_the_subnet_gets_an_on_link_route() -> None:
    message = acknowledged(SUBNET_MASK="ffffffff", ROUTERS="c0000201")
    assert dhcp.result(message, None).routes == (
        Route(IPv4Network("192.0.2.1/32"), scope=253),
        Route(IPv4Network("0.0.0.0/0"), SERVER),
    )


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (acknowledged(SUBNET_MASK=""), "no subnet mask"),
        (acknowledged(SUBNET_MASK="ff00ff00"), "255.0.255.0"),
        (acknowledged(SUBNET_MASK="00000000"), "0.0.0.0"),
        (acknowledged(SERVER_ID=""), "no server identifier"),
        (replace(acknowledged(), yours=ANY), "0.0.0.0"),
        (replace(acknowledged(), yours=IPv4Address("127.0.0.1")), "127.0.0.1"),
    ],
)
def test_unusable_leases_are_refused_with_the_reason(message: Message, words: str) -> None:
    assert words in dhcp.problem(message)


@pytest.mark.parametrize("text", [b"a b", b"x\ny", b"caf\xc3\xa9", b'"', b"\xff"])
def test_text_of_the_server_cannot_damage_the_lease_file(text: bytes) -> None:
    assert dhcp.result(acknowledged(DOMAIN=text.hex()), None).dns == Dns()


class FakeWire:
    """A transport; the server is a function from the client's message to the replies."""

    mac = MAC

    def __init__(self, server: Callable[[Message], list[Message]]) -> None:
        self._server = server
        self._waiting: list[Message] = []
        self.sent: list[tuple[Message, str]] = []

    def send(self, packet: bytes, mac: str) -> None:
        message = decode(packet[28:])
        assert message is not None and not message.reply
        self.sent.append((message, mac))
        self._waiting += [replace(one, xid=one.xid or message.xid) for one in self._server(message)]

    def receive(self, seconds: float) -> tuple[bytes, str] | None:
        if not self._waiting:
            return None
        content = packet(encode(self._waiting.pop(0)), SERVER, BROADCAST)
        return content[:20] + content[22:24] + content[20:22] + content[24:], "02:00:00:00:00:99"


ASKING = ClientOptions(b"\0me", ((12, b"web"),), (1, 3))
QUICK = {"offers": (0.01, 0.01), "answers": (0.01, 0.01)}


def usual(message: Message) -> list[Message]:
    kind = Kind.OFFER if message.kind is Kind.DISCOVER else Kind.ACK
    return [replace(acknowledged(), kind=kind, xid=0)]


def test_a_lease_is_acquired() -> None:
    transport = FakeWire(usual)
    found = dhcp_client.acquire(transport, ASKING, **QUICK)
    assert (found.server, found.server_mac, found.duration) == (SERVER, "02:00:00:00:00:99", 120.0)
    discover, request = (message for message, _ in transport.sent)
    assert (discover.kind, request.kind) == (Kind.DISCOVER, Kind.REQUEST) and discover.broadcast
    assert discover.options[Option.CLIENT_ID] == b"\0me" and discover.options[Option.PARAMETER_LIST] == bytes((1, 3))
    assert request.addresses(Option.REQUESTED_ADDRESS) == (found.message.yours,)
    assert request.addresses(Option.SERVER_ID) == (SERVER,)


def test_messages_that_are_not_for_this_client_are_ignored() -> None:
    """Wrong transaction id, chaddr or op; an offer without a mask; a NAK of another server."""

    def noisy(message: Message) -> list[Message]:
        [good] = usual(message)
        foreign = acknowledged(SERVER_ID="c0000209")
        return [
            replace(good, xid=message.xid ^ 1),
            replace(good, mac="02:00:00:00:00:02"),
            replace(good, reply=False),
            replace(good, options={}),
            replace(foreign, kind=Kind.NAK, xid=0),
            good,
        ]

    assert dhcp_client.acquire(FakeWire(noisy), ASKING, **QUICK).server == SERVER


def test_timeout_and_nak_are_distinct_errors() -> None:
    with pytest.raises(dhcp_client.NoAnswer) as silent:
        dhcp_client.acquire(FakeWire(lambda message: []), ASKING, **QUICK)
    assert silent.value.code == 11
    with pytest.raises(dhcp_client.NoAnswer, match=r"offered 192\.0\.2\.5 but sent no ACK"):
        dhcp_client.acquire(
            FakeWire(lambda message: usual(message) if message.kind is Kind.DISCOVER else []), ASKING, **QUICK
        )

    def taking_back(message: Message) -> list[Message]:
        return [replace(one, kind=Kind.NAK) if one.kind is Kind.ACK else one for one in usual(message)]

    with pytest.raises(dhcp_client.Refused):
        dhcp_client.acquire(FakeWire(taking_back), ASKING, **QUICK)
    with pytest.raises(dhcp_client.Refused, match="no subnet mask"):
        dhcp_client.acquire(
            FakeWire(lambda message: [replace(acknowledged(SUBNET_MASK=""), kind=Kind.OFFER, xid=0)]), ASKING, **QUICK
        )


HELD = Lease(acknowledged(), SERVER, "02:00:00:00:00:99", 1000.0)


@pytest.mark.parametrize("rebind", [False, True])
def test_renewing_is_unicast_and_rebinding_is_broadcast(rebind: bool) -> None:
    transport = FakeWire(usual)
    found = dhcp_client.renew(transport, ASKING, HELD, rebind=rebind)
    assert found.message.yours == HELD.message.yours
    [(message, mac)] = transport.sent
    assert (message.kind, message.client) == (Kind.REQUEST, HELD.message.yours)
    assert Option.SERVER_ID not in message.options and Option.REQUESTED_ADDRESS not in message.options
    assert mac == ("ff:ff:ff:ff:ff:ff" if rebind else HELD.server_mac)


def test_an_ack_for_another_address_is_no_renewal() -> None:
    def other(message: Message) -> list[Message]:
        return [replace(one, yours=IPv4Address("192.0.2.6")) for one in usual(message)]

    with pytest.raises(dhcp_client.Refused, match=r"192\.0\.2\.6"):
        dhcp_client.renew(FakeWire(other), ASKING, HELD, rebind=False)


def test_release_has_address_server_and_client_id() -> None:
    transport = FakeWire(lambda message: [])
    dhcp_client.release(transport, replace(ASKING, provide=((61, b"\1other"),)), HELD)
    [(message, mac)] = transport.sent
    assert (message.kind, message.client, mac) == (Kind.RELEASE, HELD.message.yours, HELD.server_mac)
    assert message.options[Option.CLIENT_ID] == b"\1other" and message.addresses(Option.SERVER_ID) == (SERVER,)


@pytest.mark.parametrize(
    ("options", "times"),
    [
        ({}, (1060, 1105, 1120)),
        ({"RENEWAL": "0000000a", "REBINDING": "00000014"}, (1010, 1020, 1120)),
        ({"RENEWAL": "000000ff", "REBINDING": "000000ff"}, (1060, 1105, 1120)),
        ({"REBINDING": "0000000a"}, (1010, 1010, 1120)),
        ({"LEASE_TIME": "ffffffff"}, None),
        ({"LEASE_TIME": ""}, None),
    ],
)
def test_times_of_renewal(options: dict[str, str], times: tuple[float, float, float] | None) -> None:
    assert replace(HELD, message=acknowledged(**options)).timers == times


def test_the_retry_interval_is_half_of_the_remaining_time() -> None:
    held = StoredLease("k", "c1/eth0 on net", NamespaceId("/run/netns/c1", 4, 7), "eth0", ASKING, HELD)
    assert [replace(held, last_attempt=when).next_attempt for when in (0, 1060, 1082.5, 1104, 1105, 1112.5)] == [
        1060, 1082.5, 1093.75, 1105, 1115, 1120,
    ]  # fmt: skip
    assert replace(held, lost="gone").next_attempt is None


def test_lease_files(tmp_path: object) -> None:
    leases = LeaseFiles(f"{tmp_path}/dhcp")
    leases.prepare()
    held = StoredLease("k", "c1/eth0 on net", NamespaceId("/run/netns/c1", 4, 7), "eth0", ASKING, HELD, 3.5, "why")
    with leases.locked("k"):
        leases.write(held)
    back = leases.read("k")
    assert back is not None and replace(back, lease=HELD) == held
    assert (back.lease.message.yours, back.lease.timers) == (HELD.message.yours, HELD.timers)
    assert [one.key for one in leases.all()] == ["k"]
    with open(f"{leases.folder}/k.json", "w") as file:
        file.write('{"acknowledged": "00"}')
    assert leases.read("k") is None and leases.all() == []
    with leases.locked("k"):
        leases.remove("k")
        leases.remove("k")
    assert leases.read("k") is None
