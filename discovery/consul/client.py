"""A blocking client of the agent's HTTP API, for the CLI.

Source: https://developer.hashicorp.com/consul/api-docs; RFC 9112. Works with weft's agent and
Consul's.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode, urlsplit

from discovery.consul.json_fields import BadField, decode_json
from weft.errors import WeftError

if TYPE_CHECKING:  # http.client and ssl are imported where they are used: a command that asks no agent need not wait
    import ssl
    from http.client import HTTPConnection

TCP = "127.0.0.1:8500"
_OK = 200
MAX_REPLY_BYTES = 256 << 20
"""Bytes of a response body."""
CONNECT_TIMEOUT = 5.0
"""Seconds to connect."""
REPLY_TIMEOUT = 30.0
"""Seconds to wait for a response, blocking queries excepted."""
Parameters = Sequence[tuple[str, str]]


class BadAgentAddress(WeftError):
    """The text is not a valid agent address."""


class Unreachable(WeftError):
    """The agent cannot be reached."""


class ApiError(WeftError):
    """The agent responded with an error; ``status`` is the HTTP status, ``index`` the X-Consul-Index."""

    def __init__(self, status: int, text: str, index: int = 0) -> None:
        super().__init__(text or f"unexpected response code: {status}")
        self.status = status
        self.index = index


@dataclass(frozen=True, slots=True)
class AgentAddress:
    """An agent's address: a unix socket (``path``), or host and port with a path prefix."""

    host: str = ""
    port: int = 8500
    path: str = ""
    prefix: str = ""
    tls: bool = False

    def __str__(self) -> str:
        if self.path:
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.prefix}"


def parse_address(text: str, *, tls: bool = False) -> AgentAddress:
    """``HOST[:PORT]``, ``http://HOST:PORT[/PREFIX]``, ``https://…`` or ``unix:///PATH``. Raises
    BadAddress.
    """
    scheme, mark, rest = text.partition("://")
    if not mark:
        scheme, rest = "https" if tls else "http", text
    try:
        if scheme == "unix":
            if not rest.startswith("/"):
                raise ValueError("the path of a unix socket must be absolute")
            return AgentAddress(path=rest)
        if scheme not in ("http", "https"):
            raise ValueError("unknown scheme, must be http, https or unix")
        parts = urlsplit(f"//{rest}")
        if not parts.hostname or any(character.isspace() or not character.isprintable() for character in rest):
            raise ValueError("missing host")
        return AgentAddress(parts.hostname, parts.port or 8500, "", parts.path.rstrip("/"), scheme == "https")
    except ValueError as error:
        raise BadAgentAddress(
            f"{text[:100]!r} is not a valid agent address: {error}", hint=f"write it like {TCP}"
        ) from None


def default_address() -> AgentAddress:
    """The address of this network namespace's agent: its socket; for users that may not open it TCP.

    Raises Unreachable where that port belongs to another user's server, which must not see a token.
    """
    path = agent_socket()
    if os.geteuid() == 0 or os.access(path, os.R_OK | os.W_OK):
        return AgentAddress(path=path)
    address = parse_address(TCP)
    owners = _listening_users(address.port)
    if owners and not owners <= {0, os.geteuid()}:
        raise Unreachable(
            f"the server at {TCP} is not this host's agent: it belongs to user {min(owners - {0})}",
            hint="name the agent's address: -http-addr, or CONSUL_HTTP_ADDR",
        )
    return address


def _listening_users(port: int) -> set[int]:
    """The users whose sockets listen on a TCP port of IPv4. Source: proc_net_tcp.txt of the kernel."""
    found = set()
    with contextlib.suppress(OSError), open("/proc/net/tcp", encoding="ascii") as file:
        for line in file.readlines()[1:]:
            _, local, _, state, _, _, _, user, *_ = line.split()
            if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                found.add(int(user))
    return found


def agent_socket() -> str:
    """The socket of this network namespace's agent, for root."""
    return f"/run/weft/{os.stat('/proc/self/ns/net').st_ino}/api.sock"


@dataclass(frozen=True, slots=True)
class ApiReply:
    """A response. ``index`` is its X-Consul-Index, 0 without one."""

    json: object
    index: int


class ApiClient:
    """A client of one agent, with one persistent connection.

    ``parameters`` are sent with every request (``("dc", "dc1")``). ``ca_file`` holds the CA
    certificates for TLS, ``certificate`` and ``key_file`` the client's; ``verify=False`` disables
    verification.
    """

    def __init__(
        self,
        address: AgentAddress,
        *,
        token: str = "",
        parameters: Parameters = (),
        ca_file: str = "",
        certificate: str = "",
        key_file: str = "",
        verify: bool = True,
    ) -> None:
        self.address = address
        self._headers = {"X-Consul-Token": token} if token else {}
        self._parameters = tuple(parameters)
        self._ca_file = ca_file
        self._certificate = certificate
        self._key_file = key_file
        self._verify = verify
        self._connection: HTTPConnection | None = None

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def get(self, path: str, parameters: Parameters = ()) -> ApiReply:
        """GET a path under ``/v1/``. Raises Unreachable, ApiError."""
        return read_reply(self._exchange("GET", path, parameters, None), self.address)

    def put(self, path: str, body: object = None, parameters: Parameters = ()) -> ApiReply:
        """PUT an object as JSON. Raises Unreachable, ApiError."""
        content = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace") if body is not None else b""
        return read_reply(self._exchange("PUT", path, parameters, content), self.address)

    def put_bytes(self, path: str, content: bytes, parameters: Parameters = ()) -> ApiReply:
        """PUT a body as it is. Raises Unreachable, ApiError."""
        return read_reply(self._exchange("PUT", path, parameters, content), self.address)

    def get_bytes(self, path: str, parameters: Parameters = ()) -> tuple[bytes, int]:
        """GET a body that is not JSON, and its index. Raises Unreachable, ApiError."""
        return _read_body(self._exchange("GET", path, parameters, None), self.address)

    def delete(self, path: str, parameters: Parameters = ()) -> ApiReply:
        """DELETE a path under ``/v1/``. Raises Unreachable, ApiError."""
        return read_reply(self._exchange("DELETE", path, parameters, None), self.address)

    def send(self, path: str, parameters: Parameters = (), *, seconds: float = REPLY_TIMEOUT) -> HTTPConnection:
        """Send a GET on a new connection; ``read_reply`` receives the response. Raises
        Unreachable.
        """
        connection = self._connect(seconds)
        self._send(connection, "GET", self._target(path, parameters), None)
        return connection

    def _exchange(self, method: str, path: str, parameters: Parameters, body: bytes | None) -> HTTPConnection:
        if self._connection is None or _is_closed(self._connection):
            self.close()
            self._connection = self._connect(REPLY_TIMEOUT)
        self._send(self._connection, method, self._target(path, parameters), body)
        return self._connection

    def _send(self, connection: HTTPConnection, method: str, target: str, body: bytes | None) -> None:
        from http.client import HTTPException

        try:
            connection.request(method, target, body, self._headers)
        except (BrokenPipeError, ConnectionResetError):
            pass  # a body that is too large is refused before it is read whole: the response says so, if there is one
        except (OSError, HTTPException) as error:
            connection.close()
            raise unreachable(self.address, error) from error

    def _target(self, path: str, parameters: Parameters) -> str:
        query = urlencode([*self._parameters, *parameters])
        return f"{self.address.prefix}{path}{'?' if query else ''}{query}"

    def _connect(self, seconds: float) -> HTTPConnection:
        """Connect. Raises Unreachable."""
        from http.client import HTTPConnection, HTTPException, HTTPSConnection

        where = self.address
        try:
            if where.path:
                connection = HTTPConnection("localhost")
                connection.sock = _connect_unix(where.path)
            elif where.tls:
                connection = HTTPSConnection(where.host, where.port, timeout=CONNECT_TIMEOUT, context=self._context())
                connection.connect()
            else:
                connection = HTTPConnection(where.host, where.port, timeout=CONNECT_TIMEOUT)
                connection.connect()
        except (OSError, HTTPException, UnicodeError) as error:
            raise unreachable(where, error) from error
        connection.sock.settimeout(seconds)
        return connection

    def _context(self) -> ssl.SSLContext:
        import ssl

        context = ssl.create_default_context(cafile=self._ca_file or None)
        if self._certificate:
            context.load_cert_chain(self._certificate, self._key_file or None)
        if not self._verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def api_path(*parts: str) -> str:
    """``/v1/`` and the percent-encoded parts."""
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def read_reply(connection: HTTPConnection, address: AgentAddress) -> ApiReply:
    """Receive the response on a connection. Raises Unreachable, ApiError."""
    body, index = _read_body(connection, address)
    try:
        return ApiReply(decode_json(body), index)
    except BadField:
        raise ApiError(_OK, f"invalid response from {address}: not JSON") from None


def read_stream(client: ApiClient, path: str, parameters: Parameters = ()) -> Iterator[bytes]:
    """The lines of a response that goes on until the agent ends it. Raises Unreachable, ApiError."""
    from http.client import HTTPException

    connection = client.send(path, parameters)
    try:
        response = connection.getresponse()
        if response.status != _OK:
            raise ApiError(response.status, response.read(2000).decode("utf-8", "replace").strip())
        if connection.sock is not None:
            connection.sock.settimeout(None)
        yield from response
    except (OSError, HTTPException) as error:
        raise unreachable(client.address, error) from error
    finally:
        connection.close()


def _read_body(connection: HTTPConnection, address: AgentAddress) -> tuple[bytes, int]:
    """The body of the response, and its X-Consul-Index. Raises Unreachable, ApiError."""
    from http.client import HTTPException

    try:
        response = connection.getresponse()
        body = response.read(MAX_REPLY_BYTES + 1)
    except (OSError, HTTPException) as error:
        connection.close()
        raise unreachable(address, error) from error
    if len(body) > MAX_REPLY_BYTES:
        connection.close()
        raise ApiError(response.status, f"response is larger than {MAX_REPLY_BYTES >> 20} MiB")
    text = response.headers.get("X-Consul-Index", "")
    index = int(text) if text.isascii() and text.isdigit() else 0
    if response.status != _OK:
        raise ApiError(response.status, body.decode("utf-8", "replace").strip()[:2000], index)
    return body, index


def unreachable(address: AgentAddress, error: Exception) -> Unreachable:
    """The error for a failed or lost connection."""
    reason = (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
    if isinstance(error, TimeoutError):
        reason = "timeout"
    return Unreachable(
        f"cannot connect to the agent at {address}: {reason[:200]}", hint="start this host's agent with: weft up"
    )


def _connect_unix(path: str) -> socket.socket:
    """Connect to a unix socket. Raises OSError."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        made.settimeout(CONNECT_TIMEOUT)
        made.connect(path)
    except BaseException:
        made.close()
        raise
    return made


def _is_closed(connection: HTTPConnection) -> bool:
    """Whether the peer has closed the persistent connection."""
    if connection.sock is None:
        return True
    with contextlib.suppress(OSError):
        connection.sock.setblocking(False)
        try:
            return connection.sock.recv(1, socket.MSG_PEEK) == b""
        except (BlockingIOError, ValueError):  # ValueError with TLS, which cannot peek
            return False
        finally:
            connection.sock.settimeout(REPLY_TIMEOUT)
    return True


def list_of_objects(found: object) -> list[Mapping[str, object]]:
    """The objects in a response that is a list."""
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
