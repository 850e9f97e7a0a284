"""The capabilities that weft's daemons need; the same as in their systemd units."""

from __future__ import annotations

from enum import IntEnum


class Capability(IntEnum):
    """Source: linux/capability.h."""

    DAC_OVERRIDE = 1
    NET_BIND_SERVICE = 10
    NET_ADMIN = 12
    NET_RAW = 13
    SYS_PTRACE = 19
    SYS_ADMIN = 21


ENGINE = tuple(Capability)
"""NET_ADMIN: configure networks. SYS_ADMIN: enter namespaces. NET_RAW, NET_BIND_SERVICE: packet sockets
and port 68 for DHCP. SYS_PTRACE, DAC_OVERRIDE: open namespaces and directories of other users.
"""
AGENT = tuple(one for one in Capability if one is not Capability.NET_RAW)
"""As the engine, without packet sockets; port 53 instead of 68."""

NEEDED = {
    "cni_plugin.engine.main": ENGINE,
    "cni_plugin.dhcp.keeper": ENGINE,
    "cni_plugin.docker.server": ENGINE,
    "cni_plugin.agent.main": AGENT,
}
"""By the module of a daemon's ``main``."""
