"""Docker's own API on its Unix socket: what networks and containers there are, and what happens to them.

Source: Docker Engine API v1.24, which every release from 1.12 on has, or its successors up to 1.44.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from urllib.parse import quote

import aiohttp

from cni_plugin.docker.state import Json
from weft.errors import WeftError
from weft.section import Problems, Section

_TIMEOUT = aiohttp.ClientTimeout(total=60)
_STREAM = aiohttp.ClientTimeout(total=None, sock_connect=10)
_MOST_LINE = 1 << 20


class NoDocker(WeftError):
    """dockerd does not answer."""


class DockerApi:
    """A client of one dockerd."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._session: aiohttp.ClientSession | None = None

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.UnixConnector(path=self.path)
            self._session = aiohttp.ClientSession("http://docker", connector=connector, read_bufsize=_MOST_LINE)
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _get(self, path: str) -> object:
        """The answer to a GET, None for 404. Raises NoDocker."""
        try:
            async with self._client().get(path, timeout=_TIMEOUT) as answer:
                if answer.status == 404:
                    return None
                if answer.status != 200:
                    raise NoDocker(f"dockerd answers GET {path} with status {answer.status}")
                found: object = json.loads(await answer.read())
                return found
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise NoDocker(f"dockerd at {self.path} does not answer: {error or type(error).__name__}") from error

    async def _change(self, method: str, path: str, body: Json | None = None) -> str:
        """Why Docker refuses a call that changes something, "" if it does not. Raises NoDocker."""
        try:
            async with self._client().request(method, path, json=body, timeout=_TIMEOUT) as answer:
                text = (await answer.read()).decode(errors="replace")
                if answer.status < 400:
                    return ""
                with contextlib.suppress(ValueError, AttributeError):
                    text = str(json.loads(text).get("message"))
                return text.strip() or f"status {answer.status}"
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise NoDocker(f"dockerd at {self.path} does not answer: {error or type(error).__name__}") from error

    async def create_network(self, body: Json) -> str:
        """Create a network; why Docker refuses it, "" if it does not."""
        return await self._change("POST", "/networks/create", body)

    async def remove_network(self, name: str) -> str:
        """Remove a network by its id; why Docker refuses it, "" if it does not."""
        return await self._change("DELETE", f"/networks/{quote(name)}")

    async def networks(self, driver: str) -> list[Section]:
        """All networks whose driver, or IPAM driver, has this name, with their endpoints."""
        listed = await self._get("/networks")
        found = []
        for one in listed if isinstance(listed, list) else ():
            if _is_of(one, driver):
                whole = await self._get(f"/networks/{quote(str(one.get('Id')))}")
                if isinstance(whole, dict) and _is_of(whole, driver):
                    found.append(Section(whole, "network", Problems()))
        return found

    async def container(self, name: str) -> Section | None:
        """A container by its id; None if there is none."""
        found = await self._get(f"/containers/{quote(name)}/json")
        return Section(found, "container", Problems()) if isinstance(found, dict) else None

    async def events(self) -> AsyncIterator[Json]:
        """What happens to containers and networks, from now on; ends with dockerd. Raises NoDocker."""
        path = f"/events?filters={_filters(type=['container', 'network'])}"
        try:
            async with self._client().get(path, timeout=_STREAM) as answer:
                if answer.status != 200:
                    raise NoDocker(f"dockerd answers GET /events with status {answer.status}")
                yield {"Type": "connected"}
                async for line in answer.content:
                    found = json.loads(line)
                    if isinstance(found, dict):
                        yield found
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise NoDocker(f"dockerd at {self.path} does not answer: {error or type(error).__name__}") from error


def _is_of(network: Json, driver: str) -> bool:
    ipam = network.get("IPAM")
    return driver in (network.get("Driver"), ipam.get("Driver") if isinstance(ipam, dict) else None)


def _filters(**wanted: list[str]) -> str:
    return quote(json.dumps(wanted))
