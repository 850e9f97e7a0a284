"""``weft dns-lookup`` and options in Go's syntax, without an agent; dnspython makes the replies."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from click.testing import CliRunner

from cni_plugin.cli import lookup
from cni_plugin.cli.goflags import WrongFlag, normalize
from cni_plugin.cli.root import weft
from discovery.dns import rrtypes
from lab.dns import free_port

ROOT = Path(__file__).resolve().parents[3]
Reply = Callable[[dns.message.Message], bytes]
RECORDS = {
    "A": "10.0.0.5",
    "AAAA": "fd00::5",
    "SRV": "1 2 80 a.example.",
    "TXT": '"one" "t\\"w\\\\o"',
    "PTR": "web.example.",
    "NS": "ns.example.",
    "CNAME": "other.example.",
    "MX": "10 mail.example.",
    "SOA": "ns.example. who.example. 1 2 3 4 5",
    "HTTPS": "\\# 3 000100",
}
"""Data of every record type of ``discovery.dns.rrtypes``, as a zone file has it."""


class Server:
    """A DNS server over UDP and TCP; the test provides the replies."""

    def __init__(self) -> None:
        self.reply: Reply = lambda query: dns.message.make_response(query).to_wire()
        self.over_tcp: Reply = self.reply
        address = "127.0.0.1", free_port()
        self.datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.datagrams.bind(address)
        self.streams = socket.create_server(address)
        self.place = f"{address[0]}:{address[1]}"
        for work in (self._serve_datagrams, self._serve_streams):
            threading.Thread(target=work, daemon=True).start()

    def _serve_datagrams(self) -> None:
        while True:
            data, client = self.datagrams.recvfrom(4096)
            if not data:
                return
            self.datagrams.sendto(self.reply(dns.message.from_wire(data)), client)

    def _serve_streams(self) -> None:
        while True:
            client, _ = self.streams.accept()
            with client:
                length = int.from_bytes(client.recv(2), "big")
                if not length:
                    return
                wire = self.over_tcp(dns.message.from_wire(client.recv(length)))
                client.sendall(len(wire).to_bytes(2, "big") + wire)

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self.datagrams.getsockname())
        with socket.create_connection(self.streams.getsockname()) as end:
            end.sendall(b"\0\0")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(lookup, "_TIMEOUT", 0.3)
    made = Server()
    yield made
    made.close()


def ask(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(weft, ["dns-lookup", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def answering(kind: str, *data: str) -> Reply:
    def reply(query: dns.message.Message) -> bytes:
        made = dns.message.make_response(query)
        made.answer.append(dns.rrset.from_text(query.question[0].name, 7, "IN", kind, *data))
        return made.to_wire(max_size=65535)

    return reply


def test_every_type_has_an_example() -> None:
    assert set(RECORDS) == set(rrtypes.NUMBERS) - {"ANY"}


def test_the_help_lists_every_type() -> None:
    text = " ".join(CliRunner().invoke(weft, ["dns-lookup", "--help"]).stdout.split())
    assert f"TYPE is {', '.join(rrtypes.NUMBERS)}" in text


@pytest.mark.parametrize(
    ("given", "kind", "data"),
    [
        ("TYPE15", "MX", "10 mail.example."),
        ("type65", "HTTPS", "\\# 3 000100"),
        ("TYPE52", "TLSA", "\\# 4 00000001"),
        ("sshfp", "SSHFP", "\\# 3 010901"),
        ("TYPE4711", "TYPE4711", "\\# 2 0102"),
    ],
)
def test_types_by_number_and_of_other_servers(server: Server, given: str, kind: str, data: str) -> None:
    """RFC 3597 section 5."""
    server.reply = answering(kind, data)
    assert ask("web.example", given, "-server", server.place) == (0, f"web.example.  7s  {kind}  {data}\n", "")
    server.reply = lambda query: dns.message.make_response(query).to_wire()
    code, _, err = ask("web.example", given, "-server", server.place)
    assert (code, err) == (3, f"weft: web.example has no {kind} record on {server.place.replace(':', ' port ')}\n")


@pytest.mark.parametrize(("kind", "data"), RECORDS.items())
def test_records_are_written_as_in_a_zone_file(server: Server, kind: str, data: str) -> None:
    server.reply = answering(kind, data)
    assert ask("web.example", kind, "-server", server.place) == (0, f"web.example.  7s  {kind}  {data}\n", "")


def test_a_truncated_reply_is_queried_by_tcp(server: Server) -> None:
    def cut(query: dns.message.Message) -> bytes:
        made = dns.message.make_response(query)
        made.flags |= dns.flags.TC
        return made.to_wire(max_size=65535)

    server.reply, server.over_tcp = cut, answering("A", *(f"10.0.0.{number}" for number in range(1, 200)))
    assert len(ask("web.example", "a", f"-server={server.place}")[1].splitlines()) == 199


@pytest.mark.parametrize(
    ("reply", "code", "said"),
    [
        (lambda query: dns.message.make_response(query).to_wire(), 3, "a.b has no A record on"),
        (lambda query: _coded(query, dns.rcode.NXDOMAIN), 3, "a.b not found by"),
        (lambda query: _coded(query, dns.rcode.REFUSED), 1, "returned REFUSED for a.b\nhint: it only serves its own"),
        (lambda query: _coded(query, dns.rcode.SERVFAIL), 1, "returned SERVFAIL for a.b"),
        (lambda query: b"nothing", 1, "no response from"),
        (lambda query: query.to_wire(), 1, "no response from"),
        (lambda query: dns.message.make_response(query).to_wire() + b"x", 1, "malformed response (trailing bytes)"),
    ],
    ids=["nothing", "unknown", "refused", "failed", "garbage", "echo", "more"],
)
def test_replies_without_an_answer(server: Server, reply: Reply, code: int, said: str) -> None:
    server.reply = reply
    found, out, err = ask("a.b", "A", "-server", server.place)
    assert (found, out) == (code, "")
    assert said in err


def _coded(query: dns.message.Message, code: dns.rcode.Rcode) -> bytes:
    made = dns.message.make_response(query)
    made.set_rcode(code)
    return made.to_wire(max_size=65535)


def test_a_single_label_gets_a_hint(server: Server) -> None:
    server.reply = lambda query: _coded(query, dns.rcode.NXDOMAIN)
    assert "hint: for a service query web.service.consul" in ask("web", "-server", server.place)[2]


def test_json_has_all_sections(server: Server) -> None:
    server.reply = answering("A", "10.0.0.5")
    found = json.loads(ask("web.example", "A", "--json", "-server", server.place)[1])
    [record] = found["records"]
    assert record == {"section": "answer", "name": "web.example.", "ttl": 7, "type": "A", "value": "10.0.0.5"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("a.b", "BOGUS"), "weft: unknown record type 'BOGUS'\nhint: use A, AAAA, SRV"),
        (("a.b", "TYPE65536"), "weft: unknown record type 'TYPE65536'"),
        (("a.b", "TYPE"), "weft: unknown record type 'TYPE'"),
        (("a.b", "TYPE41"), "weft: TYPE41 is not a type of records"),
        (("a.b", "TYPE252"), "weft: TYPE252 is not a type of records"),
        (("a.b", "-server=x"), "weft: invalid server address 'x'"),
        (("a.b", "-server=127.0.0.1:0"), "weft: invalid server address '127.0.0.1:0'"),
        (("a..b", "-server=127.0.0.1:9"), "weft: 'a..b': a label has 1 to 63 bytes"),
        (("a.b", "-bogus"), "flag provided but not defined: -bogus"),
        ((), "Missing argument 'NAME'"),
        (("a.b", "A", "-server=127.0.0.1:1"), "weft: cannot reach 127.0.0.1 port 1: Connection refused"),
    ],
)
def test_usage_errors(arguments: tuple[str, ...], said: str) -> None:
    code, out, err = ask(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith(said), err


PARAMETERS = (
    click.Option(["-name"]),
    click.Option(["-tag"], multiple=True),
    click.Option(["-stale"], is_flag=True),
    click.Option(["--json", "json_output"], is_flag=True),
)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("-name x", "-name x --"),
        ("-name=x", "-name x --"),
        ("--name=x", "-name x --"),
        ("--name x", "-name x --"),
        ("-name -x", "-name -x --"),
        ("-name= -tag a", "-name  -tag a --"),
        ("-stale -json", "-stale --json --"),
        ("-stale=true --stale=0", "-stale --"),
        ("-name x file -name y", "-name x -- file -name y"),
        ("- -name", "-- - -name"),
        ("-stale -- -name", "-stale -- -name"),
    ],
)
def test_options_are_parsed_as_by_go(given: str, found: str) -> None:
    assert " ".join(normalize(given.split(" "), PARAMETERS)) == found


def test_options_after_arguments() -> None:
    assert normalize(["a", "-stale", "b", "-name", "-"], PARAMETERS, anywhere=True) == [
        *("-stale", "-name", "-", "--", "a", "b"),
    ]


@pytest.mark.parametrize("given", ["-x", "---name", "-=x", "-name", "-stale=x", "--x=y"])
def test_invalid_options(given: str) -> None:
    with pytest.raises(WrongFlag):
        normalize([given], PARAMETERS)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [("weft ser", "services"), ("weft services re", "register"), ("weft services register -na", "-name")],
)
def test_shell_completion_of_options(words: str, wanted: str) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "_WEFT_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    done = subprocess.run([ROOT / "bin/weft"], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert wanted in [line.partition(",")[2] for line in done.stdout.splitlines()]
