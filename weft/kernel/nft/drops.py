"""How many packets each rule of weft's tables has dropped."""

from __future__ import annotations

from collections import Counter

from weft.errors import Missing
from weft.kernel.netlink.attributes import Attributes, parse, parse_list, string
from weft.kernel.netlink.constants import (
    NFT_MSG_GETRULE,
    NFT_MSG_GETTABLE,
    NFTA_COUNTER_PACKETS,
    NFTA_EXPR_DATA,
    NFTA_EXPR_NAME,
    NFTA_RULE_CHAIN,
    NFTA_RULE_EXPRESSIONS,
    NFTA_RULE_TABLE,
    NFTA_RULE_USERDATA,
    NFTA_TABLE_NAME,
)
from weft.kernel.nft.socket import NftSocket
from weft.kernel.nft.survey import COUNTER

_FAMILIES = ("inet", "bridge")
_OWN = b"weft"


def drops(nft_socket: NftSocket) -> dict[tuple[str, str, str], int]:
    """Packets by table, chain and the comments of the rules that have dropped them, of all tables whose names begin
    with ``weft``.

    *Equivalent to:* ``nft list ruleset | grep "counter packets"``.
    """
    found: Counter[tuple[str, str, str]] = Counter()
    for family in _FAMILIES:
        for table in nft_socket.get_all(NFT_MSG_GETTABLE, family):
            name = table[NFTA_TABLE_NAME]
            if not name.startswith(_OWN):
                continue
            try:
                rules = nft_socket.get_all(NFT_MSG_GETRULE, family, string(NFTA_RULE_TABLE, _text(name)))
            except Missing:  # deleted meanwhile
                continue
            for rule in rules:
                if rule[NFTA_RULE_TABLE] == name and (packets := _packets(rule)):
                    found[f"{family} {_text(name)}", _text(rule[NFTA_RULE_CHAIN]), _comment(rule)] += packets
    return dict(found)


def _packets(rule: Attributes) -> int:
    for one in parse_list(rule.get(NFTA_RULE_EXPRESSIONS, b"")):
        expression = parse(one)
        if expression.get(NFTA_EXPR_NAME) == COUNTER:
            return int.from_bytes(parse(expression[NFTA_EXPR_DATA])[NFTA_COUNTER_PACKETS], "big")
    return 0


def _comment(rule: Attributes) -> str:
    """Of type 0, a byte of length, and the text (``NFTNL_UDATA_RULE_COMMENT`` of libnftnl)."""
    data = rule.get(NFTA_RULE_USERDATA, b"")
    return _text(data[2 : 2 + data[1]]) if data[:1] == b"\0" and len(data) > 1 else ""


def _text(name: bytes) -> str:
    return name.rstrip(b"\0").decode("utf-8", "replace")
