"""The hierarchical token bucket: a link's root qdisc, its classes and their queues.

Classes are numbered by the minor of their classid; all have the major of the root qdisc. Sources:
``tc-htb(8)``, ``net/sched/sch_htb.c``, ``linux/pkt_sched.h``.
"""

from __future__ import annotations

import contextlib
from typing import Any

from weft.errors import KernelLacks, Missing
from weft.kernel.netlink import links, qdiscs
from weft.kernel.netlink.codec import attribute, decode
from weft.kernel.netlink.constants import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    RTM_DELQDISC,
    RTM_DELTCLASS,
    RTM_GETTCLASS,
    RTM_NEWQDISC,
    RTM_NEWTCLASS,
    TC_H_MAJ_MASK,
    TC_H_ROOT,
    TC_LINKLAYER_ETHERNET,
)
from weft.kernel.netlink.rtnetlink import RouteSocket, request
from weft.kernel.netlink.transport import parses_answer
from weft.kernel.values import ClassTraffic, TrafficClass

_TICK_NANOSECONDS = 64  # PSCHED_SHIFT in net/pkt_sched.h
_MAX_U32 = 0xFFFFFFFF
_REPLACE = NLM_F_CREATE | NLM_F_REPLACE
_MINOR = 0xFFFF
_VERSION = 3  # HTB_VER >> 16
_DIRECT_PACKETS = 1000
_BURST = 3200
"""Bytes that a class may send at once, besides its rate's of ``_BURST_PART`` of a second."""
_BURST_PART = 200
_QUEUE_PART = 20
"""A queue without fq_codel holds 1/20 s (50 ms) of its class's ceil."""
_SHORTEST, _LONGEST, _PACKET = 64, 1000, 1514
_SEGMENTED_BELOW = 25_000_000
"""Bytes per second (200 Mbit/s) below which what the kernel has not segmented is, into at most
``SEGMENT`` bytes: 64 KiB would take 2.6 ms and more, in which no other packet is sent.
"""
SEGMENT = 10_000
_MTU_HEADERS = 50
_NEVER_WAITS = 10**13


@parses_answer
def root_qdisc(socket: RouteSocket, name: str) -> str:
    """The link's root qdisc as ``KIND MAJOR:``, "" for the kernel's own choice."""
    for message in qdiscs.qdiscs(socket, name):
        if message["parent"] == TC_H_ROOT and message["handle"]:
            return f"{attribute(message, 'TCA_KIND')} {message['handle'] >> 16:x}:"
    return ""


def add_scheduler(socket: RouteSocket, name: str, major: int, default: int) -> None:
    """Make an HTB the link's root qdisc; raises Exists where one was set."""
    action = f"make the scheduler htb of {name}"
    fields = {"index": links.index(socket, name, action), "parent": TC_H_ROOT, "handle": major << 16}
    defaults = {"version": _VERSION, "rate_to_quantum": 10, "default": default}
    options = {"attrs": [["TCA_HTB_INIT", defaults], ["TCA_HTB_DIRECT_QLEN", _DIRECT_PACKETS]]}
    attributes = [["TCA_KIND", "htb"], ["TCA_OPTIONS", options]]
    try:
        socket.request(request(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, action, fields, attributes))
    except Missing as error:
        raise KernelLacks(error.message, hint="this kernel lacks the htb qdisc (sch_htb)") from error


def delete_scheduler(socket: RouteSocket, name: str, major: int) -> None:
    """Delete the link's root qdisc if it is an HTB of that major; missing is fine."""
    action = f"delete the scheduler htb of {name}"
    if root_qdisc(socket, name) == f"htb {major:x}:":
        fields = {"index": links.index(socket, name, action), "parent": TC_H_ROOT}
        with contextlib.suppress(Missing):
            socket.request(request(RTM_DELQDISC, 0, action, fields))


@parses_answer
def classes(socket: RouteSocket, name: str) -> tuple[TrafficClass, ...]:
    """The classes of the link's HTB, () without one."""
    action = f"list the classes of {name}"
    fields = {"index": links.index(socket, name, action)}
    found = map(decode, socket.dump(request(RTM_GETTCLASS, 0, action, fields)))
    htb = [one for one in found if one["index"] == fields["index"] and attribute(one, "TCA_KIND") == "htb"]
    return tuple(sorted((_class(one) for one in htb), key=lambda one: one.number))


def _class(message: Any) -> TrafficClass:
    parameters = attribute(message, "TCA_OPTIONS", "TCA_HTB_PARMS")
    return TrafficClass(
        message["handle"] & _MINOR,
        0 if message["parent"] == TC_H_ROOT else message["parent"] & _MINOR,
        int(attribute(message, "TCA_OPTIONS", "TCA_HTB_RATE64") or parameters["rate"]),
        int(attribute(message, "TCA_OPTIONS", "TCA_HTB_CEIL64") or parameters["ceil"]),
        parameters["quantum"],
        parameters["priority"],
    )


def set_class(socket: RouteSocket, name: str, major: int, wanted: TrafficClass, *, leaf: bool) -> None:
    """Add or change a class; a ``leaf`` gets a queue: fq_codel, or a plain one where that is lacking."""
    action = f"set the class {major:x}:{wanted.number:x} of {name}"
    fields = {
        "index": links.index(socket, name, action),
        "parent": major << 16 | wanted.parent,
        "handle": major << 16 | wanted.number,
    }
    parameters = {
        "link_layer": TC_LINKLAYER_ETHERNET,
        "ceil_link_layer": TC_LINKLAYER_ETHERNET,
        "rate": min(wanted.rate, _MAX_U32),
        "ceil": min(wanted.ceil, _MAX_U32),
        "buffer": _ticks(wanted.rate),
        "ceil_buffer": _ticks(wanted.ceil),
        "quantum": wanted.quantum,
        "priority": wanted.priority,
    }
    options: list[Any] = [["TCA_HTB_PARMS", parameters]]
    for key, rate in (("TCA_HTB_RATE64", wanted.rate), ("TCA_HTB_CEIL64", wanted.ceil)):
        if rate > _MAX_U32:
            options.append([key, rate])
    attributes = [["TCA_KIND", "htb"], ["TCA_OPTIONS", {"attrs": options}]]
    socket.request(request(RTM_NEWTCLASS, NLM_F_CREATE, action, fields, attributes))
    if leaf:
        _set_queue(socket, name, fields["index"], fields["handle"], wanted.ceil, action)


def _ticks(rate: int) -> int:
    """The time in which the rate (bytes per second) sends its burst."""
    burst = _BURST + rate // _BURST_PART
    return min(round(burst * 1e9 / rate / _TICK_NANOSECONDS), _MAX_U32)


def _set_queue(socket: RouteSocket, name: str, index: int, classid: int, ceil: int, action: str) -> None:
    """Give a class its queue. Packets of a slow class pass a tbf, which segments large ones as it cannot
    let them pass whole, and delays none.
    """
    place = {"index": index, "parent": classid}
    if ceil < _SEGMENTED_BELOW:
        mtu = links.get(socket, name)
        largest = max(SEGMENT, (mtu.mtu if mtu is not None else 0) + _MTU_HEADERS)
        queued = max(ceil // _QUEUE_PART, 1 << 16)
        options = [
            ["TCA_TBF_PARMS", {"rate": _MAX_U32, "limit": queued}],
            ["TCA_TBF_BURST", largest],
            ["TCA_TBF_RATE64", _NEVER_WAITS],
        ]
        handle = (classid & _MINOR) << 16
        attributes = [["TCA_KIND", "tbf"], ["TCA_OPTIONS", {"attrs": options}]]
        with contextlib.suppress(Missing):  # a kernel without tbf
            socket.request(request(RTM_NEWQDISC, _REPLACE, action, {**place, "handle": handle}, attributes))
            with contextlib.suppress(Missing):
                below = {"index": index, "parent": handle | 1}
                socket.request(request(RTM_NEWQDISC, _REPLACE, action, below, [["TCA_KIND", "fq_codel"]]))
            return
    try:
        socket.request(request(RTM_NEWQDISC, _REPLACE, action, place, [["TCA_KIND", "fq_codel"]]))
    except Missing:
        limit = min(max(ceil // _QUEUE_PART // _PACKET, _SHORTEST), _LONGEST)
        attributes = [["TCA_KIND", "pfifo"], ["TCA_OPTIONS", {"limit": limit}]]
        socket.request(request(RTM_NEWQDISC, _REPLACE, action, place, attributes))


def delete_class(socket: RouteSocket, name: str, major: int, number: int) -> None:
    """Delete a class; a missing one is fine, one with classes below it is refused."""
    action = f"delete the class {major:x}:{number:x} of {name}"
    fields = {"index": links.index(socket, name, action), "handle": major << 16 | number}
    with contextlib.suppress(Missing):
        socket.request(request(RTM_DELTCLASS, 0, action, fields))


@parses_answer
def class_traffic(socket: RouteSocket, name: str) -> tuple[ClassTraffic, ...]:
    """What the queues of the link's classes have sent and dropped, by class."""
    found = qdiscs.qdiscs(socket, name)
    htb = {one["handle"] for one in found if one["parent"] == TC_H_ROOT and attribute(one, "TCA_KIND") == "htb"}
    return tuple(_traffic(one) for one in found if one["parent"] & TC_H_MAJ_MASK in htb)


def _traffic(message: Any) -> ClassTraffic:
    basic = attribute(message, "TCA_STATS2", "TCA_STATS_BASIC") or {}
    queue = attribute(message, "TCA_STATS2", "TCA_STATS_QUEUE") or {}
    return ClassTraffic(
        message["parent"] & _MINOR,
        basic.get("bytes", 0),
        basic.get("packets", 0),
        queue.get("drops", 0),
        queue.get("backlog", 0),
    )
