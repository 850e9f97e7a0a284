"""``weft services watch``: one blocking query for each service that is watched, all waited for at once."""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from http.client import HTTPConnection

import click

from cni_plugin.cli.instances import Seen, seen
from cni_plugin.cli.output import say, warn
from discovery.consul.client import ApiClient, ApiReply, Unreachable, api_path, read_reply

WAIT = 60
"""Seconds that the agent may keep a question."""
LATE = WAIT + WAIT / 16 + 15
"""Seconds without an answer after which an agent is taken for gone."""
AGAIN = 1.0
"""Seconds until an agent that is gone is tried again."""
_ALL = ""

State = dict[tuple[str, str], Seen]


@dataclass(slots=True)
class _Asked:
    """A question that waits: about a service, or about which services there are (``_ALL``)."""

    service: str
    index: int = 0
    connection: HTTPConnection | None = None
    sock: socket.socket | None = None
    until: float = 0.0


@dataclass(frozen=True, slots=True)
class Change:
    """What became of an instance: ``now`` is None where it is gone, ``before`` where it is new."""

    before: Seen | None
    now: Seen | None
    first: bool

    @property
    def word(self) -> str:
        """What happened."""
        if self.before is None:
            return "present" if self.first else "added"
        if self.now is None:
            return "removed"
        return "changed" if self.before.status == self.now.status else self.now.status


class Watching:
    """Prints each change of a service, or of all."""

    def __init__(self, client: ApiClient, service: str, *, json_output: bool) -> None:
        self._client = client
        self._json = json_output
        self._asked: dict[str, _Asked] = {service: _Asked(service)}
        self._known: dict[str, State] = {}
        self._begun: set[str] = set()
        self._all = service == _ALL
        self._selector = selectors.DefaultSelector()

    def run(self, *, once: bool) -> None:
        """Print until interrupted, or until the first change. Raises Unreachable (at the start only) and Refused."""
        started = lost = False
        try:
            while True:
                try:
                    for change in self._round():
                        self._print(change)
                        if once and not change.first:
                            return
                    started, lost = True, False
                except Unreachable as error:
                    if not started:
                        raise
                    if not lost:
                        warn(f"{error.message}; trying again")
                    lost = True
                    self._let_go()
                    time.sleep(AGAIN)
        finally:
            self._let_go()
            self._selector.close()

    def _round(self) -> Iterator[Change]:
        """Ask what is not asked, then take the answers that have come. Raises Unreachable and Refused."""
        for one in list(self._asked.values()):
            if one.connection is None:
                self._ask(one)
        now = time.monotonic()
        ready = self._selector.select(max(0.0, min(one.until for one in self._asked.values()) - now))
        if not ready and any(one.until <= time.monotonic() for one in self._asked.values()):
            raise Unreachable(f"no agent answers at {self._client.address}: it does not answer in time")
        for key, _ in ready:
            one = key.data
            assert isinstance(one, _Asked)
            if one.connection is None:
                continue  # its service is gone since
            connection = one.connection
            self._finish(one, close=False)
            try:
                reply = read_reply(connection, self._client.address)
            finally:
                connection.close()
            yield from self._take(one, reply)

    def _ask(self, one: _Asked) -> None:
        parts = ("health", "service", one.service) if one.service != _ALL else ("catalog", "services")
        parameters = [("index", str(one.index)), ("wait", f"{WAIT}s")] if one.index else []
        connection = self._client.send(api_path(*parts), parameters)
        one.connection, one.sock, one.until = connection, connection.sock, time.monotonic() + LATE
        self._selector.register(one.sock, selectors.EVENT_READ, one)

    def _finish(self, one: _Asked, *, close: bool = True) -> None:
        """Wait for a question's answer no longer."""
        if one.connection is not None and one.sock is not None:
            self._selector.unregister(one.sock)
            if close:
                one.connection.close()
            one.connection = one.sock = None

    def _let_go(self) -> None:
        """Ask everything anew the next time: another agent counts from another number."""
        for one in self._asked.values():
            self._finish(one)
            one.index = 0

    def _take(self, one: _Asked, reply: ApiReply) -> Iterator[Change]:
        """What an answer changes."""
        one.index = max(reply.index, 1) if reply.index >= one.index else 0
        if self._all and one.service == _ALL:
            names = set(reply.json) if isinstance(reply.json, Mapping) else set()
            for name in names - self._asked.keys():
                self._asked[name] = _Asked(name)
                if _ALL in self._begun:
                    self._begun.add(name)  # all that is found of it is new
            for name in self._asked.keys() - names - {_ALL}:
                self._finish(self._asked.pop(name))
                yield from self._compare(name, {})
            self._begun.add(_ALL)
            return
        yield from self._compare(one.service, {(each.node, each.id): each for each in seen(reply.json)})

    def _compare(self, service: str, now: State) -> Iterator[Change]:
        before, first = self._known.get(service, {}), service not in self._begun
        self._begun.add(service)
        self._known[service] = now
        for key in sorted(before.keys() | now.keys()):
            old, new = before.get(key), now.get(key)
            # What a check says changes with each of its runs; a change of that alone is none.
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
    """What a line ends with."""
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
