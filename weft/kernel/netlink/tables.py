"""The attribute tables of queueing disciplines, filters and routing rules.

In the form of pyroute2's tables, but without importing them: its package for ``tc`` imports every
discipline there is, and knows neither a 64-bit rate nor a burst in bytes. Sources:
``linux/pkt_sched.h``, ``linux/pkt_cls.h``, ``linux/tc_act/tc_mirred.h``, ``linux/fib_rules.h``.
"""

from __future__ import annotations

from typing import Any


class Layout:
    """What one attribute holds: numbers one after the other (``fields``), or further attributes
    (``nla_map``).
    """

    fields: tuple[tuple[str, str], ...] = ()
    nla_map: tuple[tuple[Any, ...], ...] = ()
    value_map: dict[int, str] = {}  # noqa: RUF012 - constant


class Byte(Layout):
    fields = (("value", "B"),)


class Number(Layout):
    fields = (("value", "I"),)


class Long(Layout):
    fields = (("value", "Q"),)


class Rule(Layout):
    """A routing rule (``struct fib_rule_hdr``)."""

    number, byte = Number, Byte
    nla_map = (
        (2, "FRA_SRC", "ipaddr"),
        (6, "FRA_PRIORITY", "number"),
        (15, "FRA_TABLE", "number"),
        (21, "FRA_PROTOCOL", "byte"),
    )


class TbfParameters(Layout):
    """``struct tc_tbf_qopt``; the times are in the kernel's ticks of 64 ns."""

    fields = (
        ("cell_log", "B"), ("link_layer", "B"), ("overhead", "H"), ("cell_align", "h"), ("mpu", "H"), ("rate", "I"),
        ("peak_cell_log", "B"), ("peak_link_layer", "B"), ("peak_overhead", "H"), ("peak_cell_align", "h"),
        ("peak_mpu", "H"), ("peak_rate", "I"), ("limit", "I"), ("buffer", "I"), ("mtu", "I"),
    )  # fmt: skip


class Tbf(Layout):
    """The token bucket filter."""

    parameters, number, long = TbfParameters, Number, Long
    nla_map = (
        (1, "TCA_TBF_PARMS", "parameters"),
        (4, "TCA_TBF_RATE64", "long"),
        (6, "TCA_TBF_BURST", "number"),
    )


class HtbParameters(Layout):
    """``struct tc_htb_opt``; the times are in the kernel's ticks of 64 ns."""

    fields = (
        ("cell_log", "B"), ("link_layer", "B"), ("overhead", "H"), ("cell_align", "h"), ("mpu", "H"), ("rate", "I"),
        ("ceil_cell_log", "B"), ("ceil_link_layer", "B"), ("ceil_overhead", "H"), ("ceil_cell_align", "h"),
        ("ceil_mpu", "H"), ("ceil", "I"), ("buffer", "I"), ("ceil_buffer", "I"), ("quantum", "I"), ("level", "I"),
        ("priority", "I"),
    )  # fmt: skip


class HtbDefaults(Layout):
    """``struct tc_htb_glob``."""

    fields = (("version", "I"), ("rate_to_quantum", "I"), ("default", "I"), ("debug", "I"), ("direct", "I"))


class Htb(Layout):
    """The hierarchical token bucket: a class's options, or the qdisc's."""

    parameters, defaults, number, long = HtbParameters, HtbDefaults, Number, Long
    nla_map = (
        (1, "TCA_HTB_PARMS", "parameters"),
        (2, "TCA_HTB_INIT", "defaults"),
        (5, "TCA_HTB_DIRECT_QLEN", "number"),
        (6, "TCA_HTB_RATE64", "long"),
        (7, "TCA_HTB_CEIL64", "long"),
    )


class Fifo(Layout):
    """``struct tc_fifo_qopt``: the limit of a pfifo, in packets."""

    fields = (("limit", "I"),)


class BasicStatistics(Layout):
    """``struct gnet_stats_basic``."""

    fields = (("bytes", "Q"), ("packets", "I"))


class QueueStatistics(Layout):
    """``struct gnet_stats_queue``."""

    fields = (("length", "I"), ("backlog", "I"), ("drops", "I"), ("requeues", "I"), ("overlimits", "I"))


class Statistics(Layout):
    basic, queue = BasicStatistics, QueueStatistics
    nla_map = ((1, "TCA_STATS_BASIC", "basic"), (3, "TCA_STATS_QUEUE", "queue"))


class MirredParameters(Layout):
    """``struct tc_mirred``."""

    fields = (
        ("index", "I"), ("capab", "I"), ("action", "i"), ("refcnt", "i"), ("bindcnt", "i"), ("eaction", "i"),
        ("ifindex", "I"),
    )  # fmt: skip


class Mirred(Layout):
    parameters = MirredParameters
    nla_map = ((2, "TCA_MIRRED_PARMS", "parameters"),)


class Action(Layout):
    kinds = {"mirred": Mirred}  # noqa: RUF012
    nla_map = ((1, "TCA_ACT_KIND", "asciiz"), (2, "TCA_ACT_OPTIONS", "options"))


class Actions(Layout):
    action = Action
    nla_map = ((1, "TCA_ACT_FIRST", "action"),)


class Selector(Layout):
    """``struct tc_u32_sel`` with one key."""

    fields = (
        ("flags", "B"), ("offshift", "B"), ("nkeys", "B"), ("padding", "B"), ("offmask", "H"), ("off", "H"),
        ("offoff", "h"), ("hoff", "h"), ("hmask", "I"), ("mask", "I"), ("key", "I"), ("keyoff", "i"), ("keymask", "i"),
    )  # fmt: skip


class U32(Layout):
    """The u32 filter."""

    selector, actions = Selector, Actions
    nla_map = ((5, "TCA_U32_SEL", "selector"), (7, "TCA_U32_ACT", "actions"))


class TrafficControl(Layout):
    """A queueing discipline, a class or a filter (``struct tcmsg``)."""

    statistics = Statistics
    kinds = {"tbf": Tbf, "u32": U32, "htb": Htb, "pfifo": Fifo}  # noqa: RUF012
    nla_map = ((1, "TCA_KIND", "asciiz"), (2, "TCA_OPTIONS", "options"), (7, "TCA_STATS2", "statistics"))
