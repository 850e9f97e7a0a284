"""IPAM type dhcp: its configuration, and the CNI result of an acknowledgement. Pure.

Keys of ``ipam``: ``provide`` (options to send: ``option``, ``value`` or ``fromArg``), ``request``
(options to request: ``option``, ``skipDefault``), ``priority`` (metric of the routes).
``daemonSocketPath`` is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from ipam.dhcp_messages import Message, Option, classless_routes, search_list, static_routes, text
from weft.section import Section
from weft.types import Dns, Result, ResultAddress, Route

_NAMES = {
    "dhcp-client-identifier": Option.CLIENT_ID,
    "subnet-mask": Option.SUBNET_MASK,
    "routers": Option.ROUTERS,
    "host-name": Option.HOST_NAME,
    "user-class": Option.USER_CLASS,
    "vendor-class-identifier": Option.VENDOR_CLASS,
}
_DEFAULT_REQUEST = (
    *(Option.CLASSLESS_ROUTES, Option.SUBNET_MASK, Option.ROUTERS, Option.STATIC_ROUTES),
    *(Option.NAME_SERVERS, Option.DOMAIN, Option.DOMAIN_SEARCH),
)
"""The options requested by default; 121 comes first, as RFC 3442 requires."""

_TIMES = (Option.LEASE_TIME, Option.SERVER_ID, Option.RENEWAL, Option.REBINDING)
_SET_BY_WEFT = frozenset(
    {
        Option.PAD,
        Option.REQUESTED_ADDRESS,
        Option.OVERLOAD,
        Option.MESSAGE_TYPE,
        Option.SERVER_ID,
        Option.PARAMETER_LIST,
    }
)
_MAX_OPTION = 255
_LINK_SCOPE = 253
_MAX_UINT32 = 2**32 - 1
_EVERYWHERE = IPv4Network("0.0.0.0/0")


@dataclass(frozen=True, slots=True)
class DhcpConfig:
    """Options to send (code and data) and to request, and the metric of routes."""

    provide: tuple[tuple[int, bytes], ...] = ()
    request: tuple[int, ...] = ()
    priority: int | None = None


def read(ipam: Section, arguments: Mapping[str, str]) -> DhcpConfig:
    """Read the configuration; ``arguments`` are CNI_ARGS. Problems are added to the section."""
    provide: dict[int, bytes] = {}
    for each in ipam.sections("provide"):
        number = _number(each)
        value, named = each.text("value"), each.text("fromArg")
        if named in arguments:
            value = arguments[named]
        data = value.encode()
        if len(data) > _MAX_OPTION:
            each.problems.add(f"{each.path}: the value of an option must not be longer than {_MAX_OPTION} bytes")
        elif number in _SET_BY_WEFT:
            each.problem("option", "is set by weft itself")
        elif number and value:
            provide[number] = data
    requests = ipam.sections("request")
    asked = tuple(number for each in requests if "option" in each and (number := _number(each)))
    skip = True in [each.flag("skipDefault") for each in requests]  # reads all, for their problems
    request = tuple(dict.fromkeys((*(() if skip else _DEFAULT_REQUEST), *asked, *_TIMES)))
    ipam.text("daemonSocketPath")
    priority = ipam.integer("priority", least=0, most=_MAX_UINT32)
    return DhcpConfig(tuple(sorted(provide.items())), tuple(int(one) for one in request), priority or None)


def _number(section: Section) -> int:
    """The code of an option given by number or name; 0, and a problem, for anything else."""
    value = section.raw("option")
    if isinstance(value, str):
        if value in _NAMES:
            return int(_NAMES[value])
        value = int(value) if value.isascii() and value.isdigit() else None
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < Option.END:
        return value
    section.problem("option", f"must be a number between 1 and 254, or one of {', '.join(_NAMES)}")
    return 0


def client_id(container: str, network: str, interface: str) -> bytes:
    """The client identifier, the same as the reference plugin's, so that addresses are kept."""
    return b"\0" + f"{container}/{network}/{interface}".encode()[: _MAX_OPTION - 1]


def problem(message: Message) -> str:
    """Why an offer or acknowledgement is unusable, "" if it is usable."""
    if not int(message.yours) or message.yours.is_multicast or message.yours.is_loopback:
        return f"it gives the address {message.yours}"
    if len(message.addresses(Option.SERVER_ID)) != 1:
        return "it has no server identifier"
    if len(message.addresses(Option.SUBNET_MASK)) != 1:
        return "it has no subnet mask"
    try:
        _cidr(message)
    except ValueError:
        return f"its subnet mask is {message.addresses(Option.SUBNET_MASK)[0]}"
    return ""


def _cidr(message: Message) -> IPv4Interface:
    mask = message.addresses(Option.SUBNET_MASK)[0]
    bits = f"{int(mask):032b}".rstrip("0")
    if "0" in bits or not bits:
        raise ValueError(mask)
    return IPv4Interface(f"{message.yours}/{len(bits)}")


def result(message: Message, priority: int | None) -> Result:
    """The CNI result of an acknowledgement without a ``problem``."""
    address = _cidr(message)
    routers = message.addresses(Option.ROUTERS)
    gateway = routers[0] if routers and int(routers[0]) else None
    return Result(
        ips=(ResultAddress(address, gateway),),
        routes=tuple(_routes(message, address, gateway, priority)),
        dns=Dns(
            nameservers=tuple(map(str, message.addresses(Option.NAME_SERVERS))),
            domain=text(message.options.get(Option.DOMAIN, b"")),
            search=search_list(message.options.get(Option.DOMAIN_SEARCH, b"")),
        ),
    )


def _routes(message: Message, address: IPv4Interface, gateway: IPv4Address | None, priority: int | None) -> list[Route]:
    """The routes of option 121, else of options 33 and 3. Source: RFC 3442."""
    found = classless_routes(message.options.get(Option.CLASSLESS_ROUTES, b"")) or ()
    if not found:
        found = static_routes(message.options.get(Option.STATIC_ROUTES, b""))
        if gateway is not None:
            found = (*found, (_EVERYWHERE, gateway))
    routes: dict[IPv4Network, Route] = {}
    near = {subnet for subnet, via in found if not int(via)}
    for subnet, via in found:
        if not int(via):
            routes.setdefault(subnet, Route(subnet, priority=priority, scope=_LINK_SCOPE))
            continue
        if via not in address.network and not any(via in each for each in near):
            # A router outside the subnet is on the link: some clouds assign /32 addresses.
            alone = IPv4Network(via)
            routes.setdefault(alone, Route(alone, priority=priority, scope=_LINK_SCOPE))
        routes.setdefault(subnet, Route(subnet, via, priority=priority))
    return list(routes.values())
