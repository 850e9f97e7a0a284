"""The DNS servers to which Docker's resolver forwards containers' queries unless ``--dns`` names others.

They are dockerd's own ``--dns`` or ``dns`` of daemon.json, else those of the host, else two public ones.
Docker's API tells none of them.
"""

from __future__ import annotations

import contextlib
import json
from ipaddress import ip_address

from weft import files

_RESOLVER = "/etc/resolv.conf"
_UPLINK = "/run/systemd/resolve/resolv.conf"
"""What Docker reads where the resolver is systemd-resolved's stub: moby's ``resolvconf.Path``."""
_STUB = "127.0.0.53"
_DEFAULT = ("8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844")
"""What Docker asks where the host names no server: moby's ``resolvconf.defaultIPv4Dns`` and ``defaultIPv6Dns``."""
_DAEMON = "/etc/docker/daemon.json"
_PROCESS = "/run/docker.pid"
_OPTION = "--dns"
_MOST_BYTES = 1 << 20


def servers(root: str = "") -> list[str]:
    """The servers of containers without ``--dns``; ``root`` is the folder of the host's files."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        given = json.loads(files.read(f"{root}{_DAEMON}", _MOST_BYTES)).get("dns")
        if isinstance(given, list) and given:
            return [str(one) for one in given]
    if given := _of_process(root):
        return given
    found = _of_resolver(f"{root}{_RESOLVER}")
    if found == [_STUB]:
        found = _of_resolver(f"{root}{_UPLINK}") or found
    return found or [*_DEFAULT]


def is_loopback(text: str) -> bool:
    """Whether Docker asks this server from the host's namespace."""
    with contextlib.suppress(ValueError):
        return ip_address(text).is_loopback
    return False


def asked_from_containers(root: str = "") -> list[str]:
    """Those that Docker asks from a container's namespace."""
    found = []
    for text in servers(root):
        with contextlib.suppress(ValueError):
            address = ip_address(text)
            if not address.is_loopback and not getattr(address, "scope_id", None):
                found.append(str(address))
    return found


def _of_process(root: str) -> list[str]:
    """The option ``--dns`` of the dockerd that runs."""
    with contextlib.suppress(OSError, ValueError):
        process = int(files.read(f"{root}{_PROCESS}", _MOST_BYTES))
        words = iter(files.read(f"/proc/{process}/cmdline", _MOST_BYTES).decode(errors="replace").split("\0"))
        named = [next(words, "") if word == _OPTION else word.partition("=")[2] for word in words
                 if word == _OPTION or word.startswith(f"{_OPTION}=")]  # fmt: skip
        return [one for text in named for one in text.split(",") if one]
    return []


def _of_resolver(path: str) -> list[str]:
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        words = (line.split() for line in file)
        return [line[1] for line in words if len(line) > 1 and line[0] == "nameserver"]
    return []
