"""The agent of one host on a cluster: ``[store]`` in weft.toml."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.commands import Outcome, run
from lab.etcd import Cluster
from lab.host import Host
from lab.plugins import ROOT
from lab.waiting import until

Weft = Callable[..., Outcome]
EXPECTED = 60.0


@pytest.fixture
def weft(cluster: Cluster, host: Host) -> Iterator[Weft]:
    """Runs bin/weft on the test's host, which reaches the cluster; afterwards no process is left."""
    cluster.ctl("del", "--prefix", "/weft/")
    cluster.reach(host.path)
    environment = {"PATH": os.environ["PATH"], "WEFT_CNI_CONFIG": "/run/cni-config", "LC_ALL": "C.UTF-8"}

    def call(*arguments: str, check: bool = True) -> Outcome:
        return run(str(ROOT / "bin/weft"), *arguments, environment=environment, check=check, timeout=EXPECTED * 2)

    yield call
    call("down", check=False)
    cluster.ctl("del", "--prefix", "/weft/")


def configuration(cluster: Cluster, folder: Path) -> str:
    endpoints = ", ".join(f'"http://{one}"' for one in cluster.endpoints)
    path = folder / "weft.toml"
    path.write_text(f'[agent]\nnode = "n1"\ndata = "{folder}/data"\n[store]\nendpoints = [{endpoints}]\n')
    return str(path)


def request(method: str, path: str, body: bytes | None = None) -> bytes:
    """A request to the agent's API, as root."""
    connection = http.client.HTTPConnection("127.0.0.1", 8500, timeout=EXPECTED)
    with contextlib.closing(connection):
        connection.request(method, path, body)
        response = connection.getresponse()
        content = response.read()
        assert response.status == 200, (method, path, response.status, content)
        return content


def addresses(service: str) -> list[str]:
    """What the agent's catalog has, [] while it does not serve."""
    try:
        return [one["ServiceAddress"] for one in json.loads(request("GET", f"/v1/catalog/service/{service}"))]
    except (OSError, http.client.HTTPException):
        return []


def keys(cluster: Cluster) -> list[str]:
    return cluster.ctl("get", "--prefix", "--keys-only", "/weft/v2/").stdout.split()


def test_registrations_are_in_the_cluster(cluster: Cluster, host: Host, weft: Weft, tmp_path: Path) -> None:
    path = configuration(cluster, tmp_path)
    up = json.loads(weft("up", "--json", "--config", path).stdout)
    request("PUT", "/v1/agent/service/register", b'{"Name": "web", "Address": "10.9.0.5", "Port": 80}')
    assert "10.9.0.5" in weft("dns-lookup", "web.service.weft").stdout
    assert "/weft/v2/host/n1/service/web/web" in keys(cluster)
    assert not (tmp_path / "data" / "catalog.db").exists()

    os.kill(up["agent"]["pid"], signal.SIGKILL)
    weft("up", "--config", path)
    until(lambda: addresses("web") == ["10.9.0.5"], EXPECTED, "the service after a restart")
    assert "10.9.0.5" in weft("dns-lookup", "web.service.weft").stdout

    request("PUT", "/v1/kv/kept", b"1")
    archive = request("GET", "/v1/snapshot")
    request("PUT", "/v1/kv/kept", b"2")
    request("PUT", "/v1/snapshot", archive)
    assert request("GET", "/v1/kv/kept?raw") == b"1"

    request("PUT", "/v1/agent/service/deregister/web")
    until(lambda: addresses("web") == [], EXPECTED, "the deregistration")
    assert "/weft/v2/host/n1/service/web/web" not in keys(cluster)


@pytest.mark.long
def test_an_agent_that_starts_before_its_cluster(cluster: Cluster, host: Host, weft: Weft, tmp_path: Path) -> None:
    """It runs, says what is wrong, and registers when the cluster can be reached."""
    run("ip", "link", "set", "etcd0", "down")
    weft("up", "--config", configuration(cluster, tmp_path), check=False)
    until(lambda: "etcd cluster" in weft("status", check=False).stdout, EXPECTED, "the problem in weft status")
    run("ip", "link", "set", "etcd0", "up")
    until(lambda: "/weft/v2/host/n1/node" in keys(cluster), EXPECTED, "the node")
    until(lambda: "etcd cluster" not in weft("status", check=False).stdout, EXPECTED, "the end of the problem")
