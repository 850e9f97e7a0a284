"""What ``weft trace`` says of a packet, beside what becomes of a real one."""

from __future__ import annotations

from cni_plugin.dataplane.tables import TABLES
from cni_plugin.networks.trace import Question, trace
from cni_plugin.service.verbs import Service
from weft.kernel.host import Host
from weft.kernel.linux.kernel import LinuxKernel


def reaches(client: str | None, address: str, port: int, kind: str) -> tuple[bool, str]:
    """Whether it says that a connection comes about, and its words. ``client`` None is the host."""
    kernel = LinuxKernel(TABLES)
    try:
        service = Service(kernel, Host.current(kernel))
        question = Question(client or "host", address, kind, 0 if kind == "icmp" else port)
        way = trace(service, question).way
    finally:
        kernel.close()
    return way.delivered and way.listening is not False, "\n".join(hop.sentence for hop in way.hops)
