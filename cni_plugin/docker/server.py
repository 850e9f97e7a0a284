"""The driver's process: HTTP with JSON on the socket where Docker looks for plugins."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from aiohttp import web

from cni_plugin.docker.addresses import SPACE, Addresses
from cni_plugin.docker.agreement import Agreement
from cni_plugin.docker.api import DockerApi
from cni_plugin.docker.calls import Calls
from cni_plugin.docker.driver import Networks
from cni_plugin.docker.state import DOCKER, LOCK, SOCKET, Json, Kept
from weft import confinement, daemon_socket, files, locks, stderr
from weft.capabilities import ENGINE
from weft.errors import Busy, WeftError
from weft.section import Problems, Section

_CONTENT_TYPE = "application/vnd.docker.plugins.v1.1+json"
_BACKLOG = 128
_THREADS = 8
_MOST_BYTES = 1 << 20

_T = TypeVar("_T")
Handler = Callable[[Section], Json]


def handlers(networks: Networks, addresses: Addresses) -> Mapping[str, Handler]:
    """The calls of libnetwork that have an answer; all others are answered with {}."""
    return {
        "Plugin.Activate": lambda _: {"Implements": ["NetworkDriver", "IpamDriver"]},
        "NetworkDriver.GetCapabilities": lambda _: {"Scope": "local", "ConnectivityScope": "local"},
        "NetworkDriver.CreateNetwork": networks.create_network,
        "NetworkDriver.DeleteNetwork": networks.delete_network,
        "NetworkDriver.CreateEndpoint": networks.create_endpoint,
        "NetworkDriver.DeleteEndpoint": networks.delete_endpoint,
        "NetworkDriver.EndpointOperInfo": lambda _: {"Value": {}},
        "NetworkDriver.Join": networks.join,
        "NetworkDriver.Leave": networks.leave,
        "NetworkDriver.ProgramExternalConnectivity": networks.publish,
        "NetworkDriver.RevokeExternalConnectivity": networks.withdraw,
        "IpamDriver.GetCapabilities": lambda _: {"RequiresMACAddress": False, "RequiresRequestReplay": False},
        "IpamDriver.GetDefaultAddressSpaces": lambda _: {
            "LocalDefaultAddressSpace": SPACE,
            "GlobalDefaultAddressSpace": SPACE,
        },
        "IpamDriver.RequestPool": addresses.request_pool,
        "IpamDriver.ReleasePool": addresses.release_pool,
        "IpamDriver.RequestAddress": addresses.request_address,
        "IpamDriver.ReleaseAddress": addresses.release_address,
    }


class Driver:
    """Serves Docker's calls until a signal."""

    def __init__(self, listener: socket.socket, docker: str) -> None:
        self._listener = listener
        self._kept = Kept()
        self._calls = Calls()
        self._networks = Networks(self._kept, self._calls)
        self._addresses = Addresses(self._kept)
        self._handlers = handlers(self._networks, self._addresses)
        self._threads = ThreadPoolExecutor(_THREADS, "docker")
        self._api = DockerApi(docker)
        self._agreement = Agreement(
            self._api, self._kept, self._calls, self._networks, self._addresses, self._in_a_thread
        )
        self._ended = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ended.set)
        application = web.Application(client_max_size=_MOST_BYTES)
        application.router.add_post("/{name}", self._serve)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.SockSite(runner, self._listener).start()
        agreeing = asyncio.create_task(self._agreement.run())
        try:
            await self._ended.wait()
        finally:
            agreeing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await agreeing
            await self._api.close()
            await runner.cleanup()
            self._threads.shutdown()

    async def _in_a_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _serve(self, request: web.Request) -> web.Response:
        name, started = request.match_info["name"], time.monotonic()
        loop = asyncio.get_running_loop()
        try:
            body = await request.read()
            call = Section(json.loads(body) if body.strip() else {}, "", Problems())
            handler = self._handlers.get(name)
            # Shielded: a call that Docker no longer waits for is finished all the same.
            answer: Json = await asyncio.shield(loop.run_in_executor(self._threads, handler, call)) if handler else {}
            status, said = 200, "done"
        except WeftError as error:
            status, answer, said = 400, {"Err": str(error)}, f"refused: {error}"
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            status, answer, said = 400, {"Err": f"not valid JSON: {error}"}, f"refused: {error}"
        except Exception as error:
            text = f"internal error: {type(error).__name__}: {error}"
            status, answer, said = 500, {"Err": text}, text
        self._agreement.called()
        seconds = time.monotonic() - started
        stderr.write(f"weft docker: {name}: {said}, {seconds * 1000:.1f} ms\n")
        return web.Response(body=json.dumps(answer).encode(), status=status, headers={"Content-Type": _CONTENT_TYPE})


def listen(path: str) -> socket.socket:
    """The listening socket: systemd's, else a new one at a path. Raises OSError, StateDamaged."""
    if os.environ.pop("LISTEN_PID", "") == str(os.getpid()) and os.environ.pop("LISTEN_FDS", "") == "1":
        os.set_inheritable(3, False)
        found = socket.socket(fileno=3)
        found.setblocking(False)
        return found
    files.make_directory(os.path.dirname(path), "the driver's socket", 0o755)
    return daemon_socket.bind(path, _BACKLOG)


def main(arguments: list[str]) -> int:
    """``[--socket PATH] [--docker PATH]``; the exit status: 0 after SIGTERM, 3 where a driver runs already,
    else 1 or 2.
    """
    places, rest = {"--socket": SOCKET, "--docker": DOCKER}, list(arguments)
    while rest:
        word, equals, value = rest.pop(0).partition("=")
        if word not in places or not (equals or rest):
            stderr.write(f"weft docker: invalid argument: {word}\nSee 'weft docker --help'.\n")
            return 2
        places[word] = value if equals else rest.pop(0)
    confinement.confine(ENGINE)
    folder = f"/run/weft/{os.stat('/proc/self/ns/net').st_ino}"
    try:
        files.make_directory(folder, "the driver's lock")
        with locks.hold(os.path.join(folder, LOCK), timeout=2.0):
            listener = listen(places["--socket"])
            asyncio.run(_run(listener, places["--docker"]))
    except Busy:
        stderr.write("weft: a driver for Docker is already running in this network namespace\n")
        return 3
    except (OSError, WeftError) as error:
        stderr.write(f"weft: cannot start the driver for Docker: {error}\n")
        return 1
    return 0


async def _run(listener: socket.socket, docker: str) -> None:
    await Driver(listener, docker).run()
