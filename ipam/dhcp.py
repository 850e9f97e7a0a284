"""What a configuration asks of a DHCP server, and what its answer means for a container. Pure.

Keys of ``ipam``: ``provide`` (options to send: ``option``, ``value`` or ``fromArg``), ``request`` (options to ask for:
``option``, ``skipDefault``), ``priority`` (the metric of the routes). ``daemonSocketPath`` is accepted and not needed.
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
_USUAL = (
    *(Option.CLASSLESS_ROUTES, Option.SUBNET_MASK, Option.ROUTERS, Option.STATIC_ROUTES),
    *(Option.NAME_SERVERS, Option.DOMAIN, Option.DOMAIN_SEARCH),
)
"""What is asked for by default. Option 121 comes first, as RFC 3442 wants it."""

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
_LONGEST = 255
_LINK_SCOPE = 253
_MOST = 2**32 - 1
_EVERYWHERE = IPv4Network("0.0.0.0/0")


@dataclass(frozen=True, slots=True)
class Settings:
    """What to send and to ask for; ``provide`` holds option numbers with their bytes."""

    provide: tuple[tuple[int, bytes], ...] = ()
    request: tuple[int, ...] = ()
    priority: int | None = None


def read(ipam: Section, arguments: Mapping[str, str]) -> Settings:
    """The settings; ``arguments`` are those of CNI_ARGS. Problems are noted and not raised."""
    provide: dict[int, bytes] = {}
    for each in ipam.sections("provide"):
        number = _number(each)
        value, named = each.text("value"), each.text("fromArg")
        if named in arguments:
            value = arguments[named]
        data = value.encode()
        if len(data) > _LONGEST:
            each.problems.add(f"{each.path}: the value of an option must not be longer than {_LONGEST} bytes")
        elif number in _SET_BY_WEFT:
            each.problem("option", "is one that weft itself must set")
        elif number and value:
            provide[number] = data
    requests = ipam.sections("request")
    asked = tuple(number for each in requests if "option" in each and (number := _number(each)))
    skip = True in [each.flag("skipDefault") for each in requests]  # all are read, for their problems
    request = tuple(dict.fromkeys((*(() if skip else _USUAL), *asked, *_TIMES)))
    ipam.text("daemonSocketPath")
    priority = ipam.integer("priority", least=0, most=_MOST)
    return Settings(tuple(sorted(provide.items())), tuple(int(one) for one in request), priority or None)


def _number(section: Section) -> int:
    """The option's number, given as such or by name; 0 with a problem noted where it is neither."""
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
    """Who the client is: the reference's identifier, so that a server keeps its address when weft takes over."""
    return b"\0" + f"{container}/{network}/{interface}".encode()[: _LONGEST - 1]


def problem(message: Message) -> str:
    """Why an offer or acknowledgement cannot be used, "" if it can."""
    if not int(message.yours) or message.yours.is_multicast or message.yours.is_loopback:
        return f"it gives the address {message.yours}"
    if len(message.addresses(Option.SERVER_ID)) != 1:
        return "it does not say which server it is from"
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
    """The answer to ADD that an acknowledgement amounts to; ``problem`` must have found none."""
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
    """The routes: where a server gives option 121, options 33 and 3 do not count (RFC 3442)."""
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
            # A router outside the subnet is on the link all the same: clouds give addresses so.
            alone = IPv4Network(via)
            routes.setdefault(alone, Route(alone, priority=priority, scope=_LINK_SCOPE))
        routes.setdefault(subnet, Route(subnet, via, priority=priority))
    return list(routes.values())
