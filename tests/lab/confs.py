"""Network configurations for tests: each test gives only the keys that matter to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Conf = dict[str, Any]

DEFAULT4 = {"dst": "0.0.0.0/0"}
DEFAULT6 = {"dst": "::/0"}
SUBNET = "10.80.0.0/24"
SUBNET6 = "fd80::/64"


def pool(*subnets: str, **keys: Any) -> Conf:
    """An ``ipam`` section of type host-local with one range set for each subnet."""
    return {"type": "host-local", "ranges": [[{"subnet": subnet}] for subnet in subnets], **keys}


def network(
    plugin: str, ipam: Conf | None = None, /, *, version: str = "1.1.0", name: str = "net", **keys: Any
) -> Conf:
    """The configuration of one plugin under its reference name; ``ipam`` None omits that section."""
    conf = {"cniVersion": version, "name": name, "type": plugin, **keys}
    return conf if ipam is None else {**conf, "ipam": ipam}


def bridge(ipam: Conf | None = None, **keys: Any) -> Conf:
    """A bridge network on ``br0``."""
    return network("bridge", ipam, **{"bridge": "br0", **keys})


def ptp(ipam: Conf | None = None, **keys: Any) -> Conf:
    return network("ptp", pool(SUBNET, routes=[DEFAULT4]) if ipam is None else ipam, **keys)


def dual(**keys: Any) -> Conf:
    """Addresses of both families and default routes for both."""
    return pool(SUBNET, SUBNET6, routes=[DEFAULT4, DEFAULT6], **keys)


def published(driver: Conf, mappings: Iterable[Conf], **keys: Any) -> tuple[Conf, Conf]:
    """A conflist of a driver and portmap, and the runtime's values for its capabilities."""
    member = {key: value for key, value in driver.items() if key not in ("cniVersion", "name")}
    conflist = {
        "cniVersion": driver["cniVersion"],
        "name": driver["name"],
        "plugins": [member, {"type": "portmap", "capabilities": {"portMappings": True}, **keys}],
    }
    return conflist, {"portMappings": list(mappings)}


def port(host: int, container: int, protocol: str = "tcp", address: str = "") -> Conf:
    """One published port."""
    found: Conf = {"hostPort": host, "containerPort": container, "protocol": protocol}
    return {**found, "hostIP": address} if address else found
