"""The networks to measure, as configurations for the reference plugins and for weft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from calls import Conf, Contender

VERSION = "1.0.0"


@dataclass(frozen=True, slots=True)
class Case:
    """A network. ``ports`` is the number of published ports, ``chain`` adds podman's other plugins."""

    name: str
    driver: str = "bridge"
    masquerade: bool = False
    chain: bool = False
    ports: int = 0
    subnet: str = "10.{}.0.0/16"

    def members(self, contender: Contender, number: int) -> list[Conf]:
        """The plugins' configurations. ``number`` (1 to 250) makes the network unique."""
        common: Conf = {"cniVersion": VERSION, "name": f"bench{number}"}
        own: Conf = {"ipam": {"type": "host-local", "ranges": [[{"subnet": self.subnet.format(number)}]]}}
        if self.driver == "bridge":
            own |= {"bridge": f"bench{number}", "isGateway": True}
        if self.masquerade:
            own["ipMasq"] = True
        if not self.chain:
            return [{**common, "type": self.driver, **own}]
        if contender.name == "reference":
            return [
                {**common, "type": self.driver, **own},
                {**common, "type": "portmap", "capabilities": {"portMappings": True}},
                {**common, "type": "firewall"},
                {**common, "type": "tuning"},
            ]
        return [{**common, "type": "weft", "driver": self.driver, **own, "portmap": {}, **_features()}]

    def runtime(self, first_port: int) -> dict[str, Any]:
        """runtimeConfig, with the published ports."""
        if not self.chain:
            return {}
        ports = [
            {"hostPort": first_port + each, "containerPort": 1000 + each, "protocol": "tcp"}
            for each in range(self.ports)
        ]
        return {"portMappings": ports}


def _features() -> Conf:
    """The other plugins of podman's chain, as weft's features."""
    from cni_plugin.plan import modules

    return {name: {} for name in ("firewall", "tuning") if name in modules.features()}


SERIAL = (
    Case("bridge"),
    Case("bridge + ipMasq", masquerade=True),
    Case("ptp", driver="ptp"),
    Case("podman's chain", masquerade=True, chain=True),
    Case("podman's chain + 3 ports", masquerade=True, chain=True, ports=3),
)
MANY_PORTS = Case("podman's chain + 200 ports", masquerade=True, chain=True, ports=200)
CONCURRENT = (Case("bridge"), Case("bridge + ipMasq", masquerade=True))
