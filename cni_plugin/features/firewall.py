"""``firewall``: which other containers may reach the container, and acceptance by iptables where
FORWARD drops.

Keys: ``ingressPolicy``: ``open``, ``same-bridge`` (containers behind other links of such networks
cannot reach it) or ``isolated`` (nor those behind its own link); ``backend``: ``nftables``,
``iptables``, or "" for what the host needs; ``iptablesAdminChainName`` (default CNI-ADMIN);
``firewalldZone`` is accepted. The policy is always elements of weft's own nftables sets: a drop there
is final. An accept is not: if the policy of iptables' chain FORWARD is DROP, as Docker sets it, the
container's traffic is accepted there as well, in CNI-FORWARD, after the administrator's rules in
CNI-ADMIN.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cni_plugin.dataplane import packets
from cni_plugin.ops.firewalls import commented
from cni_plugin.ops.iptables import TableChain, TableRules
from cni_plugin.ops.operation import Operation
from cni_plugin.ops.policy import Isolated
from cni_plugin.plan.interface import host_end, own_addresses
from cni_plugin.plan.plan import Context, Plan, PlanPart
from cni_plugin.plan.traits import Feature, Stage
from cni_plugin.wire.request import Request
from weft import identity
from weft.errors import UNSUPPORTED_FIELD, ConfigProblem
from weft.kernel.values import Element
from weft.section import Section

FEATURE = Feature(Stage.FILTER, plugin="firewall")
_CHAIN = "CNI-FORWARD"
_ADMIN = "CNI-ADMIN"
_POLICIES = ("", "open", "same-bridge", "isolated")
_CHAIN_NAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.\-]{0,27}")
_SEPARATE = {4: packets.INGRESS_POLICY4, 6: packets.INGRESS_POLICY6}
_ISOLATED = {4: packets.INGRESS_ISOLATED4, 6: packets.INGRESS_ISOLATED6}


@dataclass(frozen=True, slots=True)
class Firewall:
    """``backend`` "" is iptables if its FORWARD policy is DROP, else nftables."""

    policy: str = "open"
    backend: str = ""
    admin: str = _ADMIN

    def plan(self, context: Context) -> Plan:
        shared, operations = self._acceptance(context)
        if self.policy == "open":
            return Plan(shared=shared, operations=operations, result=context.result)
        link = next((one.name for one in context.result.interfaces if not one.sandbox), "")
        if not link:
            raise ConfigProblem(
                f"ingressPolicy {self.policy} requires a link of the host that leads to the container",
                hint="use driver bridge or ptp, or ingressPolicy open",
                code=UNSUPPORTED_FIELD,
            )
        mark, of_link = identity.attachment_mark(context.attachment), identity.mark("policy", link)
        addresses = [ip.address.ip for ip in own_addresses(context)]
        elements = [Element(_SEPARATE[one.version], (link, one), mark=mark) for one in addresses]
        port = host_end(context)
        if self.policy == "isolated":
            elements += [Element(_ISOLATED[one.version], (link, one), mark=mark) for one in addresses]
            operations += (Isolated(port),) if port and port != link else ()
        return Plan(
            shared=shared,
            operations=operations,
            shared_elements=(
                Element(packets.INGRESS_POLICY_LINKS, (link,), mark=of_link),
                Element(packets.INTRA_LINK, (link, link), mark=of_link),
            ),
            elements=tuple(elements),
            result=context.result,
        )

    def _acceptance(self, context: Context) -> tuple[tuple[Operation, ...], tuple[Operation, ...]]:
        """The chains and rules by which iptables accepts the container's traffic."""
        shared: list[Operation] = []
        operations: list[Operation] = []
        mark = identity.attachment_mark(context.attachment)
        addresses = [ip.address.ip for ip in own_addresses(context)]
        for version in sorted({one.version for one in addresses}):
            if not (self.backend == "iptables" or (not self.backend and context.facts.drops_forwarded(version))):
                continue
            shared.append(TableChain(version, "filter", self.admin))
            shared.append(
                TableChain(
                    version,
                    "filter",
                    _CHAIN,
                    jumps=(("FORWARD", f'-m comment --comment "CNI firewall plugin rules" -j {_CHAIN}'),),
                    rules=(f'-m comment --comment "CNI firewall plugin admin overrides" -j {self.admin}',),
                    first=True,
                )
            )
            accept = f"{commented(mark)} -j ACCEPT"
            accepted: list[str] = []
            for address in (one for one in addresses if one.version == version):
                single = f"{address}/{address.max_prefixlen}"
                accepted.append(f"-d {single} -m conntrack --ctstate RELATED,ESTABLISHED {accept}")
                # Published ports must be reachable; the reference plugin leaves them to the policy.
                accepted.append(f"-d {single} -m conntrack --ctstate DNAT {accept}")
                accepted.append(f"-s {single} {accept}")
            operations.append(TableRules(version, "filter", _CHAIN, mark, tuple(accepted)))
        return tuple(shared), tuple(operations)


def read(request: Request, keys: Section) -> PlanPart | None:
    backend = keys.text("backend", choices=("", "iptables", "nftables", "firewalld"))
    if backend == "firewalld":
        raise ConfigProblem(
            f"{keys.at('backend')} firewalld is not supported",
            hint="use type weft, which has firewalld trust its networks, or put the bridge in a zone",
            code=UNSUPPORTED_FIELD,
        )
    keys.text("firewalldZone")
    admin = keys.text("iptablesAdminChainName") or _ADMIN
    if not _CHAIN_NAME.fullmatch(admin):
        keys.problem("iptablesAdminChainName", "must be a chain name: at most 28 letters, digits, '_', '.' and '-'")
    return Firewall(keys.text("ingressPolicy", choices=_POLICIES) or "open", backend, admin)
