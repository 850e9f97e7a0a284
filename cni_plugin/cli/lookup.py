"""``weft dns-lookup``: query a DNS server, as a container would. Source: RFC 1035, RFC 6891."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import time

import click

from cni_plugin.cli import agents
from cni_plugin.cli.goflags import GoCommand, fail
from cni_plugin.cli.output import as_json, printable
from cni_plugin.cli.problems import NO_SUCH_THING
from discovery.dns import codec, rrtypes
from discovery.dns.codec import BadName, Malformed, ParsedRecord

DEFAULT_SERVER = ("127.0.0.1", 8600)
_TIMEOUT = 3.0
_TRIES = 2
_FOREIGN_TYPES = {
    "HINFO": 13, "NAPTR": 35, "DS": 43, "SSHFP": 44, "RRSIG": 46, "NSEC": 47, "DNSKEY": 48, "TLSA": 52, "SVCB": 64,
    "URI": 256, "CAA": 257,
}  # fmt: skip
"""Further types by name, of records of other servers. Source: IANA, DNS parameters."""
_NUMBERS = {**rrtypes.NUMBERS, **_FOREIGN_TYPES}
_NAMES = {number: name for name, number in _NUMBERS.items()}
_RCODES = {codec.FORMERR: "FORMERR", codec.SERVFAIL: "SERVFAIL", codec.NOTIMP: "NOTIMP", codec.REFUSED: "REFUSED"}
_SECTIONS = {1: "answer", 2: "authority", 3: "additional"}


@click.command("dns-lookup", cls=GoCommand, context_settings={"allow_interspersed_args": True})
@click.argument("name")
@click.argument("kind", metavar="[TYPE]", required=False, default="")
@click.option("-server", metavar="ADDRESS[:PORT]", default="", help="Default: the agent's, else 127.0.0.1:8600.")
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
def dns_lookup(name: str, kind: str, server: str, json_output: bool) -> None:
    """Query a DNS server for a name: the agent, or a network's gateway.

    TYPE is {types}, or TYPE and a number, such as TYPE65 (RFC 3597). The default is A and AAAA, or PTR
    for an address. Exits with 3 if the name does not exist or has no records of that type.

    \b
    Example:
      weft dns-lookup web.service.consul SRV
      weft dns-lookup web.weft -server 10.88.0.1
    """
    kinds = _kinds(name, kind)
    endpoint = _endpoint(server) if server else _own_server()
    query_name = _reverse(name) if _is_address(name) else name
    replies = [_query(query_name, _type_number(one), endpoint) for one in kinds]
    server_text = f"{endpoint[0]} port {endpoint[1]}"
    for reply in replies:
        code = reply[3] & 15
        if code not in (codec.NOERROR, codec.NXDOMAIN):
            fail(f"weft: {server_text} returned {_RCODES.get(code, f'error {code}')} for {query_name}",
                 hint=_hint(code, query_name))  # fmt: skip
    found = [(one, reply) for reply in replies for one in codec.decode_records(reply)]
    records = [_record(one, reply) for one, reply in found if one.section != 2 and one.type != codec.OPT]
    answered = any(one["section"] == "answer" for one in records)
    if json_output:
        as_json({"server": server_text, "records": records})
    elif answered:
        _print(records)
    if not answered:
        if all(reply[3] & 15 == codec.NXDOMAIN for reply in replies):
            fail(
                f"weft: {query_name} not found by {server_text} (NXDOMAIN)",
                NO_SUCH_THING,
                _hint(codec.NXDOMAIN, query_name),
            )
        fail(f"weft: {query_name} has no {' or '.join(kinds)} record on {server_text}", NO_SUCH_THING)


def _kinds(name: str, kind: str) -> tuple[str, ...]:
    if not kind:
        return ("PTR",) if _is_address(name) else ("A", "AAAA")
    number = _type_number(kind.upper())
    if not number:
        fail(f"weft: unknown record type {kind!r}", hint=f"use {', '.join(_NUMBERS)}, or TYPE and a number")
    if number == codec.OPT or (codec.FIRST_META <= number <= codec.LAST_META and number != codec.ANY):
        fail(f"weft: {kind.upper()} is not a type of records")
    return (_type_name(number),)


def _type_number(name: str) -> int:
    """The number of ``MX`` or ``TYPE15``; 0 for a name of no type. Source: RFC 3597 section 5."""
    digits = name.removeprefix("TYPE")
    if digits != name and digits.isascii() and digits.isdigit():
        number = int(digits[:6])
        return number if number <= 65535 else 0
    return _NUMBERS.get(name, 0)


def _type_name(number: int) -> str:
    return _NAMES.get(number, f"TYPE{number}")


dns_lookup.help = (dns_lookup.help or "").format(types=", ".join(_NUMBERS))


def _hint(code: int, name: str) -> str:
    if code in (codec.REFUSED, codec.NXDOMAIN) and "." not in name.rstrip("."):
        return f"for a service query {name.rstrip('.')}.service.consul"
    return "it only serves its own domains; see dns.recursors in weft.toml" if code == codec.REFUSED else ""


def _print(records: list[dict[str, object]]) -> None:
    cells = [
        [printable(str(one["name"])), f"{one['ttl']}s", str(one["type"]), printable(str(one["value"]))]
        for one in records
    ]
    widths = [max(len(row[place]) for row in cells) for place in range(4)]
    for row in cells:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _reverse(address: str) -> str:
    return ipaddress.ip_address(address).reverse_pointer


def _endpoint(text: str) -> tuple[str, int]:
    """``10.88.0.1``, ``127.0.0.1:8600`` or ``[fd00::1]:53``; exits on an invalid one."""
    bare = text.strip("[]")
    if _is_address(bare):
        return bare, 53
    host, _, port = text.rpartition(":")
    if not _is_address(host.strip("[]")) or not (port.isascii() and port.isdigit() and 0 < int(port[:6]) <= 65535):
        fail(f"weft: invalid server address {text!r}", hint="use 127.0.0.1:8600 or [fd00::1]:53")
    return host.strip("[]"), int(port)


def _own_server() -> tuple[str, int]:
    """The DNS server of this namespace's agent."""
    found = agents.running()
    servers = found.report.dns if found and found.report else ()
    return _endpoint(servers[0]) if servers else DEFAULT_SERVER


def _query(name: str, kind: int, server: tuple[str, int]) -> bytes:
    """The reply, over TCP if truncated; exits on an error."""
    try:
        question = codec.encode_name(name) + struct.pack("!HH", kind, codec.IN)
    except BadName as error:
        fail(f"weft: {error}")
    query = (
        codec.encode_header(int.from_bytes(os.urandom(2), "big"), codec.RD, 1, 0, 0, 1) + question + codec.opt_record()
    )
    try:
        reply = _over_udp(query, server)
        if reply[2] & codec.TC >> 8:
            reply = _over_tcp(query, server)
        list(codec.decode_records(reply))
    except TimeoutError:
        fail(f"weft: no response from {server[0]} port {server[1]} in {_TIMEOUT * _TRIES:g} s")
    except OSError as error:
        fail(f"weft: cannot reach {server[0]} port {server[1]}: {error.strerror or error}",
             hint="weft up starts the agent of this host")  # fmt: skip
    except Malformed as error:
        fail(f"weft: malformed response ({error}) from {server[0]} port {server[1]}")
    return reply


def _over_udp(query: bytes, endpoint: tuple[str, int]) -> bytes:
    family = socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as server:
        server.connect(endpoint)
        for _ in range(_TRIES):
            server.send(query)
            deadline = time.monotonic() + _TIMEOUT
            while (left := deadline - time.monotonic()) > 0:
                server.settimeout(left)
                try:
                    reply = server.recv(65535)
                except TimeoutError:
                    break
                if _matches(reply, query):
                    return reply
    raise TimeoutError


def _over_tcp(query: bytes, endpoint: tuple[str, int]) -> bytes:
    with socket.create_connection(endpoint, _TIMEOUT) as server:
        server.sendall(len(query).to_bytes(2, "big") + query)
        with server.makefile("rb") as answer:
            reply = answer.read(int.from_bytes(answer.read(2), "big"))
    if not _matches(reply, query):
        raise Malformed("not a reply to the query")
    return reply


def _matches(reply: bytes, query: bytes) -> bool:
    """Whether it is a reply to this query."""
    try:
        own = codec.question_bytes(query).lower()
        return reply[:2] == query[:2] and bool(reply[2] & 0x80) and codec.question_bytes(reply).lower() == own
    except (Malformed, IndexError):
        return False


def _record(one: ParsedRecord, reply: bytes) -> dict[str, object]:
    return {
        "section": _SECTIONS[one.section],
        "name": codec.name_to_text(one.name),
        "ttl": one.ttl,
        "type": _type_name(one.type),
        "value": rrtypes.rdata_to_text(one.type, reply, one.data_at, one.end),
    }
