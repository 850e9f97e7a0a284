"""The sockets of a container's checks: opened in its network namespace, for its own addresses alone."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Collection, Iterator
from ipaddress import ip_address
from urllib.parse import urlsplit

from discovery.check_targets import parse_url, split_host_port
from discovery.structs import CheckDefinition
from weft.errors import NamespaceProblem, WeftError
from weft.kernel import netns

AddressInfo = tuple[int, int, int, str, tuple[object, ...]]
"""As getaddrinfo(3) returns it."""


def target_port(definition: CheckDefinition) -> int:
    """The port of a check's target."""
    if definition.type in ("tcp", "udp"):
        return split_host_port(definition.target, definition.type)[1]
    url = urlsplit(parse_url(definition.target))
    return url.port or (443 if url.scheme == "https" else 80)


def open_socket(definition: CheckDefinition, info: AddressInfo, target: Collection[str] | None = None) -> socket.socket:
    """A socket in the check's namespace, not connected; for a container's check, only for the
    container's addresses, those of ``target`` alone if given, and the port of the check's target.

    Raises WeftError, OSError.
    """
    with _in_netns(definition) as own_loopback:
        if definition.netns:
            _refuse_elsewhere(definition, target, info, own_loopback=own_loopback)
        return socket.socket(info[0], info[1] | socket.SOCK_CLOEXEC, info[2])


@contextlib.contextmanager
def _in_netns(definition: CheckDefinition) -> Iterator[bool]:
    """Enter the check's network namespace, if it has one; sockets created within stay in it. Yields
    whether it is another one than this process's.

    Raises NamespaceProblem for a path that has become another namespace: that of a process whose id
    was reused, for instance.
    """
    if not definition.netns:
        yield False
        return
    descriptor, found = netns.open_namespace(definition.netns)
    own = os.stat(netns.CURRENT).st_ino
    try:
        if definition.netns_inode not in (0, found.inode):
            raise NamespaceProblem(f"{definition.netns} is not the container's network namespace any more")
        with netns.inside(descriptor):
            yield found.inode != own
    finally:
        os.close(descriptor)


def _refuse_elsewhere(
    definition: CheckDefinition, target: Collection[str] | None, info: AddressInfo, *, own_loopback: bool
) -> None:
    """Raises WeftError unless the address is the container's."""
    address = str(info[4][0])
    found = ip_address(address)
    found = getattr(found, "ipv4_mapped", None) or found
    own = {ip_address(text) for text in definition.reachable}
    permitted = found in own or (own_loopback and found.is_loopback)
    if not permitted:
        raise WeftError(
            f"refused to connect to {address}: a container's check reaches the container alone, "
            f"{', '.join(definition.reachable) or 'which has no address'}",
            hint="register the check through the HTTP API",
        )
    if info[4][1] != target_port(definition) or (target is not None and address not in target):
        raise WeftError(
            f"refused to be redirected to {address} port {info[4][1]}: a container's check is redirected on the "
            "same host and port only",
            hint="register the check through the HTTP API",
        )
