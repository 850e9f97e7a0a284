"""Rules of policies, and what they allow."""

from __future__ import annotations

import json

import pytest

from discovery.acl.authorizer import Authorizer, PermissionDenied, explain_token
from discovery.acl.identities import TEMPLATES, template_rules
from discovery.acl.rules import Access, BadRules, merged, parse_rules

HCL = """
key_prefix "" { policy = "read" }
key_prefix "app/" { policy = "write" }
key_prefix "app/private/" { policy = "deny" }
key "app/private/open" { policy = "list" }
service "web" { policy = "write" intentions = "read" }
service_prefix "web-" { policy = "read" }
operator = "read"
"""


def of(*texts: str, default: bool = False) -> Authorizer:
    return Authorizer("test", merged(map(parse_rules, texts)), explain_token("id"), default=default)


def test_the_most_specific_rule_decides() -> None:
    acl = of(HCL)
    for key, access in (("x", 1), ("app/x", 3), ("app/private/x", 0), ("app/private/open", 2), ("app", 1)):
        assert [acl.allows("key", key, level) for level in (Access.READ, Access.LIST, Access.WRITE)] == [
            access >= level for level in (1, 2, 3)
        ], key
    assert acl.writes("service", "web") and not acl.writes("service", "web-1") and acl.allows("service", "web-1")
    assert not acl.allows("service", "db") and not acl.allows("node", "n1") and not acl.allows("acl")
    assert acl.allows("operator") and not acl.writes("operator")


def test_a_tree_is_written_if_no_rule_below_says_otherwise() -> None:
    acl = of(HCL)
    assert acl.writes_tree("app/x/")
    for prefix in ("", "app/", "app/private/", "app/private/open", "other/"):
        assert not acl.writes_tree(prefix), prefix
    assert of('key "a/b" { policy = "write" }', default=True).writes_tree("a/")
    assert not of('key "a/b" { policy = "read" }', default=True).writes_tree("a/")


def test_of_several_policies_deny_wins_then_the_wider() -> None:
    read, write, deny = (f'key "a" {{ policy = "{word}" }}' for word in ("read", "write", "deny"))
    assert of(read, write).writes("key", "a") and of(write, read).writes("key", "a")
    assert not of(read, deny, write).allows("key", "a") and not of(deny, read).allows("key", "a")


def test_the_default_decides_the_rest_but_never_acls() -> None:
    acl = of('node "n1" { policy = "read" }', default=True)
    assert acl.writes("key", "x") and acl.writes("operator") and not acl.writes("node", "n1")
    assert not acl.allows("acl")
    with pytest.raises(PermissionDenied, match="AccessorID 'id' lacks permission 'node:write' on \"n1\""):
        acl.require_write("node", "n1")


def test_json_says_the_same() -> None:
    document = {"key_prefix": {"": {"policy": "read"}, "a/": {"policy": "write"}}, "acl": "read"}
    text = 'key_prefix "" { policy = "read" }\nkey_prefix "a/" { policy = "write" }\nacl = "read"'
    assert parse_rules(json.dumps(document)) == parse_rules(text)
    listed = {"key_prefix": [{"": {"policy": "read"}}, {"a/": [{"policy": "write"}]}], "acl": "read"}
    assert parse_rules(json.dumps(listed)) == parse_rules(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('kex "a" { policy = "read" }', "unknown rule 'kex'"),
        ('key "a" { policy = "rite" }', "invalid policy"),
        ('node "a" { policy = "list" }', "must be deny, read, write"),
        ('key "a" { }', "has no policy"),
        ('key "a" { policy = "read" sentinel { code = "x" } }', "unknown key 'sentinel'"),
        ('key = "read"', "is no block"),
        ('operator "x" { policy = "read" }', "invalid policy"),
        ('key "a" {', "cannot be parsed"),
        ("{", "cannot be parsed"),
        ("{" + '"a":{' * 5000, "cannot be parsed"),
        ("#" * 70_000, "longer than 64 KiB"),
    ],
)
def test_bad_rules_are_named(text: str, said: str) -> None:
    with pytest.raises(BadRules) as caught:
        parse_rules(text)
    assert said in str(caught.value)


def test_a_name_cannot_leave_its_template() -> None:
    rules = parse_rules(template_rules("builtin/service", 'x" { policy = "write" } key_prefix "'))
    assert rules.prefixes.keys() == {"service", "node"} and not rules.plain
    for name in TEMPLATES:
        parse_rules(template_rules(name, "web"))
