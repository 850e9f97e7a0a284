"""The capabilities that weft's daemons need; the same as in their systemd units."""

from __future__ import annotations

from enum import IntEnum


class Capability(IntEnum):
    """Source: linux/capability.h."""

    DAC_OVERRIDE = 1
    SETGID = 6
    SETUID = 7
    SETPCAP = 8
    NET_BIND_SERVICE = 10
    NET_ADMIN = 12
    NET_RAW = 13
    SYS_PTRACE = 19
    SYS_ADMIN = 21


SPAWNER = (Capability.SETGID, Capability.SETUID, Capability.SETPCAP)
"""Of the agent's process that starts its workers, which have none: to become another user, and to empty
the bounding set.
"""
ENGINE = tuple(one for one in Capability if one not in SPAWNER)
"""NET_ADMIN: configure networks. SYS_ADMIN: enter namespaces. NET_RAW, NET_BIND_SERVICE: packet sockets
and port 68 for DHCP. SYS_PTRACE, DAC_OVERRIDE: open namespaces and directories of other users.
"""
AGENT = tuple(one for one in ENGINE if one is not Capability.NET_RAW)
"""As the engine, without packet sockets; port 53 instead of 68."""

NEEDED = {
    "cni_plugin.engine.main": ENGINE,
    "cni_plugin.dhcp.keeper": ENGINE,
    "cni_plugin.docker.server": ENGINE,
    "cni_plugin.agent.main": AGENT,
}
"""By the module of a daemon's ``main``."""
