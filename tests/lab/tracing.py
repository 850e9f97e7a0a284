"""What ``weft trace`` says of a packet, and what it sees of a real one."""

from __future__ import annotations

from cni_plugin.dataplane.tables import TABLES
from cni_plugin.networks.trace import Question, trace
from cni_plugin.service.verbs import Service
from weft.kernel.host import Host
from weft.kernel.linux.kernel import LinuxKernel


def reaches(client: str | None, address: str, port: int, kind: str, *, live: bool = False) -> tuple[bool, str]:
    """Whether it says that a connection comes about, and its words. ``client`` None is the host. With ``live`` a
    real packet must meet the rules that it says.
    """
    kernel = LinuxKernel(TABLES)
    try:
        service = Service(kernel, Host.current(kernel))
        question = Question(client or "host", address, kind, 0 if kind == "icmp" else port)
        found = trace(service, question, live=live)
    finally:
        kernel.close()
    way, why = found.way, "\n".join(hop.sentence for hop in found.way.hops)
    if found.live is not None:
        assert found.live.differences == (), f"{kind} from {client} to {address}: {found.live}\n{why}"
    return way.delivered and way.listening is not False, why
