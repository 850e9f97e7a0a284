"""What ``weft doctor`` finds of Docker's networks: a driver that does not run, names that are not found."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from cni_plugin.docker import resolvers
from cni_plugin.docker.state import FOLDER, LOCK
from cni_plugin.networks.findings import Finding
from weft import locks
from weft.remedies import Command, NoCommand


def findings(run: str, root: str = "") -> Iterator[Finding]:
    """``run`` is the folder of this network namespace, ``root`` that of the files of the host."""
    if not _has_networks(f"{root}{FOLDER}/networks"):
        return
    if not locks.holder(os.path.join(run, LOCK)):
        yield Finding(
            "Docker has networks of weft's, and the driver does not run: containers on them do not start",
            Command("weft up", "to start it"),
        )
    servers = resolvers.servers(root)
    if servers and all(map(resolvers.is_loopback, servers)):
        yield Finding(
            f"Docker asks {servers[0]} for names from this host's namespace, so containers find no services of weft's",
            NoCommand(
                "name a server that is no loopback address in /etc/docker/daemon.json, such as "
                '{"dns": ["192.0.2.53"]}, and restart Docker'
            ),
        )


def _has_networks(folder: str) -> bool:
    with contextlib.suppress(OSError):
        return any(name.endswith(".json") for name in os.listdir(folder))
    return False
