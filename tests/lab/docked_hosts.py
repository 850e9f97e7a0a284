"""Hosts of a cluster, each with a dockerd, and ``weft docker``."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from lab.machine import CONTROLLERS
from lab.many_hosts import ClusterHost
from lab.unpacked import overlay, unpack
from lab.waiting import until

_START = 120.0


class DockedHost(ClusterHost):
    """A host with Debian's Docker over its /usr and /etc."""

    def __init__(self, number: int) -> None:
        self._daemons: list[subprocess.Popen[bytes]] = []
        super().__init__(number)

    def _prepare(self) -> None:
        super()._prepare()
        overlay(self, unpack("docker.io"))
        # The overlay hides what ClusterHost has mounted below /usr and /etc.
        self.write("/etc/weft/weft.toml", f'[agent]\nnode = "{self.name}"\n')
        self.run("mount", "--bind", str(unpack("etcd-server", "etcd-client") / "usr" / "bin"), "/usr/local/sbin")
        self.run("sh", "-euc", f"umount -R /sys/fs/cgroup\n{CONTROLLERS}")

    def serve_docker(self, root: str) -> None:
        """Start dockerd and the driver; ``root`` is the file system of the image ``page``."""
        self.drive()
        self.run("mkdir", "-p", "/run/docker-data")
        options = ("--data-root", "/run/docker-data", "-p", "/run/docker.pid")
        self._daemons.append(self.start("sh", "-c", 'exec "$@" >/run/dockerd.log 2>&1', "sh", "dockerd", *options))
        until(lambda: self.run("docker", "version", check=False).code == 0, _START, f"dockerd of {self.name}")
        self.run("sh", "-c", 'tar -C "$1" -c . | docker import - page', "sh", root)

    def drive(self) -> None:
        """Start the driver, and wait until it listens."""
        words = " ".join(self.command("docker"))
        self._daemons.append(self.start("sh", "-c", f"exec {words} >>/run/driver.log 2>&1"))
        until(self.path("/run/docker/plugins/weft.sock").exists, _START, f"the driver of {self.name}")

    def ask(self, *argv: str) -> str:
        """The output of a docker command."""
        return self.run("docker", *argv).stdout.strip()

    def networks(self) -> set[str]:
        """The names of weft's networks in its Docker."""
        return set(self.ask("network", "ls", "--filter", "driver=weft", "--format", "{{.Name}}").split())

    def page(self, name: str, *options: str) -> str:
        """Start a container with a web page that is the host's name, at port 80; its address."""
        script = f"echo page of {self.name} >/www/index.html; exec /bin/httpd -f -p 80 -h /www"
        self.ask("run", "-d", "--name", name, *options, "page", "/bin/sh", "-c", script)
        found: list[dict[str, Any]] = json.loads(self.ask("inspect", name))
        [joined] = found[0]["NetworkSettings"]["Networks"].values()
        return str(joined["IPAddress"])

    def gets(self, name: str, place: str) -> str:
        """What a container gets from a web server, "" if nothing."""
        argv = (
            "docker",
            "exec",
            name,
            "/bin/busybox",
            "timeout",
            "3",
            "/bin/wget",
            "-q",
            "-O",
            "-",
            f"http://{place}/",
        )
        return self.run(*argv, check=False).stdout.strip()

    def log(self) -> str:
        return f"{self.name}: {self.path('/run/driver.log').read_text()[-3000:]}"

    def close(self) -> None:
        super().close()
        for one in self._daemons:
            one.wait()
