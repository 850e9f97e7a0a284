"""Findings of ``weft doctor`` about the host around the networks: what will fail later, or costs for nothing."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from cni_plugin.networks.findings import Finding
from cni_plugin.service.context import ServiceContext
from weft.remedies import Command, NoCommand

DISKS = ("/run/weft", "/var/lib/cni", "/var/lib/weft")
CLOCKED = ("/var/lib/cni/networks", "/var/lib/weft")
"""Folders whose files tell the time of their last change."""
USERS_OF_BRIDGE_NETFILTER = ("/run/docker.sock", "/var/lib/kubelet", "/etc/cni/net.d/10-calico.conflist")
"""What usually has rules of iptables for packets between ports of a bridge."""
SYSTEMD = "/run/systemd/system"
UNIT_FOLDERS = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
_BRIDGE_NETFILTER = ("net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables")
_LEAST_FREE = 0.03
_LEAST_BYTES, _ENOUGH_BYTES = 32 << 20, 512 << 20
_CLOCK_SLACK = 120.0  # seconds
_CERTIFICATE_DAYS = 21


def every(context: ServiceContext, certificates: Iterable[str] = ()) -> list[Finding]:
    """All findings; ``certificates`` are PEM files that weft uses."""
    return [
        *of_disks(DISKS),
        *of_clock(CLOCKED),
        *of_certificates(certificates),
        *of_bridge_netfilter(context),
    ]


def of_disks(folders: Iterable[str]) -> Iterator[Finding]:
    """File systems about to be full or read-only: an ADD could not write its record or lease, the agent no service."""
    seen = set()
    for folder in folders:
        try:
            found, device = os.statvfs(folder), os.stat(folder).st_dev
        except OSError:
            continue
        if device in seen:
            continue
        seen.add(device)
        if found.f_flag & os.ST_RDONLY:
            yield Finding(
                f"the file system of {folder} is read-only: no container is attached, and none detached completely",
                NoCommand("mount it read-write; after an error of the disk, dmesg tells of it"),
            )
            continue
        free, size = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
        if size and free < max(min(_LEAST_FREE * size, _ENOUGH_BYTES), min(_LEAST_BYTES, size / 4)):
            yield Finding(
                f"the file system of {folder} is about to be full: {free >> 20} of {size >> 20} MiB are free; without"
                " space no container is attached",
                NoCommand(f"what may be deleted is to be decided; what is large: du -x -d 3 {folder}"),
            )
        elif found.f_files and found.f_favail < _LEAST_FREE * found.f_files:
            yield Finding(
                f"the file system of {folder} has only {found.f_favail} of {found.f_files} inodes left",
                NoCommand(f"what may be deleted is to be decided; where files are: du -x --inodes -d 3 {folder}"),
            )


def of_clock(folders: Iterable[str], now: float = 0.0) -> Iterator[Finding]:
    """Files from the future: the clock has been set back. Leases and checks go by their times."""
    latest, where, now = 0.0, "", now or time.time()
    for folder in folders:
        for path in (folder, *_entries(folder)):
            try:
                changed = os.stat(path, follow_symlinks=False).st_mtime
            except OSError:
                continue
            if changed > latest:
                latest, where = changed, path
    if latest > now + _CLOCK_SLACK:
        yield Finding(
            f"the clock was set back by {round(latest - now)} s or more: {where} was changed at"
            f" {datetime.fromtimestamp(latest, UTC):%Y-%m-%d %H:%M:%S} UTC; until then leases are not freed as stale",
            NoCommand(f"set the clock (timedatectl, chronyc makestep); if it is right now: touch {where}"),
        )


def _entries(folder: str) -> Iterator[str]:
    """What is in a folder and in the folders in it."""
    try:
        for entry in os.scandir(folder):
            yield entry.path
            if entry.is_dir(follow_symlinks=False):
                yield from (one.path for one in os.scandir(entry.path))
    except OSError:
        return


def of_certificates(paths: Iterable[str], now: float = 0.0) -> Iterator[Finding]:
    """Certificates that have expired, or soon will."""
    for path in paths:
        try:
            with open(path, encoding="ascii") as file:
                ends = not_after(file.read())
        except (OSError, ValueError) as error:
            remedy = NoCommand("correct [tls] in weft.toml, or the file")
            yield Finding(f"the certificate {path} cannot be read: {error}", remedy)
            continue
        left = ends - (now or time.time())
        if left < _CERTIFICATE_DAYS * 86400:
            when = f"{datetime.fromtimestamp(ends, UTC):%Y-%m-%d %H:%M} UTC"
            what = f"expires in {round(left / 86400)} days, at {when}" if left > 0 else f"has expired at {when}"
            yield Finding(
                f"the certificate {path} {what}; clients then refuse the agent",
                NoCommand(
                    "have it issued again by its authority, then restart the agent, which reads it when it starts: "
                    "systemctl restart weft-agent, or without systemd weft down && weft up"
                ),
            )


def not_after(pem: str) -> float:
    """When the first certificate of a PEM file expires, in seconds since 1970. Raises ValueError.

    Source: RFC 5280 section 4.1; X.690 for the encoding.
    """
    start = pem.index("-----BEGIN CERTIFICATE-----")
    end = pem.index("-----END CERTIFICATE-----", start) + len("-----END CERTIFICATE-----")
    certificate = ssl.PEM_cert_to_DER_cert(pem[start:end])
    _, body, _ = _element(certificate, 0)
    _, at, limit = _element(certificate, body)  # TBSCertificate
    fields = []
    while at < limit:
        tag, content, at = _element(certificate, at)
        if tag != 0xA0:  # the version
            fields.append((tag, content))
    _, validity = fields[3]  # after serial number, signature algorithm and issuer
    _, _, after = _element(certificate, validity)
    tag, content, end_of_time = _element(certificate, after)
    text = certificate[content:end_of_time].decode("ascii")
    form = "%y%m%d%H%M%SZ" if tag == 0x17 else "%Y%m%d%H%M%SZ"
    return datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()


def _element(data: bytes, at: int) -> tuple[int, int, int]:
    """The tag of the DER element at a place, where its content begins, and where it ends."""
    try:
        tag, length, content = data[at], data[at + 1], at + 2
    except IndexError:
        raise ValueError("it is truncated") from None
    if length & 0x80:
        more = length & 0x7F
        length, content = int.from_bytes(data[content : content + more], "big"), content + more
    if content + length > len(data):
        raise ValueError("it is truncated")
    return tag, content, content + length


def of_bridge_netfilter(context: ServiceContext) -> Iterator[Finding]:
    """Packets between ports of a bridge pass iptables, too, although nothing here has rules for them."""
    on = [key for key in _BRIDGE_NETFILTER if context.kernel.host.sysctl(key) == "1"]
    if not on or any(map(os.path.exists, USERS_OF_BRIDGE_NETFILTER)) or not any(context.records.networks()):
        return
    settings = " ".join(f"{key.replace('/', '.')}=0" for key in on)
    yield Finding(
        f"{' and '.join(on)} {'are' if len(on) > 1 else 'is'} 1:"
        " every packet between two containers of a network passes the rules of IP, which takes"
        " a fifth of a round trip, and neither Docker nor Kubernetes is here, which need it",
        Command(f"sysctl -w {settings}"),
        advice=True,
    )


def of_units(needs_agent: bool) -> Iterator[Finding]:
    """A host with systemd that would not start the agent after a reboot."""
    if not needs_agent or not os.path.isdir(SYSTEMD):
        return
    name = "weft-agent.service"
    if not any(os.path.exists(os.path.join(folder, name)) for folder in UNIT_FOLDERS):
        yield Finding(
            f"{name} is not installed: after a reboot the agent starts with the first attachment that needs it, and"
            " registered services are not checked until then",
            Command("weft install --systemd && systemctl enable --now weft-agent"),
            advice=True,
        )
