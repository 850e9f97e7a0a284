"""One request after the other, in one thread: read, done by the service, answered."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from cni_plugin.engine import code
from cni_plugin.engine.connection import Peer, PeerGone
from cni_plugin.engine.kernel import WorkerKernel
from cni_plugin.entry import cni
from cni_plugin.ops.operation import Operation
from cni_plugin.service import delegate
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
    """What all workers share. ``log`` says whether each request is told of on standard error."""

    rules: Ruleset
    link_deleter: BatchDeleter
    code: code.Code
    view: str
    boot: str
    log: bool


ENOUGH = 10
_WEIGHTS = {"ADD": ENOUGH, "DEL": 1}
"""What calls weigh; a process has ``ENOUGH`` at work. ADDs wait for each other, for one interpreter and one lock of the
kernel; DELs mostly for the kernel, which deletes links together sooner than one by one (``netlink.batch_deletion``)."""


class Worker:
    """Serves connections; one thread uses it."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._kernel = WorkerKernel(shared.rules, shared.link_deleter)
        self._run = f"/run/weft/{self._kernel.host.id.inode}"

    def close(self) -> None:
        self._kernel.host.close()

    def serve(self, peer: Peer, at_work: Callable[[int], AbstractContextManager[None]]) -> bool:
        """One request, ``at_work`` with its weight while it is worked on.

        False where it shows that this engine is to make way for another. Raises nothing.
        """
        try:
            sent = peer.receive()
            outdated = not self._shared.code.glance() or newer(sent.version, code.VERSION)
            if outdated or sent.root != code.ROOT or sent.view != self._shared.view:
                peer.answer(frame.declined())
                return not outdated
            with at_work(_WEIGHTS.get(sent.environment.get("CNI_COMMAND", ""), 0)):
                reply = self._reply(sent, peer)
            peer.answer(reply)
        except (PeerGone, frame.FrameProblem) as error:
            if self._shared.log:
                stderr.write(f"weft: a request was dropped: {error}\n")
        return True

    def _reply(self, sent: frame.Sent, peer: Peer) -> bytes:
        started = time.monotonic()
        said: list[bytes] = []
        stderr.redirect(said.append)
        call = _Call(self._kernel, self._run, self._shared.boot, peer, started + frame.DEADLINE)
        try:
            self._kernel.give(sent.environment.get("CNI_NETNS", ""), peer.namespace)
            status, output = cni.run(sent.plugin, sent.environment, sent.stdin, call.handle)
        finally:
            self._kernel.give("", -1)
            stderr.redirect(None)
        if self._shared.log:
            _tell(sent, call, status, output, time.monotonic() - started)
        return frame.reply(status, output, b"".join(said))


class _Call:
    """One call of the service for a peer, who must still be there when it begins and before every step."""

    def __init__(self, kernel: WorkerKernel, run: str, boot: str, peer: Peer, until: float) -> None:
        self._kernel = kernel
        self._run = run
        self._boot = boot
        self._peer = peer
        self._until = until
        self.result: Result | None = None

    def handle(self, request: Request) -> Result | None:
        booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        host = Host(self._run, self._boot, booted)
        service = Service(self._kernel, host, watch=self._watch, delegate=delegate.call, begin=self._begin)
        self.result = service.handle(request)
        return self.result

    def _begin(self) -> None:
        """The attachment is held now. Whoever gave up waiting may have asked for something else meanwhile."""
        if not self._peer.waits:
            raise PeerGone("nobody waits for the answer")

    def _watch(self, verb: str, operation: Operation) -> None:
        if verb != "apply":
            return  # what is being taken back is taken back whole
        self._begin()
        if time.monotonic() > self._until:
            raise Busy(f"the call has taken longer than {frame.DEADLINE:g} seconds", hint="try again")


def _tell(sent: frame.Sent, call: _Call, status: int, output: bytes, elapsed: float) -> None:
    """One line: what was asked for whom, and what came of it."""
    variables = sent.environment
    whom = "/".join(filter(None, (variables.get("CNI_CONTAINERID", ""), variables.get("CNI_IFNAME", ""))))
    if status:
        what = " ".join(output.decode("utf-8", "replace").split())[:300]
    else:
        what = ", ".join(str(ip.address) for ip in call.result.ips) if call.result else "done"
    line = f"{variables.get('CNI_COMMAND', '')} {whom} by {sent.plugin}: {what}, {elapsed * 1000:.1f} ms\n"
    # A reader that has stopped reading must not stop the engine: then the line is lost.
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    if poll.poll(0):
        stderr.write(line)
