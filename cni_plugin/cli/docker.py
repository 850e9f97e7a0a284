"""``weft docker``: the driver process for Docker's networks."""

from __future__ import annotations

import os
import time

import click

from cni_plugin.docker.state import DOCKER, LOCK, SOCKET
from cni_plugin.engine import listener
from weft import daemons, locks
from weft.errors import Busy, WeftError

_START_SECONDS = 30.0
_STOP_SECONDS = 30.0
_PAUSE = 0.05


@click.command()
@click.option("--socket", metavar="PATH", default=SOCKET, show_default=True, help="Where Docker calls the driver.")
@click.option("--docker", metavar="PATH", default=DOCKER, show_default=True, help="The socket of Docker's API.")
def docker(socket: str, docker: str) -> int:
    """Run the driver for Docker's networks in the foreground.

    It serves docker network create -d weft and --ipam-driver weft. dockerd calls it at every start of a
    container, so it should always run: weft up starts it where dockerd runs, and conf/systemd has a
    unit. Stopping or killing it loses nothing.

    \b
    Example:
      docker network create -d weft -o driver=bridge blue
    """
    from cni_plugin.docker.server import main  # imports the HTTP server

    return main(["--socket", socket, "--docker", docker])


def running() -> int:
    """The process of this network namespace's driver, 0 if none runs."""
    return locks.holder(os.path.join(listener.folder(), LOCK))


def start() -> tuple[int, bool]:
    """Start the driver where dockerd runs: its process, 0 without dockerd, and whether it is new. Raises
    WeftError.
    """
    process = running()
    if process or not os.path.exists(DOCKER):
        return process, False
    daemons.start("cni_plugin.docker.server", "serves Docker's networks", "aiohttp")
    deadline = time.monotonic() + _START_SECONDS
    while not running() or not os.path.exists(SOCKET):
        if time.monotonic() > deadline:
            raise WeftError("the driver for Docker failed to start", hint="run weft docker to see why")
        time.sleep(_PAUSE)
    return running(), True


def stop() -> int:
    """Stop the driver and wait for it; its process, 0 if none ran. Raises Busy."""
    process = running()
    if process and not daemons.end(process, _STOP_SECONDS):
        raise Busy(f"timeout waiting for the driver for Docker to stop (process {process})", hint="run weft down again")
    return process
