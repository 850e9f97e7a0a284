"""What other firewalls of the host keep for administrators' rules, as far as weft has rules there."""

from __future__ import annotations

import re
from dataclasses import dataclass

OWN_CHAIN = "WEFT-FORWARD"
"""weft's own chain of iptables' table filter, to which its rules in ``USER_CHAINS`` jump."""
USER_CHAINS = {
    4: ("DOCKER-USER", "ufw-user-forward", "ufw-user-input"),
    6: ("DOCKER-USER", "ufw6-user-forward", "ufw6-user-input"),
}
"""Chains of iptables' table filter that other firewalls keep for administrators' rules, by IP version."""
RETURN = "RETURN"
HOOKS = {"INPUT": 1, "FORWARD": 2}  # NF_INET_LOCAL_IN, NF_INET_FORWARD
_MARK = re.compile(rb"weft:[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class UserChain:
    """One of ``USER_CHAINS`` or ``OWN_CHAIN``, and whether the policy of the base chain that leads there
    ``drops`` what no rule accepts.

    ``rules``: of each rule the mark of weft's in its comment, ``RETURN`` for one that returns all packets,
    so that no later one sees any, "" for another. ``backend`` is ``nft`` or ``legacy``, since both iptables
    may be in use.
    """

    version: int
    name: str
    rules: tuple[str, ...]
    drops: bool = True
    backend: str = "nft"

    @property
    def marks(self) -> tuple[str, ...]:
        """weft's marks, one for each rule that has one."""
        return tuple(one for one in self.rules if one not in ("", RETURN))

    @property
    def seen(self) -> tuple[str, ...]:
        """The rules that see packets: those before the first ``RETURN``."""
        return self.rules[: self.rules.index(RETURN)] if RETURN in self.rules else self.rules


@dataclass(frozen=True, slots=True)
class Firewalls:
    """The chains of ``USER_CHAINS`` that exist, whether firewalld's table does, and weft's own chains beside
    those.
    """

    user_chains: tuple[UserChain, ...] = ()
    firewalld: bool = False
    own_chains: tuple[UserChain, ...] = ()


def hook_of(chain: str) -> str:
    """The built-in chain that leads to one of these chains."""
    return "INPUT" if chain.endswith("-input") else "FORWARD"


def mark_in(rule: bytes) -> str:
    """The mark in a rule's comment, "" without one."""
    found = _MARK.search(rule)
    return found[0].decode() if found else ""
