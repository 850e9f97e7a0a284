"""A table that this process owns: others can neither change nor flush it, and it outlives its owner.

NFT_TABLE_F_OWNER is since Linux 5.12, NFT_TABLE_F_PERSIST since 6.9. Once the owner's socket is closed
the table stays, and is anybody's, without a notification: the next owner replaces it. The rules are
compiled by libnftables in
an empty network namespace and copied, since only the owner's socket may add them. Source:
``nf_tables_updtable``, ``nft_flush``, ``nft_rcv_nl_event`` in ``net/netfilter/nf_tables_api.c``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from weft.errors import KernelRefused
from weft.kernel.netlink.attributes import attribute, string
from weft.kernel.netlink.constants import (
    NFT_MSG_DELTABLE,
    NFT_MSG_GETCHAIN,
    NFT_MSG_GETRULE,
    NFT_MSG_GETTABLE,
    NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWRULE,
    NFT_MSG_NEWTABLE,
    NFT_TABLE_F_OWNER,
    NFT_TABLE_F_PERSIST,
    NFTA_CHAIN_HOOK,
    NFTA_CHAIN_NAME,
    NFTA_CHAIN_POLICY,
    NFTA_CHAIN_TABLE,
    NFTA_CHAIN_TYPE,
    NFTA_RULE_CHAIN,
    NFTA_RULE_EXPRESSIONS,
    NFTA_RULE_TABLE,
    NFTA_RULE_USERDATA,
    NFTA_TABLE_FLAGS,
    NFTA_TABLE_NAME,
    NFTA_TABLE_OWNER,
    NLM_F_APPEND,
    NLM_F_CREATE,
)
from weft.kernel.nft.connection import in_new_namespace
from weft.kernel.nft.library import Runner, refuse, runner
from weft.kernel.nft.socket import Change, NftSocket
from weft.kernel.schema import Table

_CHAIN: tuple[int, ...] = (NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE)
_RULE: tuple[int, ...] = (NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS, NFTA_RULE_USERDATA)


class OwnedTable:
    """One table in the calling thread's network namespace; its rules use no sets, not even anonymous
    ones.

    ``persist=False``: the kernel deletes it when its owner closes it or ends. ``others`` are tables with the same
    rules that other processes own. What their owners have left
    is deleted once this table is claimed, so that no earlier release's rules stay.
    """

    def __init__(
        self,
        table: Table,
        others: Iterable[Table] = (),
        make: Callable[[], Runner] = runner,
        *,
        persist: bool = True,
    ) -> None:
        self._table = table
        self._flags = NFT_TABLE_F_OWNER | (NFT_TABLE_F_PERSIST if persist else 0)
        self._others = tuple(others)
        self._make = make
        self._socket: NftSocket | None = None
        self._claimed = False
        self._supported = True

    @property
    def owned(self) -> bool:
        """Whether this process owns it."""
        return self._claimed

    @property
    def supported(self) -> bool:
        """Whether the kernel knows such tables, as far as is known."""
        return self._supported

    def claim(self) -> bool:
        """Install the table and own it; False where another process does, or the kernel has no such
        tables.
        """
        if self._claimed or not self._supported:
            return self._claimed
        if self._socket is None:
            self._socket = NftSocket()
        there = self._there(self._socket, self._table)
        if there and int.from_bytes(there.get(NFTA_TABLE_OWNER, b""), "big"):
            return False
        name = string(NFTA_TABLE_NAME, self._table.name)
        flags = attribute(NFTA_TABLE_FLAGS, self._flags.to_bytes(4, "big"))
        changes: list[Change] = [_deletion(self._table)] if there is not None else []
        changes.append((NFT_MSG_NEWTABLE, NLM_F_CREATE, self._table.family, (name, flags)))
        try:
            changes += in_new_namespace(self._compiled)
            refused = self._socket.transact(changes)
        except KernelRefused:
            self._supported = False
            raise
        self._claimed = not refused
        self._supported = there is not None or not refused
        if self._claimed:
            self._delete(self._socket, self._others)
        return self._claimed

    def remove(self) -> None:
        """Delete the table and the others, but what another process owns; missing is fine."""
        socket = self._socket or NftSocket()
        try:
            self._delete(socket, (self._table, *self._others))
        finally:
            socket.close()
            self._socket, self._claimed = None, False

    def close(self) -> None:
        """Give up the table, which stays if it persists."""
        if self._socket is not None:
            self._socket.close()
            self._socket, self._claimed = None, False

    @staticmethod
    def _there(socket: NftSocket, table: Table) -> dict[int, bytes] | None:
        (found,) = socket.get(NFT_MSG_GETTABLE, [(table.family, (string(NFTA_TABLE_NAME, table.name),))])
        return found

    def _delete(self, socket: NftSocket, tables: Iterable[Table]) -> None:
        """Delete tables, each in a transaction of its own: the kernel refuses what another process owns."""
        for table in tables:
            if self._there(socket, table) is not None:
                socket.transact([_deletion(table)])

    def _compiled(self) -> list[Change]:
        """The messages that add the chains and rules, in a namespace where nothing else is."""
        library = self._make()
        socket = NftSocket()
        try:
            _, errors = library.run(self._table.text(comments=False))
            if errors:
                refuse(errors)
            family = self._table.family
            found = [(NFT_MSG_NEWCHAIN, NLM_F_CREATE, _CHAIN, one) for one in socket.get_all(NFT_MSG_GETCHAIN, family)]
            rules = socket.get_all(NFT_MSG_GETRULE, family, string(NFTA_RULE_TABLE, self._table.name))
            found += [(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, _RULE, one) for one in rules]
            return [
                (kind, flags, family, tuple(attribute(key, one[key]) for key in keys if key in one))
                for kind, flags, keys, one in found
            ]
        finally:
            socket.close()
            library.close()


def _deletion(table: Table) -> Change:
    return NFT_MSG_DELTABLE, 0, table.family, (string(NFTA_TABLE_NAME, table.name),)
