"""How often a container of an overlay network asks who has an address."""

from __future__ import annotations

from collections.abc import Iterator

from cni_plugin.ops.addresses import Setting
from weft.overlay import OverlayNetwork
from weft.types import Side

_ASKING = {"retrans_time_ms": "60", "mcast_solicit": "50", "ucast_solicit": "50"}
"""The sysctls of a link's neighbours: for three seconds, as by default, every 60 ms, which is a whole number of
ticks whether the kernel has 100, 250, 300 or 1,000 of them a second.
"""


def asks_often(link: str, network: OverlayNetwork) -> Iterator[Setting]:
    """A container asks soon again who has an address that its host does not know yet, for as long as usual.

    By default the kernel asks once a second, three times (RFC 1122, 2.3.2.1). Its host answers for a container of
    another host, or a static address there, some ten milliseconds after that one has it; what is sent before that
    would wait for the next second.
    """
    for version in (one.version for one in network.subnets if network.is_l2 or (one.version == 4 and network.static)):
        for key, value in _ASKING.items():
            yield Setting(Side.CONTAINER, f"net/ipv{version}/neigh/{link}/{key}", value, link, optional=True)
