"""How fast links send, and what is sent on from one to another. Source: ``tc-tbf(8)``, ``tc-u32(8)``, ``tc-mirred(8)``,
``net/sched/sch_tbf.c``, ``net/sched/cls_u32.c``."""

from __future__ import annotations

import contextlib
from typing import Any

from weft.errors import Exists, Missing
from weft.kernel.interface import Limit
from weft.kernel.netlink import codec, links
from weft.kernel.netlink.codec import attribute
from weft.kernel.netlink.socket import Request, RouteSocket, link_name

_ROOT, _INGRESS, _INGRESS_HANDLE = 0xFFFFFFFF, 0xFFFFFFF1, 0xFFFF0000
_TICK = 64  # nanoseconds
_LARGEST = 0xFFFFFFFF
_TERMINAL = 1
_STOLEN, _EGRESS_REDIRECT = 4, 1
_EVERY_PROTOCOL = 0x0300  # ETH_P_ALL in network order
_PRIORITY = 119 << 16  # tells weft's filter from others', as ROUTE_PROTOCOL does routes


def limit(socket: RouteSocket, name: str) -> Limit | None:
    """The token bucket at the link's root, None if another discipline is there."""
    for message in _disciplines(socket, name):
        if message["parent"] == _ROOT and attribute(message, "TCA_KIND") == "tbf":
            said = attribute(message, "TCA_OPTIONS", "TCA_TBF_PARMS")
            rate = int(attribute(message, "TCA_OPTIONS", "TCA_TBF_RATE64") or said["rate"])
            return Limit(rate, round(said["buffer"] * _TICK * rate / 1e9), said["limit"])
    return None


def set_limit(socket: RouteSocket, name: str, wanted: Limit | None) -> None:
    """Put a token bucket at the link's root, or take it from there."""
    doing = f"limit what {name} sends" if wanted else f"lift the limit of {name}"
    fields = {"index": links.index(socket, name, doing), "parent": _ROOT, "handle": 0x10000}
    if wanted is None:
        if limit(socket, name) is not None:
            with contextlib.suppress(Missing):
                socket.request(Request(codec.DELQDISC, 0, doing, {**fields, "handle": 0}))
        return
    parameters = {"rate": min(wanted.rate, _LARGEST), "limit": wanted.queue}
    options = [["TCA_TBF_PARMS", parameters], ["TCA_TBF_BURST", wanted.burst]]
    if wanted.rate > _LARGEST:
        options.append(["TCA_TBF_RATE64", wanted.rate])
    attributes = [["TCA_KIND", "tbf"], ["TCA_OPTIONS", {"attrs": options}]]
    flags = codec.CREATE | codec.REPLACE
    socket.request(Request(codec.NEWQDISC, flags, doing, fields, attributes, needs="the discipline tbf (sch_tbf)"))


def redirect(socket: RouteSocket, name: str) -> str:
    """The link to which all is redirected that comes in, "" where none is."""
    for message in _filters(socket, name):
        target = _target(message)
        if target:
            return link_name(socket.fileno(), target)
    return ""


def set_redirect(socket: RouteSocket, name: str, target: str) -> None:
    """Redirect all that comes in to ``target``, "" for no longer."""
    doing = f"send on by {target} what comes in by {name}" if target else f"end the redirection of {name}"
    index = links.index(socket, name, doing)
    # By its priority and not by its target: that of a link which is gone is nowhere.
    there = [message for message in _filters(socket, name) if _is_own(message)]
    wanted = links.index(socket, target, doing) if target else 0
    if wanted and any(_target(message) == wanted for message in there):
        return
    for message in there:
        # Without a handle: with all that is of this priority, and so the table that u32 makes for it.
        fields = {"index": index, "parent": _INGRESS_HANDLE, "info": message["info"]}
        with contextlib.suppress(Missing):
            socket.request(Request(codec.DELFILTER, 0, doing, fields, [["TCA_KIND", "u32"]]))
    if wanted:
        _add_redirect(socket, index, wanted, doing)
    elif there and not _filters(socket, name):
        _end_ingress(socket, name, index, doing)


def _add_redirect(socket: RouteSocket, index: int, target: int, doing: str) -> None:
    fields = {"index": index, "parent": _INGRESS, "handle": _INGRESS_HANDLE}
    ingress = [["TCA_KIND", "ingress"]]
    with contextlib.suppress(Exists):  # somebody else's, who may have filters there, too
        flags = codec.CREATE | codec.EXCL
        socket.request(
            Request(codec.NEWQDISC, flags, doing, fields, ingress, needs="the ingress discipline (sch_ingress)")
        )
    parameters = {"action": _STOLEN, "eaction": _EGRESS_REDIRECT, "ifindex": target}
    action = [["TCA_ACT_KIND", "mirred"], ["TCA_ACT_OPTIONS", {"attrs": [["TCA_MIRRED_PARMS", parameters]]}]]
    options = [
        ["TCA_U32_SEL", {"flags": _TERMINAL, "nkeys": 1}],
        ["TCA_U32_ACT", {"attrs": [["TCA_ACT_FIRST", {"attrs": action}]]}],
    ]
    fields = {"index": index, "parent": _INGRESS_HANDLE, "info": _PRIORITY | _EVERY_PROTOCOL}
    attributes = [["TCA_KIND", "u32"], ["TCA_OPTIONS", {"attrs": options}]]
    flags = codec.CREATE | codec.EXCL
    needs = "the filter u32 with the action mirred (cls_u32, act_mirred)"
    socket.request(Request(codec.NEWFILTER, flags, doing, fields, attributes, needs=needs))


def _end_ingress(socket: RouteSocket, name: str, index: int, doing: str) -> None:
    """Remove the ingress discipline, in which nothing is left; a clsact is somebody else's."""
    for message in _disciplines(socket, name):
        if message["parent"] == _INGRESS and attribute(message, "TCA_KIND") == "ingress":
            fields = {"index": index, "parent": _INGRESS, "handle": _INGRESS_HANDLE}
            with contextlib.suppress(Missing):
                socket.request(Request(codec.DELQDISC, 0, doing, fields))


def _disciplines(socket: RouteSocket, name: str) -> list[Any]:
    doing = f"list the queueing disciplines of {name}"
    index = links.index(socket, name, doing)
    found = socket.dump(Request(codec.GETQDISC, 0, doing, {"index": index}))
    return [message for message in found if message["index"] == index]


def _filters(socket: RouteSocket, name: str) -> list[Any]:
    """The filters of what comes in, without those entries of u32 that are tables and no filters."""
    doing = f"list the filters of {name}"
    fields = {"index": links.index(socket, name, doing), "parent": _INGRESS_HANDLE}
    found = socket.dump(Request(codec.GETFILTER, 0, doing, fields))
    return [message for message in found if message["handle"] and not _is_table(message)]


def _is_table(message: Any) -> bool:
    return attribute(message, "TCA_KIND") == "u32" and not message["handle"] & 0xFFF


def _is_own(message: Any) -> bool:
    return bool(message["info"] & 0xFFFF0000 == _PRIORITY)


def _target(message: Any) -> int:
    """The index of the link to which a filter of weft's redirects, 0 for other filters."""
    if not _is_own(message):
        return 0
    path = ("TCA_OPTIONS", "TCA_U32_ACT", "TCA_ACT_FIRST", "TCA_ACT_OPTIONS", "TCA_MIRRED_PARMS")
    said = attribute(message, *path)
    return int(said["ifindex"]) if said and said["eaction"] == _EGRESS_REDIRECT else 0
