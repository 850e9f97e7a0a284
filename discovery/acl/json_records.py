"""Tokens, policies and roles as Consul's JSON.

A token's SecretID is shown when it is made, and to who uses it; else it is ``<hidden>``, as Consul
shows it to those who may not write ACLs.

Source: https://developer.hashicorp.com/consul/api-docs/acl and the structs of Consul's Go client.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Iterable
from dataclasses import replace

from discovery.acl.identities import check_name, check_template
from discovery.acl.records import ANONYMOUS, ANONYMOUS_ID, Identity, Policy, Role, Template, Token, encode_acl
from discovery.acl.rules import BadRules, parse_rules
from discovery.acl.tokens import Tokens
from discovery.consul.json_fields import BadField, Fields

HIDDEN = "<hidden>"
MIN_TTL, MAX_TTL = 60.0, 86400.0
_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")
_ROLE_NAME = re.compile(r"[A-Za-z0-9_-]{1,256}")
Json = dict[str, object]


def token_json(token: Token, tokens: Tokens, secret: str = "") -> Json:
    """A token; ``secret`` is its secret, where it is to be shown."""
    found: Json = {
        "AccessorID": token.id,
        "SecretID": secret or (ANONYMOUS if token.id == ANONYMOUS_ID else HIDDEN),
        "Description": token.description,
        "Policies": _links(token.policies, ((one.id, one.name) for one in tokens.policies())),
        "Roles": _links(token.roles, ((one.id, one.name) for one in tokens.roles())),
        **_identities(token),
        "Local": token.local,
        "CreateTime": _time(token.created),
        "Hash": _hash(encode_acl(replace(token, digest=""))),
        "CreateIndex": token.create_index,
        "ModifyIndex": token.modify_index,
    }
    return found | ({"ExpirationTime": _time(token.expires)} if token.expires else {})


def policy_json(policy: Policy, *, rules: bool = True) -> Json:
    """A policy; lists are without its rules."""
    return {
        "ID": policy.id,
        "Name": policy.name,
        "Description": policy.description,
        **({"Rules": policy.rules} if rules else {}),
        **({"Datacenters": list(policy.datacenters)} if policy.datacenters else {}),
        "Hash": _hash(encode_acl(policy)),
        "CreateIndex": policy.create_index,
        "ModifyIndex": policy.modify_index,
    }


def role_json(role: Role, tokens: Tokens) -> Json:
    """A role."""
    return {
        "ID": role.id,
        "Name": role.name,
        "Description": role.description,
        "Policies": _links(role.policies, ((one.id, one.name) for one in tokens.policies())),
        **_identities(role),
        "Hash": _hash(encode_acl(role)),
        "CreateIndex": role.create_index,
        "ModifyIndex": role.modify_index,
    }


def _links(ids: Iterable[str], known: Iterable[tuple[str, str]]) -> list[Json]:
    names = dict(known)
    return [{"ID": one, "Name": names[one]} for one in ids if one in names]


def _identities(one: Token | Role) -> Json:
    services = [
        {"ServiceName": name} | ({"Datacenters": list(places)} if places else {}) for name, places in one.services
    ]
    nodes = [{"NodeName": name, "Datacenter": places[0]} for name, places in one.nodes]
    templates = [
        {"TemplateName": name} | ({"TemplateVariables": {"name": variable}} if variable else {})
        for name, variable in one.templates
    ]
    found = {"ServiceIdentities": services, "NodeIdentities": nodes, "TemplatedPolicies": templates}
    return {name: value for name, value in found.items() if value}


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _hash(content: bytes) -> str:
    """What changes with the content; clients compare it only."""
    return base64.b64encode(hashlib.sha256(content).digest()).decode()


# What clients write


def parse_token(fields: Fields, tokens: Tokens, old: Token) -> Token:
    """The token as a client wants it. Raises BadField."""
    ttl = fields.duration("ExpirationTTL")
    if ttl and not MIN_TTL <= ttl <= MAX_TTL:
        fields.invalid("ExpirationTTL", fields.get("ExpirationTTL"), "must be 1m to 24h")
    if fields.has("ExpirationTime") and not old.expires:
        raise BadField("ExpirationTime: use ExpirationTTL")
    return replace(
        old,
        description=fields.text("Description"),
        policies=_linked(fields, "Policies", ((one.id, one.name) for one in tokens.policies())),
        roles=_linked(fields, "Roles", ((one.id, one.name) for one in tokens.roles())),
        services=_services(fields),
        nodes=_nodes(fields),
        templates=_templates(fields),
        local=fields.boolean("Local"),
        expires=old.created + ttl if ttl else old.expires,
    )


def parse_policy(fields: Fields, tokens: Tokens, old: Policy) -> Policy:
    """The policy as a client wants it. Raises BadField."""
    name = _checked_name(fields, _NAME, old.name)
    if any(one.name.lower() == name.lower() and one.id != old.id for one in tokens.policies()):
        raise BadField(f'Invalid Policy: A Policy with Name "{name}" already exists')
    rules = fields.text("Rules", longest=2**18)
    try:
        parse_rules(rules)
    except BadRules as error:
        raise BadField(f"Rules: {error}") from None
    return replace(
        old,
        name=name,
        description=fields.text("Description"),
        rules=rules,
        datacenters=fields.string_list("Datacenters"),
    )


def parse_role(fields: Fields, tokens: Tokens, old: Role) -> Role:
    """The role as a client wants it. Raises BadField."""
    name = _checked_name(fields, _ROLE_NAME, old.name)
    if any(one.name.lower() == name.lower() and one.id != old.id for one in tokens.roles()):
        raise BadField(f'Invalid Role: A Role with Name "{name}" already exists')
    return replace(
        old,
        name=name,
        description=fields.text("Description"),
        policies=_linked(fields, "Policies", ((one.id, one.name) for one in tokens.policies())),
        services=_services(fields),
        nodes=_nodes(fields),
        templates=_templates(fields),
    )


def _checked_name(fields: Fields, pattern: re.Pattern[str], old: str) -> str:
    name = fields.name("Name") or old
    if not pattern.fullmatch(name):
        fields.invalid("Name", name, "must be letters, digits, '-' and '_'")
    return name


def _linked(fields: Fields, field: str, known: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """The ids of policies or roles, which a client names by ID or Name. Raises BadField."""
    pairs = tuple(known)
    ids, names = {one.lower(): one for one, _ in pairs}, {name: one for one, name in pairs}
    found: dict[str, None] = {}
    for part in fields.objects(field):
        wanted, name = part.text("ID"), part.text("Name")
        one = ids.get(wanted.lower()) if wanted else names.get(name)
        if one is None:
            raise BadField(f"{field}: there is none with ID {wanted[:60]!r} or Name {name[:60]!r}")
        found[one] = None
    return tuple(found)


def _services(fields: Fields) -> tuple[Identity, ...]:
    found = tuple(
        (part.name("ServiceName"), part.string_list("Datacenters")) for part in fields.objects("ServiceIdentities")
    )
    return _with_names("ServiceIdentities", found)


def _nodes(fields: Fields) -> tuple[Identity, ...]:
    found = tuple(
        (part.name("NodeName"), (part.name("Datacenter"),) if part.name("Datacenter") else ())
        for part in fields.objects("NodeIdentities")
    )
    for name, places in found:
        if not places:
            raise BadField(f"NodeIdentities: {name[:60]!r} has no Datacenter")
    return _with_names("NodeIdentities", found)


def _with_names(field: str, found: tuple[Identity, ...]) -> tuple[Identity, ...]:
    try:
        for name, _ in found:
            check_name(field, name)
    except BadRules as error:
        raise BadField(str(error)) from None
    return found


def _templates(fields: Fields) -> tuple[Template, ...]:
    found = []
    for part in fields.objects("TemplatedPolicies"):
        variables = part.object_("TemplateVariables")
        found.append((part.text("TemplateName"), variables.name("Name") if variables is not None else ""))
    try:
        for template, name in found:
            check_template(template, name)
    except BadRules as error:
        raise BadField(f"TemplatedPolicies: {error}") from None
    return tuple(found)
