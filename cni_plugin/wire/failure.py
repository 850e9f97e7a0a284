"""CNI error objects, which a runtime reads from standard output."""

from __future__ import annotations

from cni_plugin.wire import versions
from weft.errors import WeftError


def render_error(error: WeftError, version: str) -> bytes:
    """The error object, in the version of the call it answers, or the newest where that is none of
    ours.

    Source: SPEC.md, "Error".
    """
    import json  # only failing calls need it

    body: dict[str, object] = {
        "cniVersion": version if version in versions.ALL else versions.NEWEST,
        "code": error.code,
        "msg": error.message,
    }
    if error.hint:
        body["details"] = error.hint
    return json.dumps(body, indent=4).encode("ascii")
