"""A private machine with Docker, ufw or firewalld beside weft, two networks of weft's, and a neighbour."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lab.machine import Machine
from lab.unpacked import FIREWALLS, overlay, unpack
from lab.waiting import BRIEFLY, PATIENTLY, until

_BUS = """<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_type="method_call"/>
<allow send_type="signal"/><allow send_requested_reply="true"/><allow receive_type="method_call"/>
<allow receive_type="method_return"/><allow receive_type="error"/><allow receive_type="signal"/></policy></busconfig>
"""
_UFW = """IPV6=yes
DEFAULT_INPUT_POLICY="DROP"
DEFAULT_OUTPUT_POLICY="ACCEPT"
DEFAULT_FORWARD_POLICY="DROP"
DEFAULT_APPLICATION_POLICY="SKIP"
MANAGE_BUILTINS=no
IPT_SYSCTL=/etc/ufw/sysctl.conf
IPT_MODULES=""
"""
RESTORED = 60.0
"""Seconds on a loaded machine; elsewhere it takes one after the last change, at most five."""
_GET = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=2).read().decode())"
_COPY = "cp /usr/share/ufw/iptables/*.rules /usr/share/ufw/ufw.conf /usr/share/ufw/*.init /etc/ufw/"


class Firewalled(Machine):
    """A machine with the neighbour 192.0.2.2 in the namespace ``outside``, which has routes to containers.

    Containers are namespaces: c1 on the network blue, with a published port 8080 and names, and c2 on
    points, which has no bridge.
    """

    def __init__(
        self, folder: Path, *, followed: bool = True, layers: Sequence[Path] = (), shared: Path = Path("/mnt")
    ) -> None:
        """``followed``: engine and agent restore what others delete. ``layers`` are a root that has the
        firewalls (``lab.roots``).
        """
        super().__init__(controllers=True, layers=layers, shared=shared)
        if not followed:
            self._environment = {**os.environ, "WEFT_FOLLOW": "off"}
        if not layers:
            overlay(self, unpack(*FIREWALLS))
        self.folder = folder
        self.run("sh", "-c", "mkdir -p /run/docker-data /run/dbus /run/www; echo weft was here >/run/www/index.html")
        for line in (
            "netns add outside",
            "link add lan0 type veth peer name eth0 netns outside",
            "address add 192.0.2.1/24 dev lan0",
            "link set lan0 up",
            "route add default via 192.0.2.2",
            "-n outside address add 192.0.2.2/24 dev eth0",
            "-n outside link set eth0 up",
            "-n outside route add 10.0.0.0/8 via 192.0.2.1",
            "-n outside route add 172.16.0.0/12 via 192.0.2.1",
        ):
            self.run("ip", *line.split())

    # weft

    def attach(self) -> None:
        """The two networks, both open to others, and their containers."""
        created = ("network", "create", "-o", "isolation=open", "--subnet")
        self._weft(*created, "10.80.0.0/24", "--names", "blue")
        self._weft(*created, "10.82.0.0/24", "-d", "ptp", "points")
        self.add("c1", "blue", "-p", "8080:80")
        self.add("c2", "points")

    def add(self, name: str, network: str, *options: str) -> None:
        """A container with a web page at port 80."""
        self.run("ip", "netns", "add", name)
        self._weft("attach", network, name, *options)
        self.start(*self._inside(name), "busybox", "httpd", "-f", "-p", "80", "-h", "/run/www", log=self.folder / name)

    def remove(self, *names: str) -> None:
        """Detach containers, and remove the networks."""
        for name in names:
            self._weft("detach", "points" if name == "c2" else "blue", name)
        self._weft("network", "rm", "blue", "points")

    def _weft(self, *argv: str) -> None:
        outcome = self.weft(*argv)
        assert outcome.code == 0, outcome

    def problems(self) -> list[str]:
        """What ``weft check`` says of attachments, which must exist."""
        found = self.weft("check", "--json").json
        assert found
        return [sentence for one in found for sentence in one["lacks"]]

    def restored(self) -> None:
        """Wait until engine or agent has restored what another firewall has removed."""
        until(lambda: self.problems() == [], RESTORED, "weft's rules in the other firewall")

    def findings(self) -> dict[str, str]:
        """What ``weft doctor`` finds, with its remedies."""
        return {one["what"]: one["remedy"] for one in self.weft("doctor", "--json").json["findings"]}

    def rules(self) -> list[str]:
        """The rules with weft's mark, and weft's chain, in iptables' tables."""
        lines = [*self.run("iptables-save").stdout.splitlines(), *self.run("ip6tables-save").stdout.splitlines()]
        return [line for line in lines if "weft:" in line or "WEFT-" in line]

    # Traffic

    @staticmethod
    def _inside(name: str) -> tuple[str, ...]:
        return ("ip", "netns", "exec", name)

    def page(self, name: str, address: str, *, expected: bool = True) -> bool:
        """Whether a container gets the page of a server; waits long if it is expected."""
        argv = (*self._inside(name), self.python, "-ISc", _GET, f"http://{address}/")
        found = self.until(*argv, timeout=PATIENTLY if expected else BRIEFLY)
        return "weft was here" in found.stdout

    def answered(self, name: str) -> bool:
        """Whether the gateway of blue answers a question for a name there."""
        return self.until(*self._inside(name), "busybox", "nslookup", "weft-c1", "10.80.0.1").code == 0

    def working(self) -> dict[str, bool]:
        """What containers of weft must reach, and what must reach them."""
        ping = (*self._inside("c1"), "ping", "-c1", "-W1", "192.0.2.2")
        return {
            "the outside": self.until(*ping).code == 0,
            "the outside without a bridge": self.until(*self._inside("c2"), *ping[4:]).code == 0,
            "another network": self.page("c2", "10.80.0.2") and self.page("c1", "10.82.0.2"),
            "a published port from outside": self.page("outside", "192.0.2.1:8080"),
            "names": self.answered("c1"),
        }

    # Firewalls

    def docker(self) -> None:
        """(Re)start dockerd, and wait until it answers."""
        self.start_docker()
        self.docker_answers()

    def start_docker(self) -> None:
        """(Re)start dockerd, without waiting for it."""
        pid = self.run("cat", "/run/docker.pid", check=False).stdout.strip()
        if pid:
            self.run("kill", pid)
            gone = self.until("sh", "-c", f"! test -d /proc/{pid}")
            assert gone.code == 0, gone
        options = ("--data-root", "/run/docker-data", "--iptables=true", "-p", "/run/docker.pid")
        self.start("dockerd", *options, log=self.folder / "dockerd")

    def docker_answers(self, seconds: float = 60) -> None:
        """Wait until dockerd answers."""
        ready = self.until("timeout", str(seconds), "docker", "version", timeout=seconds)
        assert ready.code == 0, (ready, (self.folder / "dockerd").read_text()[-2000:])

    def image(self, root: str) -> None:
        """Make the image ``page``, of a root file system."""
        self.run("sh", "-c", 'tar -C "$1" -c . | docker import - page', "sh", root)

    def serve(self, name: str, *options: str) -> str:
        """Start a container of Docker's with a web page at port 80; its address."""
        command = ("/bin/httpd", "-f", "-p", "80", "-h", "/www")
        self.run("docker", "run", "-d", "--name", name, *options, "page", *command)
        wanted = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        return self.run("docker", "inspect", "-f", wanted, name).stdout.strip()

    def ufw(self) -> None:
        """Enable ufw as Debian ships it: it drops what comes in and what is forwarded."""
        self.run("sh", "-c", _COPY)
        self.write("/etc/default/ufw", _UFW)
        self.run("ufw", "--force", "enable")

    def firewalld(self) -> None:
        """Start D-Bus and firewalld as Debian ships it, with lan0 in the zone public."""
        self.write("/run/dbus/system.conf", _BUS)
        self.run("dbus-daemon", "--config-file=/run/dbus/system.conf", "--fork")
        self.run("firewall-offline-cmd", "--zone=public", "--add-interface=lan0")
        self.start("firewalld", "--nofork", "--nopid", log=self.folder / "firewalld")
        ready = self.until("firewall-cmd", "--state", timeout=60)
        assert ready.code == 0, (ready, (self.folder / "firewalld").read_text()[-2000:])

    def reload(self) -> None:
        """Reload firewalld; on a busy machine it takes longer than firewall-cmd waits for."""
        reloaded = self.until("firewall-cmd", "--reload", timeout=90)
        assert reloaded.code == 0, reloaded
