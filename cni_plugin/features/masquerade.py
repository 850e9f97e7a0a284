"""``ipMasq``: what a container sends beyond its own subnet leaves with the host's address.

Keys, at the top level: ``ipMasq``, ``ipMasqBackend``. Each container is an element of a set; the rules are the
same for all. Multicast is never masqueraded.
"""

from __future__ import annotations

from dataclasses import dataclass

from cni_plugin import names, rules
from cni_plugin.kernel import Element
from cni_plugin.plan import Context, Part, Plan
from cni_plugin.types import ResultAddress
from cni_plugin.wire.keys import Section
from cni_plugin.wire.request import Request

_SOURCES = {4: rules.MASQUERADE4, 6: rules.MASQUERADE6}
_LOCAL = {4: rules.LOCAL4, 6: rules.LOCAL6}


@dataclass(frozen=True, slots=True)
class Masquerade:
    """All addresses of the attachment are masqueraded."""

    def plan(self, context: Context) -> Plan:
        mark = names.attachment_mark(context.attachment)
        return Plan(
            shared_elements=tuple(_within(ip) for ip in context.result.ips),
            elements=tuple(
                Element(_SOURCES[ip.address.version], (ip.address.ip,), mark=mark) for ip in context.result.ips
            ),
            result=context.result,
        )


def _within(ip: ResultAddress) -> Element:
    """The exception for a subnet; its mark names the subnet, since networks may share it."""
    subnet = ip.address.network
    return Element(_LOCAL[subnet.version], (subnet, subnet), mark=names.mark("subnet", str(subnet)))


def read(request: Request, keys: Section) -> Part | None:
    keys.text("ipMasqBackend", choices=("iptables", "nftables"))
    return Masquerade() if keys.flag("ipMasq") else None
