"""DHCP leases as files, acquired by ADD, renewed by the keeper and released by DEL.

One JSON file each in ``/run/weft/INODE/dhcp``, replaced atomically under its lock. The keeper has
no other state, so it can be restarted at any time. Times are seconds since boot.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

from ipam.dhcp import problem
from ipam.dhcp_client import ClientOptions, Lease
from ipam.dhcp_messages import decode, encode
from weft import files, locks
from weft.types import NamespaceId

_MIN_RETRY = 10.0  # seconds
_SUFFIX = ".json"


@dataclass(frozen=True, slots=True)
class StoredLease:
    """A lease. ``last_attempt``: of a failed renewal, or 0; ``lost``: why it has ended."""

    key: str
    description: str
    namespace: NamespaceId
    link: str
    options: ClientOptions
    lease: Lease
    last_attempt: float = 0.0
    lost: str = ""

    @property
    def next_attempt(self) -> float | None:
        """When to renew, rebind or expire it next, None for never.

        Retries wait half of the remaining time. Source: RFC 2131, section 4.4.5.
        """
        times = self.lease.timers
        if self.lost or times is None:
            return None
        renewal, rebinding, end = times
        if self.last_attempt < renewal:
            return renewal
        limit = rebinding if self.last_attempt < rebinding else end
        return min(self.last_attempt + max((limit - self.last_attempt) / 2, _MIN_RETRY), limit)


class LeaseFiles:
    """The lease files in a directory."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def prepare(self) -> None:
        """Create the directory. Raises StateDamaged."""
        files.make_directory(self.folder, "DHCP leases")

    def _path(self, key: str) -> str:
        return os.path.join(self.folder, key + _SUFFIX)

    @contextlib.contextmanager
    def locked(self, key: str, *, timeout: float = locks.TIMEOUT) -> Iterator[None]:
        """Lock a lease. Its lock file is removed with it."""
        path = os.path.join(self.folder, f"{key}.lock")
        with locks.hold(path, timeout=timeout):
            try:
                yield
            finally:
                if not os.path.exists(self._path(key)):
                    with contextlib.suppress(OSError):
                        os.unlink(path)

    def read(self, key: str) -> StoredLease | None:
        """The lease, None if its file is missing or invalid."""
        try:
            return _parsed(key, json.loads(files.read(self._path(key))))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def all(self) -> list[StoredLease]:
        try:
            names = sorted(os.listdir(self.folder))
        except OSError:
            return []
        found = (self.read(name.removesuffix(_SUFFIX)) for name in names if name.endswith(_SUFFIX))
        return [one for one in found if one is not None]

    def write(self, held: StoredLease) -> None:
        """Raises StateDamaged."""
        files.write(self._path(held.key), json.dumps(_plain(held)).encode(), "the lease")

    def remove(self, key: str) -> None:
        """Remove a lease if it exists. Raises StateDamaged."""
        files.remove(self._path(key), "the lease")


def _plain(held: StoredLease) -> dict[str, object]:
    lease, asking = held.lease, held.options
    return {
        "about": held.description,
        "namespace": [held.namespace.path, held.namespace.device, held.namespace.inode],
        "link": held.link,
        "client": asking.client.hex(),
        "provide": [[number, data.hex()] for number, data in asking.provide],
        "request": list(asking.request),
        "acknowledged": encode(lease.message).hex(),
        "server": str(lease.server),
        "server_mac": lease.server_mac,
        "since": lease.requested_at,
        "tried": held.last_attempt,
        "lost": held.lost,
    }


def _parsed(key: str, value: dict[str, object]) -> StoredLease:
    """Parse a lease; raises ValueError, KeyError, TypeError or AttributeError."""
    message = decode(bytes.fromhex(_text(value["acknowledged"])))
    if message is None or problem(message):
        raise ValueError("no acknowledgement")
    path, device, inode = _list(value["namespace"])
    provide = tuple(
        (_whole(number), bytes.fromhex(_text(data))) for number, data in map(_list, _list(value["provide"]))
    )
    asking = ClientOptions(bytes.fromhex(_text(value["client"])), provide, tuple(map(_whole, _list(value["request"]))))
    lease = Lease(message, IPv4Address(_text(value["server"])), _text(value["server_mac"]), _number(value["since"]))
    return StoredLease(
        key, _text(value["about"]), NamespaceId(_text(path), _whole(device), _whole(inode)), _text(value["link"]),
        asking, lease, _number(value["tried"]), _text(value["lost"]),
    )  # fmt: skip


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(value)
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError(value)
    return float(value)


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(value)
    return value
