"""Replaces py-consul's conftest.py: its fixtures start weft's agent in place of a Consul container.

Each test gets an agent with an empty catalog, as it gets a new container of Consul.
"""

import collections
import os
import pathlib
import subprocess
import time

import pytest
import requests

VERSION = "1.22.0"
Instance = collections.namedtuple("Instance", ["container", "port", "version"])
CONFIG = """
[agent]
node = "client-tests"
data = "{data}"
[http]
listen = ["127.0.0.1:8500"]
[dns]
enabled = false
[checks]
scripts = true
[balancer]
enabled = false
"""


@pytest.fixture
def consul_instance(tmp_path):
    config = tmp_path / "weft.toml"
    config.write_text(CONFIG.format(data=tmp_path / "data"))
    with open(tmp_path / "log", "wb") as log:
        agent = subprocess.Popen([os.environ["WEFT"], "agent", "--config", str(config)], stdout=log, stderr=log)
    try:
        wait(agent, tmp_path / "log")
        yield Instance(None, 8500, VERSION)
    finally:
        agent.terminate()
        agent.wait(30)


@pytest.fixture
def acl_consul_instance():
    pytest.skip("weft has no ACLs")


@pytest.fixture
def consul_port(consul_instance):
    return consul_instance.port, consul_instance.version


def wait(agent: subprocess.Popen, log: pathlib.Path) -> None:
    end = time.monotonic() + 60
    while agent.poll() is None and time.monotonic() < end:
        try:
            if requests.get("http://127.0.0.1:8500/v1/status/leader", timeout=5).json():
                return
        except requests.RequestException:
            time.sleep(0.05)
    pytest.fail(f"the agent does not serve: {log.read_text()}")
