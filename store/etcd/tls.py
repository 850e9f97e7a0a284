"""Certificates: read and checked before use, and what is wrong with a member's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from pathlib import Path

import grpc

from store.etcd.settings import EtcdSettings
from store.interface import Invalid

_SECONDS = 1.0


def context(settings: EtcdSettings) -> ssl.SSLContext:
    """The TLS context of these certificates. Raises Invalid, which names the file."""
    made = ssl.create_default_context()
    made.set_alpn_protocols(["h2"])
    try:
        if settings.ca:
            made = ssl.create_default_context(cafile=settings.ca)
            made.set_alpn_protocols(["h2"])
    except (OSError, ssl.SSLError) as error:
        raise Invalid(f"store.ca {settings.ca}: {_reason(error)}", hint="a PEM file of certificates") from None
    try:
        if settings.cert:
            made.load_cert_chain(settings.cert, settings.key)
    except (OSError, ssl.SSLError) as error:
        raise Invalid(
            f"store.cert {settings.cert} and store.key {settings.key}: {_reason(error)}",
            hint="PEM files of a certificate and its key",
        ) from None
    return made


def credentials(settings: EtcdSettings) -> grpc.ChannelCredentials:
    """gRPC's credentials of the same files. Raises Invalid."""
    context(settings)
    roots = settings.ca or ssl.get_default_verify_paths().cafile
    return grpc.ssl_channel_credentials(
        Path(roots).read_bytes() if roots else None,
        Path(settings.key).read_bytes() if settings.key else None,
        Path(settings.cert).read_bytes() if settings.cert else None,
    )


def state(settings: EtcdSettings) -> tuple[object, ...]:
    """What tells whether the files were replaced."""
    found: list[object] = []
    for path in filter(None, (settings.ca, settings.cert, settings.key)):
        with contextlib.suppress(OSError):
            status = os.stat(path)
            found.append((path, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)


async def problem(address: str, settings: EtcdSettings) -> str:
    """What a TLS handshake with a member fails with, "" if it does not. gRPC's own error does not
    tell.
    """
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(_SECONDS):
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=context(settings))
            try:
                # In TLS 1.3 it refuses our certificate only after the handshake.
                await reader.read(1)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except ssl.SSLError as error:
        return f"TLS: {_reason(error)}"
    except Invalid as error:  # files that are just replaced
        return error.message
    except (OSError, TimeoutError, ValueError):
        return ""
    return ""


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or str(error)).lower().replace("_", " ")
        if "alert" in reason:
            return f"it refuses this host's certificate ({reason}); see store.cert"
        return reason
    return error.strerror or str(error)
