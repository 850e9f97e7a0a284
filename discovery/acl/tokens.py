"""The tokens, policies and roles that the store has, in memory, and what each token may do."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator

from discovery.acl.authorizer import MANAGEMENT, NOT_FOUND, Authorizer, PermissionDenied, explain_token
from discovery.acl.identities import NODE, SERVICE, template_rules
from discovery.acl.records import (
    ACLS,
    ANONYMOUS,
    ANONYMOUS_ID,
    ANONYMOUS_TOKEN,
    BOOTSTRAP,
    BUILTIN_POLICIES,
    MANAGEMENT_ID,
    AclRecord,
    Policy,
    Role,
    Token,
    decode_acl,
    digest,
)
from discovery.acl.rules import BadRules, merged, parse_rules
from discovery.layout import DecodeError
from store import Batch, Entry

log = logging.getLogger(__name__)


class Tokens:
    """What the store has of ACLs. ``allow`` is the default policy; ``default`` the secret of
    requests without a token; ``datacenter`` this agent's.
    """

    def __init__(self, *, allow: bool, default: str, datacenter: str) -> None:
        self.on_change: Callable[[], None] = lambda: None
        """Is called after a change."""
        self.loaded = False
        self.default = default
        self.bootstrapped = 0
        """The revision at which a first token was made; 0 before."""
        self.changes = 0
        """Counts changes: answers that depend on permissions are computed anew."""
        self._allow = allow
        self._datacenter = datacenter
        self._records: dict[str, AclRecord] = {}
        self._undecodable: set[str] = set()
        self._by_digest: dict[str, Token] = {}
        self._authorizers: dict[str, Authorizer] = {}
        self._fill(())

    # Changes

    def load(self, entries: Iterable[Entry]) -> None:
        """Replace the contents by these entries, all that the store has."""
        self.loaded = True
        self._fill(entries)

    def _fill(self, entries: Iterable[Entry]) -> None:
        self._records = {f"{ACLS}policy/{one.id}": one for one in BUILTIN_POLICIES}
        self._by_digest = {}
        self._undecodable = set()
        self.bootstrapped = 0
        self._put(f"{ACLS}token/{ANONYMOUS_ID}", ANONYMOUS_TOKEN)
        for entry in entries:
            self._change(entry.key, entry)
        self._changed()

    def on_batch(self, batch: Batch) -> None:
        """Apply changes of the store."""
        events = [event for event in batch.events if event.key.startswith(ACLS)]
        for event in events:
            self._change(event.key, event.entry)
        if events:
            self._changed()

    def set_default(self, secret: str) -> None:
        """Set the token of requests without one."""
        self.default = secret
        self._changed()

    def _changed(self) -> None:
        self._authorizers.clear()
        self.changes += 1
        self.on_change()

    def _change(self, key: str, entry: Entry | None) -> None:
        if key == BOOTSTRAP:
            self.bootstrapped = entry.mod_revision if entry is not None else 0
            return
        record: AclRecord | None = None
        self._undecodable.discard(key)
        if entry is not None:
            try:
                record = decode_acl(entry)
            except DecodeError as error:
                log.error("tokens with this ACL record are refused: %s", error)
                self._undecodable.add(key)
        if record is None and key == f"{ACLS}token/{ANONYMOUS_ID}":
            record = ANONYMOUS_TOKEN
        self._put(key, record)

    def _put(self, key: str, record: AclRecord | None) -> None:
        old = self._records.pop(key, None)
        if isinstance(old, Token) and self._by_digest.get(old.digest) is old:
            del self._by_digest[old.digest]
        if record is not None:
            self._records[key] = record
        if isinstance(record, Token):
            self._by_digest[record.digest] = record

    # Lookup

    def tokens(self) -> Iterator[Token]:
        """All tokens that have not expired."""
        for record in self._records.values():
            if isinstance(record, Token) and not _expired(record):
                yield record

    def policies(self) -> Iterator[Policy]:
        """All policies."""
        return (one for one in self._records.values() if isinstance(one, Policy))

    def roles(self) -> Iterator[Role]:
        """All roles."""
        return (one for one in self._records.values() if isinstance(one, Role))

    def token(self, accessor: str) -> Token | None:
        """A token by its AccessorID; None if there is none."""
        found = self._records.get(f"{ACLS}token/{accessor.lower()}")
        return found if isinstance(found, Token) and not _expired(found) else None

    def policy(self, policy_id: str) -> Policy | None:
        """A policy by id; None if there is none."""
        found = self._records.get(f"{ACLS}policy/{policy_id.lower()}")
        return found if isinstance(found, Policy) else None

    def role(self, role_id: str) -> Role | None:
        """A role by id; None if there is none."""
        found = self._records.get(f"{ACLS}role/{role_id.lower()}")
        return found if isinstance(found, Role) else None

    def by_secret(self, secret: str) -> Token | None:
        """The token with this secret; None if there is none, or it has expired."""
        found = self._by_digest.get(digest(secret))
        return found if found is not None and not _expired(found) else None

    # Permissions

    def default_reads(self, resource: str, name: str) -> bool:
        """Whether a request without a token may read this; none before all tokens are known."""
        try:
            return self.loaded and self.authorizer("").allows(resource, name)
        except PermissionDenied:
            return False

    def authorizer(self, secret: str) -> Authorizer:
        """What the token with this secret may do, "" for none: the default or anonymous token.
        Raises PermissionDenied.
        """
        token = self.by_secret(secret or self.default or ANONYMOUS)
        if token is None and not secret:  # the default token does not exist
            token = self.by_secret(ANONYMOUS)
        if token is None:
            raise PermissionDenied(NOT_FOUND)
        found = self._authorizers.get(token.id)
        if found is None:
            found = self._authorizers[token.id] = self._authorizer(token)
        return found

    def _authorizer(self, token: Token) -> Authorizer:
        """What a token may do. Raises PermissionDenied if something that it has cannot be read: it may deny."""
        roles = [role for role_id in token.roles if (role := self.role(self._readable("role", role_id))) is not None]
        holders: tuple[Token | Role, ...] = (token, *roles)
        policies = {policy: None for one in holders for policy in one.policies}
        if MANAGEMENT_ID in policies:
            return MANAGEMENT
        texts = [text for policy in policies for text in self._policy_texts(self._readable("policy", policy))]
        texts += [text for one in holders for text in self._identity_texts(one)]
        try:
            rules = merged(map(parse_rules, texts))
        except BadRules as error:  # of a newer weft, or written to the store by hand
            raise PermissionDenied(f"Permission denied: a policy of this token cannot be read: {error}") from None
        explain = explain_token("" if token.id == ANONYMOUS_ID else token.id)
        return Authorizer((token.id, self.changes), rules, explain, default=self._allow)

    def _readable(self, kind: str, record_id: str) -> str:
        if f"{ACLS}{kind}/{record_id.lower()}" in self._undecodable:
            raise PermissionDenied(f"Permission denied: this token's {kind} {record_id} cannot be read from the store")
        return record_id

    def _policy_texts(self, policy_id: str) -> Iterator[str]:
        policy = self.policy(policy_id)
        if policy is not None and (not policy.datacenters or self._datacenter in policy.datacenters):
            yield policy.rules

    def _identity_texts(self, one: Token | Role) -> Iterator[str]:
        """The rules of identities and templates."""
        for template, identities in ((SERVICE, one.services), (NODE, one.nodes)):
            for name, datacenters in identities:
                if not datacenters or self._datacenter in datacenters:
                    yield template_rules(template, name)
        for template, name in one.templates:
            yield template_rules(template, name)


def _expired(token: Token) -> bool:
    return bool(token.expires) and token.expires <= time.time()
