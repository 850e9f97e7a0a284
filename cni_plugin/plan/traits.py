"""What the file of a driver or of a feature declares, so that no other file keeps a list of drivers or
features.

A driver is a file in ``drivers/`` with ``DRIVER`` and ``read``, a feature one in ``features/`` with
``FEATURE`` and ``read``; ``plan.modules`` finds them. These are named tuples, as a call pays for each
class that it makes: a dataclass takes three times as long.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import NamedTuple


class Value(Enum):
    """What the value of an option is."""

    FLAG = "true or false"
    NUMBER = "a number"
    CHOICE = "one of the choices"
    LINK = "the name of a link"
    TEXT = "any text; the driver itself says what is wrong with it"


class Option(NamedTuple):
    """A key of the configuration that ``weft network create --opt`` or ``podman network create --opt``
    sets.
    """

    key: str
    value: Value
    names: tuple[str, ...] = ()
    """What ``weft network create`` calls it, the short name first; with none it cannot be set there."""

    inverted: bool = False
    """Whether these names say the opposite of the key, as Docker's enable_icc does of portIsolation."""

    podman: bool = True
    """Whether podman may set it, under the name of the key; False where podman's own settings say it.
    """

    least: int = 0
    most: int = 0
    choices: tuple[str, ...] = ()


class LinkTrial(NamedTuple):
    """A kind of link that a kernel may lack, and how ``weft doctor`` tries to make one."""

    name: str
    kind: str
    options: tuple[tuple[str, int | str], ...] = ()
    on_parent: bool = False
    """Whether it is made on another link, its parent."""

    keys: tuple[str, ...] = ()
    """Only networks that set one of these keys need it; all of them where there is none."""


class Parent(Enum):
    """What a driver does with the host's link that its key ``parent_key`` names."""

    NONE = "there is none"
    MADE = "made where missing: a bridge, whose ports the containers' links are"
    SHARED = "the containers' links are made on it, and their addresses are of its own subnet"
    LENT = "moved into the container"


class Stage(IntEnum):
    """The order in which features join a plan; each sees the result of those before."""

    LINK = 1
    """The attributes of the container's link, and its sysctls."""

    DOMAIN = 2
    """The routing domain (VRF) that the link is in."""

    ROUTES = 3
    QUEUES = 4
    """Traffic control."""

    SOURCE_NAT = 5
    FILTER = 6
    PORTS = 7
    NAMES = 8
    PORT_GUARD = 9
    """What the container may send; in force before its link is there, and until it is gone."""

    NETWORK_GUARD = 10
    """Who may connect to the network; in force as long."""


class Driver(NamedTuple):
    """A driver, as far as others need to know it."""

    link_kind: str | None = None
    """The kernel's kind of the container's link, "" for whichever the host has, None where none is
    made: then weft refuses features, which all act on a link.
    """

    addresses: bool = True
    """Whether containers get addresses from ``ipam``; otherwise weft refuses that key, and
    ``weft network create`` does not write it.
    """

    parent: Parent = Parent.NONE
    parent_key: str = ""
    """The key that names the parent; podman's network_interface, too."""

    default_parent: str = ""
    """The parent's name where the configuration names none; "": the link of the default route."""

    features: tuple[str, ...] = ()
    """Features whose keys are at the top level, as the reference plugin of the driver's name has them.
    """

    own_features: tuple[str, ...] = ("masquerade", "names")
    """Further such features of networks that are written for weft. A driver with a link but
    without addresses sets it to ``()``.
    """

    on_host: bool = False
    """Whether the container shares the host's network namespace. Features are ignored then, as docker
    and podman ignore published ports.
    """

    plugin: bool = False
    """Whether there is a reference plugin of that name, and weft answers to it."""

    reads_arguments: bool = False
    """Whether that reference plugin reads CNI_ARGS, and so refuses what it cannot read there."""

    routed: bool = False
    """Whether the containers' gateway is this host: ports can be published, and names served."""

    gateway_key: str = ""
    """The key by which the host gets the gateway's address, where that can be left out."""

    default_ipam: str = "host-local"
    """The IPAM driver of podman's networks that name none; ``weft network create`` always writes
    host-local.
    """

    creatable: bool = False
    """Whether ``weft network create`` makes networks of it."""

    clustered: bool = False
    """Whether its networks are the same on all hosts of a cluster, and stored there."""

    created_with: tuple[tuple[str, bool], ...] = ()
    """Keys that such a network has unless an option says otherwise."""

    options: tuple[Option, ...] = ()
    trials: tuple[LinkTrial, ...] = ()
    """The kinds of links that its networks need."""

    @property
    def bridged(self) -> bool:
        """Whether the containers' links are ports of a bridge of the host's."""
        return self.parent is Parent.MADE


class Feature(NamedTuple):
    """A feature, as far as others need to know it."""

    stage: Stage
    section: bool = True
    """Whether its keys are in a section that bears its name, which asks for it; otherwise they are at
    the top level.
    """

    plugin: str = ""
    """The reference plugin that weft is when it is called by this name, with nothing but the feature to
    do.
    """

    reads_arguments: bool = False
    """Whether that reference plugin reads CNI_ARGS, and so refuses what it cannot read there."""

    keys: tuple[str, ...] = ()
    """Keys at the top level that ask for it."""

    options: tuple[Option, ...] = ()
    trials: tuple[LinkTrial, ...] = ()
    """The kinds of links that it needs."""

    abilities: tuple[str, ...] = ()
    """The abilities of nftables that it needs, by their names in ``weft.kernel.linux.probe``."""

    @property
    def guards(self) -> bool:
        """Whether it protects others from the container, or it from them: planned even before addresses
        are known.
        """
        return self.stage >= Stage.PORT_GUARD
