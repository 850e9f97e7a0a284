"""The file of the agent's catalog: where it is, and what its recovery has reported."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from cni_plugin.agent import settings as configuration
from cni_plugin.agent.settings import Settings
from store import recovery
from store.recovery import Damage
from weft.errors import WeftError

_OF_CLUSTER = ("etcd", "catalog.json", "overlay/networks.json", "overlay/restored.json")


def path(settings: Settings) -> Path:
    """The file: under /run for a network namespace other than init's, which ends with the boot."""
    return folder(settings) / "catalog.db"


def damages() -> list[Damage]:
    """What happened to the file of this network namespace's agent and is not confirmed yet; nothing
    where the agent's configuration is invalid.
    """
    try:
        return recovery.reports(str(path(configuration.read())))
    except WeftError:
        return []


def of_cluster(settings: Settings) -> tuple[str, ...]:
    """What the agent knows of its etcd cluster is in these folders and files."""
    return tuple(str(folder(settings) / name) for name in _OF_CLUSTER)


def folder(settings: Settings) -> Path:
    """What the agent keeps is here."""
    if settings.data:
        return Path(settings.data)
    inode = os.stat("/proc/self/ns/net").st_ino
    with contextlib.suppress(OSError):
        if os.stat("/proc/1/ns/net").st_ino == inode:
            return Path(configuration.DATA)
    return Path(f"/run/weft/{inode}/agent")
