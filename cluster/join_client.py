"""Asking a member to let this host join: over TLS that is pinned to the authority which the token names."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import Mapping, Sequence

from cluster import authority
from cluster.local import Files
from cluster.tokens import Refused, Token
from weft.errors import StateDamaged, WeftError

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 40.0
_MOST_BYTES = 64 * 1024


class Again(WeftError):
    """Not now; the same request may succeed later."""


async def fetch_authority(token: Token) -> bytes:
    """The authority's certificate (PEM), which must be the one that the token names.

    Raises Refused, Again where no member answers.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # what it sends is compared with the token, and nothing secret is sent
    problems = []
    for address in token.addresses:
        try:
            found = str((await _ask(address, context, {"op": "ca"})).get("ca", "")).encode()
            if authority.fingerprint(found) == token.fingerprint:
                return found
            problems.append(f"{address} has another certificate authority")
        except StateDamaged:
            problems.append(f"{address} sent no certificate")
        except Again as error:
            problems.append(error.message)
    if any("another" in one for one in problems):
        raise Refused(
            f"this is not the cluster that the join token is for: {'; '.join(problems)}",
            hint="the token is of another cluster, or somebody else answers at that address; nothing was sent to it",
        )
    raise Again(
        f"no member serves joins: {'; '.join(problems)}",
        hint="a member's agent serves them while a join token is outstanding; is TCP port 2378 open?",
    )


async def ask(addresses: Sequence[str], own: Files, message: Mapping[str, object]) -> Mapping[str, object]:
    """Send a request to the first member that answers, whose certificate must be of our authority; with this
    node's certificate, once it has one. Raises Refused, Again.
    """
    context = ssl.create_default_context(cafile=own.path("ca.pem"))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if own.has("node.pem"):
        context.load_cert_chain(own.path("node.pem"), own.path("node-key.pem"))
    problems = []
    for address in addresses:
        try:
            answer = await _ask(address, context, message)
        except Again as error:
            problems.append(error.message)
            continue
        if error_text := str(answer.get("error", "")):
            refusal = Again if answer.get("again") else Refused
            raise refusal(error_text, hint=str(answer.get("hint", "")))
        return answer
    raise Again(f"no member answers: {'; '.join(problems)}", hint="is TCP port 2378 of a member open?")


async def own_address(addresses: Sequence[str]) -> str:
    """The address of this host from which it reaches a member. Raises Again."""
    problems = []
    for address in addresses:
        host, _, port = address.rpartition(":")
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            found = str(writer.get_extra_info("sockname")[0])
            writer.close()
            return found
        except (OSError, TimeoutError) as error:
            problems.append(f"{address}: {error or 'no answer'}")
    raise Again(f"no member can be reached: {'; '.join(problems)}", hint="is TCP port 2378 of a member open?")


async def _ask(address: str, context: ssl.SSLContext, message: Mapping[str, object]) -> Mapping[str, object]:
    host, _, port = address.rpartition(":")
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=context, limit=_MOST_BYTES)
        async with asyncio.timeout(_ANSWER_SECONDS):
            writer.write(json.dumps(message).encode() + b"\n")
            await writer.drain()
            found = json.loads(await reader.readuntil(b"\n"))
        if not isinstance(found, dict):
            raise ValueError("no object")
        return found
    except ssl.SSLCertVerificationError as error:
        raise Again(f"{address}: its certificate is refused: {error.verify_message}") from None
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
        why = getattr(error, "strerror", None) or ("no answer in time" if isinstance(error, TimeoutError) else error)
        raise Again(f"{address}: {why}") from None
    finally:
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()
