"""Which class of the uplink's scheduler a packet belongs to: one element for each container's address.

The class is set as the packet's priority, from which HTB takes it without any filter. The schedulers of
both directions have the same numbers: of what leaves by the uplink the source counts, of what came from
there the destination, both as the container has them. Sources: nft(8), ``htb_classify`` in
``net/sched/sch_htb.c``.
"""

from __future__ import annotations

from weft.kernel.schema import Chain, Rule, Set, maps, rules

UPLINK_LINKS = "uplink_links"
UPLINK_CLASSES = "uplink_classes"
UPLINK_CLASS4, UPLINK_CLASS6 = "uplink_class4", "uplink_class6"

MAJOR = 0x7765
"""The major of weft's schedulers and of all their classes ("we"): ``tc class show`` has it before the colon."""

DOWNLOAD_LINK = "weft-download"
"""The ifb link that what came from the uplink passes on its way to containers."""
DEFAULT = 2
"""The number of the class that what belongs to no other has."""

SETS = (
    Set(UPLINK_LINKS, "ifname", "uplinks with a scheduler", "uplink"),
    Set(UPLINK_CLASSES, "classid", "classes of the schedulers, and in the comment whose each is", "uplink"),
    *maps(
        "uplink_class{v}",
        "{address}",
        "classid",
        "containers, and the class of what each sends by the uplink and receives from there",
        "uplink",
    ),
)

CHAINS = (
    Chain(
        "uplink_sent",
        "the class of the uplink's scheduler that a packet to the uplink belongs to",
        rules("meta priority set {ip} saddr map @uplink_class{v}", "sent by a container"),
    ),
    Chain(
        "uplink_received",
        "the class of the uplink's scheduler that a packet from the uplink belongs to",
        rules("meta priority set {ip} daddr map @uplink_class{v}", "sent to a container"),
    ),
)
FORWARD = (
    Rule("oifname @uplink_links jump uplink_sent", "to an uplink with a scheduler"),
    Rule("iifname @uplink_links jump uplink_received", "from an uplink with a scheduler"),
)
"""The first rules for what this host forwards: a base chain of their own would cost each packet more
than both look-ups."""


def classid(number: int) -> int:
    """The classid of a class by its number (minor), as elements have it."""
    return MAJOR << 16 | number


def class_owner(mark: str) -> str:
    """Whose a class is, by the comment of its element: a network's ends with its name."""
    return mark.split(":", 2)[-1] if mark.count(":") > 1 else mark or "another program"
