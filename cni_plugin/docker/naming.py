"""Names and services of Docker's containers, from its API: the driver itself is told only ids.

Docker answers names of its own networks at 127.0.0.11. The agent answers them to everybody else, and
the services that labels ask for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from cni_plugin.docker import labels, resolvers
from cni_plugin.docker.calls import Calls
from cni_plugin.docker.state import Endpoint, Json, Kept, Network
from weft import stderr
from weft.errors import WeftError
from weft.identity import dns_name_problem
from weft.section import Section

_SHORT_ID = 12


class Naming:
    """Publishes what Docker calls containers. Blocking."""

    def __init__(self, kept: Kept, calls: Calls) -> None:
        self._kept = kept
        self._calls = calls

    def announce(self, container: Section, *, again: bool = True) -> None:
        """Publish the names and services of a container on each of weft's networks; without ``again`` only
        where they are not published yet, or the container has another name now. What cannot be published is
        logged: the container runs already.
        """
        found = _services(container)
        problems = iter(found.problems)
        name = container.text("Name").lstrip("/")
        for label, joined in _networks(container):
            endpoint = self._kept.read(Endpoint, joined.text("EndpointID"))
            network = self._kept.read(Network, endpoint.network) if endpoint is not None else None
            if endpoint is None or network is None or not endpoint.sandbox:
                continue
            renamed = (endpoint.name, endpoint.container) != (name, container.text("Id"))
            if network.names and (again or renamed or not self._calls.is_announced(network, endpoint)):
                for problem in problems:  # once, and not at each comparison with Docker
                    stderr.write(f"weft docker: {name}: {problem}\n")
                keys = _keys(container, joined, network.name, label, found.services)
                try:
                    self._calls.announce(network, endpoint, keys)
                except WeftError as error:
                    stderr.write(f"weft docker: names of {name} on {label}: {error}\n")
            # Afterwards: a driver that is killed meanwhile publishes them again.
            self._note(endpoint, name, container.text("Id"))

    def _note(self, endpoint: Endpoint, name: str, container: str) -> None:
        """Keep what Docker calls the endpoint's container, for ``weft ps``."""
        if (endpoint.name, endpoint.container) == (name, container):
            return
        with self._calls.locked(endpoint):
            current = self._kept.read(Endpoint, endpoint.id)
            if current is not None:  # not removed meanwhile
                self._kept.write(replace(current, name=name, container=container))


def endpoints(container: Section) -> list[str]:
    """The ids of a container's endpoints."""
    return [joined.text("EndpointID") for _, joined in _networks(container)]


def _keys(container: Section, joined: Section, network: str, label: str, services: list[Json]) -> Json:
    aliases = (*joined.texts("Aliases"), *joined.texts("DNSNames"), container.text("Id")[:_SHORT_ID])
    keys: Json = {
        "args": {"cni": {"name": container.text("Name").lstrip("/")}},
        "runtimeConfig": {"aliases": {network: [one for one in dict.fromkeys(aliases) if not dns_name_problem(one)]}},
        "services": services,
        # Docker's resolver asks them from the container. Not others: who names a server means that one.
        "redirectDns": resolvers.asked_from_containers(),
    }
    return keys | ({"domainName": label.lower()} if not dns_name_problem(label) else {})


def _networks(container: Section) -> Iterator[tuple[str, Section]]:
    """The container's networks by their names in Docker."""
    section = container.section("NetworkSettings").section("Networks")
    raw = container.section("NetworkSettings").raw("Networks")
    for name in list(raw) if isinstance(raw, dict) else ():
        yield str(name), section.section(str(name))


def _services(container: Section) -> labels.Found:
    config = container.section("Config")
    given, raw = config.section("Labels"), config.raw("Labels")
    texts = {str(name): given.text(str(name)) for name in (raw if isinstance(raw, dict) else ())}
    environment = dict(one.partition("=")[::2] for one in config.texts("Env"))
    exposed = config.raw("ExposedPorts")
    return labels.read(texts, environment, list(exposed) if isinstance(exposed, dict) else ())
