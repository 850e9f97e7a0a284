"""Operations on nftables: the base rules that all networks share, and the elements of one attachment."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from ipaddress import IPv6Address

from cni_plugin.dataplane.nat import PORTS, PORTS4, PORTS4_AT, PORTS6, PORTS6_AT
from cni_plugin.dataplane.tables import TABLES, in_use
from cni_plugin.ops.operation import Machine, Operation, reapply
from weft.errors import Conflict, KernelLacks
from weft.kernel.schema import Shape, limit_text
from weft.kernel.values import Element, Scalar

_EVERY_ADDRESS = {PORTS4_AT: PORTS4, PORTS6_AT: PORTS6}
_ONE_ADDRESS = {PORTS4: PORTS4_AT, PORTS6: PORTS6_AT}


@dataclass(frozen=True, slots=True)
class BaseRules(Operation):
    """weft's tables with their sets and chains. Removed with the last network."""

    def apply(self, machine: Machine) -> bool:
        machine.rules().install(TABLES)
        return True

    def undo(self, machine: Machine) -> None:
        with contextlib.suppress(KernelLacks):
            if not in_use(machine.rules()):
                machine.rules().remove()

    def mismatch(self, machine: Machine) -> str | None:
        return machine.rules().lacks(TABLES)

    def commands(self, namespace: str) -> tuple[str, ...]:
        return ("nft -f - <<'RULES'\n" + TABLES.text.strip() + "\nRULES",)


@dataclass(frozen=True, slots=True)
class Elements(Operation):
    """Elements of weft's sets and maps, added and deleted in one transaction.

    A runtime requests the same ports for every network of a container: the first attachment has them
    until it is deleted.
    """

    elements: tuple[Element, ...]

    def apply(self, machine: Machine) -> bool:
        try:
            machine.rules().add(self.elements)
        except Conflict:
            # A sibling may have released them since; the second try fails where another container has them.
            try:
                machine.rules().add(self._without_siblings(self.elements, machine))
            except Conflict as error:
                explained = self._explained(error, machine)
                if explained is error:  # which cannot be its own cause
                    raise
                raise explained from error
        # Looked for afterwards, so that of two calls at once at least one sees the other.
        other = self._overlapping(machine) if self.published else None
        if other is not None:
            machine.rules().delete(self.elements)
            raise Conflict(_published(other), hint="publish another port, or both at addresses of their own (hostIP)")
        return True

    def _explained(self, error: Conflict, machine: Machine) -> Conflict:
        """The error, or one that names the MAC address that another container has on the same link: its
        link-local address is the key of elements.
        """
        mine = {one.mark for one in self.elements}
        for one in machine.rules().existing(self.elements):
            if one.mark not in mine and (mac := _mac_within(one.key[-1])):
                sentence = f"the MAC address {mac} on {one.key[0]} belongs to {one.mark}"
                return Conflict(sentence, hint=f"give this container another MAC address; weft show {one.mark}")
        return error

    def undo(self, machine: Machine) -> None:
        machine.rules().delete(self.elements)

    def mismatch(self, machine: Machine) -> str | None:
        missing = self._without_siblings(machine.rules().missing(self.elements), machine)
        if not missing:
            return None
        shape = TABLES.shapes[missing[0].collection]
        return f"nftables lacks {_text(missing[0], shape)} in {shape.name}"

    @property
    def marks(self) -> frozenset[str]:
        return frozenset(element.mark for element in self.elements)

    @property
    def published(self) -> bool:
        """Whether they include published ports."""
        return any(element.collection in PORTS for element in self.elements)

    def _overlapping(self, machine: Machine) -> Element | None:
        """A port of another container on one address that these publish on every address, or the other
        way round.
        """
        rules, mark = machine.rules(), self.elements[0].mark
        whole = {
            (_EVERY_ADDRESS[one.collection], one.key[1:]): one.data
            for one in self.elements
            if one.collection in _EVERY_ADDRESS and not _is_agents(one)
        }
        found = (
            list(rules.existing(Element(name, key, data, mark) for (name, key), data in whole.items())) if whole else []
        )
        for name, at in _ONE_ADDRESS.items():
            ports = {one.key for one in self.elements if one.collection == name}
            found += [one for one in rules.elements(at) if one.key[1:] in ports] if ports else []
        others = [one for one in found if one.mark != mark and not _is_agents(one)]
        siblings = machine.sibling_marks(mark) if others else frozenset()
        return next((one for one in others if one.mark not in siblings), None)

    @staticmethod
    def _without_siblings(elements: tuple[Element, ...], machine: Machine) -> tuple[Element, ...]:
        """The elements whose keys no other attachment of the same container has."""
        ports = {element.collection for element in elements} & PORTS
        siblings = machine.sibling_marks(elements[0].mark) if ports else frozenset()
        if not siblings:
            return elements
        there = [element for name in ports for element in machine.rules().elements(name) if element.mark in siblings]
        theirs = {(element.collection, element.key) for element in there}
        return tuple(element for element in elements if (element.collection, element.key) not in theirs)

    def restore(self, machine: Machine) -> bool:
        return reapply(self, machine)

    def commands(self, namespace: str) -> tuple[str, ...]:
        shaped = [(TABLES.shapes[element.collection], element) for element in self.elements]
        return tuple(
            f"nft add element {shape.table} {shape.name} '{{ {_text(element, shape)} }}'" for shape, element in shaped
        )


def _is_agents(element: Element) -> bool:
    """Whether the port leads to itself: weft's agent answers there, and every other address is free."""
    return element.data == (element.key[0], element.key[-1])


def _mac_within(part: Scalar) -> str:
    """The MAC address that a link-local address is made of (RFC 4291, appendix A), "" if it is of none."""
    if not isinstance(part, IPv6Address) or not part.is_link_local or part.packed[11:13] != b"\xff\xfe":
        return ""
    octets = bytes((part.packed[8] ^ 2,)) + part.packed[9:11] + part.packed[13:]
    return ":".join(f"{octet:02x}" for octet in octets)


def _published(element: Element) -> str:
    address, protocol, port = element.key if len(element.key) == 3 else ("every address", *element.key)
    return f"host port {port}/{protocol} on {address} belongs to {element.mark}"


def _text(element: Element, shape: Shape) -> str:
    data = f" : {_joined(element.data, shape.data)}" if element.data else ""
    limit = f" {limit_text(shape.limit, element.limit)}" if shape.limit else ""
    return f'{_joined(element.key, shape.key)}{limit} comment "{element.mark}"{data}'


def _joined(parts: tuple[Scalar, ...], types: tuple[str, ...]) -> str:
    return " . ".join(map(_word, parts, types))


def _word(part: Scalar, kind: str) -> str:
    """A link's name in quotes; a MAC address (which has colons) and a protocol without; a number
    that is a part of a packet in hexadecimal, and a class as tc has it, as nft prints them.
    """
    if isinstance(part, int) and kind == "classid":
        return f"{part >> 16:x}:{part & 0xFFFF:x}"
    if isinstance(part, int) and kind.startswith("bits"):
        return hex(part)
    return f'"{part}"' if isinstance(part, str) and not part.isalpha() and ":" not in part else str(part)
