"""A worker thread: reads a request, has the service handle it, and sends the reply."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from cni_plugin.engine import code
from cni_plugin.engine.connection import ClientConnection, ClientGone
from cni_plugin.engine.kernel import WorkerKernel
from cni_plugin.entry import cni, netavark
from cni_plugin.ops.operation import Operation
from cni_plugin.service import delegate
from cni_plugin.service.log import Level, operation_log
from cni_plugin.service.verbs import Service
from cni_plugin.wire import frame
from cni_plugin.wire.request import Request
from weft import stderr
from weft.errors import Busy
from weft.kernel.host import Host
from weft.kernel.interface import Ruleset
from weft.kernel.netlink.batch_deletion import BatchDeleter
from weft.types import Result
from weft.version import newer


@dataclass(frozen=True, slots=True)
class Shared:
    """What all workers of a process share. ``boot`` is the kernel's boot id, ``view`` that of
    ``wire.frame``.
    """

    rules: Ruleset
    link_deleter: BatchDeleter
    code: code.Code
    view: str
    boot: str
    level: Level


FULL_LOAD = 10
_LOAD = {"ADD": FULL_LOAD, "DEL": 1, "setup": FULL_LOAD, "teardown": 1}
"""The load of one call; at ``FULL_LOAD`` a process leaves new connections to the others.

ADDs compete for the GIL and RTNL. DELs mostly wait for the kernel, which deletes links sooner in one
batch than one by one (``netlink.batch_deletion``).
"""


class Worker:
    """Serves connections; belongs to one thread."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._kernel = WorkerKernel(shared.rules, shared.link_deleter)
        self._run = f"/run/weft/{self._kernel.host.id.inode}"
        self.failed = False

    def close(self) -> None:
        self._kernel.host.close()

    def serve(
        self, client: ClientConnection, loaded: Callable[[int], AbstractContextManager[None]], *, is_short: bool = False
    ) -> bool:
        """Serve one request, within ``loaded`` of its load. Raises nothing. ``failed`` tells whether it failed.

        False where the client shows that this engine is outdated and must stop. A request is declined,
        and done by the client in its own process, where engine and client differ in version,
        installation or view of the file system, or ``is_short`` of resources.
        """
        self.failed = False
        try:
            sent = client.receive()
            outdated = not self._shared.code.verify_folders() or newer(sent.version, code.VERSION)
            if outdated or is_short or sent.root != code.ROOT or sent.view != self._shared.view:
                client.send(frame.declined())
                return not outdated
            command = sent.netavark[0] if sent.netavark else sent.environment.get("CNI_COMMAND", "")
            with loaded(_LOAD.get(command, 0)):
                reply = self._reply(sent, client)
            client.send(reply)
        except (ClientGone, frame.FrameProblem) as error:
            if self._shared.level:
                stderr.write(f"weft: request dropped: {error}\n")
        return True

    def _reply(self, sent: frame.RequestFrame, client: ClientConnection) -> bytes:
        messages: list[bytes] = []
        inherited = {**sent.others, **sent.environment} if sent.others else {}
        call = _Call(self._kernel, self._run, self._shared, client, time.monotonic() + frame.DEADLINE, inherited)
        stderr.redirect(messages.append)
        try:
            self._kernel.bind_namespace(sent.environment.get("CNI_NETNS", ""), client.namespace)
            log = _log if self._shared.level else None
            if sent.netavark:
                status, output = netavark.run(sent.netavark, sent.stdin, call.handle, log)
            else:
                status, output = cni.run(sent.plugin, sent.environment, sent.stdin, call.handle, log)
        finally:
            self._kernel.bind_namespace("", -1)
            stderr.redirect(None)
        self.failed = status != 0
        return frame.reply(status, output, b"".join(messages))


class _Call:
    """One call of the service for a client, which must still be connected at the start and before every
    operation.
    """

    def __init__(
        self,
        kernel: WorkerKernel,
        run: str,
        shared: Shared,
        client: ClientConnection,
        deadline: float,
        environment: Mapping[str, str],
    ) -> None:
        self._kernel = kernel
        self._run = run
        self._shared = shared
        self._client = client
        self._deadline = deadline
        self._environment = environment

    def handle(self, request: Request) -> Result | None:
        booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        host = Host(self._run, self._shared.boot, booted)
        service = Service(
            self._kernel,
            host,
            watch=self._watch,
            delegate=partial(delegate.call, environment=self._environment),
            begin=self._begin,
            log=operation_log(request, _log) if self._shared.level is Level.DEBUG else None,
            caller=self._client.pid,
        )
        return service.handle(request)

    def _begin(self) -> None:
        """Called with the attachment's lock held: a client that gave up may have sent another request
        meanwhile.
        """
        if not self._client.is_connected:
            raise ClientGone("the client has disconnected")

    def _watch(self, verb: str, operation: Operation) -> None:
        if verb != "apply":
            return  # an undo is never cut short
        self._begin()
        if time.monotonic() > self._deadline:
            raise Busy(f"request took longer than {frame.DEADLINE:g} seconds", hint="try again")


def _log(line: str) -> None:
    """Write to the engine's own standard error; dropped while its reader does not read, which must not
    block a call.
    """
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    try:
        if poll.poll(0):
            os.write(2, f"{line}\n".encode("utf-8", "backslashreplace"))
    except OSError:
        pass
