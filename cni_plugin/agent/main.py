"""How the agent starts: its workers, its mounts and its privileges.

The workers are forked before the configuration is read, while the process has no threads.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys

from cni_plugin.agent import catalog_file, dns_front, dns_worker, event_log, lookup_worker
from cni_plugin.agent import settings as configuration
from cni_plugin.agent.echo import open_sockets
from cni_plugin.agent.process import Agent
from cni_plugin.agent.settings import Given, Settings
from weft import confinement, events, files
from weft.capabilities import AGENT
from weft.daemon_socket import AlreadyRunning, DaemonSocket
from weft.daemons import need_library
from weft.errors import WeftError
from weft.kernel import private_mounts
from weft.spawner import Spawner, Work

IDLE = 60.0
"""Seconds without an attachment or a service after which an agent that an attachment has started stops.
"""


def main(arguments: list[str]) -> int:
    """The agent as an attachment starts it, which stops when idle; the exit status."""
    return _serve("", {}, IDLE)


def serving(path: str, given: Given) -> int:
    """``weft agent``, by the operator or a service manager; the exit status. ``given`` are keys of the
    configuration from the command line. Raises LibraryMissing.
    """
    need_library("aiohttp", "weft agent")
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)
    return _serve(path, given, 0.0)


def _serve(path: str, given: Given, idle: float) -> int:
    spawner = Spawner(WORKERS, _prepare_http)
    echo = open_sockets()
    try:
        settings = configuration.read(path, given)
        # Under its unit it has such a mount namespace. Scripts may write what they like.
        if idle and not settings.scripts:
            _make_mounts(settings)
        confinement.confine(AGENT)
        return _serve_confined(settings, spawner, echo, idle)
    except AlreadyRunning:
        print("weft: an agent is already running in this network namespace", file=sys.stderr)
        return 3
    except (WeftError, OSError) as error:
        print(f"weft: {error.message if isinstance(error, WeftError) else error}", file=sys.stderr)
        if isinstance(error, WeftError) and error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 1
    finally:
        spawner.close()


def _make_mounts(settings: Settings) -> None:
    """The mounts of ReadWritePaths and StateDirectory in its unit. Raises WeftError, OSError."""
    data = str(catalog_file.folder(settings))
    files.make_directory(data, "the agent's state")
    if settings.store is not None:
        os.makedirs("/etc/cni/net.d", exist_ok=True)
    private_mounts.make(
        ("/run", data, "/etc/weft/etcd", "/etc/cni", "/etc/containers", "/var/lib/cni", events.folder())
    )


def _prepare_probes() -> Work:
    """Import the HTTP library, in the worker that executes checks."""
    from cni_plugin.agent import probe_worker

    return probe_worker.prepare()


def _prepare_grpc() -> Work:
    """Import grpcio, in the worker that executes gRPC checks."""
    from cni_plugin.agent import probe_worker

    return probe_worker.prepare_grpc()


def _prepare_http() -> Work:
    """Import the HTTP library, in the worker that speaks it."""
    from cni_plugin.agent import api_worker

    return api_worker.run


WORKERS = {
    dns_front.NAME: lambda: dns_worker.run,
    "probes": _prepare_probes,
    "grpc": _prepare_grpc,
    "lookups": lambda: lookup_worker.run,
    "http": _prepare_http,
}
"""The agent's workers, each with what it imports, after it has been forked; that of HTTP is needed at once, so
its library, which takes 0.2 s to import, is imported while the agent reads its store.
"""


def _serve_confined(settings: Settings, spawner: Spawner, echo: dict[int, socket.socket], idle: float) -> int:
    folder = f"/run/weft/{os.stat('/proc/self/ns/net').st_ino}"
    files.make_directory(folder, "the agent's state")
    place = DaemonSocket(folder, "agent")
    event_log.start(folder)
    if place.predecessor:
        events.record(folder, "takeover", events.after_kill("agent", place.predecessor))
    agent = Agent(settings, place, spawner, echo, idle=idle)
    while asyncio.run(agent.run()):
        place.listen()  # close() has kept the lock
        agent = Agent(settings, place, spawner, echo, idle=idle, damage=agent.damage)
    return 0
