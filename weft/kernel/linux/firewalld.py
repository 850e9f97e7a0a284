"""firewalld's zones of links and subnets, asked for over D-Bus.

A change is made to the running configuration only, which a reload of firewalld replaces by its files.
Sources: firewalld.dbus(5), the D-Bus specification (message format, SASL EXTERNAL).
"""

from __future__ import annotations

import os
import socket
from struct import pack, unpack_from

from weft.errors import KernelRefused

_BUS = "/run/dbus/system_bus_socket"
_NAME = "org.fedoraproject.FirewallD1"
_PATH = "/org/fedoraproject/FirewallD1"
_ZONE, _CONFIG = f"{_NAME}.zone", f"{_NAME}.config"
_SECONDS = 15.0  # a reload of many zones takes seconds, and calls wait for it
_RETURN, _ERROR = 2, 3
_NO_ANSWERER = ("org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner")
_NO_AUTO_START = 2


def zone(place: str) -> str | None:
    """The zone that a link or subnet is in, "" if in none; None if no firewalld answers here."""
    return _ask(_PATH, _ZONE, f"getZoneOf{_kind(place)}", place)


def permanent_zone(place: str) -> str | None:
    """The zone that firewalld's files put it in."""
    return _ask(f"{_PATH}/config", _CONFIG, f"getZoneOf{_kind(place)}", place)


def add(zone: str, place: str) -> None:
    """*Equivalent to:* ``firewall-cmd --zone=ZONE --add-interface=LINK`` or ``--add-source=SUBNET``."""
    _ask(_PATH, _ZONE, f"add{_kind(place)}", zone, place)


def remove(zone: str, place: str) -> None:
    """*Equivalent to:* ``firewall-cmd --zone=ZONE --remove-interface=LINK`` or ``--remove-source``."""
    _ask(_PATH, _ZONE, f"remove{_kind(place)}", zone, place)


def _kind(place: str) -> str:
    return "Source" if "/" in place else "Interface"


def _ask(path: str, interface: str, method: str, *arguments: str) -> str | None:
    """The answer of a method that takes and returns strings; None if firewalld does not run.

    Raises KernelRefused if it refuses, or does not answer in time.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as bus:
            bus.settimeout(_SECONDS)
            bus.connect(_BUS)
            bus.sendall(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n")
            if not _line(bus).startswith(b"OK"):
                raise KernelRefused("the system's D-Bus refuses this user", hint="run weft as root")
            hello = _call(1, "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")
            bus.sendall(b"BEGIN\r\n" + hello + _call(2, _NAME, path, interface, method, *arguments))
            while True:
                kind, serial, name, text = _message(bus)
                if serial == 2:
                    break
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except OSError as error:
        said = error.strerror or str(error)
        raise KernelRefused(f"firewalld does not answer {method} {' '.join(arguments)}: {said}") from error
    if kind == _ERROR and name in _NO_ANSWERER:
        return None
    if kind == _ERROR:
        raise KernelRefused(f"firewalld refuses {method} {' '.join(arguments)}: {text or name}")
    return text


def _call(serial: int, destination: str, path: str, interface: str, method: str, *arguments: str) -> bytes:
    body = b""
    for argument in arguments:
        body += _aligned(body, 4) + _string(argument)
    fields = b""
    signature = "s" * len(arguments)
    values = ((1, "o", path), (6, "s", destination), (2, "s", interface), (3, "s", method), (8, "g", signature))
    for code, kind, value in values:
        if value:
            text = bytes((len(value),)) + value.encode() + b"\0" if kind == "g" else _string(value)
            fields += _aligned(fields, 8) + bytes((code, 1)) + kind.encode() + b"\0" + text
    head = pack("<cBBBIII", b"l", 1, _NO_AUTO_START, 1, len(body), serial, len(fields)) + fields
    return head + _aligned(head, 8) + body


def _string(text: str) -> bytes:
    data = text.encode()
    return pack("<I", len(data)) + data + b"\0"


def _aligned(before: bytes, size: int) -> bytes:
    return b"\0" * (-len(before) % size)


def _message(bus: socket.socket) -> tuple[int, int, str, str]:
    """The next message: its type, the serial that it answers, its error's name, its first string."""
    head = _receive(bus, 16)
    order = "<" if head[:1] == b"l" else ">"
    length, _, fields_length = unpack_from(f"{order}III", head, 4)
    fields = _receive(bus, fields_length + -fields_length % 8)[:fields_length]
    body = _receive(bus, length)
    answered, name, at = 0, "", 0
    while at < fields_length:
        at += -at % 8
        code, kind = fields[at], fields[at + 2 : at + 3]  # a byte, and a signature of one letter
        at += 4
        if kind == b"g":
            at += fields[at] + 2
            continue
        (value,) = unpack_from(f"{order}I", fields, at)
        if kind == b"u":
            answered = value if code == 5 else answered
            at += 4
        else:
            name = fields[at + 4 : at + 4 + value].decode("utf-8", "replace") if code == 4 else name
            at += 5 + value
    text = body[4 : 4 + unpack_from(f"{order}I", body)[0]].decode("utf-8", "replace") if body else ""
    return head[1], answered, name, text


def _receive(bus: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = bus.recv(length - len(data))
        if not more:
            raise ConnectionResetError(None, "the D-Bus daemon closed the connection")
        data += more
    return data


def _line(bus: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\r\n"):
        line += _receive(bus, 1)
    return line
