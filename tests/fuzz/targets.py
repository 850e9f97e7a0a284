"""What is fuzzed: one function a parser, which takes any bytes and raises only what is a bug.

The errors that a parser documents are caught here, one by one; anything else is a finding, and so is
more than a second of processor time for one input (``checked``).
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cni_plugin.entry import cni
from cni_plugin.plan.facts import KernelFacts
from cni_plugin.plan.plan import Context
from cni_plugin.service import assemble, codec, records
from cni_plugin.service.planner import attachment_of
from cni_plugin.wire import frame
from cni_plugin.wire.request import Command, Request
from discovery import layout
from discovery.api import schemas
from discovery.api.settings import HttpSettings
from discovery.consul import definition_files, hcl
from discovery.consul.filter import BadFilter, compile_filter
from discovery.consul.regex import Regex
from discovery.consul.regex_parser import BadRegex
from discovery.dns import codec as dns_codec
from discovery.dns.responder import PendingQuery, Responder
from discovery.dns.settings import DnsSettings
from discovery.dns.view import View
from discovery.dns.zone import Zone
from discovery.kv import KV_PREFIX, decode_pair
from discovery.structs import Check, Instance, Node, PreparedQuery, Status
from ipam import dhcp, dhcp_leases, dhcp_messages
from lab.agent import LabAgent
from lab.dns import MutableCatalog
from store import Entry
from weft.errors import KernelRefused
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.netlink import (
    addresses,
    conntrack,
    links,
    neighbours,
    nexthops,
    qdiscs,
    routes,
    rules,
    transport,
    vlans,
)
from weft.kernel.netlink.rtnetlink import RouteSocket
from weft.types import Result

CPU_SECONDS = 1.0
"""Most processor time for one input."""

Target = Callable[[bytes], None]


class Slow(Exception):
    """An input took more processor time than CPU_SECONDS."""


def checked(target: Target, data: bytes) -> None:
    """Run a target. Raises Slow, and what the parser must not raise."""
    begun = time.thread_time()
    target(data)
    took = time.thread_time() - begun
    if took > CPU_SECONDS:
        raise Slow(f"{took:.2f} s of processor time for {len(data)} bytes")


# DNS


@functools.cache
def _responder() -> tuple[Responder, View]:
    settings = DnsSettings()
    catalog = MutableCatalog(
        Node("n1", "10.0.0.1", meta={"rack": "a"}),
        *(Instance("n1", f"web-{number}", "web", f"10.1.0.{number}", 80, tags=("v1",)) for number in range(1, 40)),
        Instance("n1", "named", "named", "www.example.com", 80),
        Check("n1", "up", "up", Status.PASSING, service_id="web-1", service_name="web"),
        PreparedQuery("11111111-1111-4111-8111-111111111111", "geo", "${name.suffix}", template="name_prefix_match"),
    )
    return Responder(Zone(catalog.catalog, settings), settings), View((), settings, ("192.0.2.53",))


def dns(data: bytes) -> None:
    """A datagram to the DNS server, and the same bytes as an upstream server's reply."""
    responder, view = _responder()
    for tcp in (False, True):
        reply = responder.respond(data, view, tcp)
        if isinstance(reply, bytes):
            assert 12 <= len(reply) <= 65535
            for _ in dns_codec.decode_records(reply) if reply[5] else ():
                pass
        elif isinstance(reply, PendingQuery):
            assert reply.query.question
    with contextlib.suppress(dns_codec.Malformed):
        for _ in dns_codec.decode_records(data):
            pass


# What Consul's clients write


def consul_text(data: bytes) -> None:
    """The first byte chooses: HCL, a definition file, a filter, a regular expression."""
    text = data[1:].decode("utf-8", "surrogateescape")
    match data[:1]:
        case b"h":
            with contextlib.suppress(hcl.BadHcl):
                hcl.parse(text)
        case b"d":
            with contextlib.suppress(definition_files.BadDefinitionFile):
                definition_files.parse(text, "fuzz.hcl")
        case b"r":
            pattern, _, subject = text.partition("\n")
            with contextlib.suppress(BadRegex):
                Regex(pattern).search(subject)
        case _:
            with contextlib.suppress(BadFilter):
                compile_filter(text, schemas.HEALTH)


# HTTP


class _Log(logging.Handler):
    """Collects what the server logs with a traceback."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(logging.Formatter().formatException(record.exc_info))


class _Server:
    """An agent with an empty catalog, and what it logs."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.log = _Log()
        logging.getLogger("discovery").addHandler(self.log)
        settings = HttpSettings(listen=("127.0.0.1:0",), header_time=5, body_time=5)
        self.agent = LabAgent(Path(self.folder.name), Node("n1", "127.0.0.1"), settings)
        self.agent.loop.set_exception_handler(lambda loop, context: self.log.found.append(repr(context)))
        self.requests = 0

    def close(self) -> None:
        self.agent.stop()
        logging.getLogger("discovery").removeHandler(self.log)
        self.folder.cleanup()


_servers: list[_Server] = []


def http(data: bytes) -> None:
    """A connection to the HTTP API: these bytes, then the end. What blocks is given up."""
    if _servers and _servers[0].requests >= _REQUESTS_A_SERVER:
        _servers.pop().close()
    if not _servers:
        _servers.append(_Server())
    server = _servers[0]
    server.requests += 1
    reply = b""
    with socket.create_connection((server.agent.host, server.agent.port)) as client, contextlib.suppress(OSError):
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        client.settimeout(0.2)
        while part := client.recv(65536):
            reply += part
    if b"internal error" in reply[:1000] or server.log.found:
        raise AssertionError(server.log.found or reply[:1000])


_REQUESTS_A_SERVER = 2000
"""A new one afterwards, so that what they register does not add up."""


# CNI


def cni_wire(data: bytes) -> None:
    """A call as the engine receives it: the frame, the environment, standard input; and its plan on
    the fake kernel. Nothing is executed.
    """
    try:
        sent = frame.parse(data)
    except frame.FrameProblem:
        return
    status, output = cni.run(sent.plugin, sent.environment, sent.stdin, _planned)
    if status:
        document = json.loads(output)
        assert document["code"] != 999, document
    elif output:
        json.loads(output)


def _planned(request: Request) -> Result | None:
    assembly = assemble.read(request)
    request.config.keys.problems.raise_any()
    if request.command is not Command.ADD:
        return None
    kernel = FakeKernel()
    container = kernel.add("/c1")
    result = request.config.previous if not assembly.driver and request.config.previous else assembly.answer
    look = KernelFacts(kernel.host, container)
    context = Context(attachment_of(request), container.id, "host", request.config, result, look)
    for part in assembly.parts:
        plan = part.plan(context)
        context = replace(context, result=plan.result)
        for operation in plan.operations:
            codec.decode(json.loads(codec.encode(operation)), records._kinds())
    return context.result


# DHCP


def dhcp_answer(data: bytes) -> None:
    """An IP packet at the client's port, up to the result of the ADD."""
    payload = dhcp_messages.payload(data)
    for one in (payload, data):
        message = dhcp_messages.decode(one) if one is not None else None
        if message is None:
            continue
        again = dhcp_messages.decode(dhcp_messages.encode(message))
        assert again is not None
        if not dhcp.problem(message):
            dhcp.result(message, None)


# Netlink


class _Kernel(RouteSocket):
    """A socket whose kernel answers every request with these messages."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data = data

    def send(self, data: bytes, action: str) -> None:
        pass

    def receive(self, action: str, *, wait: bool = True) -> list[transport.Message]:
        answer = [(self._sequence, kind, flags, message) for _, kind, flags, message in transport.unpack(self._data)]
        done = transport.pack(transport.NLMSG_DONE, 0, self._sequence, b"\0\0\0\0")
        return [*answer, (self._sequence, transport.NLMSG_DONE, 0, done)]


_LISTS: tuple[Callable[[RouteSocket], object], ...] = (
    lambda socket: [(one, dict(one.options), dict(one.port)) for one in links.list_links(socket)],
    lambda socket: addresses.of_link(socket, 1, "lo", permanent=True),
    lambda socket: routes.list_routes(socket),
    lambda socket: rules.list_rules(socket),
    lambda socket: neighbours.list_neighbours(socket, 0, 0),
    lambda socket: nexthops.list_nexthops(socket),
    lambda socket: vlans.of_port(socket, "lo"),
    lambda socket: qdiscs.limit(socket, "lo"),
    lambda socket: qdiscs.redirect(socket, "lo"),
)


def netlink(data: bytes) -> None:
    """Answers of the kernel; the first byte chooses what was asked for."""
    chosen = data[0] % (len(_LISTS) + 1) if data else 0
    with contextlib.suppress(KernelRefused):
        if chosen == len(_LISTS):
            for _, kind, flags, message in transport.unpack(data[4:]):
                transport.parse_error(kind, flags, message)
                conntrack._flow(conntrack.parse(message, 20), 4)
            return
        with contextlib.closing(_Kernel(data[4:])) as socket:
            _LISTS[chosen](socket)


# State


def state(data: bytes) -> None:
    """Records, DHCP leases and the catalog's entries, as read from files; the first byte chooses."""
    rest = data[1:]
    key, _, value = rest.partition(b"\n")
    match data[:1]:
        case b"r":
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
                codec.decode(json.loads(rest), records._kinds())
        case b"l":
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                dhcp_leases._parsed("a", json.loads(rest))
        case b"k":
            with contextlib.suppress(ValueError):
                decode_pair(Entry(KV_PREFIX + "a", rest, 1, 1, 1))
        case _:
            with contextlib.suppress(layout.DecodeError):
                layout.decode(Entry(layout.ROOT + key.decode("utf-8", "replace"), value, 1, 1, 1))


TARGETS: dict[str, Target] = {
    "dns": dns,
    "http": http,
    "consul_text": consul_text,
    "cni": cni_wire,
    "dhcp": dhcp_answer,
    "netlink": netlink,
    "state": state,
}
