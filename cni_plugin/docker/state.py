"""What Docker tells the driver once and never again: networks, pools and endpoints, a file each.

They are in ``/var/lib/weft/docker``, on disk before Docker is answered: neither a restart of dockerd nor
a boot repeats CreateNetwork or RequestPool.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import TypeVar

from weft import files
from weft.errors import ConfigProblem, StateDamaged

FOLDER = "/var/lib/weft/docker"
SOCKET = "/run/docker/plugins/weft.sock"
"""Where Docker looks for the plugin ``weft``."""
DOCKER = "/run/docker.sock"
"""Docker's own API."""
LOCK = "docker.lock"
"""The driver holds it, in the folder of its network namespace."""
_MOST_BYTES = 16 << 20
_NAME = re.compile(r"[0-9a-zA-Z][0-9a-zA-Z_.-]{0,127}")

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Network:
    """A network. ``config`` is the CNI configuration of its attachments, without their addresses;
    ``gateways`` are addresses with prefix lengths, ``binding`` the host address of published ports that
    name none, ``prefix`` how names of interfaces in containers begin, ``names`` whether containers' names
    are published, ``default_route`` whether they may have their default route by this network. ``made`` is
    seconds since the epoch.
    """

    id: str
    driver: str
    config: Json
    gateways: tuple[str, ...] = ()
    internal: bool = False
    binding: str = ""
    prefix: str = ""
    names: bool = True
    made: float = 0.0
    default_route: bool = True

    @property
    def name(self) -> str:
        """The network's name in weft: Docker tells the driver only the id."""
        return str(self.config["name"])


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An interface of a container on a network. ``sandbox`` is the path of the container's network
    namespace, "" before Join; ``name`` and ``container`` are Docker's name and id of it, once it runs.
    """

    id: str
    network: str
    addresses: tuple[str, ...]
    mac: str
    sandbox: str = ""
    made: float = 0.0
    name: str = ""
    container: str = ""


@dataclass(frozen=True, slots=True)
class Pool:
    """A subnet that weft gives addresses of; ``part`` is the range for those that Docker does not ask for.

    ``taken`` has the time at which each address was given out, ``last`` the one that was last. Docker's API
    does not tell the ``gateway`` where its user gave none. ``overlay`` is the overlay network whose subnet
    it is: then its addresses are those of this host's blocks.
    """

    id: str
    subnet: str
    part: str = ""
    taken: dict[str, float] = field(default_factory=dict)
    last: str = ""
    gateway: str = ""
    made: float = 0.0
    overlay: str = ""


_Kept = TypeVar("_Kept", Network, Endpoint, Pool)


class Kept:
    """The files of one folder, which no other process writes. Callers hold a lock while they write."""

    def __init__(self, folder: str = FOLDER) -> None:
        self._folder = folder
        for kind in (Network, Endpoint, Pool):
            files.make_directory(self._of(kind), "Docker's networks")
            files.remove_unfinished(self._of(kind))

    def _of(self, kind: type[Network] | type[Endpoint] | type[Pool]) -> str:
        return os.path.join(self._folder, f"{kind.__name__.lower()}s")

    def _path(self, kind: type[Network] | type[Endpoint] | type[Pool], name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ConfigProblem(f"{name[:200]!r} is not an id of Docker's")
        return os.path.join(self._of(kind), f"{name}.json")

    def read(self, kind: type[_Kept], name: str) -> _Kept | None:
        """None if there is none; a damaged file is renamed. Raises ConfigProblem for what is no id."""
        path = self._path(kind, name)
        make: Callable[..., _Kept] = kind
        try:
            found: dict[str, object] = json.loads(files.read(path, _MOST_BYTES))
            known = {one.name for one in fields(kind)}  # a newer release may have written others
            values = {key: tuple(one) if isinstance(one, list) else one for key, one in found.items() if key in known}
            return make(**values)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, AttributeError):
            files.set_aside(path)
            return None

    def write(self, one: Network | Endpoint | Pool) -> None:
        """Replace the file; what an endpoint is need not survive a boot. Raises StateDamaged."""
        content = json.dumps(asdict(one)).encode()
        files.write(self._path(type(one), one.id), content, "Docker's networks", durable=not isinstance(one, Endpoint))

    def remove(self, kind: type[Network] | type[Endpoint] | type[Pool], name: str) -> None:
        files.remove(self._path(kind, name), "Docker's networks")

    def all(self, kind: type[_Kept]) -> Iterator[_Kept]:
        try:
            names = sorted(os.listdir(self._of(kind)))
        except OSError as error:
            raise StateDamaged(f"cannot list {self._of(kind)}: {error.strerror}") from error
        for name in names:
            if name.endswith(".json") and (found := self.read(kind, name.removesuffix(".json"))) is not None:
                yield found
