"""The log on standard error or in the journal: INFO, a line for each request; DEBUG, a line for each
operation.

Example::

    ADD web/eth0 on blue: apply Veth: changed, 0.41 ms: ip link add veth1 type veth peer name eth0 netns
    … ADD web/eth0 on blue: 10.9.0.5/24, 4.1 ms

Off in a runtime's call unless ``WEFT_LOG`` is ``info`` or ``debug`` in its environment. ``weft engine``
in the foreground logs requests, and operations as well with ``--debug``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum

from cni_plugin.wire.request import Request
from weft import stderr
from weft.types import Result

Log = Callable[[str], None]
"""Writes one line."""

_LONGEST_ERROR = 300  # characters
_VARIABLES = ("COMMAND", "CONTAINERID", "IFNAME")


class Level(IntEnum):
    """What is logged: nothing, requests, or requests and operations."""

    OFF = 0
    INFO = 1
    DEBUG = 2


def level(environment: Mapping[str, str]) -> Level:
    """The level that ``WEFT_LOG`` asks for; OFF for anything but ``info`` and ``debug``."""
    return {"info": Level.INFO, "debug": Level.DEBUG}.get(environment.get("WEFT_LOG", "").lower(), Level.OFF)


def write(line: str) -> None:
    """Write a line to standard error."""
    stderr.write(f"{line}\n")


def request_line(
    environment: Mapping[str, str], network: str, result: Result | None, error: bytes, seconds: float
) -> str:
    """The line for a request: its addresses, or the error object that it was answered."""
    command, container, interface = (environment.get(f"CNI_{name}", "") for name in _VARIABLES)
    outcome = ", ".join(str(ip.address) for ip in result.ips) if result else ""
    if error:
        outcome = " ".join(error.decode("utf-8", "replace").split())[:_LONGEST_ERROR]
    return f"{_subject(command, container, interface, network)}: {outcome or 'done'}, {seconds * 1000:.1f} ms"


def operation_log(request: Request, log: Log) -> Log:
    """The log for the operations of one request: each line begins with what the request is."""
    subject = _subject(request.command, request.container, request.interface, request.config.name)
    return lambda line: log(f"{subject}: {line}")


def _subject(command: str, container: str, interface: str, network: str) -> str:
    """``ADD web/eth0 on blue``, as far as it is known."""
    attachment = "/".join(filter(None, (container, interface)))
    return " ".join(filter(None, (command, attachment, f"on {network}" if network else "")))
