"""Keys of the first layout (``/weft/v1/``), as they are renamed when its file is first opened.

Up to then a node's keys were spread by kind: ``node/NODE``, ``service/NAME/NODE/ID``,
``check/NODE/ID``, ``own/NODE/KIND/NAME``; ``session/ID`` had its node in the value.
"""

from __future__ import annotations

import json

from discovery.layout import HOSTS, ROOT, encode_name

_ROOT = "/weft/v1/"


def renamed(key: str, value: bytes) -> str:
    """The key in today's layout; values are unchanged. A key of no known form keeps its name."""
    if not key.startswith(_ROOT):
        return key
    kind, _, rest = key.removeprefix(_ROOT).partition("/")
    match (kind, *rest.split("/")):
        case ("node", node):
            return f"{HOSTS}{node}/node"
        case ("service", name, node, instance):
            return f"{HOSTS}{node}/service/{name}/{instance}"
        case ("check", node, check):
            return f"{HOSTS}{node}/check/{check}"
        case ("own", node, what, name):
            return f"{HOSTS}{node}/own/{what}/{name}"
        case ("session", session):
            node = _session_node(value)
            return f"{HOSTS}{node}/session/{session}" if node else key
        case ("kv" | "hold" | "delay" | "virtual", *_):
            return f"{ROOT}{kind}/{rest}"
    return key


def _session_node(value: bytes) -> str:
    """The node of a session, encoded as in keys; "" if the value is malformed."""
    try:
        return encode_name(str(json.loads(value)["node"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
