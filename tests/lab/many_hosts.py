"""Hosts that are namespaces on one bridge: each with processes, /run, /etc/weft and /var/lib/weft of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

from lab.commands import Outcome, run
from lab.unpacked import unpack
from lab.waiting import until

ROOT = Path(__file__).resolve().parents[2]
BRIDGE = "br-hosts"
_PRIVATE = ("/run", "/etc/weft", "/etc/cni", "/var/lib/weft", "/var/lib/cni", "/var/log/weft")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# A shell is process 1: it reaps what daemons leave.
_INIT = """
for folder in {folders}; do mkdir -p "$folder"; mount -t tmpfs -o mode=0755 tmpfs "$folder"; done
{more}
mkdir -p /run/netns /run/lock
ip link set lo up
touch /run/ready
{last}
"""
_LAST = "while sleep 1000; do :; done"


class ClusterHost:
    """A host ``n<number>`` at 10.78.0.<number>, whose uplink is ``eth0``."""

    def __init__(self, number: int, *, install: bool = True) -> None:
        """``install`` puts etcd into its /usr/local/sbin."""
        self.number = number
        self.name = f"n{number}"
        self.address = f"10.78.0.{number}"
        binaries = unpack("etcd-server", "etcd-client") / "usr" / "bin"
        self._etcd = f"mount --bind {binaries} /usr/local/sbin" if install else ""
        self.environment = {"PATH": _PATH, "ETCDCTL_API": "3", "HOME": "/root"}
        self._switch_on(self._etcd, _LAST)

    def _switch_on(self, more: str, last: str, *unshared: str) -> None:
        """Boot: ``more`` prepares its mounts, ``last`` becomes process 1."""
        script = _INIT.format(folders=" ".join(_PRIVATE), more=more, last=last)
        flags = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", *unshared)
        null = subprocess.DEVNULL
        argv = ["unshare", *flags, "sh", "-ec", script]
        self._process = subprocess.Popen(argv, stdin=null, stdout=null, stderr=null, start_new_session=True)
        self.init = 0
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        until(self._child, 30.0, f"process 1 of {self.name}")
        until(lambda: Path(f"/proc/{self.init}/root/run/ready").exists(), 30.0, f"the namespaces of {self.name}")
        link = f"hosts-{self.number}"
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(self.init))
        run("ip", "link", "set", link, "master", BRIDGE, "up")
        for words in (
            f"address add {self.address}/24 dev eth0",
            "link set eth0 up",
            "route add default via 10.78.0.254",
        ):
            self.run("ip", *words.split())
        if not self.path("/etc/weft/weft.toml").exists():
            self.write("/etc/weft/weft.toml", f'# of the operator\n[agent]\nnode = "{self.name}"\n')

    def _child(self) -> bool:
        found = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        self.init = int(found[0]) if found else 0
        return bool(found)

    def run(self, *argv: str, check: bool = True, timeout: float = 180.0) -> Outcome:
        """Run a command on it."""
        enter = ("nsenter", "-t", str(self.init), "-n", "-m", "-p", "--")
        return run(*enter, *argv, check=check, timeout=timeout, environment=self.environment)

    def start(self, *argv: str) -> subprocess.Popen[bytes]:
        """Start a command on it, which the caller waits for or kills with its session."""
        enter = ("nsenter", "-t", str(self.init), "-n", "-m", "-p", "--")
        null = subprocess.DEVNULL
        return subprocess.Popen(
            [*enter, *argv], stdin=null, stdout=null, stderr=null, env=self.environment, start_new_session=True
        )

    def weft(self, *words: str, check: bool = True) -> Outcome:
        """Run ``weft`` on it."""
        return self.run(*self.command(*words), check=check)

    def command(self, *words: str) -> tuple[str, ...]:
        return (str(ROOT / "bin" / "weft"), *words)

    def path(self, name: str) -> Path:
        """A file of it, as this process sees it."""
        return Path(f"/proc/{self.init}/root{name}")

    def write(self, name: str, text: str) -> None:
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        self.path(name).write_text(text)

    def etcd(self) -> int:
        """The process of its etcd in its own namespace, 0 if none runs."""
        for lock in self.path("/run/weft").glob("*/etcd.lock"):
            number = lock.read_text().strip()
            if number.isdigit() and self.run("kill", "-0", number, check=False).code == 0:
                return int(number)
        return 0

    def ctl(self, *words: str, user: str = "root", check: bool = True, endpoint: str = "") -> Outcome:
        """Run etcdctl on it, with a certificate of its folder: ``root`` or ``node``."""
        folder = "/etc/weft/etcd"
        tls = ("--cacert", f"{folder}/ca.pem", "--cert", f"{folder}/{user}.pem", "--key", f"{folder}/{user}-key.pem")
        where = f"https://{endpoint or self.address}:2379"
        return self.run("etcdctl", "--endpoints", where, *tls, *words, check=check)

    def connect(self, *, up: bool) -> None:
        """Plug its cable in, or out."""
        run("ip", "link", "set", f"hosts-{self.number}", "up" if up else "down")

    def close(self) -> None:
        """Switch it off: all its processes are killed."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        # The kernel ends a namespace later, and its links with it.
        run("ip", "link", "delete", f"hosts-{self.number}", check=False)


def network() -> None:
    """The bridge that the hosts are on, and an address behind their default route."""
    lines = [f"link add {BRIDGE} type bridge", f"address add 10.78.0.254/24 dev {BRIDGE}", f"link set {BRIDGE} up"]
    run("ip", "-batch", "-", stdin="\n".join(lines))


def remove_network() -> None:
    run("ip", "link", "delete", BRIDGE, check=False)


def token(host: ClusterHost, *words: str) -> str:
    """A join token, made on a member."""
    return host.weft("cluster", "token", *words).stdout.strip()


def members(host: ClusterHost) -> dict[str, str]:
    """The members of etcd by name, as a member lists them: "false" for one that votes, "true" for a learner. A learner
    itself lists none.
    """
    found = host.ctl("member", "list", check=False).stdout.splitlines()
    return {words[2]: words[5] for line in found if len(words := line.split(", ")) == 6}
