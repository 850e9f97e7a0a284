"""The one importer of pyroute2: netlink messages to bytes and back.

Only the tables in pyroute2's message classes are used: ``reader`` and ``writer`` work by them. Its ``__init__``
starts event loops and imports every protocol (some 250 ms); the classes alone take a tenth of that, so they are
imported past it. What stands in for the package meanwhile is taken away again, and a real ``import pyroute2``
later on works.
"""

from __future__ import annotations

import _socket
import struct
import sys
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

from weft.kernel.netlink import layouts
from weft.kernel.netlink.reader import Reader
from weft.kernel.netlink.writer import attributes

REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
REPLACE, EXCL, CREATE, APPEND = 0x100, 0x200, 0x400, 0x800
NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWRULE, DELRULE, GETRULE = 32, 33, 34
NEWQDISC, DELQDISC, GETQDISC = 36, 37, 38
NEWFILTER, DELFILTER, GETFILTER = 44, 45, 46

AF_UNSPEC, AF_INET, AF_BRIDGE, AF_INET6 = 0, 2, 7, 10

Attributes = list[Any]


def _message_classes() -> tuple[Any, Any, Any]:
    """pyroute2's link, address and route classes, imported without running the package's ``__init__``."""
    stand_ins = [] if "pyroute2" in sys.modules else _stand_ins()
    try:
        from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
        from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
        from pyroute2.netlink.rtnl.rtmsg import rtmsg
    finally:
        for name in stand_ins:
            del sys.modules[name]
    return ifinfmsg, ifaddrmsg, rtmsg


def _stand_ins() -> list[str]:
    # config is stood in for as well: it imports multiprocessing and platform (8 ms) for settings of sockets.
    found = PathFinder.find_spec("pyroute2")
    if found is None or found.submodule_search_locations is None:
        raise ModuleNotFoundError("pyroute2 is not installed", name="pyroute2")
    package, config = ModuleType("pyroute2"), ModuleType("pyroute2.config")
    package.__path__ = list(found.submodule_search_locations)
    package.__dict__["config"] = config
    config.__dict__.update(AF_BRIDGE=AF_BRIDGE, data_plugins_pkgs=(), data_plugins_path=())
    needless = {"logging": _logging(), "socket": _sockets(), "traceback": ModuleType("traceback")}
    needless["pkgutil"] = ModuleType("pkgutil")
    needless = {name: module for name, module in needless.items() if name not in sys.modules}
    sys.modules.update({"pyroute2": package, "pyroute2.config": config, **needless})
    return ["pyroute2", "pyroute2.config", *needless]


def _logging() -> ModuleType:
    """What tables need of logging, which takes 4 ms to import: nothing is ever logged by them."""
    module = ModuleType("logging")
    silent = type("Silent", (), {"__getattr__": lambda self, name: lambda *_: None})()
    module.__dict__.update(getLogger=lambda name: silent, error=silent.error, warning=silent.warning)
    return module


def _sockets() -> ModuleType:
    """The module ``socket`` without its enumerations and its wrappers, which take 3 ms."""
    module = ModuleType("socket")
    module.__dict__.update({**vars(_socket), "__name__": "socket", "AddressFamily": int})
    return module


_link, _address, _route = _message_classes()
_CLASSES = {
    NEWLINK: _link, DELLINK: _link, GETLINK: _link, SETLINK: _link,
    NEWADDR: _address, DELADDR: _address, GETADDR: _address,
    NEWROUTE: _route, DELROUTE: _route, GETROUTE: _route,
    NEWRULE: layouts.Rule, DELRULE: layouts.Rule, GETRULE: layouts.Rule,
    NEWQDISC: layouts.Queue, DELQDISC: layouts.Queue, GETQDISC: layouts.Queue,
    NEWFILTER: layouts.Queue, DELFILTER: layouts.Queue, GETFILTER: layouts.Queue,
}  # fmt: skip


def _teach_missing_attributes() -> None:
    """Attributes that pyroute2 0.9 has no name for (``linux/if_link.h``)."""
    kinds = _link.ifinfo.data_map
    missing = {
        "macvlan": (
            ("IFLA_MACVLAN_BC_QUEUE_LEN", "uint32"),
            ("IFLA_MACVLAN_BC_QUEUE_LEN_USED", "uint32"),
            ("IFLA_MACVLAN_BC_CUTOFF", "int32"),
        ),
        "ipvlan": (("IFLA_IPVLAN_FLAGS", "uint16"),),
    }
    for kind, more in missing.items():
        named_already = {row[0] for row in kinds[kind].nla_map}
        new = tuple(row for row in more if row[0] not in named_already)
        kinds[kind] = type(kind, (kinds[kind],), {"nla_map": (*kinds[kind].nla_map, *new)})


_teach_missing_attributes()


_LINK_PART = ("=BxHiII", ("family", "ifi_type", "index", "flags", "change"))
_ADDRESS_PART = ("=BBBBI", ("family", "prefixlen", "flags", "scope", "index"))
_ROUTE_PART = ("=BBBBBBBBI", ("family", "dst_len", "src_len", "tos", "table", "proto", "scope", "type", "flags"))
_RULE_PART = ("=BBBBBxxBI", ("family", "dst_len", "src_len", "tos", "table", "action", "flags"))
_QUEUE_PART = ("=BxxxiIII", ("family", "index", "handle", "parent", "info"))
_PARTS = ((NEWADDR, _LINK_PART), (NEWROUTE, _ADDRESS_PART), (NEWRULE, _ROUTE_PART), (NEWQDISC, _RULE_PART))
_HEADER = 16


def _part(kind: int) -> tuple[str, tuple[str, ...]]:
    return next((part for above, part in _PARTS if kind < above), _QUEUE_PART)


def encode(kind: int, flags: int, sequence: int, fields: dict[str, Any], given: Attributes | bytes) -> bytes:
    """One request as bytes; ``fields`` are those of the message's fixed part under pyroute2's names.

    Attributes that are given as bytes are so already.
    """
    form, known = _part(kind)
    written = given if isinstance(given, bytes) else attributes(_CLASSES[kind], fields, given)
    body = struct.pack(form, *(fields.get(name, 0) for name in known)) + written
    return struct.pack("=IHHII", _HEADER + len(body), kind, flags, sequence, 0) + body


def decode(kind: int, data: bytes) -> Reader:
    """One answer, header included; attributes are read when asked for (``get_attr``)."""
    form, known = _part(kind)
    fields = dict(zip(known, struct.unpack_from(form, data, _HEADER), strict=True))
    return Reader(_CLASSES[kind], memoryview(data), _HEADER + struct.calcsize(form), fields)


def attribute(message: Reader | None, *path: str) -> Any:
    """The attribute at the path of names (``IFLA_LINKINFO``, ``IFLA_INFO_KIND``), None if there is none."""
    found: Any = message
    for name in path:
        if not isinstance(found, Reader):
            return None
        found = found.get_attr(name)
    return found


def plain(nested: Any) -> dict[str, int | str]:
    """A nested attribute's numbers and texts: ``IFLA_BR_VLAN_FILTERING`` becomes ``br_vlan_filtering``."""
    if not isinstance(nested, Reader):
        return {}
    return nested.plain()


def named(values: dict[str, int | str]) -> Attributes:
    """The reverse of ``plain``."""
    return [[f"IFLA_{name.upper()}", value] for name, value in values.items()]


def knows(kind: str, option: str) -> bool:
    """Whether a link kind has an option of that name (``br_vlan_filtering``); unknown ones would be lost silently."""
    return any(row[0] == f"IFLA_{option.upper()}" for row in _nla_map(kind))


def knows_port(attribute_name: str) -> bool:
    """Whether a bridge port has an attribute of that name (``brport_isolated``)."""
    return any(row[0] == f"IFLA_{attribute_name.upper()}" for row in _nla_map("bridge_slave"))


def _nla_map(kind: str) -> Any:
    known = _link.ifinfo.data_map.get(kind)
    return known.nla_map if known is not None else ()
