"""``ipMasq``: masquerades what a container sends outside its own subnet.

Keys, at the top level: ``ipMasq``, ``ipMasqBackend``. Each address is an element of a set, so the rules
do not grow with containers. With the backend ``iptables``, which must be set, they are rules in the
chain WEFT-MASQ. Multicast is never masqueraded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cni_plugin.dataplane import nat
from cni_plugin.ops.firewalls import commented
from cni_plugin.ops.operation import Operation
from cni_plugin.plan.plan import Context, Plan, PlanPart
from cni_plugin.plan.traits import Feature, Option, Stage, Value
from cni_plugin.wire.request import Request
from weft import identity
from weft.kernel.values import Element
from weft.section import Section
from weft.types import ResultAddress

FEATURE = Feature(
    Stage.SOURCE_NAT,
    section=False,
    keys=("ipMasq",),
    options=(
        Option("ipMasq", Value.FLAG, ("ip-masq", "com.docker.network.bridge.enable_ip_masquerade"), podman=False),
    ),
    abilities=("nftables nat", "nftables fib", "weft's rules"),
)
_SOURCES = {4: nat.MASQUERADE4, 6: nat.MASQUERADE6}
_LOCAL = {4: nat.MASQUERADE_EXEMPT4, 6: nat.MASQUERADE_EXEMPT6}
_MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}
_CHAIN = "WEFT-MASQ"


@dataclass(frozen=True, slots=True)
class Masquerade:
    """Masquerade all addresses of the attachment, by nftables."""

    def plan(self, context: Context) -> Plan:
        mark = identity.attachment_mark(context.attachment)
        return Plan(
            shared_elements=tuple(_intra_subnet(ip) for ip in context.result.ips),
            # As the guards, from before the link is there until it is gone: else its last packets leave
            # the host with the container's address.
            guards=tuple(
                Element(_SOURCES[ip.address.version], (ip.address.ip,), mark=mark) for ip in context.result.ips
            ),
            result=context.result,
        )


@dataclass(frozen=True, slots=True)
class MasqueradeByIptables:
    """Masquerade all addresses of the attachment, by iptables."""

    def plan(self, context: Context) -> Plan:
        from cni_plugin.ops.iptables import TableChain, TableRules

        mark = identity.attachment_mark(context.attachment)
        shared: list[Operation] = []
        operations: list[Operation] = []
        for version in sorted({ip.address.version for ip in context.result.ips}):
            ips = [ip for ip in context.result.ips if ip.address.version == version]
            shared.append(TableChain(version, "nat", _CHAIN, jumps=(("POSTROUTING", f"-j {_CHAIN}"),)))
            lines = tuple(line for ip in ips for line in _lines(ip, mark))
            operations.append(TableRules(version, "nat", _CHAIN, mark, lines))
        return Plan(shared=tuple(shared), operations=tuple(operations), result=context.result)


def _lines(ip: ResultAddress, mark: str) -> Iterator[str]:
    address = ip.address
    source = f"-s {address.ip}/{address.max_prefixlen}"
    yield f"{source} -d {address.network} {commented(mark)} -j ACCEPT"
    yield f"{source} ! -d {_MULTICAST[address.version]} {commented(mark)} -j MASQUERADE"


def _intra_subnet(ip: ResultAddress) -> Element:
    """The exception for a subnet; marked by the subnet, since networks may share it."""
    subnet = ip.address.network
    return Element(_LOCAL[subnet.version], (subnet, subnet), mark=identity.mark("subnet", str(subnet)))


def read(request: Request, keys: Section) -> PlanPart | None:
    backend = keys.text("ipMasqBackend", choices=("iptables", "nftables"))
    if not keys.flag("ipMasq"):
        return None
    return MasqueradeByIptables() if backend == "iptables" else Masquerade()
