"""By which port of which bridge an address is reached: what the kernel has learned of its neighbours.

Sources: ``rtnetlink(7)`` (RTM_GETNEIGH), ``linux/neighbour.h``, ``net/bridge/br_fdb.c``.
"""

from __future__ import annotations

import _socket  # without the ``socket`` module's enumerations, which take milliseconds
import contextlib
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from struct import Struct
from sys import byteorder

from weft.errors import KernelRefused
from weft.kernel.nft.socket import Attributes, attributes
from weft.types import Address

_GET_NEIGHBOURS = 30
_REQUEST, _DUMP = 1, 0x300
_ERROR, _DONE = 2, 3
_BRIDGE = 7
_FAMILIES = (2, 10)
_DESTINATION, _LINK_ADDRESS, _MASTER = 1, 2, 9
_SECONDS = 10
_BUFFER = 1 << 17
_DISCARD = 9
_MESSAGE = Struct("=IHHII")
_NEIGHBOUR = Struct("=BxxxiHBB")


def bridge_ports(addresses: Iterable[Address]) -> dict[Address, int]:
    """The index of the bridge port that each address is behind, in the calling thread's namespace; 0 behind no bridge.

    Those of which the kernel knows nothing yet are left out; ``resolve`` has it learn.
    *Equivalent to:* ``ip neigh show; bridge fdb show``.
    """
    wanted = set(addresses)
    places = {
        address: (index, found[_LINK_ADDRESS])
        for family in _FAMILIES
        for index, found in _dump(family)
        if _LINK_ADDRESS in found and (address := ip_address(found.get(_DESTINATION, b"\0" * 4))) in wanted
    }
    if not places:
        return {}
    learned = {
        (int.from_bytes(found.get(_MASTER, b""), byteorder), found.get(_LINK_ADDRESS, b"")): index
        for index, found in _dump(_BRIDGE)
    }
    bridges = {bridge for bridge, _ in learned}
    return {
        address: learned.get(place, 0)
        for address, place in places.items()
        if place in learned or place[0] not in bridges
    }


def resolve(addresses: Iterable[Address]) -> None:
    """Have the kernel look for the addresses, by an empty datagram to the discard port of each. Does not wait."""
    for address in addresses:
        family = _socket.AF_INET if address.version == 4 else _socket.AF_INET6
        with contextlib.suppress(OSError), contextlib.closing(_socket.socket(family, _socket.SOCK_DGRAM)) as one:
            one.setblocking(False)
            one.sendto(b"", (str(address), _DISCARD))


def _dump(family: int) -> Iterator[tuple[int, Attributes]]:
    """Link and attributes of every entry of a family."""
    body = _NEIGHBOUR.pack(family, 0, 0, 0, 0)
    with contextlib.closing(_socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, 0)) as asking:
        asking.settimeout(_SECONDS)
        try:
            asking.send(_MESSAGE.pack(_MESSAGE.size + len(body), _GET_NEIGHBOURS, _REQUEST | _DUMP, 1, 0) + body)
            while True:
                data = memoryview(asking.recv(_BUFFER))
                while data:
                    length, kind = _MESSAGE.unpack_from(data)[:2]
                    if kind in (_ERROR, _DONE):
                        return
                    index = _NEIGHBOUR.unpack_from(data, _MESSAGE.size)[1]
                    yield index, attributes(data[_MESSAGE.size + _NEIGHBOUR.size : length])
                    data = data[(length + 3) & ~3 :]
        except OSError as error:
            raise KernelRefused(f"cannot ask for neighbours: {error.strerror or error}") from error
