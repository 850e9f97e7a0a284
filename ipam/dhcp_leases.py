"""The DHCP leases of this host as files: what ADD got, what the keeper renews, what DEL gives back.

One file each in ``/run/weft/INODE/dhcp``, replaced by rename. Whoever changes one holds its lock. They are all that the
keeper knows, so it can be killed and started again at any time. Times are seconds since boot.
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

_AGAIN = 10.0  # seconds between two attempts at least
_ENDING = ".json"


@dataclass(frozen=True, slots=True)
class StoredLease:
    """One lease. ``tried``: when the keeper last asked in vain, 0 if it did not; ``lost``: why it is no more."""

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
        """When something is to be done about it, None for never.

        Between two attempts passes half of the time that is left, as RFC 2131 section 4.4.5 has it.
        """
        times = self.lease.timers
        if self.lost or times is None:
            return None
        renewal, rebinding, end = times
        if self.last_attempt < renewal:
            return renewal
        limit = rebinding if self.last_attempt < rebinding else end
        return min(self.last_attempt + max((limit - self.last_attempt) / 2, _AGAIN), limit)


class LeaseFiles:
    """The lease files under a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def prepare(self) -> None:
        """Make the folder. Raises StateDamaged where that fails."""
        files.make_directory(self.folder, "the leases of DHCP")

    def _path(self, key: str) -> str:
        return os.path.join(self.folder, key + _ENDING)

    @contextlib.contextmanager
    def locked(self, key: str, *, timeout: float = locks.TIMEOUT) -> Iterator[None]:
        """Hold one lease. Its lock goes with its file."""
        path = os.path.join(self.folder, f"{key}.lock")
        with locks.hold(path, timeout=timeout):
            try:
                yield
            finally:
                if not os.path.exists(self._path(key)):
                    with contextlib.suppress(OSError):
                        os.unlink(path)

    def read(self, key: str) -> StoredLease | None:
        """The lease; None where there is none, or none that can be read."""
        try:
            with open(self._path(key), encoding="ascii") as file:
                return _parsed(key, json.load(file))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def all(self) -> list[StoredLease]:
        try:
            names = sorted(os.listdir(self.folder))
        except OSError:
            return []
        found = (self.read(name.removesuffix(_ENDING)) for name in names if name.endswith(_ENDING))
        return [one for one in found if one is not None]

    def write(self, held: StoredLease) -> None:
        """Raises StateDamaged where it cannot be written."""
        files.write(self._path(held.key), json.dumps(_plain(held)).encode(), "the lease")

    def remove(self, key: str) -> None:
        """Missing is fine. Raises StateDamaged."""
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
    """The lease in a file's JSON; raises ValueError, KeyError, TypeError or AttributeError for anything else."""
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
