"""The sockets of the HTTP API, which addresses it listens on, and TLS."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
import stat
from ipaddress import ip_address
from pathlib import Path

from discovery.api.settings import HttpSettings, TlsSettings

log = logging.getLogger(__name__)


def is_remote(address: str) -> bool:
    """Whether other hosts and namespaces can reach this address, so that callers have no user."""
    return not address.startswith("/") and not ip_address(address.rpartition(":")[0].strip("[]")).is_loopback


def allowed(settings: HttpSettings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The addresses to listen on, and why not on others.

    Beyond loopback only with tokens: a caller there is nobody known. Instead of every address of
    the host then only loopback's.
    """
    if settings.acl.enabled:
        if settings.tls is None and (plain := [one for one in settings.listen if is_remote(one)]):
            log.warning("tokens sent to %s can be read on the way: set tls.cert_file", ", ".join(plain))
        return settings.listen, ()
    refused = [one for one in settings.listen if is_remote(one)]
    for one in refused:
        log.error("%s", _refusal(one))
    local = {one: _loopback(one) for one in refused}
    listen = dict.fromkeys(local.get(one, one) for one in settings.listen)
    return tuple(one for one in listen if one), tuple(map(_refusal, refused))


def _refusal(address: str) -> str:
    return f"the HTTP API does not listen on {address}: beyond loopback it needs tokens; set acl.enabled in weft.toml"


def _loopback(address: str) -> str:
    """The loopback address that is part of ``0.0.0.0`` or ``[::]``; "" of another address."""
    host, _, port = address.rpartition(":")
    return {"0.0.0.0": f"127.0.0.1:{port}", "[::]": f"[::1]:{port}"}.get(host, "")


def tls_context(settings: TlsSettings | None) -> ssl.SSLContext | None:
    """The server's TLS. Raises OSError that names the file."""
    if settings is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.certificate, settings.key)
    except (OSError, ssl.SSLError) as error:
        raise OSError(f"tls.cert_file {settings.certificate}, tls.key_file {settings.key}: {error}") from error
    try:
        if settings.ca:
            context.load_verify_locations(settings.ca)
    except (OSError, ssl.SSLError) as error:
        raise OSError(f"tls.ca_file {settings.ca}: {error}") from error
    if settings.verify:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def bind(address: str) -> socket.socket:
    """A socket bound to ``HOST:PORT`` or a unix socket path. Raises OSError."""
    try:
        if address.startswith("/"):
            return _listen_unix(Path(address))
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        with contextlib.ExitStack() as undo:
            undo.callback(sock.close)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((host, int(port)))
            undo.pop_all()
        return sock
    except (OSError, ValueError, OverflowError) as error:
        raise refused(address, error) from error


def refused(address: str, error: Exception) -> OSError:
    """The error for an address that cannot be listened on."""
    why = (error.strerror if isinstance(error, OSError) else "") or str(error)
    return OSError(f"the HTTP API cannot listen on {address}: {why}")


def _listen_unix(path: Path) -> socket.socket:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode) and not _blocking(path):
            path.unlink()  # stale socket of a killed process
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(str(path))
        os.chmod(path, 0o600)  # no connection is possible before listen(2)
    except OSError:
        sock.close()
        raise
    return sock


def _blocking(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def format_address(address: str, sock: socket.socket) -> str:
    """The address with the port that the socket has."""
    if sock.family == socket.AF_UNIX:
        return address
    return f"{address.rpartition(':')[0]}:{sock.getsockname()[1]}"
