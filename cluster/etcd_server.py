"""This host's member of etcd: its configuration, and its process.

Where systemd runs it is a service, ``weft-etcd``. Elsewhere the agent starts it, and starts it again when it dies.
It outlives the agent, since an agent that is restarted must cost no vote, and holds a lock by which the next agent
knows it. etcd logs to the journal, or to ``etcd.log`` beside the lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import socket
from pathlib import Path

from cluster.local import CLIENT_PORT, PEER_PORT, Files, Local, endpoint
from weft import daemons, files, processes, systemd
from weft.errors import Conflict, WeftError

log = logging.getLogger(__name__)

DATA = "/var/lib/weft/etcd-member"
UNIT = "weft-etcd.service"
CONFIGURATION = "etcd.conf"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_UNIT = """\
# This host's member of the etcd cluster that weft cluster init or join has made. Written by weft.
[Unit]
Description=etcd (weft's cluster)
After=network-online.target
Wants=network-online.target
ConditionPathExists={folder}/etcd.conf

[Service]
# Not notify: etcd is ready once a majority has heard of it, and the boot does not wait for other hosts.
Type=exec
ExecStart={binary} --config-file {folder}/etcd.conf
Restart=always
RestartSec=1
LimitNOFILE=65536
UMask=0077
ProtectSystem=strict
StateDirectory=weft/etcd-member
StateDirectoryMode=0700
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
"""


def binary() -> str:
    """The path of etcd. Raises WeftError where it is not installed."""
    found = shutil.which("etcd", path=os.environ.get("PATH", _PATH)) or shutil.which("etcd", path=_PATH)
    if found is None:
        raise WeftError("etcd is not installed on this host", hint="apt-get install etcd-server, then try again")
    return found


def configuration(local: Local, own: Files, initial: str, *, new: bool) -> bytes:
    """etcd's configuration file (YAML, of which JSON is a part).

    ``initial`` are all members, ``NAME=URL,…``; ``new``: the first member makes the cluster. Source:
    https://etcd.io/docs/v3.4/op-guide/configuration/.
    """
    clients = f"https://{endpoint(local.address, CLIENT_PORT)}"
    peers = f"https://{endpoint(local.address, PEER_PORT)}"
    value = {
        "name": local.node,
        "data-dir": DATA,
        "listen-client-urls": clients,
        "advertise-client-urls": clients,
        "listen-peer-urls": peers,
        "initial-advertise-peer-urls": peers,
        "initial-cluster": initial,
        "initial-cluster-state": "new" if new else "existing",
        "initial-cluster-token": local.cluster,
        "strict-reconfig-check": True,
        # Its gateway is refused by etcd itself where certificates name users.
        "enable-grpc-gateway": False,
        "enable-v2": False,
        "auto-compaction-mode": "revision",
        "auto-compaction-retention": "10000",
        "client-transport-security": {
            "cert-file": own.path("node.pem"),
            "key-file": own.path("node-key.pem"),
            "client-cert-auth": True,
            "trusted-ca-file": own.path("ca.pem"),
        },
        "peer-transport-security": {
            "cert-file": own.path("peer.pem"),
            "key-file": own.path("peer-key.pem"),
            "client-cert-auth": True,
            "trusted-ca-file": own.path("peer-ca.pem"),
        },
        "logger": "zap",
        "log-level": "warn",
        "log-outputs": ["stderr"],
    }
    return json.dumps(value, indent=1).encode() + b"\n"


def unit(binary: str, folder: str) -> str:
    """The unit of systemd."""
    return _UNIT.format(binary=binary, folder=folder)


class EtcdServer:
    """The process; ``folder`` is where its lock and log are where systemd does not run."""

    def __init__(self, own: Files, folder: str) -> None:
        self._own = own
        self._lock = f"{folder}/etcd.lock"
        self._log = f"{folder}/etcd.log"

    @property
    def is_configured(self) -> bool:
        return self._own.has(CONFIGURATION)

    def install(self) -> bool:
        """Install the unit where systemd runs, on every node: a client may become a member, and its agent, which
        finds the unit then, may not write it. A unit that is there and cannot be replaced stays. Whether it is
        another one than before. Raises WeftError, OSError.
        """
        is_new = False
        if not systemd.is_running():
            return is_new
        with contextlib.suppress(WeftError):  # a client need not have it
            path, text = Path(systemd.UNITS, UNIT), unit(binary(), self._own.folder)
            try:
                if not path.exists() or path.read_text(encoding="utf-8") != text:
                    path.write_text(text, encoding="utf-8")
                    is_new = True
            except OSError as error:
                if not path.exists():
                    raise
                log.warning("%s stays as it is (%s): weft install --systemd replaces it", path, error.strerror)
            known = systemd.control("show", "--property=UnitFileState", "--property=NeedDaemonReload", UNIT)
            if {*known.splitlines()} != {"UnitFileState=enabled", "NeedDaemonReload=no"}:
                systemd.control("daemon-reload")
                systemd.control("enable", UNIT)
        return is_new

    @property
    def is_installed(self) -> bool:
        """Whether it has a unit."""
        return Path(systemd.UNITS, UNIT).exists()

    def ensure(self) -> bool:
        """Start it, unless it runs; whether it was started. Raises WeftError."""
        if self.running():
            return False
        local = self._own.load()
        taken = _taken_port(local.address) if local is not None else 0
        if taken:
            if self.running():  # it was started meanwhile
                return False
            raise Conflict(
                f"TCP port {taken} is in use by another program, and etcd cannot start",
                hint=f"ss -ltnp 'sport = :{taken}' shows which: Debian's own etcd, or that of Kubernetes?",
            )
        files.make_directory(DATA, "etcd's data")
        if systemd.is_running():
            systemd.control("start", UNIT)
            return True
        files.make_directory(os.path.dirname(self._lock), "etcd's lock")
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            argv = [binary(), "--config-file", self._own.path(CONFIGURATION)]
            process = processes.launch(argv, {"PATH": _PATH}, log=self._log, held=descriptor)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % process, 0)
        except OSError as error:
            raise WeftError(f"cannot start etcd: {error}", hint=f"see {self._log}") from None
        finally:
            os.close(descriptor)
        return True

    def running(self) -> int:
        """Its process id, 0 where it does not run."""
        if systemd.is_running():
            done = systemd.control("show", "--property=MainPID", "--value", UNIT)
            return int(done) if done.isdigit() else 0
        try:
            descriptor = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return 0
        try:
            process = int(os.read(descriptor, 32) or b"0")
            _reap(process)
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return process
        except ValueError:
            return 0
        finally:
            os.close(descriptor)
        return 0

    def stop(self) -> None:
        """Stop it and wait for its end. Raises WeftError."""
        if systemd.is_running():
            systemd.control("stop", UNIT)
            return
        process = self.running()
        if process:
            _end(process)

    def remove(self) -> None:
        """Stop it for good: no unit, no configuration, no data. Raises WeftError."""
        self.stop()
        if systemd.is_running() and self.is_installed:
            systemd.control("disable", UNIT)
            Path(systemd.UNITS, UNIT).unlink()
        self.clear()

    def clear(self) -> None:
        """Remove the configuration and the data of a member that does not run."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._own.path(CONFIGURATION))
        shutil.rmtree(DATA, ignore_errors=True)

    def last_words(self) -> str:
        """The last line of its log, for messages."""
        with contextlib.suppress(OSError):
            lines = Path(self._log).read_text(encoding="utf-8", errors="replace").splitlines()
            return lines[-1][:300] if lines else ""
        return ""


def _taken_port(address: str) -> int:
    """A port of etcd at which a program listens already, 0 if there is none."""
    for port in (CLIENT_PORT, PEER_PORT):
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return port
    return 0


def _end(process: int) -> None:
    if not daemons.end(process, 10.0):
        raise WeftError(f"etcd (process {process}) does not end", hint=f"kill -KILL {process}, then try again")
    _reap(process)


def _reap(process: int) -> None:
    """Of a child of this process that has ended; others have another parent."""
    if process > 0:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process, os.WNOHANG)
