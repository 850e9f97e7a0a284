"""``weft dns-lookup``: ask a DNS server one question, as a container would. Source: RFC 1035, RFC 6891."""

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

USUAL = ("127.0.0.1", 8600)
_SECONDS = 3.0
_TRIES = 2
_NAMES = {number: name for name, number in rrtypes.NUMBERS.items()}
_CODES = {codec.FORMERR: "FORMERR", codec.SERVFAIL: "SERVFAIL", codec.NOTIMP: "NOTIMP", codec.REFUSED: "REFUSED"}
_SECTIONS = {1: "answer", 2: "authority", 3: "additional"}


@click.command("dns-lookup", cls=GoCommand, context_settings={"allow_interspersed_args": True})
@click.argument("name")
@click.argument("kind", metavar="[TYPE]", required=False, default="")
@click.option("-server", metavar="ADDRESS[:PORT]", default="", help="Default: the agent's, else 127.0.0.1:8600.")
@click.option("--json", "json_output", is_flag=True, help="Print JSON, for programs to read.")
def dns_lookup(name: str, kind: str, server: str, json_output: bool) -> None:
    """Ask a DNS server for a name: the agent, or a network's gateway.

    TYPE is A, AAAA, SRV, TXT, PTR, NS, SOA, CNAME, MX or ANY; by default A and AAAA, and PTR for an address. Exits with
    3 if there is no such name or nothing of that type.

    \b
    Example:
      weft dns-lookup web.service.consul SRV
      weft dns-lookup web.weft -server 10.88.0.1
    """
    kinds = _kinds(name, kind)
    place = _place(server) if server else _own_server()
    asked = _reverse(name) if _is_address(name) else name
    replies = [_ask(asked, rrtypes.NUMBERS[one], place) for one in kinds]
    shown = f"{place[0]} port {place[1]}"
    for reply in replies:
        code = reply[3] & 15
        if code not in (codec.NOERROR, codec.NXDOMAIN):
            fail(f"weft: {shown} answers {_CODES.get(code, f'error {code}')} for {asked}",
                 hint=_hint(code, asked))  # fmt: skip
    found = [(one, reply) for reply in replies for one in codec.decode_records(reply)]
    records = [_shown(one, reply) for one, reply in found if one.section != 2 and one.type in _NAMES]
    answered = any(one["section"] == "answer" for one in records)
    if json_output:
        as_json({"server": shown, "records": records})
    elif answered:
        _print(records)
    if not answered:
        if all(reply[3] & 15 == codec.NXDOMAIN for reply in replies):
            fail(f"weft: {shown} knows no {asked}", NO_SUCH_THING, _hint(codec.NXDOMAIN, asked))
        fail(f"weft: {shown} has no {' or '.join(kinds)} of {asked}", NO_SUCH_THING)


def _kinds(name: str, kind: str) -> tuple[str, ...]:
    if not kind:
        return ("PTR",) if _is_address(name) else ("A", "AAAA")
    if kind.upper() not in rrtypes.NUMBERS:
        fail(f"weft: {kind!r} is no type that can be asked for", hint=f"use {', '.join(rrtypes.NUMBERS)}")
    return (kind.upper(),)


def _hint(code: int, name: str) -> str:
    if code in (codec.REFUSED, codec.NXDOMAIN) and "." not in name.rstrip("."):
        return f"services are asked for as {name.rstrip('.')}.service.consul"
    return "it answers for its own domains alone; see dns.recursors in weft.toml" if code == codec.REFUSED else ""


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


def _place(text: str) -> tuple[str, int]:
    """``10.88.0.1``, ``127.0.0.1:8600`` or ``[fd00::1]:53``; ends the command where it is none."""
    bare = text.strip("[]")
    if _is_address(bare):
        return bare, 53
    host, _, port = text.rpartition(":")
    if not _is_address(host.strip("[]")) or not (port.isascii() and port.isdigit() and 0 < int(port[:6]) <= 65535):
        fail(f"weft: {text!r} is no address of a server", hint="write it like 127.0.0.1:8600 or [fd00::1]:53")
    return host.strip("[]"), int(port)


def _own_server() -> tuple[str, int]:
    """Where this namespace's agent answers."""
    found = agents.running()
    places = found.report.dns if found and found.report else ()
    return _place(places[0]) if places else USUAL


def _ask(name: str, kind: int, place: tuple[str, int]) -> bytes:
    """The reply, over TCP where it does not fit a datagram; ends the command where none comes."""
    try:
        question = codec.encode_name(name) + struct.pack("!HH", kind, codec.IN)
    except BadName as error:
        fail(f"weft: {error}")
    query = (
        codec.encode_header(int.from_bytes(os.urandom(2), "big"), codec.RD, 1, 0, 0, 1) + question + codec.opt_record()
    )
    try:
        reply = _over_udp(query, place)
        if reply[2] & codec.TC >> 8:
            reply = _over_tcp(query, place)
        list(codec.decode_records(reply))
    except TimeoutError:
        fail(f"weft: no DNS server answers at {place[0]} port {place[1]} in {_SECONDS * _TRIES:g} s")
    except OSError as error:
        fail(f"weft: no DNS server answers at {place[0]} port {place[1]}: {error.strerror or error}",
             hint="weft up starts this host's")  # fmt: skip
    except Malformed as error:
        fail(f"weft: what {place[0]} port {place[1]} answers is no DNS: {error}")
    return reply


def _over_udp(query: bytes, place: tuple[str, int]) -> bytes:
    family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as server:
        server.connect(place)
        for _ in range(_TRIES):
            server.send(query)
            deadline = time.monotonic() + _SECONDS
            while (left := deadline - time.monotonic()) > 0:
                server.settimeout(left)
                try:
                    reply = server.recv(65535)
                except TimeoutError:
                    break
                if _matches(reply, query):
                    return reply
    raise TimeoutError


def _over_tcp(query: bytes, place: tuple[str, int]) -> bytes:
    with socket.create_connection(place, _SECONDS) as server:
        server.sendall(len(query).to_bytes(2, "big") + query)
        with server.makefile("rb") as answer:
            reply = answer.read(int.from_bytes(answer.read(2), "big"))
    if not _matches(reply, query):
        raise Malformed("it is no answer to the question")
    return reply


def _matches(reply: bytes, query: bytes) -> bool:
    """Whether it is a reply to this query."""
    try:
        own = codec.question_bytes(query).lower()
        return reply[:2] == query[:2] and bool(reply[2] & 0x80) and codec.question_bytes(reply).lower() == own
    except (Malformed, IndexError):
        return False


def _shown(one: ParsedRecord, reply: bytes) -> dict[str, object]:
    return {
        "section": _SECTIONS[one.section],
        "name": codec.name_to_text(one.name),
        "ttl": one.ttl,
        "type": _NAMES.get(one.type, f"TYPE{one.type}"),
        "value": rrtypes.rdata_to_text(one.type, reply, one.data_at, one.end),
    }
