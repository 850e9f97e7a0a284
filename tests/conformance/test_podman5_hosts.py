"""Podman 5 on two hosts that share an etcd cluster: one overlay network for the containers of both."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.commands import run
from lab.podman import Podman
from lab.roots import PLACE
from lab.unpacked import unpack

_WAIT = 90.0
_ADDRESSES = ("10.99.0.1", "10.99.0.2")
_VIRTUAL = "10.79.0.80"
Hosts = tuple[Podman, Podman]


@pytest.fixture(scope="module")
def hosts(trixie: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Two machines on one cable, with an agent each; etcd runs on the first one."""
    shared = tmp_path_factory.getbasetemp()
    etcd = Path(shutil.copy(unpack("etcd-server", "etcd-client") / "usr/bin/etcd", tmp_path_factory.mktemp("etcd")))
    made: list[Podman] = []
    try:
        for _ in _ADDRESSES:
            made.append(Podman(Path(PLACE) / "bin" / "cni", layers=trixie, shared=shared))
        one, two = made
        pids = [str(each.first) for each in made]
        run("nsenter", "-t", pids[0], "-n", "ip", "link", "add", "wire", "type", "veth", "peer", "name", "wire",
            "netns", pids[1])  # fmt: skip
        for each, address in zip(made, _ADDRESSES, strict=True):
            each.run("ip", "address", "add", f"{address}/24", "dev", "wire")
            each.run("ip", "link", "set", "wire", "up")
        url = f"http://{_ADDRESSES[0]}:2379"
        one.start(str(etcd), "--data-dir", "/run/etcd", "--listen-client-urls", url, "--advertise-client-urls", url,
                  "--listen-peer-urls", "http://127.0.0.1:2380", log=etcd.parent / "log")  # fmt: skip
        for number, (each, address) in enumerate(zip(made, _ADDRESSES, strict=True), 1):
            agent = f'[agent]\nnode = "h{number}"\naddress = "{address}"\n[store]\nendpoints = ["{url}"]\n'
            each.write("/etc/weft/weft.toml", agent)
            assert each.weft("up", "--config", "/etc/weft/weft.toml").code == 0, each.weft("status")
        yield one, two
    finally:
        for each in made:
            each.close()


@pytest.mark.long
def test_containers_of_two_hosts_share_a_network(hosts: Hosts, roots: list[str]) -> None:
    """Created by podman on one host it is on the other: containers of both reach each other by address and name, and
    a service with an instance on each is balanced over both.
    """
    one, two = hosts
    one.podman("network", "create", "-d", "overlay", "blue")
    assert two.until("podman", "network", "exists", "blue", timeout=_WAIT).code == 0
    assert one.defined("blue")["id"] == two.defined("blue")["id"]
    at = (one.serve("web1", roots[0], network="blue"), two.serve("web2", roots[1], network="blue"))
    assert at[0] != at[1]
    for here, client, there, name in ((one, "web1", at[1], "web2"), (two, "web2", at[0], "web1")):
        assert here.ping(client, there)
        assert here.until("podman", "exec", client, "/bin/ping", "-c", "1", "-W", "1", name, timeout=_WAIT).code == 0
    for number, (here, address) in enumerate(zip(hosts, at, strict=True), 1):
        words = (f"-id=web{number}", "-name=web", f"-address={address}", "-port=80",
                 f"-tagged-address=virtual={_VIRTUAL}:80")  # fmt: skip
        assert here.weft("services", "register", *words).code == 0
    two.run("sh", "-c", f'echo of host 2 >"{roots[1]}/www/index.html"')
    for here, client in ((one, "web1"), (two, "web2")):
        for page in ("weft was here", "of host 2"):
            fetched = ("sh", "-c", 'podman exec "$1" /bin/wget -qO- "http://$2/" | grep -q "$3"', "sh")
            assert here.until(*fetched, client, _VIRTUAL, page, timeout=_WAIT).code == 0, (client, page)
    refused = two.weft("network", "rm", "blue")
    assert refused.code and "containers on h1" in refused.stderr
    for each in hosts:
        each.podman("rm", "-fa", "-t0")
    assert two.until(f"{two.weft_folder}/bin/weft", "network", "rm", "blue", timeout=_WAIT).code == 0
    assert one.until("sh", "-c", "! podman network exists blue", timeout=_WAIT).code == 0
    assert not [link for each in hosts for link in each.links() if link.startswith("veth")]
