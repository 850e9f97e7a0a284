"""Rate limits and redirections of links: queueing disciplines and filters.

Source: ``tc-tbf(8)``, ``tc-u32(8)``, ``tc-mirred(8)``, ``net/sched/sch_tbf.c``,
``net/sched/cls_u32.c``.
"""

from __future__ import annotations

import contextlib
from _socket import htons
from typing import Any

from weft.errors import Exists, Missing
from weft.kernel.netlink import links
from weft.kernel.netlink.codec import attribute, decode
from weft.kernel.netlink.constants import (
    ETH_P_ALL,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    RTM_DELQDISC,
    RTM_DELTFILTER,
    RTM_GETQDISC,
    RTM_GETTFILTER,
    RTM_NEWQDISC,
    RTM_NEWTFILTER,
    TC_ACT_STOLEN,
    TC_H_INGRESS,
    TC_H_MAJ_MASK,
    TC_H_MIN_EGRESS,
    TC_H_MIN_INGRESS,
    TC_H_ROOT,
    TC_U32_TERMINAL,
    TCA_EGRESS_REDIR,
)
from weft.kernel.netlink.ioctls import link_name
from weft.kernel.netlink.rtnetlink import RouteSocket, request
from weft.kernel.netlink.transport import parses_answer
from weft.kernel.values import Limit

_INGRESS_HANDLE = TC_H_INGRESS & TC_H_MAJ_MASK
_TICK_NANOSECONDS = 64  # PSCHED_SHIFT in net/pkt_sched.h
_MAX_U32 = 0xFFFFFFFF
_PRIORITIES = {False: 119 << 16, True: 118 << 16}
"""The priority of weft's filter at ingress and at egress, which marks it, as ROUTE_PROTOCOL does routes.

They differ since u32 lists what both hooks of a clsact have at one priority (``tc_u_common_ptr``).
"""


@parses_answer
def limit(socket: RouteSocket, name: str) -> Limit | None:
    """The rate limit of the link's root qdisc, None where that is no tbf."""
    for message in qdiscs(socket, name):
        if message["parent"] == TC_H_ROOT and attribute(message, "TCA_KIND") == "tbf":
            parameters = attribute(message, "TCA_OPTIONS", "TCA_TBF_PARMS")
            rate = int(attribute(message, "TCA_OPTIONS", "TCA_TBF_RATE64") or parameters["rate"])
            burst = round(parameters["buffer"] * _TICK_NANOSECONDS * rate / 1e9)
            return Limit(rate, burst, parameters["limit"])
    return None


def set_limit(socket: RouteSocket, name: str, wanted: Limit | None) -> None:
    """Set tbf as the link's root qdisc, or delete it; another root qdisc is not deleted."""
    action = f"set the rate limit of {name}" if wanted else f"delete the rate limit of {name}"
    fields = {"index": links.index(socket, name, action), "parent": TC_H_ROOT, "handle": 0x10000}
    if wanted is None:
        if limit(socket, name) is not None:
            with contextlib.suppress(Missing):
                socket.request(request(RTM_DELQDISC, 0, action, {**fields, "handle": 0}))
        return
    parameters = {"rate": min(wanted.rate, _MAX_U32), "limit": wanted.queue}
    options = [["TCA_TBF_PARMS", parameters], ["TCA_TBF_BURST", wanted.burst]]
    if wanted.rate > _MAX_U32:
        options.append(["TCA_TBF_RATE64", wanted.rate])
    attributes = [["TCA_KIND", "tbf"], ["TCA_OPTIONS", {"attrs": options}]]
    flags = NLM_F_CREATE | NLM_F_REPLACE
    socket.request(request(RTM_NEWQDISC, flags, action, fields, attributes, needs="the tbf qdisc (sch_tbf)"))


@parses_answer
def redirect(socket: RouteSocket, name: str, egress: bool = False) -> str:
    """The link to which ingress (or egress) is redirected, "" where it is not."""
    for message in _filters(socket, name, egress):
        target = _target(message, egress)
        if target:
            return link_name(socket.fileno(), target)
    return ""


def set_redirect(socket: RouteSocket, name: str, target: str, egress: bool = False) -> None:
    """Redirect all ingress (or egress) to ``target``; "" deletes the redirection."""
    way = "egress" if egress else "ingress"
    action = f"redirect the {way} of {name} to {target}" if target else f"delete the redirection of {name}"
    index = links.index(socket, name, action)
    # Found by its priority: the target may have been deleted.
    existing = [message for message in _filters(socket, name, egress) if _is_own(message, egress)]
    wanted = links.index(socket, target, action) if target else 0
    if wanted and any(_target(message, egress) == wanted for message in existing):
        return
    for message in existing:
        # Without a handle: all of this priority, including the hash table that u32 adds.
        fields = {"index": index, "parent": _hook(egress), "info": message["info"]}
        with contextlib.suppress(Missing):
            socket.request(request(RTM_DELTFILTER, 0, action, fields, [["TCA_KIND", "u32"]]))
    if wanted:
        _add_redirect(socket, index, wanted, egress, action)
    elif existing and not _filters(socket, name, egress):
        _delete_ingress(socket, name, index, egress, action)


def _hook(egress: bool) -> int:
    """The parent of filters of a link's ingress, or of its egress, which only a clsact has; a qdisc
    ``ingress`` takes any minor.
    """
    return _INGRESS_HANDLE | (TC_H_MIN_EGRESS if egress else TC_H_MIN_INGRESS)


def _add_redirect(socket: RouteSocket, index: int, target: int, egress: bool, action: str) -> None:
    kind = "clsact" if egress else "ingress"
    fields = {"index": index, "parent": TC_H_INGRESS, "handle": _INGRESS_HANDLE}
    with contextlib.suppress(Exists):  # another program's, which may have filters of its own
        flags = NLM_F_CREATE | NLM_F_EXCL
        needs = f"the {kind} qdisc (sch_ingress)"
        socket.request(request(RTM_NEWQDISC, flags, action, fields, [["TCA_KIND", kind]], needs=needs))
    parameters = {"action": TC_ACT_STOLEN, "eaction": TCA_EGRESS_REDIR, "ifindex": target}
    mirred = [["TCA_ACT_KIND", "mirred"], ["TCA_ACT_OPTIONS", {"attrs": [["TCA_MIRRED_PARMS", parameters]]}]]
    options = [
        ["TCA_U32_SEL", {"flags": TC_U32_TERMINAL, "nkeys": 1}],
        ["TCA_U32_ACT", {"attrs": [["TCA_ACT_FIRST", {"attrs": mirred}]]}],
    ]
    fields = {"index": index, "parent": _hook(egress), "info": _PRIORITIES[egress] | htons(ETH_P_ALL)}
    attributes = [["TCA_KIND", "u32"], ["TCA_OPTIONS", {"attrs": options}]]
    flags = NLM_F_CREATE | NLM_F_EXCL
    needs = "the u32 filter and the mirred action (cls_u32, act_mirred)"
    socket.request(request(RTM_NEWTFILTER, flags, action, fields, attributes, needs=needs))


def _delete_ingress(socket: RouteSocket, name: str, index: int, egress: bool, action: str) -> None:
    """Delete the qdisc that was added for a redirection, which has no filters left.

    For one of ingress a clsact is another program's; for one of egress an empty one is weft's own.
    """
    kind = "clsact" if egress else "ingress"
    if egress and _filters(socket, name):
        return
    for message in qdiscs(socket, name):
        if message["parent"] == TC_H_INGRESS and attribute(message, "TCA_KIND") == kind:
            fields = {"index": index, "parent": TC_H_INGRESS, "handle": _INGRESS_HANDLE}
            with contextlib.suppress(Missing):
                socket.request(request(RTM_DELQDISC, 0, action, fields))


def qdiscs(socket: RouteSocket, name: str) -> list[Any]:
    """The queueing disciplines of a link, as messages."""
    action = f"list the queueing disciplines of {name}"
    index = links.index(socket, name, action)
    found = map(decode, socket.dump(request(RTM_GETQDISC, 0, action, {"index": index})))
    return [message for message in found if message["index"] == index]


def _filters(socket: RouteSocket, name: str, egress: bool = False) -> list[Any]:
    """The filters at ingress (or egress), without the hash tables that u32 lists beside them."""
    action = f"list the filters of {name}"
    fields = {"index": links.index(socket, name, action), "parent": _hook(egress)}
    found = map(decode, socket.dump(request(RTM_GETTFILTER, 0, action, fields)))
    return [message for message in found if message["handle"] and not _is_table(message)]


def _is_table(message: Any) -> bool:
    return attribute(message, "TCA_KIND") == "u32" and not message["handle"] & 0xFFF


def _is_own(message: Any, egress: bool) -> bool:
    return bool(message["info"] & TC_H_MAJ_MASK == _PRIORITIES[egress])


def _target(message: Any, egress: bool) -> int:
    """The index of the link that weft's filter redirects to, 0 for other filters."""
    if not _is_own(message, egress):
        return 0
    path = ("TCA_OPTIONS", "TCA_U32_ACT", "TCA_ACT_FIRST", "TCA_ACT_OPTIONS", "TCA_MIRRED_PARMS")
    mirred = attribute(message, *path)
    return int(mirred["ifindex"]) if mirred and mirred["eaction"] == TCA_EGRESS_REDIR else 0
