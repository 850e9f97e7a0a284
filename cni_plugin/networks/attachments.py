"""Attachments as a person sees them: one interface of one container, whatever number of plugins made it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from cni_plugin.dataplane.packets import PORTS4, PORTS4_AT, PORTS6, PORTS6_AT
from cni_plugin.ops import Elements
from cni_plugin.ops.operation import Operation
from cni_plugin.service import executor
from cni_plugin.service.context import ServiceContext, raise_all
from cni_plugin.service.records import Phase, Record
from weft.errors import UnknownContainer, WeftError
from weft.kernel.interface import Element
from weft.types import NamespaceId, Result

_SHORTEST_PREFIX = 4


class State(StrEnum):
    """How an attachment is."""

    ATTACHED = "attached"
    HALF = "half attached"
    GONE = "namespace gone"


@dataclass(frozen=True, slots=True)
class Joined:
    """One attachment: the records of the plugins that made it, in the order in which they were made."""

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
        """The last plugin's answer, which a runtime was given."""
        return self.records[-1].result

    @property
    def mac(self) -> str:
        return next((one.mac for one in self.result.interfaces if self._own(one.name, one.sandbox)), "")

    @property
    def addresses(self) -> tuple[str, ...]:
        """The container's addresses with their prefix lengths."""
        interfaces = self.result.interfaces
        return tuple(
            str(ip.address)
            for ip in self.result.ips
            if ip.interface is None
            or ip.interface >= len(interfaces)
            or self._own(interfaces[ip.interface].name, interfaces[ip.interface].sandbox)
        )

    @property
    def age(self) -> float:
        """Seconds since it was begun."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.records[0].made

    @property
    def operations(self) -> tuple[Operation, ...]:
        return tuple(operation for record in self.records for operation in record.operations)

    @property
    def shared(self) -> tuple[Operation, ...]:
        return tuple(dict.fromkeys(operation for record in self.records for operation in record.shared))

    @property
    def ports(self) -> tuple[str, ...]:
        """The published ports, as Docker writes them: 8080->80/tcp."""
        elements = (one for each in self.operations if isinstance(each, Elements) for one in each.elements)
        return tuple(dict.fromkeys(text for element in elements if (text := _port(element))))

    def _own(self, name: str, sandbox: str) -> bool:
        return name == self.interface and bool(sandbox)


def _port(element: Element) -> str:
    """A published port of a rule, "" for another rule."""
    if element.collection in (PORTS4, PORTS6):
        protocol, port = element.key
        return f"{port}->{element.data[1]}/{protocol}"
    if element.collection in (PORTS4_AT, PORTS6_AT):
        host, protocol, port = element.key
        shown = f"[{host}]" if ":" in str(host) else str(host)
        return f"{shown}:{port}->{element.data[1]}/{protocol}"
    return ""


def every(context: ServiceContext) -> list[Joined]:
    """All attachments of this host, by network, container and interface."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in context.records.all():
        of = record.attachment
        groups.setdefault((of.network, of.container, of.interface), []).append(record)
    return [
        Joined(*key, records=tuple(sorted(group, key=lambda one: one.made)), state=_state(context, group))
        for key, group in sorted(groups.items())
    ]


def _state(context: ServiceContext, records: Iterable[Record]) -> State:
    found = list(records)
    if any(record.phase is not Phase.ATTACHED for record in found):
        return State.HALF
    return State.ATTACHED if all(context.is_alive(record.namespace) for record in found) else State.GONE


def matching(context: ServiceContext, container: str, interface: str = "", network: str = "") -> list[Joined]:
    """The attachments of a container, which may be named by the beginning of its id; [] if there are none.

    Raises UnknownContainer where several containers' ids begin so.
    """
    found = [
        one
        for one in every(context)
        if (not network or one.network == network) and (not interface or one.interface == interface)
    ]
    exact = [one for one in found if one.container == container]
    if exact or len(container) < _SHORTEST_PREFIX:
        return exact
    begun = [one for one in found if one.container.startswith(container)]
    ids = sorted({one.container for one in begun})
    if len(ids) > 1:
        raise UnknownContainer(f"{container} could be {' or '.join(ids)}", hint="write more of the id")
    return begun


def lacking(context: ServiceContext, one: Joined, *, shared: bool = True) -> list[str]:
    """What of an attachment is not as ADD left it, a sentence each."""
    if one.state is State.GONE:
        return [f"its network namespace {one.namespace.path} is gone"]
    sentences = ["it is only half attached"] if one.state is State.HALF else []
    if not context.is_alive(one.namespace):
        return [*sentences, f"its network namespace {one.namespace.path} is gone"]
    container = context.kernel.open(one.namespace.path)
    try:
        operations = (*(one.shared if shared else ()), *one.operations)
        return [*sentences, *executor.mismatches(operations, context.machine(container))]
    finally:
        container.close()


def detach(context: ServiceContext, one: Joined) -> None:
    """Take back all that weft did for an attachment, last plugin first. Raises the first error after trying all."""
    raise_all(list(_detach(context, one)))


def _detach(context: ServiceContext, one: Joined) -> Iterator[WeftError]:
    for record in reversed(one.records):
        try:
            with context.locked(record.attachment):
                now = context.records.read(record.attachment)
                if now is None:
                    continue
                errors = context.undo(now)
                if not errors:
                    context.records.remove(record.attachment)
        except WeftError as error:
            errors = [error]
        yield from errors
