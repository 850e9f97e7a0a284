"""Endpoints: an interface of a container on a network, with the attachments of all plugins that set it
up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from cni_plugin.dataplane.nat import PORTS4, PORTS4_AT, PORTS6, PORTS6_AT, PUBLISHED
from cni_plugin.networks import owners
from cni_plugin.networks.owners import OwnerName
from cni_plugin.ops import Announced, Elements
from cni_plugin.ops.operation import Operation
from cni_plugin.service import executor
from cni_plugin.service.context import ServiceContext, raise_all
from cni_plugin.service.holders import Holders
from cni_plugin.service.orphans import mark_digests
from cni_plugin.service.records import Phase, Record
from cni_plugin.service.shared import end
from weft import events, identity, parallel
from weft.errors import UnknownContainer, WeftError
from weft.kernel.interface import Namespace
from weft.kernel.values import Element
from weft.types import NamespaceId, Result

S = TypeVar("S")
T = TypeVar("T")

_SHORTEST_PREFIX = 4


class State(StrEnum):
    """The state of an endpoint, as ``--json`` has it."""

    ATTACHED = "attached"
    HALF = "half attached"
    GONE = "namespace gone"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One interface of one container on one network; ``records`` are its plugins' attachments, first
    plugin first.
    """

    network: str
    container: str
    interface: str
    records: tuple[Record, ...]
    state: State

    def __str__(self) -> str:
        return f"{self.container}/{self.interface} on {self.network}"

    @property
    def namespace(self) -> NamespaceId:
        return self.records[0].namespace

    @property
    def driver(self) -> str:
        return next((record.driver for record in self.records if record.driver), "")

    @property
    def result(self) -> Result:
        """The result of the last plugin, which the runtime received."""
        return self.records[-1].result

    @property
    def mac(self) -> str:
        return next((each.mac for each in self.result.interfaces if self._is_own(each.name, each.sandbox)), "")

    @property
    def addresses(self) -> tuple[str, ...]:
        """The container's addresses with their prefix lengths."""
        interfaces = self.result.interfaces
        return tuple(
            str(ip.address)
            for ip in self.result.ips
            if ip.interface is None
            or ip.interface >= len(interfaces)
            or self._is_own(interfaces[ip.interface].name, interfaces[ip.interface].sandbox)
        )

    @property
    def age(self) -> float:
        """Seconds since its ADD started."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.records[0].made

    @property
    def operations(self) -> tuple[Operation, ...]:
        return tuple(operation for record in self.records for operation in record.operations)

    @property
    def shared(self) -> tuple[Operation, ...]:
        if len(self.records) == 1:
            return self.records[0].shared
        return tuple(dict.fromkeys(operation for record in self.records for operation in record.shared))

    @property
    def ports(self) -> tuple[str, ...]:
        """The published ports as docker writes them: ``8080->80/tcp``."""
        recorded = (record.operations for record in self.records if record.may_have(*PUBLISHED))
        return published(operation for operations in recorded for operation in operations)

    def _is_own(self, name: str, sandbox: str) -> bool:
        return name == self.interface and bool(sandbox)


def published(operations: Iterable[Operation]) -> tuple[str, ...]:
    """The ports that operations publish, as docker writes them: ``8080->80/tcp``."""
    elements = (each for one in operations if isinstance(one, Elements) for each in one.elements)
    return tuple(dict.fromkeys(text for element in elements if (text := _port(element))))


def _port(element: Element) -> str:
    """The published port of an element, "" for an element of another set."""
    if element.collection in (PORTS4, PORTS6):
        protocol, port = element.key
        return f"{port}->{element.data[1]}/{protocol}"
    if element.collection in (PORTS4_AT, PORTS6_AT):
        host, protocol, port = element.key
        bracketed = f"[{host}]" if ":" in str(host) else str(host)
        return f"{bracketed}:{port}->{element.data[1]}/{protocol}"
    return ""


def endpoints(context: ServiceContext) -> list[Endpoint]:
    """All endpoints of this host, by network, container and interface."""
    context = context.reading_once()
    return _endpoints(context, context.records.all())


def endpoints_of(context: ServiceContext, container: str) -> list[Endpoint]:
    """Those of one container, by its whole id: the records of others are not parsed."""
    return _endpoints(context, context.records.of_container(container))


def _endpoints(context: ServiceContext, records: Iterable[Record]) -> list[Endpoint]:
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        attachment = record.attachment
        key = attachment.network, attachment.container, attachment.interface
        groups.setdefault(key, []).append(record)
    holders = Holders(context)
    return [
        Endpoint(*key, records=tuple(sorted(group, key=lambda each: each.made)), state=_state(holders, group))
        for key, group in sorted(groups.items())
    ]


def _state(holders: Holders, records: Iterable[Record]) -> State:
    found = list(records)
    if any(record.phase is not Phase.ATTACHED for record in found):
        return State.HALF
    return State.ATTACHED if all(holders.lives(record) for record in found) else State.GONE


def find(context: ServiceContext, container: str, interface: str = "", network: str = "") -> list[Endpoint]:
    """The endpoints of a container, by its id, the name or id that its owner has for it, or a unique prefix
    of an id of at least four characters; [] if none.

    Raises UnknownContainer for an ambiguous name or prefix.
    """

    def chosen(among: Iterable[Endpoint]) -> list[Endpoint]:
        return [one for one in among if network in ("", one.network) and interface in ("", one.interface)]

    if exact := chosen(endpoints_of(context, container)):
        return exact
    found = chosen(endpoints(context))
    named = owners.names(one.container for one in found)
    matching = {one for one, name in named.items() if container in name.words}
    if not matching and len(container) >= _SHORTEST_PREFIX:
        matching = {
            one.container
            for one in found
            if any(word.startswith(container) for word in (one.container, *_ids(named, one.container)))
        }
    if len({_container(named, one) for one in matching}) > 1:
        listed = ", ".join(f"{one} ({named[one].name})" if one in named else one for one in sorted(matching))
        raise UnknownContainer(f"{container} is ambiguous: {listed}", hint="use more characters, or the whole id")
    return [one for one in found if one.container in matching]


def _ids(named: Mapping[str, OwnerName], container: str) -> tuple[str, ...]:
    """The ids that the owner has for a container: with containerd without its namespace, with Docker its own."""
    words = named[container].words if container in named else ()
    return (*(word for word in words if container.endswith(word)), _container(named, container))


def _container(named: Mapping[str, OwnerName], container: str) -> str:
    """The one id of a container that has another on each network, else the id itself."""
    return (named[container].container if container in named else "") or container


def marked(context: ServiceContext, digest: str) -> list[Endpoint]:
    """The endpoints whose objects have the mark of this digest; [] if none."""
    return [
        one
        for one in endpoints(context)
        if digest in {identity.attachment_digest(record.attachment) for record in one.records}
    ]


def marked_networks(context: ServiceContext, digest: str) -> list[str]:
    """The networks whose shared objects, such as a bridge, have the mark of this digest."""
    return sorted(record.network for record in context.records.networks() if digest in mark_digests(record.shared))


def of_each(context: ServiceContext, found: Sequence[S], look: Callable[[Sequence[S]], list[T]]) -> list[T]:
    """What a look at each endpoint finds, by all processors."""
    return begun(context, found, look)()


def begun(context: ServiceContext, found: Sequence[S], look: Callable[[Sequence[S]], list[T]]) -> Callable[[], list[T]]:
    """Begin ``of_each`` in other processes; what is returned finishes it. The first is looked at before the others:
    what it has listed of the host (``ServiceContext.comparing_all``) all processes share.
    """
    first = look(found[:1])
    finish = parallel.begun(found[1:], look, context.kernel.forked)
    return lambda: first + finish()


def mismatches(context: ServiceContext, one: Endpoint, *, shared: bool = True) -> list[str]:
    """What differs from what ADD set up, a sentence each; without what networks share, unless ``shared``."""
    return [sentence for sentence, _ in differences(context, one, shared=shared)]


def differences(
    context: ServiceContext, one: Endpoint, *, shared: bool = True, look: Callable[[Namespace], None] | None = None
) -> list[tuple[str, bool]]:
    """What differs from what ADD set up, and whether ``weft doctor --repair`` mends it. ``look`` gets the
    container's namespace while it is open.
    """
    return context.compared(lambda asked: _differences(asked, one, shared, look))


def _differences(
    context: ServiceContext, one: Endpoint, shared: bool, look: Callable[[Namespace], None] | None
) -> list[tuple[str, bool]]:
    gone = f"its network namespace {one.namespace.path} no longer exists"
    if one.state is State.GONE:
        return [(gone, False)]
    sentences = [("it is only partially attached", False)] if one.state is State.HALF else []
    container = context.open_same(one.namespace)
    if container is None and one.namespace.known:
        return [*sentences, (gone, False)]
    try:
        if look is not None and container is not None:
            look(container)
        of_network = one.shared if shared else ()
        machine = context.machine(container)
        found = executor.differences(
            (*of_network, *one.operations),
            machine,
            shared=len(of_network),
            known=context.known,
            below=lambda: () if shared else one.shared,  # which are decoded where something differs
        )
        return [*sentences, *((each.sentence, each.is_repairable(machine, of_network)) for each in found)]
    finally:
        if container is not None:
            container.close()


def remarks(context: ServiceContext, one: Endpoint) -> list[str]:
    """What the agent does not do as the endpoint asks: names that it does not serve, services that it
    does not register.
    """
    if not any(record.may_have(Announced.__name__) for record in one.records):
        return []
    machine = context.machine(None)
    found = [each.remarks(machine) for each in one.operations if isinstance(each, Announced)]
    return [sentence for each in found for sentence in (*each.refused, *each.unserved)]


def detach(context: ServiceContext, one: Endpoint) -> None:
    """Detach: undo the attachments of all plugins, last plugin first; an event, as a runtime's DEL is.
    Raises the first error after trying all.
    """
    started = time.monotonic()
    errors = list(_detach(context, one))
    fields: dict[str, events.Value] = {
        "network": one.network,
        "container": one.container,
        "interface": one.interface,
    }
    events.record(context.host.run, "del", fields | events.outcome(started, context.caller, errors))
    raise_all(errors)


def _detach(context: ServiceContext, one: Endpoint) -> Iterator[WeftError]:
    for record in reversed(one.records):
        try:
            with context.locked(record.attachment):
                current = context.records.read(record.attachment)
                errors = end(context, current) if current is not None else []
        except WeftError as error:
            errors = [error]
        yield from errors
