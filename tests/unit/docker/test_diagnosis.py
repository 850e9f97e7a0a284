"""What ``weft doctor`` says of Docker's networks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cni_plugin.docker import resolvers
from cni_plugin.docker.diagnosis import findings
from lab.waiting import until
from weft import locks


def write(root: Path, path: str, text: str) -> None:
    place = root / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "/etc/resolv.conf", "nameserver 192.0.2.53\n")
    write(tmp_path, "/var/lib/weft/docker/networks/a.json", "{}")
    return tmp_path


def said(root: Path) -> list[str]:
    return [one.what for one in findings(str(root), str(root))]


def test_a_driver_that_does_not_run(root: Path) -> None:
    [found] = said(root)
    assert found.startswith("Docker has networks of weft's, and the driver does not run")
    with locks.hold(str(root / "docker.lock")):
        assert said(root) == []
    (root / "var/lib/weft/docker/networks/a.json").unlink()
    assert said(root) == []


@pytest.mark.parametrize(
    ("resolver", "uplink", "daemon", "asked"),
    [
        ("127.0.0.1", "", None, "127.0.0.1"),
        ("127.0.0.53", "", None, "127.0.0.53"),
        ("127.0.0.53", "192.0.2.53", None, ""),
        ("127.0.0.1", "", {"dns": ["192.0.2.53"]}, ""),
        ("192.0.2.53", "", {"dns": ["127.0.0.1"]}, "127.0.0.1"),
        ("::1", "", {"dns": []}, "::1"),
        ("192.0.2.53", "", ["no object"], ""),
    ],
)
def test_a_resolver_that_docker_asks_from_the_host(
    root: Path, resolver: str, uplink: str, daemon: object, asked: str
) -> None:
    write(root, "/etc/resolv.conf", f"# comment\nsearch lan\nnameserver {resolver}\n")
    if uplink:
        write(root, "/run/systemd/resolve/resolv.conf", f"nameserver {uplink}\n")
    if daemon is not None:
        write(root, "/etc/docker/daemon.json", json.dumps(daemon))
    with locks.hold(str(root / "docker.lock")):
        found = said(root)
    assert found == (
        [f"Docker asks {asked} for names from this host's namespace, so containers find no services of weft's"]
        if asked
        else []
    )


def test_the_servers_of_the_dockerd_that_runs(root: Path) -> None:
    assert resolvers.servers(str(root)) == ["192.0.2.53"]
    options = ("--dns", "192.0.2.7,192.0.2.8", "--dns-search", "lan", "--dns=::1", "--dns=fe80::1%eth0")
    with subprocess.Popen([sys.executable, "-Ic", "input()", *options], stdin=subprocess.PIPE) as process:
        try:
            write(root, "/run/docker.pid", str(process.pid))
            until(lambda: Path(f"/proc/{process.pid}/cmdline").read_bytes())  # execve has not set it yet
            assert resolvers.servers(str(root)) == ["192.0.2.7", "192.0.2.8", "::1", "fe80::1%eth0"]
            assert resolvers.asked_from_containers(str(root)) == ["192.0.2.7", "192.0.2.8"]
            write(root, "/etc/docker/daemon.json", json.dumps({"dns": ["192.0.2.9"]}))
            assert resolvers.servers(str(root)) == ["192.0.2.9"]
        finally:
            process.kill()
    (root / "etc/docker/daemon.json").unlink()
    assert resolvers.servers(str(root)) == ["192.0.2.53"]


def test_without_any_server_docker_asks_public_ones(root: Path) -> None:
    """A host without a resolver: containers' queries go there, and must still reach weft's names."""
    for text in ("", "search lan\n# nameserver 192.0.2.53\n"):
        write(root, "/etc/resolv.conf", text)
        assert resolvers.asked_from_containers(str(root))[:2] == ["8.8.8.8", "8.8.4.4"]
        assert len(said(root)) == 1
