"""Static addresses of overlay networks that containers of this host have: a file for each attachment.

ADD writes it and asks the agent, which answers in a file beside it once the cluster has recorded that
these addresses are at this host, or that they cannot be. The file stays until the attachment ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from weft import files
from weft.identity import digest
from weft.types import Address

FOLDER = "claims"
_WHAT = "a claim of static addresses"
_ANSWER = ".answer"
_MOST_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Claim:
    """The ``addresses`` that an interface of a container wants; ``token`` tells a claim from the ones before.

    ``written`` is when, in seconds since the epoch.
    """

    network: str
    container: str
    interface: str
    addresses: tuple[Address, ...]
    token: str
    written: float = 0.0

    def __str__(self) -> str:
        return f"{self.container}/{self.interface}"


def make(run: str, network: str, container: str, interface: str, addresses: Iterable[Address]) -> Claim:
    """Write a claim; ``run`` is the host's folder in /run. Raises StateDamaged."""
    made = Claim(network, container, interface, tuple(addresses), secrets.token_hex(8))
    path = _path(run, network, container, interface)
    document = {
        "network": network,
        "container": container,
        "interface": interface,
        "addresses": [str(one) for one in made.addresses],
        "token": made.token,
    }
    files.make_directory(os.path.dirname(path), _WHAT)
    files.write(path, json.dumps(document).encode(), _WHAT)
    return made


def remove(run: str, network: str, container: str, interface: str) -> bool:
    """Remove a claim and its answer; whether there was one. Raises StateDamaged."""
    path = _path(run, network, container, interface)
    was = os.path.lexists(path)
    if was:
        files.remove(path, _WHAT)
        files.remove(path + _ANSWER, _WHAT)
    return was


def answer(run: str, claim: Claim, refused: str) -> None:
    """Write what came of a claim: why it is refused, "" if it is not. Raises StateDamaged."""
    path = _path(run, claim.network, claim.container, claim.interface) + _ANSWER
    files.write(path, json.dumps({"token": claim.token, "refused": refused}).encode(), _WHAT)


def answered(run: str, claim: Claim) -> str | None:
    """What came of a claim; None as long as nobody has answered."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        path = _path(run, claim.network, claim.container, claim.interface) + _ANSWER
        found = json.loads(files.read(path, _MOST_BYTES))
        if found["token"] == claim.token:
            return str(found["refused"])
    return None


def listed(run: str) -> Iterator[Claim]:
    """All claims; invalid files are left out."""
    folder = os.path.join(run, FOLDER)
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(folder)):
            if not name.endswith(".json"):
                continue
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
                path = os.path.join(folder, name)
                found = json.loads(files.read(path, _MOST_BYTES))
                addresses = tuple(ip_address(str(one)) for one in found["addresses"])
                network, container, interface = (str(found[key]) for key in ("network", "container", "interface"))
                yield Claim(network, container, interface, addresses, str(found["token"]), os.stat(path).st_mtime)


def _path(run: str, network: str, container: str, interface: str) -> str:
    return os.path.join(run, FOLDER, f"{digest('claim', network, container, interface)}.json")
