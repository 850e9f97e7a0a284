"""One call of a CNI plugin, parsed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from weft.section import Section
from weft.types import Dns, Result


class Command(StrEnum):
    """The values of CNI_COMMAND."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    GC = "GC"
    STATUS = "STATUS"
    VERSION = "VERSION"


@dataclass(frozen=True, slots=True)
class Config:
    """The network configuration. ``keys`` is the whole object: drivers read their own keys from it.

    All sections share one ``problems``. For DEL nothing but the name and the version has been insisted
    on, and what else is wrong stands there unraised; for every other command it was empty when
    ``config.read`` returned. ``valid`` is what GC must keep, each a container id and an interface name;
    None where the runtime named no list.
    """

    version: str
    name: str
    type: str
    keys: Section
    ipam: Section
    runtime: Section
    args_cni: Section
    dns: Dns | None
    previous: Result | None
    valid: tuple[tuple[str, str], ...] | None


@dataclass(frozen=True, slots=True)
class Request:
    """A call: who asks what for which container. ``plugin`` is the name that weft was called by.

    ``namespace`` is CNI_NETNS as it came, "" where absent; container, interface and namespace are ""
    for the commands that concern no container. ``environment`` and ``stdin`` are as they came, for
    foreign plugins. ``handed_over``: the runtime moves the container's link into its namespace itself,
    and configures it there, as Docker does; it is made on the host.
    """

    command: Command
    plugin: str
    container: str
    namespace: str
    interface: str
    path: tuple[str, ...]
    arguments: Mapping[str, str]
    override: bool
    environment: Mapping[str, str]
    config: Config
    stdin: bytes
    handed_over: bool = False
