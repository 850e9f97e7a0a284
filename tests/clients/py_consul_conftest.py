"""Replaces py-consul's conftest.py: its fixtures start weft's agent in place of a Consul container.

Each test gets an agent with an empty catalog, as it gets a new container of Consul.
"""

import collections

import pytest
import weft_agent

VERSION = "1.22.0"
Instance = collections.namedtuple("Instance", ["container", "port", "version"])


@pytest.fixture
def consul_instance():
    with weft_agent.running():
        yield Instance(None, 8500, VERSION)


@pytest.fixture
def acl_consul_instance():
    with weft_agent.running(acls=True):
        yield Instance(None, 8500, VERSION), weft_agent.MANAGEMENT


@pytest.fixture
def consul_port(consul_instance):
    return consul_instance.port, consul_instance.version
