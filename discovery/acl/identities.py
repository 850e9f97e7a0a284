"""The rules of service and node identities and of Consul's templated policies.

Source: https://developer.hashicorp.com/consul/docs/reference/acl/identity, …/acl/templated-policy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from discovery.acl.rules import BadRules

SERVICE, NODE = "builtin/service", "builtin/node"
_READ_CATALOG = 'service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }'
TEMPLATES: Mapping[str, tuple[str, bool]] = {
    SERVICE: (
        f'service "NAME" {{ policy = "write" }} service "NAME-sidecar-proxy" {{ policy = "write" }} {_READ_CATALOG}',
        True,
    ),
    NODE: ('node "NAME" { policy = "write" } service_prefix "" { policy = "read" }', True),
    "builtin/dns": (f'{_READ_CATALOG} query_prefix "" {{ policy = "read" }}', False),
    "builtin/nomad-server": (
        (
            'acl = "write" agent_prefix "" { policy = "read" } node_prefix "" { policy = "read" }'
            ' service_prefix "" { policy = "write" }'
        ),
        False,
    ),
    "builtin/nomad-client": (
        (
            'agent_prefix "" { policy = "read" } node_prefix "" { policy = "read" }'
            ' service_prefix "" { policy = "write" } key_prefix "" { policy = "read" }'
        ),
        False,
    ),
}
"""The rules of each template, with NAME for its variable ``Name``, and whether it has that variable."""
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,254}[a-z0-9])?")


def check_template(template: str, name: str) -> None:
    """Raise BadRules if there is no such template, or it needs another name."""
    if template not in TEMPLATES:
        raise BadRules(f"unknown templated policy {template[:60]!r}; known are {', '.join(TEMPLATES)}")
    if TEMPLATES[template][1]:
        check_name(template, name)
    elif name:
        raise BadRules(f"{template} has no variable Name")


def check_name(what: str, name: str) -> None:
    """Raise BadRules if a service or node of this name can have no identity."""
    if not _NAME.fullmatch(name):
        raise BadRules(f"{what}: invalid name {name[:60]!r}: must be lower-case letters, digits, '-' and '_'")


def template_rules(template: str, name: str) -> str:
    """The rules of a template; "" if this version does not have it."""
    text = TEMPLATES.get(template, ("", False))[0]
    # A name within quotes: JSON's escapes are those of HCL.
    return text.replace("NAME", json.dumps(name)[1:-1])
