"""The ranges of services' virtual addresses, which no network may have."""

from __future__ import annotations

import contextlib
import os
from ipaddress import ip_network

from weft import configuration, files
from weft.types import Subnet

RANGES: tuple[Subnet, ...] = (ip_network("10.79.0.0/16"), ip_network("fd57:6566:7400::/112"))
"""The default ranges of virtual addresses.

10.79.0.0/16 avoids the defaults of Docker (172.16.0.0/12, 192.168.0.0/16), podman (10.88 to
10.255), Kubernetes (10.96.0.0/12; k3s 10.42 and 10.43; flannel 10.244), OpenShift (10.128.0.0/14),
OpenVPN (10.8), Google's auto networks (10.128.0.0/9) and the 10.0.0.0/16 of most clouds. The other
is a unique local range (RFC 4193).
"""


def configured() -> tuple[Subnet, ...]:
    """The ranges in the configuration; none where balancing is disabled. What is invalid there is the
    agent's to report.
    """
    path = configuration.path()
    if not os.path.exists(path):
        return RANGES
    import tomllib

    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        balancer = tomllib.loads(files.read(path, own=False).decode()).get("balancer", {})
        if balancer.get("enabled") is False:
            return ()
        if "ranges" in balancer:
            return tuple(ip_network(text) for text in balancer["ranges"])
    return RANGES
