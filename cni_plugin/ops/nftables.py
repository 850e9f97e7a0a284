"""Operations on nftables: the base rules that all networks share, and the elements of one attachment."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from cni_plugin.dataplane.packets import PORTS
from cni_plugin.dataplane.tables import TABLES
from cni_plugin.ops.operation import Machine, Operation
from weft.errors import Conflict, KernelLacks
from weft.kernel.interface import Element, Scalar
from weft.kernel.schema import Shape


@dataclass(frozen=True, slots=True)
class BaseRules(Operation):
    """weft's tables with their sets and chains. Removed with the last network."""

    def apply(self, machine: Machine) -> bool:
        machine.rules().install(TABLES)
        return True

    def undo(self, machine: Machine) -> None:
        with contextlib.suppress(KernelLacks):
            if all(not machine.rules().elements(name) for name in machine.rules().collections()):
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
            machine.rules().add(self._without_siblings(self.elements, machine))
        return True

    def undo(self, machine: Machine) -> None:
        machine.rules().delete(self.elements)

    def mismatch(self, machine: Machine) -> str | None:
        missing = self._without_siblings(machine.rules().missing(self.elements), machine)
        if not missing:
            return None
        shape = TABLES.shapes[missing[0].collection]
        return f"nftables lacks {_text(missing[0], shape)} in {shape.name}"

    @property
    def published(self) -> bool:
        """Whether they include published ports."""
        return any(element.collection in PORTS for element in self.elements)

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

    def commands(self, namespace: str) -> tuple[str, ...]:
        shaped = [(TABLES.shapes[element.collection], element) for element in self.elements]
        return tuple(
            f"nft add element {shape.table} {shape.name} '{{ {_text(element, shape)} }}'" for shape, element in shaped
        )


def _text(element: Element, shape: Shape) -> str:
    data = f" : {_joined(element.data, shape.data)}" if element.data else ""
    return f'{_joined(element.key, shape.key)} comment "{element.mark}"{data}'


def _joined(parts: tuple[Scalar, ...], types: tuple[str, ...]) -> str:
    return " . ".join(map(_word, parts, types))


def _word(part: Scalar, kind: str) -> str:
    """A link's name in quotes; a MAC address (which has colons) and a protocol without; a number
    that is a part of a packet in hexadecimal, as nft prints it.
    """
    if isinstance(part, int) and kind.startswith("bits"):
        return hex(part)
    return f'"{part}"' if isinstance(part, str) and not part.isalpha() and ":" not in part else str(part)
