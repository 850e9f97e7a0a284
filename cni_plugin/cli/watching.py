"""``weft services watch``: a concurrent blocking query for each service."""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from http.client import HTTPConnection

import click

from cni_plugin.cli.instances import ServiceInstance, parse_instances
from cni_plugin.cli.output import say, warn
from discovery.consul.client import ApiClient, ApiReply, Unreachable, api_path, read_reply

WAIT = 60
"""Seconds that a blocking query may wait."""
LATE = WAIT + WAIT / 16 + 15
"""Seconds without a response after which the agent is considered unreachable."""
RETRY = 1.0
"""Seconds between attempts to reach the agent."""
_ALL = ""

State = dict[tuple[str, str], ServiceInstance]


@dataclass(slots=True)
class _Query:
    """A blocking query: for the instances of a service, or the names of all services (``_ALL``)."""

    service: str
    index: int = 0
    connection: HTTPConnection | None = None
    sock: socket.socket | None = None
    until: float = 0.0


@dataclass(frozen=True, slots=True)
class Change:
    """A change of an instance: ``now`` is None if it was removed, ``before`` if it was added."""

    before: ServiceInstance | None
    now: ServiceInstance | None
    first: bool

    @property
    def word(self) -> str:
        """The change in one word."""
        if self.before is None:
            return "present" if self.first else "added"
        if self.now is None:
            return "removed"
        return "changed" if self.before.status == self.now.status else self.now.status


class ServiceWatcher:
    """Prints each change of a service, or of all services."""

    def __init__(self, client: ApiClient, service: str, *, json_output: bool) -> None:
        self._client = client
        self._json = json_output
        self._queries: dict[str, _Query] = {service: _Query(service)}
        self._known: dict[str, State] = {}
        self._listed: set[str] = set()
        self._all = service == _ALL
        self._selector = selectors.DefaultSelector()

    def run(self, *, once: bool) -> None:
        """Print until interrupted, or until the first change. Raises Unreachable (at the start only)
        and Refused.
        """
        started = lost = False
        try:
            while True:
                try:
                    for change in self._poll():
                        self._print(change)
                        if once and not change.first:
                            return
                    started, lost = True, False
                except Unreachable as error:
                    if not started:
                        raise
                    if not lost:
                        warn(f"{error.message}; retrying")
                    lost = True
                    self._reset()
                    time.sleep(RETRY)
        finally:
            self._reset()
            self._selector.close()

    def _poll(self) -> Iterator[Change]:
        """Send queries that are not pending, then read the responses. Raises Unreachable and Refused."""
        for one in list(self._queries.values()):
            if one.connection is None:
                self._send(one)
        now = time.monotonic()
        ready = self._selector.select(max(0.0, min(one.until for one in self._queries.values()) - now))
        if not ready and any(one.until <= time.monotonic() for one in self._queries.values()):
            raise Unreachable(f"no agent answers at {self._client.address}: timeout")
        for key, _ in ready:
            one = key.data
            assert isinstance(one, _Query)
            if one.connection is None:
                continue  # its service was removed meanwhile
            connection = one.connection
            self._finish(one, close=False)
            try:
                reply = read_reply(connection, self._client.address)
            finally:
                connection.close()
            yield from self._changes(one, reply)

    def _send(self, one: _Query) -> None:
        parts = ("health", "service", one.service) if one.service != _ALL else ("catalog", "services")
        parameters = [("index", str(one.index)), ("wait", f"{WAIT}s")] if one.index else []
        connection = self._client.send(api_path(*parts), parameters)
        one.connection, one.sock, one.until = connection, connection.sock, time.monotonic() + LATE
        self._selector.register(one.sock, selectors.EVENT_READ, one)

    def _finish(self, one: _Query, *, close: bool = True) -> None:
        """Unregister a query, and close its connection."""
        if one.connection is not None and one.sock is not None:
            self._selector.unregister(one.sock)
            if close:
                one.connection.close()
            one.connection = one.sock = None

    def _reset(self) -> None:
        """Drop all queries and start from index 0: a restarted agent has other indexes."""
        for one in self._queries.values():
            self._finish(one)
            one.index = 0

    def _changes(self, one: _Query, reply: ApiReply) -> Iterator[Change]:
        """The changes in a response."""
        one.index = max(reply.index, 1) if reply.index >= one.index else 0
        if self._all and one.service == _ALL:
            names = set(reply.json) if isinstance(reply.json, Mapping) else set()
            for name in names - self._queries.keys():
                self._queries[name] = _Query(name)
                if _ALL in self._listed:
                    self._listed.add(name)  # its instances are new
            for name in self._queries.keys() - names - {_ALL}:
                self._finish(self._queries.pop(name))
                yield from self._compare(name, {})
            self._listed.add(_ALL)
            return
        yield from self._compare(one.service, {(each.node, each.id): each for each in parse_instances(reply.json)})

    def _compare(self, service: str, now: State) -> Iterator[Change]:
        before, first = self._known.get(service, {}), service not in self._listed
        self._listed.add(service)
        self._known[service] = now
        for key in sorted(before.keys() | now.keys()):
            old, new = before.get(key), now.get(key)
            # The output of a check differs with every run and is not compared.
            if old is None or new is None or replace(old, why="") != replace(new, why=""):
                yield Change(old, new, first)

    def _print(self, change: Change) -> None:
        about = change.now or change.before
        assert about is not None
        if self._json:
            found = {
                "Time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "Change": change.word,
                "Service": about.service,
                "ID": about.id,
                "Node": about.node,
                "Address": about.address,
                "Port": about.port,
                "Tags": list(about.tags),
                "Status": change.now.status if change.now else None,
                "Output": change.now.why if change.now else "",
                "StatusBefore": change.before.status if change.before else None,
            }
            click.echo(json.dumps(found))
            return
        words = [time.strftime("%H:%M:%S"), change.word.ljust(11), about.service]
        words += [*([about.id] if about.id != about.service else []), f"on {about.node}", about.place]
        say("  ".join(words + _more(change)))


def _more(change: Change) -> list[str]:
    """The details at the end of a line."""
    before, now = change.before, change.now
    if now is None:
        return []
    if before is None:
        return [now.status + (f": {now.why}" if now.why and now.status != "passing" else "")]
    if before.status != now.status:
        return [f"was {before.status}" + (f": {now.why}" if now.why and now.status != "passing" else "")]
    more = []
    if before.place != now.place:
        more.append(f"was at {before.place}")
    if before.tags != now.tags:
        more.append(f"tags {','.join(now.tags) or '-'}, were {','.join(before.tags) or '-'}")
    return more
