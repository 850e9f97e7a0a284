"""The decoder and encoder compared with those of pyroute2, whose attribute tables they use."""

from __future__ import annotations

from typing import Any

import pytest

from weft.errors import KernelRefused
from weft.kernel.netlink import codec
from weft.kernel.netlink.constants import NLA_F_NESTED, RTM_GETLINK, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE, RTM_SETLINK
from weft.kernel.netlink.decoder import Decoder
from weft.kernel.netlink.encoder import encode_attributes
from weft.kernel.netlink.links import LinkOptions
from weft.kernel.netlink.rtnetlink import RouteSocket, request
from weft.kernel.netlink.transport import pack


def nested(*attributes: Any, **fields: Any) -> dict[str, Any]:
    return {**fields, "attrs": list(attributes)}


def information(kind: str, *options: Any) -> list[Any]:
    return ["IFLA_LINKINFO", nested(["IFLA_INFO_KIND", kind], ["IFLA_INFO_DATA", nested(*options)])]


MESSAGES: list[tuple[int, dict[str, Any], list[Any]]] = [
    (RTM_GETLINK, {}, [["IFLA_EXT_MASK", 8], ["IFLA_IFNAME", "eth0"]]),
    (RTM_NEWLINK, {"index": 7, "flags": 1, "change": 1}, [["IFLA_MTU", 1400], ["IFLA_ADDRESS", "02:00:00:00:00:0a"]]),
    (RTM_NEWLINK, {}, [["IFLA_IFNAME", "br0"], information("bridge", ["IFLA_BR_VLAN_FILTERING", 1])]),
    (RTM_NEWLINK, {}, [information("macvlan", ["IFLA_MACVLAN_MODE", "passthru"], ["IFLA_MACVLAN_BC_QUEUE_LEN", 9])]),
    (RTM_NEWLINK, {}, [information("vlan", ["IFLA_VLAN_ID", 4094], ["IFLA_VLAN_PROTOCOL", 0x88A8])]),
    (RTM_NEWLINK, {}, [information("ipvlan", ["IFLA_IPVLAN_MODE", 2], ["IFLA_IPVLAN_FLAGS", 1])]),
    (RTM_NEWLINK, {}, [information("vrf", ["IFLA_VRF_TABLE", 70000])]),
    (
        RTM_NEWLINK,
        {},
        [information("vxlan", ["IFLA_VXLAN_ID", 9], ["IFLA_VXLAN_LOCAL", "192.0.2.1"], ["IFLA_VXLAN_PORT", 4789])],
    ),
    (
        RTM_NEWLINK,
        {},
        [
            ["IFLA_NET_NS_FD", 5],
            information("veth", ["VETH_INFO_PEER", nested(["IFLA_IFNAME", "eth0"], ["IFLA_NET_NS_FD", 9])]),
        ],
    ),
    (
        RTM_SETLINK,
        {"family": 7, "index": 3},
        [("IFLA_PROTINFO", nested(["IFLA_BRPORT_MODE", 1], ["IFLA_BRPORT_ISOLATED", 1]), NLA_F_NESTED)],
    ),
    (
        RTM_SETLINK,
        {"family": 7, "index": 3},
        [
            (
                "IFLA_AF_SPEC",
                nested(["IFLA_BRIDGE_FLAGS", 2], ["IFLA_BRIDGE_VLAN_INFO", {"flags": 6, "vid": 42}]),
                NLA_F_NESTED,
            )
        ],
    ),
    (RTM_NEWADDR, {"family": 2, "prefixlen": 24, "index": 2}, [["IFA_LOCAL", "10.1.0.5"], ["IFA_FLAGS", 0x200]]),
    (RTM_NEWADDR, {"family": 10, "prefixlen": 64, "index": 2}, [["IFA_ADDRESS", "fd00::5"]]),
    (
        RTM_NEWROUTE,
        {"family": 2, "dst_len": 16, "table": 252, "type": 1, "flags": 4},
        [
            ["RTA_TABLE", 5000],
            ["RTA_DST", "10.9.0.0"],
            ["RTA_VIA", {"family": 10, "addr": "fd00::1"}],
            ["RTA_METRICS", nested(["RTAX_MTU", 1300], ["RTAX_ADVMSS", 1200])],
        ],
    ),
]


@pytest.mark.parametrize(("kind", "fields", "attributes"), MESSAGES)
def test_the_encoder_encodes_as_pyroute2_would(kind: int, fields: dict[str, Any], attributes: list[Any]) -> None:
    theirs = codec._CLASSES[kind]()
    theirs.update(fields)
    theirs["header"] = {"type": kind, "flags": 5, "sequence_number": 77}
    theirs["attrs"] = [tuple(one) for one in attributes]
    ours = pack(kind, 5, 77, codec.encode(kind, fields, attributes))
    theirs.encode()
    assert ours.hex(" ", 4) == bytes(theirs.data).hex(" ", 4)


@pytest.mark.parametrize(("kind", "fields", "attributes"), MESSAGES)
def test_messages_round_trip(kind: int, fields: dict[str, Any], attributes: list[Any]) -> None:
    message = codec.decode(pack(kind, 5, 77, codec.encode(kind, fields, attributes)))
    assert {name: message[name] for name in fields} == fields
    for name, value in [one[:2] for one in attributes]:
        same(message, name, value)


def same(decoder: Decoder, name: str, value: Any) -> None:
    found = decoder.get_attr(name)
    if not isinstance(value, dict) or "attrs" not in value:
        assert found == value, name
        return
    if name == "VETH_INFO_PEER":  # not decoded: the kernel never sends it
        return
    assert isinstance(found, Decoder), name
    for inner in value["attrs"]:
        same(found, inner[0], inner[1])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("bridge", [["IFLA_BR_VLAN_FILTERING", 1], ["IFLA_BR_AGEING_TIME", 30000], ["IFLA_BR_GROUP_FWD_MASK", 8]]),
        ("vxlan", [["IFLA_VXLAN_ID", 9], ["IFLA_VXLAN_LOCAL", "192.0.2.1"], ["IFLA_VXLAN_PORT", 4789]]),
        ("bridge_slave", [["IFLA_BRPORT_MODE", 1], ["IFLA_BRPORT_ISOLATED", 0]]),
        ("unknown", []),
    ],
)
def test_options_of_a_link_are_those_that_it_was_given(kind: str, options: list[Any]) -> None:
    layout = codec._ifinfmsg.ifinfo.data_map.get(kind)
    data = encode_attributes(layout, {}, options) if layout is not None else b""
    found = LinkOptions(kind, data)
    given = {name.removeprefix("IFLA_").lower(): value for name, value in options}
    assert {name: found[name] for name in found} == dict(found) == given
    assert len(found) == len(options)
    for name in ("br_no_such_option", "br_forward_delay", "brport_cost"):
        assert found.get(name, "none") == "none"


def test_a_reply_of_the_kernel_is_decoded_as_by_pyroute2() -> None:
    socket = RouteSocket()
    [[data]] = socket.request(request(RTM_GETLINK, 0, "look at lo", {}, [["IFLA_IFNAME", "lo"]]))
    socket.close()
    theirs = codec._CLASSES[RTM_NEWLINK](data)
    theirs.decode()
    ours = codec.decode(data)
    for name in (
        "IFLA_IFNAME",
        "IFLA_MTU",
        "IFLA_ADDRESS",
        "IFLA_TXQLEN",
        "IFLA_QDISC",
        "IFLA_GROUP",
    ):
        assert ours.get_attr(name) == theirs.get_attr(name) is not None, name
    assert ours["index"] == theirs["index"] == 1


def test_unknown_attributes_are_refused_by_name() -> None:
    with pytest.raises(KernelRefused, match="IFLA_NONSENSE"):
        codec.encode(RTM_NEWLINK, {}, [["IFLA_NONSENSE", 1]])
    with pytest.raises(KernelRefused, match="IFLA_INFO_DATA"):
        codec.encode(RTM_NEWLINK, {}, [information("nonesuch", ["IFLA_MTU", 1])])


@pytest.mark.parametrize("value", [-1, 1 << 40, "many"])
def test_a_value_that_does_not_fit_is_refused(value: Any) -> None:
    socket = RouteSocket()
    with pytest.raises(KernelRefused, match="cannot change it: a value does not fit"):
        socket.request(request(RTM_NEWLINK, 0, "change it", {"index": 1}, [["IFLA_MTU", value]]))
    socket.close()


@pytest.mark.parametrize("cut", range(0, 60, 3))
def test_a_truncated_message_is_decoded_up_to_its_end(cut: int) -> None:
    body = codec.encode(RTM_NEWLINK, {}, [["IFLA_MTU", 1400], information("bridge", ["IFLA_BR_STP_STATE", 1])])
    data = pack(RTM_NEWLINK, 0, 1, body)
    message = codec.decode(data[: max(len(data) - cut, 32)])
    assert message.get_attr("IFLA_MTU") in (None, 1400)
    assert codec.attribute(message, "IFLA_LINKINFO", "IFLA_INFO_KIND") in (None, "bridge")
