"""Services synced to the kernel, on a stand-in of its table and of its connections."""

from __future__ import annotations

from typing import Any, cast

import pytest

from discovery.balancer.proxier import Proxier
from lab.services import Book, config, instance, virtual
from weft.errors import KernelRefused

NAMES = ("a", "b", "c")


class Kernel:
    """The order of what is done."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.refused = ""

    def write(self, delete: object, add: list[tuple[str, bytes, object]]) -> None:
        self.done.append("write")

    def enable_hairpin(self, addresses: set[object]) -> set[object]:
        if self.refused and self.done.count("write") == 2:
            raise KernelRefused(self.refused)
        return set()

    def flows(self, protocol: str, *_: object, **options: object) -> tuple[()]:
        self.done.append(f"list {protocol}")
        return ()

    def delete(self, flows: object) -> None:
        list(cast(Any, flows))

    def count(self) -> int:
        return 100


def made(kernel: Kernel) -> tuple[Proxier, list[Any]]:
    """A proxier, and a change of three services."""
    book = Book()
    for number, name in enumerate(NAMES, 1):
        book.put(instance(name, f"10.0.0.{number}", protocol="udp"), virtual(name, f"10.79.0.{number}"))
    proxier = Proxier(config())
    proxier._table = proxier._conntrack = cast(Any, kernel)
    proxier._installed = True
    return proxier, [(name, book.catalog.health(name), (f"10.79.0.{number}",)) for number, name in enumerate(NAMES, 1)]


def test_all_services_are_written_before_connections_are_listed() -> None:
    """The kernel walks its whole table for a listing, 5 ms or more: no service waits for another's, and one is
    enough."""
    kernel = Kernel()
    proxier, changed = made(kernel)
    proxier.apply(changed)
    assert kernel.done == ["write", "write", "write", "list udp"]


def test_connections_of_what_was_written_are_listed_also_after_an_error() -> None:
    kernel = Kernel()
    kernel.refused = "no"
    proxier, changed = made(kernel)
    with pytest.raises(KernelRefused):
        proxier.apply(changed)
    assert kernel.done == ["write", "write", "list udp"]
