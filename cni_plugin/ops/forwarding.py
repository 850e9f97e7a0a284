"""The operation that has the host forward IPv6 without losing the routes that it has from routers."""

from __future__ import annotations

import os
from dataclasses import dataclass

from cni_plugin.ops.operation import Machine, Operation
from weft import files, identity
from weft.errors import Missing
from weft.kernel.interface import Namespace

_ADVERTISED = 9
"""RTPROT_RA, the protocol of routes that the kernel has learned from router advertisements."""

_UPLINKS = ("", "bond", "team", "vlan")
"""Kinds of links that lead out of a host: physical ones, and what is made of them."""


@dataclass(frozen=True, slots=True)
class Forwarding6(Operation):
    """IPv6 forwarding of the host, which keeps the routes that the host has from router advertisements.

    A host that forwards deletes its default routes of that origin and ignores further advertisements,
    unless ``accept_ra`` of the link is 2. So that is set before, on every link where it is 1 and that
    has such a route or leads out of the host. Undo takes both back where this operation has set
    ``accept_ra`` and no other link has IPv6 addresses that it had not before; else forwarding stays
    on, since other software may rely on it. *Equivalent to:* ``sysctl -w
    net/ipv6/conf/all/forwarding=1``. Source: ``Documentation/networking/ip-sysctl.rst``
    (accept_ra), ``rt6_purge_dflt_routers`` in ``net/ipv6/route.c``.
    """

    def apply(self, machine: Machine) -> bool:
        host = machine.host
        links = [one for one in host.links() if one.name != "lo" and not identity.mark_digest(one.alias)]
        advertised = {one.link for one in host.routes(family=6) if one.protocol == _ADVERTISED}
        used = [
            one.name
            for one in links
            if (one.name in advertised or (one.kind in _UPLINKS and not one.master))
            and host.sysctl(_of(one.name, "accept_ra")) == "1"
            and host.sysctl(_of(one.name, "forwarding")) == "0"
        ]
        if used:
            before, addressed = _remembered(machine)
            addressed += [one.name for one in links if one.name not in used and _is_addressed(host, one.name)]
            text = "\n".join(" ".join(dict.fromkeys(names)) for names in ((*before, *used), addressed))
            files.write(_memory(machine), text.encode(), _WHAT)
        for name in used:
            host.set_sysctl(_of(name, "accept_ra"), "2")
        host.set_sysctl(_of("all", "forwarding"), "1")
        return True

    def undo(self, machine: Machine) -> None:
        host = machine.host
        used, before = _remembered(machine)
        if not used:
            return
        if any(
            one.name not in ("lo", *used, *before) and not identity.mark_digest(one.alias)
            for one in host.links()
            if _is_addressed(host, one.name)
        ):
            return
        host.set_sysctl(_of("all", "forwarding"), "0")
        for name in used:
            if host.sysctl(_of(name, "accept_ra")) == "2":
                host.set_sysctl(_of(name, "accept_ra"), "1")
        files.remove(_memory(machine), _WHAT)

    def mismatch(self, machine: Machine) -> str | None:
        key = _of("all", "forwarding")
        there = machine.host.sysctl(key)
        return None if there == "1" else f"{key} is {there} instead of 1 in the host"

    def commands(self, namespace: str) -> tuple[str, ...]:
        return ("# sysctl -w net/ipv6/conf/LINK/accept_ra=2, for links that use router advertisements",
                f"sysctl -w {_of('all', 'forwarding')}=1")  # fmt: skip


_WHAT = "the links whose accept_ra is set to 2, in"


def _memory(machine: Machine) -> str:
    return os.path.join(os.path.dirname(machine.leases.index), "accept_ra")


def _remembered(machine: Machine) -> tuple[list[str], list[str]]:
    """The links whose accept_ra was changed, and those that had IPv6 addresses then."""
    try:
        used, addressed = (line.split() for line in files.read(_memory(machine)).decode().split("\n"))
        return used, addressed
    except (OSError, ValueError):
        return [], []


def _of(link: str, key: str) -> str:
    return f"net/ipv6/conf/{link}/{key}"


def _is_addressed(namespace: Namespace, link: str) -> bool:
    try:
        return any(not one.is_link_local for one in namespace.addresses(link, 6))
    except Missing:
        return False
