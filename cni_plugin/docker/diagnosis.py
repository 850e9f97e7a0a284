"""What ``weft doctor`` finds of Docker's networks: a driver that does not run, names that are not found."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from ipaddress import ip_address

from cni_plugin.docker.state import FOLDER, LOCK
from cni_plugin.networks.findings import Finding
from weft import files, locks

_RESOLVER = "/etc/resolv.conf"
_UPLINK = "/run/systemd/resolve/resolv.conf"
"""What Docker reads where the resolver is systemd-resolved's stub: moby's ``resolvconf.Path``."""
_STUB = "127.0.0.53"
_DAEMON = "/etc/docker/daemon.json"
_MOST_BYTES = 1 << 20


def findings(run: str, root: str = "") -> Iterator[Finding]:
    """``run`` is the folder of this network namespace, ``root`` that of the files of the host."""
    if not _has_networks(f"{root}{FOLDER}/networks"):
        return
    if not locks.holder(os.path.join(run, LOCK)):
        yield Finding(
            "Docker has networks of weft's, and the driver does not run: containers on them do not start",
            "start it with weft up, or as a service as in conf/systemd",
        )
    servers = _servers(root)
    if servers and all(map(_is_loopback, servers)):
        yield Finding(
            f"Docker asks {servers[0]} for names from this host's namespace, so containers find no services of weft's",
            f'name a server that is no loopback address in {_DAEMON}, such as {{"dns": ["192.0.2.53"]}}, '
            "and restart Docker",
        )


def _has_networks(folder: str) -> bool:
    with contextlib.suppress(OSError):
        return any(name.endswith(".json") for name in os.listdir(folder))
    return False


def _servers(root: str) -> list[str]:
    """The servers that Docker forwards containers' queries to."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        given = json.loads(files.read(f"{root}{_DAEMON}", _MOST_BYTES)).get("dns")
        if isinstance(given, list) and given:
            return [str(one) for one in given]
    found = _of_resolver(f"{root}{_RESOLVER}")
    return _of_resolver(f"{root}{_UPLINK}") or found if found == [_STUB] else found


def _of_resolver(path: str) -> list[str]:
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        words = (line.split() for line in file)
        return [line[1] for line in words if len(line) > 1 and line[0] == "nameserver"]
    return []


def _is_loopback(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return ip_address(text).is_loopback
    return False
