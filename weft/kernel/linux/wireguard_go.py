"""WireGuard where the kernel has no module: links of the program wireguard-go, by its socket.

The program makes a TUN link and runs until that is deleted. Source: ``wireguard-go(8)``,
https://www.wireguard.com/xplatform/.
"""

from __future__ import annotations

import base64
import os
import socket
from ipaddress import IPv6Network, ip_address, ip_network

from weft import processes
from weft.errors import KernelLacks, KernelRefused, Missing
from weft.kernel.values import WireGuard, WireGuardPeer

PROGRAM = "wireguard-go"
_SOCKETS = "/var/run/wireguard"
_SECONDS = 10.0
_LONGEST = 1 << 26  # bytes of an answer: 50,000 peers are 15 MB


def add(name: str, action: str) -> None:
    """Make a link, in the calling thread's namespace. Raises KernelLacks without the program."""
    environment = {key: os.environ[key] for key in ("PATH",) if key in os.environ}
    try:
        status = processes.spawn([PROGRAM, name], environment, detached=True)
    except OSError as error:
        raise KernelLacks(
            f"cannot {action}: this kernel lacks the module wireguard, and {PROGRAM} cannot be run: {error.strerror}",
            hint=f"install the package {PROGRAM}, or a kernel with the module",
        ) from error
    if status:
        raise KernelRefused(f"cannot {action}: {PROGRAM} ended with status {status}")


def get(name: str) -> WireGuard:
    """What is set on a link. Raises Missing without its process."""
    private, port = "", 0
    peers: list[dict[str, list[str]]] = []
    for line in _ask(name, "get=1\n\n"):
        key, _, value = line.partition("=")
        if key == "public_key":
            peers.append({"public_key": [value]})
        elif peers:
            peers[-1].setdefault(key, []).append(value)
        elif key == "private_key":
            private = _from_hex(value)
        elif key == "listen_port":
            port = int(value)
    return WireGuard(private, port, tuple(sorted(map(_peer, peers), key=lambda one: one.key)))


def _peer(found: dict[str, list[str]]) -> WireGuardPeer:
    [address, port] = found.get("endpoint", [":0"])[0].rsplit(":", 1)
    endpoint = ip_address(address.strip("[]")) if address else None
    allowed = (ip_network(one) for one in found.get("allowed_ip", ()))
    six = tuple(one for one in allowed if isinstance(one, IPv6Network))
    return WireGuardPeer(_from_hex(found["public_key"][0]), endpoint, int(port), six)


def set_all(name: str, wanted: WireGuard) -> None:
    """Set key, port and peers, and remove other peers; sessions of peers that stay are kept."""
    there = get(name)
    known, kept = {one.key for one in wanted.peers}, set(there.peers)
    lines = ["set=1"]
    if (there.private, there.port) != (wanted.private, wanted.port):
        lines += [f"private_key={_to_hex(wanted.private)}", f"listen_port={wanted.port}"]
    for one in there.peers:
        if one.key not in known:
            lines += [f"public_key={_to_hex(one.key)}", "remove=true"]
    for one in wanted.peers:
        if one not in kept:
            lines += [f"public_key={_to_hex(one.key)}", "replace_allowed_ips=true"]
            if one.endpoint is not None:
                host = f"[{one.endpoint}]" if one.endpoint.version == 6 else str(one.endpoint)
                lines.append(f"endpoint={host}:{one.port}")
            lines += [f"allowed_ip={each}" for each in one.allowed]
    _ask(name, "\n".join([*lines, "", ""]))


def _ask(name: str, text: str) -> list[str]:
    action = f"set up the WireGuard link {name}"
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_SECONDS)
            connection.connect(f"{_SOCKETS}/{name}.sock")
            connection.sendall(text.encode())
            answer = b""
            while not answer.endswith(b"\n\n") and len(answer) < _LONGEST:
                part = connection.recv(1 << 16)
                if not part:
                    break
                answer += part
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise Missing(f"cannot {action}: its process {PROGRAM} does not run") from error
    except OSError as error:
        raise KernelRefused(f"cannot {action}: {PROGRAM} does not answer: {error}") from error
    lines = answer.decode("ascii", "replace").split()
    if "errno=0" not in lines:
        raise KernelRefused(f"cannot {action}: {PROGRAM} says {lines[-1] if lines else 'nothing'}")
    return [line for line in lines if line != "errno=0"]


def _to_hex(key: str) -> str:
    return base64.b64decode(key).hex()


def _from_hex(text: str) -> str:
    return base64.b64encode(bytes.fromhex(text)).decode()
